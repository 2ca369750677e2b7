#!/usr/bin/env bats
#
# The parts of the installation's scripts that need no Docker: settings, derived sizes, checks of the host, lists that must
# agree. Docker's place is taken by a program that answers as a test wants it.
# shellcheck disable=SC1091,SC2004,SC2013,SC2034,SC2154,SC2030,SC2031,SC2016  # variables of the scripts under test; each test is a shell of its own
load scripts

# --- settings -----------------------------------------------------------------------------------------------------------

@test "the shipped settings are valid as they are, and every one is described" {
  settings ''
  [ "${setting[PROXY_PORT]}" = 8111 ]
  # A line of the file is a comment, blank, or a setting under a comment.
  awk '/^[A-Z]/ && previous ~ /^$/ { print "no description: " $0; bad = 1 } { previous = $0 } END { exit bad }' "$DEPLOY/gateway.env"
}

@test "what an operator writes wins over the defaults; quotes and carriage returns are forgiven" {
  settings 'PROXY_PORT="9000"' $'RATE_LIMIT_PER_HOUR=7\r' '  # a remark' ''
  [ "${setting[PROXY_PORT]}" = 9000 ]
  [ "${setting[RATE_LIMIT_PER_HOUR]}" = 7 ]
  [ "${setting[GRAFANA_PORT]}" = 3000 ]
}

@test "wrong settings are refused by name" {
  for line in PROXY_PORT=0 PROXY_PORT=65536 PROXY_PORT= KONG_WORKERS=0 KONG_WORKERS=384 MAX_REQUEST_MB=0 MAX_REQUEST_MB=64m REQUEST_BODY_SECONDS=86401 REQUEST_BODY_SECONDS=1m PROXY_ADDRESS=here PROJECT=A \
    FIRST_USER='a b' DATA_DIR=relative VLLM_URL=127.0.0.1:8000 VLLM_URL=http://127.0.0.1:8000/v1 TRUSTED_PROXIES=proxy TRUSTED_PROXIES=0.0.0.0/0 \
    TRUSTED_PROXIES='10.0.0.1 ::/0' USERS=0 KONG_MANAGER=yes WRITER_ROLE=true CONTAINER_UIDS=0 KEEP_ROWS_DAYS=-1 KEEP_ROWS_AFTER_FEED=Par FEED_DIR=relative QUEUE_IN_FLIGHT=many QUEUE_IN_FLIGHT=0 QUEUE_MAX_WAITING=0 VLLM_PRIORITY=on SITE_TIME_ZONE= SITE_TIME_ZONE='a b' QUOTA_WEBHOOK_URL=host QUOTA_WEBHOOK_URL=https://u:p@host/ QUOTA_WEBHOOK_CA_FILE=relative POSTGRES_ALLOW_FROM=everyone; do
    run settings "$line"
    [ "$status" = 1 ]
    says "${line%%=*} must be"
  done
  run settings PROXY_PORT=3000
  says 'more than one service has port'
  run settings 'export PROXY_PORT=1'
  says 'line 1 is no NAME=value'
}

