#!/usr/bin/env bash
# worker.sh FILE - runs a script of Lua in a worker of Debian's nginx with its Lua module, with the shared dicts of the plugins, and
# prints what it found. Needs what the nginx test host needs.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
script=$(realpath "$1")
nginx=$(command -v nginx || echo /usr/sbin/nginx)
for modules in /usr/lib/nginx/modules /usr/share/nginx/modules; do
  [ -e "$modules/ngx_http_lua_module.so" ] && break
done
work=$(mktemp -d)
trap '[ ! -s "$work/pid" ] || kill "$(<"$work/pid")"; rm -rf "$work"' EXIT
user=''
[ "$(id -u)" != 0 ] || user="user $(id -un) $(id -gn);"
cat >"$work/nginx.conf" <<CONF
$user
worker_processes 1;
pid $work/pid;
error_log $work/error.log;
pcre_jit on;
load_module $modules/ndk_http_module.so;
load_module $modules/ngx_http_lua_module.so;
events {}
http {
  access_log off;
  client_body_temp_path $work/body; proxy_temp_path $work/proxy; fastcgi_temp_path $work/fastcgi;
  uwsgi_temp_path $work/uwsgi; scgi_temp_path $work/scgi;
  lua_package_path '$here/../../kong-plugins/?.lua;;';
  lua_shared_dict llm_quota 16m;
  lua_shared_dict llm_queue 8m;
  server { listen unix:$work/socket; location / { content_by_lua_file $script; } }
}
CONF
"$nginx" -e stderr -p "$work" -c "$work/nginx.conf"
curl -sS --fail --max-time 300 --unix-socket "$work/socket" http://bench/ || { cat "$work/error.log" >&2; exit 1; }
