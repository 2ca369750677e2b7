#!/usr/bin/env bats
# shellcheck disable=SC2154  # the numbers come from --print-batch
# llm-collector kong apply against the nginx test host, which answers as Kong 3.9 does.

load host

setup_file() {
  start_upstream
  start_host kong
  unset VLLM_API_KEY COLLECTOR_TOKEN
  # Some hundred calls without a key come from here.
  export ANONYMOUS_PER_MINUTE=0
  configure --wait >"$BATS_FILE_TMPDIR/first-run"
  users add alice >"$BATS_FILE_TMPDIR/key" 2>/dev/null
}

teardown_file() {
  stop_host kong
  stop_upstream
}

setup() {
  KEY=$(cat "$WORK/key")
}

@test "the first run creates everything and waits until it is in effect" {
  grep -q '^created    service vllm$' "$WORK/first-run"
  grep -q '^created    plugin llm-audit$' "$WORK/first-run"
  grep -q '^created    route vllm-chat-completions$' "$WORK/first-run"
  grep -q '^live ' "$WORK/first-run"
}

@test "a second run changes nothing, not even a time stamp" {
  whole_state >"$WORK/before"
  run configure
  [ "$status" -eq 0 ]
  [[ $output == *'nothing to change' ]]
  [[ $output != *created* && $output != *updated* && $output != *removed* ]]
  whole_state | cmp - "$WORK/before"
}

@test "vLLM's model APIs are open with a key, closed without" {
  for path in /v1/chat/completions /v1/completions /v1/responses \
    /v1/messages /v1/messages/count_tokens /v1/models /v1/embeddings /v2/embed /rerank /v1/rerank /v2/rerank \
    /score /v1/score /classify /pooling /tokenize /detokenize /v1/audio/transcriptions /v1/audio/translations; do
    [ "$(call "$path" -d '{}')" = 401 ] || { echo "no key needed: $path"; false; }
    [ "$(call "$path?a=b" -d '{}' -H "Authorization: Bearer $KEY")" = 200 ] || { echo "closed: $path"; false; }
    json 'j["path"]' <"$WORK/body" | grep -qxF "$path?a=b"
  done
  # Open too, but only for who made the response, which nobody can tell here: there is no collector to ask.
  for path in /v1/responses/resp_1-a /v1/responses/resp_1/cancel; do
    [ "$(call "$path")" = 401 ] || { echo "no key needed: $path"; false; }
    [ "$(call "$path" -H "Authorization: Bearer $KEY")" = 503 ]
    json 'j["error"]["message"]' <"$WORK/body" | grep -q 'whose response' || { echo "closed: $path"; false; }
  done
}

@test "what operates vLLM is closed, also with a key and by way of an open path" {
  for path in / /metrics /health /load /ping /version /docs /openapi.json /invocations /pause /resume /is_paused \
    /sleep /wake_up /reset_prefix_cache /collective_rpc /abort_requests /server_info /tokenizer_info \
    /v1/load_lora_adapter /v1/unload_lora_adapter /v1/realtime /v1/chat/completions/batch /v1 /v1/ /inference/v1/generate \
    /v1/chat/completionsX /v1/chat/completions/ /v1/chat/completions/x /v1/models/../metrics /v1/models/../../metrics \
    /v1/chat/completions/../../../metrics /v1/chat/completions/..%2f..%2fmetrics /v1/models/%2e%2e/%2e%2e/metrics \
    '/v1/models/..;/metrics' /v1/models%2f..%2f..%2fmetrics /v1/models%0a /v1/models%20 /x/v1/models /V1/models \
    /v1/responses/a/b /v1/responses/a%2Fb /v1/responses/../metrics '/v1/models;x' '/v1/models%3f' /tokenize/../pause; do
    [ "$(call "$path" -H "Authorization: Bearer $KEY")" = 404 ] || { echo "open: $path"; false; }
  done
}

