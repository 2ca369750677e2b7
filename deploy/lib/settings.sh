# shellcheck shell=bash disable=SC2034,SC2154,SC2004
# Variables are shared with the files beside this one; $ in sums, because shellcheck 0.9 trips over map elements without.
#
# settings.sh - gateway.env, the secrets, and everything that is derived from them: config/compose.env, the files that the
# containers mount, and their digests. Sourced, never run.
#
# The release's own gateway.env holds the names and defaults; the installation's holds what the operator changed. So a new
# release may bring new settings without touching the operator's file.

declare -gA setting

# Request bodies of MAX_REQUEST_MB for which each of Kong's workers has room, in a tmpfs.
bodies_of_worker=4

# Names that are handed to a program as they stand, by prefix.
passed_on=''

# read_settings_file FILE defaults|values
read_settings_file() {
  local file=$1 kind=$2 line name value number=0
  [ -r "$file" ] || fatal "cannot read $file"
  while IFS= read -r line || [ -n "$line" ]; do
    number=$((number + 1))
    line=${line%$'\r'}
    [[ $line =~ ^[[:space:]]*(#|$) ]] && continue
    [[ $line =~ ^([A-Z][A-Z0-9_]*)=(.*)$ ]] || fatal "$file, line $number is no NAME=value: $line"
    name=${BASH_REMATCH[1]} value=${BASH_REMATCH[2]}
    # People quote out of habit.
    [[ $value =~ ^\"(.*)\"$ || $value =~ ^\'(.*)\'$ ]] && value=${BASH_REMATCH[1]}
    if [ "$kind" = values ] && [ -z "${setting[$name]+known}" ]; then
      case $name in
        KONG_* | GF_* | COLLECTOR_*) pass_on "$name" "$value" "$file, line $number" && continue ;;
      esac
      fatal "$file, line $number: there is no setting $name" "The settings are described in $release_dir/deploy/gateway.env"
    fi
    setting[$name]=$value
  done <"$file"
}

# A setting of a program itself. Those that the stack depends on have a setting of their own here.
pass_on() {
  local name=$1 value=$2 where=$3
  if grep -qE "^ +$name:" "$release_dir/deploy/compose.yaml"; then
    fatal "$where: $name is derived from other settings" "See $release_dir/deploy/gateway.env for the one that leads to it."
  fi
  case $name in
    KONG_*PASSWORD* | GF_*PASSWORD* | GF_*SECRET* | COLLECTOR_TOKEN | COLLECTOR_*SECRET_KEY*)
      fatal "$where: $name holds a secret, which 'docker inspect' would show" "Secrets stand in $secrets_file." ;;
  esac
  passed_on+=$name=$value$'\n'
}

read_settings() {
  passed_on=''
  read_settings_file "$release_dir/deploy/gateway.env" defaults
  [ ! -e "$1" ] || read_settings_file "$1" values
  check_settings "$1"
}

check_settings() {
  local file=$1 name
  wrong() { fatal "$file: $1 must be $2, not '${setting[$1]}'"; }
  for name in PROXY_PORT GRAFANA_PORT KONG_ADMIN_PORT KONG_MANAGER_PORT KONG_STATUS_PORT COLLECTOR_PORT POSTGRES_PORT PROMETHEUS_PORT; do
    is_number "${setting[$name]}" 1 65535 || wrong $name "a port"
  done
  is_number "${setting[MAX_REQUEST_MB]}" 1 1024 || wrong MAX_REQUEST_MB "a number of megabytes from 1 to 1024"
  is_number "${setting[REQUEST_BODY_SECONDS]}" 0 86400 || wrong REQUEST_BODY_SECONDS "a number of seconds to 86400, 0 for ever"
  for name in USERS VLLM_READ_TIMEOUT_SECONDS KONG_WORKERS GATEWAY_HOSTS PROMETHEUS_KEEP_DAYS PROMETHEUS_KEEP_GB AUDIT_QUEUE_BYTES AUDIT_RETRY_SECONDS; do
    is_number "${setting[$name]}" 1 1000000000000 || wrong $name "a whole number from 1"
  done
  for name in RATE_LIMIT_PER_HOUR ANONYMOUS_PER_MINUTE REFUSED_PER_MINUTE MINIMUM_FREE_GB AUDIT_MAX_REQUEST_BYTES AUDIT_MAX_RESPONSE_BYTES; do
    is_number "${setting[$name]}" 0 1000000000 || wrong $name "a whole number"
  done
  # The rest of them `kong apply` checks.
  for name in QUEUE_IN_FLIGHT QUEUE_MAX_WAITING QUEUE_MAX_WAITING_PER_USER QUEUE_MAX_WAIT_SECONDS QUEUE_OTHERS_WAIT_PERCENT; do
    [ -z "${setting[$name]}" ] || is_number "${setting[$name]}" 1 1000000 || wrong $name "a whole number from 1, or empty"
  done
  [[ ${setting[VLLM_PRIORITY]} =~ ^(true|false)$ ]] || wrong VLLM_PRIORITY "true or false"
  for name in KEEP_CONTENT_DAYS KEEP_ROWS_DAYS; do
    is_number "${setting[$name]}" 0 365000 || wrong $name "a number of days, 0 for ever"
  done
  [[ ${setting[KEEP_ROWS_AFTER_FEED]} =~ ^([a-z][a-z0-9_-]{0,39})?$ ]] || wrong KEEP_ROWS_AFTER_FEED "the name of a feed, as parquet, or empty"
  for name in POSTGRES_MEMORY_MB KONG_MEMORY_MB COLLECTOR_MEMORY_MB PROMETHEUS_MEMORY_MB GRAFANA_MEMORY_MB; do
    is_number "${setting[$name]}" 64 10000000 || wrong $name "a number of megabytes from 64"
  done
  # Which zones there are PostgreSQL knows; `upkeep` asks it.
  [[ ${setting[SITE_TIME_ZONE]} =~ ^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$ ]] || wrong SITE_TIME_ZONE "the name of a time zone, as Europe/Berlin"
  [ "${setting[USERS]}" -le 100000 ] || wrong USERS "100000 at most"
  is_number "${setting[CONTAINER_UIDS]}" 1000 4000000000 || wrong CONTAINER_UIDS "a number from 1000 to 4000000000"
  for name in KONG_MANAGER WRITER_ROLE; do [[ ${setting[$name]} =~ ^(on|off)$ ]] || wrong $name "on or off"; done
  check_proxies
  [ "${setting[KONG_WORKERS]}" -le 64 ] || wrong KONG_WORKERS "64 at most: each has its own connections and log queue"
  for name in PROXY_ADDRESS GRAFANA_ADDRESS; do
    [[ ${setting[$name]} =~ ^[0-9]{1,3}(\.[0-9]{1,3}){3}$ ]] || wrong $name "an IPv4 address (0.0.0.0: all of this host)"
  done
  [[ ${setting[PROJECT]} =~ ^[a-z0-9][a-z0-9_-]*$ ]] || wrong PROJECT "small letters, digits, - and _"
  [[ ${setting[FIRST_USER]} =~ ^[A-Za-z0-9][A-Za-z0-9._@-]*$ ]] || wrong FIRST_USER "a name of letters, digits and . _ @ -"
  [[ ${setting[POSTGRES_HOST]} =~ ^[A-Za-z0-9.-]+$ ]] || wrong POSTGRES_HOST "an address or a host name"
  [[ ${setting[POSTGRES_ALLOW_FROM]} =~ ^[0-9./\ ]*$ ]] || wrong POSTGRES_ALLOW_FROM "networks like 10.0.0.0/24"
  [[ ${setting[VLLM_URL]} =~ ^https?://[^/]+/?$ ]] || wrong VLLM_URL "http://host:port without a path (clients' paths are passed on as they are)"
  [[ ${setting[QUOTA_WEBHOOK_URL]} =~ ^(https?://[^/[:space:]@]+(/[^[:space:]]*)?)?$ ]] || wrong QUOTA_WEBHOOK_URL "http(s)://host/path"
  for name in DATA_DIR BACKUP_DIR FEED_DIR VLLM_API_KEY_FILE QUOTA_WEBHOOK_CA_FILE TLS_CERT_FILE TLS_KEY_FILE; do
    [[ ${setting[$name]} =~ ^(/[A-Za-z0-9._/-]*)?$ ]] || wrong $name "an absolute path without blanks"
  done
  [ "${setting[TLS_CERT_FILE]:+x}" = "${setting[TLS_KEY_FILE]:+x}" ] ||
    fatal "$file: TLS_CERT_FILE and TLS_KEY_FILE go together: set both, or none"
  check_ports "$file"
  check_kong_memory
}

# Calls whose answers are captured at the same time: more than a GPU host streams.
captured_calls=256

# What Kong can come to hold, in megabytes. Of a heavy call it keeps the captured request, of its answer what fits and as much
# again that is not made short yet.
check_kong_memory() {
  local captures=$((captured_calls * (${setting[AUDIT_MAX_REQUEST_BYTES]} + 2 * ${setting[AUDIT_MAX_RESPONSE_BYTES]}) / 1048576))
  local queues=$((2 * ${setting[KONG_WORKERS]} * ${setting[AUDIT_QUEUE_BYTES]} / 1048576))
  local most=$((512 + queues + captures + bodies_of_worker * ${setting[KONG_WORKERS]} * ${setting[MAX_REQUEST_MB]}))
  [ "${setting[KONG_MEMORY_MB]}" -ge "$most" ] ||
    warn "KONG_MEMORY_MB is ${setting[KONG_MEMORY_MB]}, but Kong can come to need $most: $queues for log queues, $captures for captures, $((bodies_of_worker * ${setting[KONG_WORKERS]} * ${setting[MAX_REQUEST_MB]})) for bodies"
}

# Whoever is trusted may say which address a client has: everybody cannot be.
check_proxies() {
  local proxy
  for proxy in ${setting[TRUSTED_PROXIES]//,/ }; do
    [[ $proxy =~ ^([0-9]{1,3}(\.[0-9]{1,3}){3}(/[0-9]{1,2})?|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*(/[0-9]{1,3})?)$ ]] ||
      wrong TRUSTED_PROXIES "addresses or networks, like 10.0.0.5 10.1.0.0/24"
    [[ $proxy != */0 ]] || wrong TRUSTED_PROXIES "the addresses of proxies: with $proxy every client could name any address as its own"
  done
}

is_number() { [[ $1 =~ ^(0|[1-9][0-9]{0,14})$ ]] && [ "$1" -ge "$2" ] && [ "$1" -le "$3" ]; }

check_ports() {
  local name twice
  twice=$(for name in "${!setting[@]}"; do [[ $name != *_PORT ]] || echo "${setting[$name]}"; done | sort | uniq -d)
  [ -z "$twice" ] || fatal "$1: more than one service has port" "${twice//$'\n'/, }"
}

# --- secrets ---------------------------------------------------------------------------------------------------------

declare -gA secret

# The key that every Grafana has which was given none, from its default settings: that of installations before there was one.
GRAFANA_OLD_KEY=SW2YcwTIb9zpOOhoPsMm

# Made once; a later release may add some. Letters and digits only: they go into URLs, SQL and files as they stand.
make_secrets() {
  local name added='' line
  if [ -e "$secrets_file" ]; then
    chmod 600 "$secrets_file"
    while IFS= read -r line; do
      [[ $line =~ ^([A-Z_]+)=([A-Za-z0-9-]+)$ ]] && secret[${BASH_REMATCH[1]}]=${BASH_REMATCH[2]}
    done <"$secrets_file"
  fi
  for name in POSTGRES_PASSWORD KONG_DATABASE_PASSWORD COLLECTOR_DATABASE_PASSWORD WRITER_DATABASE_PASSWORD GRAFANA_DATABASE_PASSWORD \
    COLLECTOR_TOKEN QUOTA_WEBHOOK_SECRET GRAFANA_ADMIN_PASSWORD GRAFANA_SECRET_KEY KONG_ADMIN_PASSWORD VLLM_KEY PROBE_KEY DIGEST_SALT; do
    [ -z "${secret[$name]:-}" ] || continue
    case $name in
      # What is in Grafana's database was encrypted with the key that it had.
      GRAFANA_SECRET_KEY) [ -e "$data_dir/grafana/grafana.db" ] && secret[$name]=$GRAFANA_OLD_KEY || secret[$name]=$(random_hex 24) ;;
      # From the owner's, and no way back to it: hosts of one PostgreSQL that have the same secrets.env from before agree on this one.
      WRITER_DATABASE_PASSWORD) secret[$name]=$(printf 'llm_writer %s' "${secret[COLLECTOR_DATABASE_PASSWORD]}" | sha256sum | cut -c 1-48) ;;
      PROBE_KEY | VLLM_KEY) secret[$name]=sk-$(random_hex 24) ;;
      GRAFANA_ADMIN_PASSWORD) secret[$name]=$(random_hex 12) ;;
      *) secret[$name]=$(random_hex 24) ;;
    esac
    added+=$name=${secret[$name]}$'\n'
  done
  # Not one of ours, but not to be shown either (see without_secrets).
  if [ -r "${setting[VLLM_API_KEY_FILE]}" ]; then IFS= read -r 'secret[VLLM_API_KEY]' <"${setting[VLLM_API_KEY_FILE]}" || true; fi
  [ -n "$added" ] || return 0
  {
    if [ -e "$secrets_file" ]; then cat "$secrets_file"; else
      echo "# Made by the installation. Needed to restore a backup elsewhere: no. To start this installation again: yes."
    fi
    printf '%s' "$added"
  } | write_file "$secrets_file" 600
}

# replace_secret NAME VALUE - another value for a secret that is there.
replace_secret() {
  secret[$1]=$2
  sed "s/^$1=.*/$1=$2/" "$secrets_file" | write_file "$secrets_file" 600
}

# One file for each secret that a container reads, for the one user that reads it.
write_secret_files() {
  mkdir -p "$secrets_dir"
  chmod 700 "$secrets_dir"
  put_secret postgres-password POSTGRES "${secret[POSTGRES_PASSWORD]}"
  put_secret kong-password KONG "${secret[KONG_DATABASE_PASSWORD]}"
  # For nginx, and for people with curl.
  put_secret kong-admin KONG "admin:{PLAIN}${secret[KONG_ADMIN_PASSWORD]}"
  put_secret kong-admin-password '' "${secret[KONG_ADMIN_PASSWORD]}"
  put_secret vllm-api-key '' "${secret[VLLM_KEY]}"
  put_secret collector-token COLLECTOR "${secret[COLLECTOR_TOKEN]}"
  put_secret quota-webhook-secret COLLECTOR "${secret[QUOTA_WEBHOOK_SECRET]}"
  put_secret database-url COLLECTOR "$(database_url "$(collector_login)")"
  put_secret owner-url COLLECTOR "$(database_url "llm_collector:${secret[COLLECTOR_DATABASE_PASSWORD]}")"
  put_secret grafana-admin-password GRAFANA "${secret[GRAFANA_ADMIN_PASSWORD]}"
  put_secret grafana-secret-key GRAFANA "${secret[GRAFANA_SECRET_KEY]}"
  put_secret grafana-database-password GRAFANA "${secret[GRAFANA_DATABASE_PASSWORD]}"
  write_tls_files
}

database_url() { printf '%s' "postgres://$1@${setting[POSTGRES_HOST]}:${setting[POSTGRES_PORT]}/llm"; }

# Role and password with which the collector takes entries in.
collector_login() {
  if [ "${setting[WRITER_ROLE]}" = on ]; then
    printf '%s' "llm_writer:${secret[WRITER_DATABASE_PASSWORD]}"
  else
    printf '%s' "llm_collector:${secret[COLLECTOR_DATABASE_PASSWORD]}"
  fi
}

# put_secret FILE ROLE TEXT - no role: for root.
put_secret() {
  local owner=0:0
  [ -z "$2" ] || owner=${image_user[$2]}
  # Without a line break: some readers take it for a part of the password.
  printf '%s' "$3" | write_file "$secrets_dir/$1" 400 "$owner"
}

# A digest that says whether secrets changed, and nothing about them.
secret_digest() { printf '%s\n' "${secret[DIGEST_SALT]}" "$@" | short_digest; }

# --- derived ---------------------------------------------------------------------------------------------------------

# Connections to PostgreSQL that each Kong worker may hold. Most of its answers come from its cache.
kong_connections_per_worker=8
# Connections of each collector, and of the owner's work beside it: retention and indexing have one each.
collector_connections=4
upkeep_connections=2
# Memory of upkeep at most, in megabytes: it holds little, and the commands that run beside it decode what was rejected.
upkeep_memory_mb=512
# For Grafana (see roles.sql), backups, migrations and people with psql, with the three that are kept for the superuser.
other_connections=30

# Each is a process of PostgreSQL's container, whose pids_limit in compose.yaml is a little more.
most_connections=4000

runs_postgresql() { [ "${setting[POSTGRES_HOST]}" = 127.0.0.1 ]; }

derive() {
  data_dir=${setting[DATA_DIR]:-$home/data}
  feed_dir=${setting[FEED_DIR]:-$data_dir/feed}
  backup_dir=${setting[BACKUP_DIR]:-$home/backups}
  project=${setting[PROJECT]}
  local per_host=$((${setting[KONG_WORKERS]} * kong_connections_per_worker + collector_connections + upkeep_connections))
  max_connections=$((${setting[GATEWAY_HOSTS]} * per_host + other_connections))
  [ "$max_connections" -le "$most_connections" ] || fatal "KONG_WORKERS (${setting[KONG_WORKERS]}) on GATEWAY_HOSTS (${setting[GATEWAY_HOSTS]}) want $max_connections connections to PostgreSQL; it gets $most_connections at most" \
    "Fewer workers: one serves some thousand calls a second."
  postgres_listen=127.0.0.1
  [ -z "${setting[POSTGRES_ALLOW_FROM]}" ] || postgres_listen='*'
  services=(kong collector prometheus grafana)
  # On every host: advisory locks let one of them work, and commands find the owner's rights wherever they are given.
  [ "${setting[WRITER_ROLE]}" = off ] || services=(kong upkeep collector prometheus grafana)
  ! runs_postgresql || services=(postgresql "${services[@]}")
  admin_url=http://127.0.0.1:${setting[KONG_ADMIN_PORT]}
  derive_tls
  # As this host reaches them, and the front door as it is called by name where it has one.
  own_proxy_url=$scheme://$(own_address "${setting[PROXY_ADDRESS]}"):${setting[PROXY_PORT]}
  grafana_url=$scheme://$(own_address "${setting[GRAFANA_ADDRESS]}"):${setting[GRAFANA_PORT]}
  proxy_url=$own_proxy_url
  [ -z "$tls_name" ] || proxy_url=https://$tls_name:${setting[PROXY_PORT]}
}

# The address at which this host itself reaches a service.
own_address() { case $1 in 0.0.0.0) echo 127.0.0.1 ;; *) echo "$1" ;; esac }

# The environment of `llm-collector kong apply`, without what its container and the other commands have anyway.
kong_environment() {
  local name
  for name in VLLM_URL VLLM_EXTRA_PATHS RATE_LIMIT_PER_HOUR AUDIT_CAPTURE AUDIT_MAX_REQUEST_BYTES AUDIT_MAX_RESPONSE_BYTES \
    AUDIT_QUEUE_BYTES AUDIT_RETRY_SECONDS AUDIT_INCLUDE_USAGE STRICT_REQUESTS AUDIT_OPENAI_ERRORS ANONYMOUS_PER_MINUTE \
    REFUSED_PER_MINUTE REQUEST_BODY_SECONDS QUOTAS QUOTA_FAIL_CLOSED QUOTA_DEFAULT_MAX_TOKENS QUOTA_CONTACT USAGE_PAGE \
    QUEUE_IN_FLIGHT QUEUE_MAX_WAITING QUEUE_MAX_WAITING_PER_USER QUEUE_MAX_WAIT_SECONDS QUEUE_OTHERS_WAIT_PERCENT QUEUE_WEIGHTS \
    VLLM_PRIORITY GATEWAY_HOSTS; do
    printf '%s=%s\n' "$name" "${setting[$name]}"
  done
  cat <<LINES
UPLOAD_ROOM_MB=$((bodies_of_worker * ${setting[MAX_REQUEST_MB]}))
VLLM_READ_TIMEOUT_MS=$((${setting[VLLM_READ_TIMEOUT_SECONDS]} * 1000))
VLLM_API_KEY_FILE=
LINES
}

# The key in the first line of the file below, which the container does not see; nothing where there is none.
vllm_key() {
  local file key=''
  file=$(vllm_key_file)
  [ -n "$file" ] || return 0
  [ -r "$file" ] || fatal "cannot read $file (VLLM_API_KEY_FILE)"
  IFS= read -r key <"$file" || true
  printf '%s' "$key"
}

# The file with vLLM's key: the operator's, or that of the installation for a vLLM on this host. One that wants no key ignores it.
vllm_key_file() {
  local file=${setting[VLLM_API_KEY_FILE]}
  if [ -z "$file" ] && vllm_is_here; then file=$secrets_dir/vllm-api-key; fi
  printf '%s' "$file"
}

vllm_is_here() { [[ ${setting[VLLM_URL]} =~ ^https?://(127\.[0-9.]+|localhost|\[::1\])(:|/|$) ]]; }

# Settings of Kong itself: the operator's by Kong's own names, then those that follow from ours.
kong_program_environment() {
  local line proxies=${setting[TRUSTED_PROXIES]//,/ }
  printf '%s' "$passed_on" | grep '^KONG_' || true
  {
    # shellcheck disable=SC2086
    [ -z "$proxies" ] || printf '%s\n' "KONG_TRUSTED_IPS=$(echo $proxies | tr ' ' ,)" KONG_REAL_IP_HEADER=X-Forwarded-For KONG_REAL_IP_RECURSIVE=on
    # A model server that dies before its answer began: the call goes to another one, also a POST. Not after the time that one answer
    # may take: it would begin again, and the client has been waiting for it twice as long as anybody expects.
    printf '%s\n' 'KONG_NGINX_PROXY_PROXY_NEXT_UPSTREAM=error timeout non_idempotent' \
      "KONG_NGINX_PROXY_PROXY_NEXT_UPSTREAM_TIMEOUT=${setting[VLLM_READ_TIMEOUT_SECONDS]}s"
    # Kong's listeners know no Unix socket, but what begins with KONG_NGINX_ADMIN_ goes into the Admin API's server block.
    [ "${setting[KONG_MANAGER]}" = on ] || printf '%s\n' KONG_NGINX_ADMIN_AUTH_BASIC=Kong KONG_NGINX_ADMIN_AUTH_BASIC_USER_FILE=/run/secrets/kong-admin
  } | while IFS= read -r line; do
    grep -q "^${line%%=*}=" <<<"$passed_on" || printf '%s\n' "$line"
  done
}

write_config() {
  mkdir -p "$config_dir"
  chmod 755 "$config_dir"
  kong_program_environment | write_file "$config_dir/kong.env" 644
  container_passwd | write_file "$config_dir/passwd" 644
  collector_environment | write_file "$config_dir/collector.env" 644
  webhook_roots | write_file "$config_dir/webhook-roots.pem" 644
  printf '%s' "$passed_on" | grep '^GF_' | write_file "$config_dir/grafana.env" 644 || true
  write_pg_hba
  write_prometheus
  write_compose_env
}

collector_environment() {
  printf '%s' "$passed_on" | grep '^COLLECTOR_' || true
  echo "SITE_TIME_ZONE=${setting[SITE_TIME_ZONE]}"
  echo "QUOTA_WEBHOOK_URL=${setting[QUOTA_WEBHOOK_URL]}"
  [ "${setting[KEEP_CONTENT_DAYS]}" = 0 ] || echo "COLLECTOR_KEEP_CONTENT_DAYS=${setting[KEEP_CONTENT_DAYS]}"
  [ "${setting[KEEP_ROWS_DAYS]}" = 0 ] || echo "COLLECTOR_KEEP_ROWS_DAYS=${setting[KEEP_ROWS_DAYS]}"
  [ -z "${setting[KEEP_ROWS_AFTER_FEED]}" ] || echo "COLLECTOR_KEEP_ROWS_AFTER_FEED=${setting[KEEP_ROWS_AFTER_FEED]}"
}

# Certificates by which the webhook is believed: the collector's image has none.
webhook_roots() {
  local file=${setting[QUOTA_WEBHOOK_CA_FILE]}
  [[ ${setting[QUOTA_WEBHOOK_URL]} == https://* ]] || return 0
  if [ -z "$file" ]; then
    for file in /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem; do [ ! -r "$file" ] || break; done
  fi
  [ -r "$file" ] || fatal "cannot read $file (QUOTA_WEBHOOK_CA_FILE)"
  cat "$file"
}

# Who may connect to PostgreSQL. The superuser: only from inside its own container, which the Docker socket guards.
write_pg_hba() {
  local network
  {
    echo "# Written by the gateway's scripts from gateway.env."
    echo "local all postgres peer"
    for network in 127.0.0.1/32 ${setting[POSTGRES_ALLOW_FROM]}; do
      echo "host kong kong $network scram-sha-256"
      echo "host llm llm_collector $network scram-sha-256"
      echo "host llm llm_writer $network scram-sha-256"
      echo "host llm llm_grafana $network scram-sha-256"
    done
  } | write_file "$config_dir/pg_hba.conf" 644
}

# The release's configuration with the ports of this installation in place of the default ones.
write_prometheus() {
  local file vllm=${setting[VLLM_URL]#*://}
  mkdir -p "$config_dir/prometheus/rules"
  chmod 755 "$config_dir/prometheus" "$config_dir/prometheus/rules"
  sed -e "s/127\.0\.0\.1:8100/127.0.0.1:${setting[KONG_STATUS_PORT]}/" \
    -e "s/127\.0\.0\.1:5000/127.0.0.1:${setting[COLLECTOR_PORT]}/" \
    -e "s/127\.0\.0\.1:9090/127.0.0.1:${setting[PROMETHEUS_PORT]}/" \
    -e "s/127\.0\.0\.1:8000/${vllm%%/*}/" \
    "$release_dir/deploy/prometheus/prometheus.yml" | write_file "$config_dir/prometheus/prometheus.yml" 644
  for file in "$release_dir"/deploy/prometheus/rules/*.yml; do
    [ ! -e "$file" ] || write_file "$config_dir/prometheus/rules/${file##*/}" 644 <"$file"
  done
  for file in "$config_dir"/prometheus/rules/*.yml; do
    [ -e "$release_dir/deploy/prometheus/rules/${file##*/}" ] || rm -f "$file"
  done
}

# /etc/passwd for PostgreSQL's container: its programs want a name for the user they run as, and the superuser is known by it.
container_passwd() {
  printf '%s\n' root:x:0:0:root:/root:/bin/bash "postgres:x:${image_user[POSTGRES]}::/var/lib/postgresql:/bin/bash" \
    nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
}

write_compose_env() {
  local name role
  {
    echo "# Written by the gateway's scripts from gateway.env; changes here are lost."
    for name in PROXY_ADDRESS PROXY_PORT GRAFANA_ADDRESS GRAFANA_PORT KONG_ADMIN_PORT KONG_MANAGER_PORT KONG_STATUS_PORT COLLECTOR_PORT \
      POSTGRES_HOST POSTGRES_PORT PROMETHEUS_PORT KONG_WORKERS MAX_REQUEST_MB POSTGRES_MEMORY_MB KONG_MEMORY_MB COLLECTOR_MEMORY_MB \
      PROMETHEUS_MEMORY_MB GRAFANA_MEMORY_MB PROMETHEUS_KEEP_DAYS PROMETHEUS_KEEP_GB; do
      printf '%s=%s\n' "$name" "${setting[$name]}"
    done
    cat <<LINES
DATA_DIR=$data_dir
FEED_DIR=$feed_dir
CONFIG_DIR=$config_dir
SECRETS_DIR=$secrets_dir
RELEASE_DIR=$release_dir
GRAFANA_CHECK_URL=$grafana_url/api/health
GRAFANA_PROTOCOL=$scheme
GRAFANA_COOKIE_SECURE=$(uses_tls && echo true || echo false)
KONG_PROXY_FLAGS=$(! uses_tls || printf 'http2 ssl ')reuseport backlog=16384
POSTGRES_LISTEN=$postgres_listen
POSTGRES_MAX_CONNECTIONS=$max_connections
POSTGRES_SHARED_BUFFERS_MB=$((${setting[POSTGRES_MEMORY_MB]} / 4))
POSTGRES_CACHE_MB=$((${setting[POSTGRES_MEMORY_MB]} * 3 / 4))
POSTGRES_MAINTENANCE_MB=$((${setting[POSTGRES_MEMORY_MB]} / 16))
KONG_MANAGER_LISTEN=$([ "${setting[KONG_MANAGER]}" = off ] && echo off || echo "127.0.0.1:${setting[KONG_MANAGER_PORT]}")
KONG_METRICS_MB=$((5 + ${setting[USERS]} / 50))
KONG_CONNECTIONS_PER_WORKER=$kong_connections_per_worker
KONG_BODIES_MB=$((bodies_of_worker * ${setting[KONG_WORKERS]} * ${setting[MAX_REQUEST_MB]} + 64))
COLLECTOR_CONNECTIONS=$collector_connections
UPKEEP_CONNECTIONS=$upkeep_connections
UPKEEP_MEMORY_MB=$upkeep_memory_mb
LINES
    for role in KONG POSTGRES PROMETHEUS GRAFANA COLLECTOR; do
      printf '%s_IMAGE=%s\n' $role "${image_name[$role]}"
      printf '%s_IMAGE_ID=%s\n' $role "${image_id[$role]}"
      printf '%s_UID=%s\n%s_GID=%s\n' $role "${image_user[$role]%:*}" $role "${image_user[$role]#*:}"
    done
    cat <<LINES
POSTGRESQL_DIGEST=$(digest_of "$config_dir/pg_hba.conf" "$config_dir/passwd")
KONG_DIGEST=$(digest_of "$release_dir/kong-plugins")-$(secret_digest "${secret[KONG_DATABASE_PASSWORD]}" "${secret[KONG_ADMIN_PASSWORD]}")
COLLECTOR_DIGEST=$(digest_of "$config_dir/webhook-roots.pem")-$(secret_digest "${secret[COLLECTOR_TOKEN]}" "$(collector_login)" "${secret[QUOTA_WEBHOOK_SECRET]}")
UPKEEP_DIGEST=$(digest_of "$config_dir/webhook-roots.pem")-$(secret_digest "${secret[COLLECTOR_TOKEN]}" "${secret[COLLECTOR_DATABASE_PASSWORD]}" "${secret[QUOTA_WEBHOOK_SECRET]}")
PROMETHEUS_DIGEST=$(digest_of "$config_dir/prometheus")
GRAFANA_DIGEST=$(digest_of "$release_dir/grafana")-$(secret_digest "${secret[GRAFANA_DATABASE_PASSWORD]}" "${secret[GRAFANA_SECRET_KEY]}" "$(tls_digest)")
LINES
  } | write_file "$config_dir/compose.env" 644
}
