#!/usr/bin/env bash
# Test equipment: does what the official image's entry point does for the variables that deploy/compose.yaml uses. The server
# is PostgreSQL itself, from Debian's packages.
set -euo pipefail

if [ "${1:-}" = postgres ] && [ "${2:-}" != --version ] && [ ! -s "$PGDATA/PG_VERSION" ]; then
  [ -s "${POSTGRES_PASSWORD_FILE:-/nowhere}" ] || { echo "Error: superuser password is not specified" >&2 && exit 1; }
  # The arguments are several words.
  # shellcheck disable=SC2086
  initdb --username="${POSTGRES_USER:-postgres}" --pwfile="$POSTGRES_PASSWORD_FILE" -D "$PGDATA" ${POSTGRES_INITDB_ARGS:-}
  echo "PostgreSQL init process complete; ready for start up."
fi
exec "$@"
