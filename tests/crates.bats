#!/usr/bin/env bats
# No package of the workspace names a crate that it does not use. tests/crates.py looks.

setup() {
    CRATES=$BATS_TEST_DIRNAME/crates.py
    small=$BATS_TEST_TMPDIR/workspace
    mkdir -p "$small/one/src" "$small/one/tests"
    printf '[workspace]\nmembers = ["one"]\n[workspace.dependencies]\nserde-json = "1"\ntokio = "1"\nlog = "1"\n' >"$small/Cargo.toml"
    printf '[dependencies]\nserde-json.workspace = true\nlog.workspace = true\n[dev-dependencies]\ntokio.workspace = true\n' >"$small/one/Cargo.toml"
    printf 'use log;\nfn a() { serde_json::json!({}) }\n' >"$small/one/src/lib.rs"
    printf 'use tokio::time;\n' >"$small/one/tests/a.rs"
}

# finds TEXT - the one fault there is.
finds() {
    run python3 "$CRATES" "$small"
    [ "$status" -eq 1 ]
    [ "$output" = "$1" ] || { echo "$output" >&2 && false; }
}

@test "every crate that a package names is used" {
    run python3 "$CRATES"
    echo "$output" && [ "$status" -eq 0 ]
}

@test "a crate that nothing uses is found, of each kind" {
    run python3 "$CRATES" "$small"
    [ "$status" -eq 0 ] && [ -z "$output" ]
    : >"$small/one/tests/a.rs"
    finds 'one/Cargo.toml: nothing uses tokio (dev-dependencies)'
    printf 'use tokio as t;\n' >"$small/one/tests/a.rs"
    # A name that only ends so is another one.
    printf 'use log;\nfn a() { not_serde_json::json!({}) }\n' >"$small/one/src/lib.rs"
    finds 'one/Cargo.toml: nothing uses serde-json (dependencies)'
    sed -i '/serde-json/d' "$small/one/Cargo.toml"
    finds 'Cargo.toml: no package of the workspace has serde-json'
}
