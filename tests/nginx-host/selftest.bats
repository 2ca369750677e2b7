#!/usr/bin/env bats
#
# Proves the test host itself: that it does what Kong is known to do, so that a
# plugin which passes on it has been through the real thing's traps. Needs nothing
# but what the host needs, curl, and Python's standard library. The plugin under
# test is selftest-plugins/kong/plugins/probe, which reports what it saw.

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

@test "says that it is test equipment" {
  run grep -c 'not Kong' "$WORK/host/logs/error.log"
  [ "$output" -gt 0 ]
  curl -sS "$ADMIN_URL/" | grep -q 'test host'
}

@test "proxies with Kong's headers both ways" {
  [ "$(call /v1/echo -H 'X-API-Key: sk-alice' -d hello)" = 200 ]
  [ -n "$(header x-kong-upstream-latency)" ]
  [ -n "$(header x-kong-proxy-latency)" ]
  [ "$(header via)" = '1.1 kong/3.9.5' ]
  [[ $(header x-kong-request-id) =~ ^[0-9a-f]{32}$ ]]
  python3 - "$WORK/body" "$UP" <<'PY'
import json, sys
seen = json.load(open(sys.argv[1])); headers = seen["headers"]
assert seen["body"] == "hello" and seen["path"] == "/v1/echo"
assert headers["host"] == ["127.0.0.1:" + sys.argv[2]]
assert headers["x-consumer-username"] == ["alice"]
assert "x-consumer-id" in headers and "x-credential-identifier" in headers
assert "x-api-key" not in headers, "hide_credentials"
assert headers["x-forwarded-path"] == ["/v1/echo"]
PY
}

@test "no route: 404, and only global plugins see the call, not in access" {
  [ "$(call '/nowhere?x=1')" = 404 ]
  body | grep -q '"message":"no Route matched with those values"'
  [ "$(header content-length)" = 103 ]
  [ "$(header x-probe)" = 'access=nil route=nil source=exit' ]
  entry
  [ "$(field '"route" in e or "service" in e or "tries" in e')" = False ]
  [ "$(field 'e["source"], e["latencies"]["proxy"], e["upstream_status"]')" = "('kong', -1, '')" ]
}

@test "exact paths do not open anything beside them" {
  key='X-API-Key: sk-alice'
  [ "$(call /v1/echo -H "$key")" = 200 ]
  [ "$(call '/v1/echo?path=/../metrics' -H "$key")" = 200 ]
  [ "$(call //v1//echo -H "$key")" = 200 ]
  [ "$(call /v1/./x/../echo --path-as-is -H "$key")" = 200 ]
  for path in /v1/echoX /v1/echo/ /v1/echo/../../metrics /v1/echo%0A /v1/echo%2F..%2F..%2Fmetrics \
    /v1/%2e%2e/metrics /xv1/echo /V1/ECHO '/v1/echo;x'; do
    [ "$(call "$path" --path-as-is -H "$key")" = 404 ] || { echo "open: $path"; false; }
  done
  [ "$(call /v1/echo%00 -H "$key")" = 400 ]
}

@test "key-auth answers as recorded" {
  [ "$(call /v1/echo)" = 401 ]
  body | grep -q '"message":"No API key found in request"'
  [ "$(header www-authenticate)" = Key ]
  [ "$(header content-length)" = 96 ]
  [ -n "$(header x-kong-response-latency)" ]
  [ "$(call /v1/echo -H 'X-API-Key: wrong')" = 401 ]
  body | grep -q '"message":"Unauthorized"'
  [ "$(header content-length)" = 81 ]
  [ "$(call /v1/echo -H 'X-API-Key: sk-alice' -H 'X-API-Key: sk-bob')" = 401 ]
  body | grep -q 'Duplicate API key found'
  [ "$(call '/v1/echo?X-API-Key=sk-alice')" = 401 ]
}

