#!/usr/bin/env bats
#
# llm-queue through nginx's phases, with a stand-in for the model server and the collector (quota_server.py): who waits, who is served
# next, and what becomes of places when calls, workers or configurations end.

setup_file() {
  export HERE=$BATS_TEST_DIRNAME
  export WORK=$BATS_FILE_TMPDIR
  mkdir -p "$WORK/up"
  printf '{"limits":[]}' >"$WORK/up/limits.json"
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
  configure '{}'
  for name in alice bob carol; do
    admin PUT "consumers/$name" '{}'
    admin POST "consumers/$name/key-auth" "{\"key\":\"sk-$name\"}"
  done
  admin PUT consumers/heavy '{"tags":["weight:3","team:ml"]}'
  admin POST consumers/heavy/key-auth '{"key":"sk-heavy"}'
  admin PUT consumers/nightly '{}'
  admin POST consumers/nightly/key-auth '{"key":"sk-nightly","tags":["class:batch"]}'
  # A node tells the collector of itself from its first entry on.
  curl -sS -o /dev/null "$PROXY_URL/v1/models"
}

teardown_file() {
  rm -f "$WORK/up/hold"
  "$HERE/run.sh" stop --prefix "$WORK/host"
  kill "$(<"$WORK/up/pid")"
}

setup() {
  touch "$WORK/up/hold"
  : >"$WORK/up/asked"
  configure '{}'
}

teardown() {
  rm -f "$WORK/up/hold"
  # Nobody holds or waits for a place when the next test begins.
  told '{}' >/dev/null
}

admin() { curl -sS --fail-with-body -X "$1" "$ADMIN_URL/$2" -H 'Content-Type: application/json' --data "$3" >"$WORK/last" || { cat "$WORK/last"; return 1; }; }

# Two places, and what differs.
configure() {
  local config
  config=$(python3 -c 'import json,sys; print(json.dumps({"in_flight": 2, "max_wait_seconds": 60, "contact": "ops@example.org", **json.loads(sys.argv[1])}))' "$1")
  admin PUT plugins/00000000-0000-4000-8000-000000000005 "{\"name\":\"llm-queue\",\"service\":{\"name\":\"vllm\"},\"config\":$config}"
}

# call USER NAME [CURL'S…] - a call that the server knows by its name; prints the status.
call() {
  curl -sS -m 120 -o "$WORK/body.$2" -D "$WORK/headers.$2" -w '%{http_code}' "$PROXY_URL/v1/${PATH_OF_CALL:-chat/completions}" \
    -H "X-API-Key: sk-$1" -H "X-Call: $2" -H 'Content-Type: application/json' --data "{\"model\":\"$2\",\"max_tokens\":20}" "${@:3}"
}
# The same in the background; the status comes into a file.
begin() { call "$@" >"$WORK/status.$2" 2>/dev/null 3>&- & }
# hang_up PID - the curl of a call that was begun ends.
hang_up() { pkill -P "$1"; }

wait_for() { for _ in $(seq 600); do if "$@"; then return 0; fi; sleep 0.1; done; echo "in vain: $*"; cat "$WORK/up/sync"; return 1; }

# Whether the node tells the collector of so many: in flight, waiting.
is_told() { python3 -c 'import json,sys; q = json.load(open(sys.argv[1])).get("queue", {}).get("models", {}).get("default", {"in_flight": 0, "waiting": 0}); sys.exit([q["in_flight"], q["waiting"]] != [int(n) for n in sys.argv[2:]])' \
  "$WORK/up/sync" "$1" "$2" 2>/dev/null; }
told() { if [ "$1" = '{}' ]; then wait_for is_told 0 0; else cat "$WORK/up/sync"; fi; }
# Names of the calls that the server got, in order.
order() { python3 -c 'import json,sys; print(*[json.loads(line)["model"] for line in open(sys.argv[1])])' "$WORK/up/asked"; }
# Whether the node has the limits as they were set.
knows_limits() { python3 -c 'import json,sys; told = json.load(open(sys.argv[1])).get("quota", {}).get("revision", "null"); sys.exit(json.loads(told) != json.load(open(sys.argv[2])))' \
  "$WORK/up/sync" "$WORK/up/limits.json" 2>/dev/null; }
