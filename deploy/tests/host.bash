# shellcheck shell=bash
#
# host.bash - the nginx test host with a small upstream behind it, for the tests of the
# commands that configure Kong. Each test file gets its own.
#
# NGINX_HOST_PLUGINS_DIR names the folder with the project's plugins when it is not
# ../../kong-plugins. The commands are those of target/debug/llm-collector
# (cargo build --package llm-collector).

DEPLOY=$(cd "$BATS_TEST_DIRNAME/.." && pwd)
HOST=$DEPLOY/../tests/nginx-host
export DEPLOY HOST
[ -z "${NGINX_HOST_PLUGINS_DIR:-}" ] || export GATEWAY_PLUGINS_DIR=$NGINX_HOST_PLUGINS_DIR

start_upstream() {
  export WORK=$BATS_FILE_TMPDIR
  mkdir -p "$WORK/up"
  python3 "$HOST/selftest_server.py" "$WORK/up" >"$WORK/up/port" 3>&- &
  echo $! >"$WORK/up/pid"
  for _ in $(seq 100); do [ -s "$WORK/up/port" ] && break; sleep 0.05; done
  UP=$(cat "$WORK/up/port")
  export UP VLLM_URL=http://127.0.0.1:$UP COLLECTOR_URL=http://127.0.0.1:$UP
}

stop_upstream() { kill "$(cat "$WORK/up/pid")"; }

# start_host NAME - fresh and empty; sets the addresses the scripts read.
start_host() {
  NGINX_HOST_WATCH_PID=$$ "$HOST/run.sh" start --prefix "$WORK/$1" \
    --proxy 127.0.0.1:0 --admin 127.0.0.1:0 --status 127.0.0.1:0 3>&- >/dev/null
  # shellcheck disable=SC1090
  . "$WORK/$1/host.env"
  export KONG_ADMIN_URL=$ADMIN_URL KONG_PROXY_URL=$PROXY_URL STATUS_URL
}

stop_host() { "$HOST/run.sh" stop --prefix "$WORK/$1"; }

COLLECTOR=${CARGO_TARGET_DIR:-$DEPLOY/../target}/debug/llm-collector
[ -x "$COLLECTOR" ] || { echo "$COLLECTOR is missing: cargo build --package llm-collector" >&2 && exit 1; }

configure() { "$COLLECTOR" kong apply "$@"; }
users() { "$COLLECTOR" users "$@"; }

admin() { curl -sS -X "$1" "$KONG_ADMIN_URL/$2" -H 'Content-Type: application/json' ${3+--data "$3"}; }

# Fails when the command succeeds; bats does not see a failing `! command`.
no() { if "$@"; then return 1; fi; }

# says [-F] PATTERN COMMAND… - runs the command to its end, succeeds when its standard
# output has such a line. A pipe into `grep -q` would cut the command off at the match.
says() {
  local how=(-q) output
  if [ "$1" = -F ]; then how+=(-F) && shift; fi
  local pattern=$1
  shift
  output=$("$@") || return 1
  grep "${how[@]}" -- "$pattern" <<<"$output" || { printf '%s\n' "$output" && return 1; }
}

# arguments_of COMMAND… - what the process list shows of a command of the collector while it works, a line a word: its
# Admin API takes the call and does not answer.
arguments_of() {
  python3 - "$COLLECTOR" "$@" 3<&0 <<'PY'
import os, socket, subprocess, sys
with socket.create_server(("127.0.0.1", 0)) as server:
    url = "http://127.0.0.1:%d" % server.getsockname()[1]
    command = subprocess.Popen(sys.argv[1:], stdin=3, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               env={**os.environ, "KONG_ADMIN_URL": url})
    connection, _ = server.accept()
    connection.recv(1)
    with open(f"/proc/{command.pid}/cmdline", "rb") as words:
        sys.stdout.write(words.read().decode().replace("\0", "\n"))
    command.kill()
    command.wait()
PY
}

# Status of a call to the gateway; its body is in $WORK/body.
call() {
  curl -sS --path-as-is -o "$WORK/body" -w '%{http_code}' "$KONG_PROXY_URL$1" "${@:2}"
}

# A Python expression over the JSON `j` that a command printed.
json() { python3 -c 'import json,sys; j=json.load(sys.stdin); print(eval(sys.argv[1]))' "$1"; }

# Everything in Kong, with its time stamps.
whole_state() {
  local list
  for list in services routes plugins consumers key-auths; do admin GET "$list?size=1000"; done
}
