#!/usr/bin/env bash
#
# make.sh - makes container images for the tests of the installation, where no registry can be reached, under the names
# of deploy/images.txt. TEST EQUIPMENT: they have the official images' interface (entry point, variables, users, ports, tools
# that health checks call), and inside:
#   postgres, prometheus   the real programs, from this machine's Debian packages
#   kong                   the nginx test host of tests/nginx-host, which says so in its log; keeps its configuration in
#                          PostgreSQL as Kong does, so that passwords, backups and restores mean something
#   grafana                a stand-in that answers /api/health and logs in to the data source, and says so in its log
#
#   rust, debian           only when asked for: what deploy/demo/Dockerfile begins with; `cargo` brings the programs of target/debug,
#                          `apt-get` does nothing
#
# Usage: make.sh DIR [programs]    writes one tar an image to DIR, as docker save does
#
#   TEST_IMAGE_PREFIX   in front of the names, so that real images of those names stay what they are; none
#
# Needs Docker, and the packages postgresql, prometheus, nginx, libnginx-mod-http-lua, lua-cjson, luajit2, curl, wget.

set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../../.." && pwd)
programs=$(readlink -m "${CARGO_TARGET_DIR:-$repository/target}")/debug
target=$(mkdir -p "$1" && cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# --- a root file system from this machine's own files -------------------------------------------------------------------

# add ROOT PATH… - copies programs with the libraries they load, and anything else as it is.
add() {
  local root=$1 path library
  shift
  for path in "$@"; do
    mkdir -p "$root$(dirname "$path")"
    cp -RL "$path" "$root$path"
    [ -f "$path" ] || continue
    while read -r library; do
      [ -e "$root$library" ] || { mkdir -p "$root$(dirname "$library")" && cp -L "$library" "$root$library"; }
    done < <(ldd "$path" 2>/dev/null | grep -oE '/[^ ]+')
  done
}

# new_root NAME - a small system: shell, core tools, users, time zones of the C library's own.
new_root() {
  root=$work/$1
  mkdir -p "$root"/{bin,usr/bin,usr/sbin,etc,tmp,var/run,run,proc,sys,dev}
  add "$root" /bin/bash
  ln -s bash "$root/bin/sh"
  local tool
  for tool in cat id ls mkdir rm mv cp ln chmod chown sleep date head tail cut tr sort uniq seq env dirname basename readlink \
    mktemp touch sed grep awk find xargs od stat printf true kill setsid nproc base64 sha256sum; do
    tool=$(command -v "$tool" 2>/dev/null || true)
    [[ $tool == /* ]] || continue
    add "$root" "$tool"
  done
  printf 'root:x:0:0:root:/root:/bin/bash\n' >"$root/etc/passwd"
  printf 'root:x:0:\n' >"$root/etc/group"
  printf 'passwd: files\ngroup: files\nhosts: files\n' >"$root/etc/nsswitch.conf"
  printf '127.0.0.1 localhost\n' >"$root/etc/hosts"
  chmod 1777 "$root/tmp"
}

# user NAME UID GID
user() {
  printf '%s:x:%s:%s::/:/bin/bash\n' "$1" "$2" "$3" >>"$root/etc/passwd"
  [ "$3" = 0 ] || printf '%s:x:%s:\n' "$1" "$3" >>"$root/etc/group"
}

# build NAME DOCKERFILE_LINES… - the image from $root, then into a tar. `docker import` does in one step what `docker build` does
# with a container for each line. It knows no STOPSIGNAL; compose.yaml names the signals.
build() {
  local role=$1 image line changes=()
  shift
  image=${TEST_IMAGE_PREFIX:-}$(sed -e 's/#.*//' "$repository/deploy/images.txt" | grep -E "(^|/)$role:" || echo "$role:1")
  for line in "LABEL test.equipment=${TEST_IMAGE_PREFIX:-yes}" "$@"; do changes+=(--change "$line"); done
  tar -C "$root" -c . | docker import "${changes[@]}" - "$image" >/dev/null
  docker save --output "$target/$role.tar" "$image"
  docker rmi "$image" >/dev/null
  rm -rf "$root"
  echo "$target/$role.tar  $image"
}

# --- the four images -------------------------------------------------------------------------------------------------------

add_postgresql_client() {
  local bin
  bin=$(dirname "$(compgen -G '/usr/lib/postgresql/*/bin/psql' | sort -V | tail -n 1)")
  add "$root" "$bin/psql"
  ln -sf "$bin/psql" "$root/usr/bin/psql"
}

make_postgres() {
  local bin program
  new_root postgres
  user postgres 999 999
  bin=$(dirname "$(compgen -G '/usr/lib/postgresql/*/bin/initdb' | sort -V | tail -n 1)")
  for program in postgres initdb pg_ctl psql pg_isready pg_dump pg_restore; do
    add "$root" "$bin/$program"
    ln -s "$bin/$program" "$root/usr/bin/$program"
  done
  for program in "${bin%/bin}"/lib/*.so; do
    # The just-in-time compiler brings 100 MB of LLVM, and is off.
    [[ $program == */llvmjit.so ]] || add "$root" "$program"
  done
  add "$root" "/usr/share/postgresql/$(basename "${bin%/bin}")" /usr/share/zoneinfo "$(command -v setpriv)"
  # initdb wants the locale; the C library has C.UTF-8 in a folder of its own.
  [ ! -d /usr/lib/locale/C.utf8 ] || add "$root" /usr/lib/locale/C.utf8
  mkdir -p "$root/var/lib/postgresql/data" "$root/docker-entrypoint-initdb.d"
  mkdir -m 3777 "$root/var/run/postgresql"
  cp "$here/postgres-entrypoint.sh" "$root/usr/bin/docker-entrypoint.sh"
  build postgres 'ENV LANG=C.UTF-8 PGDATA=/var/lib/postgresql/data' 'VOLUME /var/lib/postgresql/data' \
    'ENTRYPOINT ["docker-entrypoint.sh"]' 'EXPOSE 5432' 'CMD ["postgres"]'
}

make_prometheus() {
  new_root prometheus
  user nobody 65534 65534
  add "$root" "$(command -v prometheus)" "$(command -v promtool)" "$(command -v wget)"
  mkdir -p "$root/prometheus"
  build prometheus 'USER nobody' 'EXPOSE 9090' 'VOLUME /prometheus' 'WORKDIR /prometheus' "ENTRYPOINT [\"$(command -v prometheus)\"]"
}

make_kong() {
  new_root kong
  # The official image is Ubuntu's, where 1000 is somebody else already.
  user kong 1001 1001
  add "$root" /usr/sbin/nginx
  local module
  for module in /usr/lib/nginx/modules/{ndk_http_module,ngx_http_lua_module}.so; do add "$root" "$module"; done
  for module in /usr/share/lua /usr/share/luajit* /usr/share/nginx/modules; do [ ! -e "$module" ] || add "$root" "$module"; done
  while IFS= read -r module; do add "$root" "$module"; done < <(find /usr/lib -path '*/lua/5.1/*.so' ! -type d)
  mkdir -p "$root/var/log/nginx" "$root/var/lib/nginx"
  cp -R "$repository/tests/nginx-host" "$root/nginx-host"
  add_postgresql_client
  cp "$here/kong" "$root/usr/bin/kong"
  cp "$here/kong-entrypoint.sh" "$root/docker-entrypoint.sh"
  build kong 'USER kong' 'ENTRYPOINT ["/docker-entrypoint.sh"]' 'EXPOSE 8000 8001' 'CMD ["kong", "docker-start"]'
}

make_grafana() {
  new_root grafana
  user grafana 472 0
  add "$root" /usr/sbin/nginx "$(command -v curl)"
  add_postgresql_client
  mkdir -p "$root/var/lib/grafana" "$root/var/log/nginx" "$root/var/lib/nginx"
  cp "$here/grafana-run.sh" "$root/run.sh"
  build grafana 'USER 472' 'ENV GF_PATHS_DATA=/var/lib/grafana' 'EXPOSE 3000' 'ENTRYPOINT ["/run.sh"]'
}

make_rust() {
  new_root rust
  mkdir -p "$root/programs-of-the-test"
  cp "$programs"/{llm-collector,simulated-vllm,demo-week} "$root/programs-of-the-test/"
  printf '#!/bin/bash\nmkdir -p target/debug && cp /programs-of-the-test/* target/debug/\n' >"$root/usr/bin/cargo"
  chmod +x "$root/usr/bin/cargo"
  build rust
}

make_debian() {
  new_root debian
  add "$root" "$(command -v curl)"
  add_postgresql_client
  # The libraries of the programs, and what the simulated vLLM reads, where it was built.
  add "$root" "$programs/llm-collector" "$programs/simulated-vllm" "$repository/tests/fixtures/vllm"
  rm -r "${root:?}$programs"
  printf '#!/bin/bash\n' >"$root/usr/bin/apt-get"
  chmod +x "$root/usr/bin/apt-get"
  build debian
}

make_postgres
make_prometheus
make_kong
make_grafana
[ "${2:-}" != programs ] || { make_rust && make_debian; }
