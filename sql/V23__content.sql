-- Large parts of request bodies and answers, once a day: agents send their whole history with every call. raw_log refers to them, and
-- llm_raw_log gives the whole entry back.

CREATE TABLE llm_content (
    day    date  NOT NULL,
    sha256 bytea NOT NULL,
    body   text  NOT NULL,
    PRIMARY KEY (day, sha256)
) PARTITION BY LIST (day);

COMMENT ON TABLE llm_content IS 'Parts of bodies that raw_log refers to, once for each day (UTC) whose calls have them.';
COMMENT ON COLUMN llm_content.sha256 IS 'SHA-256 of body as UTF-8.';
COMMENT ON COLUMN llm_content.body IS 'JSON text, as it stood in the entry.';

DO $$
BEGIN
    ALTER TABLE llm_content ALTER COLUMN body SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported OR invalid_parameter_value THEN
    RAISE NOTICE 'this server has no lz4 compression; llm_content is stored with its default';
END $$;

ALTER TABLE llm_logs ADD COLUMN contents bytea;
COMMENT ON COLUMN llm_logs.contents IS
    'The first 16 bytes of the SHA-256 of each part that raw_log refers to in llm_content, in the order of the references; null where raw_log is whole.';

-- Collectors remember what is there and do not send it again. Whoever removes content changes this number in the same transaction, and
-- with a lock that waits for every statement which relied on the one before.
CREATE TABLE llm_content_state (
    is_only  boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    removals bigint  NOT NULL DEFAULT 0
);
INSERT INTO llm_content_state DEFAULT VALUES;

COMMENT ON TABLE llm_content_state IS 'How often content was removed: what collectors remember of llm_content holds until the next time.';

-- What erased rows referred to: whether somebody else's row does, too, is found out afterwards.
CREATE TABLE llm_erased_content (
    day  date  NOT NULL,
    hash bytea NOT NULL,
    PRIMARY KEY (day, hash)
);

COMMENT ON TABLE llm_erased_content IS 'Content that erased rows referred to, until it is removed or found to belong to another row.';

-- What must be the same for that memory to hold: another server (a standby that took over) or another database (a restored one) may lack
-- what this one had.
CREATE FUNCTION llm_content_version() RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT format('%s %s %s', removals, extract(epoch FROM pg_postmaster_start_time()),
                  (SELECT oid FROM pg_database WHERE datname = current_database()))
    FROM llm_content_state
$$;

-- True where the version is still `expected`, else an error (LC001): the statement relied on content that may be gone.
CREATE FUNCTION llm_expect_content(expected text) RETURNS boolean
LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF llm_content_version() IS DISTINCT FROM expected THEN
        RAISE EXCEPTION USING ERRCODE = 'LC001', MESSAGE = 'content was removed meanwhile';
    END IF;
    RETURN true;
END $$;

-- The hashes in llm_logs.contents.
CREATE FUNCTION llm_content_hashes(contents bytea) RETURNS SETOF bytea
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT substring(contents FROM number * 16 + 1 FOR 16) FROM generate_series(0, octet_length(contents) / 16 - 1) AS number
$$;

-- The last SHA-256 that begins with such a hash.
CREATE FUNCTION llm_last_sha256(hash bytea) RETURNS bytea
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT hash || '\xffffffffffffffffffffffffffffffff'::bytea
$$;

-- Whether a value stands for content: {"llm_content": [first, count]}, where a list may have several elements that are one after
-- another in llm_logs.contents. Collectors store whatever looks like it as content, so that nobody can make one up.
CREATE FUNCTION llm_is_reference(value jsonb) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT jsonb_typeof(value) = 'object' AND value ? 'llm_content'
$$;

