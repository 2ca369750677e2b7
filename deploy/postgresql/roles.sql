-- Roles and databases, made once and safe to run again. psql gets the passwords as variables on standard input, so that they
-- stand in no process list.
--
--   kong           owns the database kong
--   llm_collector  owns the database llm: it migrates its schema, makes a partition a day and drops old ones
--   llm_writer     what `llm-collector serve` may work with instead: it adds rows, and can neither read nor change nor remove what
--                  people wrote (the owner gives it its rights, see collector/src/store/rights.sql)
--   llm_grafana    reads what the dashboards need of llm, see grants.sql
--
-- The superuser postgres cannot log in over TCP at all, see pg_hba.conf.
\set ON_ERROR_STOP on

SELECT format('CREATE ROLE %I LOGIN', role)
FROM unnest(ARRAY['kong', 'llm_collector', 'llm_writer', 'llm_grafana']) AS role
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) \gexec

ALTER ROLE kong PASSWORD :'kong_password';
ALTER ROLE llm_collector PASSWORD :'collector_password';
-- Without a password nobody logs in as llm_writer.
\if :{?writer_password}
ALTER ROLE llm_writer PASSWORD :'writer_password';
\endif
ALTER ROLE llm_grafana PASSWORD :'grafana_password' CONNECTION LIMIT 10;
ALTER ROLE llm_grafana SET default_transaction_read_only = on;
-- A dashboard that somebody opens over ten years must not occupy the disk for an hour.
ALTER ROLE llm_grafana SET statement_timeout = '60s';
-- Compiling takes longer than most of the dashboards' queries, on servers where it is on.
ALTER ROLE llm_grafana SET jit = off;

SELECT format('CREATE DATABASE %I OWNER %I', name, owner)
FROM (VALUES ('kong', 'kong'), ('llm', 'llm_collector')) AS wanted (name, owner)
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = name) \gexec

REVOKE ALL ON DATABASE kong, llm FROM PUBLIC;
GRANT CONNECT ON DATABASE llm TO llm_writer, llm_grafana;
