#!/usr/bin/env bats
#
# HTTPS at the front door, as far as it needs no Docker: which certificates and keys are taken, and what follows from them. The collector
# that looks into them is the real one, in place of its image; it has to be built.
# shellcheck disable=SC1091,SC2004,SC2034,SC2154,SC2030,SC2031,SC2016  # variables of the scripts under test; each test is a shell of its own
load scripts

# A program in the place of Docker that has the collector's image.
collector_image() {
  COLLECTOR=${CARGO_TARGET_DIR:-$DEPLOY/../target}/debug/llm-collector
  [ -x "$COLLECTOR" ]
  fake_docker "'image inspect '*) exit 0 ;;
    'run '*' certificate') echo \"\$*\" >>$WORK/calls && exec $COLLECTOR certificate ;;
    'ps '*) cat $WORK/kong 2>/dev/null ;;
    'inspect '*) cat $WORK/started ;;
    *) echo \"\$*\" >>$WORK/calls ;;"
  read_images
  for role in KONG GRAFANA; do image_user[$role]="$(id -u):$(id -g)"; done
}

# certificate NAMES [DAYS] - of an authority of its own, with the authority's behind it.
certificate() {
  (
    cd "$WORK" || exit
    [ -e ca.pem ] || openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 9 -subj /CN=ca -keyout ca.key -out ca.pem
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=x -keyout key.pem -out csr.pem
    echo "subjectAltName=$1" >names
    openssl x509 -req -in csr.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days "${2:-400}" -extfile names -out own.pem
    cat own.pem ca.pem >chain.pem
    chmod 600 key.pem
  ) 2>/dev/null
}

tls_settings() { settings "TLS_CERT_FILE=$WORK/chain.pem" "TLS_KEY_FILE=$WORK/key.pem" "$@"; }

take() { accept_certificate && write_tls_files; }

@test "without a certificate everything speaks HTTP, and with one HTTPS, under its name" {
  collector_image
  settings ''
  make_secrets
  take
  [ "$proxy_url $own_proxy_url $grafana_url" = 'http://127.0.0.1:8111 http://127.0.0.1:8111 http://127.0.0.1:3000' ]
  [ -z "${tls_curl[*]}$(tls_digest)" ]
  certificate DNS:*.corp.example,DNS:gateway.corp.example,IP:10.0.0.5
  tls_settings
  take 2>"$WORK/said"
  grep -q 'that of gateway.corp.example until 20' "$WORK/said"
  [ "$proxy_url $own_proxy_url $grafana_url" = 'https://gateway.corp.example:8111 https://127.0.0.1:8111 https://127.0.0.1:3000' ]
  [ "$tls_sha256" = "$(openssl x509 -in "$WORK/own.pem" -outform der | sha256sum | cut -d ' ' -f 1)" ]
  [[ ${tls_curl[*]} == *'--connect-to gateway.corp.example:8111:127.0.0.1:8111' ]]
}

@test "the name for a call is a host's, else one of a domain, else an address" {
  [ "$(host_of_certificate $'name *.a.example\nname b.example\nname 10.0.0.5\nsha256 x')" = b.example ]
  [ "$(host_of_certificate $'name 10.0.0.5\nname *.a.example')" = gateway.a.example ]
  [ "$(host_of_certificate $'name fd00::1\nname 10.0.0.5')" = 10.0.0.5 ]
  [ "$(host_of_certificate 'name fd00::1')" = '[fd00::1]' ]
}

@test "each container gets the files in a folder of its own, readable for its user alone, and loses them with the setting" {
  collector_image
  certificate DNS:gateway.example
  tls_settings
  make_secrets
  take
  for service in kong grafana; do
    cmp "$WORK/chain.pem" "$secrets_dir/$service-tls/certificate.pem"
    cmp "$WORK/key.pem" "$secrets_dir/$service-tls/key.pem"
    [ "$(stat -c %a "$secrets_dir/$service-tls" "$secrets_dir/$service-tls/key.pem" | tr '\n' ' ')" = '500 400 ' ]
  done
  settings ''
  take
  [ -z "$(find "$secrets_dir" -name '*.pem')" ]
}

@test "the key reaches the container that looks at it on standard input only" {
  collector_image
  certificate DNS:gateway.example
  tls_settings
  make_secrets
  take
  grep -q -- '--network none --cap-drop ALL --read-only' "$WORK/calls"
  no grep -qE -- '-v|--volume|--mount|key' "$WORK/calls"
}

# refused TEXT - neither preflight nor what starts services takes them; nothing was copied.
refused() {
  run tls_problem
  says "$1"
  run accept_certificate
  [ "$status" = 1 ]
  says "$1"
  [ ! -e "$state_dir/tls" ] && [ ! -e "$secrets_dir/kong-tls" ]
}

