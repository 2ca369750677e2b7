-- Nothing here or from here on makes a row wait for longer than a moment: partitions are made beside the rows that need them, and what
-- touches many rows does so in pieces.

-- Days whose rows are on their way from the default partition to their own: that has the rows before `moved_to`, and its bound there.
CREATE TABLE llm_partition_moves (
    day      date        PRIMARY KEY,
    moved_to timestamptz NOT NULL
);

-- Days whose partition is missing or has not all of its rows: those to come, and those of the last `days_back` days whose rows are in
-- the default partition, each found by a look into an index.
CREATE FUNCTION llm_missing_partitions(days_back integer, days_ahead integer) RETURNS SETOF date
LANGUAGE sql STABLE AS $$
    SELECT day FROM (
        SELECT (now() AT TIME ZONE 'UTC')::date + number AS day, number FROM generate_series(-days_back, days_ahead) AS number
    ) days
    WHERE to_regclass('llm_logs_' || to_char(day, 'YYYYMMDD')) IS NULL
        AND (number >= 0 OR EXISTS (SELECT FROM llm_logs_default
                                    WHERE started_at >= day::timestamp AT TIME ZONE 'UTC'
                                        AND started_at < (day + 1)::timestamp AT TIME ZONE 'UTC'))
        OR EXISTS (SELECT FROM llm_partition_moves m WHERE m.day = days.day)
    ORDER BY day DESC
$$;

-- Makes the partition of one day (UTC) and moves the first `max_rows` of the day's rows there (without, all), out of the default partition;
-- more when called again. True when all are there. Until then the partition ends where the moved rows end: a row has its place in one of the
-- two at any time. ATTACH reads what is left in the default partition, about a second for a million rows.
--
-- Where rows move, llm_logs is locked first. A reader that knows nothing of the new partition yet and waits for the default partition
-- would find the rows gone from there. Nobody waits for a partition that takes no rows along, but for the default partition.
--
-- The locks come before the look at the rows, or one that arrives in between would fail ATTACH. Whoever wants these locks waits for us, so
-- callers set a short lock_timeout, and a small `max_rows`. Rows that were on their way to the default partition meanwhile are refused
-- by its new bounds (23514), and the collector sends them again.
CREATE FUNCTION llm_fill_partition(day date, max_rows integer) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    name     text        := 'llm_logs_' || to_char(day, 'YYYYMMDD');
    lower    timestamptz := day::timestamp AT TIME ZONE 'UTC';
    upper    timestamptz := (day + 1)::timestamp AT TIME ZONE 'UTC';
    since    timestamptz;
    until    timestamptz;
    is_there boolean;
    has_rows boolean;
BEGIN
    -- Several collectors make the same partitions at midnight.
    PERFORM pg_advisory_xact_lock(hashtext('llm_logs'), hashtext('partitions'));
    is_there := to_regclass(name) IS NOT NULL;
    SELECT m.moved_to INTO since FROM llm_partition_moves m WHERE m.day = llm_fill_partition.day;
    IF is_there AND since IS NULL THEN
        RETURN true;
    END IF;
    -- Retention drops days that are on their way, too.
    since := CASE WHEN is_there THEN since ELSE lower END;
    has_rows := EXISTS (SELECT FROM llm_logs_default WHERE started_at >= since AND started_at < upper);
    IF is_there OR has_rows THEN
        -- Retention and erasing look for rows first and change them then: none may move in between.
        IF NOT pg_try_advisory_xact_lock(hashtext('llm_logs'), hashtext('retention')) THEN
            RAISE lock_not_available USING MESSAGE = 'retention or an erasure is at work';
        END IF;
        LOCK TABLE ONLY llm_logs IN ACCESS EXCLUSIVE MODE;
    ELSE
        LOCK TABLE ONLY llm_logs IN SHARE UPDATE EXCLUSIVE MODE;
    END IF;
    LOCK TABLE llm_logs_default IN ACCESS EXCLUSIVE MODE;
    IF NOT is_there AND NOT has_rows AND EXISTS (SELECT FROM llm_logs_default WHERE started_at >= since AND started_at < upper) THEN
        RAISE lock_not_available USING MESSAGE = 'the first row of the day came in this moment';
    END IF;
    IF max_rows IS NOT NULL THEN
        SELECT started_at INTO until FROM llm_logs_default WHERE started_at >= since AND started_at < upper
        ORDER BY started_at OFFSET max_rows LIMIT 1;
    END IF;
    -- More rows than that began at the very same time.
    IF until = since THEN
        SELECT started_at INTO until FROM llm_logs_default WHERE started_at > since AND started_at < upper ORDER BY started_at LIMIT 1;
    END IF;
    until := coalesce(until, upper);

    IF is_there THEN
        EXECUTE format('ALTER TABLE llm_logs DETACH PARTITION %I', name);
    ELSE
        EXECUTE format('CREATE TABLE %I (LIKE llm_logs INCLUDING DEFAULTS INCLUDING CONSTRAINTS'
                       ' INCLUDING COMPRESSION INCLUDING STORAGE INCLUDING COMMENTS)', name);
    END IF;
    EXECUTE format('WITH moved AS (DELETE FROM llm_logs_default WHERE started_at >= %L AND started_at < %L RETURNING *)'
                   ' INSERT INTO %I SELECT * FROM moved', since, until, name);
    EXECUTE format('ALTER TABLE llm_logs ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', name, lower, until);
    DELETE FROM llm_partition_moves m WHERE m.day = llm_fill_partition.day;
    IF until < upper THEN
        INSERT INTO llm_partition_moves VALUES (day, until);
    END IF;
    RETURN until = upper;
