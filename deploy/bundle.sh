#!/usr/bin/env bash
#
# bundle.sh - makes the one file that is carried to the host without internet: images, scripts, plugins, dashboards,
# documentation, checksums and a list of what is in it. Run on the machine with internet; may run again at any time.
#
# Usage: bundle.sh [options]
#   --output DIR        where the bundle goes                     dist
#   --images-from DIR   takes the images from tar files there (docker save) instead of pulling; what is not there and
#                       not the collector is an error. Needs no network
#   --platform P        linux/amd64 or linux/arm64                this machine's
#   --collector FILE    a static llm-collector binary             built with cargo
#   --sign KEY          signs the bundle with this private SSH key (or its public one, with an agent)
#   --compress C        gzip or zstd                              gzip: every host can unpack it
#   --help
#
# Environment:
#   KONG_IMAGE, POSTGRES_IMAGE, PROMETHEUS_IMAGE, GRAFANA_IMAGE   in place of those in deploy/images.txt
#   CARGO_TARGET_DIR, CARGO_FLAGS                                 for the build of the collector
#   SOURCE_DATE_EPOCH   the time that the bundle says it was made; now
#
# Prints the path of the bundle on standard output. Exit status: 0 done; 1 failed; 2 wrong usage.

set -euo pipefail

release_dir=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
# shellcheck source=deploy/lib/common.sh
. "$release_dir/deploy/lib/common.sh"
# shellcheck source=deploy/lib/docker.sh
. "$release_dir/deploy/lib/docker.sh"
# shellcheck source=deploy/lib/release.sh
. "$release_dir/deploy/lib/release.sh"
# shellcheck source=deploy/lib/sbom.sh
. "$release_dir/deploy/lib/sbom.sh"
umask 022

# --- arguments -----------------------------------------------------------------------------------------------------------

output=dist images_from='' platform='' collector='' compress=gzip sign=''
misuse() { printf 'error: %s\n\n' "$1" >&2 && usage_of "${BASH_SOURCE[0]}" >&2 && exit 2; }
while [ $# -gt 0 ]; do
  case $1 in
    --output) output=${2:?} && shift ;;
    --images-from) images_from=${2:?} && shift ;;
    --platform) platform=${2:?} && shift ;;
    --collector) collector=${2:?} && shift ;;
    --sign) sign=${2:?} && shift ;;
    --compress) compress=${2:?} && shift ;;
    --help | -h) usage_of "${BASH_SOURCE[0]}" && exit 0 ;;
    *) misuse "unknown option $1" ;;
  esac
  shift