# The server answers a call that it holds.
answer() { touch "$WORK/up/go.$1"; }
got() { [ "$(wc -l <"$WORK/up/asked")" = "$1" ]; }
ended() { [ "$(cat "$WORK/status.$1" 2>/dev/null)" = "$2" ]; }
# Whether a Python expression is true of the entry of a call.
says() { python3 -c 'import json,sys; sys.exit(not any(eval(sys.argv[3], {"e": e, "q": e["llm"].get("queue_ms")}) for e in map(json.loads, open(sys.argv[1])) if e["request"]["headers"].get("x-call") == sys.argv[2]))' \
  "$WORK/up/entries" "$1" "$2"; }

@test "calls that find a place do not wait, and what the server answers without its model needs none" {
  begin bob t1-a
  begin bob t1-b
  wait_for got 2
  wait_for is_told 2 0
  begin alice t1-c
  wait_for is_told 2 1
  rm "$WORK/up/hold"
  for name in a b c; do wait_for ended "t1-$name" 200; done
  wait_for says t1-a 'q is None'
  wait_for says t1-b 'q is None'
  wait_for says t1-c 'q > 0'
  touch "$WORK/up/hold"
  begin bob t1-d
  begin bob t1-e
  wait_for got 5
  PATH_OF_CALL=messages/count_tokens begin alice t1-f
  wait_for got 6
}

@test "who holds nothing is served before the calls of somebody who holds all" {
  for number in 1 2 3 4 5 6; do begin bob "t2-b$number"; done
  wait_for got 2
  wait_for is_told 2 4
  begin alice t2-alice
  wait_for is_told 2 5
  # One place comes free, and nothing else happens.
  answer "$(order | cut -d' ' -f1)"
  wait_for got 3
  [ "$(order | cut -d' ' -f3)" = t2-alice ] || { order; false; }
  rm "$WORK/up/hold"
  for number in 1 2 3 4 5 6; do wait_for ended "t2-b$number" 200; done
  wait_for ended t2-alice 200
  [ "$(order | wc -w)" = 7 ]
  python3 -c 'import json,sys; q = json.load(open(sys.argv[1]))["queue"]; assert set(q) == {"models", "waiting"}, q' "$WORK/up/sync"
}

@test "weights are shares, and batch takes what is left" {
  begin bob t3-x
  begin carol t3-y
  wait_for is_told 2 0
  begin nightly t3-batch
  wait_for is_told 2 1
  begin bob t3-bob
  wait_for is_told 2 2
  begin heavy t3-heavy
  wait_for is_told 2 3
  answer t3-x
  wait_for got 3
  answer t3-y
  wait_for got 4
  wait_for is_told 2 1
  [[ $(order) != *t3-batch* ]] || { order; false; }
  rm "$WORK/up/hold"
  for name in x y batch bob heavy; do wait_for ended "t3-$name" 200; done
}

@test "too many calls that wait, or one that waits too long, are 429 in the shape of their SDK" {
  configure '{"max_waiting_per_user":1,"max_waiting":2}'
  begin bob t4-a
  begin bob t4-b
  wait_for is_told 2 0
  begin bob t4-c
  wait_for is_told 2 1
  [ "$(call bob t4-d)" = 429 ]
  grep -qi '^retry-after: [1-9]' "$WORK/headers.t4-d"
  python3 - "$WORK/body.t4-d" <<'PY'
import json, sys
error = json.load(open(sys.argv[1]))["error"]
assert error["code"] == "rate_limit_exceeded", error
assert error["message"].startswith("The call was not served: 1 of your calls wait for the model server already"), error
assert "ops@example.org" in error["message"], error
PY
  wait_for says t4-d 'e["llm"].get("refused_by") == "queue" and e["response"]["status"] == 429'
  begin carol t4-e
  wait_for is_told 2 2
  [ "$(PATH_OF_CALL=messages call alice t4-f)" = 429 ]
  python3 -c 'import json,sys; b = json.load(open(sys.argv[1])); assert b["type"] == "error" and b["error"]["type"] == "rate_limit_error", b' "$WORK/body.t4-f"
  configure '{"max_wait_seconds":0.3}'
  [ "$(call alice t4-g)" = 429 ]
  grep -q 'no place for it came free' "$WORK/body.t4-g"
  wait_for says t4-g 'q >= 300'
  got 2
}

