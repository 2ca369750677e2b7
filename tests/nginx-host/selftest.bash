# What the files of tests of the host share: a host with the plugin `probe`, a server behind it that is its collector, too, and
# functions that call it and look at entries. `load` it.
# shellcheck shell=bash disable=SC2154  # output is set by bats

setup_file() {
  export HERE=$BATS_TEST_DIRNAME
  export WORK=$BATS_FILE_TMPDIR
  mkdir -p "$WORK/up"
  python3 "$HERE/selftest_server.py" "$WORK/up" >"$WORK/up/port" 3>&- &
  echo $! >"$WORK/up/pid"
  for _ in $(seq 100); do [ -s "$WORK/up/port" ] && break; sleep 0.05; done
  UP=$(cat "$WORK/up/port")
  export UP
  KONG_PLUGINS=bundled,probe NGINX_HOST_WATCH_PID=$$ "$HERE/run.sh" start \
    --prefix "$WORK/host" --plugins-dir "$HERE/selftest-plugins" \
    --proxy 127.0.0.1:0 --admin 127.0.0.1:0 --status 127.0.0.1:0 3>&-
  # shellcheck disable=SC1091
  . "$WORK/host/host.env"
  export PROXY_URL ADMIN_URL STATUS_URL

  put services/up "{\"host\":\"127.0.0.1\",\"port\":$UP,\"retries\":0,\"read_timeout\":400}"
  put services/gone '{"host":"127.0.0.1","port":9,"retries":0}'
  put services/up/routes/open '{"paths":["/open"]}'
  put services/up/routes/unbuffered '{"paths":["/raw"],"response_buffering":false}'
  put services/gone/routes/gone '{"paths":["/gone"]}'
  put services/up/routes/exact '{"paths":["~/v1/(echo|sse|size|slow|cut|status)$"],"strip_path":false}'
  put consumers/alice '{}'
  post consumers/alice/key-auth '{"key":"sk-alice"}'
  put consumers/bob '{"username":"bob"}'
  post consumers/bob/key-auth '{"key":"sk-bob"}'
  put plugins/00000000-0000-4000-8000-000000000001 \
    '{"name":"key-auth","route":{"name":"exact"},"config":{"key_names":["X-API-Key"],"key_in_query":false,"hide_credentials":true}}'
  put plugins/00000000-0000-4000-8000-000000000002 \
    '{"name":"rate-limiting","route":{"name":"exact"},"config":{"hour":1000}}'
  put plugins/00000000-0000-4000-8000-000000000003 \
    "{\"name\":\"http-log\",\"config\":{\"http_endpoint\":\"http://127.0.0.1:$UP/log\",\"headers\":{\"X-Collector-Token\":\"t0k\"},\"queue\":{\"max_batch_size\":4,\"max_coalescing_delay\":0.1,\"max_bytes\":40000,\"max_entries\":100}}}"
  put plugins/00000000-0000-4000-8000-000000000004 '{"name":"probe","config":{}}'
  put plugins/00000000-0000-4000-8000-000000000005 \
    '{"name":"prometheus","config":{"per_consumer":true,"status_code_metrics":true,"latency_metrics":true,"bandwidth_metrics":true}}'
}

teardown_file() {
  "$HERE/run.sh" stop --prefix "$WORK/host"
  kill "$(cat "$WORK/up/pid")"
}

setup() {
  rm -f "$WORK/up/batches" "$WORK/up/batch-headers" "$WORK/up/log-status"
}

admin() {
  curl -sS -X "$1" "$ADMIN_URL/$2" -H 'Content-Type: application/json' ${3+--data "$3"}
}
put() { admin PUT "$@" >"$WORK/last"; grep -q '"id"' "$WORK/last" || { cat "$WORK/last"; return 1; }; }
post() { admin POST "$@" >"$WORK/last"; grep -q '"id"' "$WORK/last" || { cat "$WORK/last"; return 1; }; }

# Calls the proxy; body in $WORK/body, headers in $WORK/headers, prints the status.
call() {
  curl -sS -o "$WORK/body" -D "$WORK/headers" -w '%{http_code}' "$PROXY_URL$1" "${@:2}"
}

# Waits for the log entry of the call with this request id, or else of the last one.
entry() {
  local id=${1:-$(header x-kong-request-id)}
  for _ in $(seq 60); do
    if python3 - "$WORK/up/batches" "$id" <<'PY' >"$WORK/entry" 2>/dev/null
import json, sys
for line in open(sys.argv[1]):
    batch = json.loads(line)
    for entry in batch if isinstance(batch, list) else [batch]:
        if entry["request"]["id"] == sys.argv[2]:
            print(json.dumps(entry)); sys.exit(0)
sys.exit(1)
PY
    then return 0; fi
    sleep 0.05
  done
  echo "no entry for $id" >&2
  return 1
}

# A Python expression over the entry `e`.
field() { python3 -c 'import json,sys; e=json.load(open(sys.argv[1])); print(eval(sys.argv[2]))' "$WORK/entry" "$1"; }
header() { tr -d '\r' <"$WORK/headers" | awk -F': ' -v n="$1" 'tolower($1)==n {print $2}'; }
body() { cat "$WORK/body"; }

# Fails when nginx's log has an error that no test asked for. Last in each file.
no_unexpected_errors() {
  run grep -E '\[(error|crit|alert|emerg)\]' "$WORK/host/logs/error.log"
  echo "$output" | grep -vE 'upstream timed out|Connection refused|prematurely closed|raised as asked|client sent' >"$WORK/unexpected" || true
  cat "$WORK/unexpected"
  [ ! -s "$WORK/unexpected" ]
}
