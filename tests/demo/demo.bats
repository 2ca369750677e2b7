#!/usr/bin/env bats
#
# demo.sh, before it changes anything: with stand-ins for the programs that it would call. The demo as a whole runs in .ci/run.


setup() {
  DEMO=$BATS_TEST_DIRNAME/../demo.sh
  PATH_OF_TEST=$BATS_TEST_TMPDIR/bin
  mkdir "$PATH_OF_TEST"
  for tool in bash cat cut dirname env head id rm rmdir sed sort; do ln -s "$(command -v "$tool")" "$PATH_OF_TEST/$tool"; done
  unset DATABASE_URL VLLM_URL DEMO_PULL
}

# stand_in NAME LINES - a program that writes what it is called with.
stand_in() {
  printf '#!/bin/bash\necho "%s $*" >>"%s/calls"\n%s\n' "$1" "$BATS_TEST_TMPDIR" "$2" >"$PATH_OF_TEST/$1"
  chmod +x "$PATH_OF_TEST/$1"
}

demo() { output=$(PATH=$PATH_OF_TEST bash "$DEMO" </dev/null 2>&1) && status=0 || status=$?; }

@test "without cargo it says so, and the way that needs none, before anything is installed" {
  stand_in apt-get ''
  demo
  [ "$status" -eq 1 ]
  [[ $output == *'there is no cargo'*'docker compose -f deploy/demo/compose.yaml up'* ]]
  [ ! -e "$BATS_TEST_TMPDIR/calls" ]
}

@test "so does it with one that is too old, and one that is new enough passes" {
  stand_in apt-get ''
  stand_in cargo 'echo "cargo 1.80.0 (376290515 2024-07-16)"'
  demo
  [ "$status" -eq 1 ]
  [[ $output == *'cargo is 1.80.0, 1.95 or newer is needed'* ]]
  [ "$(cat "$BATS_TEST_TMPDIR/calls")" = 'cargo --version' ]
  stand_in cargo 'echo "cargo 1.100.0"'
  demo
  [[ $output == *'simulated vLLM'*'minutes'* ]]
}

@test "a database of somebody's is not used where nobody can be asked" {
  stand_in cargo 'echo "cargo 1.100.0"'
  DATABASE_URL=postgres://127.0.0.1:1/theirs demo
  [[ $output == *'DATABASE_URL is left alone'*'a private PostgreSQL'* ]]
}