@test "plugins after a refusal still see header_filter and log, not access" {
  [ "$(call /v1/echo)" = 401 ]
  [ "$(header x-probe)" = 'access=nil route=exact source=exit' ]
  entry
  [ "$(field 'e["probe"]["phases"]')" = 'header_filter,body_filter,log' ]
  [ "$(field '"consumer" in e or "authenticated_entity" in e')" = False ]
  [ "$(field 'e["tries"]')" = '[]' ]
}

@test "the error body follows the Accept header" {
  call /v1/echo -H 'Accept: text/plain' >/dev/null
  [ "$(header content-type)" = 'text/plain; charset=utf-8' ]
  [ "$(head -n 1 "$WORK/body")" = 'No API key found in request' ]
  call /v1/echo -H 'Accept: text/html, application/json;q=0.5' >/dev/null
  [ "$(header content-type)" = 'text/html; charset=utf-8' ]
}

@test "a new key works at once and a deleted one no longer" {
  admin POST consumers/alice/key-auth '{"key":"sk-second"}' >/dev/null
  [ "$(call /v1/echo -H 'X-API-Key: sk-second')" = 200 ]
  admin DELETE consumers/alice/key-auth/sk-second
  [ "$(call /v1/echo -H 'X-API-Key: sk-second')" = 401 ]
}

@test "rate limit: headers, 429, and one user's limit is not another's" {
  put plugins/00000000-0000-4000-8000-000000000012 \
    '{"name":"rate-limiting","consumer":{"username":"bob"},"route":{"name":"exact"},"config":{"hour":2}}'
  [ "$(call /v1/echo -H 'X-API-Key: sk-bob')" = 200 ]
  [ "$(header x-ratelimit-limit-hour)/$(header x-ratelimit-remaining-hour)" = 2/1 ]
  [ "$(header ratelimit-limit)/$(header ratelimit-remaining)" = 2/1 ]
  sleep 0.1
  [ "$(call /v1/echo -H 'X-API-Key: sk-bob')" = 200 ]
  sleep 0.1
  [ "$(call /v1/echo -H 'X-API-Key: sk-bob')" = 429 ]
  body | grep -q '"message":"API rate limit exceeded"'
  [ "$(header x-ratelimit-remaining-hour)" = 0 ]
  [ "$(header retry-after)" = "$(header ratelimit-reset)" ]
  [ "$(header retry-after)" -le 3600 ]
  [ "$(call /v1/echo -H 'X-API-Key: sk-alice')" = 200 ]
  admin DELETE plugins/00000000-0000-4000-8000-000000000012
}

@test "upstream refuses: 502 in Kong's words, source error" {
  [ "$(call /gone/x)" = 502 ]
  body | grep -q '"message":"An invalid response was received from the upstream server"'
  [ "$(header content-length)" = 126 ]
  [ "$(header x-probe)" = 'access=yes route=gone source=error' ]
  [ "$(header via)" = '1.1 kong/3.9.5' ]
  entry
  [ "$(field 'e["source"], e["upstream_status"], e["response"]["status"]')" = "('kong', '502', 502)" ]
  [ "$(field 'e["tries"][0]["state"], e["tries"][0]["code"], e["tries"][0]["port"]')" = "('failed', 502, 9)" ]
}

@test "upstream too slow: 504 in Kong's words, after the service's read time-out" {
  [ "$(call '/open/slow?ms=2000')" = 504 ]
  body | grep -q '"message":"The upstream server is timing out"'
  [ "$(header content-length)" = 102 ]
  entry
  [ "$(field 'e["source"], e["upstream_status"], e["tries"][0]["code"]')" = "('kong', '504', 504)" ]
  [ "$(field '400 <= e["latencies"]["proxy"] < 1500')" = True ]
}

@test "errors of the upstream pass as they are, source service" {
  [ "$(call '/open/status?code=503')" = 503 ]
  [ "$(body)" = '{"detail":"from upstream"}' ]
  [ "$(header x-probe)" = 'access=yes route=open source=service' ]
}