@test "who hangs up while he waits takes no place when it is his turn, and leaves a row" {
  begin bob t5-a
  begin bob t5-b
  wait_for is_told 2 0
  begin alice t5-gone
  wait_for is_told 2 1
  hang_up $!
  begin carol t5-c
  wait_for is_told 2 2
  rm "$WORK/up/hold"
  wait_for ended t5-c 200
  wait_for says t5-gone 'e["response"]["status"] == 499 and q > 0'
  wait_for is_told 0 0
}

@test "a call whose client goes while it is served gives its place back" {
  begin bob t6-a
  begin alice t6-gone
  wait_for got 2
  wait_for is_told 2 0
  hang_up $!
  wait_for is_told 1 0
  begin carol t6-c
  wait_for got 3
}

@test "the places of a worker that is killed come back" {
  begin bob t7-a
  begin bob t7-b
  begin bob t7-c
  wait_for is_told 2 1
  for worker in $(pgrep -P "$PID"); do kill -KILL "$worker"; done
  rm "$WORK/up/hold"
  : >"$WORK/up/asked"
  # The node tells of itself from the first entry of its new workers on.
  curl -sS -o /dev/null "$PROXY_URL/v1/models"
  touch "$WORK/up/hold"
  begin alice t7-d
  begin alice t7-e
  wait_for got 2
  wait_for is_told 2 0
}

@test "a reload keeps count of calls that go on, and wakes those that wait" {
  begin bob t8-a
  begin bob t8-b
  wait_for is_told 2 0
  begin bob t8-c
  wait_for is_told 2 1
  kill -HUP "$PID"
  curl -sS -o /dev/null "$PROXY_URL/v1/models"
  begin alice t8-d
  wait_for is_told 2 2
  got 2
  rm "$WORK/up/hold"
  for name in a b c d; do wait_for ended "t8-$name" 200; done
}

@test "vLLM is told who is due first: the class, then who had fewer tokens" {
  rm "$WORK/up/hold"
  configure '{"priority":true}'
  [ "$(call alice t9-a -H 'X-Tokens: 600,400' -H 'X-Vllm-Priority: -7')" = 200 ]
  [ "$(call alice t9-b)" = 200 ]
  [ "$(call carol t9-c)" = 200 ]
  [ "$(call nightly t9-d)" = 200 ]
  python3 - "$WORK/up/priorities" <<'PY'
import sys
first, second, other, batch = [int(line) for line in open(sys.argv[1])][-4:]
assert first == 0 and 900 < second <= 1000 and other == 0 and batch >= 1000000, (first, second, other, batch)
PY
}

@test "who is over a limit that waits is served after all others, and refused where no call waits" {
  printf '{"limits":[{"id":1,"subject":"user","name":"carol","models":"%%","unit":"calls","currency":null,"per":"day","amount":0,"mode":"wait"}]}' \
    >"$WORK/up/limits.json"
  admin PUT plugins/00000000-0000-4000-8000-000000000004 '{"name":"llm-quota","service":{"name":"vllm"},"config":{}}'
  wait_for knows_limits
  begin carol t10-alone
  wait_for got 1
  begin bob t10-bob
  wait_for got 2
  begin carol t10-carol
  wait_for is_told 2 1
  begin nightly t10-batch
  wait_for is_told 2 2
  begin bob t10-b
  wait_for is_told 2 3
  answer t10-alone
  wait_for got 3
  answer t10-bob
  answer t10-b
  wait_for got 4
  [ "$(order | cut -d' ' -f3,4)" = "t10-b t10-batch" ] || { order; false; }
  rm "$WORK/up/hold"
  for name in alone bob carol batch b; do wait_for ended "t10-$name" 200; done
  wait_for says t10-carol 'q > 0'

  touch "$WORK/up/hold"
  begin bob t10-last
  admin DELETE plugins/00000000-0000-4000-8000-000000000005 ''
  [ "$(call carol t10-refused)" = 429 ]
  grep -q 'Quota exceeded: user carol may use 0 calls per day' "$WORK/body.t10-refused"
  rm "$WORK/up/hold"
  wait_for ended t10-last 200
}

@test "no error of a plugin is in the log" {
  ! grep -E '\[error\]|\[crit\]|\[alert\]' "$WORK/host/logs/error.log" | grep -v 'exited on signal 9' || false
}