-- The JSON text of a body with `parts` in the place of references to them. Put together as text, because jsonb would be copied again with every
-- member.
CREATE FUNCTION llm_whole_body(body jsonb, parts text[]) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
    IF llm_is_reference(body) THEN
        RETURN parts[(body #>> '{llm_content,0}')::integer + 1];
    END IF;
    IF jsonb_typeof(body) <> 'object' THEN
        RETURN body::text;
    END IF;
    RETURN (
        SELECT '{' || coalesce(string_agg(to_json(key)::text || ':' || CASE
            WHEN llm_is_reference(value) THEN parts[(value #>> '{llm_content,0}')::integer + 1]
            WHEN jsonb_typeof(value) = 'array' THEN (
                SELECT '[' || coalesce(string_agg(CASE
                    WHEN llm_is_reference(element) THEN array_to_string(parts[(element #>> '{llm_content,0}')::integer + 1
                        : (element #>> '{llm_content,0}')::integer + (element #>> '{llm_content,1}')::integer], ',')
                    ELSE element::text
                END, ',' ORDER BY place), '') || ']'
                FROM jsonb_array_elements(value) WITH ORDINALITY AS elements (element, place))
            ELSE value::text
        END, ','), '') || '}'
        FROM jsonb_each(body)
    );
END $$;

-- Kong's whole log entry of a call. What its row refers to and llm_content no longer has reads {"llm_content": "missing"}. Of two parts whose
-- hashes begin alike, which nobody has made yet, both are there, and the entry says {"llm_content": "ambiguous"}.
CREATE FUNCTION llm_raw_log(call llm_logs) RETURNS jsonb
LANGUAGE plpgsql STABLE PARALLEL SAFE AS $$
DECLARE
    of_day date  := (call.started_at AT TIME ZONE 'UTC')::date;
    whole  jsonb := call.raw_log;
    parts  text[];
    body   jsonb;
    side   text;
BEGIN
    IF call.contents IS NULL THEN
        RETURN whole;
    END IF;
    -- A look into the index for each, whatever the planner believes of the table.
    SELECT array_agg(coalesce((
        SELECT CASE count(*) WHEN 1 THEN min(c.body) WHEN 0 THEN NULL ELSE '{"llm_content": "ambiguous"}' END FROM llm_content c
        WHERE c.day = of_day AND c.sha256 >= hash AND c.sha256 <= llm_last_sha256(hash)), '{"llm_content": "missing"}') ORDER BY number)
    INTO parts FROM llm_content_hashes(call.contents) WITH ORDINALITY AS hashes (hash, number);
    FOREACH side IN ARRAY ARRAY['request', 'response'] LOOP
        body := whole #> ARRAY[side, 'body'];
        IF body IS NOT NULL THEN
            whole := jsonb_set(whole, ARRAY[side, 'body'], llm_whole_body(body, parts)::jsonb);
        END IF;
    END LOOP;
    RETURN whole;
END $$;

-- Makes the partition of a day. False when there is one, or none is wanted: the day's content has been removed. Waits for nobody
-- who reads or writes.
CREATE FUNCTION llm_create_content(day date) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    name text := 'llm_content_' || to_char(day, 'YYYYMMDD');
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('llm_logs'), hashtext('partitions'));
    IF to_regclass(name) IS NOT NULL
        OR NOT EXISTS (SELECT FROM llm_partition_days d WHERE d.day = llm_create_content.day AND NOT d.content_removed) THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE llm_content INCLUDING ALL)', name);
    EXECUTE format('ALTER TABLE llm_content ATTACH PARTITION %I FOR VALUES IN (%L)', name, day);
    RETURN true;
END $$;

-- The days that have one.
CREATE VIEW llm_content_days AS
SELECT to_date(right(c.relname, 8), 'YYYYMMDD') AS day
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'llm_content'::regclass AND c.relname ~ '^llm_content_[0-9]{8}$';

-- Removes the content of a whole day. To be called as llm_swap_day.
CREATE FUNCTION llm_drop_content(day date) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    LOCK TABLE ONLY llm_content IN ACCESS EXCLUSIVE MODE;
    EXECUTE format('DROP TABLE IF EXISTS %I', 'llm_content_' || to_char(day, 'YYYYMMDD'));
    DELETE FROM llm_erased_content e WHERE e.day = llm_drop_content.day;
    UPDATE llm_content_state SET removals = removals + 1;
END $$;

-- The highest llm_logs.id that was given to a row which is there now: no statement that writes rows is under way, so that whatever comes
-- has a higher one. To be called in a transaction of its own, with lock_timeout set.
CREATE FUNCTION llm_content_boundary(day date) RETURNS bigint
LANGUAGE plpgsql AS $$
BEGIN
    LOCK TABLE ONLY llm_content IN SHARE MODE;
    RETURN coalesce(pg_sequence_last_value(pg_get_serial_sequence('llm_logs', 'id')), 0);
END $$;

-- Removes what erased rows of a day referred to and no row of it refers to, after those up to `boundary` have been looked through and
-- what they refer to has been struck off. Rows wait meanwhile: only those since then are looked at. To be called as
-- llm_content_boundary. Returns how many parts went.
CREATE FUNCTION llm_remove_erased_content(of_day date, boundary bigint) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    erased  bytea;
    rows    bigint;
    removed bigint := 0;
BEGIN
    LOCK TABLE ONLY llm_content IN SHARE MODE;
    DELETE FROM llm_erased_content e WHERE e.day = of_day AND e.hash IN (
        SELECT llm_content_hashes(contents) FROM llm_logs
        WHERE started_at >= of_day::timestamp AT TIME ZONE 'UTC' AND started_at < (of_day + 1)::timestamp AT TIME ZONE 'UTC'
            AND id > boundary AND contents IS NOT NULL);
    FOR erased IN DELETE FROM llm_erased_content e WHERE e.day = of_day RETURNING e.hash LOOP
        DELETE FROM llm_content c WHERE c.day = of_day AND c.sha256 >= erased AND c.sha256 <= llm_last_sha256(erased);
        GET DIAGNOSTICS rows = ROW_COUNT;
        removed := removed + rows;
    END LOOP;
    UPDATE llm_content_state SET removals = removals + 1;
    RETURN removed;
END $$;

-- As before, with the content that rows of the day refer to.
CREATE OR REPLACE VIEW llm_partitions AS
SELECT d.partition, d.day,
    CASE WHEN c.reltuples >= 0 THEN c.reltuples::bigint ELSE pg_stat_get_live_tuples(c.oid) END AS rows_estimate,
    pg_total_relation_size(c.oid) + coalesce(pg_total_relation_size(to_regclass('llm_content_' || to_char(d.day, 'YYYYMMDD'))), 0) AS bytes,
    d.content_removed
FROM llm_partition_days d JOIN pg_class c ON c.oid = d.oid
ORDER BY day DESC NULLS LAST;

-- As before, and a row without content refers to none.
CREATE OR REPLACE FUNCTION llm_copy_statement(partition text, condition text) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT format('INSERT INTO %I (%s) SELECT %s FROM %I p, LATERAL (SELECT p.raw_log || ''{}'' AS raw OFFSET 0) entry WHERE %s',
        partition || '_rewrite', string_agg(quote_ident(attname), ', ' ORDER BY attnum),
        string_agg(CASE
            WHEN attname IN ('prompt', 'response', 'reasoning', 'tool_calls', 'contents') THEN 'NULL'
            WHEN attname = 'error' THEN 'llm_error_without_content(p.error)'
            WHEN attname = 'raw_log' THEN 'llm_without_bodies(entry.raw)'
            ELSE 'p.' || quote_ident(attname)
        END, ', ' ORDER BY attnum), partition, condition)
    FROM pg_attribute
    WHERE attrelid = 'llm_logs'::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
$$;

-- What swaps and drops the rows of a day is as before; the day's content goes in the same transaction.
ALTER FUNCTION llm_swap_day(date) RENAME TO llm_swap_rows_of_day;
ALTER FUNCTION llm_drop_day(date) RENAME TO llm_drop_rows_of_day;

CREATE FUNCTION llm_swap_day(day date) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    late_rows bigint := llm_swap_rows_of_day(day);
BEGIN
    PERFORM llm_drop_content(day);
    RETURN late_rows;
END $$;

CREATE FUNCTION llm_drop_day(day date) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    bytes bigint := coalesce(pg_total_relation_size(to_regclass('llm_content_' || to_char(day, 'YYYYMMDD'))), 0);
BEGIN
    bytes := bytes + llm_drop_rows_of_day(day);
    PERFORM llm_drop_content(day);
    RETURN bytes;
END $$;