@test "a key goes in as Bearer or X-API-Key, and never on to vLLM" {
  for header in "Authorization: Bearer $KEY" "authorization: bEARER   $KEY" "X-API-Key: $KEY"; do
    [ "$(call /v1/models -H "$header")" = 200 ]
    no grep -qF "$KEY" "$WORK/body"
    json '"authorization" in j["headers"] or "x-api-key" in j["headers"]' <"$WORK/body" | grep -qx False
    json 'j["headers"]["x-consumer-username"]' <"$WORK/body" | grep -qF alice
  done
  [ "$(call "/v1/models?X-API-Key=$KEY&apikey=$KEY")" = 401 ]
  [ "$(call /v1/models -H 'Authorization: Bearer wrong')" = 401 ]
}

@test "VLLM_API_KEY reaches vLLM whatever the client sends, and is gone when unset" {
  VLLM_API_KEY=vllm-secret says '^created    plugin request-transformer$' configure
  for header in "Authorization: Bearer $KEY" 'Accept: */*' 'Authorization: Basic abc'; do
    [ "$(call /v1/models -H "$header" -H "X-API-Key: $KEY")" = 200 ]
    json 'j["headers"]["authorization"]' <"$WORK/body" | grep -qxF "['Bearer vllm-secret']"
  done
  printf 'from-a-file\nsecond line\n' >"$WORK/vllm-key"
  VLLM_API_KEY_FILE=$WORK/vllm-key says '^updated    plugin request-transformer$' configure
  call /v1/models -H "X-API-Key: $KEY" >/dev/null
  json 'j["headers"]["authorization"]' <"$WORK/body" | grep -qxF "['Bearer from-a-file']"
  says '^removed    plugin request-transformer$' configure
  call /v1/models -H "X-API-Key: $KEY" >/dev/null
  json '"authorization" in j["headers"]' <"$WORK/body" | grep -qx False
}

@test "entries arrive at the collector with its token, a 404 among them" {
  COLLECTOR_TOKEN=collector-secret says '^updated    plugin http-log$' configure
  rm -f "$WORK/up/batches" "$WORK/up/batch-headers"
  call /v1/models -H "X-API-Key: $KEY" >/dev/null
  call '/no/such/path?mark=nowhere' >/dev/null
  for _ in $(seq 60); do grep -q nowhere "$WORK/up/batches" 2>/dev/null && break; sleep 0.1; done
  grep -q '"uri":"/no/such/path?mark=nowhere"' "$WORK/up/batches"
  grep -q '"X-Collector-Token": "collector-secret"' "$WORK/up/batch-headers"
  grep -q '"llm":{' "$WORK/up/batches"
  no grep -qF "$KEY" "$WORK/up/batches"
  says '^updated    plugin http-log$' configure
  admin GET plugins/7c1ea1d0-6b1f-4000-8000-000000000206 | json 'j["config"]["headers"]' | grep -qx None
}

@test "what somebody changed by hand is brought back" {
  id=7c1ea1d0-6b1f-4000-8000-000000000202
  for change in '{"config":{"anonymous":"alice"}}' '{"config":{"key_in_query":true}}' '{"enabled":false}' \
    '{"config":{"key_names":["X-API-Key","apikey"]}}' '{"config":{"hide_credentials":false}}'; do
    admin PATCH plugins/$id "$change" >/dev/null
    says '^updated    plugin key-auth$' configure
    [ "$(call /v1/models)" = 401 ]
  done
  admin PATCH routes/7c1ea1d0-6b1f-4000-8000-000000000105 '{"paths":["/"]}' >/dev/null
  [ "$(call /metrics -H "X-API-Key: $KEY")" = 200 ]
  says '^updated    route vllm-models$' configure
  [ "$(call /metrics -H "X-API-Key: $KEY")" = 404 ]
  admin PATCH plugins/7c1ea1d0-6b1f-4000-8000-000000000206 '{"config":{"headers":{"X-Spy":"1"}}}' >/dev/null
  says '^updated    plugin http-log$' configure
  says '^nothing to change$' configure
}

