#!/usr/bin/env bash
#
# users.sh - the people who may call the model: one Kong consumer with one key each.
#
# Usage:
#   users.sh add NAME [--key KEY]      makes a user and prints the new key
#   users.sh list                      names, number of keys, limit, what is captured, since when
#   users.sh rotate NAME [--key KEY]   prints a new key; the old ones stop working
#   users.sh remove NAME               takes the user out; what is logged stays
#   users.sh limit NAME N|default      calls an hour for this user, or as for all
#   users.sh capture NAME full|metadata|default
#                                      whether prompts and answers of this user are logged;
#                                      metadata: who, when, how long, model and tokens, but
#                                      no content (that does not leave Kong's memory)
#
# A key is shown once, on standard output and nothing else there, so that
# KEY=$(users.sh add NAME) works; it cannot be read back. --key takes over a key that
# is in use already: '--key -' reads it from standard input, which keeps it out of the
# process list and the shell's history.
#
# Settings, from the environment:
#   KONG_ADMIN_URL                Kong's Admin API   http://127.0.0.1:8001
#   KONG_ADMIN_PASSWORD[_FILE]    of its user admin, where it wants a password; none
#   COLLECTOR_METADATA_CONSUMERS  users of whose calls the collector stores no content, for the list; none
#
# Exit status: 0 done; 1 failed, with the reason; 2 wrong usage.

set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=deploy/kong/admin-api.sh
. "$here/kong/admin-api.sh"

usage() {
  sed -n '3,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  exit "$1"
}

misuse() {
  printf 'error: %s\n\n' "$1" >&2
  usage 2 >&2
}

# --- names and keys ------------------------------------------------------------------

