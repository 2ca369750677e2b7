# shellcheck shell=bash disable=SC2034,SC2154  # variables are shared with the files beside this one
#
# postgresql.sh - databases and roles, backup and restore of databases. Sourced, never run.
#
# Everything runs inside PostgreSQL's own container as its superuser over the local socket: no password, and no client
# needed on the host.

# psql as superuser; SQL on standard input. More arguments go to psql.
psql_in() {
  local database=$1 id
  shift
  id=$(container_of postgresql)
  [ -n "$id" ] || fatal "PostgreSQL is not running" "Start it:  $(this_gateway) up"
  docker exec -i "$id" psql -X -q -v ON_ERROR_STOP=1 -U postgres -d "$database" "$@"
}

# A single value.
query() { psql_in "$1" -At <<<"$2"; }

# Whether role can log in to its database with password. The password goes through standard input.
password_works() {
  local role=$1 database=$2 password=$3 id
  id=$(container_of postgresql)
  # shellcheck disable=SC2016
  printf '%s\n' "$password" | docker exec -i "$id" bash -c 'IFS= read -r PGPASSWORD; export PGPASSWORD
    exec psql -X -q -h 127.0.0.1 -U "$1" -d "$2" -c "SELECT 1"' - "$role" "$database" >/dev/null 2>&1
}

# Roles, passwords and databases as they must be; touched only when something does not work.
prepare_databases() {
  if password_works kong kong "${secret[KONG_DATABASE_PASSWORD]}" &&
    password_works llm_collector llm "${secret[COLLECTOR_DATABASE_PASSWORD]}" &&
    password_works llm_grafana llm "${secret[GRAFANA_DATABASE_PASSWORD]}"; then
    return 0
  fi
  {
    printf "\\\\set kong_password '%s'\n" "${secret[KONG_DATABASE_PASSWORD]}"
    printf "\\\\set collector_password '%s'\n" "${secret[COLLECTOR_DATABASE_PASSWORD]}"
    printf "\\\\set grafana_password '%s'\n" "${secret[GRAFANA_DATABASE_PASSWORD]}"
    cat "$release_dir/deploy/postgresql/roles.sql"
  } | psql_in postgres >/dev/null || fatal "could not make roles and databases" "See the message above."
  changed=$((changed + 1))
  info "made or mended roles and databases"
}

# Grafana's rights on tables that the collector has made by now.
grant_rights() {
  local _
  # The collector is healthy as soon as it listens; its tables may take a moment more.
  for _ in $(seq 60); do
    [ "$(query llm "SELECT to_regclass('llm_logs') IS NOT NULL")" != t ] || break
    sleep 0.5
  done
  psql_in llm >/dev/null <"$release_dir/deploy/postgresql/grants.sql" || fatal "could not give Grafana its rights in the database llm" "See the message above."
}

# --- backup and restore ----------------------------------------------------------------------------------------------

# dump_database NAME FILE - one consistent snapshot, compressed. Roles are not in it: the installation makes them.
dump_database() {
  local id
  id=$(container_of postgresql)
  docker exec "$id" pg_dump -U postgres -d "$1" --format=custom --compress=5 --no-owner --no-privileges >"$2" ||
    fatal "could not dump the database $1" "See the message above. Is the disk full?  df -h $(dirname "$2")"
}

# load_database NAME OWNER FILE - into a new database beside the old one; the old one stays until switch_database.
load_database() {
  local name=$1 owner=$2 file=$3 id
  id=$(container_of postgresql)
  psql_in postgres >/dev/null <<SQL || fatal "could not make the database ${name}_restored" "See the message above."
DROP DATABASE IF EXISTS "${name}_restored";
CREATE DATABASE "${name}_restored" OWNER "$owner";
REVOKE ALL ON DATABASE "${name}_restored" FROM PUBLIC;
SQL
  docker exec -i "$id" pg_restore -U postgres -d "${name}_restored" --no-owner --no-privileges --role="$owner" --exit-on-error <"$file" ||
    fatal "could not restore the database $name from $file" "See the message above. The database that was there is untouched."
}

# Puts the restored database in the place of the one that was there. Nobody may be connected: services are stopped.
switch_database() {
  psql_in postgres >/dev/null <<SQL || fatal "could not put the restored database $1 in place" "Both are there: $1 and $1_restored."
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname IN ('$1', '$1_restored') AND pid <> pg_backend_pid();
DROP DATABASE IF EXISTS "$1_before_restore";
ALTER DATABASE "$1" RENAME TO "$1_before_restore";
ALTER DATABASE "$1_restored" RENAME TO "$1";
SQL
}

switch_database_back() {
  psql_in postgres >/dev/null <<SQL
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname IN ('$1', '$1_before_restore') AND pid <> pg_backend_pid();
ALTER DATABASE "$1" RENAME TO "$1_restored";
ALTER DATABASE "$1_before_restore" RENAME TO "$1";
SQL
}

drop_database() { psql_in postgres >/dev/null <<<"DROP DATABASE IF EXISTS \"$1\";"; }
