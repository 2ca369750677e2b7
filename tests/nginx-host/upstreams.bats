#!/usr/bin/env bats
#
# Proves what the test host does with upstreams: where a call goes, which server comes next when one dies, and the traps of
# Kong 3.9 that a plugin meets on the way. See selftest.bats for the rest.

setup_file() {
  export HERE=$BATS_TEST_DIRNAME
  export WORK=$BATS_FILE_TMPDIR
  local name
  for name in one two; do
    mkdir -p "$WORK/$name"
    python3 "$HERE/selftest_server.py" "$WORK/$name" >"$WORK/$name/port" 3>&- &
    echo $! >"$WORK/$name/pid"
  done
  for name in one two; do
    for _ in $(seq 100); do [ -s "$WORK/$name/port" ] && break; sleep 0.05; done
  done
  ONE=$(<"$WORK/one/port") TWO=$(<"$WORK/two/port")
  export ONE TWO
  start_host careful
  KONG_NGINX_PROXY_PROXY_NEXT_UPSTREAM='error timeout non_idempotent' start_host bold
}

# A host whose service has an address and asks up to two more servers.
start_host() {
  KONG_PLUGINS=bundled,probe NGINX_HOST_WATCH_PID=$$ "$HERE/run.sh" start --prefix "$WORK/$1" --plugins-dir "$HERE/selftest-plugins" \
    --proxy 127.0.0.1:0 --admin 127.0.0.1:0 --status 127.0.0.1:0 --workers 1 3>&-
  use "$1"
  admin PUT services/up "{\"host\":\"127.0.0.1\",\"port\":$ONE,\"retries\":2}"
  admin PUT services/up/routes/open '{"paths":["/open"]}'
  admin PUT plugins/00000000-0000-4000-8000-000000000004 '{"name":"probe","config":{}}'
  local checks='"healthchecks":{"active":{"http_path":"/echo","healthy":{"interval":0.3,"successes":1},"unhealthy":{"interval":0.3,"tcp_failures":1}}}'
  admin PUT upstreams/pair '{"algorithm":"least-connections"}'
  admin POST upstreams/pair/targets "{\"target\":\"127.0.0.1:$ONE\"}"
  admin POST upstreams/pair/targets "{\"target\":\"localhost:$TWO\"}"
  admin PUT upstreams/half '{"algorithm":"least-connections"}'
  admin POST upstreams/half/targets '{"target":"127.0.0.1:9"}'
  admin POST upstreams/half/targets "{\"target\":\"127.0.0.1:$TWO\"}"
  admin PUT upstreams/watched "{$checks}"
  admin POST upstreams/watched/targets '{"target":"127.0.0.1:9"}'
  admin POST upstreams/watched/targets "{\"target\":\"127.0.0.1:$TWO\"}"
  admin PUT upstreams/hashed '{"algorithm":"consistent-hashing","hash_on":"ip"}'
  admin POST upstreams/hashed/targets "{\"target\":\"127.0.0.1:$ONE\"}"
  admin POST upstreams/hashed/targets "{\"target\":\"127.0.0.1:$TWO\"}"
}

teardown_file() {
  "$HERE/run.sh" stop --prefix "$WORK/careful"
  "$HERE/run.sh" stop --prefix "$WORK/bold"
  kill "$(<"$WORK/one/pid")" "$(<"$WORK/two/pid")"
}

