#!/usr/bin/env bash
#
# configure.sh - makes a Kong Gateway 3.9 the front door of a vLLM server: keys per
# person, a limit per hour, only vLLM's model APIs, every call into the audit log.
#
# May run again at any time: it compares what Kong has with what the settings ask
# for, changes what differs, and says for each part "created", "updated", "unchanged"
# or "removed". Needs bash, curl and awk, nothing from the internet.
#
# Usage: configure.sh [--wait] [--adopt] [--dry-run] [--print-batch] [--help]
#   --wait         then waits until the gateway answers (Kong takes up to 5 s to
#                  put changes into effect)
#   --adopt        removes what somebody else made in Kong and what leads to vLLM past the
#                  keys, or takes the place of a plugin set up here
#   --dry-run      only says what it would change; status 3 when there is something
#   --print-batch  only prints the sizes that follow from the settings and from what
#                  Kong captures of single users, see below
#
# Settings, from the environment:
#   KONG_ADMIN_URL            Kong's Admin API           http://127.0.0.1:8001
#   KONG_ADMIN_PASSWORD[_FILE]  of its user admin, where it wants a password; none
#   KONG_PROXY_URL            the gateway, for --wait    http://127.0.0.1:8111
#   VLLM_URL                  the model server           http://127.0.0.1:8000
#   VLLM_API_KEY[_FILE]       key that vLLM wants (vllm serve --api-key); sent to it
#                             in place of the user's. Unset: none is sent
#   VLLM_EXTRA_PATHS          more paths to open, exact, blank between them; none
#   VLLM_CONNECT_TIMEOUT_MS   5000
#   VLLM_WRITE_TIMEOUT_MS     60000    between two writes of a request
#   VLLM_READ_TIMEOUT_MS      300000   until the answer begins, and between two events
#   RATE_LIMIT_PER_HOUR       calls per user             100; 0: no limit
#   COLLECTOR_URL             the collector              http://127.0.0.1:5000
#   COLLECTOR_TOKEN[_FILE]    its token; unset: none
#   COLLECTOR_MAX_BODY_BYTES  largest request it takes   67108864
#   AUDIT_CAPTURE             full, or metadata: model and tokens, no bodies
#   AUDIT_MAX_REQUEST_BYTES   of a request body          1048576
#   AUDIT_MAX_RESPONSE_BYTES  of a response body         1048576
#   AUDIT_INCLUDE_USAGE       true: ask vLLM for the usage of streamed answers
#   STRICT_REQUESTS           true: answer 400 to requests that the model server might read
#                             differently; false: let them pass, marked in their rows
#   AUDIT_OPENAI_ERRORS       true: Kong's errors in the form OpenAI's SDKs expect
#   ANONYMOUS_PER_MINUTE      refused calls without a valid key from one address, until
#                             they are counted only and wait; 0: no limit          60
#   UPLOAD_ROOM_MB            large request bodies on their way in each worker, a user's at
#                             most half of it; 0: any number
#   AUDIT_BATCH_SECONDS       how long an entry waits for others   0.5
#   AUDIT_QUEUE_BYTES         entries each worker keeps while the collector is away
#                                                        134217728
#   AUDIT_RETRY_SECONDS       how long a batch is sent again before it is given up
#                                                        86400
#   KONG_SHARED               1: this Kong serves other things too. Audit and metrics
#                             are bound to the vLLM service; calls to unknown paths
#                             are then neither logged nor shaped. 0: all calls go into
#                             the audit log, those of other services with their bodies.
#                             auto: 1 if Kong has a service that does not lead to vLLM
#                                                        auto
#   KONG_ACCEPT_OLD           1: configure a Kong older than 3.9.4, too, which has known holes
#   GATEWAY_PLUGINS_DIR       folder with pre-function/bearer.lua
#                                                        ../../kong-plugins from here
# A *_FILE holds the secret in its first line.
#
# Exit status: 0 done; 1 failed, with the reason and what to do; 2 wrong usage;
# 3 --dry-run found differences.

