# shellcheck shell=bash disable=SC2034,SC2154  # variables are shared with the files beside this one
#
# upgrade.sh - gateway upgrade: to another release and, when that one does not work, back. Sourced, never run.
#
# The old release does the going back, with its own scripts, images and settings. Data first stay as they are: migrations
# only add, so the old release works on them and no row is lost. Only when it does not is the backup put in place.

upgrade() {
  local from='' with_logs=1 word new old=$release_dir saved
  for word in "$@"; do
    case $word in
      --skip-logs-backup) with_logs=0 ;;
      -*) misuse "upgrade does not know $word" ;;
      *) from=$word ;;
    esac
  done
  [ -n "$from" ] || misuse "upgrade needs a bundle"
  new=$(unpack_bundle "$from") || exit 1
  # Before anything of it runs.
  [ ! -e "$home/allowed_signers" ] || verify_signature "$new" "$home/allowed_signers"
  "$new/deploy/install.sh" --home "$home" --upgrade --check --without-vllm
  is_running postgresql || ! runs_postgresql || fatal "PostgreSQL is not running" "An upgrade begins from a working installation:  $(this_gateway) up"
  take_lock
  read_images
  remember_images
  saved=''
  if runs_postgresql; then
    step "backup before the upgrade"
    saved=$backup_dir/before-upgrade-$(date -u +%Y%m%d-%H%M%S)
    make_backup "$saved" $with_logs
    info "$saved"
  fi
  # install.sh takes the lock itself.
  exec 9>&-
  if "$new/deploy/install.sh" --home "$home" --upgrade --without-vllm; then
    # An older release leaves alone what it does not know.
    grep -q '^  upkeep:' "$new/deploy/compose.yaml" || remove_upkeep
    remove_unpacked "$new"
    info "upgraded from ${old##*/}; to go back later:  $(this_gateway) upgrade OLD-BUNDLE, then restore $saved"
    return
  fi
  warn "the new release does not work; going back to ${old##*/}"
  take_lock
  go_back "$saved"
  remove_unpacked "$new"
  fatal "not upgraded: ${old##*/} runs as before" "The reason is above. The backup is kept: $saved"
}

# Prints the folder of the bundle.
unpack_bundle() {
  local from=$1 into=$home/incoming top
  if [ -d "$from" ]; then
    [ -f "$from/deploy/install.sh" ] || fatal "$from is no bundle"
    readlink -f "$from"
    return
  fi
  [ -f "$from" ] || fatal "there is no bundle $from"
  rm -rf "$into"
  mkdir -p "$into"
  info "unpacking $from"
  case $from in
    *.tar.gz) tar -C "$into" -xzf "$from" ;;
    *.tar.zst) need zstd zstd && zstd -dc "$from" | tar -C "$into" -x ;;
    *) fatal "$from is neither a folder nor a .tar.gz or .tar.zst" ;;
  esac || fatal "cannot unpack $from" "Is the disk full?  df -h $home    Is the file whole? Compare its SHA-256."
  top=$(find "$into" -mindepth 1 -maxdepth 1 -type d)
  [ -f "$top/deploy/install.sh" ] || fatal "$from is no bundle"
  echo "$top"
}

remove_unpacked() { [[ $1 != "$home"/incoming/* ]] || rm -rf "$home/incoming"; }

# A new image may come under the same name; ids stay.
declare -gA old_image
remember_images() {
  local role
  for role in "${!image_name[@]}"; do
    old_image[$role]=$(docker image inspect --format '{{.Id}}' "${image_name[$role]}") || fatal "Docker no longer has the image ${image_name[$role]}" "Without it there is no way back; load it from its bundle first."
  done
}

go_back() {
  local saved=$1 role
  stop_services kong collector upkeep grafana
  for role in "${!old_image[@]}"; do docker tag "${old_image[$role]}" "${image_name[$role]}"; done
  make_current
  # In a shell of its own: `fatal` in there must not end this one.
  if (bring_back); then return; fi
  [ -n "$saved" ] || fatal "the old release does not work on the data as they are" "PostgreSQL runs elsewhere; restore the backup there."
  warn "the old release does not work on the data as the new one left them: putting the backup in place"
  save_leftovers
  (restore_from "$saved") || fatal "the old release does not work with the backup either" "See:  $(this_gateway) status" "The backup: $saved"
}

bring_back() {
  prepare_files
  start_postgresql
  start_rest && configure_kong && add_probe && check_path
}

# Rows that came in after the backup are not in it. They are kept beside, as far as they can be read.
save_leftovers() {
  local left
  left=$backup_dir/left-by-failed-upgrade-$(date -u +%Y%m%d-%H%M%S)
  mkdir -p "$left"
  if (dump_database llm "$left/llm.dump") 2>/dev/null; then
    warn "what the failed release left of the database llm is kept in $left"
  else
    rm -rf "$left"
  fi
}