setup() {
  use careful
  rm -f "$WORK"/*/dies
}

# shellcheck disable=SC1090,SC1091
use() { . "$WORK/$1/host.env"; }
admin() { curl -sS --fail-with-body -X "$1" "$ADMIN_URL/$2" -H 'Content-Type: application/json' --data "$3" >"$WORK/last" || { cat "$WORK/last"; return 1; }; }

# Calls the proxy; body in $WORK/body, prints the status.
call() { curl -sS -o "$WORK/body" -w '%{http_code}' "$PROXY_URL/open/$1" "${@:2}"; }
host_seen() { python3 -c 'import json,sys; print(json.load(open(sys.argv[1]))["headers"]["host"][0])' "$WORK/body"; }

@test "an upstream's name is taken for an address where the service has one" {
  [ "$(call echo -H 'X-Upstream: pair')" = 500 ]
  [ "$(call echo -H 'X-Upstream: pair' -H 'X-Named: 1')" = 200 ]
}

@test "a service with a name has no such trap, and may lead to an upstream by itself" {
  admin PATCH services/up '{"host":"localhost"}'
  [ "$(call echo -H 'X-Upstream: pair')" = 200 ]
  admin PATCH services/up '{"host":"hashed"}'
  [ "$(call echo)" = 200 ]
  admin PATCH services/up '{"host":"127.0.0.1"}'
}

@test "an upstream that is not there is not found" {
  [ "$(call echo -H 'X-Upstream: nowhere' -H 'X-Named: 1')" = 404 ]
  grep -q "could not find an Upstream named 'nowhere'" "$WORK/body"
}

@test "the Host is the target's" {
  [ "$(call echo -H "X-Target: 127.0.0.1:$TWO")" = 200 ]
  [ "$(host_seen)" = 127.0.0.1 ]
  local host hosts=
  # The least loaded first, the same one while nobody is busy.
  for _ in 1 2 3; do
    [ "$(call echo -H 'X-Upstream: pair' -H 'X-Named: 1')" = 200 ]
    host=$(host_seen)
    hosts+="$host "
  done
  [ "$hosts" = "$host $host $host " ]
  [ "$host" = "127.0.0.1:$ONE" ] || [ "$host" = "localhost:$TWO" ]
}

@test "who cannot be reached is passed over, also for a POST" {
  for _ in 1 2 3 4; do
    [ "$(call echo -H 'X-Upstream: half' -H 'X-Named: 1' --data x)" = 200 ]
    [ "$(host_seen)" = "127.0.0.1:$TWO" ]
  done
}

@test "a POST that a server had when it died goes to another one only where nginx is told so" {
  local name
  for name in one two; do
    rm -f "$WORK"/*/dies
    touch "$WORK/$name/dies"
    use careful
    local get=0 post=0
    for _ in 1 2 3 4 5 6; do
      [ "$(call die -H 'X-Upstream: hashed' -H 'X-Named: 1')" = 200 ] || get=1
      [ "$(call die -H 'X-Upstream: hashed' -H 'X-Named: 1' --data x)" = 200 ] || post=1
    done
    [ "$get" = 0 ]
    echo "$name $post" >>"$WORK/posts"
    use bold
    for _ in 1 2 3; do [ "$(call die -H 'X-Upstream: hashed' -H 'X-Named: 1' --data x)" = 200 ]; done
  done
  # The hash leads to one of both: there the careful one failed.
  [ "$(grep -c ' 1$' "$WORK/posts")" = 1 ]
}

@test "probes find out who is healthy, and with nobody left it is 503" {
  health() { curl -sS "$ADMIN_URL/upstreams/watched/health"; }
  for _ in $(seq 100); do health | grep -q '"UNHEALTHY"' && break; sleep 0.05; done
  health | grep -q '"UNHEALTHY"'
  health | grep -q '"HEALTHY"'
  [ "$(curl -sS "$ADMIN_URL/upstreams/pair/health" | grep -o HEALTHCHECKS_OFF | wc -l)" = 2 ]
  for _ in 1 2 3; do [ "$(call echo -H 'X-Upstream: watched' -H 'X-Named: 1')" = 200 ]; done
  [ "$(curl -sS -X DELETE -o /dev/null -w '%{http_code}' "$ADMIN_URL/upstreams/watched/targets/127.0.0.1:$TWO")" = 204 ]
  [ "$(call echo -H 'X-Upstream: watched' -H 'X-Named: 1')" = 503 ]
  grep -q 'failure to get a peer from the ring-balancer' "$WORK/body"
  admin POST upstreams/watched/targets "{\"target\":\"127.0.0.1:$TWO\"}"
}

@test "an upstream has a name, and each target once" {
  ! admin PUT upstreams/10.0.0.1 '{}' || false
  grep -q 'no ip addresses allowed' "$WORK/last"
  ! admin POST upstreams/pair/targets "{\"target\":\"127.0.0.1:$ONE\"}" || false
  grep -q 'UNIQUE violation' "$WORK/last"
  admin POST upstreams/hashed/targets '{"target":"127.0.0.2","weight":0}'
  grep -q '"127.0.0.2:8000"' "$WORK/last"
}