# A name goes into a header, into log entries, metrics and dashboards.
check_name() {
  local name=$1
  [ -n "$name" ] || misuse 'a name is missing'
  [ "${#name}" -le 128 ] || fatal 'a name may have 128 bytes at most'
  case $name in
    -*) misuse "a name must not begin with '-': $name" ;;
    ' '* | *' ') fatal "a name must not begin or end with a blank: '$name'" ;;
    . | .. | */*) fatal "a name must not be '.' or '..' or hold a slash: '$name'" ;;
    *[[:cntrl:]]*) fatal 'a name must not hold control characters' ;;
    anonymous) fatal "'anonymous' stands for calls without a user in the log" ;;
  esac
  if [[ $name =~ ^[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}$ ]]; then
    fatal "a name must not look like an id: $name"
  fi
  if command -v iconv >/dev/null && ! printf '%s' "$name" | iconv -f UTF-8 -t UTF-8 >/dev/null 2>&1; then
    fatal 'a name must be valid UTF-8'
  fi
}

# sk- and 192 random bits in letters and digits that survive every shell and URL.
new_key() {
  local hex
  hex=$(od -An -vtx1 -N24 /dev/urandom | tr -d ' \n')
  [ "${#hex}" = 48 ] || fatal 'cannot read /dev/urandom'
  printf 'sk-%s' "$hex"
}

# Sets key: a new one, or the one given with --key.
choose_key() {
  key_is_new=1
  if [ "$given_key" = '' ]; then
    key=$(new_key)
    return
  fi
  key_is_new=0
  key=$given_key
  if [ "$key" = - ]; then
    IFS= read -r key || true
    key=${key%$'\r'}
  fi
  case $key in
    '') fatal 'the key is empty' ;;
    *[!\!-~]*) fatal 'a key must not hold blanks or characters outside ASCII' ;;
  esac
  [ "${#key}" -le 512 ] || fatal 'a key may have 512 characters at most'
  [ "${#key}" -ge 20 ] || warn 'this key is short enough to be guessed; rotate it when you can'
}

show_key() {
  if [ "$key_is_new" = 1 ]; then
    info "$1; this is the only time the key is shown:"
    printf '%s\n' "$key"
  else
    info "$1, with the key given"
  fi
}

# --- Kong ----------------------------------------------------------------------------

# Sets user_id; empty when there is no such user.
find_user() {
  admin GET "/consumers/$(url_encode "$1")"
  case $reply_status in
    200) user_id=$(printf '%s' "$reply" | json_value id) ;;
    404) user_id='' ;;
    *) fatal "Kong refused to look up $1: $(reply_error)" ;;
  esac
}

must_find_user() {
  find_user "$1"
  [ -n "$user_id" ] || fatal "there is no user $1" "Who there is:  $0 list"
}

key_ids() { admin_list "/consumers/$user_id/key-auth" | list_ids; }

# 0 when the key was added. Kong says no when somebody has it already.
add_key() {
  secrets=("$key")
  admin POST "/consumers/$user_id/key-auth" "{\"key\":$(json_string "$key")}"
  [ "$reply_status" = 201 ]
}

refused_key() {
  [ "$reply_status" != 409 ] || fatal 'this key belongs to somebody already'
  fatal "Kong refused the key: $(reply_error)"
}

# --- commands ------------------------------------------------------------------------

add() {
  local name=$1 keys
  choose_key
  find_user "$name"
  if [ -n "$user_id" ]; then
    keys=$(key_ids)
    [ -z "$keys" ] || fatal "the user $name exists already" \
      "A new key:  $0 rotate '$name'" "Another limit:  $0 limit '$name' N"
    # Left over from an attempt that was cut off: made, but without a key.
    add_key || refused_key
  else
    admin POST /consumers "{\"username\":$(json_string "$name")}"
    [ "$reply_status" = 201 ] || fatal "Kong refused the user $name: $(reply_error)"
    user_id=$(printf '%s' "$reply" | json_value id)
    if ! add_key; then
      local status=$reply_status answer=$reply
      admin DELETE "/consumers/$user_id"
      reply_status=$status reply=$answer
      refused_key
    fi
  fi
  show_key "added $name"
}

rotate() {
  local name=$1 old id
  choose_key
  must_find_user "$name"
  old=$(key_ids)
  # First the new one, so that a failure leaves a key that works.
  add_key || refused_key
  for id in $old; do
    admin_must DELETE "/consumers/$user_id/key-auth/$id"
  done
  show_key "rotated the key of $name"
}

remove() {
  must_find_user "$1"
  admin_must DELETE "/consumers/$user_id"
  info "removed $1"
}

# The id of this user's own limit; empty when there is none.
own_plugin() {
  admin_list "/consumers/$user_id/plugins" | awk -F '\t' -v wanted="$1" "$ITEM_OF"'
    { item_of() }
    name == "id" { id[item] = value }
    name == "name" && value == wanted { found[item] }
    END { for (item in found) { print id[item]; exit } }'
}

limit() {
  local name=$1 calls=${2:-} id
  [ "$calls" = default ] || [[ $calls =~ ^[1-9][0-9]{0,8}$ ]] ||
    misuse "the limit must be a number of calls an hour from 1, or 'default'"
  must_find_user "$name"
  id=$(own_plugin rate-limiting)
  if [ "$calls" = default ]; then
    [ -z "$id" ] || admin_must DELETE "/plugins/$id"
    info "$name has the limit of all users"
    return
  fi
  if [ -n "$id" ]; then
    admin_must PATCH "/plugins/$id" "{\"enabled\":true,\"config\":{\"hour\":$calls}}"
  else
    # Bound to the vLLM service as well, so that it replaces the limit there and
    # counts on with the same counter.
    admin GET "/services/$SERVICE_ID"
    [ "$reply_status" = 200 ] || fatal 'Kong does not have the vLLM service yet' "Make it first:  $here/kong/configure.sh"
    admin_must POST "/consumers/$user_id/plugins" "{\"name\":\"rate-limiting\",\"service\":{\"id\":\"$SERVICE_ID\"},
      \"config\":{\"hour\":$calls,\"limit_by\":\"consumer\",\"policy\":\"local\",\"fault_tolerant\":true}}"
  fi
  info "$name may call $calls times an hour; Kong takes up to 5 s to know"
}

capture() {
  local name=$1 wanted=${2:-} id settings field value config
  case $wanted in full | metadata | default) ;; *) misuse "what to capture is full, metadata or default" ;; esac
  must_find_user "$name"
  id=$(own_plugin llm-audit)
  if [ "$wanted" = default ]; then
    [ -z "$id" ] || admin_must DELETE "/plugins/$id"
    info "of $name is logged what is logged of all users"
    return
  fi
  # Kong runs the one instance that fits best: the user's own replaces that of all, so it has to have its other settings.
  admin GET "/plugins/$(gateway_id 205)"
  [ "$reply_status" = 200 ] || fatal 'Kong does not have the llm-audit plugin of this gateway yet' "Make it first:  $here/kong/configure.sh"
  settings=$(json_flatten <<<"$reply")
  config="\"capture\":\"$wanted\""
  while IFS=$'\t' read -r field value; do
    case $field in
      config.capture | config.*[!a-z_]* | config) ;;
      config.*)
        # s: text, n: a number, l: true, false or null
        case $value in s:*) value=$(json_string "${value#s:}") ;; *) value=${value#?:} ;; esac
        config+=",\"${field#config.}\":$value" ;;
    esac
  done <<<"$settings"
  if [ -n "$id" ]; then
    admin_must PATCH "/plugins/$id" "{\"enabled\":true,\"config\":{$config}}"
  else
    admin_must POST "/consumers/$user_id/plugins" \
      "{\"name\":\"llm-audit\",\"service\":{\"id\":\"$SERVICE_ID\"},\"config\":{$config}}"
  fi
  info "of $name is logged: $wanted; Kong takes up to 5 s to know"
}

# One pass over consumers, keys and plugins. Keys stay inside the pipe. What is captured of a user: as of all (default), what
# an instance of llm-audit of the user's own says, or nothing, because the collector drops it (dropped).
list() {
  local of_all
  {
    admin_list '/consumers?size=500'
    printf 'keys\n'
    admin_list '/key-auths?size=500' | grep -v '\.key	'
    printf 'plugins\n'
    admin_list '/plugins?size=500'
  } | awk -F '\t' "$ITEM_OF"'
    $0 == "keys" || $0 == "plugins" { kind = $0; next }
    { item_of() }
    kind == "" && name == "id" { id[item] = value; items[++users] = item }
    kind == "" { user[item, name] = value }
    kind == "keys" && name == "consumer.id" { keys[value]++ }
    kind == "plugins" { plugin[item, name] = value }
    kind == "plugins" && name == "id" { plugins[item] }
    END {
      for (item in plugins) {
        who = plugin[item, "consumer.id"]
        # What is switched off does not count, nor what belongs to another service.
        if (who == "" || plugin[item, "enabled"] == "false") continue
        if (plugin[item, "service.id"] != "" && plugin[item, "service.id"] != service) continue
        if (plugin[item, "name"] == "rate-limiting") limit[who] = plugin[item, "config.hour"]
        if (plugin[item, "name"] == "llm-audit" && capture[who] != "metadata") capture[who] = plugin[item, "config.capture"]
      }
      count = split(ENVIRON["COLLECTOR_METADATA_CONSUMERS"], names, ",")
      for (i = 1; i <= count; i++) { gsub(/^ +| +$/, "", names[i]); dropped[names[i]] }
      for (i = 1; i <= users; i++) {
        item = items[i]; who = id[item]; name = user[item, "username"]
        captured = (name in dropped) ? "dropped" : (who in capture) ? capture[who] : "default"
        printf "%s\t%d\t%s\t%s\t%s\n", name, keys[who], (who in limit) ? limit[who] : "default", captured, user[item, "created_at"]
      }
    }
  ' service="$SERVICE_ID" | sort | {
    printf '%-24s %4s %8s %-8s  %s\n' NAME KEYS LIMIT CAPTURE SINCE
    local name keys calls captured since day
    while IFS=$'\t' read -r name keys calls captured since; do
      day=$(date -u -d "@$since" +%F 2>/dev/null || echo "$since")
      printf '%-24s %4s %8s %-8s  %s\n' "$(printf '%b' "$name")" "$keys" "$calls" "$captured" "$day"
    done
  }
  admin GET "/plugins/$(gateway_id 205)"
  of_all=$(json_value config.capture <<<"$reply")
  [ "$of_all" != metadata ] || info "default: metadata (AUDIT_CAPTURE)"
}

# --- arguments -----------------------------------------------------------------------

[ $# -gt 0 ] || usage 2 >&2
command=$1
shift
given_key='' words=()
while [ $# -gt 0 ]; do
  case $1 in
    --key)
      given_key=${2:-}
      [ -n "$given_key" ] || misuse '--key needs a key, or - for standard input'
      shift 2 ;;
    --key=?*) given_key=${1#--key=} && shift ;;
    --help | -h) usage 0 ;;
    --) shift && words+=("$@") && break ;;
    *) words+=("$1") && shift ;;
  esac
done

expect_words() {
  [ "${#words[@]}" -ge "$1" ] || misuse "$command needs more words"
  [ "${#words[@]}" -le "$1" ] || misuse "$command does not know what '${words[$1]}' means"
}

case $command in
  add | rotate | remove) expect_words 1 ;;
  limit | capture) expect_words 2 ;;
  list) expect_words 0 ;;
  --help | -h | help) usage 0 ;;
  *) misuse "unknown command $command" ;;
esac
case $command in add | rotate) ;; *) [ -z "$given_key" ] || misuse "$command takes no key" ;; esac
[ "$command" = list ] || check_name "${words[0]}"
"$command" "${words[@]}"