@test "a malformed request gets Kong's 400 and is logged" {
  exec 4<>"/dev/tcp/127.0.0.1/${PROXY_URL##*:}"
  printf 'GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n' >&4
  run timeout 3 cat <&4
  exec 4>&-
  [[ $output == *'400 Bad Request'*'"message":"Bad request"'* || $output == *$'Bad request\nrequest_id'* ]]
}

@test "streams: events come one by one, buffered or not" {
  for path in /open /raw; do
    python3 - "$PROXY_URL$path/sse?n=4&ms=120" <<'PY'
import sys, time, urllib.request
arrivals = []
with urllib.request.urlopen(sys.argv[1]) as answer:
    while line := answer.readline():
        if line.strip():
            arrivals.append(time.time())
gaps = [b - a for a, b in zip(arrivals, arrivals[1:])]
assert len(gaps) == 3 and all(gap > 0.06 for gap in gaps), gaps
PY
  done
}

@test "client gone in mid-stream: no eof, log still runs, status 200" {
  curl -sSN -m 0.3 -D "$WORK/headers" -o /dev/null "$PROXY_URL/open/sse?n=50&ms=50" || true
  entry
  [ "$(field 'e["response"]["status"], e["probe"]["eof"], e["latencies"]["receive"]')" = "(200, False, 0)" ]
}

@test "client gone before the answer: 499 and upstream_status -" {
  curl -sS -m 0.2 "$PROXY_URL/open/slow?ms=380&mark=gone" || true
  for _ in $(seq 40); do grep -q mark=gone "$WORK/up/batches" 2>/dev/null && break; sleep 0.05; done
  id=$(grep -o '"id":"[0-9a-f]\{32\}"' "$WORK/up/batches" | tail -n 1 | cut -d'"' -f4)
  entry "$id"
  [ "$(field 'e["response"]["status"], e["upstream_status"], e["source"]')" = "(499, '-', 'upstream')" ]
}

@test "upstream breaks off: status 200 and no eof" {
  call /open/cut || true
  entry
  [ "$(field 'e["response"]["status"], e["probe"]["eof"]')" = "(200, False)" ]
}

@test "bodies over 8 KB are in a file: nil without a maximum, whole with one" {
  head -c 300000 /dev/urandom | base64 -w 0 >"$WORK/large"
  [ "$(call /open/echo --data-binary "@$WORK/large")" = 200 ]
  body | grep -q '"bytes": 400000'
  entry
  [ "$(field 'e["probe"]["raw_body"]')" = 'request body did not fit into client body buffer, consider raising '"'client_body_buffer_size'" ]
  [ "$(field 'e["probe"]["raw_body_with_max"]')" = 400000 ]
  [ "$(field 'e["probe"]["raw_body_too_big"][:26]')" = 'request body file too big:' ]
}

@test "a replaced request body arrives with its own length, chunked or from a file" {
  [ "$(call /open/echo -H 'X-Replace: {"new":true}' --data-binary "@$WORK/large")" = 200 ]
  body | grep -q '"bytes": 12'
  [ "$(call /open/echo -H 'X-Replace: {"new":true}' -H 'Transfer-Encoding: chunked' -d old)" = 200 ]
  body | grep -q '"bytes": 12'
  body | grep -q '"content-length": \["12"\]'
}

@test "a replaced response body, also of an error Kong made" {
  [ "$(call /open/echo -H 'X-Replace-Response: yes')" = 200 ]
  [ "$(body)" = replaced ]
  [ "$(call /gone/x -H 'X-Replace-Response: yes')" = 502 ]
  [ "$(body)" = replaced ]
}

@test "PDK functions raise in phases where Kong forbids them" {
  [ "$(call /open/echo)" = 200 ]
  entry
  [ "$(field 'e["probe"]["forbidden"]')" = '{}' ] || { field 'e["probe"]["forbidden"]'; false; }
}

@test "kong.ctx.plugin is per plugin, kong.ctx.shared is for all" {
  [ "$(call /open/echo)" = 200 ]
  entry
  [ "$(field 'e["probe"]["ctx_plugin"], e["probe"]["ctx_shared"]')" = "('mine', 'ours')" ]
}

