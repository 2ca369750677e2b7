# shellcheck shell=bash disable=SC2034,SC2154  # variables are shared with the files beside this one
#
# common.sh - what every script here shares: messages, small checks, the folders of an installation. Sourced, never run.

# Bytes are bytes, and the messages of tools are in one language.
export LC_ALL=C
# The oldest Kong that may run: 3.9.3 and older let one client slip a request into the connection of another
# (CVE-2026-6338) and hold known holes of nginx.
KONG_MINIMUM=3.9.4
KONG_TOO_OLD="lets requests be smuggled past the key check (CVE-2026-6338), or is older still"
# What is written here is for root alone unless it says otherwise.
umask 077

if [ -t 2 ]; then bold=$'\e[1m' plain=$'\e[0m'; else bold='' plain=''; fi
step() { printf '%s== %s%s\n' "$bold" "$*" "$plain" >&2; }
info() { printf '   %s\n' "$*" >&2; }
warn() {
  printf '%swarning: %s%s\n' "$bold" "$1" "$plain" >&2
  shift
  [ $# -eq 0 ] || printf '         %s\n' "$@" >&2
}
# fatal WHAT [WHY OR HOW TO MEND …]
fatal() {
  printf '%serror: %s%s\n' "$bold" "$1" "$plain" >&2
  shift
  [ $# -eq 0 ] || printf '       %s\n' "$@" >&2
  exit 1
}

usage_of() { sed -n '3,/^$/s/^# \{0,1\}//p' "$1"; }

need_root() {
  [ "$(id -u)" = 0 ] || fatal "this needs root: it gives files to the users of the containers" "sudo $0${*:+ $*}"
}

have() { command -v "$1" >/dev/null 2>&1; }

# need TOOL PACKAGE
need() { have "$1" || fatal "$1 is missing" "Install it: apt-get install $2, or from your distribution's installation media."; }

random_hex() {
  local hex
  hex=$(od -An -vtx1 -N"$1" /dev/urandom | tr -d ' \n')
  [ "${#hex}" = $(($1 * 2)) ] || fatal "cannot read /dev/urandom"
  printf '%s' "$hex"
}

# Digest of standard input, short: to see whether something changed, not against forgery.
short_digest() { sha256sum | cut -c 1-16; }

# Digest of the content of files and folders, in a fixed order.
digest_of() {
  local path
  for path in "$@"; do
    [ -e "$path" ] || continue
    (cd "$path" 2>/dev/null && find . -type f -print0 | sort -z | xargs -0r sha256sum) || sha256sum <"$path"
  done | short_digest
}

# write_file PATH MODE [OWNER] - standard input into PATH, whole or not at all. Adds 1 to changed when the content is new.
changed=0
write_file() {
  local path=$1 mode=$2 owner=${3:-} draft=$state_dir/draft
  mkdir -p "$state_dir"
  cat >"$draft" || fatal "cannot write $draft" "Is the disk full?  df -h $state_dir"
  if ! cmp -s "$draft" "$path"; then
    cp "$draft" "$path.new" || fatal "cannot write $path.new" "Is the disk full?  df -h $(dirname "$path")"
    chmod "$mode" "$path.new"
    [ -z "$owner" ] || chown "$owner" "$path.new"
    mv "$path.new" "$path"
    changed=$((changed + 1))
  else
    # Mode and owner are put right without a word.
    chmod "$mode" "$path"
    [ -z "$owner" ] || chown "$owner" "$path"
  fi
  rm -f "$draft"
}

# free_kb FOLDER - kilobytes free on the disk that holds it or will hold it.
free_kb() {
  local folder=$1
  while [ ! -d "$folder" ]; do folder=$(dirname "$folder"); done
  df -Pk "$folder" | awk 'NR == 2 { print $4 }'
}

human_kb() { awk -v kb="$1" 'BEGIN { if (kb < 1048576) printf "%.0f MB", kb / 1024; else printf "%.1f GB", kb / 1048576 }'; }

# version_at_least HAVE WANT - numbers with dots; text behind them does not count.
version_at_least() {
  local have want i
  IFS=. read -r -a have <<<"${1%%[!0-9.]*}"
  IFS=. read -r -a want <<<"${2%%[!0-9.]*}"
  for i in 0 1 2; do
    [ "${have[i]:-0}" -le "${want[i]:-0}" ] || return 0
    [ "${have[i]:-0}" -ge "${want[i]:-0}" ] || return 1
  done
}

# The folders of an installation below its home.
set_home() {
  home=$1
  settings_file=$home/gateway.env secrets_file=$home/secrets.env
  config_dir=$home/config secrets_dir=$home/secrets state_dir=$home/state
}

# One script at a time may change an installation.
take_lock() {
  mkdir -p "$state_dir"
  exec 9>"$state_dir/lock"
  flock -n 9 || fatal "another install.sh or gateway command is at work in $home" "Wait for it; if it hangs:  fuser -v $state_dir/lock"
}
