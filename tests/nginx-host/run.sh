#!/usr/bin/env bash
#
# run.sh - starts the nginx test host for the gateway's Kong plugins.
#
# TEST EQUIPMENT, NOT KONG. Debian's nginx and its Lua module load the very
# plugin files that Kong loads, behind just enough of Kong to drive them through
# nginx's real phases. It is not shipped and nobody should run it for users.
#
# Usage:
#   run.sh run   [options]      in the foreground; TERM or INT stops at once,
#                               QUIT lets running requests end (as Kong does)
#   run.sh start [options]      in the background; returns when it listens
#   run.sh stop  --prefix DIR   stops what `start` or `run` began there
#
# Options, each with an environment variable of the same meaning (Kong's own
# names where Kong has one, so that one environment fits both):
#   --prefix DIR    KONG_PREFIX                  folder for all it writes
#                                                (default: a new one under TMPDIR)
#   --proxy LIST    KONG_PROXY_LISTEN            default 127.0.0.1:8111
#                   A:P, and as in Kong `ssl` and `http2` behind it; several with
#                   commas between them
#                   KONG_SSL_CERT, KONG_SSL_CERT_KEY  PEM files for `ssl`
#   --admin A:P     KONG_ADMIN_LISTEN            default 127.0.0.1:8001
#   --status A:P    KONG_STATUS_LISTEN           default 127.0.0.1:8100
#                   port 0 takes a free one
#   --workers N     KONG_NGINX_WORKER_PROCESSES  default 2
#   --plugins-dir D NGINX_HOST_PLUGINS_DIR       folder that holds kong/plugins/*
#                                                (default ../../kong-plugins here);
#                                                KONG_LUA_PACKAGE_PATH replaces it
#   --log-level L   KONG_LOG_LEVEL               default notice
#   --state FILE    NGINX_HOST_STATE             keeps what the Admin API was told
#                                                over a restart; default: memory only
#                   KONG_PLUGINS                 default bundled,llm-audit,llm-router,llm-quota,llm-queue
#                   KONG_NGINX_HTTP_CLIENT_BODY_BUFFER_SIZE       default 8k
#                   KONG_NGINX_HTTP_CLIENT_MAX_BODY_SIZE          default 0
#                   KONG_WORKER_STATE_UPDATE_FREQUENCY  seconds until changes
#                                                reach the router; default 0, at
#                                                once (Kong: up to 5)
#                   KONG_NGINX_PROXY_*           directives of the proxy's server block
#                   KONG_TRUSTED_IPS, KONG_REAL_IP_HEADER, KONG_REAL_IP_RECURSIVE  none
#                   KONG_NGINX_ADMIN_AUTH_BASIC, …_AUTH_BASIC_USER_FILE            none
#                   NGINX_HOST_VERSION           version it claims, default 3.9.5
#                   NGINX_HOST_WATCH_PID         stops when that process is gone
#
# Prints, when it listens, and writes to PREFIX/host.env:
#   PREFIX=/tmp/…  PROXY_URL=http://…  ADMIN_URL=http://…  STATUS_URL=http://…
#   PROXY_TLS_URL=https://…  PID=…
# one a line (PROXY_URL is the first listener, PROXY_TLS_URL the first with `ssl`), nothing else on standard output. Messages go to standard error,
# nginx's log to PREFIX/logs/error.log.
#
# Exit status: 0 stopped as asked; 1 could not start (the reason on standard
# error); 2 wrong usage.

set -euo pipefail

host_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
say() { printf 'nginx-host: %s\n' "$*" >&2; }
fatal() { say "$*"; exit 1; }
usage() { sed -n '3,/^$/s/^# \{0,1\}//p' "$0" >&2; exit 2; }

# --- settings ----------------------------------------------------------------