@test "an exit cannot be caught by a pcall around it" {
  [ "$(call /open/echo -H 'X-Exit: 418')" = 418 ]
  [ "$(body)" = '{"message":"exited"}' ]
  [ "$(header x-probe)" = 'access=yes route=open source=exit' ]
}

@test "a plugin that raises in access gives 500 and the others still log" {
  [ "$(call /open/echo -H 'X-Raise: access')" = 500 ]
  body | grep -q '"message":"An unexpected error occurred"'
  [ "$(header x-probe)" = 'access=yes route=open source=error' ]
  entry
  [ "$(field 'e["source"]')" = kong ]
}

@test "entries: authorization redacted, slashes plain, empty tables as objects" {
  [ "$(call '/open/echo?a=b%2Fc&d' -H 'Authorization: Basic c2VjcmV0' -H 'X-Back: a\/b')" = 200 ]
  entry
  [ "$(field 'e["request"]["headers"]["authorization"]')" = REDACTED ]
  [ "$(field 'e["request"]["headers"]["x-back"]')" = 'a\/b' ]
  [ "$(field 'e["request"]["querystring"]["a"], e["request"]["querystring"]["d"]')" = "('b/c', True)" ]
  [ "$(field 'e["upstream_uri"]')" = '/echo?a=b%2Fc&d' ]
  run grep -c 'c2VjcmV0\|http:\\/' "$WORK/up/batches"
  [ "$output" = 0 ]
}

# like NAME - the entry has exactly the fields of the recorded one of that name, and where
# Kong made the answer, exactly its response headers.
like() {
  python3 - "$WORK/entry" "$HERE/../fixtures/kong/entries/$1.json" <<'PY'
import json, sys
seen, recorded = (json.load(open(path)) for path in sys.argv[1:])
ignored = {("llm",), ("probe",), ("request", "body"), ("response", "body")}
def paths(value, path=()):
    if isinstance(value, dict) and path[-1:] != ("headers",) and path[-1:] != ("querystring",):
        for key, item in value.items():
            if path + (key,) not in ignored:
                yield from paths(item, path + (key,))
    else:
        yield path, type(value).__name__
def differ(what, a, b):
    a, b = set(a), set(b)
    assert a == b, (what, a ^ b)
recorded.pop("llm", None), seen.pop("probe", None)
differ("fields", paths(seen), paths(recorded))
for a, b in zip(seen["tries"], recorded["tries"]):
    differ("tries", a, b)
for name in ("source", "upstream_status"):
    assert seen[name] == recorded[name], name
assert seen["response"]["status"] == recorded["response"]["status"]
if recorded["source"] == "kong":
    mine = {"x-probe"}
    differ("headers", set(seen["response"]["headers"]) - mine, recorded["response"]["headers"])
    length = "content-length"
    assert seen["response"]["headers"][length] == recorded["response"]["headers"][length]
PY
}

@test "entries have the fields of recorded ones" {
  key='X-API-Key: sk-alice'
  call /v1/echo -H "$key" -d '{}' >/dev/null && entry && like chat-en
  call /v1/echo -d '{}' >/dev/null && entry && like kong-no-key-401
  call /v1/echo -H 'X-API-Key: wrong' -H 'Authorization: x' -d '{}' >/dev/null && entry && like kong-wrong-key-401
  put plugins/00000000-0000-4000-8000-000000000012 \
    '{"name":"rate-limiting","consumer":{"username":"bob"},"route":{"name":"exact"},"config":{"hour":1}}'
  for _ in 1 2 3; do call /v1/echo -H 'X-API-Key: sk-bob' -d '{}' >/dev/null; sleep 0.1; done
  entry && like kong-rate-limited-429
  admin DELETE plugins/00000000-0000-4000-8000-000000000012
  # These two were recorded on services with key-auth and nothing else.
  put plugins/00000000-0000-4000-8000-000000000013 '{"name":"key-auth","service":{"name":"gone"},"config":{"key_names":["X-API-Key"]}}'
  call /gone/x -H "$key" -d '{}' >/dev/null && entry && like kong-upstream-refused-502
  put plugins/00000000-0000-4000-8000-000000000014 '{"name":"key-auth","route":{"name":"open"},"config":{"key_names":["X-API-Key"]}}'
  call '/open/slow?ms=1000' -H "$key" -d '{}' >/dev/null && entry && like kong-upstream-timeout-504
  admin DELETE plugins/00000000-0000-4000-8000-000000000013
  admin DELETE plugins/00000000-0000-4000-8000-000000000014
}

