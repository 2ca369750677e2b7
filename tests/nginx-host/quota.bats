#!/usr/bin/env bats
#
# llm-quota through nginx's phases, with a stand-in for the model server and for the collector's half of the count (quota_server.py):
# what calls reserve, what they are charged, what callers are told, and what stays right when parts of it go away.

setup_file() {
  export HERE=$BATS_TEST_DIRNAME
  export WORK=$BATS_FILE_TMPDIR
  mkdir -p "$WORK/up"
  limit '[]'
  python3 "$HERE/quota_server.py" "$WORK/up" >"$WORK/up/port" 3>&- &
  echo $! >"$WORK/up/pid"
  for _ in $(seq 100); do [ -s "$WORK/up/port" ] && break; sleep 0.05; done
  UP=$(<"$WORK/up/port")
  export UP
  NGINX_HOST_WATCH_PID=$$ "$HERE/run.sh" start --prefix "$WORK/host" --workers 2 \
    --proxy 127.0.0.1:0 --admin 127.0.0.1:0 --status 127.0.0.1:0 3>&-
  # shellcheck disable=SC1091
  . "$WORK/host/host.env"
  export PROXY_URL ADMIN_URL PID
  admin PUT services/vllm "{\"host\":\"127.0.0.1\",\"port\":$UP,\"retries\":0}"
  admin PUT services/vllm/routes/all '{"paths":["/v1"],"strip_path":false,"response_buffering":false}'
  admin PUT plugins/00000000-0000-4000-8000-000000000001 '{"name":"key-auth","service":{"name":"vllm"},"config":{"key_names":["X-API-Key"]}}'
  admin PUT plugins/00000000-0000-4000-8000-000000000002 '{"name":"llm-audit","config":{"capture":"full"}}'
  admin PUT plugins/00000000-0000-4000-8000-000000000003 \
    "{\"name\":\"http-log\",\"config\":{\"http_endpoint\":\"http://127.0.0.1:$UP/log\",\"queue\":{\"max_batch_size\":10,\"max_coalescing_delay\":0.1,\"max_bytes\":4000000,\"max_entries\":1000}}}"
  admin PUT plugins/00000000-0000-4000-8000-000000000004 \
    '{"name":"llm-quota","service":{"name":"vllm"},"config":{"contact":"ops@example.org","default_max_tokens":100}}'
  # A node tells the collector of itself from its first entry on.
  curl -sS -o /dev/null "$PROXY_URL/v1/models"
}

teardown_file() {
  "$HERE/run.sh" stop --prefix "$WORK/host"
  kill "$(<"$WORK/up/pid")"
}

setup() {
  rm -f "$WORK/up/away"
  USER_NAME=u$BATS_TEST_NUMBER
  admin PUT "consumers/$USER_NAME" '{}'
  admin POST "consumers/$USER_NAME/key-auth" "{\"key\":\"sk-$USER_NAME\"}"
}

admin() { curl -sS --fail-with-body -X "$1" "$ADMIN_URL/$2" -H 'Content-Type: application/json' --data "$3" >"$WORK/last" || { cat "$WORK/last"; return 1; }; }

# Sets the limits, and more of what the collector tells.
limit() {
  printf '{"limits":%s%s}' "$1" "${2:+,$2}" >"$WORK/up/limits.new"
  mv "$WORK/up/limits.new" "$WORK/up/limits.json"
}

# A limit of the test's user: unit, window, amount, mode.
mine() { printf '{"id":%d,"subject":"user","name":"%s","models":"%%","unit":"%s","currency":null,"per":"%s","amount":%s,"mode":"%s"}' \
  "$((BATS_TEST_NUMBER * 10 + ${5:-0}))" "$USER_NAME" "$1" "$2" "$3" "$4"; }

