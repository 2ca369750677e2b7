# shellcheck shell=bash disable=SC2154  # bats sets status and output
#
# stack.bash - what the tests of the installation with Docker share: names and ports of their own, images, a bundle, a model
# server, and the removal of all of it.

DEPLOY=$(cd "$BATS_TEST_DIRNAME/.." && pwd)

set_names() {
  WORK=$BATS_FILE_TMPDIR
  HOME_DIR=$WORK/home
  DATA=$WORK/data
  # Everything that a run makes in Docker has its number in its name; nobody else's is touched.
  PROJECT=gateway-test-$(cat "$WORK/number")
  PREFIX=$PROJECT.invalid/
  PORT=$(cat "$WORK/port")
  GATEWAY=$HOME_DIR/gateway
  PROXY=http://127.0.0.1:$((PORT + 1))
  export WORK HOME_DIR DATA PROJECT PREFIX PORT GATEWAY PROXY
  # Only what fails waits so long; what ends again and again is found sooner.
  export GATEWAY_PATIENCE_SECONDS=120
}

choose_names() {
  local port
  echo $$ >"$BATS_FILE_TMPDIR/number"
  while :; do
    port=$((20000 + RANDOM % 600 * 20))
    for offset in {0..19}; do
      ! (: <"/dev/tcp/127.0.0.1/$((port + offset))") 2>/dev/null || continue 2
    done
    break
  done
  echo "$port" >"$BATS_FILE_TMPDIR/port"
}

# The settings of the installation under test.
write_test_settings() {
  cat >"$WORK/gateway.env" <<LINES
VLLM_URL=http://127.0.0.1:$PORT
PROXY_ADDRESS=127.0.0.1
PROXY_PORT=$((PORT + 1))
KONG_ADMIN_PORT=$((PORT + 2))
KONG_MANAGER_PORT=$((PORT + 3))
KONG_STATUS_PORT=$((PORT + 4))
COLLECTOR_PORT=$((PORT + 5))
POSTGRES_PORT=$((PORT + 6))
PROMETHEUS_PORT=$((PORT + 7))
GRAFANA_ADDRESS=127.0.0.1
GRAFANA_PORT=$((PORT + 8))
KONG_WORKERS=1
POSTGRES_MEMORY_MB=512
KONG_MEMORY_MB=1024
MINIMUM_FREE_GB=0
DATA_DIR=$DATA
PROJECT=$PROJECT
LINES
}

# Says to Compose and to the scripts which images stand in for those of images.txt.
name_images() {
  local version image
  version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$DEPLOY/../Cargo.toml" | head -n 1)
  while read -r image; do
    case $image in
      *llm-collector:*) export COLLECTOR_IMAGE=${PREFIX}llm-collector:$version ;;
      kong:*) export KONG_IMAGE=$PREFIX$image ;;
      postgres:*) export POSTGRES_IMAGE=$PREFIX$image ;;
      *prometheus:*) export PROMETHEUS_IMAGE=$PREFIX$image ;;
      *grafana:*) export GRAFANA_IMAGE=$PREFIX$image ;;
    esac
  done < <(sed 's/#.*//' "$DEPLOY/images.txt" | grep .)
}

