#!/usr/bin/env bash
#
# run.sh - starts a real Kong Gateway for tests and the demo: with a database of its
# own, the project's plugins, and nothing of an installed Kong touched.
#
# Usage:
#   run.sh available            says what it would start; status 1 when there is nothing
#   run.sh start [options]      returns when Kong answers
#   run.sh stop --prefix DIR    stops what `start` began there
#
# Options, each with an environment variable of the same meaning:
#   --prefix DIR    KONG_PREFIX         folder for all it writes (default: a new one)
#   --proxy LIST    KONG_PROXY_LISTEN   default 127.0.0.1:8111; several with commas
#                                       between them
#                   KONG_SSL_CERT, KONG_SSL_CERT_KEY  PEM files for those with `ssl`
#   --admin A:P     KONG_ADMIN_LISTEN   default 127.0.0.1:8001
#   --status A:P    KONG_STATUS_LISTEN  default 127.0.0.1:8100
#                   port 0 takes a free one
#   --workers N     KONG_NGINX_WORKER_PROCESSES  default 2
#   --plugins-dir D                     default ../../kong-plugins here
#                   KONG_TEST_DATABASE_URL  postgres://user[:password]@host:port/database,
#                                       an empty database
#                   KONG_IMAGE          image for Docker, default kong:3.9; it must be
#                                       there, nothing is pulled
# Docker with the image comes first, then a `kong` command.
#
# Prints the same lines as ../nginx-host/run.sh and writes them to PREFIX/host.env:
#   PREFIX=…  PROXY_URL=…  PROXY_TLS_URL=…  ADMIN_URL=…  STATUS_URL=…
# Kong's log is in PREFIX/logs.

set -euo pipefail

kong_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
say() { printf 'kong: %s\n' "$*" >&2; }
fatal() { say "$*"; exit 1; }
usage() { sed -n '3,/^$/s/^# \{0,1\}//p' "$0" >&2; exit 2; }

image=${KONG_IMAGE:-kong:3.9}

# Sets how: docker or installed.
find_kong() {
  if command -v docker >/dev/null && docker image inspect "$image" >/dev/null 2>&1; then
    how=docker
  elif command -v kong >/dev/null; then
    how=installed
  else
    return 1
  fi
}

describe() {
  if [ "$how" = docker ]; then echo "Kong from the image $image"; else echo "Kong of the command $(command -v kong)"; fi
}

read_settings() {
  prefix=${KONG_PREFIX:-}
  proxy=${KONG_PROXY_LISTEN:-127.0.0.1:8111}
  admin=${KONG_ADMIN_LISTEN:-127.0.0.1:8001}
  status=${KONG_STATUS_LISTEN:-127.0.0.1:8100}
  workers=${KONG_NGINX_WORKER_PROCESSES:-2}
  plugins_dir=$kong_dir/../../kong-plugins
  while [ $# -gt 0 ]; do
    case $1 in
      --prefix) prefix=${2:?}; shift 2 ;;
      --proxy) proxy=${2:?}; shift 2 ;;
      --admin) admin=${2:?}; shift 2 ;;
      --status) status=${2:?}; shift 2 ;;
      --workers) workers=${2:?}; shift 2 ;;
      --plugins-dir) plugins_dir=${2:?}; shift 2 ;;
      *) say "unknown option $1"; usage ;;
    esac
  done
  admin=${admin%%[, ]*} status=${status%%[, ]*}
}

listens() { (exec 3<>"/dev/tcp/${1%:*}/${1##*:}") 2>/dev/null; }

with_port() {
  local port=${1##*:}
  if [ "$port" = 0 ]; then
    while port=$((RANDOM % 12000 + 20000)); listens "127.0.0.1:$port"; do :; done
  fi
  echo "${1%:*}:$port"
}

url() {
  case ${1%:*} in 0.0.0.0 | '*') echo "http://127.0.0.1:${1##*:}" ;; *) echo "http://$1" ;; esac
}