# A call of the test's user; body in $WORK/body, headers in $WORK/headers, prints the status.
call() {
  curl -sS -o "$WORK/body" -D "$WORK/headers" -w '%{http_code}' "$PROXY_URL/v1/${PATH_OF_CALL:-chat/completions}" -H "X-API-Key: sk-$USER_NAME" \
    -H 'Content-Type: application/json' "${@:2}" --data "${1:-{\"model\":\"m\",\"max_tokens\":20\}}"
}
header() { tr -d '\r' <"$WORK/headers" | sed -n "s/^$1: //Ip" | tail -n 1; }

wait_for() { for _ in $(seq 400); do if "$@"; then return 0; fi; sleep 0.1; done; echo "in vain: $*"; return 1; }

# How many tokens are left is told by a call that takes none.
left() { PATH_OF_CALL=tokenize call '' -H 'X-Tokens: none' >/dev/null; header x-ratelimit-remaining-tokens; }
is_left() { local left; left=$(left); [ "$left" = "$1" ] || { echo "left: $left, not $1"; return 1; }; }
# Whether the node has the limits as they were set last: what it asks with is a copy of them.
is_known() { python3 -c 'import json,sys; told = json.load(open(sys.argv[1])).get("quota", {}).get("revision", "null"); sys.exit(json.loads(told) != json.load(open(sys.argv[2])))' \
  "$WORK/up/sync" "$WORK/up/limits.json" 2>/dev/null; }
is_settled() { python3 -c 'import json,sys; sys.exit(json.load(open(sys.argv[1]))["gauges"].get("quota_pending") != 0)' "$WORK/up/sync"; }
# Whether a Python expression is true of an entry of the test's user.
says() { python3 -c 'import json,sys; sys.exit(not any(eval(sys.argv[3], {"e": e}) for e in map(json.loads, open(sys.argv[1])) if (e.get("consumer") or {}).get("username") == sys.argv[2]))' \
  "$WORK/up/entries" "$USER_NAME" "$1"; }

@test "without limits nothing is said" {
  [ "$(call)" = 200 ]
  ! grep -qi ratelimit "$WORK/headers" || false
}

@test "a limit is known a second later, and a day that is used up is told as OpenAI's SDK reads it" {
  limit "[$(mine tokens day 100 hard)]"
  wait_for is_known
  [ "$(call '' -H 'X-Tokens: 40,45')" = 200 ]
  wait_for is_left 15
  local asked
  asked=$(wc -l <"$WORK/up/asked")
  [ "$(call)" = 429 ]
  python3 - "$WORK/body" <<'PY'
import json, re, sys
error = json.load(open(sys.argv[1]))["error"]
assert error["type"] == error["code"] == "insufficient_quota", error
assert re.fullmatch(r"Quota exceeded: user u\d+ may use 100 tokens per day \(limit \d+\); 85 are used or reserved by calls under way, "
                    r"and this call may take 28\. It resets in [0-9hms]+, at 20\d\d-\d\d-\d\dT00:00:00Z\. To get more, ask ops@example\.org\.",
                    error["message"]), error
PY
  [ "$(header x-should-retry)" = false ]
  [ -z "$(header retry-after)" ]
  [ "$(header x-ratelimit-limit-tokens)" = 100 ]
  [ "$(header x-ratelimit-remaining-tokens)" = 15 ]
  header x-ratelimit-reset-tokens | grep -Eq '^([0-9]+h)?([0-9]+m)?[0-9]+s$'
  # No server was asked, and the entry says who refused.
  wait_for says 'e["llm"].get("refused_by") == "quota"'
  [ "$(wc -l <"$WORK/up/asked")" = "$asked" ]
}