set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=deploy/kong/admin-api.sh
. "$here/admin-api.sh"
# shellcheck source=deploy/kong/other-ways.sh
. "$here/other-ways.sh"

# --- settings ------------------------------------------------------------------------

# A secret from NAME, or from the first line of the file NAME_FILE.
read_secret() {
  local name=$1 file=${1}_FILE value
  value=${!name:-}
  file=${!file:-}
  if [ -z "$value" ] && [ -n "$file" ]; then
    [ -r "$file" ] || fatal "cannot read $file (${1}_FILE)"
    IFS= read -r value <"$file" || true
  fi
  # What a header may hold. $( and {vault:// would be evaluated by Kong.
  case $value in
    *[!\!-~]*) fatal "$name holds blanks or characters outside ASCII" ;;
    *\$\(* | '{vault://'*) fatal "$name must not contain \$( or begin with {vault://" ;;
  esac
  printf '%s' "$value"
}

whole_number() {
  local name=$1 least=$2 most=$3 value=${!1}
  [[ $value =~ ^(0|[1-9][0-9]{0,14})$ ]] || fatal "$name is not a whole number: '$value'"
  if [ "$value" -lt "$least" ] || [ "$value" -gt "$most" ]; then
    fatal "$name must be from $least to $most, not $value"
  fi
}

one_of() {
  local name=$1 choice
  shift
  for choice in "$@"; do
    [ "${!name}" != "$choice" ] || return 0
  done
  fatal "$name must be one of: $*; not '${!name}'"
}

