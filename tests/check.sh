#!/usr/bin/env bash
# Runs every check of the project. Stops at the first that fails.
set -euo pipefail
cd "$(dirname "$0")/.."

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

step "cargo fmt"
cargo fmt --all --check

step "cargo clippy"
cargo clippy --workspace --all-targets --locked --quiet -- -D warnings

step "bats: the nginx test host"
bats tests/nginx-host

step "bats: the start of a real Kong"
bats tests/kong

step "bats: the scripts that configure Kong, install and operate"
# Without stack.bats, a whole installation in Docker: make test-deploy.
find deploy/tests -name '*.bats' ! -name stack.bats -print0 | sort -z | xargs -0 bats

step "cargo test"
cargo test --workspace --locked --quiet
step "done"
