#!/usr/bin/env bats
#
# llm-collector users against the nginx test host, which answers as Kong 3.9 does.

load host

setup_file() {
  start_upstream
  start_host kong
  configure >/dev/null
}

teardown_file() {
  stop_host kong
  stop_upstream
}

setup() { rm -f "$WORK/out" "$WORK/err"; }

# Standard output and error apart: the key goes to the first, all else to the second.
apart() { "$@" >"$WORK/out" 2>"$WORK/err"; }

works() { [ "$(call /v1/models -H "Authorization: Bearer $1")" = 200 ]; }
fails() { [ "$(call /v1/models -H "Authorization: Bearer $1")" = 401 ]; }

@test "add: a random key, shown once on standard output alone, that works at once" {
  apart users add alice
  [ "$(wc -l <"$WORK/out")" = 1 ]
  [[ $(cat "$WORK/out") =~ ^sk-[0-9a-f]{48}$ ]]
  no grep -q sk- "$WORK/err"
  works "$(cat "$WORK/out")"
  first=$(cat "$WORK/out")
  apart users add bob
  [ "$(cat "$WORK/out")" != "$first" ]
}

@test "add: a user that exists is left as it is" {
  users add carol >"$WORK/key" 2>/dev/null
  run users add carol
  [ "$status" -eq 1 ]
  [[ $output == *'the user carol exists already'*rotate*carol* ]]
  works "$(cat "$WORK/key")"
}

@test "add: takes over a key, from an argument or standard input, and does not repeat it" {
  apart users add dave --key sk-given-as-an-argument-1
  [ ! -s "$WORK/out" ]
  no grep -q sk-given "$WORK/err"
  works sk-given-as-an-argument-1
  printf 'sk-from-standard-input-22\r\n' | apart users add erin --key -
  [ ! -s "$WORK/out" ]
  works sk-from-standard-input-22
  apart users add frank --key=short
  grep -q 'short enough to be guessed' "$WORK/err"
}

@test "add: somebody else's key is refused, and no half-made user stays" {
  users add grace --key sk-grace-has-this-key-00 2>/dev/null
  run users add heidi --key sk-grace-has-this-key-00
  [ "$status" -eq 1 ]
  [[ $output == *'belongs to somebody already'* && $output != *sk-grace* ]]
  run users list
  [[ $output != *heidi* ]]
}

@test "add: finishes what was cut off after the consumer was made" {
  admin POST consumers '{"username":"ivan"}' >/dev/null
  apart users add ivan
  works "$(cat "$WORK/out")"
}

@test "names that need escapes work everywhere" {
  for name in 'Li Wei' '张伟' 'a+b&c=d?e#f%20' "o'neil" 'x@example.com' 'quote"back\slash' 'ключ'; do
    apart users add "$name"
    key=$(cat "$WORK/out")
    works "$key"
    json 'j["headers"]["x-consumer-username"][0].encode("latin-1").decode()' <"$WORK/body" | grep -qxF "$name"
    says -F "$name" users list
    apart users rotate "$name"
    fails "$key"
    works "$(cat "$WORK/out")"
    users limit "$name" 5 2>/dev/null
    users remove "$name" 2>/dev/null
    run users remove "$name"
    [ "$status" -eq 1 ]
  done
}

@test "bad names are refused" {
  for name in '' ' x' 'x ' . .. a/b $'a\nb' $'a\tb' $'\xff\xfe' 7c1ea1d0-6b1f-4000-8000-000000000001 anonymous -x \
    "$(head -c 200 /dev/zero | tr '\0' x)"; do
    run users add -- "$name"
    [ "$status" -ne 0 ] || { echo "accepted: $name"; false; }
  done
  for key in 'with blank' $'tab\there' 'schlüssel' "$(head -c 600 /dev/zero | tr '\0' k)"; do
    run users add zed --key "$key"
    [ "$status" -eq 1 ]
  done
  run users list
  [[ $output != *zed* ]]
}

@test "rotate: the new key works, the old ones do not; nobody else is touched" {
  old=$(users add judy 2>/dev/null)
  other=$(users add mallory 2>/dev/null)
  admin POST consumers/judy/key-auth '{"key":"sk-second-key-of-judy-1"}' >/dev/null
  apart users rotate judy
  new=$(cat "$WORK/out")
  works "$new"
  fails "$old"
  fails sk-second-key-of-judy-1
  works "$other"
  apart users rotate judy --key sk-chosen-for-judy-00001
  works sk-chosen-for-judy-00001
  fails "$new"
  run users rotate nobody-there
  [ "$status" -eq 1 ]
  [[ $output == *'there is no user nobody-there'* ]]
}