@test "settings of the programs themselves are handed on, but not what is derived and no secrets" {
  settings GF_SERVER_ROOT_URL=https://x/ KONG_LOG_LEVEL=info COLLECTOR_LOG_FORMAT=json KEEP_ROWS_DAYS=30 SITE_TIME_ZONE=Europe/Berlin QUOTA_WEBHOOK_URL=https://chat.example/hook
  collector_environment >"$WORK/collector"
  grep -qx COLLECTOR_LOG_FORMAT=json "$WORK/collector"
  grep -qx COLLECTOR_KEEP_ROWS_DAYS=30 "$WORK/collector"
  grep -qx SITE_TIME_ZONE=Europe/Berlin "$WORK/collector"
  grep -qx QUOTA_WEBHOOK_URL=https://chat.example/hook "$WORK/collector"
  no grep -q KEEP_CONTENT "$WORK/collector"
  [[ $passed_on == *GF_SERVER_ROOT_URL=https://x/* && $passed_on == *KONG_LOG_LEVEL=info* ]]
  no grep -q FEED "$WORK/collector"
  settings KEEP_CONTENT_DAYS=7 KEEP_ROWS_AFTER_FEED=parquet
  collector_environment >"$WORK/collector"
  grep -qx COLLECTOR_KEEP_ROWS_AFTER_FEED=parquet "$WORK/collector"
  grep -qx COLLECTOR_KEEP_CONTENT_DAYS=7 "$WORK/collector"
  run settings KONG_PG_HOST=elsewhere
  says 'derived from other settings'
  run settings GF_SECURITY_ADMIN_PASSWORD=x
  says 'holds a secret'
}

@test "the collector believes a webhook by the operator's root certificate, else by those of the host, and by none over HTTP" {
  echo root >"$WORK/root.pem"
  settings QUOTA_WEBHOOK_URL=https://chat.example/hook QUOTA_WEBHOOK_CA_FILE="$WORK/root.pem"
  [ "$(webhook_roots)" = root ]
  settings QUOTA_WEBHOOK_URL=http://chat.example/hook QUOTA_WEBHOOK_CA_FILE="$WORK/root.pem"
  [ -z "$(webhook_roots)" ]
  settings QUOTA_WEBHOOK_URL=https://chat.example/hook QUOTA_WEBHOOK_CA_FILE="$WORK/none.pem"
  run webhook_roots
  [ "$status" = 1 ]
  says 'none.pem (QUOTA_WEBHOOK_CA_FILE)'
}

@test "memory that Kong can come to need is counted, with what is captured" {
  [ -z "$(settings '' 2>&1)" ]
  run settings KONG_MEMORY_MB=3000
  [ "$status" = 0 ]
  says 'KONG_MEMORY_MB is 3000, but Kong can come to need'
  for line in KONG_WORKERS=16 MAX_REQUEST_MB=512 AUDIT_QUEUE_BYTES=536870912 AUDIT_MAX_RESPONSE_BYTES=8388608; do
    run settings "$line"
    says 'but Kong can come to need'
  done
}

@test "a proxy is believed when it is trusted, and Kong's own names win" {
  settings 'TRUSTED_PROXIES=10.0.0.5, 10.1.0.0/24 fd00::1'
  kong_program_environment >"$WORK/kong"
  grep -qx KONG_TRUSTED_IPS=10.0.0.5,10.1.0.0/24,fd00::1 "$WORK/kong"
  grep -qx KONG_REAL_IP_HEADER=X-Forwarded-For "$WORK/kong"
  grep -qx KONG_REAL_IP_RECURSIVE=on "$WORK/kong"
  settings ''
  no grep -q TRUSTED <(kong_program_environment)
  settings TRUSTED_PROXIES=10.0.0.5 KONG_REAL_IP_HEADER=X-Real-IP
  kong_program_environment >"$WORK/kong"
  [ "$(grep -c REAL_IP_HEADER "$WORK/kong")" = 1 ]
  grep -qx KONG_REAL_IP_HEADER=X-Real-IP "$WORK/kong"
}

@test "the Admin API has a password unless Kong Manager is wanted" {
  settings ''
  grep -qx KONG_NGINX_ADMIN_AUTH_BASIC_USER_FILE=/run/secrets/kong-admin <(kong_program_environment)
  settings KONG_MANAGER=on
  no grep -q AUTH_BASIC <(kong_program_environment)
}

@test "vLLM's key: the operator's, else one of our own for a vLLM on this host, else none" {
  settings ''
  [ "$(vllm_key_file)" = "$secrets_dir/vllm-api-key" ]
  settings VLLM_URL=http://localhost:8000/
  [ "$(vllm_key_file)" = "$secrets_dir/vllm-api-key" ]
  settings VLLM_URL=http://10.0.0.7:8000
  [ -z "$(vllm_key_file)" ]
  settings VLLM_API_KEY_FILE=/etc/vllm-key
  [ "$(vllm_key_file)" = /etc/vllm-key ]
}

@test "Grafana's key is made, but not for a database that was written with another" {
  settings ''
  make_secrets
  [[ ${secret[GRAFANA_SECRET_KEY]} =~ ^[0-9a-f]{48}$ ]]
  secret=()
  sed -i '/^GRAFANA_SECRET_KEY=/d' "$secrets_file"
  mkdir -p "$data_dir/grafana" && : >"$data_dir/grafana/grafana.db"
  make_secrets
  [ "${secret[GRAFANA_SECRET_KEY]}" = "$GRAFANA_OLD_KEY" ]
  replace_secret GRAFANA_SECRET_KEY another
  secret=()
  make_secrets
  [ "${secret[GRAFANA_SECRET_KEY]}" = another ]
  [ "$(stat -c %a "$secrets_file")" = 600 ]
}

@test "the containers' users are five numbers that nobody else has" {
  settings ''
  [ "$(for role in KONG POSTGRES COLLECTOR PROMETHEUS GRAFANA; do own_user $role; done | sort -u | wc -l)" = 5 ]
  [ "$(own_user KONG)" = 68110:68110 ]
  run check_users
  [ -z "$output" ]
  printf '#!/bin/bash\n[ "$2" != 68112 ] || echo "mallory:x:68112:68112::/:/bin/sh"\n' >"$WORK/bin/getent"
  chmod +x "$WORK/bin/getent"
  run check_users
  says 'the user number 68112, meant for a container, belongs to mallory'
  settings CONTAINER_UIDS=70000
  run check_users
  [ -z "$output" ]
}

@test "an image that does not run as our user keeps its own, and that is said" {
  settings ''
  image_name[KONG]=kong:x
  fake_docker '*--user*prepare*) exit 1 ;; *version*) echo 3.9.5 ;; *id*) echo 1001 ;;'
  run look_into_image KONG kong:x
  [ "$status" = 0 ]
  says 'does not run as user 68110'
  [ "${lines[-1]}" = 1001:1001 ]
  fake_docker '*version*) echo 3.9.5 ;; *prepare*) ;;'
  [ "$(look_into_image KONG kong:x)" = 68110:68110 ]
}

@test "a signed bundle: by whom, for what, and nothing in it that was not signed" {
  command -v ssh-keygen >/dev/null || skip 'this needs ssh-keygen'
  bundle=$WORK/bundle
  mkdir -p "$bundle/deploy"
  echo one >"$bundle/deploy/install.sh" && echo two >"$bundle/MANIFEST" && echo mine >"$bundle/gateway.env"
  ln -s deploy/install.sh "$bundle/install.sh"
  (cd "$bundle" && sha256sum deploy/install.sh MANIFEST >SHA256SUMS)
  for name in maker other; do ssh-keygen -q -t ed25519 -N '' -C "$name" -f "$WORK/$name"; done
  echo "maker@example.org $(cat "$WORK/maker.pub")" >"$WORK/allowed"
  seal() { rm -f "$bundle/SHA256SUMS.sig"; ssh-keygen -Y sign -q -f "$WORK/$1" -n "$2" "$bundle/SHA256SUMS" 2>/dev/null; }
  run verify_signature "$bundle" "$WORK/allowed"
  [ "$status" = 1 ] && says 'is not signed'
  seal other "$SIGNED_AS"
  run verify_signature "$bundle" "$WORK/allowed"
  [ "$status" = 1 ] && says 'by nobody in'
  seal maker file
  run verify_signature "$bundle" "$WORK/allowed"
  [ "$status" = 1 ] && says 'for something else'
  seal maker "$SIGNED_AS"
  run verify_signature "$bundle" "$WORK/allowed"
  [ "$status" = 0 ] && says 'signed by maker@example.org'
  echo changed >"$bundle/gateway.env"
  verify_signature "$bundle" "$WORK/allowed"
  echo three >"$bundle/deploy/more.sh"
  run verify_signature "$bundle" "$WORK/allowed"
  [ "$status" = 1 ] && says 'deploy/more.sh'
  rm "$bundle/deploy/more.sh"
  echo 1 >>"$bundle/MANIFEST"
  run verify_signature "$bundle" "$WORK/allowed"
  [ "$status" = 1 ] && says 'the bundle is damaged'
}

@test "PostgreSQL allows for the connections of all workers, whatever the number of cores" {
  settings KONG_WORKERS=4
  [ "$max_connections" = $((4 * 8 + 4 + 2 + 30)) ]
  settings KONG_WORKERS=16 GATEWAY_HOSTS=3
  [ "$max_connections" = $((3 * (16 * 8 + 4 + 2) + 30)) ]
  settings KONG_WORKERS=64 GATEWAY_HOSTS=7
  run settings KONG_WORKERS=64 GATEWAY_HOSTS=8
  [ "$status" = 1 ] && says 'want 4174 connections to PostgreSQL; it gets 4000 at most'
  # More processes than connections, in its container.
  [ "$(sed -n '/^  postgresql:/,/^  kong:/s/^ *pids_limit: //p' "$DEPLOY/compose.yaml")" -ge $((most_connections + 100)) ]
}

@test "the demo takes the images of the installation, and the Rust that is needed" {
  while read -r image; do
    grep -qF "_IMAGE:-$image}" "$DEPLOY/demo/compose.yaml" || { echo "the demo has another $image" && false; }
  done < <(grep -E '^[^#]' "$DEPLOY/images.txt" | grep -v ':VERSION$')
  rust=rust:$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$DEPLOY/../Cargo.toml")-
  grep -qF "_IMAGE:-$rust" "$DEPLOY/demo/compose.yaml" && grep -qF "RUST_IMAGE=$rust" "$DEPLOY/demo/Dockerfile"
}

@test "every variable of the Compose file is derived, and nothing else" {
  settings KONG_LOG_LEVEL=info
  for role in KONG POSTGRES PROMETHEUS GRAFANA COLLECTOR; do
    image_name[$role]=i image_id[$role]=i image_user[$role]=$(id -u):$(id -g)
  done
  make_secrets
  mkdir -p "$secrets_dir"
  write_config
  grep -oE '\$\{[A-Z_]+' "$DEPLOY/compose.yaml" | tr -d '${' | sort -u >"$WORK/used"
  sed -n 's/^\([A-Z_]*\)=.*/\1/p' "$config_dir/compose.env" | sort -u >"$WORK/derived"
  diff "$WORK/used" "$WORK/derived"
  grep -qx KONG_LOG_LEVEL=info "$config_dir/kong.env"
  # No secret among them.
  for name in "${!secret[@]}"; do ! grep -rqF "${secret[$name]}" "$config_dir"; done
  # A second time nothing changes.
  changed=0
  make_secrets
  write_config
  [ "$changed" = 0 ]
  if find_compose; then
    project=x
    run_compose config >"$WORK/config"
    grep -q KONG_NGINX_WORKER_PROCESSES "$WORK/config"
  fi
}

@test "Kong lets go of idle connections before vLLM closes them after 5 s" {
  seconds=$(sed -n 's/^ *KONG_UPSTREAM_KEEPALIVE_IDLE_TIMEOUT: "\([0-9]*\)"$/\1/p' "$DEPLOY/compose.yaml")
  [ "$seconds" -ge 1 ] && [ "$seconds" -lt 5 ]
}

@test "secrets are made once, for root alone, and added to when a release wants more" {
  settings ''
  make_secrets
  [ "$(stat -c %a "$secrets_file")" = 600 ]
  cp "$secrets_file" "$WORK/first"
  secret=()
  make_secrets
  cmp "$secrets_file" "$WORK/first"
  sed -i '/^PROBE_KEY=/d' "$secrets_file"
  secret=()
  make_secrets
  grep -q '^PROBE_KEY=sk-[0-9a-f]\{48\}$' "$secrets_file"
  [ "$(grep -v PROBE "$secrets_file")" = "$(grep -v PROBE "$WORK/first")" ]
}

@test "the collector logs in as llm_writer and sees no other password, unless that is switched off" {
  put_secret() { printf '%s\n' "$3" >"$WORK/secret-$1"; }
  settings ''
  make_secrets
  write_secret_files
  owner=${secret[COLLECTOR_DATABASE_PASSWORD]} writer=${secret[WRITER_DATABASE_PASSWORD]}
  grep -qx "postgres://llm_writer:$writer@127.0.0.1:5432/llm" "$WORK/secret-database-url"
  grep -qx "postgres://llm_collector:$owner@127.0.0.1:5432/llm" "$WORK/secret-owner-url"
  [[ " ${services[*]} " == *' upkeep '* ]]
  no awk '$1 == "collector:" { mine = 1; next } /^  [a-z]/ { mine = 0 } mine && /owner-url/ { found = 1 } END { exit !found }' "$DEPLOY/compose.yaml"
  settings WRITER_ROLE=off
  write_secret_files
  grep -qx "postgres://llm_collector:$owner@127.0.0.1:5432/llm" "$WORK/secret-database-url"
  [[ " ${services[*]} " != *' upkeep '* ]]
}

@test "installations from before the writer, with the same secrets, get the same password for it" {
  settings ''
  make_secrets
  sed -i '/^WRITER_DATABASE_PASSWORD=/d' "$secrets_file"
  cp "$secrets_file" "$WORK/old"
  for _ in 1 2; do
    cp "$WORK/old" "$secrets_file"
    secret=()
    make_secrets
    sed -n 's/^WRITER_DATABASE_PASSWORD=//p' "$secrets_file"
  done >"$WORK/passwords"
  [ "$(wc -l <"$WORK/passwords")" = 2 ] && [ "$(sort -u "$WORK/passwords" | wc -l)" = 1 ]
  grep -qE '^[0-9a-f]{48}$' "$WORK/passwords"
  no grep -qF "$(head -n 1 "$WORK/passwords")" "$WORK/old"
}

@test "secrets and keys do not get through to what is shown" {
  settings ''
  make_secrets
  secret[VLLM_API_KEY]='a.b*c[d]/e$'
  run without_secrets <<<"x ${secret[COLLECTOR_TOKEN]} y a.b*c[d]/e\$ z aXbbc key sk-0123456789abcdef0123"
  [ "$output" = 'x *** y *** z aXbbc key sk-***' ]
}

@test "who may connect to PostgreSQL" {
  settings POSTGRES_ALLOW_FROM='10.1.0.0/24 10.2.0.0/24'
  write_pg_hba
  grep -qx 'local all postgres peer' "$config_dir/pg_hba.conf"
  for role in llm_collector llm_writer; do grep -qx "host llm $role 10.2.0.0/24 scram-sha-256" "$config_dir/pg_hba.conf"; done
  ! grep -v '^#' "$config_dir/pg_hba.conf" | grep -E 'trust|host .*postgres|all +all' || false
  [ "$postgres_listen" = '*' ]
  settings ''
  [ "$postgres_listen" = 127.0.0.1 ]
}

@test "Prometheus scrapes the ports of the settings" {
  settings KONG_STATUS_PORT=1100 COLLECTOR_PORT=1500 PROMETHEUS_PORT=1900 VLLM_URL=http://127.0.0.1:1800
  write_prometheus
  for port in 1100 1500 1900 1800; do grep -q "127.0.0.1:$port" "$config_dir/prometheus/prometheus.yml"; done
  ! grep -E '127\.0\.0\.1:(8100|5000|9090|8000)' "$config_dir/prometheus/prometheus.yml" || false
  ! command -v promtool || promtool check config "$config_dir/prometheus/prometheus.yml"
}

# --- small things --------------------------------------------------------------------------------------------------------

@test "versions are compared as numbers" {
  version_at_least 3.9.2 3.9.2
  version_at_least 3.10.0 3.9.2
  version_at_least 20.10.24+dfsg1 20.10.0
  version_at_least 2.27.0-1 1.28.0
  no version_at_least 3.9.1 3.9.2
  no version_at_least 1.27.4 1.28
  no version_at_least 3.8.9 3.9.2
}

@test "the digest of a folder sees content, names and nothing else" {
  mkdir -p "$WORK/a/b"
  echo 1 >"$WORK/a/b/c"
  before=$(digest_of "$WORK/a")
  touch -d '2001-01-01' "$WORK/a/b/c"
  [ "$(digest_of "$WORK/a")" = "$before" ]
  cp -R "$WORK/a" "$WORK/z"
  [ "$(digest_of "$WORK/z")" = "$before" ]
  mv "$WORK/a/b/c" "$WORK/a/b/d"
  [ "$(digest_of "$WORK/a")" != "$before" ]
}

@test "a file is written whole, and only when it is new" {
  changed=0
  write_file "$WORK/f" 600 <<<one
  write_file "$WORK/f" 644 <<<one
  [ "$changed" = 1 ]
  [ "$(stat -c %a "$WORK/f")" = 644 ]
  write_file "$WORK/f" 600 <<<two
  [ "$changed" = 2 ]
  [ "$(cat "$WORK/f")" = two ]
}

@test "every image of the list has a service, an exact tag and a licence" {
  . "$DEPLOY/lib/sbom.sh"
  [ "$(images_in "$DEPLOY/images.txt" | wc -l)" = 5 ]
  while read -r image; do
    role=$(role_of "$image")
    [ -n "$(licence_of "$role")" ]
    [[ $image =~ :v?[0-9]+\.[0-9]+(\.[0-9]+)?$ || $image == *llm-collector:VERSION ]]
  done < <(images_in "$DEPLOY/images.txt")
  [ "$(role_of registry.example:5000/library/kong:3.9.3)" = KONG ]
  run role_of mysql:8
  [ "$status" = 1 ]
  # The Compose file names no image itself.
  ! grep -E '^ *image: *"?[a-z]' "$DEPLOY/compose.yaml" || false
}

@test "Kong's version: old ones are refused, later ones warned about" {
  image_name[KONG]=kong:x
  for version in 3.9.3 3.9.0 3.8.9 2.8.1; do
    run check_kong_version "$version"
    [ "$status" = 1 ]
    says CVE-2026-6338
  done
  # What is shipped may run, and the other places where the number stands agree.
  check_kong_version "$(sed -n 's/^kong://p' "$DEPLOY/images.txt")"
  IFS=. read -r major minor patch <<<"$KONG_MINIMUM"
  grep -q "OLDEST_KONG: \[u32; 3\] = \[$major, $minor, $patch\];" "$DEPLOY/../collector/src/kong/apply.rs"
  run check_kong_version 'Kong Enterprise 3.10.0.1'
  [ "$status" = 0 ]
  says 'only the 3.9 line'
  run check_kong_version 3.9.4
  [ "$status" = 0 ] && [ -z "$output" ]
}

@test "PostgreSQL's data of another major version are not touched" {
  settings ''
  mkdir -p "$data_dir/postgresql"
  echo 16 >"$data_dir/postgresql/PG_VERSION"
  run check_postgres_version 'postgres (PostgreSQL) 17.10 (Debian 17.10-1.pgdg12+1)'
  [ "$status" = 1 ]
  says 'are of PostgreSQL 16, the image is 17'
  says 'restore BACKUP'
}

@test "an image is known by its id or by its layers" {
  fake_docker '*RootFS*) echo "sha256:a sha256:b " ;; *.Id*) echo sha256:other ;;'
  layers=$(printf 'sha256:a\nsha256:b\n' | short_digest)
  has_image i sha256:other x
  has_image i sha256:mine "$layers"
  no has_image i sha256:mine x
}

# --- the programs ----------------------------------------------------------------------------------------------------------

@test "wrong use is status 2, help is status 0 and names every command" {
  run "$DEPLOY/install.sh" --what
  [ "$status" = 2 ]
  run "$DEPLOY/gateway" what
  [ "$status" = 2 ]
  run "$DEPLOY/bundle.sh" --platform windows
  [ "$status" = 2 ]
  run "$DEPLOY/gateway" help
  [ "$status" = 0 ]
  for word in status up down restart logs users apply doctor backup restore upgrade uninstall support; do says "$word"; done
  "$DEPLOY/install.sh" --help | grep -q -- --without-vllm
}

@test "commands outside an installation say where to begin" {
  [ "$(id -u)" = 0 ] || skip 'this needs root'
  GATEWAY_HOME=$WORK/nowhere run "$DEPLOY/gateway" status
  [ "$status" = 1 ]
  says "there is no installation in $WORK/nowhere"
}
