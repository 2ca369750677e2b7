#!/usr/bin/env bats
#
# Proves the test host itself: that it does what Kong is known to do, so that a
# plugin which passes on it has been through the real thing's traps. Needs nothing
# but what the host needs, curl, and Python's standard library. The plugin under
# test is selftest-plugins/kong/plugins/probe, which reports what it saw.
# shellcheck disable=SC2153  # set by the file that is loaded

load selftest

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
  [ "$(call '/open/slow?ms=30000')" = 504 ]
  body | grep -q '"message":"The upstream server is timing out"'
  [ "$(header content-length)" = 102 ]
  entry
  [ "$(field 'e["source"], e["upstream_status"], e["tries"][0]["code"]')" = "('kong', '504', 504)" ]
  [ "$(field 'e["latencies"]["proxy"] > 0')" = True ]
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
  no_unexpected_errors
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