# How long the keys of a user work, as Kong was told.
ends() { admin GET "consumers/$1/key-auth" | json 'sorted(k.get("ttl") or 0 for k in j["data"])'; }

@test "rotate: the old key goes on for a while, and never longer than it would have" {
  users add trudy --expires 90d >"$WORK/old" 2>/dev/null
  [ "$(ends trudy)" = '[7776000]' ]
  users rotate trudy --keep-old 24h >"$WORK/new" 2>/dev/null
  [ "$(ends trudy)" = '[0, 86400]' ]
  works "$(cat "$WORK/old")"
  works "$(cat "$WORK/new")"
  says '^trudy  *2 .* never$' users list
  users rotate trudy --keep-old 48h --expires 30m >"$WORK/newest" 2>/dev/null
  [ "$(ends trudy)" = '[1800, 86400, 172800]' ]
  users rotate trudy >/dev/null 2>&1
  [ "$(ends trudy)" = '[0]' ]
  fails "$(cat "$WORK/newest")"
}

@test "expire: all keys of a user, and back to never with the same key" {
  key=$(users add victor 2>/dev/null)
  id() { admin GET consumers/victor/key-auth | json 'j["data"][0]["id"]'; }
  before=$(id)
  users expire victor 12h 2>/dev/null
  [ "$(ends victor)" = '[43200]' ]
  says "^victor  *1 .* $(date -u -d '+12 hours' +%F)" users list
  users expire victor never 2>/dev/null
  [ "$(ends victor)" = '[0]' ]
  # It was not made anew: no call in between was refused.
  [ "$(id)" = "$before" ]
  works "$key"
  for bad in 0d -1d soon '' 1w 2000d; do
    run users expire victor "$bad"
    [ "$status" -eq 2 ]
  done
  # Kong itself ends it.
  admin PATCH "key-auths/$(admin GET consumers/victor/key-auth | json 'j["data"][0]["id"]')" '{"ttl":1}' >/dev/null
  for _ in $(seq 100); do ! works "$key" || { sleep 0.1 && continue; }; break; done
  fails "$key"
}

@test "team: a tag of the consumer, beside those of others" {
  users add walter --team ml >/dev/null 2>&1
  tags() { admin GET consumers/walter | json 'sorted(j["tags"] or [])'; }
  [ "$(tags)" = "['team:ml']" ]
  admin PATCH consumers/walter '{"tags":["team:ml","floor:3"]}' >/dev/null
  users team walter 'search-und-suche' 2>/dev/null
  [ "$(tags)" = "['floor:3', 'team:search-und-suche']" ]
  says '^walter .* search-und-suche$' users list
  users team walter none 2>/dev/null
  [ "$(tags)" = "['floor:3']" ]
  for bad in '' 'a b' a,b a/b "$(head -c 65 /dev/zero | tr '\0' x)"; do
    run users team walter "$bad"
    [ "$status" -eq 1 ]
  done
}

@test "weight: a tag of the consumer beside the team, and back to that of all" {
  users add walburga --team ml --weight 3 >/dev/null 2>&1
  tags() { admin GET consumers/walburga | json 'sorted(j["tags"] or [])'; }
  [ "$(tags)" = "['team:ml', 'weight:3']" ]
  says '^walburga  *1 .*  3  *ml$' users list
  users weight walburga 5 2>/dev/null
  users team walburga search 2>/dev/null
  [ "$(tags)" = "['team:search', 'weight:5']" ]
  users rotate walburga >/dev/null 2>&1
  users limit walburga 9 2>/dev/null
  [ "$(tags)" = "['team:search', 'weight:5']" ]
  users weight walburga default 2>/dev/null
  [ "$(tags)" = "['team:search']" ]
  for bad in 0 -1 1001 1.5 '' many; do
    run users weight walburga "$bad"
    [ "$status" -eq 2 ]
  done
  run users weight nobody-there 2
  [ "$status" -eq 1 ]
}