@test "the limit an hour: set, changed, lifted" {
  RATE_LIMIT_PER_HOUR=100000 says '^updated    plugin rate-limiting$' configure
  curl -sS -o /dev/null -D "$WORK/headers" "$KONG_PROXY_URL/v1/models" -H "X-API-Key: $KEY"
  grep -qi '^x-ratelimit-limit-hour: 100000' "$WORK/headers"
  RATE_LIMIT_PER_HOUR=0 says '^removed    plugin rate-limiting$' configure
  curl -sS -o /dev/null -D "$WORK/headers" "$KONG_PROXY_URL/v1/models" -H "X-API-Key: $KEY"
  no grep -qi ratelimit "$WORK/headers"
  RATE_LIMIT_PER_HOUR=1 configure >/dev/null
  users add limited >"$WORK/limited-key" 2>/dev/null
  call /v1/models -H "X-API-Key: $(cat "$WORK/limited-key")" >/dev/null
  sleep 0.2
  [ "$(call /v1/models -H "X-API-Key: $(cat "$WORK/limited-key")")" = 429 ]
  configure >/dev/null
}

@test "service: time-outs, no retries, no path in front" {
  admin GET services/vllm | json '(j["connect_timeout"], j["write_timeout"], j["read_timeout"], j["retries"])' |
    grep -qxF '(5000, 60000, 300000, 0)'
  for path in /v1 /v1/ /base /a/b; do
    VLLM_URL=$VLLM_URL$path run configure
    [ "$status" -eq 1 ]
    [[ $output == *'without a path'*'Leave /'*' out'* ]]
  done
  VLLM_URL=$VLLM_URL/ says '^nothing to change$' configure
  VLLM_READ_TIMEOUT_MS=1234 says '^updated    service vllm$' configure
  admin GET services/vllm | json 'j["read_timeout"]' | grep -qx 1234
  says '^updated    service vllm$' configure
}

@test "more paths can be opened, and close again" {
  VLLM_EXTRA_PATHS='/tokenizer_info /v1/x.y' says '^created    route vllm-extra$' configure
  [ "$(call /tokenizer_info -H "X-API-Key: $KEY")" = 200 ]
  [ "$(call /v1/x.y -H "X-API-Key: $KEY")" = 200 ]
  [ "$(call /v1/xzy -H "X-API-Key: $KEY")" = 404 ]
  says '^removed    route' configure
  [ "$(call /tokenizer_info -H "X-API-Key: $KEY")" = 404 ]
  for path in metrics '/a/../b' '/a?b' '/a//b' '/(x)' '/.well'; do
    VLLM_EXTRA_PATHS=$path run configure
    [ "$status" -eq 1 ]
  done
}

# The test's own arithmetic, from what Kong was told.
largest_batch() {
  admin GET plugins/7c1ea1d0-6b1f-4000-8000-000000000206 >"$WORK/http-log"
  admin GET 'plugins?size=1000' >"$WORK/plugins"
  python3 - "$WORK/http-log" "$WORK/plugins" <<'PY'
import base64, json, math, sys
http_log, plugins = (json.load(open(path)) for path in sys.argv[1:])
http_log = http_log["config"]
captures = [plugin["config"] for plugin in plugins["data"] if plugin["name"] == "llm-audit"]
bodies = max(sum(len(base64.b64encode(bytes(capture[name]))) for name in ("max_request_body_size", "max_response_body_size"))
             for capture in captures)
buffers, escaped = 4 * 8192, len(json.dumps("\x01")) - 2
headers = buffers * escaped + 8192 * escaped
uris = 4 * 8192 * 2
entry = bodies + headers + uris + 16384
size = http_log["queue"]["max_batch_size"]
print(entry, size, size * entry + size + 1, http_log["queue"]["max_bytes"])
PY
}