@test "Anthropic's shape and headers on its path" {
  limit "[$(mine calls day 1 hard)]"
  wait_for is_known
  export PATH_OF_CALL=messages
  [ "$(call '{"model":"m","max_tokens":5}')" = 200 ]
  [ "$(header anthropic-ratelimit-requests-remaining)" = 0 ]
  [ "$(call '{"model":"m","max_tokens":5}')" = 429 ]
  python3 - "$WORK/body" <<'PY'
import json, sys
body = json.load(open(sys.argv[1]))
assert body["type"] == "error" and body["error"]["type"] == "rate_limit_error", body
assert "may use 1 call per day" in body["error"]["message"], body
PY
  [ "$(header anthropic-ratelimit-requests-limit)" = 1 ]
  [ "$(header anthropic-ratelimit-requests-remaining)" = 0 ]
  header anthropic-ratelimit-requests-reset | grep -Eq '^20..-..-..T00:00:00Z$'
  [ -z "$(header x-ratelimit-limit-requests)" ]
}

@test "charged is what was reported: JSON, streams, and what the client is not shown" {
  limit "[$(mine tokens day 100000 hard)]"
  wait_for is_known
  [ "$(call '' -H 'X-Tokens: 1000,100')" = 200 ]
  wait_for is_left 98900
  [ "$(call '{"model":"m","stream":true}' -H 'X-Tokens: 2000,200')" = 200 ]
  ! grep -q usage "$WORK/body" || false
  wait_for is_left 96700
  # The collector counts the same.
  wait_for is_settled
  wait_for is_left 96700
  says 'e["llm"].get("model") == "m" and e["llm"].get("usage", {}).get("completion_tokens") == 200 and e["llm"]["stream"]'
}

@test "charged is an estimate where nothing was reported" {
  limit "[$(mine tokens day 100000 soft)]"
  wait_for is_known
  # 46 bytes and 2 of 4 events; the first has the role, the last but one says stop.
  [ "$(call '{"model":"m","stream":true,"padding":"xxxxxxxx"}' -H 'X-Tokens: none')" = 200 ]
  wait_for says 'e["llm"].get("estimated")'
  local charged=$((100000 - $(left)))
  wait_for is_settled
  wait_for is_left $((100000 - charged))
  [ "$charged" -ge 14 ] && [ "$charged" -le 40 ]
}

@test "what is compressed is charged as reserved until it is counted" {
  limit "[$(mine tokens day 100000 hard)]"
  wait_for is_known
  touch "$WORK/up/away"
  [ "$(call '{"model":"m","max_tokens":5000}' -H 'X-Tokens: 3000,2' -H 'X-Gzip: 1')" = 200 ]
  # 31 bytes are 8 tokens
  wait_for is_left $((100000 - 8 - 5000))
  rm "$WORK/up/away"
}

@test "nothing is charged for what no server got, and a call where one failed" {
  limit "[$(mine tokens day 1000 hard),$(mine calls day 100 hard 1)]"
  wait_for is_known
  [ "$(call '{"model":"m"} x')" = 400 ]
  # It is settled by then.
  wait_for says 'e["response"]["status"] == 400'
  [ "$(call)" = 200 ]
  [ "$(header x-ratelimit-remaining-requests)" = 99 ]
  [ "$(call '' -H 'X-Status: 500')" = 500 ]
  [ "$(header x-ratelimit-remaining-requests)" = 98 ]
  wait_for is_left 988
}

@test "a hard limit is not passed by many calls at once" {
  limit "[$(mine calls day 5 hard)]"
  wait_for is_known
  seq 40 | xargs -P 40 -I{} curl -sS -o /dev/null -w '%{http_code}\n' "$PROXY_URL/v1/chat/completions" -H "X-API-Key: sk-$USER_NAME" \
    -H 'X-Slow: 1000' --data '{"model":"m"}' >"$WORK/statuses"
  [ "$(grep -c 200 "$WORK/statuses")" = 5 ]
  [ "$(grep -c 429 "$WORK/statuses")" = 35 ]
  wait_for is_settled
  [ "$(call)" = 429 ]
  [ "$(header x-ratelimit-remaining-requests)" = 0 ]
}

