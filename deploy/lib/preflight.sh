# shellcheck shell=bash disable=SC2034,SC2154,SC2004
# Variables are shared with the files beside this one; $ in sums, because shellcheck 0.9 trips over map elements without.
#
# preflight.sh - looks at the host before anything is changed and reports everything it finds at once, each with what to
# do. An error stops the installation, a warning does not. Sourced, never run.

errors=0 warnings=0

# finding error|warning WHAT HOW_TO_MEND…
finding() {
  local kind=$1 what=$2
  shift 2
  if [ "$kind" = error ]; then errors=$((errors + 1)); else warnings=$((warnings + 1)); fi
  printf '%-8s %s\n' "$kind" "$what" >&2
  printf '         %s\n' "$@" >&2
}

# preflight - all checks. images_kb: size of the image files that will be loaded, 0 for none.
preflight() {
  local images_kb=$1
  errors=0 warnings=0
  check_tools
  check_architecture
  check_clock
  check_memory
  check_disk "$images_kb"
  if check_docker; then
    check_compose
    check_docker_disk "$images_kb"
  fi
  check_selinux
  check_users
  check_free_ports
  check_certificate
  check_vllm
  if [ $errors -gt 0 ]; then
    fatal "$errors of the checks above must be mended first; nothing was changed" "Then run the same command again."
  fi
  info "the host is ready$([ $warnings = 0 ] || echo ", with $warnings warnings")"
}

check_tools() {
  local tool
  for tool in curl:curl awk:mawk sed:sed tar:tar gzip:gzip sha256sum:coreutils flock:util-linux od:coreutils; do
    have "${tool%:*}" || finding error "${tool%:*} is missing" "apt-get install ${tool#*:}, or from your distribution's installation media"
  done
}

check_architecture() {
  local machine=${GATEWAY_TEST_MACHINE:-$(uname -m)} wanted
  case $machine in x86_64) machine=amd64 ;; aarch64) machine=arm64 ;; esac
  [ "$(uname -s)" = Linux ] || finding error "this is $(uname -s), not Linux" "Host networking needs Linux."
  [ -r "$release_dir/ARCHITECTURE" ] || return 0
  wanted=$(<"$release_dir/ARCHITECTURE")
  [ "$machine" = "$wanted" ] ||
    finding error "this host is $machine, the bundle is for $wanted" "Make the bundle again with:  make bundle PLATFORM=linux/$machine"
}

# Rows and partitions go by the clock, and so do rate limits and certificates.
check_clock() {
  local made now
  now=${GATEWAY_TEST_NOW:-$(date +%s)}
  made=$(cat "$release_dir/BUILT" 2>/dev/null || echo 0)
  if [ "$now" -lt "${made:-0}" ]; then
    finding error "the clock is wrong: it shows $(date -u -d "@$now" +%FT%TZ), but the bundle was made at $(date -u -d "@$made" +%FT%TZ)" \
      "Set it:  date -u -s 'YYYY-MM-DD HH:MM:SS'  and keep it right with a time server of your network (chrony)."
  elif have timedatectl && [ "$(timedatectl show -p NTPSynchronized --value 2>/dev/null)" = no ]; then
    finding warning "the clock is not synchronised" "Use a time server of your network (chrony, systemd-timesyncd): the audit log needs right times."
  fi
}

check_memory() {
  local have_mb wanted_mb=0 name
  have_mb=$(awk '$1 == "MemTotal:" { printf "%d", $2 / 1024 }' /proc/meminfo)
  for name in POSTGRES KONG COLLECTOR PROMETHEUS GRAFANA; do wanted_mb=$((wanted_mb + ${setting[${name}_MEMORY_MB]})); done
  [ "${setting[WRITER_ROLE]}" = off ] || wanted_mb=$((wanted_mb + upkeep_memory_mb))
  if [ "$have_mb" -lt 2048 ]; then
    finding error "this host has $have_mb MB of memory; the gateway needs 2 GB at least" "Install it on a larger host."
  elif [ "$have_mb" -lt "$wanted_mb" ]; then
    finding warning "the services may take $wanted_mb MB together, this host has $have_mb MB" "Lower the *_MEMORY_MB settings."
  fi
}