# fits SETTING… - configures with these settings; the largest batch that Kong can make then fits.
fits() {
  env "$@" "$COLLECTOR" kong apply >/dev/null
  env "$@" "$COLLECTOR" kong apply --print-batch >"$WORK/numbers"
  # shellcheck disable=SC1091
  . "$WORK/numbers"
  read -r entry size bytes queue < <(largest_batch)
  [ "$entry" = "$entry_bytes" ] && [ "$size" = "$batch_entries" ] && [ "$bytes" = "$batch_bytes" ] && [ "$queue" = "$queue_bytes" ]
  [ "$bytes" -le "$collector_max_body_bytes" ]
  [ "$queue" -ge "$entry" ]
  # One entry more would not fit, unless the number is at its cap.
  [ "$size" = 200 ] || [ $((bytes + entry + 1)) -gt "$collector_max_body_bytes" ]
}

@test "the largest batch these settings can produce fits the collector's limit" {
  for setting in '' 'AUDIT_MAX_RESPONSE_BYTES=67108864 COLLECTOR_MAX_BODY_BYTES=134217728' 'AUDIT_MAX_REQUEST_BYTES=0 AUDIT_MAX_RESPONSE_BYTES=1' \
    'AUDIT_MAX_REQUEST_BYTES=5000000' 'AUDIT_CAPTURE=metadata' 'COLLECTOR_MAX_BODY_BYTES=4000000'; do
    # shellcheck disable=SC2086
    fits $setting
  done
  configure >/dev/null
}

@test "the largest batch fits, too, where users have a capture of their own" {
  users add peggy >/dev/null 2>&1
  own=$(admin POST consumers/peggy/plugins '{"name":"llm-audit"}' | json 'j["id"]')
  for config in '{"capture":"full"}' '{"max_request_body_size":9000000}' '{"max_response_body_size":20000000}' '{"capture":"metadata"}'; do
    admin PATCH "plugins/$own" "{\"config\":$config}" >/dev/null
    for setting in AUDIT_CAPTURE=full AUDIT_CAPTURE=metadata 'AUDIT_MAX_REQUEST_BYTES=1000 AUDIT_MAX_RESPONSE_BYTES=1000'; do
      # shellcheck disable=SC2086
      fits $setting
    done
  done
  # an entry that cannot be sent at all is said now, not when it is lost
  admin PATCH "plugins/$own" '{"config":{"max_response_body_size":67108864}}' >/dev/null
  run configure
  [ "$status" -eq 1 ]
  [[ $output == *'a single log entry'*/plugins* ]]
  users remove peggy 2>/dev/null
  configure >/dev/null
}

@test "a user's own capture never makes a batch too large for a collector that took the others" {
  fits AUDIT_CAPTURE=metadata
  users add peggy >/dev/null 2>&1
  users capture peggy full 2>/dev/null
  read -r _ _ bytes _ < <(largest_batch)
  [ "$bytes" -le 67108864 ]
  users remove peggy 2>/dev/null
  configure >/dev/null
}