read_settings() {
  prefix=${KONG_PREFIX:-}
  proxy=${KONG_PROXY_LISTEN:-127.0.0.1:8111}
  admin=${KONG_ADMIN_LISTEN:-127.0.0.1:8001}
  status=${KONG_STATUS_LISTEN:-127.0.0.1:8100}
  workers=${KONG_NGINX_WORKER_PROCESSES:-2}
  plugins_dir=${NGINX_HOST_PLUGINS_DIR:-$host_dir/../../kong-plugins}
  log_level=${KONG_LOG_LEVEL:-notice}
  state=${NGINX_HOST_STATE:-}
  while [ $# -gt 0 ]; do
    case $1 in
      --prefix) prefix=${2:?}; shift 2 ;;
      --proxy) proxy=${2:?}; shift 2 ;;
      --admin) admin=${2:?}; shift 2 ;;
      --status) status=${2:?}; shift 2 ;;
      --workers) workers=${2:?}; shift 2 ;;
      --plugins-dir) plugins_dir=${2:?}; shift 2 ;;
      --log-level) log_level=${2:?}; shift 2 ;;
      --state) state=${2:?}; shift 2 ;;
      *) say "unknown option $1"; usage ;;
    esac
  done
  # Kong lists several listeners; of these the first is enough here.
  admin=${admin%%[, ]*} status=${status%%[, ]*}
  case $workers in
    auto) workers=$(nproc) ;;
    *[!0-9]* | '') fatal "not a number of workers: $workers" ;;
  esac
}

# Whether something accepts connections at host:port.
listens() { (exec 3<>"/dev/tcp/${1%:*}/${1##*:}") 2>/dev/null; }

# A port from below the range the kernel hands out for outgoing connections.
free_port() {
  local port _
  for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    port=$((RANDOM % 12000 + 20000))
    if ! listens "127.0.0.1:$port"; then
      echo "$port"
      return
    fi
  done
  fatal "no free port found"
}

with_port() {
  if [ "${1##*:}" = 0 ]; then echo "${1%:*}:$(free_port)"; else echo "$1"; fi
}

# Sets proxy_at (the first), tls_at (the first with TLS, or nothing) and proxy_listen, nginx's directives.
choose_listeners() {
  local entry at is_tls=0
  proxy_at='' tls_at='' proxy_listen=''
  while IFS= read -r entry; do
    read -r at entry <<<"$entry"
    at=$(with_port "$at")
    proxy_listen+="listen $at"
    if [[ " $entry " == *' ssl '* ]]; then
      proxy_listen+=' ssl' is_tls=1 tls_at=${tls_at:-$at}
    fi
    [[ " $entry " != *' http2 '* ]] || proxy_listen+=' http2'
    proxy_listen+='; '
    proxy_at=${proxy_at:-$at}
  done < <(tr , '\n' <<<"$proxy")
  [ $is_tls = 0 ] || proxy_listen+="ssl_certificate ${KONG_SSL_CERT:?}; ssl_certificate_key ${KONG_SSL_CERT_KEY:?}; ssl_protocols TLSv1.2 TLSv1.3;"
}

# --- the nginx configuration ---------------------------------------------------

find_nginx() {
  nginx=$(command -v nginx || echo /usr/sbin/nginx)
  [ -x "$nginx" ] || fatal "nginx is missing: apt install nginx libnginx-mod-http-lua lua-cjson"
  for modules in /usr/lib/nginx/modules /usr/share/nginx/modules; do
    [ -e "$modules/ngx_http_lua_module.so" ] && return
  done
  fatal "nginx's Lua module is missing: apt install libnginx-mod-http-lua lua-cjson"
}

