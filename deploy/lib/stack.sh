# shellcheck shell=bash disable=SC2034,SC2154  # variables are shared with the files beside this one
#
# stack.sh - the steps that bring a stack from files to a checked gateway; install.sh, gateway apply, upgrade and restore
# all take them. Sourced, never run.

# Seconds that services may take to become healthy. PostgreSQL after a crash may have minutes of log to read.
PATIENCE=${GATEWAY_PATIENCE_SECONDS:-180}

# Settings, secrets and everything that follows from them.
prepare_files() {
  read_images
  look_into_images
  make_secrets
  accept_certificate
  make_folders
  write_secret_files
  write_config
}

start_postgresql() {
  runs_postgresql || return 0
  start_services postgresql
  wait_healthy "$PATIENCE" postgresql || fatal "PostgreSQL does not start" "After mending the reason above, run the same command again."
  settle_restore
  prepare_databases
}

# Runs Kong's command line once, in a container of its own with the same settings.
kong_once() { run_compose run --rm -T --no-deps kong-migrations kong "$@" </dev/null 2>&1; }

# Sets migrations_left: steps that the old version does not survive come after the new one is healthy.
migrate_kong() {
  local output status=0
  migrations_left=0
  output=$(kong_once migrations list) || status=$?
  case $status in
    0) return 0 ;;
    3)
      info "making Kong's tables"
      output=$(kong_once migrations bootstrap) || kong_failed "$output" ;;
    4 | 5)
      info "migrating Kong's tables"
      [ $status = 4 ] || output=$(kong_once migrations up) || kong_failed "$output"
      migrations_left=1 ;;
    *) kong_failed "$output" ;;
  esac
  changed=$((changed + 1))
}

kong_failed() {
  printf '%s\n' "$1" | tail -n 12 | sed 's/^/         | /' | without_secrets >&2
  case $1 in
    *'assword authentication failed'*)
      fatal "Kong cannot log in to PostgreSQL at ${setting[POSTGRES_HOST]}:${setting[POSTGRES_PORT]}: wrong password" \
        "$(runs_postgresql && echo "Run the same command again: it sets the password anew." ||
          echo "Copy secrets.env from the host where PostgreSQL runs to $secrets_file.")" ;;
  esac
  fatal "Kong's migrations failed" "The reason is above. After mending it, run the same command again: finished steps are kept."
}

finish_migrations() {
  local output
  [ "${migrations_left:-0}" = 1 ] || return 0
  output=$(kong_once migrations finish) || kong_failed "$output"
}

# upkeep_first SERVICE… - starts upkeep before the others, where it is among them: it migrates, which the collector may not, and that
# one ends where the schema is older than it.
upkeep_first() {
  [[ " $* " == *' upkeep '* ]] || return 0
  start_services upkeep
  wait_healthy "$PATIENCE" upkeep
}

# Where another release or setting knows of none.
remove_upkeep() {
  local id
  id=$(container_of upkeep)
  [ -z "$id" ] || { info "removing upkeep" && remove_container upkeep "$id"; }
}

start_rest() {
  local service rest=()
  for service in "${services[@]}"; do [ "$service" = postgresql ] || rest+=("$service"); done
  if [ "${setting[WRITER_ROLE]}" = on ]; then upkeep_first "${rest[@]}" || return 1; else remove_upkeep; fi
  start_services "${rest[@]}"
  wait_healthy "$PATIENCE" "${rest[@]}" || return 1
  give_kong_certificate
  ! runs_postgresql || grant_rights
}

# ask_admin PATH - what Kong's Admin API says. The password reaches curl through its configuration on standard input.
ask_admin() {
  printf 'user = "admin:%s"\n' "${secret[KONG_ADMIN_PASSWORD]}" | curl -q -sS --noproxy '*' --max-time 10 -K - "$admin_url$1"
}

# A user of the installation itself, for the call that proves the whole path.
PROBE=gateway-probe