@test "no real entry is larger than what the numbers assume" {
  VLLM_EXTRA_PATHS=/size configure --wait >/dev/null
  eval "$(configure --print-batch)"
  rm -f "$WORK/up/batches"
  python3 - "$KONG_PROXY_URL" "$KEY" <<'PY'
import socket, sys
host, port = sys.argv[1].split("//")[1].split(":")
line = b"POST /size?bytes=2000000&mark=worst&q=" + b"%01\"" * 2020 + b" HTTP/1.1\r\n"
fill = b"".join(b"X-%d: %s\r\n" % (n, b"\x01" * 8000) for n in range(3))
head = line + b"Host: x\r\nX-API-Key: " + sys.argv[2].encode() + b"\r\nContent-Length: 3000000\r\nConnection: close\r\n" + fill + b"\r\n"
with socket.create_connection((host, int(port))) as connection:
    connection.sendall(head + b"\xff" * 3000000)
    answer = b""
    while piece := connection.recv(65536):
        answer += piece
assert b" 200 OK" in answer[:20], answer[:300]
PY
  for _ in $(seq 60); do grep -q mark=worst "$WORK/up/batches" 2>/dev/null && break; sleep 0.1; done
  python3 - "$WORK/up/batches" "$entry_bytes" <<'PY'
import json, sys
for line in open(sys.argv[1], "rb"):
    for entry in json.loads(line):
        if "mark=worst" in entry["request"]["uri"]:
            size = len(json.dumps(entry, separators=(",", ":")))
            assert entry["llm"]["request_truncated"] and entry["llm"]["response_truncated"]
            assert 2_900_000 < size <= int(sys.argv[2]), size
            print(size, "of", sys.argv[2])
PY
  configure >/dev/null
}

@test "sizes that cannot work are refused" {
  COLLECTOR_MAX_BODY_BYTES=1000000 run configure
  [ "$status" -eq 1 ]
  [[ $output == *'a single log entry can have 3123888 bytes, but the collector takes 1000000'* ]]
  AUDIT_QUEUE_BYTES=1000000 run configure
  [ "$status" -eq 1 ]
  [[ $output == *'more than AUDIT_QUEUE_BYTES'* ]]
}

# shellcheck disable=SC2016
@test "wrong settings are refused before anything is changed" {
  whole_state >"$WORK/before"
  for setting in RATE_LIMIT_PER_HOUR=-1 RATE_LIMIT_PER_HOUR=1e3 RATE_LIMIT_PER_HOUR=99999999999999999999 VLLM_URL=127.0.0.1:8000 \
    VLLM_URL=http://user:pw@vllm:8000 VLLM_URL=ftp://x VLLM_READ_TIMEOUT_MS=0 REQUEST_BODY_SECONDS=86401 REQUEST_BODY_SECONDS=1.5 AUDIT_CAPTURE=all AUDIT_INCLUDE_USAGE=yes STRICT_REQUESTS=1 \
    COLLECTOR_URL=collector AUDIT_BATCH_SECONDS=fast KONG_SHARED=true VLLM_API_KEY='a b' 'VLLM_API_KEY=$(x)' \
    'COLLECTOR_TOKEN={vault://env/x}' COLLECTOR_TOKEN_FILE=/no/such/file VLLM_EXTRA_PATHS=metrics QUEUE_IN_FLIGHT=0 QUEUE_MAX_WAITING=x QUEUE_WEIGHTS=alice VLLM_PRIORITY=1 GATEWAY_HOSTS=0 GATEWAY_PLUGINS_DIR=/no/such/dir; do
    run env "$setting" "$COLLECTOR" kong apply
    [ "$status" -eq 1 ] || { echo "accepted: $setting"; false; }
    [[ $output == error:* ]]
  done
  run configure --nonsense
  [ "$status" -eq 2 ]
  whole_state | cmp - "$WORK/before"
}

@test "--dry-run says what would change and changes nothing" {
  whole_state >"$WORK/before"
  run configure --dry-run
  [ "$status" -eq 0 ]
  RATE_LIMIT_PER_HOUR=5 VLLM_API_KEY=x run configure --dry-run
  [ "$status" -eq 3 ]
  [[ $output == *'updated    plugin rate-limiting'* && $output == *'created    plugin request-transformer'* ]]
  whole_state | cmp - "$WORK/before"
}

