-- What Grafana may read, in the database llm. Only what is missing is granted: a second run does nothing.
-- llm_rejected is not among it: it holds raw entries that nobody has looked at. Partitions are read through their parent.
\set ON_ERROR_STOP on

SELECT 'REVOKE ALL ON SCHEMA public FROM PUBLIC'
FROM pg_namespace, aclexplode(nspacl) AS acl
WHERE nspname = 'public' AND acl.grantee = 0
LIMIT 1 \gexec

SELECT 'GRANT USAGE ON SCHEMA public TO llm_grafana'
WHERE NOT has_schema_privilege('llm_grafana', 'public', 'USAGE') \gexec

SELECT format('GRANT SELECT ON %I TO llm_grafana', relname)
FROM pg_class
WHERE relnamespace = 'public'::regnamespace
  AND relname IN ('llm_logs', 'llm_usage_hourly', 'llm_usage_daily', 'llm_usage_costs', 'llm_usage_counts', 'llm_usage_day_costs', 'llm_model_prices',
      'llm_partitions', 'llm_searchable')
  AND NOT has_table_privilege('llm_grafana', oid, 'SELECT') \gexec