read_settings() {
  KONG_PROXY_URL=${KONG_PROXY_URL:-http://127.0.0.1:8111}
  VLLM_URL=${VLLM_URL:-http://127.0.0.1:8000}
  VLLM_EXTRA_PATHS=${VLLM_EXTRA_PATHS:-}
  VLLM_CONNECT_TIMEOUT_MS=${VLLM_CONNECT_TIMEOUT_MS:-5000}
  VLLM_WRITE_TIMEOUT_MS=${VLLM_WRITE_TIMEOUT_MS:-60000}
  VLLM_READ_TIMEOUT_MS=${VLLM_READ_TIMEOUT_MS:-300000}
  RATE_LIMIT_PER_HOUR=${RATE_LIMIT_PER_HOUR:-100}
  COLLECTOR_URL=${COLLECTOR_URL:-http://127.0.0.1:5000}
  COLLECTOR_MAX_BODY_BYTES=${COLLECTOR_MAX_BODY_BYTES:-67108864}
  AUDIT_CAPTURE=${AUDIT_CAPTURE:-full}
  AUDIT_MAX_REQUEST_BYTES=${AUDIT_MAX_REQUEST_BYTES:-1048576}
  AUDIT_MAX_RESPONSE_BYTES=${AUDIT_MAX_RESPONSE_BYTES:-1048576}
  AUDIT_INCLUDE_USAGE=${AUDIT_INCLUDE_USAGE:-true}
  STRICT_REQUESTS=${STRICT_REQUESTS:-true}
  AUDIT_OPENAI_ERRORS=${AUDIT_OPENAI_ERRORS:-true}
  ANONYMOUS_PER_MINUTE=${ANONYMOUS_PER_MINUTE:-60}
  UPLOAD_ROOM_MB=${UPLOAD_ROOM_MB:-0}
  AUDIT_BATCH_SECONDS=${AUDIT_BATCH_SECONDS:-0.5}
  AUDIT_QUEUE_BYTES=${AUDIT_QUEUE_BYTES:-134217728}
  AUDIT_RETRY_SECONDS=${AUDIT_RETRY_SECONDS:-86400}
  KONG_SHARED=${KONG_SHARED:-auto}
  KONG_ACCEPT_OLD=${KONG_ACCEPT_OLD:-0}
  GATEWAY_PLUGINS_DIR=${GATEWAY_PLUGINS_DIR:-${here%/deploy/kong}/kong-plugins}

  local name
  for name in VLLM_CONNECT_TIMEOUT_MS VLLM_WRITE_TIMEOUT_MS VLLM_READ_TIMEOUT_MS; do
    whole_number $name 1 2147483646
  done
  whole_number RATE_LIMIT_PER_HOUR 0 1000000000
  whole_number COLLECTOR_MAX_BODY_BYTES 1 1099511627776
  whole_number AUDIT_MAX_REQUEST_BYTES 0 67108864
  whole_number AUDIT_MAX_RESPONSE_BYTES 0 67108864
  whole_number ANONYMOUS_PER_MINUTE 0 1000000
  whole_number UPLOAD_ROOM_MB 0 1048576
  whole_number AUDIT_QUEUE_BYTES 1 1099511627776
  whole_number AUDIT_RETRY_SECONDS 1 31536000
  [[ $AUDIT_BATCH_SECONDS =~ ^(0|[1-9][0-9]{0,2})(\.[0-9]{1,3})?$ ]] ||
    fatal "AUDIT_BATCH_SECONDS is not a number of seconds: '$AUDIT_BATCH_SECONDS'"
  one_of AUDIT_CAPTURE full metadata
  one_of AUDIT_INCLUDE_USAGE true false
  one_of STRICT_REQUESTS true false
  one_of AUDIT_OPENAI_ERRORS true false
  one_of KONG_SHARED 0 1 auto
  one_of KONG_ACCEPT_OLD 0 1

  vllm_api_key=$(read_secret VLLM_API_KEY)
  collector_token=$(read_secret COLLECTOR_TOKEN)
  secrets=("$vllm_api_key" "$collector_token")
  extra_paths=$(read_extra_paths)
  parse_vllm_url
  parse_collector_url
}

# VLLM_EXTRA_PATHS as regular expressions.
read_extra_paths() {
  local path
  for path in $VLLM_EXTRA_PATHS; do
    [[ $path =~ ^(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+$ ]] ||
      fatal "VLLM_EXTRA_PATHS: '$path' is not a plain path beginning with /"
    printf '%s ' "${path//./\\.}"
  done
}

URL_PATTERN='^(https?)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:([0-9]{1,5}))?((/[A-Za-z0-9._~-]+)*)/?$'

parse_vllm_url() {
  [[ $VLLM_URL =~ $URL_PATTERN ]] || fatal "VLLM_URL must be http://host:port, not $VLLM_URL" \
    "A key for vLLM goes into VLLM_API_KEY."
  vllm_protocol=${BASH_REMATCH[1]} vllm_host=${BASH_REMATCH[2]} vllm_port=${BASH_REMATCH[4]}
  [ -z "${BASH_REMATCH[5]}" ] || fatal "VLLM_URL must be http://host:port without a path, not $VLLM_URL" \
    "Clients' paths are passed on as they are (/v1/chat/completions), so a path here would come in front of them" \
    "and vLLM would know none of them. Leave ${BASH_REMATCH[5]} out."
  if [ -z "$vllm_port" ]; then
    vllm_port=80
    [ "$vllm_protocol" = http ] || vllm_port=443
  fi
}

parse_collector_url() {
  [[ $COLLECTOR_URL =~ $URL_PATTERN ]] || fatal "COLLECTOR_URL must be http://host:port, not $COLLECTOR_URL" \
    "The collector's token goes into COLLECTOR_TOKEN."
  collector_endpoint=${COLLECTOR_URL%/}
  collector_endpoint=${collector_endpoint%/log}/log
}

# --- how many entries fit into one batch -----------------------------------------------

# What an entry holds besides the two bodies, at most. Kong reads request line and
# headers into 4 buffers of 8 KiB; a control character of one byte becomes six in JSON
# (\u0001): 4 * 8192 * 6. The request line, at most one of those buffers, comes four
# times (url, uri, upstream_uri, querystring), with quotes and decoded escapes at most
# doubled: 4 * 8192 * 2. Response headers: one buffer of 8 KiB, times six. Service,
# route, consumer, times, the llm table: 16 KiB is five times what was seen.
ENTRY_OVERHEAD=$((4 * 8192 * 6 + 4 * 8192 * 2 + 8192 * 6 + 16384))

# More entries in a batch bring nothing: the collector stores 200 as fast a row as 1000,
# and a larger batch costs more memory on both sides when it is sent again.
MOST_BATCH_ENTRIES=200

base64_bytes() {
  local groups=$((($1 + 2) / 3))
  echo $((groups * 4))
}

# Lines of two sizes, of a request and of a response body: what any llm-audit in Kong may
# capture. Users can have one of their own, made with these settings, earlier ones, or by
# hand. One that captures no bodies counts as well: users.sh turns that on with one word.
captured_sizes() {
  printf '%s %s\n' "$AUDIT_MAX_REQUEST_BYTES" "$AUDIT_MAX_RESPONSE_BYTES"
  admin_list '/plugins?size=500' | awk -F '\t' -v ours="$(gateway_id 205)" "$ITEM_OF"'
    { item_of(); field[item, name] = value }
    name == "id" { items[++n] = item }
    END { for (i = 1; i <= n; i++) { item = items[i]
      if (field[item, "name"] == "llm-audit" && field[item, "id"] != ours)
        printf "%d %d\n", field[item, "config.max_request_body_size"], field[item, "config.max_response_body_size"] } }'
}

compute_batch() {
  local sizes request response bodies most=0
  sizes=$(captured_sizes)
  while read -r request response; do
    bodies=$(($(base64_bytes "$request") + $(base64_bytes "$response")))
    [ "$bodies" -le "$most" ] || most=$bodies
  done <<<"$sizes"
  entry_bytes=$((ENTRY_OVERHEAD + most))
  # n entries of an array: n commas or brackets, and one bracket more.
  batch_entries=$(((COLLECTOR_MAX_BODY_BYTES - 1) / (entry_bytes + 1)))
  [ "$batch_entries" -ge 1 ] || fatal "a single log entry can have $entry_bytes bytes, but the collector takes $COLLECTOR_MAX_BODY_BYTES" \
    "Lower AUDIT_MAX_REQUEST_BYTES or AUDIT_MAX_RESPONSE_BYTES, or the sizes of a user's own llm-audit" \
    "($KONG_ADMIN_URL/plugins), or raise the collector's limit and COLLECTOR_MAX_BODY_BYTES."
  [ "$batch_entries" -le "$MOST_BATCH_ENTRIES" ] || batch_entries=$MOST_BATCH_ENTRIES
  batch_bytes=$((batch_entries * (entry_bytes + 1) + 1))
  # Kong refuses an entry that is larger than its whole queue.
  [ "$AUDIT_QUEUE_BYTES" -ge "$entry_bytes" ] || fatal "a single log entry can have $entry_bytes bytes, more than AUDIT_QUEUE_BYTES ($AUDIT_QUEUE_BYTES)"
}

print_batch() {
  cat <<LINES
entry_bytes=$entry_bytes
batch_entries=$batch_entries
batch_bytes=$batch_bytes
collector_max_body_bytes=$COLLECTOR_MAX_BODY_BYTES
queue_bytes=$AUDIT_QUEUE_BYTES
LINES
}

# --- checks before anything is changed ---------------------------------------------------

check_kong() {
  local about version edition plugin missing=()
  admin GET /
  [ "$reply_status" = 200 ] || fatal "$KONG_ADMIN_URL answers with status $reply_status" "Is this Kong's Admin API?"
  about=$(printf '%s' "$reply" | json_flatten) || fatal "$KONG_ADMIN_URL does not answer with JSON" "Is this Kong's Admin API?"
  version=$(value_at version <<<"$about")
  edition=$(value_at edition <<<"$about")
  case $version in
    [0-9]*.[0-9]*) ;;
    *) fatal "$KONG_ADMIN_URL does not say which version of Kong it is" "Is this Kong's Admin API?" ;;
  esac
  local major minor patch
  IFS=. read -r major minor patch _ <<<"$version"
  patch=${patch%%[!0-9]*}
  if [ "$major" -lt 3 ] || { [ "$major" = 3 ] && [ "$minor" -lt 9 ]; }; then
    fatal "Kong $version is too old: the log plugin needs 3.9" "Use a 3.9 image, 3.9.4 or newer, and run 'kong migrations up'."
  elif [ "$major" = 3 ] && [ "$minor" = 9 ] && [ "${patch:-0}" -lt 4 ]; then
    local hole="Kong $version lets requests be smuggled past the key check (CVE-2026-6338)"
    [ "$KONG_ACCEPT_OLD" = 1 ] || fatal "$hole" "Use 3.9.4 or newer, and run 'kong migrations up'." \
      "For a Kong that nobody else reaches:  KONG_ACCEPT_OLD=1"
    warn "$hole; upgrade to 3.9.4 or newer"
  elif [ "$major.$minor" != 3.9 ]; then
    warn "Kong $version: only the 3.9 line was tested"
  fi
  case $edition in
    community | '') ;;
    *) warn "this is Kong's $edition edition: it may want a licence and a token for its Admin API" ;;
  esac

  for plugin in $OWN_PLUGINS; do
    case $about in
      *"plugins.available_on_server.$plugin"[.$'\t{']*) ;;
      *) missing+=("$plugin") ;;
    esac
  done
  [ ${#missing[@]} = 0 ] || fatal "Kong does not have the plugins: ${missing[*]}" \
    "llm-audit is part of this project, the others come with Kong. Make the folder kong-plugins" \
    "readable for Kong, start it with" \
    "  KONG_PLUGINS=bundled,llm-audit" \
    "  KONG_LUA_PACKAGE_PATH='/path/to/kong-plugins/?.lua;/path/to/kong-plugins/?/init.lua;;'" \
    "and run this again. Kong's log says why a plugin could not be loaded."
}

read_bearer() {
  local file=$GATEWAY_PLUGINS_DIR/pre-function/bearer.lua
  [ -r "$file" ] || fatal "cannot read $file" "GATEWAY_PLUGINS_DIR must be the project's kong-plugins folder."
  bearer_code=$(<"$file")
  [ -n "$bearer_code" ] || fatal "$file is empty"
}

# --- the service -------------------------------------------------------------------------

service_json() {
  cat <<JSON
{"name":"vllm","protocol":"$vllm_protocol","host":$(json_string "$vllm_host"),"port":$vllm_port,
 "path":null,"retries":0,"enabled":true,
 "connect_timeout":$VLLM_CONNECT_TIMEOUT_MS,"write_timeout":$VLLM_WRITE_TIMEOUT_MS,"read_timeout":$VLLM_READ_TIMEOUT_MS}
JSON
}

# --- routes ------------------------------------------------------------------------------

# vLLM's model APIs, by its documentation (Online Serving, 0.32). Each line: a number
# that never changes, the name in logs and metrics, regular expressions of whole paths.
# Left out on purpose, so 404: what operates the server (/metrics, /health, /load, /ping,
# /version, /pause, /resume, /sleep, /collective_rpc, /v1/load_lora_adapter …), what
# repeats these APIs without their checks (/invocations), and what the audit log cannot
# follow (/v1/realtime is a WebSocket, /v1/chat/completions/batch many conversations).
MODEL_APIS='
1  chat-completions  /v1/chat/completions
2  completions       /v1/completions
3  responses         /v1/responses(/[A-Za-z0-9_-]+(/cancel)?)?
4  messages          /v1/messages(/count_tokens)?
5  models            /v1/models
6  embeddings        /v1/embeddings /v2/embed
7  rerank            /v1/rerank /v2/rerank /rerank
8  score             /v1/score /score
9  classify          /classify
10 pooling           /pooling
11 tokenize          /tokenize /detokenize
12 audio             /v1/audio/(transcriptions|translations)
'
EXTRA_ROUTE=99

route_id() { gateway_id $((100 + $1)); }

# Answers are not buffered: where the plugin takes an event out of a chunk, nginx would
# keep the rest of it until the next one comes (50 ms were seen for the last event).
# The paths in Kong's notation: ~ for a regular expression, anchored at both ends, so
# that neither a longer path nor one with /../ in it matches (Kong resolves dots first).
route_json() {
  local name=$1 path list=''
  shift
  for path in "$@"; do
    list+=${list:+,}$(json_string "~$path\$")
  done
  cat <<JSON
{"name":"vllm-$name","service":{"id":"$SERVICE_ID"},"paths":[$list],"strip_path":false,
 "methods":null,"hosts":null,"headers":null,"preserve_host":false,"request_buffering":true,"response_buffering":false}
JSON
}

configure_routes() {
  local number name paths wanted=' ' ids id
  while read -r number name paths; do
    [ -n "$paths" ] || continue
    set -f # patterns are no file names
    # shellcheck disable=SC2086
    ensure "route vllm-$name" "/routes/$(route_id "$number")" "$(route_json "$name" $paths)"
    set +f
    wanted+="$(route_id "$number") "
  done <<<"$MODEL_APIS"$'\n'"$EXTRA_ROUTE extra $extra_paths"

  # What an earlier version or setting opened and this one does not.
  ids=$(admin_list "/services/$SERVICE_ID/routes" | list_ids)
  for id in $ids; do
    case $id in "$GATEWAY_IDS"*)
      case $wanted in *" $id "*) ;; *) ensure_absent "route $id" "/routes/$id" ;; esac ;;
    esac
  done
}

