#!/usr/bin/env bats
#
# deploy/demo/compose.yaml, where Docker and Compose are, with stand-ins for the images that it names (see images/make.sh): it shows that
# the file, the Dockerfile and the scripts fit together. What it cannot show, because no registry is asked: that the build finds all it
# needs in the image of Rust (here a `cargo` that brings the binaries of target/debug), that Debian has the packages, that the real Kong
# and Grafana take these settings.

# shellcheck disable=SC2154  # bats sets status and output

load stack

setup_file() {
  if ! docker version >/dev/null 2>&1; then skip "Docker is not running"; fi
  [ "$(id -u)" = 0 ] || skip "this needs root"
  choose_names
  set_names
  TEST_IMAGE_PREFIX=$PREFIX "$BATS_TEST_DIRNAME/images/make.sh" "$WORK/images" programs
  local file
  for file in "$WORK"/images/*.tar; do docker load -q -i "$file" >/dev/null && rm "$file"; done
  name_images
  export RUST_IMAGE=${PREFIX}rust:1 DEBIAN_IMAGE=${PREFIX}debian:1 DEMO_IMAGE=${PREFIX}demo:1
  export DEMO_PROXY_PORT=$((PORT + 1)) DEMO_GRAFANA_PORT=$((PORT + 2)) DEMO_PROMETHEUS_PORT=$((PORT + 3))
}

teardown_file() { [ ! -f "$BATS_FILE_TMPDIR/number" ] || { set_names && remove_everything; }; }

setup() { set_names; }

demo() {
  local compose=(docker compose)
  docker compose version >/dev/null 2>&1 || compose=(docker-compose)
  "${compose[@]}" -p "$PROJECT" -f "$DEPLOY/demo/compose.yaml" "$@"
}

# Waits for the end of what is shown, which has to be a good one.
shown() {
  [ "$(docker wait "$(container demo)")" = 0 ] || { demo logs --tail 50 && return 1; }
  docker logs "$(container demo)" >"$WORK/shown" 2>&1
}

@test "up builds, starts, makes up a week and shows it, with pages to look at" {
  demo up -d --build
  shown
  grep -q 'calls. What teams used' "$WORK/shown"
  grep -qE '^call 4: Rate limit reached: 3 requests per hour' "$WORK/shown"
  grep -qE 'z100001 .* An LLM gateway is a service' "$WORK/shown"
  grep -qF "http://127.0.0.1:$DEMO_PROXY_PORT/usage" "$WORK/shown"
  key=$(sed -n 's/^its key *\(sk-[0-9a-f]*\) .*/\1/p' "$WORK/shown")
  curl -sS -f "http://127.0.0.1:$DEMO_PROXY_PORT/v1/usage" -H "Authorization: Bearer $key" | grep -q '"consumer":"z100001"'
  curl -sS -f -o /dev/null "http://127.0.0.1:$DEMO_GRAFANA_PORT/api/health"
}

@test "Prometheus finds everything where it is on a gateway host, and Grafana may read the rows" {
  for _ in $(seq 60); do
    up=$(curl -sS -G "http://127.0.0.1:$DEMO_PROMETHEUS_PORT/api/v1/query" --data-urlencode 'query=sum(up)')
    [[ $up != *'"4"'* ]] || break
    sleep 1
  done
  [[ $up == *'"4"'* ]] || { echo "$up" && false; }
  docker exec "$(container postgresql)" psql -h 127.0.0.1 -U llm_grafana -d llm -Atc 'SELECT count(*) > 2000 FROM llm_logs' | grep -qx t
}

@test "nothing but the three pages is open, and nothing is kept" {
  [ "$(for id in $(containers); do docker port "$id"; done | sed 's/.* -> //' | sort -u)" = \
    "$(printf '127.0.0.1:%s\n' "$DEMO_PROXY_PORT" "$DEMO_GRAFANA_PORT" "$DEMO_PROMETHEUS_PORT")" ]
  for id in $(containers); do
    [ -z "$(docker inspect --format '{{range .Mounts}}{{if eq .Type "volume"}}{{.Destination}} {{end}}{{end}}' "$id")" ]
  done
}

@test "stopped, it starts anew" {
  demo stop
  demo up -d
  shown
  grep -q 'calls. What teams used' "$WORK/shown"
  demo down
  [ -z "$(containers)" ]
}