DATABASE_PATTERN='^postgres(ql)?://([^:@/]+)(:([^@/]*))?@([^:/]+)(:([0-9]+))?/([^?]+)'

# Sets proxy_at (the first), tls_at (the first with TLS, or nothing) and proxy_listen, in which ports are chosen.
choose_listeners() {
  local entry at
  proxy_at='' tls_at='' proxy_listen=''
  while IFS= read -r entry; do
    read -r at entry <<<"$entry"
    at=$(with_port "$at")
    proxy_listen+="${proxy_listen:+, }$at ${entry:-reuseport backlog=16384}"
    [[ " $entry " != *' ssl '* ]] || tls_at=${tls_at:-$at}
    proxy_at=${proxy_at:-$at}
  done < <(tr , '\n' <<<"$proxy")
}

# properties PLUGINS [CERTIFICATE KEY] - Kong's properties, as NAME=value lines. What differs from a production Kong: ports, and
# an access log without queries, since a client may put a key there.
properties() {
  local plugins=$1
  [[ ${KONG_TEST_DATABASE_URL:-} =~ $DATABASE_PATTERN ]] ||
    fatal "KONG_TEST_DATABASE_URL must be postgres://user:password@host:port/database"
  grep . <<LINES
KONG_DATABASE=postgres
KONG_PG_HOST=${BASH_REMATCH[5]}
KONG_PG_PORT=${BASH_REMATCH[7]:-5432}
KONG_PG_USER=${BASH_REMATCH[2]}
${BASH_REMATCH[4]:+KONG_PG_PASSWORD=${BASH_REMATCH[4]}}
KONG_PG_DATABASE=${BASH_REMATCH[8]}
KONG_PLUGINS=bundled,llm-audit,llm-router,llm-quota,llm-queue
KONG_LUA_PACKAGE_PATH=$plugins/?.lua;$plugins/?/init.lua;;
KONG_NGINX_HTTP_LUA_SHARED_DICT=llm_gateway 16m; lua_shared_dict llm_quota 16m; lua_shared_dict llm_queue 4m
KONG_ANONYMOUS_REPORTS=off
KONG_NGINX_WORKER_PROCESSES=$workers
$(printenv | grep -E '^KONG_NGINX_(HTTP_CLIENT|PROXY)_[A-Z_]+=' || true)
KONG_PROXY_LISTEN=$proxy_listen
${KONG_SSL_CERT:+KONG_SSL_CERT=${2:-$KONG_SSL_CERT}}
${KONG_SSL_CERT_KEY:+KONG_SSL_CERT_KEY=${3:-$KONG_SSL_CERT_KEY}}
KONG_ADMIN_LISTEN=$admin_at
KONG_STATUS_LISTEN=$status_at
KONG_ADMIN_GUI_LISTEN=off
KONG_LOG_LEVEL=notice
KONG_NGINX_HTTP_LOG_FORMAT=without_query '\$remote_addr [\$time_iso8601] "\$request_method \$uri" \$status \$bytes_sent'
LINES
}

# --- with Docker -----------------------------------------------------------------------

start_docker() {
  local name=kong-test-$$-$RANDOM
  {
    properties /kong-plugins /kong-tls/certificate.pem /kong-tls/key.pem
    echo 'KONG_PROXY_ACCESS_LOG=/dev/stdout without_query'
    echo 'KONG_PROXY_ERROR_LOG=/dev/stderr'
    echo 'KONG_ADMIN_ACCESS_LOG=off'
    echo 'KONG_ADMIN_ERROR_LOG=/dev/stderr'
    echo 'KONG_STATUS_ACCESS_LOG=off'
    echo 'KONG_STATUS_ERROR_LOG=/dev/stderr'
  } >"$prefix/kong.env"
  local run=(docker run --network host --env-file "$prefix/kong.env" -v "$plugins_dir:/kong-plugins:ro")
  [ -z "${KONG_SSL_CERT:-}" ] || run+=(-v "$KONG_SSL_CERT:/kong-tls/certificate.pem:ro" -v "$KONG_SSL_CERT_KEY:/kong-tls/key.pem:ro")
  "${run[@]}" --rm "$image" kong migrations bootstrap >"$prefix/logs/migrations.log" 2>&1 || {
    cat "$prefix/logs/migrations.log" >&2
    fatal "Kong's database could not be prepared"
  }
  "${run[@]}" -d --name "$name" "$image" kong docker-start >/dev/null
  echo "$name" >"$prefix/container"
  docker logs --follow "$name" >"$prefix/logs/kong.log" 2>&1 </dev/null &
}

