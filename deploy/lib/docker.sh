# shellcheck shell=bash disable=SC2034,SC2154  # variables are shared with the files beside this one
#
# docker.sh - Docker, Compose and the images of a release. Sourced, never run.
#
# Containers are found by Compose's labels, not by name: version 1 calls them p_kong_1, version 2 p-kong-1.

# Sets compose: the plugin when it is there, else the older program.
find_compose() {
  if docker compose version >/dev/null 2>&1; then
    compose=(docker compose)
    compose_version=$(docker compose version --short 2>/dev/null)
  elif have docker-compose; then
    compose=(docker-compose)
    compose_version=$(docker-compose version --short 2>/dev/null)
  else
    return 1
  fi
  compose_version=${compose_version#v}
}

# Compose with this installation's variables and nothing else: a variable of the operator's shell would win over them.
run_compose() {
  env -i PATH="$PATH" HOME="${HOME:-/root}" ${DOCKER_HOST:+DOCKER_HOST="$DOCKER_HOST"} ${DOCKER_CONFIG:+DOCKER_CONFIG="$DOCKER_CONFIG"} \
    COMPOSE_PROJECT_NAME="$project" COMPOSE_ANSI=never \
    "${compose[@]}" --project-directory "$home" --env-file "$config_dir/compose.env" -f "$release_dir/deploy/compose.yaml" "$@"
}

# The id of a service's container, running or not; nothing when there is none.
container_of() {
  docker ps -aq --no-trunc --filter "label=com.docker.compose.project=$project" --filter "label=com.docker.compose.service=$1" \
    --filter label=com.docker.compose.oneoff=False | head -n 1
}

# Words: state (running, exited, restarting), health (healthy, unhealthy, starting, none), number of restarts.
state_of() {
  local id state
  id=$(container_of "$1")
  state=$([ -z "$id" ] || docker inspect --format '{{.State.Status}} {{if .State.Health}}{{.State.Health.Status}}{{else}}none{{end}} {{.RestartCount}}' "$id" 2>/dev/null) || state=''
  # Docker asks for the first time only after an interval; whoever waits asks as often as he likes.
  if [[ $state == 'running starting '* ]] && passes_check "$id"; then state=${state/starting/healthy}; fi
  echo "${state:-absent none 0}"
}

# Runs the health check of a container now.
passes_check() {
  local check
  mapfile -t check < <(docker inspect --format '{{range .Config.Healthcheck.Test}}{{println .}}{{end}}' "$1")
  # The first word is CMD, the last an empty line. Docker itself gives up on a check in time, which this call would not.
  timeout 20 docker exec "$1" "${check[@]:1:${#check[@]}-2}" >/dev/null 2>&1 </dev/null
}

is_running() {
  local id
  id=$(container_of "$1")
  [ -n "$id" ] && [ "$(docker inspect --format '{{.State.Status}}' "$id" 2>/dev/null)" = running ]
}

# start_services SERVICE… - makes and starts what is not there or not as described. Adds to changed what it touched.
#
# A container that has to be made anew is removed first: Compose 1.29 cannot replace one on newer engines (it ends with
# KeyError 'ContainerConfig').
start_services() {
  local service id hashes wanted have output todo=()
  hashes=$(run_compose config --hash='*') || fatal "Compose cannot read $release_dir/deploy/compose.yaml" "See the message above."
  for service in "$@"; do
    id=$(container_of "$service")
    wanted=$(awk -v service="$service" '$1 == service { print $2 }' <<<"$hashes")
    have=''
    [ -z "$id" ] || have=$(docker inspect --format '{{index .Config.Labels "com.docker.compose.config-hash"}}' "$id")
    if [ -n "$id" ] && [ "$have" != "$wanted" ]; then
      info "$service is made anew: its image or settings changed"
      remove_container "$service" "$id"
      id=''
    elif [ -n "$id" ] && [[ $(state_of "$service") == restarting* ]]; then
      # It waits, longer after each failure; what made it fail may be mended.
      remove_container "$service" "$id"
      id=''
    fi
    if [ -z "$id" ] || ! is_running "$service"; then todo+=("$service"); fi
  done
  [ ${#todo[@]} -gt 0 ] || return 0
  info "starting ${todo[*]}"
  changed=$((changed + ${#todo[@]}))
  output=$(run_compose up -d --no-build --no-recreate "${todo[@]}" 2>&1) || {
    printf '%s\n' "$output" >&2
    fatal "Compose could not start: ${todo[*]}" "The reason is above. After mending it, run the same command again."
  }
}

remove_container() {
  stop_container "$1" "$2"
  docker rm -fv "$2" >/dev/null
}

stop_container() {
  local grace=30
  case $1 in postgresql | kong | prometheus) grace=60 ;; esac
  docker stop -t $grace "$2" >/dev/null
}

stop_services() {
  local service id
  for service in "$@"; do
    id=$(container_of "$service")
    [ -z "$id" ] || ! is_running "$service" || stop_container "$service" "$id"
  done
}

# wait_healthy SECONDS SERVICE… - until all are healthy. Says what is wrong with the first that is not.
wait_healthy() {
  local deadline=$((SECONDS + $1)) service state restarts
  shift
  for service in "$@"; do
    restarts=''
    while :; do
      state=$(state_of "$service")
      restarts=${restarts:-${state##* }}
      case $state in
        'running healthy'*) break ;;
        running* | restarting* | created*) ;;
        *) explain_failure "$service" "$state" && return 1 ;;
      esac
      # Docker restarts what ends; three times while we look is no accident. An unhealthy container may still recover.
      if [ "${state##* }" -ge $((restarts + 3)) ] || [ $SECONDS -ge $deadline ]; then
        explain_failure "$service" "$state" && return 1
      fi
      sleep 0.5
    done
  done
}

explain_failure() {
  local service=$1 state=$2 id log
  id=$(container_of "$service")
  log=$([ -z "$id" ] || docker logs --tail 60 "$id" 2>&1)
  warn "$service is not healthy: ${state% *}" "from the end of its log:"
  # What ended it may stand above the start of the next attempt.
  {
    grep -iE 'error|fatal|panic|fail|denied|no space' <<<"$log" | tail -n 3 || true
    echo ...
    tail -n 5 <<<"$log"
  } | cut -c 1-500 | sed 's/^/         | /' | without_secrets >&2
  case $log in
    *'assword authentication failed'* | *'no password supplied'*)
      if runs_postgresql; then
        warn "$service has another password than PostgreSQL knows" "Set it anew on both sides:  $(this_gateway) apply"
      else
        warn "$service has another password than PostgreSQL at ${setting[POSTGRES_HOST]} knows" \
          "Set it there as in $secrets_file: see 'Several gateway hosts' in docs/scale.md"
      fi ;;
    *'Address already in use'* | *'address already in use'* | *'listens on'*already*)
      warn "a port of $service is taken" "Who has it:  ss -ltnp" "Another port: in $settings_file, then  $(this_gateway) apply" ;;
    *'No space left on device'*)
      warn "the disk is full" "Where:  df -h $data_dir /var/lib/docker" ;;
    *'ermission denied'*)
      warn "$service may not read or write a file" "Owners are put right by:  $(this_gateway) apply" ;;
  esac
}

