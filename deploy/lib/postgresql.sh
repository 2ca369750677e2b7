# shellcheck shell=bash disable=SC2034,SC2154  # variables are shared with the files beside this one
#
# postgresql.sh - databases and roles, backup and restore of databases. Sourced, never run.
#
# Everything runs inside PostgreSQL's own container as its superuser over the local socket: no password, and no client
# needed on the host.

# psql as superuser; SQL on standard input. More arguments go to psql. It has an end: query_seconds, or a quarter of an hour, in which
# hundreds of millions of rows are counted. Only dumps take as long as they take.
psql_in() {
  local database=$1 id
  shift
  id=$(container_of postgresql)
  [ -n "$id" ] || fatal "PostgreSQL is not running" "Start it:  $(this_gateway) up"
  timeout "${query_seconds:-900}" docker exec -i "$id" psql -X -q -v ON_ERROR_STOP=1 -U postgres -d "$database" "$@"
}

# A single value.
query() { psql_in "$1" -At <<<"$2"; }

# Whether role can log in to its database with password. The password goes through standard input.
password_works() {
  local role=$1 database=$2 password=$3 id
  id=$(container_of postgresql)
  # shellcheck disable=SC2016
  printf '%s\n' "$password" | timeout 60 docker exec -i "$id" bash -c 'IFS= read -r PGPASSWORD; export PGPASSWORD
    exec psql -X -q -h 127.0.0.1 -U "$1" -d "$2" -c "SELECT 1"' - "$role" "$database" >/dev/null 2>&1
}

# Roles, passwords and databases as they must be; touched only when something does not work.
prepare_databases() {
  if password_works kong kong "${secret[KONG_DATABASE_PASSWORD]}" &&
    password_works llm_collector llm "${secret[COLLECTOR_DATABASE_PASSWORD]}" &&
    password_works llm_writer llm "${secret[WRITER_DATABASE_PASSWORD]}" &&
    password_works llm_grafana llm "${secret[GRAFANA_DATABASE_PASSWORD]}"; then
    return 0
  fi
  {
    printf "\\\\set kong_password '%s'\n" "${secret[KONG_DATABASE_PASSWORD]}"
    printf "\\\\set collector_password '%s'\n" "${secret[COLLECTOR_DATABASE_PASSWORD]}"
    printf "\\\\set writer_password '%s'\n" "${secret[WRITER_DATABASE_PASSWORD]}"
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

# load_database NAME OWNER FILE - into a new database beside the old one; the old one stays until swap_databases.
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

# swap_databases SUFFIX_OF_NEW SUFFIX_OF_OLD DATABASE… - puts DATABASE_SUFFIX_OF_NEW in the place of each DATABASE, which becomes
# DATABASE_SUFFIX_OF_OLD. All of them or none, whatever ends this: renaming is part of a transaction. Nobody may be connected:
# services are stopped.
swap_databases() {
  local new=$1 old=$2 name
  shift 2
  for name in "$@"; do drop_database "${name}_$old"; done
  {
    echo "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
    printf "AND (datname ~ '^(%s)(_%s)?\$');\n" "$(tr ' ' '|' <<<"$*")" "$new"
    echo "BEGIN;"
    for name in "$@"; do
      printf 'ALTER DATABASE "%s" RENAME TO "%s_%s";\n' "$name" "$name" "$old"
      printf 'ALTER DATABASE "%s_%s" RENAME TO "%s";\n' "$name" "$new" "$name"
    done
    echo "COMMIT;"
  } | psql_in postgres >/dev/null || fatal "could not put the databases $* in place" "Nothing was changed. Is somebody connected to them?"
}

has_database() { [ "$(query postgres "SELECT count(*) FROM pg_database WHERE datname = '$1'")" = 1 ]; }

drop_database() { psql_in postgres >/dev/null <<<"DROP DATABASE IF EXISTS \"$1\";"; }