@test "batches: an array with the custom header; one object when the size is 1" {
  for _ in 1 2 3 4 5; do call /open/echo >/dev/null; done
  entry
  head -c 1 "$WORK/up/batches" | grep -q '\['
  grep -q '"X-Collector-Token": "t0k"' "$WORK/up/batch-headers"
  python3 - "$WORK/up/batches" <<'PY'
import json, sys
assert all(1 <= len(json.loads(line)) <= 4 for line in open(sys.argv[1]))
PY
  admin PATCH plugins/00000000-0000-4000-8000-000000000003 \
    '{"config":{"timeout":9999,"queue":{"max_batch_size":1}}}' >/dev/null
  rm -f "$WORK/up/batches"
  call /open/echo >/dev/null
  entry
  head -c 1 "$WORK/up/batches" | grep -q '{'
  admin PATCH plugins/00000000-0000-4000-8000-000000000003 \
    '{"config":{"timeout":10000,"queue":{"max_batch_size":4}}}' >/dev/null
}

@test "the same batch is sent again until the collector takes it" {
  echo 503 >"$WORK/up/log-status"
  call /open/echo >/dev/null
  id=$(header x-kong-request-id)
  for _ in $(seq 60); do
    [ "$(grep -c "$id" "$WORK/up/batches" 2>/dev/null)" -ge 3 ] && break; sleep 0.05
  done
  rm "$WORK/up/log-status"
  sleep 1
  seen=$(grep -c "$id" "$WORK/up/batches")
  [ "$seen" -ge 3 ]
  [ "$(grep "$id" "$WORK/up/batches" | sort -u | wc -l)" = 1 ]
  sleep 0.5
  [ "$(grep -c "$id" "$WORK/up/batches")" = "$seen" ]
}

# Kong's own fault, see kong/tools/queue.lua. A host of one worker, so that every call meets the same queue.
@test "an overflow breaks a worker's queue for good, as in Kong" {
  NGINX_HOST_WATCH_PID=$$ KONG_PLUGINS=bundled KONG_NGINX_WORKER_PROCESSES=1 "$HERE/run.sh" start --prefix "$WORK/one" \
    --plugins-dir "$HERE/selftest-plugins" --proxy 127.0.0.1:0 --admin 127.0.0.1:0 --status 127.0.0.1:0 3>&-
  # shellcheck disable=SC1091
  . "$WORK/one/host.env"
  put services/up "{\"host\":\"127.0.0.1\",\"port\":$UP}"
  put services/up/routes/open '{"paths":["/open"]}'
  put plugins/00000000-0000-4000-8000-000000000003 \
    "{\"name\":\"http-log\",\"config\":{\"http_endpoint\":\"http://127.0.0.1:$UP/log\",\"queue\":{\"max_batch_size\":4,\"max_coalescing_delay\":0.1,\"max_bytes\":40000}}}"
  echo 503 >"$WORK/up/log-status"
  head -c 5000 /dev/zero | tr '\0' q >"$WORK/fill"
  for number in $(seq 20); do
    call "/open/echo?number=$number" -H "X-Fill: $(cat "$WORK/fill")" >/dev/null
  done
  grep -q 'byte capacity exceeded, 1 queue entries were dropped' "$WORK/one/logs/error.log"
  rm "$WORK/up/log-status"
  for _ in $(seq 200); do grep -q "attempt to get length of" "$WORK/one/logs/error.log" && break; sleep 0.1; done
  grep -q "attempt to get length of" "$WORK/one/logs/error.log"
  for _ in 1 2 3 4 5 6; do call /open/echo?never=sent >/dev/null; done
  # Another time-out makes a queue of its own, and shows that entries arrive again by then.
  admin PATCH plugins/00000000-0000-4000-8000-000000000003 '{"config":{"timeout":9000}}' >/dev/null
  for _ in 1 2 3; do call /open/echo >/dev/null; entry; done
  run grep -c 'never=sent' "$WORK/up/batches"
  [ "$output" = 0 ]
  "$HERE/run.sh" stop --prefix "$WORK/one"
}