@test "export: the same configuration as a declarative file, for its owner alone" {
  VLLM_API_KEY=first-secret "$COLLECTOR" kong export --output "$WORK/kong.json"
  [ "$(stat -c %a "$WORK/kong.json")" = 600 ]
  "$COLLECTOR" kong export >"$WORK/exported.json"
  json 'j["_format_version"], [s["id"][-1] for s in j["services"]], len(j["routes"]), sorted({p["service"][-1] for p in j["plugins"] if "service" in p})' <"$WORK/exported.json" |
    grep -qxF "('3.0', ['1', '2', '3'], 15, ['1', '2', '3'])"
  for list in services routes plugins; do # what the file says is what the Admin API has
    json "sorted((e['name'], e['id']) for e in j['$list'])" <"$WORK/exported.json" >"$WORK/of-file"
    admin GET "$list?size=1000" | json "sorted((e['name'], e['id']) for e in j['data'] if e['id'].startswith('7c1ea1d0'))" | cmp - "$WORK/of-file"
  done
  no grep -q 'null' "$WORK/exported.json"
}

@test "secrets are in no process argument and in no message" {
  VLLM_API_KEY=first-secret COLLECTOR_TOKEN=second-secret arguments_of kong apply >"$WORK/arguments"
  grep -qx apply "$WORK/arguments"
  VLLM_API_KEY=first-secret COLLECTOR_TOKEN=second-secret configure >"$WORK/said" 2>&1
  no grep -q 'first-secret\|second-secret' "$WORK/arguments" "$WORK/said"
  grep -q '^created    plugin request-transformer$' "$WORK/said"
  for setting in 'VLLM_API_KEY=first secret' 'COLLECTOR_TOKEN=second secret'; do
    run env "$setting" "$COLLECTOR" kong apply
    [ "$status" -eq 1 ] && [[ $output != *' secret'* ]]
  done
  configure >/dev/null
}

@test "an Admin API that does not answer, or is none" {
  KONG_ADMIN_URL=http://127.0.0.1:9 run configure
  [ "$status" -eq 1 ]
  [[ $output == *"Kong's Admin API does not answer at http://127.0.0.1:9"*'Is Kong running?'* ]]
  KONG_ADMIN_URL=http://127.0.0.1:$UP run configure
  [ "$status" -eq 1 ]
  [[ $output == *"Is this Kong's Admin API?"* ]]
}

@test "versions of Kong: too old is refused, an early 3.9 as well unless it is wanted" {
  NGINX_HOST_VERSION=3.8.1 start_host old
  run configure
  stop_host old
  [ "$status" -eq 1 ]
  [[ $output == *'Kong 3.8.1 is too old'* ]]
  NGINX_HOST_VERSION=3.9.3 start_host early
  run configure
  [ "$status" -eq 1 ]
  [[ $output == *'Kong 3.9.3 lets requests be smuggled'*'CVE-2026-6338'*'Use 3.9.4 or newer'* ]]
  KONG_ACCEPT_OLD=1 run configure
  stop_host early
  [ "$status" -eq 0 ]
  [[ $output == *'warning: Kong 3.9.3 lets requests be smuggled'* ]]
}

@test "without the plugin it says how to load it" {
  KONG_PLUGINS=bundled start_host bare
  run configure
  stop_host bare
  [ "$status" -eq 1 ]
  [[ $output == *'Kong does not have the plugins: llm-audit'*'KONG_PLUGINS=bundled,llm-audit'*'KONG_LUA_PACKAGE_PATH='* ]]
}

@test "without llm-queue or llm-quota all else is set up, and it says what is not kept" {
  KONG_PLUGINS=bundled,llm-audit,llm-router start_host older
  QUEUE_IN_FLIGHT=8 run configure
  [ "$status" -eq 0 ]
  [[ $output == *'llm-queue'*'no call waits for its share'* ]]
  [[ $output == *'llm-quota'*'limits are not kept'* ]]
  [ "$(admin GET plugins | json 'sorted({p["name"] for p in j["data"]})')" = "['http-log', 'key-auth', 'llm-audit', 'pre-function', 'prometheus', 'rate-limiting']" ]
  stop_host older
}