# --- plugins -----------------------------------------------------------------------------

OF_SERVICE="\"service\":{\"id\":\"$SERVICE_ID\"},\"route\":null,\"consumer\":null"
OF_ALL='"service":null,"route":null,"consumer":null'

plugin() {
  local number=$1 name=$2 scope=$3 config=$4
  ensure "plugin $name" "/plugins/$(gateway_id $((200 + number)))" \
    "{\"name\":\"$name\",$scope,\"enabled\":true,\"config\":$config}"
}

# What is set up here, by name.
OWN_PLUGINS='pre-function key-auth rate-limiting request-transformer llm-audit http-log prometheus'

# Calls of other services are nobody's conversation with a model: unless it is asked for, nothing of them is kept.
choose_audit_scope() {
  audit_scope=$OF_ALL
  if [ "$KONG_SHARED" = 1 ] || { [ "$KONG_SHARED" = auto ] && [ -n "$other" ]; }; then audit_scope=$OF_SERVICE; fi
}

# Before the routes: no path may be open for a moment without its key check.
configure_plugins() {
  plugin 1 pre-function "$OF_SERVICE" "{\"access\":[$(json_string "$bearer_code")]}"
  plugin 2 key-auth "$OF_SERVICE" '{"key_names":["X-API-Key"],"key_in_header":true,"key_in_query":false,
    "key_in_body":false,"hide_credentials":true,"anonymous":null,"run_on_preflight":true}'
  if [ "$RATE_LIMIT_PER_HOUR" = 0 ]; then
    ensure_absent 'plugin rate-limiting' "/plugins/$(gateway_id 203)"
  else
    plugin 3 rate-limiting "$OF_SERVICE" "{\"second\":null,\"minute\":null,\"hour\":$RATE_LIMIT_PER_HOUR,\"day\":null,
      \"month\":null,\"year\":null,\"limit_by\":\"consumer\",\"policy\":\"local\",\"fault_tolerant\":true,
      \"hide_client_headers\":false}"
  fi
  # The pre-function has taken the user's key out of Authorization by the time this runs.
  # remove, then add: ours replaces whatever else a client put there.
  if [ -n "$vllm_api_key" ]; then
    plugin 4 request-transformer "$OF_SERVICE" "{\"remove\":{\"headers\":[\"Authorization\"]},
      \"add\":{\"headers\":[$(json_string "Authorization:Bearer $vllm_api_key")]}}"
  else
    ensure_absent 'plugin request-transformer' "/plugins/$(gateway_id 204)"
  fi

  plugin 5 llm-audit "$audit_scope" "{\"capture\":\"$AUDIT_CAPTURE\",\"max_request_body_size\":$AUDIT_MAX_REQUEST_BYTES,
    \"max_response_body_size\":$AUDIT_MAX_RESPONSE_BYTES,\"upload_room_mb\":$UPLOAD_ROOM_MB,\"include_usage\":$AUDIT_INCLUDE_USAGE,
    \"strict_requests\":$STRICT_REQUESTS,
    \"openai_errors\":$AUDIT_OPENAI_ERRORS,\"anonymous_per_minute\":$ANONYMOUS_PER_MINUTE}"
  local headers=null
  [ -z "$collector_token" ] || headers="{\"X-Collector-Token\":$(json_string "$collector_token")}"
  plugin 6 http-log "$audit_scope" "{\"http_endpoint\":$(json_string "$collector_endpoint"),\"method\":\"POST\",
    \"content_type\":\"application/json\",\"timeout\":10000,\"keepalive\":60000,\"headers\":$headers,
    \"queue\":{\"max_batch_size\":$batch_entries,\"max_coalescing_delay\":$AUDIT_BATCH_SECONDS,
      \"max_bytes\":$AUDIT_QUEUE_BYTES,\"max_entries\":100000,\"initial_retry_delay\":0.1,\"max_retry_delay\":10,
      \"max_retry_time\":$AUDIT_RETRY_SECONDS}}"
  plugin 7 prometheus "$audit_scope" '{"per_consumer":true,"status_code_metrics":true,"latency_metrics":true,
    "bandwidth_metrics":true,"upstream_health_metrics":true}'
}

