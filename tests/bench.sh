#!/usr/bin/env bash
# `make bench`: measures the collector; tests/bench/README.md says what, and how to read it. Takes about five minutes once built.
#
#   BENCH_PYTHON=   (empty) leaves the Python collector out, for hosts that reach no package index
# Arguments go to the benchmark: tests/bench.sh --rounds 1
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

target=${CARGO_TARGET_DIR:-target}
venv=$target/bench-venv

tests/tools.sh bench
say "building"
cargo build --release --locked --package llm-collector --package gateway-tests --features gateway-tests/bench \
    --bin llm-collector --bin bench

python=${BENCH_PYTHON-$venv/bin/python}
if [ "$python" = "$venv/bin/python" ] && ! "$python" -c 'import flask, psycopg2' 2>/dev/null; then
    say "installing Flask and psycopg2 for the Python collector into $venv"
    /usr/bin/python3 -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r tests/bench/requirements.txt
fi

say "decode and extract alone"
cargo bench --locked --package llm-collector --bench decode

say "collector, \\copy and Python collector on one PostgreSQL; then the gateway"
"$target/release/bench" run ${python:+--python "$python"} "$@"