make_bundle() {
  local compress=gzip
  ! command -v zstd >/dev/null || compress=zstd
  TEST_IMAGE_PREFIX=$PREFIX "$BATS_TEST_DIRNAME/images/make.sh" "$WORK/images"
  name_images
  # A binary that is quick to build does for what is tested here.
  CARGO_TARGET_DIR=${GATEWAY_TEST_TARGET_DIR:-${CARGO_TARGET_DIR:-$DEPLOY/../target}/deploy-tests} \
    CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
    "$DEPLOY/bundle.sh" --output "$WORK/dist" --images-from "$WORK/images" --compress "$compress" ${GATEWAY_TEST_COLLECTOR:+--collector "$GATEWAY_TEST_COLLECTOR"}
  # The host that it is carried to has never heard of these images.
  remove_images
  mkdir "$WORK/carried"
  tar -C "$WORK/carried" -xf "$(cd "$WORK/dist" && ls -d "$PWD"/*.tar.*[!6])"
  mv "$WORK"/carried/* "$WORK/bundle"
}

remove_images() {
  local images
  mapfile -t images < <(docker images --format '{{.Repository}}:{{.Tag}}' | grep "^$PREFIX")
  [ ${#images[@]} = 0 ] || docker rmi -f "${images[@]}" >/dev/null
  # What builds leave behind without a name; it has the label of the images that it was made from.
  docker image prune -f --filter "label=test.equipment=$PREFIX" >/dev/null
}

start_vllm() {
  python3 "$BATS_TEST_DIRNAME/vllm_stub.py" "$PORT" 3>&- &
  echo $! >"$WORK/vllm.pid"
  for _ in $(seq 50); do curl -sf -o /dev/null "http://127.0.0.1:$PORT/v1/models" && return; sleep 0.1; done
  echo "the model server does not start" >&2
  return 1
}

stop_vllm() {
  [ ! -f "$WORK/vllm.pid" ] || kill "$(cat "$WORK/vllm.pid")" 2>/dev/null || true
  rm -f "$WORK/vllm.pid"
}

# Containers of this test, running or not; of both hosts.
containers() { docker ps -aq --filter "label=com.docker.compose.project=$PROJECT"; docker ps -aq --filter "label=com.docker.compose.project=$PROJECT-2"; }

remove_everything() {
  local id
  for id in $(containers); do docker rm -fv "$id" >/dev/null; done
  remove_images
  stop_vllm
  while mountpoint -q "$DATA"; do umount "$DATA" || umount -l "$DATA"; done
}

install() { "$WORK/bundle/install.sh" --home "$HOME_DIR" --settings "$WORK/gateway.env" "$@"; }

# flip FILE OFFSET - changes one byte, whatever it was.
flip() {
  local byte
  byte=$(od -An -tu1 -j "$2" -N 1 "$1")
  printf '%b' "\\x$(printf '%02x' $((byte ^ 255)))" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

# sql DATABASE STATEMENT
sql() { docker exec -i "$(container postgresql)" psql -X -At -U postgres -d "$1" -c "$2"; }
container() { docker ps -aq --filter "label=com.docker.compose.project=$PROJECT" --filter "label=com.docker.compose.service=$1"; }

# call KEY TEXT - a chat call through the gateway; prints the status. The answer is in $WORK/answer.
call() {
  curl -sS -o "$WORK/answer" -w '%{http_code}' "$PROXY/v1/chat/completions" -H "Authorization: Bearer $1" \
    -H 'Content-Type: application/json' -d "{\"model\":\"stub\",\"messages\":[{\"role\":\"user\",\"content\":\"$2\"}]}"
}

# Waits up to 15 s for rows with this prompt.
rows_of() {
  local n=0
  for _ in $(seq 30); do
    n=$(sql llm "SELECT count(*) FROM llm_logs WHERE prompt = '$1'")
    [ "$n" = 0 ] || break
    sleep 0.5
  done
  echo "$n"
}

# runs_on_a_host_of PROCESSORS - everything is healthy there within its limits, and a call becomes a row.
runs_on_a_host_of() {
  local processors=$1 id
  start_on_a_host_of "$processors"
  all_healthy
  docker exec "$(container collector)" /many_cpus "$processors" /llm-collector healthcheck
  [ "$(call "$(cat "$WORK/key")" "on $processors")" = 200 ] && [ "$(rows_of "on $processors")" = 1 ]
  # As shipped: what is not limited proves nothing.
  for id in $(containers); do [ "$(docker inspect --format '{{.HostConfig.PidsLimit}}' "$id")" -ge 100 ]; done
}

# Fails when the command succeeds; bats does not see a failing `! command`.
no() { if "$@"; then return 1; fi; }

# fails PATTERN COMMAND… - the command must fail with status 1 and say so.
fails() {
  local pattern=$1
  shift
  run "$@"
  if [ "$status" != 1 ] || ! grep -qE -- "$pattern" <<<"$output"; then
    printf 'status %s, and not said: %s\n%s\n' "$status" "$pattern" "$output"
    return 1
  fi
}

# start_on_a_host_of PROCESSORS - every container anew, as it is shipped but for what the kernel says of processors. See many_cpus.c.
start_on_a_host_of() {
  local service image entry more
  [ -x "$WORK/many_cpus" ] || cc -static -O1 -Wall -Werror -o "$WORK/many_cpus" "$BATS_TEST_DIRNAME/many_cpus.c"
  [ "$("$WORK/many_cpus" "$1" env -u OMP_NUM_THREADS nproc)" = "$1" ]
  echo "0-$(($1 - 1))" >"$WORK/online"
  chmod 644 "$WORK/online"
  {
    echo services:
    for service in postgresql kong upkeep collector prometheus grafana; do
      image=$(docker inspect --format '{{.Config.Image}}' "$(container $service)")
      entry=$(docker image inspect --format '{{json .Config.Entrypoint}}' "$image")
      # With another entry point Compose forgets the command of the image; that of compose.yaml it keeps.
      more=$([ $service != kong ] || docker image inspect --format 'command: {{json .Config.Cmd}}' "$image")
      printf '  %s:\n' $service
      printf '    %s\n' "entrypoint: [/many_cpus, \"$1\", ${entry#[}" "volumes: [\"$WORK/many_cpus:/many_cpus:ro\", \"$WORK/online:/sys/devices/system/cpu/online:ro\"]" ${more:+"$more"}
    done
  } >"$WORK/many-cpus.yaml"
  "$GATEWAY" compose -f "$WORK/many-cpus.yaml" up -d
}

# Waits until all services are healthy; says which are not.
all_healthy() {
  for _ in $(seq 60); do
    "$GATEWAY" status >"$WORK/status" 2>&1 && return
    sleep 1
  done
  cat "$WORK/status"
  return 1
}

# What must not change when nothing is to do: containers, files and their times.
state_of_everything() {
  containers | sort
  find "$HOME_DIR" -not -path '*/state*' -not -path "$HOME_DIR" -printf '%p %m %U %T@ %l\n' | sort
}