@test "another http-log in the same place: whose it is and what to do; KONG_SHARED works beside it" {
  start_host shared
  other=$(admin POST plugins '{"name":"http-log","config":{"http_endpoint":"http://127.0.0.1:9/other"}}' | json 'j["id"]')
  run configure
  [ "$status" -eq 1 ]
  [[ $output == *"another instance of plugin http-log with the same scope, id $other"*--adopt*'KONG_SHARED=1'* ]]
  KONG_SHARED=1 run configure
  [ "$status" -eq 0 ]
  admin GET plugins/7c1ea1d0-6b1f-4000-8000-000000000206 | json 'j["service"]["id"]' | grep -qx 7c1ea1d0-6b1f-4000-8000-000000000001
  admin GET "plugins/$other" | grep -q 127.0.0.1:9/other
  admin DELETE "plugins/$other"
  says '^updated    plugin http-log$' configure
  admin GET plugins/7c1ea1d0-6b1f-4000-8000-000000000206 | json 'j["service"]' | grep -qx None
  stop_host shared
}

@test "another service of the same name is left alone" {
  start_host taken
  admin PUT services/vllm '{"host":"elsewhere"}' >/dev/null
  run configure
  [ "$status" -eq 1 ]
  [[ $output == *'another service vllm of that name'*'not made by this program'* ]]
  run configure --adopt
  stop_host taken
  [ "$status" -eq 1 ]
  [[ $output == *'another service vllm of that name'* ]]
}

# An installation of the kind that people made by hand: a service of the same name and another one, routes without a key, plugins for
# all calls.
make_old_installation() {
  admin PUT services/vllm "{\"host\":\"localhost\",\"port\":$UP}" >/dev/null
  admin POST services/vllm/routes '{"name":"by-hand","paths":["/"]}' >/dev/null
  admin POST services/vllm/plugins '{"name":"rate-limiting","config":{"minute":5}}' >/dev/null
  admin PUT services/second "{\"host\":\"127.0.0.1\",\"port\":$UP}" >/dev/null
  admin POST services/second/routes '{"paths":["/llm"]}' >/dev/null
  admin POST plugins "{\"name\":\"http-log\",\"config\":{\"http_endpoint\":\"$COLLECTOR_URL/log\"}}" >/dev/null
}

@test "an installation made by hand: what leads past the keys is named, and taken over on demand" {
  start_host leaky
  make_old_installation
  [ "$(call /llm/v1/models)" = 200 ]
  whole_state >"$WORK/before"
  run configure
  [ "$status" -eq 1 ]
  [[ $output == *'another service vllm of that name'*--adopt* ]]
  run configure --adopt --dry-run
  [ "$status" -eq 3 ]
  [[ $output == *'removed    service second, which led to vLLM'* ]]
  whole_state | cmp - "$WORK/before"
  configure --adopt --wait >"$WORK/adopted"
  grep -q '^removed    route .* of service vllm$' "$WORK/adopted"
  grep -q '^removed    plugin http-log, instance ' "$WORK/adopted"
  grep -q '^created    service vllm$' "$WORK/adopted"
  for path in /llm/v1/models /metrics /; do [ "$(call "$path")" = 404 ]; done
  [ "$(call /v1/models)" = 401 ]
  says '^nothing to change$' configure --adopt
  stop_host leaky
}

@test "other ways to vLLM beside the gateway's own are warned of until they are adopted" {
  start_host beside
  configure >/dev/null
  admin PUT services/vllm-service "{\"host\":\"LOCALHOST\",\"port\":$UP}" >/dev/null
  admin POST services/vllm/routes '{"name":"by-hand","paths":["/"]}' >/dev/null
  admin POST routes/vllm-models/plugins '{"name":"pre-function","config":{"access":["return"]}}' >/dev/null
  run configure
  [ "$status" -eq 0 ]
  [[ $output == *'warning: the service vllm-service also leads to vLLM'* ]]
  [[ $output == *'warning: the route by-hand at the vLLM service was not made by this program'* ]]
  [[ $output == *'warning: the plugin '*' runs in the place of'*'run this with --adopt'* ]]
  run configure --adopt
  [[ $output == *'removed    route by-hand'* && $output == *'removed    service vllm-service'* ]]
  run configure
  [[ $output != *warning* && $output == *'nothing to change'* ]]
  stop_host beside
}

