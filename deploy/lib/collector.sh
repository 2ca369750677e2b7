# shellcheck shell=bash disable=SC2154  # variables are shared with the files beside this one
#
# collector.sh - llm-collector's own commands, run in its container; those that configure Kong among them. Sourced, never run.

# Where the collector's commands find the rights of the owner of the tables.
commands_service() { if [ "${setting[WRITER_ROLE]}" = on ]; then echo upkeep; else echo collector; fi; }

# Further options of docker exec, for a command that needs more of the environment.
command_environment=()

# collector_command [-i] COMMAND… - a command of the collector in a container where the owner's database URL and the token are known.
# With -i it reads our standard input; without, terminals keep their colours. What an operator calls may take hours and is his to end;
# a script that waits for it sets command_seconds.
collector_command() {
  local id flags=() service limit=()
  service=$(commands_service)
  if [ "$1" = -i ]; then
    flags=(-i)
    shift
  elif [ -t 0 ] && [ -t 1 ]; then
    flags=(-it)
  fi
  id=$(container_of "$service")
  if [ -z "$id" ] || ! is_running "$service"; then
    fatal "the service $service, in which this runs, is not running" "Start it:  $(this_gateway) up"
  fi
  [ -z "${command_seconds:-}" ] || limit=(timeout "$command_seconds")
  # Passwords go by their names: they would stand in the process list.
  GRAFANA_ADMIN_PASSWORD=${secret[GRAFANA_ADMIN_PASSWORD]} KONG_ADMIN_PASSWORD=${secret[KONG_ADMIN_PASSWORD]} \
    "${limit[@]}" docker exec "${flags[@]}" -e GRAFANA_ADMIN_PASSWORD -e KONG_ADMIN_PASSWORD \
    -e GATEWAY_COMMAND="$(this_gateway)" \
    -e KONG_ADMIN_URL="$admin_url" -e KONG_PROXY_URL="$own_proxy_url" -e GATEWAY_CERTIFICATE_SHA256="$tls_sha256" \
    -e KONG_STATUS_URL="http://127.0.0.1:${setting[KONG_STATUS_PORT]}" \
    -e COLLECTOR_URL="http://127.0.0.1:${setting[COLLECTOR_PORT]}" -e PROMETHEUS_URL="http://127.0.0.1:${setting[PROMETHEUS_PORT]}" \
    -e GRAFANA_URL="$grafana_url" -e VLLM_URL="${setting[VLLM_URL]}" -e VLLM_API_KEY_FILE="$(vllm_key_file)" \
    "${command_environment[@]}" "$id" /llm-collector "$@"
}

# Standard input is read only where a word asks for it: a loop that calls this must not lose its own.
with_input_on_demand() {
  local word flags=()
  for word in "$@"; do [[ $word != - && $word != --*=- ]] || flags=(-i); done
  collector_command "${flags[@]}" "$@"
}

# The folder is in the container that nobody sends anything to, and in no other: whoever takes over the one that reads what anybody sends
# could remove years.
feed() {
  [ "${setting[WRITER_ROLE]}" = on ] || fatal "the feed works in the service upkeep, which WRITER_ROLE=off leaves out" \
    "Set WRITER_ROLE=on in gateway.env and gateway apply, or run llm-collector feed yourself."
  collector_command feed "$@"
}
users() { with_input_on_demand users "$@"; }
models() { with_input_on_demand models "$@"; }

configure_options=(--wait)

# Kong as the settings want it. Prints what changed, and keeps quiet otherwise.
configure_kong() {
  local output line key command_seconds=300 command_environment=(-e VLLM_API_KEY)
  key=$(vllm_key) || exit 1
  while IFS= read -r line; do command_environment+=(-e "$line"); done < <(kong_environment)
  output=$(VLLM_API_KEY=$key collector_command kong apply "${configure_options[@]}" 2>&1) || {
    printf '%s\n' "$output" | sed 's/^/         | /' | without_secrets >&2
    fatal "could not configure Kong" "The reason is above. After mending it, run the same command again."
  }
  if ! grep -qx 'nothing to change' <<<"$output"; then
    info "configured Kong: $(grep -cE '^(created|updated|removed) ' <<<"$output") parts created or changed"
    changed=$((changed + 1))
  fi
  grep -A3 '^warning:' <<<"$output" | without_secrets >&2 || true
}
