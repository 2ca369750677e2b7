# shellcheck shell=bash disable=SC2034,SC2154  # variables are shared with the files beside this one
#
# backup.sh - gateway backup and restore. Sourced, never run.
#
# A backup is a folder for root alone, because it holds keys and conversations:
#   kong.dump, llm.dump    pg_dump's custom format, each one consistent snapshot
#   grafana.tar.gz         Grafana's own database: its users and the dashboards people made
#   grafana-secret-key     with which that database's own secrets are encrypted
#   gateway.env, vllm-api-key
#   ABOUT                  release, time, host, rows
#   SHA256SUMS             of all of it
# Not in it: Prometheus' history, and the passwords of this installation; another one has its own.

backup() {
  local name
  [ $# -le 1 ] || misuse "backup takes one folder at most"
  runs_postgresql || fatal "PostgreSQL runs on ${setting[POSTGRES_HOST]}" "Make the backup there."
  is_running postgresql || fatal "PostgreSQL is not running, and a backup needs it" "Start it:  $(this_gateway) up postgresql"
  take_lock
  name=${1:-$backup_dir}/$project-$(date -u +%Y%m%d-%H%M%S)
  make_backup "$name" 1
  info "backup: $name ($(human_kb "$(du -sk "$name" | cut -f 1)"))"
  echo "$name"
}

# make_backup FOLDER WITH_LOGS
make_backup() {
  local target=$1 with_logs=$2 unfinished=$1.unfinished
  [ ! -e "$target" ] || fatal "$target exists already"
  check_room "$(dirname "$target")" "$with_logs"
  wait_for_spool
  rm -rf "$unfinished"
  mkdir -p "$unfinished"
  chmod 700 "$unfinished"
  info "dumping the database kong"
  dump_database kong "$unfinished/kong.dump"
  if [ "$with_logs" = 1 ]; then
    info "dumping the database llm ($(query postgres "SELECT pg_size_pretty(pg_database_size('llm'))"))"
    dump_database llm "$unfinished/llm.dump"
  fi
  save_grafana "$unfinished/grafana.tar.gz"
  printf '%s' "${secret[GRAFANA_SECRET_KEY]}" >"$unfinished/grafana-secret-key"
  cp "$settings_file" "$unfinished/gateway.env"
  [ -z "${setting[VLLM_API_KEY_FILE]}" ] || cp "${setting[VLLM_API_KEY_FILE]}" "$unfinished/vllm-api-key"
  cat >"$unfinished/ABOUT" <<LINES
release ${release_dir##*/}
made $(date -u +%FT%TZ)
host $(hostname)
rows $(if [ "$with_logs" = 1 ]; then query llm 'SELECT count(*) FROM llm_logs'; else echo 'not in this backup'; fi)
LINES
  (cd "$unfinished" && sha256sum -- * >SHA256SUMS)
  # Only a whole backup has a name that looks like one.
  mv "$unfinished" "$target"
}

# Compressed dumps are smaller than the database: its size is a safe guess.
check_room() {
  local folder=$1 with_logs=$2 needed free
  needed=$(query postgres "SELECT (pg_database_size('kong') + CASE WHEN $with_logs = 1 THEN pg_database_size('llm') ELSE 0 END) / 1024")
  free=$(free_kb "$folder")
  [ "$free" -ge "$needed" ] || fatal "the disk of $folder has $(human_kb "$free") free, the databases have $(human_kb "$needed")" \
    "Make room, or give another folder:  $(this_gateway) backup DIR"
}

# Entries in the spool belong into the backup: give the collector a moment to store them.
wait_for_spool() {
  local bytes _
  is_running collector || return 0
  for _ in $(seq 30); do
    bytes=$(collector_metric llm_collector_spool_bytes)
    case $bytes in 0 | 0.0 | -) return 0 ;; esac
    sleep 1
  done
  warn "the collector's spool still holds $bytes bytes of entries, which are not in this backup"
}

# Grafana writes to its database now and then: it is stopped for a moment, so that the copy is whole.
save_grafana() {
  local id was_running=0
  id=$(container_of grafana)
  if [ -n "$id" ] && is_running grafana; then was_running=1 && docker pause "$id" >/dev/null; fi
  local status=0
  tar -C "$data_dir/grafana" -czf "$1" . || status=$?
  [ $was_running = 0 ] || docker unpause "$id" >/dev/null
  [ $status = 0 ] || fatal "could not save $data_dir/grafana" "See the message above."
}

# --- restore -------------------------------------------------------------------------------------------------------------

restore() {
  local from='' yes=0 word
  for word in "$@"; do
    case $word in
      --yes) yes=1 ;;
      -*) misuse "restore does not know $word" ;;
      *) from=$word ;;
    esac
  done
  [ -n "$from" ] || misuse "restore needs a backup"
  runs_postgresql || fatal "PostgreSQL runs on ${setting[POSTGRES_HOST]}" "Restore there."
  check_backup "$from"
  confirm_restore "$from" $yes
  take_lock
  restore_from "$from"
}

check_backup() {
  local from=$1 output
  if ! [ -f "$from/kong.dump" ] || ! [ -f "$from/SHA256SUMS" ]; then
    fatal "$from is no backup" "A backup is a folder that gateway backup made; here are some:  ls $backup_dir"
  fi
  output=$(cd "$from" && sha256sum --check --quiet --strict SHA256SUMS 2>&1) ||
    fatal "the backup $from is damaged; nothing was changed" "$(grep FAILED <<<"$output" | head -n 5)"
}

