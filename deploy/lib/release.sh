# shellcheck shell=bash disable=SC2034,SC2154  # variables are shared with the files beside this one
#
# release.sh - what a bundle brings: its checksums, its images, its files. Sourced, never run.
#
#   MANIFEST     one line an image: name, id, digest in the registry, digest of its layers, file
#   SHA256SUMS   of every file but gateway.env, which is there to be edited
#   VERSION, ARCHITECTURE, BUILT (seconds since 1970)

is_bundle() { [ -f "$release_dir/MANIFEST" ] && [ -d "$release_dir/images" ]; }

# Status 1, with the names of the damaged files, when a file is not as it was when the bundle was made.
verify_checksums() {
  local damaged
  damaged=$(cd "$release_dir" && sha256sum --check --quiet --strict SHA256SUMS 2>&1) && return 0
  warn "these files of the bundle are damaged or missing:"
  grep -E ': FAILED' <<<"$damaged" | sed 's/^/         /' | head -n 20 >&2 || true
  return 1
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
    for part in deploy kong-plugins grafana README.md README.zh-CN.md LICENSE MANIFEST VERSION ARCHITECTURE BUILT sbom.spdx.json; do
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
}

# The whole tree is given away only when its top is somebody else's: it may hold millions of files.
own_folder() {
  mkdir -p "$1"
  if [ "$(stat -c %u:%g "$1")" != "$2" ]; then
    chown -R "$2" "$1"
    changed=$((changed + 1))
  fi
  chmod 700 "$1"
}
