# shellcheck shell=bash disable=SC2034  # variables are used where this is sourced
#
# admin-api.sh - what configure.sh and users.sh share: talking to Kong's Admin API
# and reading its JSON with nothing but bash, curl and awk. Sourced, never run.
#
# Secrets go through pipes and variables only: never into a process argument, a file
# or a message. The Admin API's answers may hold keys; they are not printed.

# Bytes are bytes, and the messages of tools are in one language.
export LC_ALL=C

KONG_ADMIN_URL=${KONG_ADMIN_URL:-http://127.0.0.1:8001}
KONG_ADMIN_URL=${KONG_ADMIN_URL%/}
# Where the Admin API wants one (user admin): KONG_ADMIN_PASSWORD, or the first line of the file KONG_ADMIN_PASSWORD_FILE.
admin_password=${KONG_ADMIN_PASSWORD:-}
if [ -z "$admin_password" ] && [ -r "${KONG_ADMIN_PASSWORD_FILE:-}" ]; then IFS= read -r admin_password <"$KONG_ADMIN_PASSWORD_FILE" || true; fi

# Everything the gateway makes in Kong has an id of this form, so that a second run
# finds it again whatever happened to its name.
GATEWAY_IDS=7c1ea1d0-6b1f-4000-8000-
gateway_id() { printf '%s%012d' "$GATEWAY_IDS" "$1"; }
SERVICE_ID=$(gateway_id 1)

info() { printf '%s\n' "$*" >&2; }
warn() { printf 'warning: %s\n' "$*" >&2; }
fatal() {
  printf 'error: %s\n' "$1" >&2
  shift
  [ $# -eq 0 ] || printf '  %s\n' "$@" >&2
  exit 1
}

# --- HTTP ----------------------------------------------------------------------------

# admin METHOD PATH [JSON] - sets reply_status and reply. Ends the script when nobody
# answers: nothing that follows could work.
admin() {
  local method=$1 path=$2 answer code=0
  # -q: no ~/.curlrc; --noproxy: a proxy for the internet must not see this.
  local curl=(curl -q -sS --noproxy '*' --path-as-is --max-time 30 --connect-timeout 5
    -X "$method" -H 'Accept: application/json' -w '\n%{http_code}' "$KONG_ADMIN_URL$path")
  # The password comes through a pipe: arguments are for everybody to see.
  exec 8< <([ -z "$admin_password" ] || printf 'user = "admin:%s"\n' "$admin_password")
  curl+=(-K /dev/fd/8)
  if [ $# -gt 2 ]; then
    answer=$(printf '%s' "$3" | "${curl[@]}" -H 'Content-Type: application/json' --data-binary @- 2>&1) || code=$?
  else
    answer=$("${curl[@]}" 2>&1) || code=$?
  fi
  if [ "$code" != 0 ]; then
    fatal "Kong's Admin API does not answer at $KONG_ADMIN_URL" \
      "${answer%%$'\n'*}" \
      "Is Kong running? Its address is set by KONG_ADMIN_LISTEN (Kong) and KONG_ADMIN_URL (this script)."
  fi
  exec 8<&-
  reply_status=${answer##*$'\n'}
  [ "$reply_status" != 401 ] || fatal "Kong's Admin API at $KONG_ADMIN_URL wants a password" "Give it in KONG_ADMIN_PASSWORD_FILE."
  reply=${answer%$'\n'*}
}

# Texts that must not appear in a message; Kong repeats values in some of its own.
secrets=()

# The error message in the last answer.
reply_error() {
  local message secret
  message=$(printf '%s' "$reply" | json_value message)
  for secret in "${secrets[@]}"; do
    [ -z "$secret" ] || message=${message//"$secret"/"***"}
  done
  echo "${message:-status $reply_status}"
}

# Everything that changes Kong goes through here.
admin_must() {
  admin "$@"
  case $reply_status in
    2??) ;;
    405) fatal "Kong does not take changes through its Admin API ($1 $2: method not allowed)" \
      "It runs without a database; set KONG_DATABASE=postgres." ;;
    *) fatal "Kong refused $1 $2: $(reply_error)" ;;
  esac
}

# All pages of a list, flattened one after the other, elements as data[PAGE-NUMBER];
# nothing when what it belongs to does not exist.
admin_list() {
  local path=$1 page=0
  while [ -n "$path" ]; do
    admin GET "$path"
    [ "$reply_status" != 404 ] || return 0
    [ "$reply_status" = 200 ] || fatal "Kong refused GET $path: $(reply_error)"
    page=$((page + 1))
    printf '%s' "$reply" | json_flatten | sed "s/^data\[/data[$page-/"
    path=$(printf '%s' "$reply" | json_value next)
    [ "$path" != null ] || path=''
  done
}

# What an awk program needs to read such a list: after `item_of` ran for a line, item is
# data[PAGE-NUMBER], name the field and value its text.
# shellcheck disable=SC2016
ITEM_OF='function item_of() {
  item = match($1, /^data\[[0-9-]+\]/) ? substr($1, 1, RLENGTH) : ""
  name = substr($1, length(item) + 2); value = substr($2, 3)
}'

# fields NAME… - a line for each entity of a list with these of its values, tabs between them; null for what is not there.
fields() {
  awk -F '\t' -v names="$*" "$ITEM_OF"'
    { item_of(); field[item, name] = value }
    item != "" && !(item in seen) { seen[item]; items[++n] = item }
    END {
      count = split(names, wanted, " ")
      for (i = 1; i <= n; i++) {
        line = ""
        for (j = 1; j <= count; j++) {
          value = ((items[i], wanted[j]) in field) ? field[items[i], wanted[j]] : ""
          line = line (j > 1 ? "\t" : "") (value == "" ? "null" : value)
        }
        print line
      }
    }'
}

# The ids of the entities of a list.
list_ids() { awk -F '\t' "$ITEM_OF"'{ item_of() } name == "id" { print value }'; }

# Text as one element of a URL's path.
url_encode() {
  local text=$1 out='' i c
  for ((i = 0; i < ${#text}; i++)); do
    c=${text:i:1}
    case $c in
      [a-zA-Z0-9._~-]) out+=$c ;;
      *) out+=$(printf '%%%02X' "'$c") ;;
    esac
  done
  # Bytes above 127 come out negative on some shells; keep the last two digits.
  printf '%s' "$out" | sed 's/%F*\([0-9A-F][0-9A-F]\)/%\1/g'
}

# --- JSON ----------------------------------------------------------------------------

# Text as a JSON string, with its quotes.
json_string() {
  local text=$1 code character
  text=${text//\\/"\\\\"}
  text=${text//\"/"\\\""}
  text=${text//$'\n'/"\\n"}
  text=${text//$'\t'/"\\t"}
  text=${text//$'\r'/"\\r"}
  if [[ $text == *[$'\x01'-$'\x1f']* ]]; then
    for code in {1..31}; do
      printf -v character '%b' "\\x$(printf %02x "$code")"
      text=${text//"$character"/"\\u$(printf %04x "$code")"}
    done
  fi
  printf '"%s"' "$text"
}

# Reads JSON, writes one line a value: its path, a tab, its type and text.
#   {"a":{"b":[1,"x"]},"c":null}  →  a.b[1]⇥n:1   a.b[2]⇥s:x   a.b[#]⇥n:2
#                                    a{#}⇥n:1   c⇥l:null   {#}⇥n:2
# In text a backslash is \\ and control characters are \n, \t, \u001f, so a value is
# always one line and two spellings of the same string come out the same.
json_flatten() {
  awk '
    function fail(why) { print "malformed JSON: " why >"/dev/stderr"; failed = 1; exit 1 }
    function blank() { while (substr(text, pos, 1) ~ /[ \t\r\n]/ && pos <= size) pos++ }
    function expect(c) { if (substr(text, pos, 1) != c) fail("no " c " at " pos); pos++ }
    function hex(digits,   i, value) {
      value = 0
      for (i = 1; i <= 4; i++) value = value * 16 + index("0123456789abcdef", tolower(substr(digits, i, 1))) - 1
      return value
    }
    function escape(   c, code) {
      c = substr(text, pos + 1, 1)
      pos += 2
      if (c == "/" || c == "\"") return c
      if (c != "u") return "\\" c
      code = hex(substr(text, pos, 4))
      pos += 4
      if (code == 92) return "\\\\"
      if (code >= 32 && code < 127) return sprintf("%c", code)
      if (code == 10) return "\\n"
      if (code == 9) return "\\t"
      if (code == 13) return "\\r"
      return "\\u" tolower(substr(text, pos - 4, 4))
    }
    function string(   out, piece, at) {
      expect("\"")
      out = ""
      while (pos <= size) {
        piece = substr(text, pos, 400)
        at = match(piece, /["\\]/)
        if (!at) { out = out piece; pos += length(piece); continue }
        out = out substr(piece, 1, at - 1)
        pos += at - 1
        if (substr(text, pos, 1) == "\"") { pos++; return out }
        out = out escape()
      }
      fail("unfinished string")
    }
    function value(path,   c, n, key) {
      blank()
      c = substr(text, pos, 1)
      n = 0
      if (c == "{") {
        pos++; blank()
        if (substr(text, pos, 1) == "}") pos++
        else while (1) {
          blank(); key = string(); blank(); expect(":")
          n++
          value(path == "" ? key : path "." key)
          blank(); c = substr(text, pos++, 1)
          if (c == "}") break
          if (c != ",") fail("no comma at " pos - 1)
        }
        print path "{#}\tn:" n
      } else if (c == "[") {
        pos++; blank()
        if (substr(text, pos, 1) == "]") pos++
        else while (1) {
          n++
          value(path "[" n "]")
          blank(); c = substr(text, pos++, 1)
          if (c == "]") break
          if (c != ",") fail("no comma at " pos - 1)
        }
        print path "[#]\tn:" n
      } else if (c == "\"") {
        print path "\ts:" string()
      } else if (match(substr(text, pos, 40), /^-?[0-9][0-9.eE+-]*/)) {
        print path "\tn:" (substr(text, pos, RLENGTH) + 0)
        pos += RLENGTH
      } else if (match(substr(text, pos, 5), /^(true|false|null)/)) {
        print path "\tl:" substr(text, pos, RLENGTH)
        pos += RLENGTH
      } else fail("unexpected " c " at " pos)
    }
    BEGIN { CONVFMT = OFMT = "%.14g" }
    { text = text $0 "\n" }
    END { if (!failed) { pos = 1; size = length(text); value("") } exit failed }'
}

# The value at a path of flattened JSON on standard input. Reads to the end: leaving
# early would end the writer with SIGPIPE, and with it, now and then, the script.
value_at() { awk -F '\t' -v path="$1" '$1 == path && !found { print substr($2, 3); found = 1 }'; }

# The value at a path of JSON on standard input, as text; nothing when there is none.
json_value() {
  local value
  value=$(json_flatten 2>/dev/null | value_at "$1")
  printf '%b' "$value"
}

# json_covers WANTED ACTUAL - whether every value of WANTED stands in ACTUAL too. A
# list must be the same list; an object of ACTUAL may have more fields, except the
# map config.headers, where one more header would be sent too.
json_covers() {
  local wanted actual
  wanted=$(printf '%s' "$1" | json_flatten) || return 1
  actual=$(printf '%s' "$2" | json_flatten) || return 1
  printf '%s\n\f\n%s\n' "$actual" "$wanted" | awk '
    $0 == "\f" { second = 1; next }
    !second { have[$0]; next }
    { split($0, field, "\t")
      if (field[1] ~ /\{#\}$/ && field[1] != "config.headers{#}") next
      if (!($0 in have)) { missing = 1; exit } }
    END { exit missing }'
}

# --- bringing Kong to the wanted state ---------------------------------------------------

# 1: ensure only says what it would do.
dry_run=0

changes=0

said() {
  [ "$1" = unchanged ] || changes=$((changes + 1))
  printf '%-10s %s\n' "$1" "$2"
}

# ensure LABEL PATH WANTED - creates or updates what is at PATH unless it is as wanted.
ensure() {
  local label=$1 path=$2 wanted=$3 word=created
  admin GET "$path"
  case $reply_status in
    200)
      if json_covers "$wanted" "$reply"; then
        said unchanged "$label"
        return
      fi
      word=updated ;;
    404) ;;
    *) fatal "Kong refused GET $path: $(reply_error)" ;;
  esac
  if [ "$dry_run" = 0 ]; then
    admin PUT "$path" "$wanted"
    case $reply_status in
      2??) ;;
      409) conflict "$label" "$wanted" ;;
      405) fatal "Kong does not take changes through its Admin API" "It runs without a database; set KONG_DATABASE=postgres." ;;
      *) fatal "Kong refused $label: $(reply_error)" ;;
    esac
  fi
  said "$word" "$label"
}

ensure_absent() {
  local label=$1 path=$2
  admin GET "$path"
  [ "$reply_status" = 200 ] || return 0
  [ "$dry_run" = 1 ] || admin_must DELETE "$path"
  said removed "$label"
}

# Somebody else's service, route or plugin is in the way.
conflict() {
  local label=$1 wanted=$2 reason id
  reason=$(reply_error)
  case $label in
    plugin*)
      id=$(admin_list /plugins | other_plugin "$(printf '%s' "$wanted" | json_value name)" "$(printf '%s' "$wanted" | json_value service.id)")
      fatal "Kong has another instance of $label with the same scope${id:+, id $id}" \
        "It was not made by this script. Look at it:  curl $KONG_ADMIN_URL/plugins/${id:-}" \
        "If it is left from an earlier installation, run this again with --adopt, which removes it." \
        "If this Kong serves other things and needs it, set KONG_SHARED=1: audit and metrics are then" \
        "bound to the vLLM service only. Then run this again." ;;
    *)
      fatal "Kong has another $label of that name: $reason" \
        "It was not made by this script. Rename or remove it, then run this again; if it leads to vLLM, --adopt removes it." ;;
  esac
}

# The id of a plugin with this name and service, from a flattened list.
other_plugin() {
  awk -F '\t' -v wanted="$1" -v service="${2#null}" "$ITEM_OF"'
    { item_of() }
    name == "id" { id[item] = value }
    name == "name" { plugin[item] = value }
    name == "service.id" { of[item] = value }
    name == "consumer.id" || name == "route.id" { narrower[item] }
    END {
      for (item in id)
        if (plugin[item] == wanted && of[item] == service && !(item in narrower)) { print id[item]; exit }
    }'
}
