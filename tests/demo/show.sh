#!/usr/bin/env bash
# show.sh - what a demo shows once everything runs: users, a made-up week, some calls, their rows, and where to look. Called by
# ../demo.sh, and by the container `demo` of deploy/demo/compose.yaml.
#
#   DATABASE_URL, COLLECTOR_URL, COLLECTOR_TOKEN, KONG_ADMIN_URL, KONG_PROXY_URL, VLLM_URL    what runs, as this program reaches it
#   DEMO_FOLDER      for files that end with the demo; keys are among them
#   DEMO_PROGRAMS    folder of llm-collector and demo-week
#   DEMO_WEEK        not empty: the database is the demo's own, and gets the made-up week
#   DEMO_SUPERUSER   URL of PostgreSQL's superuser, to let Grafana read; empty where there is no Grafana
#   DEMO_GATEWAY     the gateway as a browser reaches it; KONG_PROXY_URL by default
#   DEMO_MORE        more lines of what to look at
set -euo pipefail
cd "$(dirname "$0")/../.."

collector=$DEMO_PROGRAMS/llm-collector
gateway=${DEMO_GATEWAY:-$KONG_PROXY_URL}

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then bold=$'\e[1m' plain=$'\e[0m'; else bold='' plain=''; fi
say() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
fatal() { echo "demo: $*" >&2; exit 1; }

# --- a client --------------------------------------------------------------------------

# post KEY PATH BODY [CURL'S OPTIONS…] - the body of the answer.
post() {
    curl -q -sS -N --noproxy '*' "$KONG_PROXY_URL$2" -H "Authorization: Bearer $1" -H 'Content-Type: application/json' --data-binary "$3" "${@:4}"
}

get() { curl -q -sS --noproxy '*' "$KONG_PROXY_URL$2" -H "Authorization: Bearer $1"; }

# question TEXT [MORE] - a request for a chat; MORE are further members of it.
question() {
    printf '{"model":"%s",%s"messages":[{"role":"user","content":"%s"}],"temperature":0}' "$model" "${2:+$2,}" "$1"
}

# A call as it was recorded: recorded KEY PATH NAME.
recorded() { post "$1" "$2" "@tests/fixtures/vllm/$3/request.json" >/dev/null || true; }