@test "a client that hangs up gives its reservation back" {
  limit "[$(mine tokens day 1000 hard)]"
  wait_for is_known
  ! curl -sS -m 0.5 -o /dev/null "$PROXY_URL/v1/chat/completions" -H "X-API-Key: sk-$USER_NAME" -H 'X-Slow: 3000' \
    --data '{"model":"m","max_tokens":500}' 2>/dev/null || false
  # The prompt was read: 30 bytes.
  wait_for is_left 992
}

@test "the choices of a call, and the prompts of a batch, each may take what is asked for" {
  limit "[$(mine tokens day 1000 hard)]"
  wait_for is_known
  [ "$(call '{"model":"m","max_tokens":400,"n":3}')" = 429 ]
  grep -q 'may take 1,209' "$WORK/body"
  PATH_OF_CALL=completions
  [ "$(call '{"model":"m","max_tokens":400,"prompt":["a, b","[c","\"d"]}')" = 429 ]
  grep -q 'may take 1,215' "$WORK/body"
  PATH_OF_CALL=embeddings
  [ "$(call '{"model":"m","input":["a","b"]}' -H 'X-Tokens: 10,0')" = 200 ]
}

@test "an hour that is over soon is waited for by the SDKs, and a day by none" {
  local python=${E2E_PYTHON:-$HERE/../../.test/venv/bin/python}
  [ -x "$python" ] || skip "the SDKs are missing: tests/tools.sh test"
  export BASE_URL=$PROXY_URL KEY=sk-$USER_NAME
  local now
  # The SDK takes longer to load than the window lasts.
  "$python" "$HERE/../sdk/quota_calls.py" openai "$WORK/go" >"$WORK/sdk" 3>&- &
  local sdk=$!
  now=$(date +%s)
  limit "[$(mine calls hour 1 hard)]" "\"windows\":{\"hour\":[$((now - 3600)),$((now + 15)),$((now + 3615))]}"
  wait_for is_known
  [ "$(call)" = 200 ]
  [ "$(call)" = 429 ]
  [ "$(header retry-after)" -le 15 ]
  grep -q '"type":"requests","param":null,"code":"rate_limit_exceeded"' "$WORK/body"
  touch "$WORK/go"
  wait "$sdk"
  grep -qx 'answered after [2-9] tries' "$WORK/sdk"

  limit "[$(mine calls day 0 hard)]"
  wait_for is_known
  for sdk in openai anthropic; do
    "$python" "$HERE/../sdk/quota_calls.py" "$sdk" >"$WORK/sdk"
    grep -qx 'refused RateLimitError 429 after 1 tries' "$WORK/sdk" || { cat "$WORK/sdk"; false; }
  done
}

@test "while the collector is away the node counts on, and nothing is counted twice afterwards" {
  limit "[$(mine tokens day 1000 hard)]"
  wait_for is_known
  touch "$WORK/up/away"
  for _ in 1 2 3 4 5; do [ "$(call '' -H 'X-Tokens: 50,50')" = 200 ]; done
  wait_for is_left 500
  [ "$(call '{"model":"m","max_tokens":600}')" = 429 ]
  rm "$WORK/up/away"
  wait_for is_settled
  wait_for is_left 500
}

@test "a team's money, at the price of its model" {
  admin PATCH "consumers/$USER_NAME" '{"tags":["team:ml"]}'
  limit '[{"id":1,"subject":"team","name":"ml","models":"big%","unit":"cost","currency":"CNY","per":"month","amount":1.5,"mode":"hard"}]' \
    '"prices":[{"models":"big%","prompt":1000,"cached":100,"completion":2000,"currency":"CNY"}]'
  wait_for is_known
  [ "$(call '{"model":"small","max_tokens":5000}')" = 200 ]
  # 10 of the prompt and 700 at most are 1.41
  [ "$(call '{"model":"big-1","max_tokens":700}' -H 'X-Tokens: 200,400')" = 200 ]
  [ "$(call '{"model":"big-1","max_tokens":700}')" = 429 ]
  grep -q 'team ml may use 1\.50 CNY of models big% per month (limit 1); 1\.00 CNY are used or reserved by calls under way, and this call may take 1\.40 CNY' \
    "$WORK/body"
  ! grep -qi ratelimit "$WORK/headers" || false
}