# --- with an installed Kong ------------------------------------------------------------

# Runs kong with our properties and none of the environment's.
kong_command() {
  local name own=()
  for name in "${!KONG_@}"; do own+=(-u "$name"); done
  while IFS= read -r name; do own+=("$name"); done <"$prefix/kong.env"
  env "${own[@]}" kong "$@" </dev/null
}

start_installed() {
  {
    properties "$plugins_dir"
    echo "KONG_PREFIX=$prefix/kong"
    echo 'KONG_PROXY_ACCESS_LOG=logs/access.log without_query'
  } >"$prefix/kong.env"
  kong_command migrations bootstrap >"$prefix/logs/migrations.log" 2>&1 || {
    cat "$prefix/logs/migrations.log" >&2
    fatal "Kong's database could not be prepared"
  }
  kong_command start >"$prefix/logs/start.log" 2>&1 || { cat "$prefix/logs/start.log" >&2 && fatal 'Kong does not start'; }
  ln -s ../kong/logs "$prefix/logs/kong"
}

# --- commands --------------------------------------------------------------------------

wait_until_it_answers() {
  local _
  for _ in $(seq 300); do
    ! curl -q -sS --noproxy '*' -f -o /dev/null --max-time 2 "$(url "$admin_at")/status" 2>/dev/null || return 0
    [ "$how" != docker ] || [ -n "$(docker ps -q --filter "name=^$(<"$prefix/container")\$")" ] || break
    sleep 0.2
  done
  tail -n 40 "$prefix"/logs/*.log >&2 || true
  fatal 'Kong does not answer'
}

start() {
  read_settings "$@"
  find_kong || fatal "there is neither Docker with the image $image nor a kong command"
  [ -n "$prefix" ] || prefix=$(mktemp -d "${TMPDIR:-/tmp}/kong.XXXXXX")
  mkdir -p "$prefix/logs"
  prefix=$(cd "$prefix" && pwd)
  plugins_dir=$(cd "$plugins_dir" && pwd)
  choose_listeners
  admin_at=$(with_port "$admin") status_at=$(with_port "$status")
  say "$(describe) in $prefix"
  # From here on something may run that has to be stopped.
  trap 'stop --prefix "$prefix"' EXIT
  "start_$how"
  wait_until_it_answers
  trap - EXIT
  tee "$prefix/host.env" <<LINES
PREFIX=$prefix
PROXY_URL=$(url "$proxy_at")
PROXY_TLS_URL=$([ -z "$tls_at" ] || url "$tls_at" | sed 's/^http:/https:/')
ADMIN_URL=$(url "$admin_at")
STATUS_URL=$(url "$status_at")
LINES
}

stop() {
  read_settings "$@"
  [ -n "$prefix" ] || usage
  if [ -s "$prefix/container" ]; then
    docker rm -f "$(<"$prefix/container")" >/dev/null 2>&1 || true
    rm -f "$prefix/container"
  elif [ -d "$prefix/kong" ]; then
    kong_command stop -p "$prefix/kong" >/dev/null 2>&1 || true
  fi
}

available() {
  find_kong || return 1
  describe
}

command=${1:-}
[ $# -gt 0 ] && shift
case $command in
  available | start | stop) "$command" "$@" ;;
  *) usage ;;
esac
