# shellcheck shell=bash disable=SC2034,SC2154  # variables are shared with the files beside this one
#
# support.sh - gateway support: what somebody who helps from afar would ask for, in one file, without secrets and without
# anybody's conversations. Sourced, never run.

support() {
  local file=${1:-$PWD/gateway-support-$(date -u +%Y%m%d-%H%M%S).tar.gz} folder service id
  folder=$(mktemp -d)
  # shellcheck disable=SC2064
  trap "rm -rf '$folder'" EXIT
  mkdir "$folder/support"
  {
    # Each into a file of its own; what fails says so there.
    collect versions show_versions
    collect status status
    collect doctor doctor
    collect settings cat "$settings_file"
    collect derived cat "$config_dir/compose.env"
    collect compose run_compose config
    collect prometheus cat "$config_dir/prometheus/prometheus.yml"
    collect kong-plugins ask_admin '/plugins?size=1000'
    collect kong-services ask_admin /services
    collect kong-routes ask_admin '/routes?size=1000'
    collect users users list
    collect collector-metrics curl -q -sS --noproxy '*' --max-time 10 "http://127.0.0.1:${setting[COLLECTOR_PORT]}/metrics"
    collect targets curl -q -sS --noproxy '*' --max-time 10 "http://127.0.0.1:${setting[PROMETHEUS_PORT]}/api/v1/targets"
    collect tables show_tables
    collect host show_host
    for service in "${services[@]}"; do
      id=$(container_of "$service")
      [ -z "$id" ] || collect "inspect-$service" docker inspect "$id"
      [ -z "$id" ] || collect "log-$service" docker logs --timestamps --tail 2000 "$id"
    done
  }
  tar -C "$folder" -czf "$file" support || fatal "cannot write $file"
  chmod 600 "$file"
  info "look at it before you pass it on: names of users and models are in it, prompts, answers and keys are not"
  echo "$file"
}

# collect NAME COMMAND… - its output, without secrets.
collect() {
  local name=$1
  shift
  ("$@" </dev/null 2>&1 || echo "(status $?)") | without_secrets >"$folder/support/$name.txt"
}

show_versions() {
  cat "$release_dir/VERSION" "$release_dir/MANIFEST" 2>/dev/null
  docker version
  echo "Compose $compose_version"
  cat /etc/os-release
  uname -a
}

show_tables() {
  runs_postgresql || return 0
  query llm "SELECT relname, n_live_tup, pg_size_pretty(pg_total_relation_size(relid)) FROM pg_stat_user_tables ORDER BY pg_total_relation_size(relid) DESC LIMIT 50"
  query llm "SELECT name, setting FROM pg_settings WHERE source <> 'default' AND name NOT LIKE '%password%'"
  query llm "SELECT datname, usename, state, count(*) FROM pg_stat_activity GROUP BY 1, 2, 3"
}

show_host() {
  date -u
  uptime
  free -m
  df -h
  listening | sort -u
  docker ps -a
  docker info
}
