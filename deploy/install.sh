#!/usr/bin/env bash
#
# install.sh - installs the vLLM gateway on this host from the bundle it lies in: checks the host, verifies the bundle,
# loads the images, makes secrets, starts everything, configures Kong, and proves it with a call.
#
# Needs root, Docker 20.10 or newer with Compose 1.28 or newer, curl. No internet, no jq, no Python.
# May run again at any time: what is done already is left alone, and a run that failed goes on where it ended.
#
# Usage: install.sh [options]
#   --home DIR       folder of the installation   /opt/vllm-gateway, or GATEWAY_HOME
#   --settings FILE  settings for the first installation; later its own gateway.env counts
#                                                 gateway.env beside install.sh
#   --without-vllm   install although vLLM does not answer yet
#   --verify FILE    goes on only if the bundle was signed by somebody in this file (allowed_signers, see ssh-keygen); it is kept,
#                    and upgrades must then be signed, too
#   --adopt          removes from Kong what somebody else made there and what leads to vLLM past the keys
#   --check          only checks the host and the bundle, changes nothing
#   --help
#
# Environment, for slow hosts:
#   GATEWAY_PATIENCE_SECONDS   how long services may take to become healthy   180
#
# Exit status: 0 done; 1 failed, with the reason and what to do; 2 wrong usage.

set -euo pipefail

release_dir=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
# shellcheck source=deploy/lib/common.sh
. "$release_dir/deploy/lib/common.sh"
# shellcheck source=deploy/lib/settings.sh
. "$release_dir/deploy/lib/settings.sh"
# shellcheck source=deploy/lib/tls.sh
. "$release_dir/deploy/lib/tls.sh"
# shellcheck source=deploy/lib/docker.sh
. "$release_dir/deploy/lib/docker.sh"
# shellcheck source=deploy/lib/preflight.sh
. "$release_dir/deploy/lib/preflight.sh"
# shellcheck source=deploy/lib/postgresql.sh
. "$release_dir/deploy/lib/postgresql.sh"
# shellcheck source=deploy/lib/release.sh
. "$release_dir/deploy/lib/release.sh"
# shellcheck source=deploy/lib/collector.sh
. "$release_dir/deploy/lib/collector.sh"
# shellcheck source=deploy/lib/stack.sh
. "$release_dir/deploy/lib/stack.sh"
# shellcheck source=deploy/lib/backup.sh
. "$release_dir/deploy/lib/backup.sh"

# --- arguments ---------------------------------------------------------------------------------------------------------

home=${GATEWAY_HOME:-/opt/vllm-gateway} first_settings='' without_vllm=0 only_check=0 upgrading=0 laying_out=0 allowed_signers=''
misuse() { printf 'error: %s\n\n' "$1" >&2 && usage_of "${BASH_SOURCE[0]}" >&2 && exit 2; }
while [ $# -gt 0 ]; do
  case $1 in
    --home) home=${2:-} && shift ;;
    --settings) first_settings=${2:-} && shift ;;
    --without-vllm) without_vllm=1 ;;
    --verify) allowed_signers=${2:-} && shift ;;
    --adopt) configure_options+=(--adopt) ;;
    --check) only_check=1 ;;
    --upgrade) upgrading=1 ;; # said by `gateway upgrade`, which has made a backup
    --help | -h) usage_of "${BASH_SOURCE[0]}" && exit 0 ;;
    *) misuse "unknown option $1" ;;
  esac
  shift
done
[[ $home =~ ^/[A-Za-z0-9._/-]+$ ]] || misuse "--home must be an absolute path without blanks"

# --- steps -------------------------------------------------------------------------------------------------------------

# The settings that count: the installation's own, else those given for the first time.
choose_settings() {
  set_home "$home"
  if [ -z "$first_settings" ]; then
    first_settings=$release_dir/deploy/gateway.env
    [ ! -f "$release_dir/gateway.env" ] || first_settings=$release_dir/gateway.env
  elif [ ! -r "$first_settings" ]; then
    fatal "cannot read $first_settings"
  fi
  settings_shown=$settings_file
  if [ -f "$settings_file" ]; then
    read_settings "$settings_file"
    cmp -s "$first_settings" "$settings_file" || cmp -s "$first_settings" "$release_dir/deploy/gateway.env" ||
      warn "$first_settings is not looked at any more: $settings_file counts since the first run"
  else
    read_settings "$first_settings"
    settings_shown=$first_settings
  fi
  derive
  read_images
}

# Another version goes through `gateway upgrade`: with a backup, and with a way back.
refuse_other_version() {
  local current
  current=$(current_release)
  if [ $upgrading = 1 ] || [ -z "$current" ] || [ ! -f "$state_dir/installed" ] || [ "$current" = "$release_dir" ]; then return; fi
  [ "${current##*/}" != "$(release_name)" ] ||
    return 0
  fatal "$home holds another release: ${current##*/}; this one is $(release_name)" "Upgrade with a backup and a way back:  sudo $home/gateway upgrade $release_dir"
}

