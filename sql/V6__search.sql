-- Looking for text in prompts and answers, in Chinese too.
--
-- An index of texts costs too much to be kept up to date while rows come in: some 0.7 ms for a call with 3 KB of text, which takes
-- 0.04 ms to insert without. So the collector makes it of what is closed: of each hour that is over, then of each day that is over in
-- their place. It takes disk as well (README, "Finding a conversation"), so it is off by default (`serve --search-index`), and nothing
-- here needs it: llm_search takes what is indexed from the indexes and reads the rest.
--
-- The indexes are pg_trgm's, which finds whatever has three letters in a row. Words in Chinese have two characters, so each such
-- character is doubled, in the texts and in what is looked for: two become four, and a text holds a word exactly when the
-- doubled text holds the doubled word.

-- A text as it is indexed and looked for: small letters, and characters doubled of scripts whose words may have one or two of them
-- (radicals, kana, bopomofo, Hangul, ideographs).
--
-- Names nothing but what is in pg_catalog, because PostgreSQL makes and restores indexes with no other schema on the path. Not inlined
-- (it is no SQL function), for the planner to know that it is worth avoiding.
CREATE FUNCTION llm_search_text(words text) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE COST 4000 AS $$
BEGIN
    RETURN regexp_replace(lower(words),
        '([\u2e80-\u2fdf\u3005-\u3007\u3040-\u312f\u31a0-\u31bf\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff'
        '\U00020000-\U0003ffff])', '\1\1', 'g');
END $$;

