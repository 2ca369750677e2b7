#!/usr/bin/env bats
#
# The way of a bundle, for real, where Docker is: made, carried, installed, used, backed up, restored, upgraded, removed;
# and each step with one thing broken. In the order of an installation's life: a test builds on those before it.
#
#   GATEWAY_TEST_COLLECTOR   a static llm-collector binary, in place of one that is built here

# shellcheck disable=SC2154,SC2009,SC2013,SC2016  # bats sets status and output; secrets hold no blanks; inner shells expand

load stack
load tls

# --- the bundle ---------------------------------------------------------------------------------------------------------

@test "the bundle holds what the host needs, with checksums, digests and a list of its parts" {
  cd "$WORK/bundle"
  sha256sum --check --quiet --strict SHA256SUMS
  (cd "$WORK/dist" && sha256sum --check --quiet ./*.sha256)
  for file in install.sh gateway.env deploy/gateway deploy/compose.yaml deploy/lib/collector.sh \
    kong-plugins/kong/plugins/llm-audit/handler.lua kong-plugins/pre-function/bearer.lua deploy/prometheus/prometheus.yml LICENSE; do
    [ -e "$file" ] || { echo "missing: $file" && false; }
  done
  [ "$(wc -l <MANIFEST)" = 5 ]
  [ ! -e deploy/tests ] && [ ! -e deploy/demo ] && [ ! -e kong-plugins/spec ]
  # Every file but the settings has its checksum.
  [ "$(find . -type f | wc -l)" = $(($(wc -l <SHA256SUMS) + 2)) ]
  python3 - <<'PY'
import json
sbom = json.load(open("sbom.spdx.json"))
names = {package["name"]: package for package in sbom["packages"]}
assert sbom["spdxVersion"] == "SPDX-2.3"
assert names["tokio"]["licenseDeclared"] == "MIT", names["tokio"]
assert any(name.endswith("/kong") for name in names), names
identities = [package["SPDXID"] for package in sbom["packages"]]
assert len(identities) == len(set(identities))
assert {relation["relatedSpdxElement"] for relation in sbom["relationships"]} == set(identities)
PY
}

@test "the collector's image is one small static program that runs as nobody" {
  docker load -q -i "$WORK"/bundle/images/llm-collector-*.tar >/dev/null
  image=$(docker images --format '{{.Repository}}:{{.Tag}}' | grep "^${PREFIX}llm-collector:")
  [ "$(docker image inspect --format '{{.Config.User}}' "$image")" = 65532:65532 ]
  [ "$(docker image inspect --format '{{.Size}}' "$image")" -lt 30000000 ]
  docker run --rm --network none --read-only --cap-drop ALL "$image" --version
  # Names of /etc/hosts are resolved without a C library in the image.
  run docker run --rm --network host -e DATABASE_URL=postgres://u:p@localhost:1/x "$image" migrate
  [[ $output == *'Connection refused'* ]]
  docker rmi "$image" >/dev/null
}

@test "a missing image is named, and so is one that is too old" {
  mkdir "$WORK/few"
  cp "$WORK/images/kong.tar" "$WORK/few/"
  fails 'no file in .* holds .*postgres' "$DEPLOY/bundle.sh" --output "$WORK/none" --images-from "$WORK/few"
  KONG_IMAGE=kong:3.9.3 fails 'Kong 3.9.3 lets requests be smuggled' "$DEPLOY/bundle.sh" --output "$WORK/none" --images-from "$WORK/images"
  KONG_IMAGE=kong:latest fails 'no exact version' "$DEPLOY/bundle.sh" --output "$WORK/none" --images-from "$WORK/images"
  [ -z "$(find "$WORK/none" -name 'vllm-gateway*' 2>/dev/null)" ]
}

# --- a host that is not ready -----------------------------------------------------------------------------------------------

@test "a flipped byte in an image is found before anything is changed" {
  file=$(ls "$WORK"/bundle/images/kong-*.tar)
  cp "$file" "$WORK/whole"
  flip "$file" 20000000
  fails 'images/kong-.*FAILED' install
  [[ $output == *'Copy it again'* ]]
  mv "$WORK/whole" "$file"
  [ ! -e "$HOME_DIR" ]
  [ -z "$(docker images -q "${PREFIX}kong")" ]
}

@test "a stopped daemon" {
  DOCKER_HOST=tcp://127.0.0.1:1 fails 'daemon does not answer' install
  [[ $output == *'systemctl start docker'* ]]
  [ ! -e "$HOME_DIR" ]
}

@test "everything that is wrong is said at once: no vLLM, a taken port, a full disk, a clock that is behind" {
  stop_vllm
  python3 -m http.server $((PORT + 6)) --bind 127.0.0.1 >/dev/null 2>&1 3>&- &
  other=$!
  sleep 1
  sed 's/MINIMUM_FREE_GB=.*/MINIMUM_FREE_GB=1/' "$WORK/gateway.env" >"$WORK/broken.env"
  GATEWAY_TEST_NOW=1000000000 run "$WORK/bundle/install.sh" --home "$HOME_DIR" --settings "$WORK/broken.env"
  kill $other
  start_vllm
  [ "$status" = 1 ]
  grep -q "^error .*vLLM does not answer at http://127.0.0.1:$PORT" <<<"$output"
  grep -q "^error .*port $((PORT + 6)) (POSTGRES_PORT, for postgresql) is taken" <<<"$output"
  grep -q "^error .*disk of $DATA has 24 MB free" <<<"$output"
  grep -q "^error .*the clock is wrong" <<<"$output"
  [[ $output == *'4 of the checks above'* ]]
  [[ $output == *'--without-vllm'* ]]
  [ ! -e "$HOME_DIR" ]
}

@test "settings that cannot be right are named with their line" {
  printf 'PROXY_PORT=80a\n' >"$WORK/wrong.env"
  fails "PROXY_PORT must be a port, not '80a'" "$WORK/bundle/install.sh" --home "$HOME_DIR" --settings "$WORK/wrong.env"
  printf '\nRATE_LIMIT=5\n' >"$WORK/wrong.env"
  fails 'line 2: there is no setting RATE_LIMIT' "$WORK/bundle/install.sh" --home "$HOME_DIR" --settings "$WORK/wrong.env"
  printf 'KONG_PG_PASSWORD=x\n' >"$WORK/wrong.env"
  fails 'holds a secret' "$WORK/bundle/install.sh" --home "$HOME_DIR" --settings "$WORK/wrong.env"
  printf 'KONG_NGINX_WORKER_PROCESSES=9\n' >"$WORK/wrong.env"
  fails 'derived from other settings' "$WORK/bundle/install.sh" --home "$HOME_DIR" --settings "$WORK/wrong.env"
}

@test "--check changes nothing" {
  install --check
  [ ! -e "$HOME_DIR" ]
  [ -z "$(docker images -q "${PREFIX}kong")" ]
}

# --- installing ----------------------------------------------------------------------------------------------------------

@test "a disk that fills up in the middle: a clear message, and the second run mends it" {
  touch "$WORK/installing"
  fails 'No space left on device' install
  [[ $output == *'the disk is full'* && $output == *'PostgreSQL does not start'* ]]
  mount -o remount,size=600m "$DATA"
  install >"$WORK/report" 2>"$WORK/log" || { cat "$WORK/log" && false; }
  sed -n 's/^Key *\(sk-[0-9a-f]*\) .*/\1/p' "$WORK/report" >"$WORK/key"
  [ -s "$WORK/key" ]
  grep -A 1 'status 200, model stub$' "$WORK/log" | grep -q 'and its row is in the audit log'
}

@test "a call through the gateway becomes a row" {
  [ "$(call "$(cat "$WORK/key")" 'the first question')" = 200 ]
  grep -q 'You said: the first question' "$WORK/answer"
  [ "$(rows_of 'the first question')" = 1 ]
  [ "$(sql llm "SELECT consumer_username || ' ' || model || ' ' || response FROM llm_logs WHERE prompt = 'the first question'")" = \
    'first-user stub You said: the first question' ]
  [ "$(call wrong-key 'no')" = 401 ]
}

@test "a second run changes nothing and says so" {
  state_of_everything >"$WORK/before"
  install >/dev/null 2>"$WORK/log"
  grep -q 'nothing to change' "$WORK/log"
  state_of_everything | diff "$WORK/before" -
}

@test "no secret in docker inspect, the process list or a file that others may read" {
  for secret in $(sed -n 's/^[A-Z_]*=//p' "$HOME_DIR/secrets.env"); do
    for id in $(containers); do
      ! docker inspect "$id" | grep -q -- "$secret" || { echo "inspect shows a secret" && false; }
    done
    # The pattern comes through a pipe, else it would find itself.
    ! ps axww -o args | grep -qF -f <(echo "$secret") || { echo "the process list shows a secret" && false; }
    [ -z "$(find "$HOME_DIR" "$DATA" -type f -perm /o+r -exec grep -lF -- "$secret" {} +)" ]
  done
  [ "$(stat -c %a "$HOME_DIR/secrets.env")" = 600 ]
}

@test "containers are not root, have no capabilities and cannot write their system" {
  for id in $(containers); do
    docker inspect --format '{{.Config.User}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} {{gt .HostConfig.Memory 0}} {{.HostConfig.RestartPolicy.Name}}' "$id" |
      grep -E '^[1-9][0-9]*:[0-9]+ true \[ALL\] true unless-stopped$' || { docker inspect "$id" && false; }
  done
}

@test "containers run as numbers that no account has, and Kong's Admin API wants a password" {
  users=$(for id in $(containers); do docker inspect --format '{{.Config.User}}' "$id"; done | sort -u)
  [ "$(wc -l <<<"$users")" = 5 ]
  for user in $users; do no_account "${user%:*}"; done
  [ "$(stat -c %u "$DATA/postgresql")" = 68111 ]
  [ "$(curl -s -o /dev/null -w '%{http_code}' "http://127.0.0.1:$((PORT + 2))/key-auths")" = 401 ]
  [ "$(curl -s -u "admin:$(cat "$HOME_DIR/secrets/kong-admin-password")" -o /dev/null -w '%{http_code}' "http://127.0.0.1:$((PORT + 2))/key-auths")" = 200 ]
  grep -q 'sudo cat .*/secrets/vllm-api-key' "$WORK/report"
}
no_account() { [ "$1" -ge 68110 ] && [ "$1" -lt 68115 ] && ! getent passwd "$1"; }

@test "PostgreSQL takes nobody without a password, and its superuser not at all from outside" {
  docker exec "$(container postgresql)" bash -c "! psql -h 127.0.0.1 -U kong -d kong -w -c 'SELECT 1' 2>&1"
  run docker exec -e PGPASSWORD="$(sed -n 's/^POSTGRES_PASSWORD=//p' "$HOME_DIR/secrets.env")" "$(container postgresql)" \
    psql -h 127.0.0.1 -U postgres -d postgres -w -c 'SELECT 1'
  [[ $output == *'no pg_hba.conf entry'* ]]
  grafana() {
    docker exec -e PGPASSWORD="$(sed -n 's/^GRAFANA_DATABASE_PASSWORD=//p' "$HOME_DIR/secrets.env")" "$(container postgresql)" \
      psql -h 127.0.0.1 -U llm_grafana -d llm -At -c "$1" 2>&1
  }
  [ "$(grafana 'SELECT count(*) > 0 FROM llm_logs')" = t ]
  [[ $(grafana 'SELECT * FROM llm_rejected') == *'permission denied'* ]]
  [[ $(grafana 'DELETE FROM llm_logs') == *'read-only transaction'* ]]
  [[ $(grafana 'BEGIN READ WRITE; DELETE FROM llm_logs') == *'permission denied'* ]]
}

# --- operating ------------------------------------------------------------------------------------------------------------

@test "status, logs and users" {
  run "$GATEWAY" status
  [ "$status" = 0 ]
  [ "$(grep -c 'running *healthy' <<<"$output")" = 6 ]
  "$GATEWAY" logs kong 2>&1 | grep -q 'test equipment, not Kong'
  key=$("$GATEWAY" users add z123456 2>/dev/null)
  [ "$(call "$key" 'a question of z123456')" = 200 ]
  "$GATEWAY" users limit z123456 7
  "$GATEWAY" users list | grep -qE '^z123456 +1 +7 '
  echo "$key" >"$WORK/key2"
}

@test "a changed setting concerns only the service it belongs to" {
  kong=$(container kong) rest="$(container collector) $(container prometheus) $(container grafana)"
  [ "$(sql postgres 'SHOW max_connections')" = 44 ]
  sed -i 's/^KONG_WORKERS=1/KONG_WORKERS=2/' "$HOME_DIR/gateway.env"
  "$GATEWAY" apply
  [ "$(container kong)" != "$kong" ]
  [ "$(container collector) $(container prometheus) $(container grafana)" = "$rest" ]
  # Workers hold connections: PostgreSQL allows for them.
  [ "$(sql postgres 'SHOW max_connections')" = 52 ]
  [ "$(call "$(cat "$WORK/key")" 'after a change')" = 200 ]
}

@test "doctor finds nothing wrong, then what is broken; apply mends it" {
  # Prometheus needs a moment for its first look at a target.
  for _ in $(seq 20); do
    run "$GATEWAY" doctor
    [ "$status" != 0 ] || break
    sleep 2
  done
  [ "$status" = 0 ] || { echo "$output" && false; }
  # Also what only the host can show it: Grafana's password, Kong's log.
  grep -qE '^ok +grafana.datasources +all 1 answer' <<<"$output"
  grep -q ' kong.log.queue ' <<<"$output"
  curl() { command curl -u "admin:$(cat "$HOME_DIR/secrets/kong-admin-password")" "$@"; }
  audit=$(curl -s "http://127.0.0.1:$((PORT + 2))/plugins?size=1000" |
    python3 -c 'import json, sys; print([p["id"] for p in json.load(sys.stdin)["data"] if p["name"] == "llm-audit"][0])')
  curl -s -X DELETE "http://127.0.0.1:$((PORT + 2))/plugins/$audit"
  fails '^problem +kong.llm-audit' "$GATEWAY" doctor
  "$GATEWAY" doctor --json 2>/dev/null >"$WORK/doctor" || true
  python3 -c 'import json, sys; json.load(open(sys.argv[1]))' "$WORK/doctor"
  "$GATEWAY" apply
  "$GATEWAY" doctor
}

@test "on a host with 128, 256 or 384 hardware threads everything starts within its limits, and answers" {
  for processors in 128 256 384; do runs_on_a_host_of $processors; done
  "$GATEWAY" up
}

@test "a certificate, another one without a restart, a wrong one that is refused, and none again" {
  get_a_certificate; get_another_certificate; get_a_wrong_certificate; get_no_certificate
}

@test "down stops, up starts, status tells" {
  "$GATEWAY" down
  [ -z "$(docker ps -q --filter "label=com.docker.compose.project=$PROJECT")" ]
  fails '6 of 6 services are not healthy' "$GATEWAY" status
  "$GATEWAY" up
  "$GATEWAY" status
  [ "$(call "$(cat "$WORK/key")" 'after a stop')" = 200 ]
  [ "$(rows_of 'after a stop')" = 1 ]
}

@test "a wrong password is said, and mended by apply" {
  sql postgres "ALTER ROLE llm_writer PASSWORD 'another'"
  fails 'collector has another password than PostgreSQL knows' "$GATEWAY" restart collector
  [[ $output == *"$HOME_DIR/gateway apply"* ]]
  sql postgres "ALTER ROLE llm_collector PASSWORD 'another'"
  fails 'upkeep has another password than PostgreSQL knows' "$GATEWAY" restart upkeep
  "$GATEWAY" apply
  "$GATEWAY" status
}

@test "the collector can take nothing away; the operator's commands can, and upkeep migrates" {
  writer() {
    docker exec -e PGPASSWORD="$(sed -n 's/^WRITER_DATABASE_PASSWORD=//p' "$HOME_DIR/secrets.env")" "$(container postgresql)" \
      psql -h 127.0.0.1 -U llm_writer -d llm -At -c "$1" 2>&1
  }
  for statement in 'SELECT prompt FROM llm_logs' 'DELETE FROM llm_logs'; do [[ $(writer "$statement") == *'permission denied'* ]]; done
  [[ $(writer 'DROP TABLE llm_logs') == *'must be owner'* ]]
  # Its container holds no other password, and upkeep listens nowhere.
  no grep -q owner-url < <(docker inspect "$(container collector)")
  grep -q owner-url < <(docker inspect "$(container upkeep)")
  upkeep=$(docker inspect --format '{{.State.Pid}}' "$(container upkeep)")
  no grep -q "pid=$upkeep," < <(ss -ltnpu)
  [ "$(call "$(cat "$WORK/key2")" 'to be erased')" = 200 ]
  [ "$(rows_of 'to be erased')" = 1 ]
  # The owner's sessions, which may be there at the same time, are upkeep's.
  [ "$(sql llm "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = 'llm' AND client_addr IS NOT NULL AND usename = 'llm_writer'")" = t ]
  "$GATEWAY" report --since 1d | grep -q first-user
  "$GATEWAY" rejected list
  "$GATEWAY" retention --dry-run --keep-rows-days 9
  "$GATEWAY" erase --consumer z123456 --yes
  [ "$(sql llm "SELECT count(*) FROM llm_logs WHERE prompt = 'to be erased'")" = 0 ]
}

@test "with one role for everything there is no upkeep, and back again" {
  echo WRITER_ROLE=off >>"$HOME_DIR/gateway.env"
  "$GATEWAY" apply
  [ -z "$(container upkeep)" ]
  [ "$("$GATEWAY" status | grep -c 'running *healthy')" = 5 ]
  [ "$(call "$(cat "$WORK/key")" 'as the owner')" = 200 ]
  [ "$(rows_of 'as the owner')" = 1 ]
  "$GATEWAY" report --since 1d | grep -q first-user
  sed -i '/^WRITER_ROLE=/d' "$HOME_DIR/gateway.env"
  "$GATEWAY" apply
  [ "$("$GATEWAY" status | grep -c 'running *healthy')" = 6 ]
}

@test "a port that somebody takes while the gateway is down" {
  "$GATEWAY" down grafana
  python3 -m http.server $((PORT + 8)) --bind 127.0.0.1 >/dev/null 2>&1 3>&- &
  other=$!
  sleep 1
  fails "port $((PORT + 8)) \(GRAFANA_PORT, for grafana\) is taken" "$GATEWAY" apply
  fails 'a port of grafana is taken' "$GATEWAY" up grafana
  kill $other
  "$GATEWAY" up
}

@test "without vLLM the gateway starts, and says that it is missing" {
  stop_vllm
  run "$GATEWAY" apply --without-vllm
  start_vllm
  [ "$status" = 0 ]
  [[ $output == *'vLLM does not answer behind the gateway (status 50'* && $output == *'its row is in the audit log'* ]]
}

@test "a second host shares PostgreSQL with the first: the same users, one log" {
  sed -e "s/^PROJECT=.*/PROJECT=$PROJECT-2/" -e "s|^DATA_DIR=.*|DATA_DIR=$WORK/data2|" "$WORK/gateway.env" |
    awk -F = -v OFS== -v first="$PORT" '/_PORT=/ && $1 != "POSTGRES_PORT" { $2 += 9 } { print }' >"$WORK/second.env"
  echo 'POSTGRES_HOST=localhost' >>"$WORK/second.env"
  second() { "$WORK/bundle/install.sh" --home "$WORK/home2" --settings "$WORK/second.env"; }
  # With secrets of its own it cannot log in; what was made before that does not hinder the next try.
  fails 'Kong cannot log in to PostgreSQL at localhost:' second
  [[ $output == *'Copy secrets.env from the host where PostgreSQL runs'* ]]
  cp "$HOME_DIR/secrets.env" "$WORK/home2/secrets.env"
  second
  [ "$(docker ps -q --filter "label=com.docker.compose.project=$PROJECT-2" | wc -l)" = 5 ]
  [ "$(PROXY=http://127.0.0.1:$((PORT + 10)) call "$(cat "$WORK/key")" 'through the second host')" = 200 ]
  [ "$(rows_of 'through the second host')" = 1 ]
  fails 'Make the backup there' "$WORK/home2/gateway" backup
  "$WORK/home2/gateway" uninstall --delete-data --really
  [ -z "$(docker ps -aq --filter "label=com.docker.compose.project=$PROJECT-2")" ]
  # Both write one configuration of Kong: the first host's ports again.
  "$GATEWAY" restart kong
  "$GATEWAY" apply
}

@test "what is collected for support holds no secret and no conversation" {
  "$GATEWAY" support "$WORK/support.tar.gz"
  mkdir "$WORK/support"
  tar -C "$WORK/support" -xf "$WORK/support.tar.gz"
  [ "$(find "$WORK/support" -name 'log-*' | wc -l)" = 6 ]
  for secret in $(sed -n 's/^[A-Z_]*=//p' "$HOME_DIR/secrets.env") "$(cat "$WORK/key")" 'the first question'; do
    ! grep -rF -- "$secret" "$WORK/support" || false
  done
}

# --- backup and restore ------------------------------------------------------------------------------------------------------

@test "a backup is whole or not there" {
  "$GATEWAY" backup "$WORK/backups" >"$WORK/backup"
  backup=$(cat "$WORK/backup")
  [ "$(stat -c %a "$backup")" = 700 ]
  (cd "$backup" && sha256sum --check --quiet SHA256SUMS)
  grep -q '^rows [1-9]' "$backup/ABOUT"
  [ -z "$(find "$WORK/backups" -name '*.unfinished')" ]
  cp -R "$backup" "$WORK/damaged"
  flip "$WORK/damaged/llm.dump" 300
  fails 'is damaged' "$GATEWAY" restore "$WORK/damaged" --yes
  # A disk without room for it.
  mkdir "$WORK/tiny"
  mount -t tmpfs -o size=1m tmpfs "$WORK/tiny"
  run "$GATEWAY" backup "$WORK/tiny"
  left=$(ls -A "$WORK/tiny")
  umount "$WORK/tiny"
  [ "$status" = 1 ] && [ -z "$left" ]
  [[ $output == *'free, the databases have'* ]]
  fails 'nothing was changed' "$GATEWAY" restore "$backup" </dev/null
}

@test "a backup restores into a fresh installation: rows, users, keys" {
  sql llm "SELECT request_id, consumer_username, prompt, response, raw_log FROM llm_logs ORDER BY 1" >"$WORK/rows"
  fails 'If you mean it' "$GATEWAY" uninstall --delete-data
  "$GATEWAY" uninstall --delete-data --really
  [ -z "$(containers)" ]
  [ ! -e "$HOME_DIR/secrets.env" ]
  [ -z "$(ls -A "$DATA")" ]
  install >"$WORK/report" 2>"$WORK/log" || { cat "$WORK/log" && false; }
  [ "$(call "$(cat "$WORK/key")" 'who am I')" = 401 ]
  "$GATEWAY" restore "$(cat "$WORK/backup")" --yes
  sql llm "SELECT request_id, consumer_username, prompt, response, raw_log FROM llm_logs ORDER BY 1" >"$WORK/restored"
  # All that were there, and the calls since.
  [ "$(sort "$WORK/rows" "$WORK/restored" | uniq -d | wc -l)" -ge "$(grep -c . "$WORK/backup")" ]
  ! grep -vxF -f "$WORK/restored" "$WORK/rows" | grep -v 'after a stop\|gateway-probe\|anonymous' || false
  [ "$(call "$(cat "$WORK/key")" 'after the restore')" = 200 ]
  [ "$(call "$(cat "$WORK/key2")" 'after the restore, z123456')" = 200 ]
  "$GATEWAY" users list | grep -qE '^z123456 +1 +7 '
  [ "$(rows_of 'after the restore')" = 1 ]
  [ -z "$(sql postgres "SELECT datname FROM pg_database WHERE datname LIKE '%restore%'")" ]
  # Grafana reads its database, which was written with the key of the installation that is gone.
  [ "$(docker inspect --format '{{.State.Health.Status}}' "$(container grafana)")" != unhealthy ]
  [ "$(cat "$HOME_DIR/secrets/grafana-secret-key")" = "$(cat "$(cat "$WORK/backup")/grafana-secret-key")" ]
}

@test "a restore that is killed leaves what was there, however far it was" {
  for sign in phase database; do
    sql llm "SELECT count(*) FROM llm_logs" >"$WORK/rows-before"
    setsid "$GATEWAY" restore "$(cat "$WORK/backup")" --yes >"$WORK/killed" 2>&1 3>&- &
    restoring=$!
    for _ in $(seq 600); do
      case $sign in
        phase) [ ! -e "$HOME_DIR/state/restore/phase" ] || break ;;
        database) [ -z "$(sql postgres "SELECT 1 FROM pg_database WHERE datname = 'kong_before_restore'")" ] || break ;;
      esac
      kill -0 "$restoring" || break
      sleep 0.05
    done
    kill -KILL -- "-$restoring"
    wait "$restoring" || true
    [ -e "$HOME_DIR/state/restore/phase" ]
    run "$GATEWAY" up
    [ "$status" = 0 ] || { echo "$output" && false; }
    [[ $output == *'a restore was cut off'* ]]
    [ "$(call "$(cat "$WORK/key")" "after the kill at $sign")" = 200 ]
    [ "$(rows_of "after the kill at $sign")" = 1 ]
    [ "$(sql llm 'SELECT count(*) FROM llm_logs')" -gt "$(cat "$WORK/rows-before")" ]
    [ -z "$(sql postgres "SELECT datname FROM pg_database WHERE datname LIKE '%before_restore'")" ]
    [ ! -e "$HOME_DIR/state/restore" ]
  done
}

@test "a backup that cannot be loaded leaves everything as it was" {
  cp -R "$(cat "$WORK/backup")" "$WORK/strange"
  head -c 2000 "$WORK/strange/llm.dump" >"$WORK/strange/short" && mv "$WORK/strange/short" "$WORK/strange/llm.dump"
  (cd "$WORK/strange" && sha256sum -- ABOUT *.dump *.gz gateway.env >SHA256SUMS)
  fails 'could not restore the database llm' "$GATEWAY" restore "$WORK/strange" --yes
  [ "$(call "$(cat "$WORK/key")" 'still here')" = 200 ]
  [ "$(rows_of 'after the restore')" = 1 ]
}

# --- upgrade -----------------------------------------------------------------------------------------------------------------

@test "install.sh of another release points to upgrade" {
  new_release later 9.1.0
  seal_release later
  fails 'holds another release' "$WORK/later/install.sh" --home "$HOME_DIR"
  [[ $output == *"gateway upgrade $WORK/later"* ]]
}

@test "an upgrade, from a packed bundle" {
  tar -C "$WORK" -czf "$WORK/later.tar.gz" later
  "$GATEWAY" upgrade "$WORK/later.tar.gz"
  "$GATEWAY" status | grep -q '^release *9.1.0-'
  [ "$(call "$(cat "$WORK/key")" 'after the upgrade')" = 200 ]
  [ "$(rows_of 'after the upgrade')" = 1 ]
  [ "$(rows_of 'after the restore')" = 1 ]
  [ ! -e "$HOME_DIR/incoming" ]
}

@test "an upgrade whose collector does not start goes back, and no row is lost" {
  new_release broken 9.2.0
  bad_collector broken "FROM $(grep llm-collector "$WORK/bundle/MANIFEST" | cut -d ' ' -f 1)" 'ENTRYPOINT ["/llm-collector", "--no-such-option"]'
  seal_release broken
  fails 'not upgraded: 9.1.0-.* runs as before' "$GATEWAY" upgrade "$WORK/broken"
  [[ $output == *'upkeep is not healthy'* ]]
  "$GATEWAY" status | grep -q '^release *9.1.0-'
  [ "$(call "$(cat "$WORK/key")" 'after the failed upgrade')" = 200 ]
  [ "$(rows_of 'after the failed upgrade')" = 1 ]
  [ "$(rows_of 'after the upgrade')" = 1 ]
}

@test "an upgrade that ruins the database is undone from the backup" {
  new_release ruin 9.3.0
  bad_collector ruin "FROM $(grep postgres "$WORK/bundle/MANIFEST" | cut -d ' ' -f 1)" 'USER 65532:65532' \
    'ENTRYPOINT ["bash", "-c", "psql \"$(cat /run/secrets/owner-url)\" -c \"DROP TABLE llm_logs CASCADE\"; exit 1"]'
  seal_release ruin
  fails 'not upgraded: 9.1.0-.* runs as before' "$GATEWAY" upgrade "$WORK/ruin"
  [[ $output == *'putting the backup in place'* ]]
  "$GATEWAY" status
  [ "$(rows_of 'after the failed upgrade')" = 1 ]
  [ "$(call "$(cat "$WORK/key")" 'after the ruin')" = 200 ]
  [ "$(rows_of 'after the ruin')" = 1 ]
}

@test "a damaged bundle is not upgraded to" {
  cp -R "$WORK/later" "$WORK/bitten"
  echo >>"$WORK/bitten/deploy/compose.yaml"
  fails 'the bundle is damaged' "$GATEWAY" upgrade "$WORK/bitten"
  "$GATEWAY" status
}

# --- the end ------------------------------------------------------------------------------------------------------------------

@test "uninstall leaves nothing running and keeps the data" {
  "$GATEWAY" uninstall
  [ -z "$(containers)" ]
  [ -s "$HOME_DIR/secrets.env" ] && [ -s "$DATA/postgresql/PG_VERSION" ]
  "$GATEWAY" up
  [ "$(rows_of 'after the ruin')" = 1 ]
  "$GATEWAY" uninstall --delete-data --really
  [ -z "$(containers)" ]
  if (: <"/dev/tcp/127.0.0.1/$((PORT + 1))") 2>/dev/null; then false; fi
}
