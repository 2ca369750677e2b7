#!/usr/bin/env bats
#
# What `gateway` does with its words, as far as it needs no Docker.
# shellcheck disable=SC2154,SC2030,SC2031,SC2016  # bats sets status and output; each test is a shell of its own
load scripts

@test "every command has help where nothing is installed, and changes nothing" {
  for command in help status up down restart logs apply backup restore upgrade uninstall support; do
    for word in --help -h; do
      run env GATEWAY_HOME="$WORK/nowhere" "$DEPLOY/gateway" "$command" x "$word"
      [ "$status" = 0 ]
      [[ $output == 'gateway - operates an installed vLLM gateway.'* ]]
    done
  done
  run "$DEPLOY/gateway" backups
  [ "$status" = 2 ]
  says 'unknown command backups'
}

@test "logs are Docker's own, of each service under its name: Compose 1.29 knows no --since" {
  settings ''
  fake_docker "'ps '*kong*) echo 01 ;;
    'ps '*collector*) echo 02 ;;
    'ps '*) ;;
    logs\ *' 01') echo \"\$*\" >>$WORK/calls && echo 'a line of Kong' ;;
    logs\ *' 02') echo \"\$*\" >>$WORK/calls && echo 'a line of the collector' >&2 ;;"
  run show_logs --since 1h --tail=5 -t kong collector grafana
  [ "$status" = 0 ]
  says 'kong       | a line of Kong'
  says 'collector  | a line of the collector'
  says 'there is no container of grafana'
  [ "$(cat "$WORK/calls")" = $'logs --since=1h --tail=5 --timestamps 01\nlogs --since=1h --tail=5 --timestamps 02' ]
  run show_logs -f kong collector
  says 'collector  | a line of the collector'
  grep -qx 'logs --follow 01' "$WORK/calls"
  run show_logs --since
  [ "$status" = 1 ]
  says '--since needs a value'
  run show_logs --sinse=1h kong
  says 'logs does not know --sinse=1h'
}

@test "a container that does not answer keeps no script waiting" {
  settings ''
  make_secrets
  fake_docker "'ps '*) echo 01 ;;
    'inspect '*) echo running ;;
    'exec '*) exec sleep 1000 ;;"
  query_seconds=0.1 run query llm 'SELECT 1'
  [ "$status" = 124 ]
  # shellcheck source=deploy/lib/collector.sh
  . "$DEPLOY/lib/collector.sh"
  command_seconds=0.1 run collector_command users list
  [ "$status" = 124 ]
  # Each call into a container has an end, or says that it takes as long as it takes.
  run grep -rhE '^[^#]*docker exec' "$DEPLOY/gateway" "$DEPLOY/install.sh" "$DEPLOY/lib"
  for line in "${lines[@]}"; do [[ $line == *timeout* || $line == *'${limit[@]}'* || $line == *pg_dump* || $line == *pg_restore* ]]; done
}
