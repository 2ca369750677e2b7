#!/usr/bin/env bash
# `make bench-fair`: what a user who floods a simulated model server costs the others, with and without llm-queue, in simulated time and
# through the nginx test host, and what the plugin costs. Twelve minutes; prints a table, writes target/bench-fair.json. tests/bench/README.md says how to read it.
#
# Arguments go to the benchmark: tests/bench-fair.sh --load 1 --seconds 10
set -euo pipefail
cd "$(dirname "$0")/.."

tests/tools.sh bench
if [ $# = 0 ]; then
    tests/bench/worker.sh tests/bench/queue.lua
    luajit tests/bench/fair_simulated.lua
fi
target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target"
work=$(mktemp -d)
server=''
# The trap calls it.
# shellcheck disable=SC2317
finish() {
    tests/nginx-host/run.sh stop --prefix "$work/host" 2>/dev/null || true
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT

python3 tests/bench/fair_server.py >"$work/port" &
server=$!
for _ in $(seq 100); do [ -s "$work/port" ] && break; sleep 0.05; done

NGINX_HOST_WATCH_PID=$$ KONG_PLUGINS=bundled,llm-audit,llm-queue tests/nginx-host/run.sh start --prefix "$work/host" --workers 2 \
    --log-level error --proxy 127.0.0.1:0 --admin 127.0.0.1:0 --status 127.0.0.1:0 >/dev/null
# shellcheck disable=SC1091
. "$work/host/host.env"
export PROXY_URL ADMIN_URL
status=0
python3 tests/bench/fair.py --server "$(<"$work/port")" --output "$target/bench-fair.json" "$@" || status=$?
tail -n 20 "$work/host/logs/error.log" >&2
exit "$status"
