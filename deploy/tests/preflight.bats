#!/usr/bin/env bats
#
# What the scripts look at on the host before they change anything: listeners, ports, clock, Docker, disk. Docker's place is taken by a
# program that answers as a test wants it.
# shellcheck disable=SC1091,SC2004,SC2013,SC2034,SC2154,SC2030,SC2031,SC2016  # variables of the scripts under test; each test is a shell of its own

load scripts

@test "a listener is seen at IPv4, IPv6 and every address" {
  python3 -c '
import socket, sys, time
held = []
for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::1")):
    try:
        s = socket.socket(family); s.bind((address, 0)); s.listen(); held.append(s)
    except OSError:
        pass
print(*[s.getsockname()[1] for s in held], flush=True)
time.sleep(30)' >"$WORK/ports" 3>&- &
  listener=$!
  for _ in $(seq 50); do [ -s "$WORK/ports" ] && break; sleep 0.1; done
  for port in $(cat "$WORK/ports"); do port_is_taken "$port" || { echo "not seen: $port" && cat "$WORK/ports" && kill $listener && false; }; done
  free=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  no port_is_taken "$free"
  settings "PROXY_PORT=$(cut -d ' ' -f 1 "$WORK/ports")"
  run check_free_ports
  kill $listener
  says "(PROXY_PORT, for kong) is taken"
  says "python3 (process $listener)" || ! command -v ss
}

@test "a port is ours when our running service was started with it" {
  settings PROXY_PORT=12345
  echo PROXY_PORT=12345 >"$config_dir/compose.env"
  fake_docker 'ps*) echo id ;; inspect*) echo running ;;'
  is_ours kong PROXY_PORT
  settings PROXY_PORT=12346
  no is_ours kong PROXY_PORT
}

@test "vLLM that listens everywhere is warned about" {
  python3 -c '
import http.server, sys
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self): self.send_response(401); self.end_headers()
s = http.server.HTTPServer((sys.argv[1], 0), H); print(s.server_port, flush=True); s.serve_forever()' 0.0.0.0 >"$WORK/port" 2>/dev/null 3>&- &
  server=$!
  for _ in $(seq 50); do [ -s "$WORK/port" ] && break; sleep 0.1; done
  settings "VLLM_URL=http://127.0.0.1:$(cat "$WORK/port")"
  run check_vllm
  kill $server
  says 'warning  vLLM listens beyond the loopback address'
  ! grep -q '^error' <<<"$output" || false
}

@test "the other architecture, an old clock, a missing daemon, an old Docker, an old Compose" {
  settings ''
  release_dir=$WORK/bundle
  mkdir -p "$release_dir"
  echo amd64 >"$release_dir/ARCHITECTURE"
  GATEWAY_TEST_MACHINE=aarch64 run check_architecture
  says 'this host is arm64, the bundle is for amd64'
  date +%s >"$release_dir/BUILT"
  GATEWAY_TEST_NOW=1000000000 run check_clock
  says 'the clock is wrong: it shows 2001-09-09T01:46:40Z'
  fake_docker '*) echo "Cannot connect to the Docker daemon" >&2; exit 1 ;;'
  run check_docker
  [ "$status" = 1 ]
  says 'Cannot connect to the Docker daemon'
  fake_docker 'version*) echo 19.03.8 ;; info*) echo "[name=rootless] memory=false" ;;'
  run check_docker
  says 'Docker 19.03.8 is too old'
  says 'rootless or with user namespaces'
  says 'does not limit the memory'
  fake_docker '"compose version --short") echo 1.25.0 ;; compose*) ;;'
  run check_compose
  says 'Compose 1.25.0 is too old'
}

@test "a full disk of Docker is found before images are loaded" {
  settings ''
  fake_docker "info*) echo $WORK ;;"
  run check_docker_disk $((1 << 40))
  says 'loading the images needs'
  run check_docker_disk 1
  [ -z "$output" ]
}
