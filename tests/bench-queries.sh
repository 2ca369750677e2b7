#!/usr/bin/env bash
# `make bench-queries`: times every SQL query of the dashboards over ten million rows, on a PostgreSQL of its own. Plans go to
# target/bench-queries.txt; a query that takes longer than a second makes it fail. Needs some 15 GB in TMPDIR.
#
#   ROWS=10000000   how many rows; a million takes about two minutes
#   SEARCH=1        index texts too, and look for some over all of the time; takes half an hour more for ten million rows
set -euo pipefail
cd "$(dirname "$0")/.."

tests/tools.sh bench
cargo build --locked --package gateway-tests --features bench --bin bench
"${CARGO_TARGET_DIR:-target}/debug/bench" queries --rows "${ROWS:-10000000}" ${SEARCH:+--search-index}