@test "class: a tag of the key, which the next key has too" {
  users add berta --class batch >"$WORK/key" 2>/dev/null
  works "$(cat "$WORK/key")"
  classes() { admin GET consumers/berta/key-auth | json 'sorted(str(k["tags"]) for k in j["data"])'; }
  [ "$(classes)" = "[\"['class:batch']\"]" ]
  says '^berta  *1 .* batch$' users list
  users rotate berta >"$WORK/key" 2>/dev/null
  [ "$(classes)" = "[\"['class:batch']\"]" ]
  users rotate berta --class interactive --keep-old 24h >/dev/null 2>&1
  [ "$(classes)" = "['None', \"['class:batch']\"]" ]
  says '^berta  *2 .* mixed$' users list
  works "$(cat "$WORK/key")"
  users rotate berta >/dev/null 2>&1
  [ "$(classes)" = "['None']" ]
  users list --json | json '[(u["weight"], u["class"]) for u in j if u["name"] == "berta"]' | grep -qxF "[(None, 'interactive')]"
}

@test "list --json says the same to programs" {
  users add sybil --team ml --limit 7 --expires 1d >/dev/null 2>&1
  users list --json | json '[(u["keys"], u["limit"], u["capture"], u["team"], u["expires_in_seconds"]) for u in j if u["name"] == "sybil"]' |
    grep -qxF "[(1, 7, 'default', 'ml', 86400)]"
  no grep -q sk- < <(users list --json)
}

@test "import: users of a file, their keys once, and again without harm" {
  printf 'name,team,limit,expires,weight\r\nimp-a,ml,5,90d,2\n"imp, b",,,,\nimp-c,search,default,,\n' >"$WORK/people.csv"
  users import "$WORK/people.csv" --keys "$WORK/keys.csv" 2>"$WORK/err"
  grep -q '^3 users made, 0 changed, 0 unchanged$' "$WORK/err"
  no grep -q sk- "$WORK/err"
  [ "$(stat -c %a "$WORK/keys.csv")" = 600 ]
  [ "$(wc -l <"$WORK/keys.csv")" = 4 ]
  works "$(sed -n 's/^imp-a,//p' "$WORK/keys.csv")"
  works "$(sed -n 's/^"imp, b",//p' "$WORK/keys.csv")"
  [ "$(ends imp-a)" = '[7776000]' ]
  says '^imp-a  *1  *5 default .*  2  *ml$' users list
  cp "$WORK/keys.csv" "$WORK/keys-before"
  whole_state >"$WORK/before"
  users import - --keys "$WORK/keys.csv" <"$WORK/people.csv" 2>"$WORK/err"
  grep -q '^0 users made, 0 changed, 3 unchanged$' "$WORK/err"
  cmp "$WORK/keys.csv" "$WORK/keys-before"
  whole_state | cmp - "$WORK/before"
  # Another team, and one more; without a file for keys they are the result.
  printf 'name,team,weight\nimp-a,search,\nimp-d,,7\n' >"$WORK/people.csv"
  apart users import "$WORK/people.csv"
  grep -q '^1 user made, 1 changed, 0 unchanged$' "$WORK/err"
  works "$(sed -n 's/^imp-d,//p' "$WORK/out")"
  says '^imp-a  *1  *5 default .*  2  *search$' users list
}

@test "import: a file with a mistake changes nothing, and the line is named" {
  whole_state >"$WORK/before"
  for wrong in 'name\ngood-one\nbad/one\n' 'name,limit\ngood-one,5\nother,many\n' 'name,expires\ngood-one,90d\nother,soon\n' \
    'name,team\ngood-one,ml\nother,a b\n' 'name,weight\ngood-one,2\nother,0\n' 'name\ngood-one\ngood-one\n' 'name,team\ngood-one,ml\n,ml\n'; do
    # shellcheck disable=SC2059
    printf "$wrong" >"$WORK/people.csv"
    run users import "$WORK/people.csv"
    [ "$status" -eq 1 ]
    [[ $output == *'line 3: '* ]] || { echo "$wrong: $output"; false; }
  done
  for wrong in '' 'good-one\n' 'name,colour\ngood-one,red\n' 'name\n\xff\n'; do
    # shellcheck disable=SC2059
    printf "$wrong" >"$WORK/people.csv"
    run users import "$WORK/people.csv"
    [ "$status" -eq 1 ]
  done
  whole_state | cmp - "$WORK/before"
}

@test "remove: the key stops working" {
  key=$(users add niaj 2>/dev/null)
  works "$key"
  users remove niaj
  fails "$key"
}

