#!/usr/bin/env bash
# Installs the Debian or Ubuntu packages that tests and demo need and that are missing. Says what it installs before it does.
#
#   tests/tools.sh demo     what `make demo` needs
#   tests/tools.sh test     what `make test` needs
set -euo pipefail

declare -A PROVIDES=(
    [postgresql]=/usr/lib/postgresql/*/bin/initdb
    [postgresql-client]=/usr/bin/psql
    [curl]=/usr/bin/curl
    [gcc]=/usr/bin/gcc
    [shellcheck]=/usr/bin/shellcheck
)
demo=(postgresql postgresql-client curl gcc)
test=("${demo[@]}" shellcheck)

case "${1:-}" in
    demo) wanted=("${demo[@]}") ;;
    test) wanted=("${test[@]}") ;;
    *) echo "usage: tests/tools.sh demo|test" >&2; exit 2 ;;
esac

missing=()
for package in "${wanted[@]}"; do
    # Unquoted: the path may be a pattern.
    # shellcheck disable=SC2086
    compgen -G ${PROVIDES[$package]} >/dev/null || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null; then
    echo "missing: ${missing[*]}. There is no apt-get here; install them by hand." >&2
    exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "missing: ${missing[*]}. Install them as root: apt-get install ${missing[*]}" >&2; exit 1; }
    as_root=(sudo)
fi
echo "installing through apt: ${missing[*]}"
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
