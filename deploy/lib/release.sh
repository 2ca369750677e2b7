# shellcheck shell=bash disable=SC2034,SC2154  # variables are shared with the files beside this one
#
# release.sh - what a bundle brings: its checksums, its images, its files. Sourced, never run.
#
#   MANIFEST     one line an image: name, id, digest in the registry, digest of its layers, file
#   SHA256SUMS   of every file but gateway.env, which is there to be edited
#   VERSION, ARCHITECTURE, BUILT (seconds since 1970)

is_bundle() { [ -f "$release_dir/MANIFEST" ] && [ -d "$release_dir/images" ]; }

# verify_checksums FOLDER - status 1, with the names of the damaged files, when a file is not as it was when the bundle was made.
verify_checksums() {
  local damaged
  damaged=$(cd "$1" && sha256sum --check --quiet --strict SHA256SUMS 2>&1) && return 0
  warn "these files of the bundle are damaged or missing:"
  grep -E ': FAILED' <<<"$damaged" | sed 's/^/         /' | head -n 20 >&2 || true
  return 1
}

# What a signature of this project is for: one that was made for another purpose does not count.
SIGNED_AS=vllm-gateway-bundle

# verify_signature FOLDER ALLOWED_SIGNERS - fatal unless the bundle was signed by somebody of that file, and holds nothing but what was signed.
verify_signature() {
  local folder=$1 allowed=$2 who unsigned
  need ssh-keygen openssh-client
  [ -r "$allowed" ] || fatal "cannot read $allowed"
  [ -f "$folder/SHA256SUMS.sig" ] || fatal "the bundle is not signed; nothing was changed" "Make it with:  deploy/bundle.sh --sign KEY"
  who=$(ssh-keygen -Y find-principals -s "$folder/SHA256SUMS.sig" -f "$allowed" 2>/dev/null | head -n 1) || who=''
  if [ -z "$who" ] ||
    ! ssh-keygen -Y verify -f "$allowed" -I "$who" -n "$SIGNED_AS" -s "$folder/SHA256SUMS.sig" <"$folder/SHA256SUMS" >/dev/null 2>&1; then
    fatal "the bundle's signature is by nobody in $allowed, or for something else; nothing was changed"
  fi
  unsigned=$(cd "$folder" && comm -13 <(cut -c 67- SHA256SUMS | sort) \
    <(find . -mindepth 1 ! -type d ! -path ./gateway.env ! -path ./SHA256SUMS ! -path ./SHA256SUMS.sig ! -path ./install.sh -printf '%P\n' | sort))
  [ -z "$unsigned" ] || fatal "the bundle holds files that were not signed; nothing was changed" "${unsigned//$'\n'/, }"
  [ "$(readlink "$folder/install.sh")" = deploy/install.sh ] || fatal "install.sh of the bundle is not the one that was signed; nothing was changed"
  verify_checksums "$folder" || fatal "the bundle is damaged; nothing was changed"
  info "signed by $who"
}

# Kilobytes of the image files that Docker does not have yet.
images_to_load_kb() {
  local name id digest layers file kb=0
  is_bundle || { echo 0 && return; }
  while read -r name id digest layers file; do
    has_image "$name" "$id" "$layers" || kb=$((kb + $(du -k "$release_dir/$file" | cut -f 1)))
  done <"$release_dir/MANIFEST"
  echo "$kb"
}

# The layers of an image are the same in every kind of image store, its id is not.
layers_of() { docker image inspect --format '{{range .RootFS.Layers}}{{.}} {{end}}' "$1" 2>/dev/null | tr -s ' ' '\n' | grep . | short_digest; }

has_image() {
  local have
  have=$(docker image inspect --format '{{.Id}}' "$1" 2>/dev/null) || return 1
  [ "$have" = "$2" ] || [ "$(layers_of "$1")" = "$3" ]
}

