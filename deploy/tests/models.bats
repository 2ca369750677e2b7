#!/usr/bin/env bats
#
# llm-collector models against the nginx test host, which answers as Kong 3.9 does.

load host

setup_file() {
  start_upstream
  # The test server answers everything, /health too; its list of models is given.
  start_host kong
  export ANONYMOUS_PER_MINUTE=0
  configure --wait >/dev/null
  users add alice --team ml >"$BATS_FILE_TMPDIR/alice" 2>/dev/null
  users add bob >"$BATS_FILE_TMPDIR/bob" 2>/dev/null
}

teardown_file() {
  stop_host kong
  stop_upstream
}

models() { "$COLLECTOR" models "$@"; }
# What a user sees in the list of models.
seen_by() {
  call /v1/models -H "Authorization: Bearer $(cat "$WORK/$1")" >/dev/null
  json '[m["id"] for m in j["data"]]' <"$WORK/body"
}
upstreams() { admin GET upstreams | json 'sorted(u["name"] for u in j["data"])'; }

@test "a model that is added is in the list, for those who may use it" {
  models add small "http://127.0.0.1:$UP" --alias tiny,little 2>/dev/null
  models add 'Org/Big' "http://127.0.0.1:$UP" "http://127.0.0.1:9" --only team:ml --balance consumer 2>/dev/null
  [ "$(seen_by alice)" = "['small', 'Org/Big']" ]
  [ "$(seen_by bob)" = "['small']" ]
  says '^small  *tiny,little  *everybody ' models list
  says '^Org/Big .* team:ml ' models list
  models list --json | json '[(m["name"], sorted(s["target"] for s in m["servers"])) for m in j][1]' | grep -qF "'127.0.0.1:9'"
  admin GET upstreams/llm-small | json '(j["algorithm"], j["hash_on"])' | grep -qxF "('least-connections', 'none')"
  [ "$(call /v1/models/Org/Big -H "Authorization: Bearer $(cat "$WORK/alice")")" = 200 ]
  [ "$(call /v1/models/Org/Big -H "Authorization: Bearer $(cat "$WORK/bob")")" = 404 ]
}

@test "adding again changes nothing but what is said, and kong apply leaves models alone" {
  whole_state | sed 's/"updated_at":[0-9]*//g' >"$WORK/before"
  models add small "http://127.0.0.1:$UP" --alias tiny,little 2>/dev/null
  whole_state | sed 's/"updated_at":[0-9]*//g' | cmp - "$WORK/before"
  says '^nothing to change$' configure
  models add small "http://127.0.0.1:9" --alias tiny 2>/dev/null
  admin GET upstreams/llm-small/targets | json '[t["target"] for t in j["data"]]' | grep -qxF "['127.0.0.1:9']"
  models add small "http://127.0.0.1:$UP" --alias tiny,little 2>/dev/null
}

@test "allow: others may use it, or everybody" {
  models allow small bob 2>/dev/null
  [ "$(seen_by alice)" = "['Org/Big']" ]
  models allow tiny everybody 2>/dev/null
  [ "$(seen_by alice)" = "['small', 'Org/Big']" ]
  for bad in 'everybody bob' a/b team: '-x'; do
    # shellcheck disable=SC2086
    run models allow small $bad
    [ "$status" -ne 0 ]
  done
}

@test "a key of a server is never shown" {
  printf 'sk-of-a-server-0123456789\n' >"$WORK/server-key"
  models add locked "http://127.0.0.1:$UP" --key-file "$WORK/server-key" 2>"$WORK/err"
  no grep -q sk-of "$WORK/err"
  no grep -q sk-of < <(models list; models list --json)
  admin GET plugins/7c1ea1d0-6b1f-4000-8000-000000000208 | grep -q sk-of-a-server
  # It stays where others change.
  models allow locked bob 2>/dev/null
  admin GET plugins/7c1ea1d0-6b1f-4000-8000-000000000208 | grep -q sk-of-a-server
  models remove locked 2>/dev/null
}

@test "remove: servers go with the last model, and without any all is as before" {
  models remove Org/Big 2>/dev/null
  [ "$(upstreams)" = "['llm-small']" ]
  models remove tiny 2>/dev/null
  [ "$(upstreams)" = '[]' ]
  no grep -q llm-router < <(admin GET plugins)
  says '^nothing to change$' configure
  run models remove small
  [ "$status" -eq 1 ]
  [[ $output == *'there is no model small'* ]]
}

@test "what is no model and no server is refused" {
  for line in 'a' 'add' 'add x' 'add x 127.0.0.1:8000' 'add x http://h:1/v1' 'add -- -x http://h:1' 'add http://127.0.0.1:9' \
    'add x https://h:1' 'add x http://h:1 --only a/b' 'add x http://h:1 --key-file /no/such/file' 'allow x alice'; do
    # shellcheck disable=SC2086
    run models $line
    [ "$status" -ne 0 ] || { echo "accepted: $line"; false; }
  done
  [ "$(upstreams)" = '[]' ]
}

@test "export: models and users as a file, read back as YAML it is what the Admin API has" {
  models add 'Org/Export' "http://127.0.0.1:$UP" "http://127.0.0.1:9" --alias ex --only team:ml 2>/dev/null
  users add carol --team ml --limit 7 --expires 1d >/dev/null 2>&1
  # Somebody could read the file that was there.
  (umask 022 && echo old >"$WORK/kong.yaml")
  "$COLLECTOR" kong export --with-users --output "$WORK/kong.yaml"
  [ "$(stat -c %a "$WORK/kong.yaml")" = 600 ]
  for list in upstreams consumers key-auths plugins; do admin GET "$list?size=1000" >"$WORK/of-$list"; done
  for upstream in $(json '" ".join(u["name"] for u in j["data"])' <"$WORK/of-upstreams"); do
    admin GET "upstreams/$upstream/targets?size=1000"
  done >"$WORK/of-targets"
  # Debian's own, for which python3-yaml is.
  /usr/bin/python3 "$BATS_TEST_DIRNAME/exported.py" "$WORK"
  # Without models and users no Kong is asked.
  KONG_ADMIN_URL=http://127.0.0.1:9 "$COLLECTOR" kong export | json '(j["consumers"], "upstreams" in j)' | grep -qxF '([], False)'
  run env KONG_ADMIN_URL=http://127.0.0.1:9 "$COLLECTOR" kong export --with-models
  [ "$status" -eq 1 ]
  [[ $output == *'does not answer'* ]]
  models remove Org/Export 2>/dev/null
}