check_disk() {
  local free needed=$((${setting[MINIMUM_FREE_GB]} * 1048576))
  free=$(free_kb "$data_dir")
  [ "$free" -ge $needed ] ||
    finding error "the disk of $data_dir has $(human_kb "$free") free; MINIMUM_FREE_GB asks for ${setting[MINIMUM_FREE_GB]} GB" \
      "Make room, set DATA_DIR to a larger disk, or lower MINIMUM_FREE_GB in the settings."
  # The release's own files, without images.
  [ "$(free_kb "$home")" -ge 65536 ] ||
    finding error "the disk of $home has $(human_kb "$(free_kb "$home")") free; 64 MB are needed" "Make room, or choose another folder:  install.sh --home DIR"
}

# Status 0 when the daemon answers.
check_docker() {
  local answer version
  if ! have docker; then
    finding error "Docker is missing" "apt-get install docker.io docker-compose, or Docker's own packages from a medium"
    return 1
  fi
  if ! answer=$(docker version --format '{{.Server.Version}}' 2>&1); then
    finding error "Docker's daemon does not answer" "${answer##*$'\n'}" "Start it:  systemctl start docker   (it should start at boot: systemctl enable docker)" \
      "${DOCKER_HOST:+DOCKER_HOST is set to $DOCKER_HOST; if that is not wanted:  unset DOCKER_HOST}"
    return 1
  fi
  version=${answer##*$'\n'}
  version_at_least "$version" 20.10.0 || finding error "Docker $version is too old; 20.10 is the oldest tested" "Install a newer Docker Engine."
  if have systemctl && [ "$(systemctl is-enabled docker 2>/dev/null)" = disabled ]; then
    finding warning "Docker does not start at boot" "systemctl enable docker"
  fi
  answer=$(docker info --format '{{.SecurityOptions}} memory={{.MemoryLimit}}' 2>/dev/null)
  case $answer in
    *rootless* | *userns*) finding error "Docker runs rootless or with user namespaces" \
      "Containers then see other owners than the files have. Use a Docker Engine without userns-remap for the gateway." ;;
  esac
  [[ $answer != *memory=false* ]] || finding warning "this kernel does not limit the memory of containers" \
    "Boot with  cgroup_enable=memory swapaccount=1"
}

# What containers mount must carry a label there. Not tried by this project.
check_selinux() {
  if have getenforce && [ "$(getenforce)" = Enforcing ]; then
    finding warning "SELinux is enforcing: containers may not read $home and $data_dir" \
      "When a service says 'Permission denied':  chcon -Rt container_file_t $home $data_dir"
  fi
}

# The numbers of the containers' users must be nobody else's: neither an account's nor one of those that accounts give to containers.
check_users() {
  local first=${setting[CONTAINER_UIDS]} number who
  for ((number = first; number < first + 5; number++)); do
    who=$(getent passwd "$number" | cut -d : -f 1) || true
    [ -n "$who" ] || who=$(cat /etc/subuid /etc/subgid 2>/dev/null | awk -F : -v n="$number" 'n >= $2 && n < $2 + $3 { print $1; exit }')
    [ -z "$who" ] || finding error "the user number $number, meant for a container, belongs to $who" \
      "Set CONTAINER_UIDS in $settings_shown to the first of five numbers that are free:  getent passwd; cat /etc/subuid"
  done
}

check_compose() {
  if ! find_compose; then
    finding error "Compose is missing" "apt-get install docker-compose (Debian 12, Ubuntu 22.04) or docker-compose-v2 or docker-compose-plugin"
  elif ! version_at_least "$compose_version" 1.28.0; then
    finding error "Compose $compose_version is too old; 1.28 is the oldest that reads the file" "Install a newer docker-compose."
  fi
}

check_docker_disk() {
  local root free
  [ "$1" -gt 0 ] || return 0
  root=$(docker info --format '{{.DockerRootDir}}' 2>/dev/null)
  [ -d "$root" ] || return 0
  free=$(free_kb "$root")
  # While an image is loaded its layers are there twice.
  [ "$free" -ge $(($1 * 2)) ] ||
    finding error "the disk of $root has $(human_kb "$free") free; loading the images needs $(human_kb $(($1 * 2)))" \
      "Make room (docker image prune), or move Docker's data-root to a larger disk."
}

# --- ports ---------------------------------------------------------------------------------------------------------------

# Local addresses and ports that somebody listens on, as ADDRESS PORT, from the kernel itself: ss may be missing. Addresses
# as the kernel writes them, in hexadecimal and little-endian: 00000000 is everywhere, 0100007F is 127.0.0.1.
listening() {
  local files=()
  [ ! -r /proc/net/tcp ] || files+=(/proc/net/tcp)
  [ ! -r /proc/net/tcp6 ] || files+=(/proc/net/tcp6)
  awk '$4 == "0A" { split($2, part, ":"); print part[1], part[2] }' "${files[@]}"
}

