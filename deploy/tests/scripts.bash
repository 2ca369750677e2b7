# shellcheck shell=bash
#
# What tests of the installation's scripts share: the scripts themselves, read into the test's shell, and a place for them to work in.
# shellcheck disable=SC1091,SC2034,SC2154  # variables of the scripts under test

setup() {
  DEPLOY=$(cd "$BATS_TEST_DIRNAME/.." && pwd)
  release_dir=$(cd "$DEPLOY/.." && pwd)
  WORK=$BATS_TEST_TMPDIR
  for part in common settings tls docker preflight postgresql release stack; do
    # shellcheck source=/dev/null
    . "$DEPLOY/lib/$part.sh"
  done
  set_home "$WORK/home"
  mkdir -p "$WORK/home" "$WORK/bin" "$config_dir"
  settings_shown=$settings_file
  PATH=$WORK/bin:$PATH
}

# settings LINE… - reads a settings file with these lines.
settings() {
  printf '%s\n' "$@" >"$settings_file"
  read_settings "$settings_file"
  derive
}

# fake_docker CASES - a docker that answers by the cases of a shell `case` on its arguments.
fake_docker() {
  printf '#!/bin/bash\ncase "$*" in\n%s\nesac\n' "$1" >"$WORK/bin/docker"
  chmod +x "$WORK/bin/docker"
}

# Fails when the command succeeds; bats does not see a failing `! command`.
no() { if "$@"; then return 1; fi; }

says() { grep -qF -- "$1" <<<"$output" || { printf 'not said: %s\n%s\n' "$1" "$output" && return 1; }; }