@test "a client that goes away while it uploads: log runs only for plugins that access has reached" {
  mark=$RANDOM$RANDOM
  python3 - "$PROXY_URL" "$mark" <<'PY'
import socket, sys, urllib.parse
at = urllib.parse.urlparse(sys.argv[1])
with socket.create_connection((at.hostname, at.port)) as s:
    s.sendall(f"POST /open/echo?mark={sys.argv[2]} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{{".encode())
PY
  for _ in $(seq 100); do grep -q "probe logged the call with mark=$mark" "$WORK/host/logs/error.log" && break; sleep 0.05; done
  grep -q "probe logged the call with mark=$mark" "$WORK/host/logs/error.log"
  call /open/echo >/dev/null
  entry
  run grep -c "$mark" "$WORK/up/batches"
  [ "$output" = 0 ]
}

@test "metrics: Kong's names and labels" {
  call /v1/echo -H 'X-API-Key: sk-alice' >/dev/null
  sleep 0.2
  curl -sS "$STATUS_URL/metrics" >"$WORK/metrics"
  grep -q '^kong_http_requests_total{service="up",route="exact",code="200",source="service",workspace="default",consumer="alice"} [0-9]' "$WORK/metrics"
  grep -q '^kong_request_latency_ms_bucket{service="up",route="exact",workspace="default",le="+Inf"}' "$WORK/metrics"
  grep -q '^kong_bandwidth_bytes{service="up",route="exact",direction="egress"' "$WORK/metrics"
  if command -v promtool >/dev/null; then promtool check metrics <"$WORK/metrics" 2>&1 | grep -v 'non-histogram\|no help' | (! grep -i error); fi
}

@test "pre-function code runs in a sandbox without require" {
  put plugins/00000000-0000-4000-8000-000000000006 \
    '{"name":"pre-function","route":{"name":"open"},"config":{"access":["return function() local ok, err = pcall(require, \"cjson\") kong.service.request.set_header(\"X-Sandbox\", tostring(ok) .. \" \" .. tostring(io) .. \" \" .. tostring(debug)) end"]}}'
  call /open/echo >/dev/null
  body | grep -q '"x-sandbox": \["false nil nil"\]'
  admin DELETE plugins/00000000-0000-4000-8000-000000000006
}

@test "pre-function also runs in rewrite when it is global, and may answer there" {
  put plugins/00000000-0000-4000-8000-000000000008 \
    '{"name":"pre-function","config":{"rewrite":["if kong.request.get_header(\"X-Early\") then kong.response.exit(403, { message = \"early\" }) end"]}}'
  [ "$(call /open/echo -H 'X-Early: 1')" = 403 ]
  [ "$(header x-probe)" = 'access=nil route=nil source=exit' ]
  [ "$(call /open/echo)" = 200 ]
  admin DELETE plugins/00000000-0000-4000-8000-000000000008
}

@test "request-transformer: remove and add set a header whatever was sent" {
  put plugins/00000000-0000-4000-8000-000000000007 \
    '{"name":"request-transformer","route":{"name":"open"},"config":{"remove":{"headers":["Authorization"]},"add":{"headers":["Authorization:Bearer upstream"]}}}'
  call /open/echo -H 'Authorization: Basic abc' >/dev/null
  body | grep -q '"authorization": \["Bearer upstream"\]'
  call /open/echo >/dev/null
  body | grep -q '"authorization": \["Bearer upstream"\]'
  admin DELETE plugins/00000000-0000-4000-8000-000000000007
}

