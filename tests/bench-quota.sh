#!/usr/bin/env bash
# `make bench-quota`: what limits cost a worker of the gateway, how far they are passed by many calls at once on one node and on two, and
# what telling them to the nodes takes. One run, one table; a PostgreSQL, nodes and a collector of its own. Two minutes once built.
set -euo pipefail
cd "$(dirname "$0")/.."

tests/tools.sh bench
cargo build --locked --package llm-collector --package gateway-tests --features gateway-tests/bench --bin llm-collector --bin bench
echo "processor time of a worker of nginx, a call with three limits of 5,000 users; 10 µs are wanted at most"
tests/bench/worker.sh tests/bench/quota.lua
echo
"${CARGO_TARGET_DIR:-target}/debug/bench" quota