@test "who goes away while his body is awaited leaves an entry, and takes nothing" {
  limit "[$(mine tokens day 1000 hard)]"
  wait_for is_known
  python3 - "${PROXY_URL##*:}" "sk-$USER_NAME" <<'PY'
import socket, sys, time
client = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-API-Key: %s\r\nContent-Length: 100\r\n\r\n{" % sys.argv[2].encode())
time.sleep(0.5)
client.close()
PY
  wait_for is_left 1000
  # At the latest with its worker's next entry.
  wait_for is_told_of_who_went
}

is_told_of_who_went() { left >/dev/null; says 'e["response"]["status"] == 400 and e["llm"]["api"] == "chat"'; }

@test "a limit that is lowered below what is used refuses at once" {
  limit "[$(mine tokens day 1000 hard)]"
  wait_for is_known
  [ "$(call '' -H 'X-Tokens: 300,300')" = 200 ]
  limit "[$(mine tokens day 500 soft)]"
  wait_for is_known
  [ "$(call)" = 429 ]
  grep -q '600 are used\. It resets' "$WORK/body"
}

@test "a killed worker's reservations are given back, and a reload loses nothing" {
  limit "[$(mine tokens day 10000 hard)]"
  wait_for is_known
  [ "$(call '' -H 'X-Tokens: 50,50')" = 200 ]
  curl -sS -m 60 -o /dev/null "$PROXY_URL/v1/chat/completions" -H "X-API-Key: sk-$USER_NAME" -H 'X-Slow: 4000' \
    --data '{"model":"m","max_tokens":3000}' 2>/dev/null 3>&- &
  wait_for is_left $((10000 - 100 - 3008))
  for worker in $(pgrep -P "$PID"); do kill -KILL "$worker"; done
  wait_for is_left 9900
  kill -HUP "$PID"
  wait_for is_left 9900
}

@test "with fail_closed a node that knows no count refuses" {
  admin PATCH plugins/00000000-0000-4000-8000-000000000004 '{"config":{"fail_closed":true}}'
  limit "[]"
  wait_for is_known
  [ "$(call)" = 200 ]
  NGINX_HOST_WATCH_PID=$$ "$HERE/run.sh" start --prefix "$WORK/other" --workers 1 --proxy 127.0.0.1:0 --admin 127.0.0.1:0 --status 127.0.0.1:0 3>&-
  # shellcheck disable=SC1091
  ADMIN_URL=$(. "$WORK/other/host.env"; echo "$ADMIN_URL")
  # shellcheck disable=SC1091
  PROXY_URL=$(. "$WORK/other/host.env"; echo "$PROXY_URL")
  admin PUT services/vllm "{\"host\":\"127.0.0.1\",\"port\":$UP,\"retries\":0}"
  admin PUT services/vllm/routes/all '{"paths":["/v1"],"strip_path":false}'
  admin PUT plugins/00000000-0000-4000-8000-000000000004 '{"name":"llm-quota","service":{"name":"vllm"},"config":{"fail_closed":true}}'
  [ "$(call)" = 503 ]
  grep -q 'not known at the moment how much of the quota is left' "$WORK/body"
  [ "$(header retry-after)" = 2 ]
  "$HERE/run.sh" stop --prefix "$WORK/other"
}

@test "no error of a plugin is in the log" {
  ! grep -E '\[error\]|\[alert\]' "$WORK/host/logs/error.log" | grep -vE 'exited on signal 9|upstream prematurely|peer closed|connect\(\) failed|left out|failed request' || false
}
