# shellcheck shell=bash disable=SC2154  # variables are those of configure.sh
#
# other-ways.sh - what configure.sh did not make and what leads to vLLM past the keys, or runs in the place of a plugin that it
# sets up: left from an earlier installation, or made by hand. Finds it, names it, and removes it on demand. Sourced, never run.

# The names of this host are one: whoever writes localhost means 127.0.0.1.
plain_host() {
  local host=${1,,}
  host=${host%.} host=${host#[} host=${host%]}
  case " localhost ::1 :: 0.0.0.0 $(hostname 2>/dev/null | tr '[:upper:]' '[:lower:]') $(hostname -I 2>/dev/null) " in
    *" $host "*) host=127.0.0.1 ;;
  esac
  [[ $host != 127.* ]] || host=127.0.0.1
  printf '%s' "$host"
}

# Whether HOST and PORT of a service lead to vLLM; HOST may be an upstream's name.
leads_to_vllm() {
  local target
  if [ "$2" = "$vllm_port" ] && [ "$(plain_host "$1")" = "$vllm_at" ]; then return 0; fi
  for target in $(admin_list "/upstreams/$(url_encode "$1")/targets" | fields target); do
    if [ "${target##*:}" = "$vllm_port" ] && [ "$(plain_host "${target%:*}")" = "$vllm_at" ]; then return 0; fi
  done
  return 1
}

# Sets to_vllm and other (which names what this Kong serves besides): a line for each service but ours that leads to vLLM, and for each that does not: id and name.
look_at_services() {
  local id name host port
  vllm_at=$(plain_host "$vllm_host") to_vllm='' other=''
  while IFS=$'\t' read -r id name host port; do
    if [ -z "$id" ] || [ "$id" = "$SERVICE_ID" ]; then continue; fi
    if leads_to_vllm "$host" "$port"; then to_vllm+="$id $name"$'\n'; else other+="$id $name"$'\n'; fi
  done < <(admin_list /services | fields id name host port)
}

# Routes of our service that are not ours: id and name.
other_routes() { admin_list "/services/$SERVICE_ID/routes" | fields id name | grep -v "^$GATEWAY_IDS" || true; }

# Instances of the plugins set up here that would run in their place at our service: id and name.
other_plugins() {
  local id name service route consumer
  while IFS=$'\t' read -r id name service route consumer; do
    case " $OWN_PLUGINS " in *" $name "*) ;; *) continue ;; esac
    if [ "$consumer" != null ] || [[ $id == "$GATEWAY_IDS"* ]]; then continue; fi
    if [ "$service" = "$SERVICE_ID" ] || [[ $route == "$GATEWAY_IDS"* ]]; then
      echo "$id $name"
    elif [ "$service $route $audit_scope" = "null null $OF_ALL" ]; then
      case $name in llm-audit | http-log | prometheus) echo "$id $name" ;; esac
    fi
  done < <(admin_list /plugins | fields id name service.id route.id consumer.id)
}

# Removes all of these: what they opened is reached by our own routes, with a key.
adopt() {
  local id name route
  while read -r id name; do
    [ -n "$id" ] || continue
    for route in $(admin_list "/services/$id/routes" | list_ids); do ensure_absent "route $route of service $name" "/routes/$route"; done
    ensure_absent "service $name, which led to vLLM" "/services/$id"
  done <<<"$to_vllm"
  while IFS=$'\t' read -r id name; do
    [ -z "$id" ] || ensure_absent "route $name" "/routes/$id"
  done < <(other_routes)
  while read -r id name; do
    [ -z "$id" ] || ensure_absent "plugin $name, instance $id" "/plugins/$id"
  done < <(other_plugins)
}

warn_of_other_ways() {
  local id name found=0
  while read -r id name; do
    [ -n "$id" ] || continue
    found=1
    warn "the service $name also leads to vLLM, with other rules: its routes are at $KONG_ADMIN_URL/services/$id/routes"
  done <<<"$to_vllm"
  while IFS=$'\t' read -r id name; do
    [ -n "$id" ] || continue
    found=1
    warn "the route $name at the vLLM service was not made by this script: $KONG_ADMIN_URL/routes/$id"
  done < <(other_routes)
  while read -r id name; do
    [ -n "$id" ] || continue
    found=1
    warn "the plugin $name, instance $id, runs in the place of this script's: $KONG_ADMIN_URL/plugins/$id"
  done < <(other_plugins)
  [ $found = 0 ] || warn 'to remove all of these, run this with --adopt'
}