# --- waiting -----------------------------------------------------------------------------

# Without a key /v1/models answers 401 once route and key check are in effect, and an
# unknown path 404.
wait_until_live() {
  local _ status=000
  for _ in $(seq 60); do
    status=$(curl -q -sS --noproxy '*' --max-time 5 -o /dev/null -w '%{http_code}' "$KONG_PROXY_URL/v1/models" 2>/dev/null) || status=000
    if [ "$status" = 401 ]; then
      printf '%-10s %s\n' live "$KONG_PROXY_URL"
      return
    fi
    sleep 0.5
  done
  case $status in
    000) fatal "the gateway does not answer at $KONG_PROXY_URL" "Its port is set by KONG_PROXY_LISTEN (Kong) and KONG_PROXY_URL (this script)." ;;
    404) fatal "the gateway at $KONG_PROXY_URL still answers 404 after 30 s" "Is $KONG_ADMIN_URL the Admin API of the same Kong?" ;;
    *) fatal "the gateway at $KONG_PROXY_URL answers $status to a call without a key, not 401" "See Kong's error log." ;;
  esac
}

# --- steps -------------------------------------------------------------------------------

usage() {
  sed -n '3,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  exit "$1"
}

wait=0 only_print=0 adopts=0
for option in "$@"; do
  case $option in
    --wait) wait=1 ;;
    --adopt) adopts=1 ;;
    --dry-run) dry_run=1 ;;
    --print-batch) only_print=1 ;;
    --help | -h) usage 0 ;;
    *) printf 'error: unknown option %s\n' "$option" >&2 && usage 2 >&2 ;;
  esac
done

read_settings
if [ "$only_print" = 1 ]; then
  compute_batch
  print_batch
  exit 0
fi
read_bearer
check_kong
look_at_services
choose_audit_scope
compute_batch
[ "$adopts" = 0 ] || adopt
ensure 'service vllm' "/services/$SERVICE_ID" "$(service_json)"
configure_plugins
configure_routes
[ "$dry_run$adopts" != 00 ] || warn_of_other_ways
if [ "$changes" = 0 ]; then
  echo 'nothing to change'
elif [ "$dry_run" = 1 ]; then
  exit 3
fi
[ "$wait" = 0 ] || wait_until_live
