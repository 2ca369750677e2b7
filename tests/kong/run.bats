#!/usr/bin/env bats
#
# run.sh, with a stand-in for Docker: what it would tell a real one.

setup() {
  RUN=$BATS_TEST_DIRNAME/run.sh
  export FAKE_DOCKER=$BATS_TEST_TMPDIR/docker
  mkdir "$FAKE_DOCKER"
  PATH=$BATS_TEST_DIRNAME/fake:$PATH
  unset "${!KONG_@}"
  export KONG_TEST_DATABASE_URL=postgres://somebody:s3cret@127.0.0.1:6543/of_kong
}

teardown() { "$RUN" stop --prefix "$BATS_TEST_TMPDIR/kong" 3>&-; }

start() { "$RUN" start --prefix "$BATS_TEST_TMPDIR/kong" --proxy 127.0.0.1:0 --admin 127.0.0.1:0 --status 127.0.0.1:0 "$@" 3>&- 2>"$BATS_TEST_TMPDIR/err"; }

@test "says which Kong there is, and that there is none" {
  run "$RUN" available
  [ "$status" -eq 0 ]
  [ "$output" = 'Kong from the image kong:3.9' ]
  KONG_IMAGE=kong:no-such-tag run "$RUN" available
  [ "$status" -eq 1 ]
}

@test "prepares the database, starts, waits until it answers, and stops" {
  start >"$BATS_TEST_TMPDIR/out"
  # shellcheck disable=SC1091
  . "$BATS_TEST_TMPDIR/kong/host.env"
  cmp "$BATS_TEST_TMPDIR/out" "$BATS_TEST_TMPDIR/kong/host.env"
  curl -sS -f "$ADMIN_URL/status" >/dev/null
  [ "$(curl -sS -o /dev/null -w '%{http_code}' "$PROXY_URL/")" = 404 ]
  grep -q -- '--rm kong:3.9 kong migrations bootstrap$' "$FAKE_DOCKER/calls"
  grep -q -- '-d --name kong-test-.* kong:3.9 kong docker-start$' "$FAKE_DOCKER/calls"
  "$RUN" stop --prefix "$BATS_TEST_TMPDIR/kong"
  ! curl -sS "$PROXY_URL/" 2>/dev/null || false
}

@test "Kong gets its database, the plugins, and no way to the internet" {
  start --workers 3 >/dev/null
  local settings=$BATS_TEST_TMPDIR/kong/kong.env
  for line in KONG_DATABASE=postgres KONG_PG_HOST=127.0.0.1 KONG_PG_PORT=6543 KONG_PG_USER=somebody KONG_PG_PASSWORD=s3cret \
    KONG_PG_DATABASE=of_kong KONG_PLUGINS=bundled,llm-audit,llm-router,llm-quota,llm-queue KONG_ANONYMOUS_REPORTS=off KONG_NGINX_WORKER_PROCESSES=3 \
    'KONG_LUA_PACKAGE_PATH=/kong-plugins/?.lua;/kong-plugins/?/init.lua;;'; do
    grep -qxF -- "$line" "$settings" || { echo "missing: $line"; cat "$settings"; false; }
  done
  ! grep -q '^$' "$settings" || false
}

@test "a database without a password" {
  KONG_TEST_DATABASE_URL=postgres://postgres@127.0.0.1:6543/of_kong start >/dev/null
  ! grep -q PASSWORD "$BATS_TEST_TMPDIR/kong/kong.env" || false
}

@test "what is missing is said" {
  unset KONG_TEST_DATABASE_URL
  run start
  [ "$status" -eq 1 ]
  grep -q KONG_TEST_DATABASE_URL "$BATS_TEST_TMPDIR/err"
}