END $$;

-- As before: all at once. False when the partition is there already.
CREATE OR REPLACE FUNCTION llm_create_partition(day date) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    IF to_regclass('llm_logs_' || to_char(day, 'YYYYMMDD')) IS NOT NULL
        AND NOT EXISTS (SELECT FROM llm_partition_moves m WHERE m.day = llm_create_partition.day) THEN
        RETURN false;
    END IF;
    RETURN llm_fill_partition(day, NULL);
END $$;

-- Whether rows are left that are older than the counting of usage and not counted yet. The table is there where an upgrade left it.
CREATE FUNCTION llm_has_usage_backlog() RETURNS boolean
LANGUAGE plpgsql STABLE AS $$
BEGIN
    -- Apart, because a statement about a table that is not there cannot even be planned.
    IF to_regclass('llm_usage_backlog') IS NULL THEN
        RETURN false;
    END IF;
    RETURN EXISTS (SELECT FROM llm_usage_backlog);
END $$;

-- Counts the usage of about `rows_at_once` of them, oldest first, by the trigger that counts new rows. False when nothing is left, or
-- somebody else is at it.
CREATE FUNCTION llm_count_usage_backlog(rows_at_once integer) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    boundary bigint;
    since    timestamptz;
    until    timestamptz;
    columns  text;
BEGIN
    IF NOT llm_has_usage_backlog() OR NOT pg_try_advisory_xact_lock(hashtext('llm_logs'), hashtext('backlog')) THEN
        RETURN false;
    END IF;
    SELECT last_id, next_at INTO boundary, since FROM llm_usage_backlog;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    SELECT started_at INTO until FROM llm_logs WHERE started_at >= since ORDER BY started_at OFFSET rows_at_once LIMIT 1;
    -- More rows than that began at the very same time.
    IF until = since THEN
        SELECT started_at INTO until FROM llm_logs WHERE started_at > since ORDER BY started_at LIMIT 1;
    END IF;
    -- All columns but the texts, which nobody counts: they would have to be read.
    SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) INTO columns FROM pg_attribute
    WHERE attrelid = 'llm_logs'::regclass AND attnum > 0 AND NOT attisdropped
        AND attname NOT IN ('prompt', 'response', 'reasoning', 'tool_calls', 'raw_log');
    CREATE TEMP TABLE llm_usage_past (LIKE llm_logs INCLUDING DEFAULTS) ON COMMIT DROP;
    CREATE TRIGGER llm_count_usage AFTER INSERT ON llm_usage_past REFERENCING NEW TABLE AS new_rows
        FOR EACH STATEMENT EXECUTE FUNCTION llm_count_usage();
    EXECUTE format('INSERT INTO llm_usage_past (%s) SELECT %s FROM llm_logs WHERE started_at >= $1 AND ($2 IS NULL OR started_at < $2)'
                   ' AND id <= $3', columns, columns) USING since, until, boundary;
    DROP TABLE llm_usage_past;
    IF until IS NULL THEN
        DELETE FROM llm_usage_backlog;
        RETURN false;
    END IF;
    UPDATE llm_usage_backlog SET next_at = until;
    RETURN true;
END $$;

-- What is due from time to time, in pieces of some tens of milliseconds, and without reading llm_logs.

