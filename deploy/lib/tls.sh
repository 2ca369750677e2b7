# shellcheck shell=bash disable=SC2034,SC2154  # variables are shared with the files beside this one
#
# tls.sh - HTTPS at the front door and at Grafana: the certificate and its key are looked at before anything takes them, copied to
# where the containers may read them, and taken by Kong without an end of what is under way. Sourced, never run.
#
# state/tls says of the files that were found usable last: `files DIGEST`, `name HOST` as users call it, `sha256 …`, `ends …`.

uses_tls() { [ -n "${setting[TLS_CERT_FILE]}" ]; }

# accepted WORD - the value of a line of state/tls, or nothing before a certificate was taken.
accepted() { [ ! -e "$state_dir/tls" ] || sed -n "s/^$1 //p" "$state_dir/tls" | head -n 1; }

# Sets what follows from the certificate for addresses: users call it by its name, this host itself reaches it at another one.
derive_tls() {
  scheme=http tls_name='' tls_sha256='' tls_curl=()
  uses_tls || return 0
  scheme=https tls_name=$(accepted name) tls_sha256=$(accepted sha256)
  # Believed is this very certificate, whoever signed it, and under its own name.
  tls_curl=(--cacert "$secrets_dir/kong-tls/certificate.pem"
    --connect-to "$tls_name:${setting[PROXY_PORT]}:$(own_address "${setting[PROXY_ADDRESS]}"):${setting[PROXY_PORT]}")
}

# Digest of the certificate and the key as they are now, or nothing without TLS.
tls_digest() { ! uses_tls || secret_digest "$(cat "${setting[TLS_CERT_FILE]}" "${setting[TLS_KEY_FILE]}" 2>/dev/null)"; }

# Prints what is wrong with the files themselves, and how to mend it.
tls_file_problem() {
  local file
  for file in "${setting[TLS_CERT_FILE]}" "${setting[TLS_KEY_FILE]}"; do
    if [ ! -f "$file" ] || [ ! -r "$file" ]; then
      echo "cannot read $file, which $settings_shown names"
      return
    fi
  done
  # A link may be open to all, and may lead to a file that is not.
  [ $((8#$(stat -Lc %a "$file") & 7)) = 0 ] || echo "every account of this host may read the key $file; mend it:  chmod o= $file"
}

# What the collector's image says of the certificate and the key, which it reads from standard input: the image can be sent away
# without a network, and no container gets to see the operator's folders. Status 1 when they cannot be used.
look_into_certificate() {
  (cat "${setting[TLS_CERT_FILE]}" && echo && cat "${setting[TLS_KEY_FILE]}") |
    timeout 60 docker run --rm -i --network none --cap-drop ALL --read-only --log-driver none --user "$(own_user COLLECTOR)" \
      "${image_name[COLLECTOR]}" certificate 2>&1
}

# Prints what is wrong with them, and nothing when all is well, or cannot be known yet because the image is not there.
tls_problem() {
  local problem
  problem=$(tls_file_problem)
  if [ -z "$problem" ] && have docker && docker image inspect "${image_name[COLLECTOR]}" >/dev/null 2>&1; then
    problem=$(look_into_certificate) && problem='' || problem=$(sed -n 's/^error: //p' <<<"$problem" | grep . || echo "$problem")
  fi
  printf '%s' "$problem"
}

# Takes the certificate that is there now, if it is another one than before. One that was taken and has ended since then is no reason
# not to start; `gateway apply` looks anew in any case, before it changes anything.
accept_certificate() {
  local problem said name
  uses_tls || return 0
  problem=$(tls_file_problem)
  [ -z "$problem" ] || fatal "$problem"
  if [ "$(accepted files)" != "$(tls_digest)" ]; then
    said=$(look_into_certificate) ||
      fatal "the certificate ${setting[TLS_CERT_FILE]} cannot be used with the key ${setting[TLS_KEY_FILE]}; nothing was changed" \
        "${said#error: }"
    name=$(host_of_certificate "$said")
    { echo "files $(tls_digest)" && echo "name $name" && grep -E '^(sha256|ends) ' <<<"$said"; } | write_file "$state_dir/tls" 600
    while IFS= read -r problem; do warn "$problem"; done < <(sed -n 's/^warning: //p' <<<"$said")
    info "the certificate is that of $name until $(accepted ends)"
  fi
  derive
}

# host_of_certificate LINES - one of the names, by which a call can be made: a host's rather than a domain's rather than an address.
host_of_certificate() {
  local names name
  names=$(sed -n 's/^name //p' <<<"$1")
  name=$(grep -v '[*:]' <<<"$names" | grep -m 1 '[A-Za-z]') || name=$(sed -n 's/^\*\./gateway./p' <<<"$names" | head -n 1)
  [ -n "$name" ] || name=$(grep -m 1 -v : <<<"$names") || name=[$(head -n 1 <<<"$names")]
  echo "$name"
}

# Copies for the users of the two containers, in folders: a container sees a new file there, where it would go on seeing the old one
# that was mounted itself.
write_tls_files() {
  local role folder
  for role in KONG GRAFANA; do
    folder=$secrets_dir/${role,,}-tls
    mkdir -p "$folder"
    if uses_tls; then
      write_file "$folder/certificate.pem" 400 "${image_user[$role]}" <"${setting[TLS_CERT_FILE]}"
      write_file "$folder/key.pem" 400 "${image_user[$role]}" <"${setting[TLS_KEY_FILE]}"
    else
      rm -f "$folder/certificate.pem" "$folder/key.pem"
    fi
    chown "${image_user[$role]}" "$folder"
    chmod 500 "$folder"
  done
}

# Kong reads its certificate when it starts, and when it is told to look again: its workers then let calls end that are under way.
# Grafana is made anew instead (GRAFANA_DIGEST).
give_kong_certificate() {
  local id now
  uses_tls || return 0
  id=$(container_of kong)
  [ -n "$id" ] || return 0
  now="$(tls_digest) $id $(docker inspect --format '{{.State.StartedAt}}' "$id")"
  # What is younger than the file has read it.
  if [ -e "$state_dir/tls-kong" ] && [ "$(cut -d ' ' -f 2- "$state_dir/tls-kong")" = "${now#* }" ] && [ "$(<"$state_dir/tls-kong")" != "$now" ]; then
    info "Kong takes the new certificate"
    docker kill --signal HUP "$id" >/dev/null
    changed=$((changed + 1))
  fi
  printf '%s\n' "$now" >"$state_dir/tls-kong"
}
