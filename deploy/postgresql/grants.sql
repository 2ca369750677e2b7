-- Rights in the database llm, after its tables are there. Only what is missing is done: a second run does nothing.
--
-- llm_grafana reads what the dashboards need. What it must not do it has no right to, because a session may change its own settings,
-- the read-only transaction and the time limit of roles.sql among them: it can write no table, no temporary one, no large object and
-- no message, and take no lock that others wait for. What runs longer than the limit is ended from outside: see llm_end_long_queries.
-- llm_rejected is not among what it reads: it holds raw entries that nobody has looked at. Partitions are read through their parent.
\set ON_ERROR_STOP on

SELECT 'REVOKE ALL ON SCHEMA public FROM PUBLIC'
FROM pg_namespace, aclexplode(nspacl) AS acl
WHERE nspname = 'public' AND acl.grantee = 0
LIMIT 1 \gexec

-- Functions that everybody may call by default and that leave something behind: large objects, notifications, messages in the
-- write-ahead log, and advisory locks, by which collectors agree who migrates and removes.
SELECT format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', p.oid::regprocedure)
FROM pg_proc p, aclexplode(coalesce(proacl, acldefault('f', proowner))) AS acl
WHERE pronamespace = 'pg_catalog'::regnamespace AND acl.grantee = 0
  AND (proname ~ '^(lo_|pg_advisory_|pg_try_advisory_)'
       OR proname IN ('loread', 'lowrite', 'pg_notify', 'pg_logical_emit_message')) \gexec

SELECT format('GRANT EXECUTE ON FUNCTION %s TO %I', p.oid::regprocedure, rolname)
FROM pg_proc p, pg_database JOIN pg_roles ON pg_roles.oid = datdba
WHERE datname = current_database() AND pronamespace = 'pg_catalog'::regnamespace AND proname ~ '^pg_(try_)?advisory_'
  AND NOT has_function_privilege(rolname, p.oid, 'EXECUTE') \gexec

-- Blocks of code: loops without an end, and a way to whatever else is forgotten here. Functions that are there may still be called.
SELECT 'REVOKE USAGE ON LANGUAGE plpgsql FROM PUBLIC'
FROM pg_language, aclexplode(coalesce(lanacl, acldefault('l', lanowner))) AS acl
WHERE lanname = 'plpgsql' AND acl.grantee = 0
LIMIT 1 \gexec

SELECT format('GRANT USAGE ON LANGUAGE plpgsql TO %I', rolname)
FROM pg_database JOIN pg_roles ON pg_roles.oid = datdba
WHERE datname = current_database() AND NOT has_language_privilege(rolname, 'plpgsql', 'USAGE') \gexec

-- Unlike the time limit this one cannot be lifted by the session. A sort over all rows of a year must not fill the disk.
BEGIN;
-- Roles belong to the server: another database's run may be at it.
LOCK TABLE pg_db_role_setting IN SHARE ROW EXCLUSIVE MODE;
SELECT 'ALTER ROLE llm_grafana SET temp_file_limit = ''4GB'''
WHERE NOT EXISTS (SELECT FROM pg_db_role_setting WHERE setrole = 'llm_grafana'::regrole AND 'temp_file_limit=4GB' = ANY (setconfig)) \gexec
COMMIT;

-- Ends what llm_grafana has been at for too long: PostgreSQL lets every session lift its own time limit. The collector calls it all
-- the time. `longest` leaves the session's limit time to do it more politely.
SELECT $create$
    CREATE OR REPLACE FUNCTION public.llm_end_long_queries(longest interval DEFAULT '90 seconds') RETURNS bigint
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
        SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE usename = 'llm_grafana' AND state <> 'idle' AND xact_start < clock_timestamp() - longest
    $$;
    ALTER FUNCTION public.llm_end_long_queries OWNER TO CURRENT_USER;
    REVOKE EXECUTE ON FUNCTION public.llm_end_long_queries FROM PUBLIC;
$create$
WHERE NOT EXISTS (
    -- A restored one belongs to who restored it, and may end nothing.
    SELECT FROM pg_proc JOIN pg_roles ON pg_roles.oid = proowner
    WHERE pg_proc.oid = to_regprocedure('public.llm_end_long_queries(interval)') AND rolsuper) \gexec

SELECT format('GRANT EXECUTE ON FUNCTION public.llm_end_long_queries TO %I', rolname)
FROM pg_roles
WHERE (rolname = 'llm_writer' OR oid = (SELECT datdba FROM pg_database WHERE datname = current_database())) AND NOT has_function_privilege(rolname, 'public.llm_end_long_queries(interval)', 'EXECUTE') \gexec

SELECT 'GRANT USAGE ON SCHEMA public TO llm_grafana'
WHERE NOT has_schema_privilege('llm_grafana', 'public', 'USAGE') \gexec

SELECT format('GRANT SELECT ON %I TO llm_grafana', relname)
FROM pg_class
WHERE relnamespace = 'public'::regnamespace
  AND relname IN ('llm_logs', 'llm_content', 'llm_usage_hourly', 'llm_usage_daily', 'llm_usage_costs', 'llm_usage_counts', 'llm_usage_day_costs', 'llm_model_prices',
      'llm_partitions', 'llm_searchable', 'llm_sequence_gaps', 'llm_retention_rounds', 'llm_upkeep', 'llm_refused_users')
  AND NOT has_table_privilege('llm_grafana', oid, 'SELECT') \gexec

SELECT 'GRANT EXECUTE ON FUNCTION public.llm_quota_overview() TO llm_grafana'
WHERE to_regprocedure('public.llm_quota_overview()') IS NOT NULL
  AND NOT has_function_privilege('llm_grafana', to_regprocedure('public.llm_quota_overview()'), 'EXECUTE') \gexec
