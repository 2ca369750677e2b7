#!/usr/bin/env bash
# Test equipment, not Kong. As in the official image, a property may be given as a file: KONG_PG_PASSWORD_FILE.
set -euo pipefail

if [ -n "${KONG_PG_PASSWORD_FILE:-}" ]; then
  KONG_PG_PASSWORD=$(<"$KONG_PG_PASSWORD_FILE")
  export KONG_PG_PASSWORD
  unset KONG_PG_PASSWORD_FILE
fi
exec "$@"
