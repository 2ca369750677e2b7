#!/usr/bin/env bash
# `make demo`: the whole path from a client to a row. Users, a gateway, a simulated vLLM, the collector, a private PostgreSQL with
# a made-up week of an office in it.
#
#   DATABASE_URL   use this database for the rows instead of a private one; no week is made up in it
#   KONG_IMAGE     the image of Kong to use when Docker has it (kong:3.9)
#   DEMO_ONCE=1    end after printing, instead of waiting for Ctrl-C
#
# The gateway is a real Kong when Docker has the image or there is a `kong` command, else the project's nginx test host.
set -euo pipefail
cd "$(dirname "$0")/.."

demo=$PWD/.demo/$$
target=${CARGO_TARGET_DIR:-target}/debug
pids=()
cluster=
gateway=

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
fatal() { echo "demo: $*" >&2; exit 1; }

# --- what runs, and its end ------------------------------------------------------------

cleanup() {
    trap - INT TERM
    [ -z "$gateway" ] || "$gateway" stop --prefix "$demo/gateway" || true
    local pid
    for pid in "${pids[@]}"; do
        { kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null; } || true
    done
    [ -z "$cluster" ] || as_server_user "$pg_bin/pg_ctl" -D "$cluster/data" -m fast -s stop || true
    rm -rf "$demo" ${cluster:+"$cluster"}
    rmdir .demo 2>/dev/null || true
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# PostgreSQL refuses to run as root.
server_user=$(id -un)
if [ "$(id -u)" -eq 0 ]; then
    server_user=nobody
    ! id postgres >/dev/null 2>&1 || server_user=postgres
fi
as_server_user() {
    if [ "$(id -u)" -eq 0 ]; then (cd / && runuser -u "$server_user" -- "$@"); else "$@"; fi
}

# Sets server, the private server's URL without a database.
start_postgresql() {
    local initdb port
    initdb=$(compgen -G '/usr/lib/postgresql/*/bin/initdb' | sort -V | tail -n 1)
    [ -n "$initdb" ] || fatal "no initdb under /usr/lib/postgresql"
    pg_bin=$(dirname "$initdb")
    cluster=$demo/postgresql
    mkdir -p "$cluster"
    chown "$server_user" "$cluster"
    # A clone below a home folder that is closed to others is no place for a server that runs as another user.
    if ! as_server_user test -w "$cluster"; then
        rm -rf "$cluster"
        cluster=$(mktemp -d /tmp/llm-demo.XXXXXX)
        chown "$server_user" "$cluster"
        echo "the server's user cannot reach this folder: its files are in $cluster"
    fi
    as_server_user "$pg_bin/initdb" -D "$cluster/data" -U postgres -A trust -E UTF8 --no-sync >/dev/null
    # Another program may take the port between looking and listening: then look again.
    for _ in 1 2 3 4 5; do
        port=$(free_port)
        if as_server_user "$pg_bin/pg_ctl" -D "$cluster/data" -s -w -l "$cluster/log" \
            -o "-p $port -k $cluster -c listen_addresses=127.0.0.1" start >/dev/null 2>&1; then
            server=postgres://postgres@127.0.0.1:$port
            return
        fi
    done
    cat "$cluster/log" >&2
    fatal "PostgreSQL does not start"
}

new_database() { psql -q "$server/postgres" -c "CREATE DATABASE $1"; }

# A port that nobody listens on now; bash can connect, but not listen.
free_port() {
    local port
    while port=$((20000 + RANDOM % 20000)); (: </dev/tcp/127.0.0.1/$port) 2>/dev/null; do :; done
    echo "$port"
}

# start NAME COMMAND… - in the background; sets address, where it says that it listens.
start() {
    local name=$1
    shift
    "$@" 2>"$demo/$name.log" &
    pids+=($!)
    for _ in $(seq 100); do
        address=$(sed -n 's/.*listening on \([0-9.]*:[0-9]*\).*/http:\/\/\1/p' "$demo/$name.log")
        [ -z "$address" ] || return 0
        kill -0 "${pids[-1]}" 2>/dev/null || break
        sleep 0.1
    done
    cat "$demo/$name.log" >&2
    fatal "$name does not start"
}

start_gateway() {
    gateway=$PWD/$1
    "$gateway" start --prefix "$demo/gateway" --proxy 127.0.0.1:0 --admin 127.0.0.1:0 --status 127.0.0.1:0 >"$demo/gateway.env" \
        2>"$demo/gateway.log" || { cat "$demo/gateway.log" >&2 && fatal "the gateway does not start"; }
    # Lines NAME=value.
    # shellcheck disable=SC1091
    . "$demo/gateway.env"
    export KONG_ADMIN_URL=$ADMIN_URL KONG_PROXY_URL=$PROXY_URL
}

# --- a client --------------------------------------------------------------------------

# chat KEY MESSAGE [STREAM] - the body of the answer.
chat() {
    local body
    body=$(printf '{"model":"qwen-tiny","messages":[{"role":"user","content":"%s"}],"stream":%s,"temperature":0}' "$2" "${3:-false}")
    post "$1" /v1/chat/completions "$body"
}

post() {
    curl -sS -N "$KONG_PROXY_URL$2" -H "Authorization: Bearer $1" -H 'Content-Type: application/json' --data-binary "$3" "${@:4}"
}

# A call as it was recorded: recorded KEY PATH BODY.
recorded() {
    post "$1" "$2" "@tests/fixtures/vllm/$3/request.json" >/dev/null || true
}

# Prints the pieces of an answer as they arrive.
show_pieces() {
    local line
    while IFS= read -r line; do
        if [[ $line =~ \"content\":\"(([^\"\\]|\\.)*)\" ]]; then printf '%b' "${BASH_REMATCH[1]}"; fi
    done
    echo
}

key_of() { sed -n "s/^$1,//p" "$demo/keys.csv"; }

# --- the week --------------------------------------------------------------------------

# What week.env says of it.
week_calls='' busiest='' busiest_calls='' busiest_prompt_tokens='' busiest_completion_tokens=''

# Sends the week to the collector, as Kong would, and waits until all of it is rows.
send_week() {
    # shellcheck disable=SC1091
    . "$demo/week/week.env"
    local batch
    for batch in "$demo"/week/batch-*.json; do
        # 503 says that there is no room just now; Kong would send again, too.
        curl -sS --fail-with-body --retry 20 --retry-all-errors -o "$demo/answer" "$COLLECTOR_URL/log" -H 'Content-Type: application/json' \
            -H "X-Collector-Token: $COLLECTOR_TOKEN" --data-binary "@$batch" || { cat "$demo/answer" >&2 && fatal "the collector takes no entries"; }
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
    # Kong takes up to 5 s to know of a key.
    for _ in $(seq 100); do
        told=$(curl -sS "$KONG_PROXY_URL/v1/usage" -H "Authorization: Bearer $1")
        [[ $told != *'"last_30_days"'* ]] || break
        sleep 0.1
    done
    for wanted in "calls\":$busiest_calls" "prompt_tokens\":$busiest_prompt_tokens" "completion_tokens\":$busiest_completion_tokens"; do
        grep -qE "\"$wanted([,}]|$)" <<<"$told" || fatal "/v1/usage does not say \"$wanted"
    done
    told=$(curl -sS "$KONG_PROXY_URL/usage" --data-urlencode "key=$1")
    for wanted in "$busiest" "data-tokens=\"$((busiest_prompt_tokens + busiest_completion_tokens))\""; do
        [[ $told == *"$wanted"* ]] || fatal "/usage does not show $wanted"
    done
}

status_and_message() { sed -n 's/.*"message":"\(\([^"\\]\|\\.\)*\)".*/\1/p'; }

# --- steps -----------------------------------------------------------------------------

tests/tools.sh demo
real_kong=$(tests/kong/run.sh available) || { real_kong=; tests/tools.sh host; }
mkdir -p "$demo"
say "building the collector and the simulated vLLM"
cargo build --locked --package llm-collector --package gateway-tests --no-default-features --features gateway-tests/demo \
    --bin llm-collector --bin simulated-vllm --bin demo-week
collector=$target/llm-collector

if [ -z "${DATABASE_URL:-}" ] || [ -n "$real_kong" ]; then
    say "starting a private PostgreSQL"
    start_postgresql
fi
if [ -n "${DATABASE_URL:-}" ]; then
    say "using the database of DATABASE_URL"
else
    new_database llm
    DATABASE_URL=$server/llm
fi
export DATABASE_URL
# Without one the collector tells nobody what he used.
COLLECTOR_TOKEN=$(od -An -N 16 -tx1 /dev/urandom | tr -d ' \n')
export COLLECTOR_TOKEN

say "starting the simulated vLLM (recorded answers, no model), the collector and the gateway"
start simulated-vllm "$target/simulated-vllm" --listen 127.0.0.1:0
export VLLM_URL=$address
start collector "$collector" serve --listen 127.0.0.1:0 --data-dir "$demo/data"
export COLLECTOR_URL=$address
if [ -n "$real_kong" ]; then
    echo "gateway: $real_kong"
    new_database kong
    export KONG_TEST_DATABASE_URL=$server/kong
    start_gateway tests/kong/run.sh
else
    echo "gateway: the project's nginx test host with the same plugins (no Docker image ${KONG_IMAGE:-kong:3.9}, no kong command)"
    start_gateway tests/nginx-host/run.sh
fi
KONG_ACCEPT_OLD=1 AUDIT_BATCH_SECONDS=0.1 "$collector" kong apply --wait >/dev/null

say "users: 20 people in three teams, all at once; z100020 may make 3 calls an hour"
"$target/demo-week" "$demo/week"
"$collector" users import "$demo/week/users.csv" --keys "$demo/keys.csv"
"$collector" users limit z100020 3 2>/dev/null
key_z100001=$(key_of z100001)
key_z100002=$(key_of z100002)
key_z100020=$(key_of z100020)

if [ "$DATABASE_URL" = "${server:-}/llm" ]; then
    say "their last week, made up: log entries as Kong sends them, through the collector into PostgreSQL"
    send_week
    check_usage_page "$key_z100001"
    for model in qwen3-32b:0.6:2.4 deepseek-r1-distill-70b:1.2:4.8 glm-4.5-air:0.4:1.6; do
        IFS=: read -r model prompt completion <<<"$model"
        "$collector" prices set "$model" --prompt "$prompt" --completion "$completion" --currency EUR >/dev/null 2>&1
    done
    while read -ra limit; do
        "$collector" quota set "${limit[@]}" >/dev/null 2>&1
    done <"$demo/week/limits.txt"
    say "$week_calls calls. What teams used:   llm-collector report --since 7d --by team,model"
    "$collector" report --since 7d --by team,model
    say "How far limits are used:   llm-collector quota status"
    "$collector" quota status
    say "Some of the people:   llm-collector users list"
    "$collector" users list | sed 8q
fi

say "z100001 asks: What is an LLM gateway?"
chat "$key_z100001" 'What is an LLM gateway?'
echo

say "z100001 asks again, streamed; the pieces as they arrive:"
# A slower model than the one that was recorded.
post "$key_z100001" /v1/chat/completions \
    '{"model":"qwen-tiny","stream":true,"messages":[{"role":"user","content":"What is an LLM gateway?"}],"temperature":0}' \
    -H 'x-sim-chunk-delay-ms: 40' | show_pieces

say "somebody with a wrong key:"
chat sk-wrong 'What is an LLM gateway?' | status_and_message

say "z100020, call after call:"
for call in $(seq 1 15); do
    status=$(chat "$key_z100020" "Is this call number $call?" | tee "$demo/answer" | grep -c '"choices"' || true)
    if [ "$status" = 1 ]; then
        echo "call $call: answered"
    else
        echo "call $call: $(status_and_message <"$demo/answer")"
        break
    fi
    # Kong takes up to 5 s to know of a limit.
    sleep 0.3
done

# The rest of a day: other languages, tools, other APIs, an error, a client that hangs up.
recorded "$key_z100002" /v1/chat/completions chat-multiline-zh-stream-usage
recorded "$key_z100002" /v1/chat/completions tools-auto
recorded "$key_z100001" /v1/messages messages-stream
recorded "$key_z100002" /v1/responses responses
recorded "$key_z100001" /v1/chat/completions err-bad-model
recorded "$key_z100002" /v1/embeddings emb-sdk-default-base64
post "$key_z100002" /v1/chat/completions '{"model":"qwen-tiny","stream":true,"messages":[{"role":"user","content":"Talk!"}]}' \
    -H 'x-sim-chunk-delay-ms: 100' -H 'x-sim-repeat: 100' --max-time 1 >/dev/null 2>&1 || true

# The last entries are on their way.
for _ in $(seq 100); do
    rows=$(psql "$DATABASE_URL" -Atc "SELECT count(*) FROM llm_logs WHERE aborted AND prompt = 'Talk!'")
    [ "$rows" = 0 ] || break
    sleep 0.1
done

say "the newest conversations"
psql "$DATABASE_URL" -P pager=off -c "
    SELECT to_char(started_at, 'HH24:MI:SS') AS at, consumer_username AS who, status,
           left(regexp_replace(prompt, '\s+', ' ', 'g'), 30) AS asked,
           left(regexp_replace(coalesce(response, tool_calls->0->>'name', '! ' || error), '\s+', ' ', 'g'), 44) AS answered,
           CASE WHEN aborted THEN 'broken off' WHEN stream THEN 'streamed' ELSE '' END AS how,
           completion_tokens AS tokens, latency_ms AS ms
    FROM llm_logs ORDER BY started_at DESC LIMIT 16"

say "to look at"
echo "usage page $KONG_PROXY_URL/usage"
echo "its key    $key_z100001   (of z100001; keys end with the demo)"
echo "gateway    $KONG_PROXY_URL/v1   (base_url of an SDK, with the same key)"
echo "a call     curl $KONG_PROXY_URL/v1/models -H 'Authorization: Bearer $key_z100001'"
if [ "$DATABASE_URL" = "${server:-}/llm" ]; then
    echo "database   psql $DATABASE_URL"
    echo "a command  DATABASE_URL=$DATABASE_URL $collector report --by day"
else
    echo "database   the one of DATABASE_URL"
fi
echo "admin      $KONG_ADMIN_URL"
echo "metrics    $COLLECTOR_URL/metrics"
if [ -z "${DEMO_ONCE:-}" ]; then
    say "running; Ctrl-C ends it and cleans up"
    wait "${pids[-1]}"
fi