# text_of MEMBER - a JSON text of standard input, the first of that name.
text_of() {
    local line
    line=$(cat)
    if [[ $line =~ \"$1\":\"(([^\"\\]|\\.)*)\" ]]; then printf '%b\n' "${BASH_REMATCH[1]}"; else printf '%s\n' "$line"; fi
}

# Prints the pieces of a streamed answer as they arrive.
show_pieces() {
    local line
    while IFS= read -r line; do
        if [[ $line =~ \"content\":\"(([^\"\\]|\\.)*)\" ]]; then printf '%b' "${BASH_REMATCH[1]}"; fi
    done
    echo
}

key_of() { sed -n "s/^$1,//p" "$DEMO_FOLDER/keys.csv"; }

wait_for() {
    for _ in $(seq 600); do
        ! curl -q -sf --noproxy '*' -o /dev/null --max-time 2 "$1" || return 0
        sleep 0.1
    done
    fatal "nothing answers at $1"
}

# The first model that a user may use. Kong takes up to 5 s to know of a key.
find_model() {
    local answer
    for _ in $(seq 100); do
        answer=$(get "$1" /v1/models) || true
        model=$(sed -n 's/.*"data" *: *\[ *{[^}[]*"id" *: *"\([^"\\]*\)".*/\1/p' <<<"${answer//$'\n'/ }")
        [ -z "$model" ] || return 0
        sleep 0.1
    done
    fatal "/v1/models names no model: $answer"
}

# --- the week --------------------------------------------------------------------------

# What week.env says of it.
week_calls='' busiest='' busiest_calls='' busiest_prompt_tokens='' busiest_completion_tokens=''

# Sends the week to the collector, as Kong would, and waits until all of it is rows.
send_week() {
    # shellcheck disable=SC1091
    . "$DEMO_FOLDER/week/week.env"
    local batch
    for batch in "$DEMO_FOLDER"/week/batch-*.json; do
        # 503 says that there is no room just now; Kong would send again, too.
        curl -q -sS --noproxy '*' --fail-with-body --retry 20 --retry-all-errors -o "$DEMO_FOLDER/answer" "$COLLECTOR_URL/log" -H 'Content-Type: application/json' \
            -H "X-Collector-Token: $COLLECTOR_TOKEN" --data-binary "@$batch" || { cat "$DEMO_FOLDER/answer" >&2 && fatal "the collector takes no entries"; }
        rm "$batch"
    done
    for _ in $(seq 300); do
        [ "$(psql "$DATABASE_URL" -Atc "SELECT count(*) FROM llm_logs WHERE consumer_username <> 'anonymous'")" -lt "$week_calls" ] || return 0
        sleep 0.1
    done
    fatal "the collector has not stored all of the week"
}

# What the busiest user is told of himself has to be what the calls were made of.
check_usage_page() {
    local told wanted
    for _ in $(seq 100); do
        told=$(get "$1" /v1/usage)
        [[ $told != *'"last_30_days"'* ]] || break
        sleep 0.1
    done
    for wanted in "calls\":$busiest_calls" "prompt_tokens\":$busiest_prompt_tokens" "completion_tokens\":$busiest_completion_tokens"; do
        grep -qE "\"$wanted([,}]|$)" <<<"$told" || fatal "/v1/usage does not say \"$wanted"
    done
    told=$(curl -q -sS --noproxy '*' "$KONG_PROXY_URL/usage" --data-urlencode "key=$1")
    for wanted in "$busiest" "data-tokens=\"$((busiest_prompt_tokens + busiest_completion_tokens))\""; do
        [[ $told == *"$wanted"* ]] || fatal "/usage does not show $wanted"
    done
}

show_week() {
    say "their last week, made up: log entries as Kong sends them, through the collector into PostgreSQL"
    send_week
    check_usage_page "$key_z100001"
    local price limit
    for price in qwen3-32b:0.6:2.4 deepseek-r1-distill-70b:1.2:4.8 glm-4.5-air:0.4:1.6; do
        IFS=: read -ra price <<<"$price"
        "$collector" prices set "${price[0]}" --prompt "${price[1]}" --completion "${price[2]}" --currency EUR >/dev/null 2>&1
    done
    while read -ra limit; do
        "$collector" quota set "${limit[@]}" >/dev/null 2>&1
    done <"$DEMO_FOLDER/week/limits.txt"
    say "$week_calls calls. What teams used:   llm-collector report --since 7d --by team,model"
    "$collector" report --since 7d --by team,model
    say "How far limits are used:   llm-collector quota status"
    "$collector" quota status
    say "Some of the people:   llm-collector users list"
    "$collector" users list | sed 8q
}

# --- steps -----------------------------------------------------------------------------

wait_for "$COLLECTOR_URL/readyz"
wait_for "$KONG_ADMIN_URL/status"
KONG_ACCEPT_OLD=1 AUDIT_BATCH_SECONDS=0.1 "$collector" kong apply --wait >/dev/null
[ -z "${DEMO_SUPERUSER:-}" ] || psql -q "$DEMO_SUPERUSER" -f deploy/postgresql/grants.sql >/dev/null

say "users: 20 people in three teams, all at once; z100020 may make 3 calls an hour"
"$DEMO_PROGRAMS/demo-week" "$DEMO_FOLDER/week"
"$collector" users import "$DEMO_FOLDER/week/users.csv" --keys "$DEMO_FOLDER/keys.csv"
"$collector" users limit z100020 3 2>/dev/null
key_z100001=$(key_of z100001)
key_z100002=$(key_of z100002)
key_z100020=$(key_of z100020)
# Not by z100001, whose calls are counted below.
find_model "$key_z100002"
[ -z "${DEMO_WEEK:-}" ] || show_week

say "z100001 asks: What is an LLM gateway?"
post "$key_z100001" /v1/chat/completions "$(question 'What is an LLM gateway?')" | text_of content

say "z100001 asks again, streamed; the pieces as they arrive:"
# A slower model than the one that was recorded. A real one does not know this header.
post "$key_z100001" /v1/chat/completions "$(question 'What is an LLM gateway?' '"stream":true')" -H 'x-sim-chunk-delay-ms: 40' | show_pieces

say "somebody with a wrong key is told:"
post sk-wrong /v1/chat/completions "$(question 'What is an LLM gateway?')" | text_of message

say "z100020, who may make 3 calls an hour, makes call after call:"
for call in $(seq 1 15); do
    answer=$(post "$key_z100020" /v1/chat/completions "$(question "Is this call number $call?" '"max_tokens":20')")
    if [[ $answer == *'"choices"'* ]]; then
        echo "call $call: answered"
    else
        echo "call $call: $(text_of message <<<"$answer")"
        break
    fi
    # Kong takes up to 5 s to know of a limit.
    sleep 0.3
done

# The rest of a day: other languages, tools, other APIs, an error, a client that hangs up.
# Only the simulated model server, whose model this is, knows the recordings.
if [ "$model" = qwen-tiny ]; then
    recorded "$key_z100002" /v1/chat/completions chat-multiline-zh-stream-usage
    recorded "$key_z100002" /v1/chat/completions tools-auto
    recorded "$key_z100001" /v1/messages messages-stream
    recorded "$key_z100002" /v1/responses responses
    recorded "$key_z100001" /v1/chat/completions err-bad-model
    recorded "$key_z100002" /v1/embeddings emb-sdk-default-base64
fi
post "$key_z100002" /v1/chat/completions "$(question 'Talk!' '"stream":true')" \
    -H 'x-sim-chunk-delay-ms: 100' -H 'x-sim-repeat: 100' --max-time 1 >/dev/null 2>&1 || true

# The last entries are on their way.
for _ in $(seq 100); do
    rows=$(psql "$DATABASE_URL" -Atc "SELECT count(*) FROM llm_logs WHERE prompt = 'Talk!'")
    [ "$rows" = 0 ] || break
    sleep 0.1
done

say "the newest rows of the table llm_logs"
psql "$DATABASE_URL" -P pager=off -P footer=off -c "
    SELECT to_char(started_at, 'HH24:MI:SS') AS at, consumer_username AS who, status,
           left(regexp_replace(prompt, '\s+', ' ', 'g'), 30) AS asked,
           left(regexp_replace(coalesce(response, tool_calls->0->>'name', '! ' || error), '\s+', ' ', 'g'), 44) AS answered,
           CASE WHEN aborted THEN 'broken off' WHEN stream THEN 'streamed' ELSE '' END AS how,
           completion_tokens AS tokens, latency_ms AS ms
    FROM llm_logs WHERE prompt <> '' OR status >= 400 ORDER BY started_at DESC LIMIT 16"

say "to look at"
cat <<LINES
usage page $gateway/usage
its key    $key_z100001   (of z100001; keys end with the demo)
gateway    $gateway/v1   (base_url of an SDK, with the same key)
a call     curl $gateway/v1/chat/completions -H 'Authorization: Bearer $key_z100001' -H 'Content-Type: application/json' \\
             -d '$(question 'What is an LLM gateway?')'
LINES
[ -z "${DEMO_MORE:-}" ] || printf '%s\n' "$DEMO_MORE"