@test "Admin API: errors in Kong's shapes" {
  admin PUT plugins/00000000-0000-4000-8000-000000000099 '{"name":"http-log","config":{"http_endpoint":"http://x","nonsense":1}}' >"$WORK/last"
  grep -q '"name":"schema violation"' "$WORK/last"
  grep -q '"fields":{"config":{"nonsense":"unknown field"}}' "$WORK/last"
  grep -q 'schema violation (config.nonsense: unknown field)' "$WORK/last"
  admin POST plugins '{"name":"nonsense"}' | grep -q "plugin 'nonsense' not enabled"
  admin POST plugins '{"name":"prometheus"}' >"$WORK/last"
  grep -q '"code":5' "$WORK/last"
  grep -q "UNIQUE violation detected on '{consumer=null,name=\\\\\"prometheus\\\\\",route=null,service=null}'" "$WORK/last"
  [ "$(curl -sS -o /dev/null -w '%{http_code}' "$ADMIN_URL/consumers" -d username=alice)" = 409 ]
  [ "$(curl -sS -o /dev/null -w '%{http_code}' "$ADMIN_URL/consumers/nobody")" = 404 ]
  [ "$(curl -sS -o /dev/null -w '%{http_code}' -X DELETE "$ADMIN_URL/services/up")" = 400 ]
  [ "$(curl -sS -o /dev/null -w '%{http_code}' "$ADMIN_URL/routes" -d 'paths[]=nonsense')" = 400 ]
}

@test "Admin API: forms, PUT twice, PATCH, pages, names with escapes" {
  curl -sS "$ADMIN_URL/consumers" --data-urlencode 'username=张 wei/2+' | grep -q '"username":"张 wei/2+"'
  [ "$(curl -sS -o /dev/null -w '%{http_code}' "$ADMIN_URL/consumers/%E5%BC%A0%20wei%2F2%2B")" = 200 ]
  curl -sS -X PUT "$ADMIN_URL/plugins/00000000-0000-4000-8000-000000000098" -d name=rate-limiting -d consumer.username=alice -d config.minute=7 \
    -d config.fault_tolerant=false >"$WORK/last"
  grep -q '"minute":7' "$WORK/last"
  grep -q '"fault_tolerant":false' "$WORK/last"
  created=$(grep -o '"created_at":[0-9]*' "$WORK/last")
  admin PUT plugins/00000000-0000-4000-8000-000000000098 '{"name":"rate-limiting","consumer":{"username":"alice"},"config":{"hour":9}}' >"$WORK/last"
  grep -q '"minute":null' "$WORK/last"
  grep -q "$created" "$WORK/last"
  admin PATCH plugins/00000000-0000-4000-8000-000000000098 '{"config":{"day":99}}' >"$WORK/last"
  grep -q '"hour":9' "$WORK/last"
  grep -q '"day":99' "$WORK/last"
  admin PATCH plugins/00000000-0000-4000-8000-000000000003 '{"config":{"headers":{"X-Collector-Token":"t1"},"queue":{"max_entries":99}}}' >"$WORK/last"
  grep -q '"headers":{"X-Collector-Token":"t1"}' "$WORK/last"
  grep -q '"max_batch_size":4,"max_bytes":40000,"max_coalescing_delay":0.1,"max_entries":99' "$WORK/last"
  admin PATCH plugins/00000000-0000-4000-8000-000000000003 '{"config":{"headers":{"X-Other":"1"}}}' | grep -q '"headers":{"X-Other":"1"}'
  admin PATCH plugins/00000000-0000-4000-8000-000000000003 '{"config":{"headers":{"X-Collector-Token":"t0k"}}}' >/dev/null
  curl -sS "$ADMIN_URL/consumers?size=2" >"$WORK/last"
  grep -q '"next":"/consumers?offset=[^"]*&size=2"' "$WORK/last"
  next=$(grep -o '"next":"[^"]*"' "$WORK/last" | cut -d'"' -f4)
  curl -sS "$ADMIN_URL$next" | grep -q '"next":null'
  admin DELETE "consumers/%E5%BC%A0%20wei%2F2%2B"
  admin DELETE plugins/00000000-0000-4000-8000-000000000098
}