load_images() {
  local name id digest layers file output
  is_bundle || return 0
  while read -r name id digest layers file; do
    if has_image "$name" "$id" "$layers"; then continue; fi
    info "loading $name ($(human_kb "$(du -k "$release_dir/$file" | cut -f 1)"))"
    output=$(docker load -q -i "$release_dir/$file" 2>&1) ||
      fatal "Docker could not load $file: ${output##*$'\n'}" "Is its disk full?  df -h $(docker info --format '{{.DockerRootDir}}')" "After mending it, run the same command again: what is loaded stays."
    has_image "$name" "$id" "$layers" ||
      fatal "the image $name is not the one that the bundle was made with" "Expected $id, got $(docker image inspect --format '{{.Id}}' "$name" 2>/dev/null || echo none)."
    changed=$((changed + 1))
  done <"$release_dir/MANIFEST"
}

release_version() {
  if [ -f "$release_dir/VERSION" ]; then cat "$release_dir/VERSION"; else
    sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$release_dir/Cargo.toml"
  fi
}

# The name of a release: its version and a digest of its files, so that two bundles of one version can live side by side.
release_name() {
  local digest
  digest=$(digest_of "$release_dir/deploy" "$release_dir/kong-plugins" "$release_dir/grafana" "$release_dir/MANIFEST" | cut -c 1-8)
  echo "$(release_version)-$digest"
}

# Copies the release below the installation's home, without images, and makes release_dir the copy.
install_release() {
  local target part
  [[ $release_dir != "$home"/releases/* ]] || return 0
  target=$home/releases/$(release_name)
  if [ ! -d "$target" ]; then
    rm -rf "$target.new"
    mkdir -p "$target.new"
    for part in deploy kong-plugins grafana docs README.md README.zh-CN.md LICENSE MANIFEST VERSION ARCHITECTURE BUILT sbom.spdx.json; do
      [ ! -e "$release_dir/$part" ] || cp -R "$release_dir/$part" "$target.new/" ||
        fatal "cannot copy $part to $target.new" "Is the disk full?  df -h $home"
    done
    [ -f "$target.new/VERSION" ] || release_version >"$target.new/VERSION"
    # The images of a checkout's list have no version yet.
    sed -i "s/:VERSION$/:$(<"$target.new/VERSION")/" "$target.new/deploy/images.txt"
    # Containers read these with users of their own; nothing secret is among them.
    chmod -R u=rwX,go=rX "$target.new"
    mv "$target.new" "$target"
    changed=$((changed + 1))
    info "copied release ${target##*/} to $home"
  fi
  release_dir=$target
}

current_release() { readlink -f "$home/current" 2>/dev/null || true; }

# From here on gateway commands use this release.
make_current() {
  [ "$(current_release)" != "$release_dir" ] || return 0
  ln -sfn "releases/${release_dir##*/}" "$home/current.new"
  mv -T "$home/current.new" "$home/current"
  ln -sfn current/deploy/gateway "$home/gateway"
  changed=$((changed + 1))
}

# Data folders, each for the user of its container.
make_folders() {
  local pair
  mkdir -p "$data_dir" "$backup_dir" "$state_dir"
  chmod 755 "$home" "$data_dir"
  chmod 700 "$backup_dir" "$state_dir"
  for pair in postgresql:POSTGRES collector:COLLECTOR prometheus:PROMETHEUS grafana:GRAFANA; do
    own_folder "$data_dir/${pair%:*}" "${image_user[${pair#*:}]}"
  done
  # Whoever reads the files may be given the right to: a folder that has some stays as it is.
  mkdir -p "$feed_dir"
  if [ -z "$(ls -A "$feed_dir")" ]; then
    chown "${image_user[COLLECTOR]}" "$feed_dir"
    chmod 700 "$feed_dir"
  fi
}

# Services whose files this run gave to another user.
moved=()

# own_folder FOLDER USER - the whole tree is given away only when its top is somebody else's: it may hold millions of files. chown
# changes the top last, so that a run which was cut off is made up for.
own_folder() {
  local service=${1##*/}
  mkdir -p "$1"
  if [ "$(stat -c %u:%g "$1")" != "$2" ]; then
    if [ -n "$(ls -A "$1")" ]; then
      info "the files of $service become those of user ${2%:*}"
      stop_services "$service"
      moved+=("$service")
    fi
    chown -R "$2" "$1"
    changed=$((changed + 1))
  fi
  chmod 700 "$1"
}