-- LIKE's pattern for texts that hold these words as they stand.
CREATE FUNCTION llm_pattern(words text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT '%' || replace(replace(replace(words, '\', '\\'), '%', '\%'), '_', '\_') || '%'
$$;

-- What a partition's name and comment tell, without a look at its files: every search asks that.
CREATE VIEW llm_partition_days AS
SELECT c.oid, c.relname::text AS partition,
    CASE WHEN c.relname ~ '^llm_logs_[0-9]{8}$' THEN to_date(right(c.relname, 8), 'YYYYMMDD') END AS day,
    coalesce(obj_description(c.oid, 'pg_class') LIKE 'Content removed%', false) AS content_removed
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'llm_logs'::regclass;

-- As before: the same with rows and bytes, for which all files are looked at.
CREATE OR REPLACE VIEW llm_partitions AS
SELECT d.partition, d.day,
    CASE WHEN c.reltuples >= 0 THEN c.reltuples::bigint ELSE pg_stat_get_live_tuples(c.oid) END AS rows_estimate,
    pg_total_relation_size(c.oid) AS bytes, d.content_removed
FROM llm_partition_days d JOIN pg_class c ON c.oid = d.oid
ORDER BY day DESC NULLS LAST;

-- Stretches of time whose texts need not all be read: days and hours with an index, and days whose content retention removed. None
-- is inside another.
CREATE VIEW llm_searchable AS
WITH indexes AS (
    SELECT relname::text AS name FROM pg_index JOIN pg_class c ON c.oid = indexrelid
    WHERE indisvalid AND relname ~ '^llm_logs_[0-9]{8}_search'
        AND relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'llm_logs'::regclass)
)
SELECT day::timestamp AT TIME ZONE 'UTC' AS starts_at, (day + 1)::timestamp AT TIME ZONE 'UTC' AS ends_at, content_removed
FROM llm_partition_days
WHERE day IS NOT NULL AND (content_removed OR partition || '_search' IN (SELECT name FROM indexes))
UNION ALL
SELECT (day + make_interval(hours => hour)) AT TIME ZONE 'UTC', (day + make_interval(hours => hour + 1)) AT TIME ZONE 'UTC', false
FROM llm_partition_days CROSS JOIN generate_series(0, 23) AS hour
WHERE day IS NOT NULL AND NOT content_removed AND partition || '_search' NOT IN (SELECT name FROM indexes)
    AND partition || '_search_' || to_char(hour, 'FM00') IN (SELECT name FROM indexes);

COMMENT ON VIEW llm_searchable IS 'Times whose texts llm_search need not all read.';

-- Indexes to be made, newest first: of days that have been over for an hour, and until then of hours that have been over for five
-- minutes. What comes later still is added to them, at the price named above.
CREATE VIEW llm_search_due AS
SELECT partition, index, starts_at, ends_at, whole_day,
    format('CREATE INDEX CONCURRENTLY %I ON %I USING gin'
           ' (llm_search_text(coalesce(prompt, '''') || E''\n'' || coalesce(response, '''')) gin_trgm_ops)', index, partition)
    || CASE WHEN whole_day THEN '' ELSE format(' WHERE started_at >= %L AND started_at < %L', starts_at, ends_at) END AS statement
FROM (
    SELECT partition, partition || '_search' AS index, true AS whole_day, day::timestamp AT TIME ZONE 'UTC' AS starts_at,
        (day + 1)::timestamp AT TIME ZONE 'UTC' AS ends_at
    FROM llm_partition_days
    WHERE NOT content_removed AND (day + 1)::timestamp AT TIME ZONE 'UTC' + interval '1 hour' <= now()
    UNION ALL
    SELECT partition, partition || '_search_' || to_char(hour, 'FM00'), false, (day + make_interval(hours => hour)) AT TIME ZONE 'UTC',
        (day + make_interval(hours => hour + 1)) AT TIME ZONE 'UTC'
    FROM llm_partition_days CROSS JOIN generate_series(0, 23) AS hour
    WHERE NOT content_removed AND (day + 1)::timestamp AT TIME ZONE 'UTC' + interval '1 hour' > now()
        AND (day + make_interval(hours => hour + 1)) AT TIME ZONE 'UTC' + interval '5 minutes' <= now()
) closed
WHERE NOT EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass(index) AND indisvalid)
ORDER BY starts_at DESC;

-- The newest calls between two times whose prompt or answer holds these words, upper and lower case alike, newest first; without
-- words, all calls. `outcome` is any, good, failed, 4xx, 429, 5xx or aborted.
--
-- Words that many calls have are found by reading the newest calls. Words that few have are looked for in one stretch of time after
-- another, so that what is found in the newest ones ends the search.
CREATE FUNCTION llm_search(words text, since timestamptz, until timestamptz, max_rows integer DEFAULT 100,
    consumers text[] DEFAULT NULL, models text[] DEFAULT NULL, outcome text DEFAULT 'any')
RETURNS SETOF llm_logs
LANGUAGE plpgsql STABLE AS $$
DECLARE
    read_first CONSTANT integer := 5000;
    pattern    CONSTANT text    := llm_pattern(words);
    doubled    CONSTANT text    := llm_pattern(llm_search_text(words));
    upper      timestamptz := until + interval '1 microsecond';
    read_from  timestamptz;
    stretch    record;
    found      integer := 0;
    more       integer;
    -- $1 and $2 are the times, $3 is how many, the others are as USING has them below.
    chosen     text := 'SELECT * FROM llm_logs WHERE started_at >= $1 AND started_at < $2';
    holds      CONSTANT text := ' AND (prompt ILIKE $6 OR response ILIKE $6)';
    newest     CONSTANT text := ' ORDER BY started_at DESC LIMIT $3';
    reading    text;
    by_index   text;
    remains    text;
BEGIN
    -- One name is compared as such, because only then the index on it gives rows by time.
    chosen := chosen || CASE WHEN cardinality(consumers) = 1 THEN ' AND consumer_username = $4[1]'
                             WHEN consumers IS NOT NULL THEN ' AND consumer_username = ANY ($4)' ELSE '' END
        || CASE WHEN models IS NOT NULL THEN ' AND coalesce(model, ''unknown'') = ANY ($5)' ELSE '' END
        || CASE outcome WHEN 'any' THEN ''
                        WHEN 'good' THEN ' AND status < 400 AND error IS NULL'
                        WHEN 'failed' THEN ' AND (status IS NULL OR status >= 400 OR error IS NOT NULL)'
                        WHEN '4xx' THEN ' AND status BETWEEN 400 AND 499'
                        WHEN '429' THEN ' AND status = 429'
                        WHEN '5xx' THEN ' AND status >= 500'
                        WHEN 'aborted' THEN ' AND aborted' END;
    IF chosen IS NULL THEN
        RAISE invalid_parameter_value
            USING MESSAGE = format('outcome %L is none of any, good, failed, 4xx, 429, 5xx, aborted', outcome);
    END IF;
    IF coalesce(words, '') = '' THEN
        RETURN QUERY EXECUTE chosen || newest USING since, upper, max_rows, consumers, models;
        RETURN;
    END IF;

    reading := chosen || holds || newest;
    remains := chosen || ' AND llm_has_content(prompt, response, reasoning, tool_calls, raw_log)' || holds || newest;
    -- Sorted afterwards, or the planner may think that reading the newest rows will do.
    by_index := 'WITH hits AS MATERIALIZED (' || chosen
        || ' AND llm_search_text(coalesce(prompt, '''') || E''\n'' || coalesce(response, '''')) LIKE $7)'
        ' SELECT * FROM hits WHERE true' || holds || newest;
    IF doubled !~ '[[:alnum:]]{3}' THEN
        by_index := reading;
    END IF;

    EXECUTE 'SELECT started_at FROM (' || chosen || ') AS calls ORDER BY started_at DESC LIMIT 1 OFFSET $3'
        INTO read_from USING since, upper, read_first, consumers, models;
    FOR stretch IN
        WITH known AS (
            SELECT starts_at, ends_at, CASE WHEN content_removed THEN remains ELSE by_index END AS statement
            FROM llm_searchable
        ), all_time AS (
            TABLE known
            UNION ALL
            SELECT ends_at, lead(starts_at, 1, 'infinity') OVER (ORDER BY starts_at), reading FROM known
            UNION ALL
            SELECT '-infinity', coalesce(min(starts_at), 'infinity'), reading FROM known
        )
        SELECT read_from AS starts_at, upper AS ends_at, reading AS statement WHERE read_from IS NOT NULL
        UNION ALL
        SELECT greatest(starts_at, since), least(ends_at, read_from, upper), statement
        FROM all_time WHERE greatest(starts_at, since) < least(ends_at, read_from, upper)
        ORDER BY starts_at DESC
    LOOP
        RETURN QUERY EXECUTE stretch.statement
            USING stretch.starts_at, stretch.ends_at, max_rows - found, consumers, models, pattern, doubled;
        GET DIAGNOSTICS more = ROW_COUNT;
        found := found + more;
        EXIT WHEN found >= max_rows;
    END LOOP;
END $$;

COMMENT ON FUNCTION llm_search IS 'The newest calls between two times whose prompt or answer holds these words.';