@test "capture: one user's own, with the other settings of all, and back" {
  key=$(users add quentin 2>/dev/null)
  own() { admin GET consumers/quentin/plugins | tr -d ' \n'; }
  users capture quentin metadata 2>/dev/null
  [[ $(own) == *'"capture":"metadata"'* ]]
  [[ $(own) == *'"max_request_body_size":1048576'* ]]
  [[ $(own) == *'"name":"llm-audit"'* ]]
  works "$key"
  says '^quentin  *1  *default metadata ' users list
  users add rupert >/dev/null 2>&1
  says '^rupert  *1  *default default ' users list
  # An instance that is switched off says nothing.
  own_id=$(admin GET consumers/quentin/plugins | json 'j["data"][0]["id"]')
  admin PATCH "plugins/$own_id" '{"enabled":false}' >/dev/null
  says '^quentin  *1  *default default ' users list
  settings() { python3 -c 'import json, sys; c = json.load(sys.stdin)["config"]; del c["capture"]; print(json.dumps(c, sort_keys=True))'; }
  id=$(admin GET consumers/quentin/plugins | json 'j["data"][0]["id"]')
  [ "$(admin GET "plugins/$id" | settings)" = "$(admin GET plugins/7c1ea1d0-6b1f-4000-8000-000000000205 | settings)" ]
  users capture quentin full 2>/dev/null
  [[ $(own) == *'"capture":"full"'* ]]
  says '^quentin  *1  *default full ' users list
  # What the collector drops weighs more than what Kong hands over.
  COLLECTOR_METADATA_CONSUMERS='nobody, quentin' says '^quentin  *1  *default dropped ' users list
  [[ $(own) != *metadata* ]]
  users capture quentin default 2>/dev/null
  [[ $(own) != *llm-audit* ]]
  for bad in none '' FULL; do
    run users capture quentin "$bad"
    [ "$status" -eq 2 ]
  done
}

@test "limit: one user's own, and back to that of all" {
  key=$(users add olivia 2>/dev/null)
  users limit olivia 2 2>/dev/null
  works "$key"; sleep 0.1
  works "$key"; sleep 0.1
  [ "$(call /v1/models -H "Authorization: Bearer $key")" = 429 ]
  says '^olivia  *1  *2 default ' users list
  users limit olivia 3 2>/dev/null
  works "$key"
  users limit olivia default 2>/dev/null
  works "$key"
  says '^olivia  *1  *default ' users list
  for bad in 0 -1 many 1.5 ''; do
    run users limit olivia "$bad"
    [ "$status" -eq 2 ]
  done
}

# Makes users page1, page2 … without keys, over one connection.
many_users() {
  python3 - "$KONG_ADMIN_URL" "$1" <<'PY'
import http.client, sys
host, port = sys.argv[1].split("//")[1].split(":")
connection = http.client.HTTPConnection(host, int(port))
for number in range(1, int(sys.argv[2]) + 1):
    connection.request("PUT", f"/consumers/page{number}", body="{}", headers={"Content-Type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    assert answer.status in (200, 201), answer.status
PY
}

@test "list: every user once over several pages, and no key" {
  # Kong gives a thousand at a time.
  many_users 1005
  run users list
  [ "$status" -eq 0 ]
  [[ $output != *sk-* ]]
  [ "$(echo "$output" | grep -c '^page')" = 1005 ]
  [ "$(echo "$output" | grep -c '^alice  *1 ')" = 1 ]
}

@test "keys are in no process argument" {
  arguments_of users rotate peggy --key - <<<sk-standard-input-peggy-1 >"$WORK/arguments"
  grep -qx peggy "$WORK/arguments"
  no grep -qF sk-standard-input-peggy-1 "$WORK/arguments"
}

@test "wrong usage: status 2 and the help" {
  for line in '' 'add' 'nonsense' 'add a b' 'remove' 'limit a' 'capture a' 'list x' 'remove a --key b' 'add a --key'; do
    # shellcheck disable=SC2086
    run users $line
    [ "$status" -eq 2 ] || { echo "status $status: $line"; false; }
    [[ $output == *'Usage: llm-collector users'* || $output == *"try '--help'"* ]]
  done
}

@test "an Admin API that does not answer" {
  KONG_ADMIN_URL=http://127.0.0.1:9 run users list
  [ "$status" -eq 1 ]
  [[ $output == *"Kong's Admin API does not answer"* ]]
}