# Which address counts as the client's, as Kong writes it.
real_ip() {
  local proxy
  [ -n "${KONG_TRUSTED_IPS:-}" ] || return 0
  for proxy in ${KONG_TRUSTED_IPS//,/ }; do printf 'set_real_ip_from %s; ' "$proxy"; done
  printf 'real_ip_header %s; real_ip_recursive %s;' "${KONG_REAL_IP_HEADER:-X-Real-IP}" "${KONG_REAL_IP_RECURSIVE:-off}"
}

# What Kong would put into the Admin API's server block.
admin_directives() {
  [ -z "${KONG_NGINX_ADMIN_AUTH_BASIC:-}" ] ||
    printf 'auth_basic %s; auth_basic_user_file %s;' "$KONG_NGINX_ADMIN_AUTH_BASIC" "$KONG_NGINX_ADMIN_AUTH_BASIC_USER_FILE"
}

# KONG_NGINX_PROXY_NAME=VALUE is the directive `name value;` of the proxy's server block.
proxy_directives() {
  local name directive
  for name in $(compgen -e KONG_NGINX_PROXY_); do
    directive=${name#KONG_NGINX_PROXY_}
    printf '%s %s; ' "${directive,,}" "${!name}"
  done
}

write_configuration() {
  local text name value resolver user='' connections
  [ "$(id -u)" != 0 ] || user="user $(id -un) $(id -gn);"
  resolver=$(awk '$1 == "nameserver" && $2 !~ /:/ { print $2; exit }' /etc/resolv.conf 2>/dev/null || true)
  connections=$(ulimit -n)
  [ "$connections" != unlimited ] && [ "$connections" -lt 4096 ] || connections=4096
  text=$(<"$host_dir/nginx.conf.in")
  for name in USER_DIRECTIVE WORKERS PREFIX LOG_LEVEL MODULES CONNECTIONS BODY_BUFFER MAX_BODY \
    RESOLVER HOST PLUGIN_PATH PROXY_LISTEN ADMIN STATUS REAL_IP ADMIN_DIRECTIVES PROXY_DIRECTIVES; do
    case $name in
      USER_DIRECTIVE) value=$user ;;
      WORKERS) value=$workers ;;
      PREFIX) value=$prefix ;;
      LOG_LEVEL) value=$log_level ;;
      MODULES) value=$modules ;;
      CONNECTIONS) value=$connections ;;
      BODY_BUFFER) value=${KONG_NGINX_HTTP_CLIENT_BODY_BUFFER_SIZE:-8k} ;;
      MAX_BODY) value=${KONG_NGINX_HTTP_CLIENT_MAX_BODY_SIZE:-0} ;;
      RESOLVER) value=${resolver:-127.0.0.1} ;;
      HOST) value=$host_dir ;;
      PLUGIN_PATH) value=${KONG_LUA_PACKAGE_PATH:-$plugins_dir/?.lua;$plugins_dir/?/init.lua} ;;
      PROXY_LISTEN) value=$proxy_listen ;;
      ADMIN) value=$admin_at ;;
      STATUS) value=$status_at ;;
      REAL_IP) value=$(real_ip) ;;
      ADMIN_DIRECTIVES) value=$(admin_directives) ;;
      PROXY_DIRECTIVES) value=$(proxy_directives) ;;
    esac
    text=${text//"@$name@"/"$value"}
  done
  printf '%s\n' "$text" >"$prefix/nginx.conf"
}