-- Adds some of the deltas to llm_usage and llm_usage_days, and returns how many. One collector at a time does it.
CREATE FUNCTION llm_compact_usage_piece(max_deltas integer) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    compacted bigint;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtext('llm_logs'), hashtext('usage')) THEN
        RETURN 0;
    END IF;
    -- One statement: whoever reads meanwhile sees all of it or nothing.
    WITH taken AS (
        DELETE FROM llm_usage_deltas WHERE ctid = ANY (ARRAY(SELECT ctid FROM llm_usage_deltas LIMIT max_deltas)) RETURNING *
    ), hours AS (
        SELECT hour, consumer_username, model, sum(calls) AS calls, sum(errors) AS errors, sum(prompt_tokens) AS prompt_tokens,
            sum(uncached_prompt_tokens) AS uncached_prompt_tokens, sum(cached_tokens) AS cached_tokens,
            sum(completion_tokens) AS completion_tokens, sum(reasoning_tokens) AS reasoning_tokens,
            sum(timed_calls) AS timed_calls, sum(latencies) AS latencies
        FROM taken GROUP BY hour, consumer_username, model
    ), added AS (
        INSERT INTO llm_usage AS u (hour, consumer_username, model, calls, errors, prompt_tokens, uncached_prompt_tokens,
            cached_tokens, completion_tokens, reasoning_tokens, timed_calls, latencies)
        SELECT hour, consumer_username, model, calls, errors, prompt_tokens, uncached_prompt_tokens, cached_tokens,
            completion_tokens, reasoning_tokens, timed_calls, latencies
        FROM hours
        ON CONFLICT (hour, consumer_username, model) DO UPDATE SET
            calls = u.calls + excluded.calls,
            errors = u.errors + excluded.errors,
            prompt_tokens = u.prompt_tokens + excluded.prompt_tokens,
            uncached_prompt_tokens = u.uncached_prompt_tokens + excluded.uncached_prompt_tokens,
            cached_tokens = u.cached_tokens + excluded.cached_tokens,
            completion_tokens = u.completion_tokens + excluded.completion_tokens,
            reasoning_tokens = u.reasoning_tokens + excluded.reasoning_tokens,
            timed_calls = u.timed_calls + excluded.timed_calls,
            latencies = u.latencies + excluded.latencies
    ), added_to_days AS (
        INSERT INTO llm_usage_days AS u (day, consumer_username, model, calls, errors, prompt_tokens, uncached_prompt_tokens,
            cached_tokens, completion_tokens, reasoning_tokens, timed_calls, latencies)
        SELECT date_trunc('day', hour, 'UTC'), consumer_username, model, sum(calls), sum(errors), sum(prompt_tokens),
            sum(uncached_prompt_tokens), sum(cached_tokens), sum(completion_tokens), sum(reasoning_tokens), sum(timed_calls),
            sum(latencies)
        FROM hours GROUP BY date_trunc('day', hour, 'UTC'), consumer_username, model
        ON CONFLICT (day, consumer_username, model) DO UPDATE SET
            calls = u.calls + excluded.calls,
            errors = u.errors + excluded.errors,
            prompt_tokens = u.prompt_tokens + excluded.prompt_tokens,
            uncached_prompt_tokens = u.uncached_prompt_tokens + excluded.uncached_prompt_tokens,
            cached_tokens = u.cached_tokens + excluded.cached_tokens,
            completion_tokens = u.completion_tokens + excluded.completion_tokens,
            reasoning_tokens = u.reasoning_tokens + excluded.reasoning_tokens,
            timed_calls = u.timed_calls + excluded.timed_calls,
            latencies = u.latencies + excluded.latencies
    ), seen AS (
        INSERT INTO llm_usage_models SELECT DISTINCT model FROM taken WHERE prompt_tokens + completion_tokens > 0
        ON CONFLICT DO NOTHING
    )
    SELECT count(*) INTO compacted FROM taken;

    -- PostgreSQL analyzes no table as small as these by itself, and expects so much of one without statistics, as after a restore,
    -- that it compiles every question for a second.
    IF EXISTS (SELECT FROM pg_class WHERE reltuples < 0 AND oid IN ('llm_usage'::regclass, 'llm_usage_days'::regclass,
               'llm_usage_deltas'::regclass, 'llm_usage_models'::regclass, 'llm_model_prices'::regclass)) THEN
        ANALYZE llm_usage, llm_usage_days, llm_usage_deltas, llm_usage_models, llm_model_prices;
    END IF;
    RETURN compacted;
END $$;

-- All of them, as before.
CREATE OR REPLACE FUNCTION llm_compact_usage() RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    piece     bigint;
    compacted bigint := 0;
BEGIN
    LOOP
        piece := llm_compact_usage_piece(20000);
        compacted := compacted + piece;
        EXIT WHEN piece = 0;
    END LOOP;
    RETURN compacted;
END $$;

-- From where each consumer called within the last hour. Collectors add what they saw; what is older goes.
CREATE TABLE llm_addresses (
    consumer_username text        NOT NULL,
    client_ip         inet        NOT NULL,
    seen_at           timestamptz NOT NULL,
    PRIMARY KEY (consumer_username, client_ip)
) WITH (fillfactor = 70);

COMMENT ON TABLE llm_addresses IS 'Addresses of the last hour by consumer, for the gauge llm_consumer_addresses.';

-- What rounds of retention removed, for knowing what would be far more than ever: one row, when there was a round.
CREATE TABLE llm_retention_rounds (
    is_only       boolean     PRIMARY KEY DEFAULT true CHECK (is_only),
    last_round_at timestamptz NOT NULL,
    most_days     bigint      NOT NULL,
    most_rows     bigint      NOT NULL
);

COMMENT ON TABLE llm_retention_rounds IS 'The last round of retention, and the most that one removed.';

-- When the upkeep that only the owner of the tables can do was last at work, and what keeps retention from removing what is due. The process
-- that does it has no address; here serve, doctor and alerts see whether it lives.
CREATE TABLE llm_upkeep (
    is_only        boolean     PRIMARY KEY DEFAULT true CHECK (is_only),
    seen_at        timestamptz NOT NULL DEFAULT now(),
    retention_held text
);
INSERT INTO llm_upkeep DEFAULT VALUES;

COMMENT ON TABLE llm_upkeep IS 'When upkeep was last at work, and why retention removes nothing, if it does not.';
