-- Retention: taking content out of old days, dropping older ones. `llm-collector serve` and `llm-collector retention` call this under
-- the advisory lock ('llm_logs', 'retention'), one collector at a time; what they call and when is in store/retention.rs.
--
-- Content is prompt, response, reasoning, tool_calls and the two bodies in raw_log. A day loses it by being written anew without it:
-- deleting text from rows would leave the files as large as they were. No step locks llm_logs for longer than it takes to swap two
-- tables, and every wait for a lock is short (lock_timeout of the caller) and tried again, so that inserts never queue up.
-- DETACH CONCURRENTLY would lock even less, but PostgreSQL refuses it while there is a default partition.

-- An entry without the bodies of request and response. #- refuses arrays, and a hostile entry may have one there.
CREATE FUNCTION llm_without_bodies(raw_log jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN jsonb_typeof(raw_log) <> 'object' THEN raw_log
        WHEN raw_log @> '{"request":[]}' AND raw_log @> '{"response":[]}' THEN raw_log
        WHEN raw_log @> '{"request":[]}' THEN raw_log #- '{response,body}'
        WHEN raw_log @> '{"response":[]}' THEN raw_log #- '{request,body}'
        ELSE (raw_log #- '{request,body}') #- '{response,body}'
    END
$$;

-- Whether a row still has content.
CREATE FUNCTION llm_has_content(prompt text, response text, reasoning text, tool_calls jsonb, raw_log jsonb) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT prompt IS NOT NULL OR response IS NOT NULL OR reasoning IS NOT NULL OR tool_calls IS NOT NULL
        OR raw_log #> '{request,body}' IS NOT NULL OR raw_log #> '{response,body}' IS NOT NULL
$$;

-- Which rows of the default partition still have content, so that looking for them does not read all of it.
CREATE INDEX llm_logs_default_content ON llm_logs_default (started_at)
    WHERE llm_has_content(prompt, response, reasoning, tool_calls, raw_log);

-- The partitions, newest first. `day` is null for the default partition. Rows are PostgreSQL's estimate. A partition is known to be
-- without content by its comment, which goes with the table wherever the table goes.
CREATE VIEW llm_partitions AS
SELECT c.relname::text AS partition,
    CASE WHEN c.relname ~ '^llm_logs_[0-9]{8}$' THEN to_date(right(c.relname, 8), 'YYYYMMDD') END AS day,
    CASE WHEN c.reltuples >= 0 THEN c.reltuples::bigint ELSE pg_stat_get_live_tuples(c.oid) END AS rows_estimate,
    pg_total_relation_size(c.oid) AS bytes,
    coalesce(obj_description(c.oid, 'pg_class') LIKE 'Content removed%', false) AS content_removed
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'llm_logs'::regclass
ORDER BY day DESC NULLS LAST;

COMMENT ON VIEW llm_partitions IS 'The day partitions of llm_logs: rows, bytes, and whether retention removed their content.';

-- Writes the rows of a day without content to llm_logs_YYYYMMDD_rewrite, which is no partition yet. Locks nobody out. Returns the
-- number of rows. Rows that come later are brought along by llm_swap_day.
CREATE FUNCTION llm_rewrite_day(day date) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    name    text        := 'llm_logs_' || to_char(day, 'YYYYMMDD');
    lower   timestamptz := day::timestamp AT TIME ZONE 'UTC';
    upper   timestamptz := (day + 1)::timestamp AT TIME ZONE 'UTC';
    copied  bigint;
BEGIN
    EXECUTE format('CREATE TABLE %I (LIKE llm_logs INCLUDING ALL EXCLUDING IDENTITY)', name || '_rewrite');
    -- With it, ATTACH needs not read the table to know that the rows belong there.
    EXECUTE format('ALTER TABLE %I ADD CONSTRAINT of_that_day CHECK (started_at >= %L AND started_at < %L)',
                   name || '_rewrite', lower, upper);
    -- Rows that come for a day that was done are few: retention finds them by this index, which is empty otherwise.
    EXECUTE format('CREATE INDEX %I ON %I (started_at) WHERE llm_has_content(prompt, response, reasoning, tool_calls, raw_log)',
                   name || '_content', name || '_rewrite');
    EXECUTE llm_copy_statement(name, 'true');
    GET DIAGNOSTICS copied = ROW_COUNT;
    RETURN copied;
END $$;

-- INSERT that copies the rows of a partition for which `condition` holds to the table of that day, without content. The columns
-- are those that llm_logs has today. raw_log is read from TOAST once, in the subquery, and not by each of its uses.
CREATE FUNCTION llm_copy_statement(partition text, condition text) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT format('INSERT INTO %I (%s) SELECT %s FROM %I p, LATERAL (SELECT p.raw_log || ''{}'' AS raw OFFSET 0) entry WHERE %s',
        partition || '_rewrite', string_agg(quote_ident(attname), ', ' ORDER BY attnum),
        string_agg(CASE
            WHEN attname IN ('prompt', 'response', 'reasoning', 'tool_calls') THEN 'NULL'
            WHEN attname = 'raw_log' THEN 'llm_without_bodies(entry.raw)'
            ELSE 'p.' || quote_ident(attname)
        END, ', ' ORDER BY attnum), partition, condition)
    FROM pg_attribute
    WHERE attrelid = 'llm_logs'::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
$$;

-- Puts the table that llm_rewrite_day made in the place of the day's partition, and drops that. To be called in a transaction of its
-- own, with lock_timeout set: it locks llm_logs for some milliseconds at the end. Until then only rows of that very day wait.
-- Returns the number of rows that came since.
CREATE FUNCTION llm_swap_day(day date) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    name      text        := 'llm_logs_' || to_char(day, 'YYYYMMDD');
    lower     timestamptz := day::timestamp AT TIME ZONE 'UTC';
    upper     timestamptz := (day + 1)::timestamp AT TIME ZONE 'UTC';
    late      record;
    late_rows bigint      := 0;
BEGIN
    -- Readers go on; whoever writes to this day waits. From here on no row can be missed.
    EXECUTE format('LOCK TABLE %I IN SHARE ROW EXCLUSIVE MODE', name);
    FOR late IN EXECUTE format('SELECT request_id, started_at FROM %I p WHERE NOT EXISTS'
        ' (SELECT FROM %I n WHERE n.request_id = p.request_id AND n.started_at = p.started_at)', name, name || '_rewrite')
    LOOP
        EXECUTE llm_copy_statement(name, 'p.request_id = $1 AND p.started_at = $2') USING late.request_id, late.started_at;
        late_rows := late_rows + 1;
    END LOOP;
    PERFORM pg_advisory_xact_lock(hashtext('llm_logs'), hashtext('partitions'));
    LOCK TABLE llm_logs IN ACCESS EXCLUSIVE MODE;
    EXECUTE format('DROP TABLE %I', name);
    EXECUTE format('ALTER TABLE %I RENAME TO %I', name || '_rewrite', name);
    EXECUTE format('ALTER TABLE llm_logs ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', name, lower, upper);
    EXECUTE format('ALTER TABLE %I DROP CONSTRAINT of_that_day', name);
    EXECUTE format('COMMENT ON TABLE %I IS %L', name, 'Content removed ' || to_char(now(), 'YYYY-MM-DD HH24:MI:SSOF'));
    RETURN late_rows;
END $$;

-- Drops the partition of a day and returns the bytes that it had. To be called as llm_swap_day.
CREATE FUNCTION llm_drop_day(day date) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    name  text := 'llm_logs_' || to_char(day, 'YYYYMMDD');
    bytes bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('llm_logs'), hashtext('partitions'));
    LOCK TABLE llm_logs IN ACCESS EXCLUSIVE MODE;
    bytes := pg_total_relation_size(name::regclass);
    EXECUTE format('DROP TABLE %I', name);
    RETURN bytes;
END $$;

-- The consumer of a rejected entry, empty when it has none; null when the entry is no JSON.
CREATE FUNCTION llm_rejected_consumer(raw bytea) RETURNS text
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    RETURN coalesce(convert_from(raw, 'UTF8')::jsonb #>> '{consumer,username}', '');
EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
    RETURN NULL;
END $$;