add_probe() {
  local answer command_seconds=60
  answer=$(ask_admin "/consumers/$PROBE/key-auth" 2>/dev/null) || answer=''
  [[ $answer != *"\"${secret[PROBE_KEY]}\""* ]] || return 0
  if [[ $answer == *'"data"'* ]]; then
    users rotate "$PROBE" --key - <<<"${secret[PROBE_KEY]}" >/dev/null 2>&1 && return 0
  fi
  answer=$(users add "$PROBE" --key - <<<"${secret[PROBE_KEY]}" 2>&1) ||
    fatal "could not add the user $PROBE, whose calls check the gateway" "$answer"
  changed=$((changed + 1))
}

# --- the proof -----------------------------------------------------------------------------------------------------------

# probe METHOD PATH [JSON] - a call through the gateway as the probe user. Sets probe_status, probe_id, probe_body.
probe() {
  local answer call=(curl -q -sS --noproxy '*' --max-time 60 "${tls_curl[@]}" -X "$1" -D - "$proxy_url$2" -H 'Content-Type: application/json')
  [ $# -lt 3 ] || call+=(--data-binary "$3")
  # The key reaches curl through its configuration on standard input, not as an argument.
  answer=$("${call[@]}" -K - <<<"header = \"Authorization: Bearer ${secret[PROBE_KEY]}\"" 2>&1) || { probe_status=000 probe_id='' probe_body=$answer && return; }
  probe_status=$(sed -n '1s/^[^ ]* \([0-9]*\).*/\1/p' <<<"$answer")
  probe_id=$(sed -n 's/^[Xx]-[Kk]ong-[Rr]equest-[Ii]d: *\([0-9a-f]*\).*/\1/p' <<<"$answer" | head -n 1)
  probe_body=$(sed '1,/^\r*$/d' <<<"$answer")
}

# Status 1, with a reason, unless a call goes through Kong and becomes a row.
check_path() {
  local model _
  probe GET /v1/models
  case $probe_status in
    200)
      model=$(sed -n 's/.*"data" *: *\[ *{[^}[]*"id" *: *"\([^"]*\)".*/\1/p' <<<"${probe_body//$'\n'/ }" | head -n 1)
      [ -z "$model" ] || [[ $model == *\\* ]] ||
        probe POST /v1/chat/completions "{\"model\":\"$model\",\"max_tokens\":1,\"messages\":[{\"role\":\"user\",\"content\":\"Say hello.\"}]}"
      info "a call through the gateway: status $probe_status${model:+, model $model}"
      # A model without a chat template answers 4xx; that, too, went all the way.
      [ "${probe_status:0:1}" != 5 ] || warn "vLLM answered $probe_status; the gateway itself works" "${probe_body:0:300}" ;;
    401)
      warn "the call is refused: Kong does not know the key of $PROBE, or vLLM wants another key than the one in VLLM_API_KEY_FILE" "${probe_body:0:300}"
      return 1 ;;
    429) warn "$PROBE is over its limit; the check of the row uses this call" ;;
    502 | 503 | 504)
      warn "vLLM does not answer behind the gateway (status $probe_status)" "Start it; users get this answer until then." ;;
    *)
      warn "the gateway answers $probe_status to a call with a key" "${probe_body:0:300}"
      return 1 ;;
  esac
  if [ -z "$probe_id" ]; then
    warn "the gateway's answer has no X-Kong-Request-Id"
    return 1
  fi
  runs_postgresql || return 0
  for _ in $(seq 30); do
    if [ "$(query llm "SELECT count(*) FROM llm_logs WHERE request_id = '$probe_id'")" = 1 ]; then
      info "and its row is in the audit log"
      return 0
    fi
    sleep 0.5
  done
  warn "the call $probe_id did not reach the audit log within 15 s" "Kong's queue:  $(this_gateway) logs kong" "The collector:  $(this_gateway) logs collector"
  return 1
}
