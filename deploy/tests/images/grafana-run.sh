#!/usr/bin/env bash
# Test equipment, not Grafana: answers /api/health, keeps a file in its data folder, and logs in to the data source with the
# password it was given, so that a wrong one shows: in its log, and in the health of the data source, for which the
# administrator may ask.
set -euo pipefail

say() { printf '%s [test equipment, not Grafana] %s\n' "$(date -u +%FT%TZ)" "$*"; }
say "stand-in for Grafana: no dashboards here"
secret() { if [ -n "$1" ]; then cat "$1"; else echo "$2"; fi; }
password=$(secret "${GF_SECURITY_ADMIN_PASSWORD__FILE:-}" admin)
[ -n "$password" ] || { say "no admin password" && exit 1; }
[ -w "$GF_PATHS_DATA" ] || { say "GF_PATHS_DATA is not writable" && exit 1; }
# What is in the database was encrypted with one key, and can be read with that one only.
key=$(secret "${GF_SECURITY_SECRET_KEY__FILE:-}" default | sha256sum)
[ -e "$GF_PATHS_DATA/grafana.db" ] || echo "$key" >"$GF_PATHS_DATA/grafana.db"
[ "$(<"$GF_PATHS_DATA/grafana.db")" = "$key" ] || { say "cipher: message authentication failed" && exit 1; }
mkdir -p /tmp/nginx
sources=/tmp/nginx/api/datasources
mkdir -p "$sources/uid/postgresql"
echo '[{"uid":"postgresql","name":"PostgreSQL","type":"postgres"}]' >"$sources/list"
echo '{"status":"ERROR","message":"not tried yet"}' >"$sources/uid/postgresql/health"
administrator=$(printf 'admin:%s' "$password" | base64 -w 0)
tls=''
[ "${GF_SERVER_PROTOCOL:-http}" != https ] || tls=" ssl; ssl_certificate $GF_SERVER_CERT_FILE; ssl_certificate_key $GF_SERVER_CERT_KEY"
{
  echo "daemon off; pid /tmp/nginx/pid; error_log /dev/stderr warn; events {}"
  echo "http { access_log off; client_body_temp_path /tmp/nginx; proxy_temp_path /tmp/nginx; fastcgi_temp_path /tmp/nginx;"
  echo "uwsgi_temp_path /tmp/nginx; scgi_temp_path /tmp/nginx;"
  echo "server { listen ${GF_SERVER_HTTP_ADDR:-0.0.0.0}:${GF_SERVER_HTTP_PORT:-3000}$tls; location = /api/health { return 200 '{\"database\":\"ok\"}'; }"
  echo "location /api/ { if (\$http_authorization != 'Basic $administrator') { return 401; } root /tmp/nginx; default_type application/json; }"
  echo "location = /api/datasources { if (\$http_authorization != 'Basic $administrator') { return 401; } alias $sources/list; default_type application/json; }"
  echo "location / { return 200 'test equipment, not Grafana'; } } }"
} >/tmp/nginx/conf
PGPASSWORD=$(</run/secrets/grafana-database-password)
export PGPASSWORD
(
  for _ in 1 2 3 4 5 6 7 8 9 10; do
    rows=$(psql -X -At -h "${GATEWAY_POSTGRES%:*}" -p "${GATEWAY_POSTGRES##*:}" -U llm_grafana -d llm -c 'SELECT count(*) FROM llm_logs' 2>&1) &&
      echo '{"status":"OK","message":"Database Connection OK"}' >"$sources/uid/postgresql/health" && break
    sleep 2
  done
  say "data source: $rows rows"
) &
exec nginx -e /dev/stderr -c /tmp/nginx/conf
