#!/usr/bin/env bats
# What the documents say is there: links, tests, make targets, commands with their options, settings. tests/docs.py looks.
# Wants the collector built: it is asked for --help.

# Backticks are Markdown's here.
# shellcheck disable=SC2016

setup() {
    DOCS=$BATS_TEST_DIRNAME/docs.py
    cd "$BATS_TEST_DIRNAME/.." || return
    # A project in which everything is right, for tests that break one thing.
    small=$BATS_TEST_TMPDIR/project
    mkdir -p "$small/docs" "$small/deploy" "$small/tests"
    cp deploy/gateway "$small/deploy/gateway"
    ln -s "$PWD/deploy/lib" "$small/deploy/lib"
    printf 'test:\n\techo\n' >"$small/Makefile"
    printf 'fn a_call_becomes_a_row() {}\n' >"$small/tests/calls.rs"
    printf '# What it is for.\nVLLM_URL=http://127.0.0.1:8000\n' >"$small/deploy/gateway.env"
    printf '# A page\n\n## The *first* `part`, so to say\n\n## 安装（离线）\n' >"$small/docs/page.md"
    readme '[Page](docs/page.md)'
}

readme() { printf '%s\n' '# Title' '' "$@" >"$small/README.md"; }

# finds CHECK TEXT - the check fails and says this.
finds() {
    run python3 "$DOCS" "$1" "$small"
    [ "$status" -eq 1 ]
    [[ $output == *"$2"* ]] || { echo "$output" >&2 && false; }
}

# passes CHECK
passes() {
    run python3 "$DOCS" "$1" "$small"
    [ "$status" -eq 0 ] || { echo "$output" >&2 && false; }
}

@test "every link and anchor leads somewhere, and every page is linked" {
    run python3 "$DOCS" links
    echo "$output" && [ "$status" -eq 0 ]
}

@test "every test that a document points to is there" {
    run python3 "$DOCS" proofs
    echo "$output" && [ "$status" -eq 0 ]
}

@test "every make target that a document names is there" {
    run python3 "$DOCS" make
    echo "$output" && [ "$status" -eq 0 ]
}

@test "every command that a document names is known to --help, with its options" {
    run python3 "$DOCS" commands
    echo "$output" && [ "$status" -eq 0 ]
}

@test "the version is the same wherever it stands" {
    version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
    [[ $version =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]]
    [ "$(sed -n 's/^## \[\([0-9.]*\)\].*/\1/p' CHANGELOG.md | head -n 1)" = "$version" ]
    for handler in kong-plugins/kong/plugins/*/handler.lua; do
        grep -qF "VERSION = \"$version\"," "$handler" || { echo "$handler is of another version" >&2 && false; }
    done
    rockspec=(kong-plugins/*.rockspec)
    [ "${rockspec[*]}" = "kong-plugins/kong-plugin-llm-audit-$version-1.rockspec" ]
    [ "$(grep -cF -e "\"$version-1\"" -e "\"v$version\"" "${rockspec[0]}")" -eq 2 ]
}

@test "the rockspec names every module of the plugins, and none that is not there" {
    run diff <(cd kong-plugins && find kong llm_gateway -name '*.lua' | sort) \
        <(sed -n 's/^ *"\(\(kong\|llm_gateway\)\/.*\.lua\)",$/\1/p' kong-plugins/*.rockspec | sort)
    [ -z "$output" ] || { echo "$output"; false; }
}

@test "every setting is described, and every one that a document names is read" {
    run python3 "$DOCS" settings
    echo "$output" && [ "$status" -eq 0 ]
}

@test "README.md is short, and README.zh-CN.md says the same" {
    run python3 "$DOCS" readme
    echo "$output" && [ "$status" -eq 0 ]
}

@test "a broken link, a missing heading and a page that nobody links are found" {
    readme '[Page](docs/page.md#the-first-part-so-to-say)' '[离线](docs/page.md#安装离线)' '' '    [no](link.md)' '' '[Out](https://example.org/#x)'
    passes links
    readme '```' '[no](link.md)' '```' 'See [the only page' 'there is](docs/pages.md).'
    finds links 'README.md:6: the link leads nowhere: docs/pages.md'
    finds links 'docs/page.md:1: no other page links to this one'
    readme '[Page](docs/page.md#the-last-part)'
    finds links 'there is no such heading: docs/page.md#the-last-part'
    readme '[Page](docs/page.md)' '<img src="docs/pictures/usage.png">'
    finds links 'README.md:4: the link leads nowhere: docs/pictures/usage.png'
}

@test "a test that is gone is found" {
    readme '[`a_call_becomes_a_row`](tests/calls.rs) [`tests/calls.rs`](tests/calls.rs)'
    passes proofs
    readme '[`a_call_becomes_two`](tests/calls.rs)'
    finds proofs 'tests/calls.rs has no test a_call_becomes_two'
}

@test "a make target that is gone is found, in a block, in a sentence and behind a variable" {
    readme 'Use `make test`, and make up your mind.' '' '    luarocks make'
    passes make
    readme 'Use `ROWS=10 make tests`.' '' '    make demo' ''
    finds make 'README.md:3: the Makefile has no target tests'
    finds make 'README.md:5: the Makefile has no target demo'
}

@test "a command, a sub-command and an option that are gone are found" {
    readme '' '    llm-collector users add alice --team ml | cat' '    sudo ./gateway up' '    ./gateway users limit alice 5   # --more' \
        '    gateway backup /mnt && gateway logs -f kong'
    passes commands
    readme '' '    llm-collector user add alice'
    finds commands 'llm-collector: no command user'
    readme '' '    gateway users befriend alice'
    finds commands 'gateway users: no command befriend'
    readme '' "    llm-collector report --by day \\" '      --sideways'
    finds commands 'llm-collector report: no option --sideways'
    readme '' '    gateway apply --adoptive' '    /opt/vllm-gateway/gateway dance'
    finds commands 'gateway apply: no option --adoptive'
    finds commands 'gateway: no command dance'
}

@test "a setting that nothing describes and one that nothing reads are found" {
    readme '`VLLM_URL`, `KEEP_*_DAYS` and `KONG_NGINX_HTTP_LUA_SHARED_DICT`'
    passes settings
    printf 'PROXY_PORT=8111\n\nGRAFANA_PORT=3000\n' >>"$small/deploy/gateway.env"
    finds settings 'deploy/gateway.env:5: nothing describes GRAFANA_PORT'
    readme '`VLLM_URLS=x`'
    finds settings 'README.md:3: nothing reads VLLM_URLS'
}

@test "a README.md that grew too long is found" {
    seq 121 >"$small/README.md"
    touch "$small/README.zh-CN.md"
    finds readme 'README.md:121: 121 lines'
}

@test "what README.zh-CN.md does not tell is found" {
    readme '[Page](docs/page.md)' '[中文](README.zh-CN.md)'
    echo '[一页](docs/page.md)' >"$small/README.zh-CN.md"
    passes readme
    echo '一页' >"$small/README.zh-CN.md"
    finds readme 'README.md:3: README.zh-CN.md has no link to docs/page.md'
}