done
case $(uname -m) in x86_64) own=amd64 ;; aarch64) own=arm64 ;; *) own=$(uname -m) ;; esac
platform=${platform:-linux/$own}
case $platform in linux/amd64 | linux/arm64) ;; *) misuse "--platform must be linux/amd64 or linux/arm64" ;; esac
case $compress in gzip | zstd) ;; *) misuse "--compress must be gzip or zstd" ;; esac
architecture=${platform#linux/}
version=$(release_version)
name=vllm-gateway-$version-linux-$architecture
built=${SOURCE_DATE_EPOCH:-$(date +%s)}

# --- steps ---------------------------------------------------------------------------------------------------------------

prepare() {
  step "making $name"
  [ -z "$images_from" ] || [ -d "$images_from" ] || fatal "there is no folder $images_from"
  if [ -n "$sign" ]; then
    need ssh-keygen openssh-client
    [ -r "$sign" ] || fatal "cannot read the key $sign"
  fi
  [ "$compress" = gzip ] || need zstd zstd
  have docker && docker version >/dev/null 2>&1 || [ -n "$images_from" ] ||
    fatal "Docker is needed to pull images, and its daemon does not answer" "Start it, or give image files with --images-from."
  mkdir -p "$output"
  output=$(readlink -f "$output")
  work=$output/.$name.new
  rm -rf "$work"
  bundle=$work/$name
  mkdir -p "$bundle/images"
  trap 'rm -rf "$work"' EXIT
}

# The list of this bundle: the repository's, with what the environment says otherwise, and the collector's version.
write_image_list() {
  local line role variable
  while IFS= read -r line; do
    if [[ $line =~ ^[^#[:space:]] ]]; then
      role=$(role_of "$line") || exit 1
      variable=${role}_IMAGE
      line=${!variable:-${line/%:VERSION/:$version}}
      image_name[$role]=$line
    fi
    printf '%s\n' "$line"
  done <"$release_dir/deploy/images.txt" >"$work/images.txt"
  check_kong_tag "${image_name[KONG]}"
}

check_kong_tag() {
  local tag=${1##*:}
  [[ $tag =~ ^[0-9]+\.[0-9]+\.[0-9]+ ]] || fatal "$1 has no exact version" "Name a version of the 3.9 line, for instance kong:3.9.5."
  version_at_least "$tag" "$KONG_MINIMUM" || fatal "Kong $tag $KONG_TOO_OLD" "Take $KONG_MINIMUM or newer of the 3.9 line."
}

# --- the collector ---------------------------------------------------------------------------------------------------------

# Static, because the image has no C library. musl where its target is installed; else glibc linked statically, which
# resolves addresses and names of /etc/hosts and DNS by itself (it needs no plug-ins for those since glibc 2.34). Database
# and vLLM are on the loopback address or have an address or a name of that kind.
build_collector() {
  local target machine flags=''
  if [ -z "$collector" ]; then
    case $architecture in amd64) machine=x86_64 ;; arm64) machine=aarch64 ;; esac
    have cargo || fatal "cargo is missing" "Install Rust, or give a static binary with --collector."
    target=$machine-unknown-linux-musl
    if ! [ -d "$(rustc --print sysroot)/lib/rustlib/$target" ]; then
      [ "$architecture" = "$own" ] || fatal "building for $platform needs the Rust target $target" "rustup target add $target"
      target=$machine-unknown-linux-gnu flags='-C target-feature=+crt-static'
    fi
    info "building the collector for $target"
    local commit
    commit=$(git -C "$release_dir" describe --always --dirty --abbrev=12 --exclude '*' 2>/dev/null) || commit=
    # shellcheck disable=SC2086
    (cd "$release_dir" && COLLECTOR_COMMIT=$commit RUSTFLAGS="${RUSTFLAGS:-} $flags" cargo build --release --locked --package llm-collector --target "$target" ${CARGO_FLAGS:-}) >&2 ||
      fatal "the collector does not build" "See the messages above."
    # A relative CARGO_TARGET_DIR is meant from where cargo runs.
    collector=$(cd "$release_dir" && readlink -m "${CARGO_TARGET_DIR:-target}")/$target/release/llm-collector
  fi
  [ -x "$collector" ] || fatal "there is no program $collector"
  [[ $(ldd "$collector" 2>&1) =~ 'statically linked'|'not a dynamic' ]] || fatal "$collector is not static: it would not start in an image without libraries" "Build it for musl, or with  RUSTFLAGS='-C target-feature=+crt-static' and --target."
  mkdir "$work/image"
  cp "$collector" "$work/image/llm-collector"
  # Symbols are a quarter of the file; a panic's message names file and line without them.
  ! have strip || strip "$work/image/llm-collector" 2>/dev/null || true
  cp "$release_dir/LICENSE" "$work/image/"
  info "making the image ${image_name[COLLECTOR]} ($(human_kb "$(du -k "$collector" | cut -f 1)"))"
  local said
  said=$(docker build --quiet --platform "$platform" --file "$release_dir/deploy/Dockerfile.collector" --tag "${image_name[COLLECTOR]}" \
    --build-arg VERSION="$version" --build-arg REVISION="$(git -C "$release_dir" rev-parse HEAD 2>/dev/null || echo unknown)" "$work/image" 2>&1) ||
    fatal "Docker could not make the collector's image" "${said##*$'\n'}"
}

# --- images ----------------------------------------------------------------------------------------------------------------

collect_images() {
  local role
  : >"$bundle/MANIFEST"
  [ -z "$images_from" ] || index_files
  for role in KONG POSTGRES PROMETHEUS GRAFANA COLLECTOR; do collect_image $role; done
}

# Which file holds which image: docker save writes that into manifest.json.
declare -A file_of
index_files() {
  local file tag
  for file in "$images_from"/*.tar; do
    [ -e "$file" ] || fatal "there are no .tar files in $images_from"
    while read -r tag; do file_of[$tag]=$file; done < <(tags_in "$file")
  done
}

tags_in() { tar -xOf "$1" manifest.json 2>/dev/null | grep -oE '"RepoTags":\[[^]]*\]' | grep -oE '"[^"]+:[^"]+"' | tr -d '"' | sed 's/^RepoTags$//' | grep . || true; }

# Adds one image to the bundle and a line to its manifest.
collect_image() {
  local role=$1 image=${image_name[$1]} file digest=-
  file=images/${image##*/}
  file=${file//:/-}.tar
  if [ -n "${file_of[$image]:-}" ]; then
    info "taking $image from ${file_of[$image]}"
    cp --reflink=auto "${file_of[$image]}" "$bundle/$file"
  else
    if [ "$role" = COLLECTOR ]; then build_collector; elif [ -n "$images_from" ]; then
      fatal "no file in $images_from holds $image" "Those there hold: ${!file_of[*]}" "Make it where the image is:  docker save -o $images_from/${file##*/} $image"
    else
      info "pulling $image"
      # Somebody who looks on sees how far it is; a log does not want to.
      local quiet=(--quiet)
      [ ! -t 2 ] || quiet=()
      docker pull "${quiet[@]}" --platform "$platform" "$image" >&2 || fatal "cannot pull $image" "Is there a network, and does the image exist for $platform?"
      digest=$(docker image inspect --format '{{range .RepoDigests}}{{.}}{{"\n"}}{{end}}' "$image" | head -n 1)
    fi
    info "saving $image"
    docker save --output "$bundle/$file" "$image" || fatal "cannot save $image" "Is the disk full?  df -h $output"
  fi
  describe_image "$image" "$bundle/$file" "${digest:--}" "$file" >>"$bundle/MANIFEST"
}

# A line of MANIFEST, from the file alone, so that it is right whoever made it.
describe_image() {
  local image=$1 tar=$2 digest=$3 file=$4 config layers
  config=$(tar -xOf "$tar" manifest.json | grep -oE '"Config":"[^"]+"' | head -n 1 | cut -d '"' -f 4)
  [ -n "$config" ] || fatal "$tar is no file that docker save wrote"
  layers=$(tar -xOf "$tar" "$config" | grep -oE '"diff_ids": *\[[^]]*\]' | grep -oE 'sha256:[0-9a-f]{64}' | short_digest)
  check_image_architecture "$image" "$(tar -xOf "$tar" "$config" | grep -oE '"architecture": *"[^"]+"' | head -n 1 | cut -d '"' -f 4)"
  config=${config##*/}
  printf '%s %s %s %s %s\n' "$image" "sha256:${config%.json}" "$digest" "$layers" "$file"
}

check_image_architecture() {
  [ -z "$2" ] || [ "$2" = "$architecture" ] || fatal "$1 is for $2, the bundle for $architecture" "Pull it for the right one:  docker pull --platform $platform $1"
}

# --- everything else ---------------------------------------------------------------------------------------------------------

copy_files() {
  info "copying scripts, plugins, dashboards, documentation"
  cp -R "$release_dir/deploy" "$release_dir/kong-plugins" "$bundle/"
  rm -rf "$bundle/deploy/tests" "$bundle/deploy/demo" "$bundle/deploy/prometheus/tests" "$bundle/kong-plugins/spec"
  mkdir -p "$bundle/grafana"
  [ ! -d "$release_dir/grafana" ] || cp -R "$release_dir/grafana/." "$bundle/grafana/"
  rm -rf "$bundle/grafana/tests"
  local part
  for part in README.md README.zh-CN.md LICENSE docs; do
    [ ! -e "$release_dir/$part" ] || cp -R "$release_dir/$part" "$bundle/"
  done
  cp "$work/images.txt" "$bundle/deploy/images.txt"
  # The copy that is meant to be edited before the first installation, hence without a checksum.
  cp "$release_dir/deploy/gateway.env" "$bundle/gateway.env"
  ln -s deploy/install.sh "$bundle/install.sh"
  echo "$version" >"$bundle/VERSION"
  echo "$architecture" >"$bundle/ARCHITECTURE"
  echo "$built" >"$bundle/BUILT"
  write_sbom >"$bundle/sbom.spdx.json"
}

seal() {
  info "computing checksums"
  (cd "$bundle" && find . -type f ! -path ./gateway.env ! -path ./SHA256SUMS -printf '%P\0' | sort -z | xargs -0 sha256sum >SHA256SUMS)
  sign_file "$bundle/SHA256SUMS"
}

# sign_file FILE - its signature, beside it, when a key was given.
sign_file() {
  [ -z "$sign" ] || ssh-keygen -Y sign -q -f "$sign" -n "$SIGNED_AS" "$1" >&2 </dev/null || fatal "ssh-keygen could not sign with $sign"
}

pack() {
  local file=$output/$name.tar
  case $compress in gzip) file+=.gz ;; zstd) file+=.zst ;; esac
  info "packing $(human_kb "$(du -sk "$bundle" | cut -f 1)")"
  # Same content, same bytes: order, owners and times are fixed.
  tar -C "$work" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$built" -c "$name" | compressor >"$file.new" ||
    fatal "cannot write $file" "Is the disk full?  df -h $output"
  mv "$file.new" "$file"
  rm -f "$file.sha256.sig"
  (cd "$output" && sha256sum "${file##*/}" >"$file.sha256")
  sign_file "$file.sha256"
  step "$file ($(human_kb "$(du -k "$file" | cut -f 1)")), its SHA-256 is beside it"
  cat >&2 <<LINES
   Carry both to the host and there:
     sha256sum -c ${file##*/}.sha256
     tar -xf ${file##*/}
     cd $name
     nano gateway.env            # where vLLM listens, ports, limits
     sudo ./install.sh
LINES
  echo "$file"
}

compressor() {
  case $compress in
    zstd) zstd -q -T0 -6 ;;
    gzip) if have pigz; then pigz -n -6; else gzip -n -6; fi ;;
  esac
}

prepare
write_image_list
collect_images
copy_files
seal
pack