# show_logs [-f] [--since TIME] [--until TIME] [--tail N] [-t] SERVICE… - Docker's own log of each, because Compose 1.29 knows no --since.
show_logs() {
  local options=() chosen=() service id
  while [ $# -gt 0 ]; do
    case $1 in
      -f | --follow) options+=(--follow) ;;
      -t | --timestamps) options+=(--timestamps) ;;
      --since=* | --until=* | --tail=*) options+=("$1") ;;
      --since | --until | --tail)
        [ $# -ge 2 ] || fatal "logs: $1 needs a value"
        options+=("$1=$2") && shift ;;
      -*) fatal "logs does not know $1" ;;
      *) chosen+=("$1") ;;
    esac
    shift
  done
  for service in "${chosen[@]}"; do
    id=$(container_of "$service")
    [ -n "$id" ] || { warn "there is no container of $service" && continue; }
    if [[ " ${options[*]} " == *' --follow '* ]]; then
      log_of "$service" "$id" "${options[@]}" &
    else
      log_of "$service" "$id" "${options[@]}"
    fi
  done
  wait
}

log_of() {
  local service=$1 id=$2
  shift 2
  docker logs "$@" "$id" 2>&1 | sed -u "s/^/$(printf '%-10s' "$service") | /"
}

this_gateway() { echo "sudo $home/gateway"; }

# Standard input without any of this installation's secrets. The pattern file is a pipe: no process list shows it.
without_secrets() {
  sed -f <(
    printf '%s\n' "${secret[@]}" | sed -e '/^$/d' -e 's/[][\.*^$/]/\\&/g' -e 's/.*/s\/&\/***\/g/'
    echo 's/sk-[A-Za-z0-9_-]\{16,\}/sk-***/g'
  )
}

# --- images -----------------------------------------------------------------------------------------------------------

declare -gA image_name image_id image_user

# role_of IMAGE - which service an image is for, by the last part of its name.
role_of() {
  local name=${1##*/}
  case ${name%%[:@]*} in
    kong) echo KONG ;;
    postgres) echo POSTGRES ;;
    prometheus) echo PROMETHEUS ;;
    grafana | grafana-oss) echo GRAFANA ;;
    llm-collector) echo COLLECTOR ;;
    *) fatal "$release_dir/deploy/images.txt: nothing is known of the image $1" "Its last part must be kong, postgres, prometheus, grafana or llm-collector." ;;
  esac
}

# The images of a list, without comments.
images_in() { sed -e 's/#.*//' -e 's/[[:space:]]//g' "$1" | grep -v '^$'; }

