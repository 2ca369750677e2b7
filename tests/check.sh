#!/usr/bin/env bash
# Runs every check of the project. Stops at the first that fails.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s\n' "$*"; }

step "tools"
tests/tools.sh test

step "shellcheck"
git ls-files -z '*.sh' .ci/run | xargs -0 shellcheck

step "cargo fmt"
cargo fmt --all --check

step "cargo clippy"
cargo clippy --workspace --all-targets --locked --quiet -- -D warnings

step "cargo test"
cargo test --workspace --locked --quiet