@test "all workers see a change, and counters and queues work in each" {
  admin PUT services/up/routes/late '{"paths":["/late"]}' >/dev/null
  for _ in $(seq 20); do [ "$(call /late/echo -H 'Connection: close')" = 200 ]; done
  admin DELETE routes/late
  for _ in $(seq 20); do [ "$(call /late/echo -H 'Connection: close')" = 404 ]; done
}

@test "no error in nginx's log that a test did not ask for" {
  run grep -E '\[(error|crit|alert|emerg)\]' "$WORK/host/logs/error.log"
  echo "$output" | grep -vE 'upstream timed out|Connection refused|prematurely closed|raised as asked|client sent' >"$WORK/unexpected" || true
  cat "$WORK/unexpected"
  [ ! -s "$WORK/unexpected" ]
}

@test "keeps its state over a restart when asked, and stops when its watcher goes" {
  sleep 300 &
  watched=$!
  NGINX_HOST_WATCH_PID=$watched KONG_PLUGINS=bundled "$HERE/run.sh" start --prefix "$WORK/second" --state "$WORK/state.json" \
    --proxy 127.0.0.1:0 --admin 127.0.0.1:0 --status 127.0.0.1:0 --workers 1 3>&- >"$WORK/second.env"
  admin_url=$(grep ADMIN_URL "$WORK/second.env" | cut -d= -f2)
  curl -sS -X PUT "$admin_url/consumers/kept" | grep -q kept
  "$HERE/run.sh" stop --prefix "$WORK/second"
  NGINX_HOST_WATCH_PID=$watched KONG_PLUGINS=bundled "$HERE/run.sh" start --prefix "$WORK/second" --state "$WORK/state.json" \
    --proxy 127.0.0.1:0 --admin 127.0.0.1:0 --status 127.0.0.1:0 --workers 1 3>&- >"$WORK/second.env"
  admin_url=$(grep ADMIN_URL "$WORK/second.env" | cut -d= -f2)
  curl -sS "$admin_url/consumers/kept" | grep -q kept
  pid=$(grep ^PID "$WORK/second.env" | cut -d= -f2)
  kill $watched
  for _ in $(seq 60); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
  run kill -0 "$pid"
  [ "$status" -ne 0 ]
}

@test "workers do not outlive a master that was killed" {
  KONG_PLUGINS=bundled "$HERE/run.sh" start --prefix "$WORK/third" \
    --proxy 127.0.0.1:0 --admin 127.0.0.1:0 --status 127.0.0.1:0 3>&- >"$WORK/third.env"
  url=$(grep PROXY_URL "$WORK/third.env" | cut -d= -f2)
  kill -KILL "$(grep ^PID "$WORK/third.env" | cut -d= -f2)"
  for _ in $(seq 60); do curl -sS -o /dev/null "$url" 2>/dev/null || break; sleep 0.1; done
  run curl -sS -o /dev/null "$url"
  [ "$status" -ne 0 ]
}

@test "says why it cannot start" {
  run "$HERE/run.sh" start --prefix "$WORK/fourth" --proxy "${PROXY_URL#http://}" --admin 127.0.0.1:0 --status 127.0.0.1:0
  [ "$status" -eq 1 ]
  [[ $output == *'something listens on'*'already'* ]]
  KONG_PLUGINS=bundled,missing run "$HERE/run.sh" start --prefix "$WORK/fifth" --proxy 127.0.0.1:0 --admin 127.0.0.1:0 --status 127.0.0.1:0
  [ "$status" -eq 1 ]
  [[ $output == *"kong.plugins.missing.handler"* ]]
}