confirm_restore() {
  local rows word
  [ "$2" = 0 ] || return 0
  rows=$(query llm "SELECT count(*) FROM llm_logs" 2>/dev/null) || rows=0
  [ -t 0 ] || fatal "restoring replaces users, keys and $rows rows of this installation; nothing was changed" "If you mean it:  $(this_gateway) restore $1 --yes"
  info "This replaces users, keys and $rows rows of this installation with those of:"
  sed 's/^/     /' "$1/ABOUT" >&2
  read -r -p "   Type yes to go on: " word
  [ "$word" = yes ] || fatal "nothing was changed"
}

# What was there stays until the restored is known to work. state/restore says how far a restore is, so that one which was cut off,
# at whatever point, is settled by the next command: `switching` means back to what was there, `done` that only the rest of it is to
# be removed. Beside it is the key of Grafana that was there.
restore_from() {
  local from=$1 databases=(kong) restoring=1
  [ ! -f "$from/llm.dump" ] || databases+=(llm)
  prepare_files
  start_postgresql
  step "loading $from beside what is there"
  load_database kong kong "$from/kong.dump"
  [ ${#databases[@]} = 1 ] || load_database llm llm_collector "$from/llm.dump"
  step "putting it in place"
  stop_services kong collector upkeep grafana
  begin_restore
  swap_databases restored before_restore "${databases[@]}"
  restore_grafana "$from"
  if ! (bring_up && configure_kong && add_probe && check_path); then
    warn "the restored installation does not work; going back to what was there"
    undo_restore
    (bring_up && configure_kong && add_probe && check_path) || fatal "what was there does not work either" "See:  $(this_gateway) status"
    fatal "the backup was not restored; the installation is as it was" "The reason is above. The databases that did not work are kept as kong_restored and llm_restored."
  fi
  echo 'done' | write_file "$state_dir/restore/phase" 600
  finish_restore
  note_restored_settings "$from"
  info "restored: $(query llm 'SELECT count(*) FROM llm_logs') rows, $(query kong 'SELECT 1' >/dev/null && users list | tail -n +2 | grep -vc "^$PROBE ") users"
}

begin_restore() {
  rm -rf "$state_dir/restore"
  mkdir -p "$state_dir/restore"
  printf '%s' "${secret[GRAFANA_SECRET_KEY]}" | write_file "$state_dir/restore/grafana-secret-key" 600
  # What an earlier restore left there is not what this one would go back to.
  rm -rf "$data_dir/grafana.before-restore"
  drop_database kong_before_restore
  drop_database llm_before_restore
  echo switching | write_file "$state_dir/restore/phase" 600
}

# settle_restore - after PostgreSQL's start: a restore that was cut off is undone, or finished.
settle_restore() {
  if [ ! -e "$state_dir/restore/phase" ] || [ "${restoring:-0}" = 1 ]; then return 0; fi
  if [ "$(<"$state_dir/restore/phase")" = 'done' ]; then
    finish_restore
  else
    warn "a restore was cut off: going back to what was there before it"
    stop_services kong collector upkeep grafana
    undo_restore
    prepare_files
  fi
}

# What was there comes back, as far as it had been put aside: both databases or none.
undo_restore() {
  local name there=()
  stop_services kong collector upkeep grafana
  for name in kong llm; do ! has_database "${name}_before_restore" || there+=("$name"); done
  [ ${#there[@]} = 0 ] || swap_databases before_restore restored "${there[@]}"
  if [ -d "$data_dir/grafana.before-restore" ]; then
    rm -rf "$data_dir/grafana"
    mv "$data_dir/grafana.before-restore" "$data_dir/grafana"
  fi
  replace_secret GRAFANA_SECRET_KEY "$(<"$state_dir/restore/grafana-secret-key")"
  rm -rf "$state_dir/restore"
}

finish_restore() {
  drop_database kong_before_restore
  drop_database llm_before_restore
  rm -rf "$data_dir/grafana.before-restore" "$state_dir/restore"
}

# Everything from the database to healthy services; roles are mended on the way.
bring_up() {
  prepare_files
  start_postgresql
  migrate_kong
  start_rest || return 1
  finish_migrations
}

# Grafana's database can be read with the key only that it was written with; a backup without one is older than such keys.
restore_grafana() {
  local key=$GRAFANA_OLD_KEY
  [ -f "$1/grafana.tar.gz" ] || return 0
  [ ! -d "$data_dir/grafana" ] || mv "$data_dir/grafana" "$data_dir/grafana.before-restore"
  mkdir -p "$data_dir/grafana"
  tar -C "$data_dir/grafana" -xzf "$1/grafana.tar.gz"
  [ ! -f "$1/grafana-secret-key" ] || key=$(<"$1/grafana-secret-key")
  [[ $key =~ ^[A-Za-z0-9-]+$ ]] || fatal "$1/grafana-secret-key is no key"
  replace_secret GRAFANA_SECRET_KEY "$key"
  chown -R "${image_user[GRAFANA]}" "$data_dir/grafana"
  chmod 700 "$data_dir/grafana"
}

# Settings are of the host: ports and folders of another one may not fit. They are shown, not taken over.
note_restored_settings() {
  cmp -s "$1/gateway.env" "$settings_file" && return 0
  cp "$1/gateway.env" "$settings_file.of-backup"
  info "the backup's settings differ from this installation's; they are in $settings_file.of-backup:"
  diff "$settings_file" "$settings_file.of-backup" | grep '^[<>] [A-Z]' | sed 's/^/     /' >&2 || true
}