check_host() {
  local kb=0
  step "checking the host"
  if have docker && docker version >/dev/null 2>&1; then
    kb=$(images_to_load_kb)
  elif is_bundle; then
    kb=$(du -sk "$release_dir/images" | cut -f 1)
  fi
  preflight "$kb"
}

check_bundle() {
  if ! is_bundle; then
    [[ $release_dir == "$home"/releases/* ]] || info "this is no bundle but a checkout: images must be in Docker already"
    return 0
  fi
  step "verifying the bundle"
  [ -z "$allowed_signers" ] || verify_signature "$release_dir" "$allowed_signers"
  verify_checksums "$release_dir" || fatal "the bundle is damaged; nothing was changed" "Copy it again and compare its SHA-256 with the one beside it on the machine where it was made."
  info "$(wc -l <"$release_dir/SHA256SUMS") files are as they were made"
}

# Settings, files and images in their places.
lay_out() {
  step "laying out $home"
  mkdir -p "$home"
  take_lock
  laying_out=1
  load_images
  install_release
  [ -z "$allowed_signers" ] || write_file "$home/allowed_signers" 644 <"$allowed_signers"
  if [ ! -f "$settings_file" ]; then
    write_file "$settings_file" 644 <"$first_settings"
    info "settings: $settings_file"
  fi
  find_compose
  prepare_files
  make_current
}

start_stack() {
  step "starting the services"
  start_postgresql
  migrate_kong
  start_rest || fatal "not all services are healthy" "After mending the reason above, run the same command again."
}

configure() {
  step "configuring Kong"
  configure_kong
  add_probe
}

prove() {
  step "checking the whole path"
  check_path || fatal "the gateway does not work as it should" "The reason is above. After mending it, run the same command again."
  finish_migrations
}

# Once: an operator who removed that user does not want it back.
first_user() {
  local key command_seconds=60
  first_key=''
  [ ! -f "$state_dir/first-user" ] || return 0
  key=$(users add "${setting[FIRST_USER]}" 2>/dev/null) || key=''
  date -u +%FT%TZ >"$state_dir/first-user"
  first_key=$key
  changed=$((changed + 1))
}

report() {
  local address
  address=${tls_name:-$(hostname -I 2>/dev/null | awk '{ print $1 }')} || address=''
  date -u +%FT%TZ >"$state_dir/installed.new"
  if [ -f "$state_dir/installed" ]; then rm -f "$state_dir/installed.new"; else mv "$state_dir/installed.new" "$state_dir/installed"; fi
  step "done"
  if [ "$changed" = 0 ]; then
    info "nothing to change: release ${release_dir##*/} is installed and works"
  fi
  cat <<LINES
Gateway      $scheme://${address:-THIS-HOST}:${setting[PROXY_PORT]}/v1   (base_url of the OpenAI SDK)
Grafana      $scheme://${address:-THIS-HOST}:${setting[GRAFANA_PORT]}   user admin, password: sudo grep GRAFANA_ADMIN $secrets_file
Settings     $settings_file   then: sudo $home/gateway apply
Commands     sudo $home/gateway help
LINES
  [ "${setting[KONG_MANAGER]}" = off ] || cat <<LINES
Kong Manager http://localhost:${setting[KONG_MANAGER_PORT]}   through a tunnel: ssh -L ${setting[KONG_MANAGER_PORT]}:localhost:${setting[KONG_MANAGER_PORT]} -L ${setting[KONG_ADMIN_PORT]}:localhost:${setting[KONG_ADMIN_PORT]} THIS-HOST
LINES
  ! vllm_takes_anybody || cat <<LINES

vLLM         answers without a key: every account of this host can call it past the gateway. Start it with the key that was made:
             VLLM_API_KEY="\$(sudo cat $(vllm_key_file))" vllm serve MODEL --host 127.0.0.1
LINES
  [ -z "$first_key" ] || cat <<LINES

First user   ${setting[FIRST_USER]}
Key          $first_key   (shown only now)

Try it:      curl $proxy_url/v1/models -H 'Authorization: Bearer $first_key'
LINES
}

# The old release goes back on the data as they are, and gives files back to the users that it knows: nobody may be writing to them.
# It may know no upkeep, and starts its own where it does.
leave_to_old() {
  if [ "$1" = 0 ] || [ $upgrading = 0 ] || [ $laying_out = 0 ]; then return; fi
  [ ${#moved[@]} = 0 ] || stop_services "${moved[@]}"
  remove_upkeep
}

need_root "$@"
trap 'leave_to_old $?' EXIT
choose_settings
refuse_other_version
check_host
check_bundle
[ $only_check = 0 ] || exit 0
lay_out
start_stack
configure
prove
first_user
report
