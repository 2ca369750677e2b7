#!/usr/bin/env bash
# Test equipment: does what the official image's entry point does for the variables that deploy/compose.yaml and
# deploy/demo/compose.yaml use. The server
# is PostgreSQL itself, from Debian's packages.
set -euo pipefail

# As in the official image: root makes the data folder the server's, and becomes its user.
if [ "$(id -u)" = 0 ] && [ "${1:-}" = postgres ]; then
  chown postgres "$PGDATA"
  exec setpriv --reuid=postgres --regid=postgres --clear-groups "${BASH_SOURCE[0]}" "$@"
fi
if [ "${1:-}" = postgres ] && [ "${2:-}" != --version ] && [ ! -s "$PGDATA/PG_VERSION" ]; then
  if [ "${POSTGRES_HOST_AUTH_METHOD:-}" = trust ]; then
    initdb --username="${POSTGRES_USER:-postgres}" --auth=trust -D "$PGDATA"
    exec "$@"
  fi
  [ -s "${POSTGRES_PASSWORD_FILE:-/nowhere}" ] || { echo "Error: superuser password is not specified" >&2 && exit 1; }
  # The arguments are several words.
  # shellcheck disable=SC2086
  initdb --username="${POSTGRES_USER:-postgres}" --pwfile="$POSTGRES_PASSWORD_FILE" -D "$PGDATA" ${POSTGRES_INITDB_ARGS:-}
  echo "PostgreSQL init process complete; ready for start up."
fi
exec "$@"