@test "what cannot be used is refused in words, before anything takes it" {
  collector_image
  certificate DNS:gateway.example
  tls_settings
  make_secrets
  mv "$WORK/key.pem" "$WORK/away"
  refused "cannot read $WORK/key.pem"
  cp "$WORK/away" "$WORK/key.pem" && chmod 644 "$WORK/key.pem"
  refused "every account of this host may read the key $WORK/key.pem"
  openssl ecparam -name prime256v1 -genkey -noout -out "$WORK/key.pem" && chmod 600 "$WORK/key.pem"
  refused 'the key is not that of the certificate'
  openssl pkey -in "$WORK/away" -aes256 -passout pass:secret -out "$WORK/key.pem"
  refused 'the key has a password'
  echo nothing >"$WORK/key.pem"
  refused 'there is no key'
  cp "$WORK/away" "$WORK/key.pem"
  cat "$WORK/ca.pem" "$WORK/own.pem" >"$WORK/chain.pem"
  refused 'the key is not that of the certificate'
  echo nothing >"$WORK/chain.pem"
  refused 'there is no certificate'
  certificate email:x@y.example
  refused 'no host'
  certificate DNS:gateway.example -1
  refused 'the certificate ended at 20'
  certificate DNS:gateway.example
  run accept_certificate
  [ "$status" = 0 ]
}

@test "preflight stops for them, and says where they are set" {
  collector_image
  certificate DNS:gateway.example -1
  tls_settings
  run check_certificate
  says 'error    TLS_CERT_FILE and TLS_KEY_FILE cannot be used: the certificate ended'
  settings ''
  run check_certificate
  [ -z "$output" ]
}

@test "one that ends soon is taken with a warning; one that was taken and ended is no reason not to start" {
  collector_image
  certificate DNS:gateway.example 20
  tls_settings
  make_secrets
  run accept_certificate
  [ "$status" = 0 ]
  says 'warning: the certificate ends in 19 days'
  run accept_certificate
  [ "$status" = 0 ] && [ -z "$output" ]
  [ "$(wc -l <"$WORK/calls")" = 1 ]
}

@test "half a pair is refused" {
  run settings TLS_CERT_FILE=/x.pem
  [ "$status" = 1 ]
  says 'TLS_CERT_FILE and TLS_KEY_FILE go together'
  run settings TLS_KEY_FILE=/x.pem
  [ "$status" = 1 ]
  run settings TLS_CERT_FILE=x.pem TLS_KEY_FILE=/x.pem
  says 'TLS_CERT_FILE must be an absolute path'
}

@test "Kong is told to take another certificate, unless it was made or started since" {
  collector_image
  echo 0123 >"$WORK/kong" && echo yesterday >"$WORK/started"
  certificate DNS:gateway.example
  tls_settings
  make_secrets
  told() { grep -c '^kill --signal HUP 0123' "$WORK/calls" || true; }
  take && give_kong_certificate && give_kong_certificate
  [ "$(told)" = 0 ]
  certificate DNS:gateway.example
  changed=0
  take && give_kong_certificate && give_kong_certificate
  [ "$(told)" = 1 ] && [ "$changed" -gt 0 ]
  certificate DNS:gateway.example
  echo today >"$WORK/started"
  take && give_kong_certificate
  [ "$(told)" = 1 ]
}

@test "the call that proves the path believes this certificate alone, under its name" {
  collector_image
  certificate DNS:gateway.example
  port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  tls_settings PROXY_PORT="$port"
  make_secrets
  take
  python3 - "$WORK" "$port" 3>&- <<'PY' &
import http.server, ssl, sys
folder, port = sys.argv[1], int(sys.argv[2])
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(folder + "/chain.pem", folder + "/key.pem")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(418)
        self.send_header("X-Kong-Request-Id", "abc1")
        self.end_headers()
server = http.server.HTTPServer(("127.0.0.1", port), Handler)
server.socket = context.wrap_socket(server.socket, server_side=True)
open(folder + "/listens", "w").close()
server.serve_forever()
PY
  server=$!
  for _ in $(seq 100); do [ ! -e "$WORK/listens" ] || break; sleep 0.1; done
  probe GET /v1/models
  [ "$probe_status $probe_id" = '418 abc1' ]
  # Another certificate of the same name, by another authority.
  rm "$WORK/ca.pem"
  certificate DNS:gateway.example
  take
  probe GET /v1/models
  kill $server
  [ "$probe_status" = 000 ] && [[ $probe_body == *certificate* ]]
}