# new_release NAME - a copy of the bundle that calls itself a later version; to be changed, then sealed.
new_release() {
  mkdir -p "$WORK/$1/images"
  tar -C "$WORK/bundle" --exclude='./images/*' -c . | tar -C "$WORK/$1" -x
  echo "$2" >"$WORK/$1/VERSION"
}

seal_release() {
  (cd "$WORK/$1" && find . -type f ! -path ./gateway.env ! -path ./SHA256SUMS -printf '%P\0' | sort -z | xargs -0 sha256sum >SHA256SUMS)
}

# bad_collector RELEASE DOCKERFILE_LINES… - gives a release another image of the collector.
bad_collector() {
  local release=$1 image old
  shift
  image=${PREFIX}llm-collector:$(cat "$WORK/$release/VERSION")
  mkdir -p "$WORK/context"
  printf '%s\n' "$@" >"$WORK/context/Dockerfile"
  docker build -q -t "$image" "$WORK/context" >/dev/null 2>&1
  docker save -o "$WORK/$release/images/collector.tar" "$image"
  docker rmi "$image" >/dev/null
  old=$(grep llm-collector "$WORK/$release/MANIFEST" | cut -d ' ' -f 1)
  sed -i "s|^$old\$|$image|" "$WORK/$release/deploy/images.txt"
  local config layers
  config=$(tar -xOf "$WORK/$release/images/collector.tar" manifest.json | grep -oE '"Config":"[^"]+"' | cut -d '"' -f 4)
  layers=$(tar -xOf "$WORK/$release/images/collector.tar" "$config" | grep -oE '"diff_ids": *\[[^]]*\]' | grep -oE 'sha256:[0-9a-f]{64}' | sha256sum | cut -c 1-16)
  config=${config##*/}
  sed -i "s|^$old .*|$image sha256:${config%.json} - $layers images/collector.tar|" "$WORK/$release/MANIFEST"
}

# --- around the tests, called by bats --------------------------------------------------------------------------------------

setup_file() {
  if ! docker version >/dev/null 2>&1; then skip "Docker is not running"; fi
  [ "$(id -u)" = 0 ] || skip "this needs root"
  choose_names
  set_names
  write_test_settings
  start_vllm
  make_bundle
  # The data folder is a small disk that can be filled and enlarged.
  mkdir "$DATA"
  mount -t tmpfs -o size=24m,mode=755 tmpfs "$DATA"
}

teardown_file() {
  [ ! -f "$BATS_FILE_TMPDIR/number" ] || { set_names && remove_everything; }
}

setup() {
  set_names
  if [ -e "$WORK/installing" ] && [ ! -s "$WORK/key" ]; then
    echo "the installation failed: nothing to test" && return 1
  fi
}