# Sets image_name for every role from the release's list.
read_images() {
  local image role
  image_name=()
  while read -r image; do
    role=$(role_of "$image") || exit 1
    image_name[$role]=$image
  done < <(images_in "$release_dir/deploy/images.txt")
  for role in KONG POSTGRES PROMETHEUS GRAFANA COLLECTOR; do
    [ -n "${image_name[$role]:-}" ] || fatal "$release_dir/deploy/images.txt names no image for ${role,,}"
  done
}

# Sets image_id and image_user from the images that Docker has. What a look into an image costs (starting a container) is
# paid once: the answers are kept by image id.
look_into_images() {
  local role name id kept known=$state_dir/images
  mkdir -p "$state_dir"
  touch "$known"
  for role in KONG POSTGRES PROMETHEUS GRAFANA COLLECTOR; do
    name=${image_name[$role]}
    id=$(docker image inspect --format '{{.Id}}' "$name" 2>/dev/null) ||
      fatal "Docker does not have the image $name" "Load it from the bundle: run install.sh there again."
    image_id[$role]=$id
    kept=$(awk -v id="$id" -v role="$role" -v own="$(own_user "$role")" '$1 == role && $2 == id && $4 == own { print $3; exit }' "$known")
    if [ -z "$kept" ]; then
      kept=$(look_into_image "$role" "$name") || exit 1
      printf '%s %s %s %s\n' "$role" "$id" "$kept" "$(own_user "$role")" >>"$known"
    fi
    image_user[$role]=$kept
  done
}

# UID:GID of this installation for a service. The images' own numbers are those of other programs everywhere: an account of this
# host that happens to have one reads the container's secrets through /proc, and may listen beside it on its port.
own_user() {
  local number=${setting[CONTAINER_UIDS]}
  case $1 in KONG) ;; POSTGRES) number=$((number + 1)) ;; COLLECTOR) number=$((number + 2)) ;; PROMETHEUS) number=$((number + 3)) ;; GRAFANA) number=$((number + 4)) ;; esac
  echo "$number:$number"
}

# Prints UID:GID under which the service runs, and refuses images that must not run.
look_into_image() {
  local role=$1 name=$2 own
  own=$(own_user "$role")
  # Nothing of the host, not even the network: only the image is asked.
  local run=(docker run --rm --network none --cap-drop ALL --read-only --tmpfs /tmp:mode=1777 --log-driver none)
  case $role in
    KONG)
      check_kong_version "$("${run[@]}" --entrypoint kong "$name" version 2>&1 </dev/null)"
      # Kong reads files of its own; an image that lets nobody else read them keeps its user.
      if ! "${run[@]}" --user "$own" --entrypoint kong "$name" prepare -p /tmp/kong >/dev/null 2>&1 </dev/null; then
        own=$("${run[@]}" --entrypoint id "$name" -u </dev/null):$("${run[@]}" --entrypoint id "$name" -g </dev/null)
        warn "the image $name does not run as user ${setting[CONTAINER_UIDS]}; it keeps its own, $own" \
          "An account of this host with that number could read Kong's secrets:  getent passwd ${own%:*}"
      fi ;;
    POSTGRES) check_postgres_version "$("${run[@]}" --entrypoint postgres "$name" --version 2>&1 </dev/null)" ;;
  esac
  grep -E '^[0-9]+:[0-9]+$' <<<"$own" || fatal "cannot look into the image $name" "Try:  docker run --rm --entrypoint id $name"
}

# Older than KONG_MINIMUM is refused; 3.10 and later want a licence.
check_kong_version() {
  local version
  version=$(grep -oE '[0-9]+\.[0-9]+\.[0-9]+' <<<"$1" | head -n 1) || true
  [ -n "$version" ] || fatal "the image ${image_name[KONG]} does not say which version of Kong it is" "${1%%$'\n'*}"
  version_at_least "$version" "$KONG_MINIMUM" ||
    fatal "Kong $version $KONG_TOO_OLD" "Take $KONG_MINIMUM or newer of the 3.9 line in deploy/images.txt and make the bundle anew."
  [[ $version == 3.9.* ]] || warn "Kong $version: only the 3.9 line was tested; 3.10 and later want a licence"
}

# Files of one major version are unreadable for another.
check_postgres_version() {
  local new old=''
  new=$(grep -oE '[0-9]+' <<<"$1" | head -n 1) || true
  [ -n "$new" ] || fatal "the image ${image_name[POSTGRES]} does not say which version of PostgreSQL it is" "${1%%$'\n'*}"
  [ ! -e "$data_dir/postgresql/PG_VERSION" ] || old=$(<"$data_dir/postgresql/PG_VERSION")
  [ -z "$old" ] || [ "$old" = "$new" ] ||
    fatal "the data in $data_dir/postgresql are of PostgreSQL $old, the image is $new" \
      "With the old version:  $(this_gateway) backup;  $(this_gateway) uninstall" \
      "Move $data_dir/postgresql away, install the new version, then:  $(this_gateway) restore BACKUP"
}
