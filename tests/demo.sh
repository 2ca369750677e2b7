#!/usr/bin/env bash
# `make demo`: a private PostgreSQL, the collector, and the traffic that a real Kong recorded.
#
#   DATABASE_URL   use this database instead of a private one
#   DEMO_ONCE=1    end after printing, instead of waiting for Ctrl-C
set -euo pipefail
cd "$(dirname "$0")/.."

demo=$PWD/.demo/$$
bin=target/release/llm-collector
collector_pid=
cluster=

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
fatal() { echo "demo: $*" >&2; exit 1; }

cleanup() {
    [ -z "$collector_pid" ] || { kill "$collector_pid" 2>/dev/null && wait "$collector_pid" 2>/dev/null; } || true
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
            DATABASE_URL=postgres://postgres@127.0.0.1:$port/llm
            psql -q "postgres://postgres@127.0.0.1:$port/postgres" -c 'CREATE DATABASE llm'
            return
        fi
    done
    cat "$cluster/log" >&2
    fatal "PostgreSQL does not start"
}

# A port that nobody listens on now; bash can connect, but not listen.
free_port() {
    local port
    while port=$((20000 + RANDOM % 20000)); (: </dev/tcp/127.0.0.1/$port) 2>/dev/null; do :; done
    echo "$port"
}

start_collector() {
    "$bin" serve --listen 127.0.0.1:0 --data-dir "$demo/data" 2>"$demo/collector.log" &
    collector_pid=$!
    for _ in $(seq 100); do
        collector=$(sed -n 's/.*listening on \([0-9.:]*\).*/http:\/\/\1/p' "$demo/collector.log")
        [ -z "$collector" ] || return 0
        kill -0 "$collector_pid" 2>/dev/null || break
        sleep 0.1
    done
    cat "$demo/collector.log" >&2
    fatal "the collector does not start"
}

tests/tools.sh demo
mkdir -p "$demo"
say "building the collector"
cargo build --release --locked --package llm-collector

if [ -n "${DATABASE_URL:-}" ]; then
    say "using the database of DATABASE_URL"
else
    say "starting a private PostgreSQL"
    start_postgresql
fi
export DATABASE_URL
say "starting the collector"
start_collector

say "sending recorded batches of a real Kong 3.9, as its http-log plugin does"
for batch in tests/fixtures/kong/batches/*.json; do
    printf '%-36s' "$(basename "$batch")"
    curl -sS -H 'Content-Type: application/json' --data-binary "@$batch" "$collector/log"
    echo
done

say "the newest conversations"
psql "$DATABASE_URL" -P pager=off -c "
    SELECT to_char(started_at, 'HH24:MI:SS') AS at, consumer_username AS who, model,
           left(regexp_replace(prompt, '\s+', ' ', 'g'), 36) AS asked,
           left(regexp_replace(coalesce(response, '! ' || error), '\s+', ' ', 'g'), 40) AS answered,
           completion_tokens AS tokens, latency_ms AS ms
    FROM llm_logs WHERE prompt IS NOT NULL ORDER BY started_at DESC LIMIT 12"

say "tokens per user and model"
psql "$DATABASE_URL" -P pager=off -c "
    SELECT consumer_username AS who, model, count(*) AS calls, count(*) FILTER (WHERE status >= 400) AS errors,
           sum(prompt_tokens) AS prompt_tokens, sum(completion_tokens) AS completion_tokens
    FROM llm_logs GROUP BY 1, 2 ORDER BY 6 DESC NULLS LAST"

say "addresses"
echo "metrics    $collector/metrics"
echo "entries    $collector/log"
if [ -n "$cluster" ]; then
    echo "database   psql $DATABASE_URL"
else
    echo "database   the one of DATABASE_URL"
fi
if [ -z "${DEMO_ONCE:-}" ]; then
    say "running; Ctrl-C ends it and cleans up"
    wait "$collector_pid"
fi