prepare() {
  read_settings "$@"
  find_nginx
  if [ -z "$prefix" ]; then
    prefix=$(mktemp -d "${TMPDIR:-/tmp}/nginx-host.XXXXXX")
  fi
  mkdir -p "$prefix/logs" "$prefix/temp"
  prefix=$(cd "$prefix" && pwd)
  if [ -s "$prefix/nginx.pid" ] && kill -0 "$(<"$prefix/nginx.pid")" 2>/dev/null; then
    fatal "already running in $prefix (pid $(<"$prefix/nginx.pid"))"
  fi
  rm -f "$prefix/nginx.pid" "$prefix/host.env"
  export NGINX_HOST_PREFIX=$prefix NGINX_HOST_STATE=$state
  export NGINX_HOST_PLUGINS=${KONG_PLUGINS:-bundled,llm-audit,llm-router,llm-quota,llm-queue}
  export NGINX_HOST_VERSION=${NGINX_HOST_VERSION:-3.9.5}
  export NGINX_HOST_UPDATE_FREQUENCY=${KONG_WORKER_STATE_UPDATE_FREQUENCY:-0}
  export NGINX_HOST_WATCH_PID=${NGINX_HOST_WATCH_PID:-}

  choose_listeners
  admin_at=$(with_port "$admin") status_at=$(with_port "$status")
  export NGINX_HOST_PROXY_PORT=${proxy_at##*:}
  local at output
  for at in "$proxy_at" ${tls_at:+"$tls_at"} "$admin_at" "$status_at"; do
    at=$(url "$at")
    ! listens "${at#http://}" || fatal "something listens on ${at#http://} already"
  done
  write_configuration
  output=$("$nginx" -t -q -e stderr -p "$prefix" -c "$prefix/nginx.conf" 2>&1) || {
    printf '%s\n' "$output" >&2
    fatal "nginx does not accept the configuration, see above"
  }
}

# url ADDRESS [SCHEME] - under which the host itself reaches a listener.
url() {
  local at=$1
  case ${at%:*} in 0.0.0.0 | '*') at=127.0.0.1:${at##*:} ;; esac
  echo "${2:-http}://$at"
}

announce() {
  cat <<LINES
PREFIX=$prefix
PROXY_URL=$(if [ "$proxy_at" = "$tls_at" ]; then url "$proxy_at" https; else url "$proxy_at"; fi)
PROXY_TLS_URL=$([ -z "$tls_at" ] || url "$tls_at" https)
ADMIN_URL=$(url "$admin_at")
STATUS_URL=$(url "$status_at")
PID=$1
LINES
}

# Waits up to 10 s for nginx, then announces its ports. nginx writes its pid file
# once it holds all its sockets, so nobody else's listener is taken for ours.
wait_until_it_listens() {
  local pid=$1 _
  for _ in $(seq 200); do
    if [ "$(cat "$prefix/nginx.pid" 2>/dev/null)" = "$pid" ]; then
      announce "$pid" >"$prefix/host.env.new"
      mv "$prefix/host.env.new" "$prefix/host.env"
      cat "$prefix/host.env"
      return 0
    fi
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.05
  done
  say "nginx did not come up; the end of $prefix/logs/error.log:"
  tail -n 20 "$prefix/logs/error.log" >&2 2>/dev/null || true
  return 1
}

# --- commands ------------------------------------------------------------------

run() {
  prepare "$@"
  say "TEST EQUIPMENT, NOT KONG: nginx host for the gateway's plugins in $prefix"
  # exec keeps the process id, so that whoever started this script can signal
  # nginx itself; a child waits for the ports meanwhile.
  local self=$$
  (wait_until_it_listens "$self" || kill -TERM "$self") &
  exec "$nginx" -e stderr -p "$prefix" -c "$prefix/nginx.conf" -g 'daemon off;'
}

start() {
  prepare "$@"
  say "TEST EQUIPMENT, NOT KONG: nginx host for the gateway's plugins in $prefix"
  setsid "$nginx" -e stderr -p "$prefix" -c "$prefix/nginx.conf" -g 'daemon off;' \
    </dev/null >>"$prefix/logs/host.log" 2>&1 &
  local pid=$!
  if ! wait_until_it_listens "$pid"; then
    kill -TERM "$pid" 2>/dev/null || true
    cat "$prefix/logs/host.log" >&2
    exit 1
  fi
}

stop() {
  read_settings "$@"
  [ -n "$prefix" ] || { say "stop needs --prefix"; usage; }
  local pid _
  pid=$(cat "$prefix/nginx.pid" 2>/dev/null) || { say "nothing runs in $prefix"; return 0; }
  local workers
  workers=$(pgrep -P "$pid" || true)
  kill -TERM "$pid" 2>/dev/null || true
  for _ in $(seq 100); do
    kill -0 "$pid" 2>/dev/null || return 0
    sleep 0.05
  done
  # A worker that never comes back to its event loop holds everybody who waits for its output.
  # shellcheck disable=SC2086 # one word for each
  kill -KILL "$pid" $workers 2>/dev/null || true
  fatal "pid $pid did not stop within 5 s, it was killed"
}

command=${1:-}
[ $# -gt 0 ] && shift
case $command in
  run | start | stop) "$command" "$@" ;;
  *) usage ;;
esac