@test "a Kong that serves other things: nothing of them is logged unless it is asked for" {
  start_host shared
  admin PUT services/wiki "{\"host\":\"127.0.0.1\",\"port\":9}" >/dev/null
  admin POST services/wiki/routes '{"paths":["/wiki"]}' >/dev/null
  scope() { admin GET "plugins/7c1ea1d0-6b1f-4000-8000-000000000$1" | json 'j["service"] and j["service"]["id"][-1]'; }
  configure >/dev/null
  for number in 205 206 207; do [ "$(scope $number)" = 1 ]; done
  KONG_SHARED=0 configure >/dev/null
  for number in 205 206 207; do [ "$(scope $number)" = None ]; done
  says '^updated    plugin llm-audit$' configure
  admin GET services/wiki | grep -q '"port":9'
  run configure --adopt
  [[ $output == *'nothing to change'* ]]
  stop_host shared
}

@test "--wait waits for a Kong that takes its time" {
  KONG_WORKER_STATE_UPDATE_FREQUENCY=3 start_host slow
  says '^live ' configure --wait
  [ "$(call /v1/models)" = 401 ]
  stop_host slow
}

@test "an Admin API that wants a password: said, and given out of sight" {
  printf 'admin:{PLAIN}of-the-admin' >"$WORK/admins"
  KONG_NGINX_ADMIN_AUTH_BASIC=Kong KONG_NGINX_ADMIN_AUTH_BASIC_USER_FILE=$WORK/admins start_host locked
  run configure
  [ "$status" -eq 1 ]
  [[ $output == *'wants a password'*KONG_ADMIN_PASSWORD_FILE* ]]
  [ "$(curl -s -o /dev/null -w '%{http_code}' "$KONG_ADMIN_URL/key-auths")" = 401 ]
  KONG_ADMIN_PASSWORD=of-the-admin says '^created    service vllm$' configure --wait
  printf 'of-the-admin\n' >"$WORK/password"
  export KONG_ADMIN_PASSWORD_FILE=$WORK/password
  says '^nothing to change$' configure
  users add bob >"$WORK/key-of-bob" 2>/dev/null
  [ "$(call /v1/models -H "X-API-Key: $(cat "$WORK/key-of-bob")")" = 200 ]
  stop_host locked
}

# The address that the entry of a call has, which said that it comes for 203.0.113.9 through 127.0.0.1.
logged_address() {
  rm -f "$WORK/up/batches"
  call '/v1/models?from=afar' -H "X-API-Key: $1" -H 'X-Forwarded-For: 203.0.113.9, 127.0.0.1' >/dev/null
  for _ in $(seq 100); do grep -q from=afar "$WORK/up/batches" 2>/dev/null && break; sleep 0.1; done
  grep from=afar "$WORK/up/batches" | json '[entry["client_ip"] for entry in j if "from=afar" in entry["request"]["uri"]][0]'
}

@test "the client's address is believed from a trusted proxy only" {
  [ "$(logged_address "$KEY")" = 127.0.0.1 ]
  KONG_TRUSTED_IPS=127.0.0.1,10.0.0.0/8 KONG_REAL_IP_HEADER=X-Forwarded-For KONG_REAL_IP_RECURSIVE=on start_host behind
  configure --wait >/dev/null
  key=$(users add carol 2>/dev/null)
  [ "$(logged_address "$key")" = 203.0.113.9 ]
  stop_host behind
}
