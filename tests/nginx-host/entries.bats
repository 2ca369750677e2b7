#!/usr/bin/env bats
#
# Proves that the test host's log entries, and the queue they go through, are as Kong's. See selftest.bats for the rest.

load selftest

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

@test "no error in nginx's log that a test did not ask for" {
  no_unexpected_errors
}
