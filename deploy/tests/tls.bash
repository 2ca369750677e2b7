# shellcheck shell=bash disable=SC2154  # bats sets status and output; the rest is of stack.bash
#
# tls.bash - an installation that gets a certificate, another one, a wrong one, and none again.

# A certificate for gateway.example that signed itself.
new_certificate() {
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 90 -subj /CN=x -addext subjectAltName=DNS:gateway.example \
    -keyout "$WORK/tls.key" -out "$WORK/tls.pem" 2>/dev/null
}

# Whether a port shows the certificate that is there now.
shows_it() {
  [ "$(openssl s_client -connect "127.0.0.1:$1" </dev/null 2>/dev/null | openssl x509 -outform der | sha256sum)" = \
    "$(openssl x509 -in "$WORK/tls.pem" -outform der | sha256sum)" ]
}

# call_tls TEXT - as call, over HTTPS and under the certificate's name.
call_tls() {
  curl -sS -o "$WORK/answer" -w '%{http_code} %{http_version}' --cacert "$WORK/tls.pem" --connect-to "::127.0.0.1:$((PORT + 1))" \
    https://gateway.example/v1/chat/completions -H "Authorization: Bearer $(cat "$WORK/key")" -H 'Content-Type: application/json' \
    -d "{\"model\":\"stub\",\"messages\":[{\"role\":\"user\",\"content\":\"$1\"}]}"
}

get_a_certificate() {
  new_certificate
  printf 'TLS_CERT_FILE=%s\nTLS_KEY_FILE=%s\n' "$WORK/tls.pem" "$WORK/tls.key" >>"$HOME_DIR/gateway.env"
  "$GATEWAY" apply >"$WORK/report"
  grep -q "^Gateway  *https://gateway.example:$((PORT + 1))/v1" "$WORK/report"
  [ "$(call_tls 'a question over HTTPS')" = '200 2' ]
  [ "$(rows_of 'a question over HTTPS')" = 1 ]
  [ "$(call "$(cat "$WORK/key")" 'in clear')" = 400 ]
  shows_it $((PORT + 8))
  "$GATEWAY" doctor | grep -q '^ok  *gateway.certificate .*gateway.example'
  "$GATEWAY" status | grep -q "gateway *https://gateway.example:$((PORT + 1))/v1"
  [ "$(stat -c '%a %u' "$HOME_DIR/secrets/kong-tls/key.pem")" = '400 68110' ]
  [ "$(stat -c '%a %u' "$HOME_DIR/secrets/grafana-tls/key.pem")" = '400 68114' ]
  "$GATEWAY" apply 2>&1 | grep -q 'nothing to change'
}

get_another_certificate() {
  local kong started
  kong=$(container kong)
  started=$(docker inspect --format '{{.State.StartedAt}}' "$kong")
  new_certificate
  no shows_it $((PORT + 1))
  "$GATEWAY" doctor 2>&1 | grep -q 'the gateway has not taken them'
  "$GATEWAY" apply
  shows_it $((PORT + 1))
  shows_it $((PORT + 8))
  [ "$(container kong) $(docker inspect --format '{{.State.StartedAt}}' "$kong")" = "$kong $started" ]
  [ "$(call_tls 'after a renewal')" = '200 2' ]
}

get_a_wrong_certificate() {
  local before
  before=$(containers | sort)
  cp "$WORK/tls.key" "$WORK/right.key"
  openssl ecparam -name prime256v1 -genkey -noout -out "$WORK/tls.key"
  fails 'the key is not that of the certificate' "$GATEWAY" apply
  mv "$WORK/right.key" "$WORK/tls.key"
  [ "$(containers | sort)" = "$before" ]
  shows_it $((PORT + 1))
}

get_no_certificate() {
  sed -i '/^TLS_/d' "$HOME_DIR/gateway.env"
  "$GATEWAY" apply
  [ "$(call "$(cat "$WORK/key")" 'in clear again')" = 200 ]
  [ -z "$(find "$HOME_DIR/secrets" -name '*.pem')" ]
}