# Status 0 when something listens on the port at an address that we would listen on.
port_is_taken() {
  local hex
  hex=$(printf '%04X' "$1")
  listening | awk -v port="$hex" '$2 == port { found = 1 } END { exit !found }'
}

# Whether the running service of this installation is the one that listens: it was started with the same port.
is_ours() {
  local service=$1 name=$2
  [ -r "$config_dir/compose.env" ] && grep -qx "$name=${setting[$name]}" "$config_dir/compose.env" &&
    have docker && docker version >/dev/null 2>&1 && is_running "$service"
}

check_free_ports() {
  local pair service name who
  for pair in kong:PROXY_PORT kong:KONG_ADMIN_PORT kong:KONG_MANAGER_PORT kong:KONG_STATUS_PORT collector:COLLECTOR_PORT \
    postgresql:POSTGRES_PORT prometheus:PROMETHEUS_PORT grafana:GRAFANA_PORT; do
    service=${pair%:*} name=${pair#*:}
    [ "$service" != postgresql ] || runs_postgresql || continue
    port_is_taken "${setting[$name]}" || continue
    ! is_ours "$service" "$name" || continue
    who=$(holder_of "${setting[$name]}")
    finding error "port ${setting[$name]} ($name, for $service) is taken${who:+ by $who}" \
      "Who has it:  ss -ltnp 'sport = :${setting[$name]}'" "Stop that program, or set another $name in $settings_shown."
  done
}

holder_of() {
  have ss || return 0
  ss -ltnpH "sport = :$1" 2>/dev/null | grep -oE 'users:\(\("[^"]+",pid=[0-9]+' | head -n 1 | sed -E 's/users:\(\("([^"]+)",pid=([0-9]+)/\1 (process \2)/' || true
}

# --- TLS ---------------------------------------------------------------------------------------------------------------------

check_certificate() {
  local problem
  uses_tls || return 0
  problem=$(tls_problem)
  [ -z "$problem" ] || finding error "TLS_CERT_FILE and TLS_KEY_FILE cannot be used: ${problem%%$'\n'*}" "See docs/tls.md, or leave both empty in $settings_shown for HTTP."
}

# --- vLLM -----------------------------------------------------------------------------------------------------------------

# Whether a vLLM on this host answers without a key.
vllm_takes_anybody() {
  vllm_is_here && [ "$(curl -q -sS --noproxy '*' --max-time 10 -o /dev/null -w '%{http_code}' "${setting[VLLM_URL]%/}/v1/models" 2>/dev/null)" = 200 ]
}

check_vllm() {
  local url=${setting[VLLM_URL]%/} status authority host port open
  authority=${url#*://} authority=${authority%%/*}
  host=${authority%:*} port=${authority##*:}
  if [ -n "${setting[VLLM_API_KEY_FILE]}" ] && [ ! -s "${setting[VLLM_API_KEY_FILE]}" ]; then
    finding error "VLLM_API_KEY_FILE names ${setting[VLLM_API_KEY_FILE]}, which is missing or empty" "Put the key into its first line, and:  chmod 600 ${setting[VLLM_API_KEY_FILE]}"
  fi
  # Any answer will do: with a key of its own vLLM says 401.
  if ! have curl || ! status=$(curl -q -sS --noproxy '*' --max-time 10 -o /dev/null -w '%{http_code}' "$url/v1/models" 2>&1); then
    if [ "${without_vllm:-0}" = 1 ]; then
      finding warning "vLLM does not answer at $url" "The gateway answers 502 until it does."
    else
      finding error "vLLM does not answer at $url: ${status##*) }" "Start it (vllm serve MODEL --host 127.0.0.1), or correct VLLM_URL in $settings_shown." \
        "To install before vLLM is there:  $0 --without-vllm"
    fi
    return
  fi
  case $host in 127.* | localhost | '[::1]') ;; *) return 0 ;; esac
  [[ $port =~ ^[0-9]+$ ]] || port=80
  # Everything but 127.0.0.0/8, ::1 and ::ffff:127.0.0.0/104.
  open=$(listening | awk -v port="$(printf '%04X' "$port")" '$2 == port && $1 !~ /7F$/ && $1 != "00000000000000000000000001000000" { print $1; exit }')
  [ -z "$open" ] || finding warning "vLLM listens beyond the loopback address: whoever reaches port $port passes by keys, limits and the audit log" \
    "Start it with  --host 127.0.0.1  (in a container:  -p 127.0.0.1:$port:$port), or close the port in the firewall."
}
