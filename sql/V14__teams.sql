-- Usage by team, in hours of the site's clock, and what was estimated where a model server reported no tokens.
--
-- A team is part of what usage is counted by: a call counts for the team that its caller was in at that time. The key of a table with
-- millions of rows cannot be made anew in a moment. So what is added up from now on goes into tables of its own, which inherit from those
-- that are there: whoever reads llm_usage and llm_usage_days reads both, and what was added up before stays where it is, without a team.

ALTER TABLE llm_usage
    -- Empty: none.
    ADD COLUMN team                        text   NOT NULL DEFAULT '',
    -- Calls that a model server got: Kong waited for it, or it took tokens. Those from before are not known.
    ADD COLUMN forwarded_calls             bigint NOT NULL DEFAULT 0,
    -- Of calls for which the model server reported none.
    ADD COLUMN estimated_prompt_tokens     bigint NOT NULL DEFAULT 0,
    ADD COLUMN estimated_completion_tokens bigint NOT NULL DEFAULT 0;
ALTER TABLE llm_usage_days
    ADD COLUMN team                        text   NOT NULL DEFAULT '',
    ADD COLUMN forwarded_calls             bigint NOT NULL DEFAULT 0,
    ADD COLUMN estimated_prompt_tokens     bigint NOT NULL DEFAULT 0,
    ADD COLUMN estimated_completion_tokens bigint NOT NULL DEFAULT 0;

CREATE TABLE llm_usage_of_teams (PRIMARY KEY (hour, consumer_username, model, team)) INHERITS (llm_usage) WITH (fillfactor = 80);
CREATE TABLE llm_usage_days_of_teams (PRIMARY KEY (day, consumer_username, model, team)) INHERITS (llm_usage_days)
    WITH (fillfactor = 80);

COMMENT ON TABLE llm_usage_of_teams IS 'The part of llm_usage that was added up since teams are told apart.';
COMMENT ON TABLE llm_usage_days_of_teams IS 'The part of llm_usage_days that was added up since teams are told apart.';

-- `xid` tells whether a delta is in what somebody read with a snapshot. Those that are there get constants, so that none is written anew: 0 is
-- in every snapshot.
ALTER TABLE llm_usage_deltas
    ADD COLUMN team                        text        NOT NULL DEFAULT '',
    ADD COLUMN forwarded_calls             bigint      NOT NULL DEFAULT 0,
    ADD COLUMN estimated_prompt_tokens     bigint      NOT NULL DEFAULT 0,
    ADD COLUMN estimated_completion_tokens bigint      NOT NULL DEFAULT 0,
    ADD COLUMN xid                         xid8        NOT NULL DEFAULT '0',
    ADD COLUMN noted_at                    timestamptz NOT NULL DEFAULT now();
ALTER TABLE llm_usage_deltas ALTER COLUMN xid SET DEFAULT pg_current_xact_id();
CREATE INDEX llm_usage_deltas_xid ON llm_usage_deltas (xid);

-- Who took a snapshot earlier finds all that is new since then among the deltas, as long as this is below that snapshot's xmin. Whether the
-- snapshot sees this very xid tells too little: a lower one may have come to its end later.
CREATE TABLE llm_usage_compacted (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    xid     xid8    NOT NULL DEFAULT '0'
) WITH (fillfactor = 50);
INSERT INTO llm_usage_compacted DEFAULT VALUES;

COMMENT ON TABLE llm_usage_compacted IS
    'The highest xid of the deltas that were added up and removed: a snapshot with a higher xmin has seen all of these.';

-- Abbreviations are none: CST is China's time as well as Chicago's.
CREATE FUNCTION llm_is_time_zone(name text) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM pg_catalog.pg_timezone_names zones WHERE zones.name = llm_is_time_zone.name)
$$;

-- The clock by which people here know hours, days and months.
CREATE TABLE llm_site (
    is_only   boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    time_zone text    NOT NULL DEFAULT 'UTC' CHECK (llm_is_time_zone(time_zone))
);
INSERT INTO llm_site DEFAULT VALUES;
-- A dashboard may know it as well as what it shows.
GRANT SELECT ON llm_site TO PUBLIC;

COMMENT ON TABLE llm_site IS 'The time zone of hours, days and months. Set by SITE_TIME_ZONE; usage that is counted keeps its hours.';

-- As before, with the team and estimates, in hours of the site's clock: a day in Kolkata begins at half past an hour in UTC, and is
-- whole hours nevertheless.
CREATE OR REPLACE FUNCTION llm_count_usage() RETURNS trigger
LANGUAGE plpgsql AS $$
DECLARE
    zone text := coalesce((SELECT time_zone FROM llm_site), 'UTC');
BEGIN
    -- Another image of PostgreSQL may know fewer zones. Upkeep says so at its start; no row is lost for it.
    BEGIN
        PERFORM date_trunc('hour', now(), zone);
    EXCEPTION WHEN invalid_parameter_value THEN
        zone := 'UTC';
    END;
    -- Names are cut, because an index cannot hold all that a client may make up as a model.
    -- `prompt_tokens` leaves out cached tokens for the messages API alone.
    INSERT INTO llm_usage_deltas (hour, consumer_username, model, team, calls, errors, forwarded_calls, prompt_tokens,
        uncached_prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens, estimated_prompt_tokens,
        estimated_completion_tokens, timed_calls, latencies)
    SELECT date_trunc('hour', started_at, zone), left(consumer_username, 200), left(coalesce(model, 'unknown'), 200),
        left(coalesce(team, ''), 200),
        count(*), count(*) FILTER (WHERE status IS NULL OR status >= 400 OR error IS NOT NULL),
        count(coalesce(upstream_latency_ms, prompt_tokens, completion_tokens, estimated_prompt_tokens, estimated_completion_tokens)),
        coalesce(sum(prompt_tokens), 0),
        coalesce(sum(CASE WHEN endpoint ~ '/v1/messages/?$' THEN prompt_tokens
                          ELSE greatest(0, prompt_tokens - coalesce(cached_tokens, 0)) END), 0),
        coalesce(sum(cached_tokens), 0), coalesce(sum(completion_tokens), 0), coalesce(sum(reasoning_tokens), 0),
        coalesce(sum(estimated_prompt_tokens) FILTER (WHERE prompt_tokens IS NULL), 0),
        coalesce(sum(estimated_completion_tokens) FILTER (WHERE completion_tokens IS NULL), 0),
        count(latency_ms), coalesce(sum(llm_latency_unit(latency_ms)), 0)
    FROM new_rows GROUP BY 1, 2, 3, 4;
    RETURN NULL;
END $$;

-- Adds some of the deltas to llm_usage and llm_usage_days, and returns how many. One collector at a time does it.
--
-- What is taken only where it is settled is a minute old, and no transaction is under way any more that may bring older ones: whoever asks
-- every few seconds what is new since a snapshot finds it among the deltas. One that is under way for an hour is not waited for: then
-- the deltas would gather, and llm_usage_compacted tells.
CREATE FUNCTION llm_compact_usage_piece(max_deltas integer, only_settled boolean) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    compacted bigint;
    oldest    xid8 := pg_snapshot_xmin(pg_current_snapshot());
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtext('llm_logs'), hashtext('usage')) THEN
        RETURN 0;
    END IF;
    -- One statement: whoever reads meanwhile sees all of it or nothing.
    WITH taken AS (
        DELETE FROM llm_usage_deltas WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM llm_usage_deltas
            WHERE NOT only_settled OR noted_at < now() - interval '60 seconds' AND xid < oldest
                OR noted_at < now() - interval '1 hour'
            LIMIT max_deltas)) RETURNING *
    ), hours AS (
        SELECT hour, consumer_username, model, team, sum(calls) AS calls, sum(errors) AS errors,
            sum(forwarded_calls) AS forwarded_calls, sum(prompt_tokens) AS prompt_tokens,
            sum(uncached_prompt_tokens) AS uncached_prompt_tokens, sum(cached_tokens) AS cached_tokens,
            sum(completion_tokens) AS completion_tokens, sum(reasoning_tokens) AS reasoning_tokens,
            sum(estimated_prompt_tokens) AS estimated_prompt_tokens, sum(estimated_completion_tokens) AS estimated_completion_tokens,
            sum(timed_calls) AS timed_calls, sum(latencies) AS latencies
        FROM taken GROUP BY hour, consumer_username, model, team
    ), added AS (
        INSERT INTO llm_usage_of_teams AS u (hour, consumer_username, model, team, calls, errors, forwarded_calls, prompt_tokens,
            uncached_prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens, estimated_prompt_tokens,
            estimated_completion_tokens, timed_calls, latencies)
        SELECT hour, consumer_username, model, team, calls, errors, forwarded_calls, prompt_tokens, uncached_prompt_tokens,
            cached_tokens, completion_tokens, reasoning_tokens, estimated_prompt_tokens, estimated_completion_tokens, timed_calls,
            latencies
        FROM hours
        ON CONFLICT (hour, consumer_username, model, team) DO UPDATE SET
            calls = u.calls + excluded.calls,
            errors = u.errors + excluded.errors,
            forwarded_calls = u.forwarded_calls + excluded.forwarded_calls,
            prompt_tokens = u.prompt_tokens + excluded.prompt_tokens,
            uncached_prompt_tokens = u.uncached_prompt_tokens + excluded.uncached_prompt_tokens,
            cached_tokens = u.cached_tokens + excluded.cached_tokens,
            completion_tokens = u.completion_tokens + excluded.completion_tokens,
            reasoning_tokens = u.reasoning_tokens + excluded.reasoning_tokens,
            estimated_prompt_tokens = u.estimated_prompt_tokens + excluded.estimated_prompt_tokens,
            estimated_completion_tokens = u.estimated_completion_tokens + excluded.estimated_completion_tokens,
            timed_calls = u.timed_calls + excluded.timed_calls,
            latencies = u.latencies + excluded.latencies
    ), added_to_days AS (
        INSERT INTO llm_usage_days_of_teams AS u (day, consumer_username, model, team, calls, errors, forwarded_calls,
            prompt_tokens, uncached_prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens, estimated_prompt_tokens,
            estimated_completion_tokens, timed_calls, latencies)
        SELECT date_trunc('day', hour, 'UTC'), consumer_username, model, team, sum(calls), sum(errors), sum(forwarded_calls),
            sum(prompt_tokens), sum(uncached_prompt_tokens), sum(cached_tokens), sum(completion_tokens), sum(reasoning_tokens),
            sum(estimated_prompt_tokens), sum(estimated_completion_tokens), sum(timed_calls), sum(latencies)
        FROM hours GROUP BY date_trunc('day', hour, 'UTC'), consumer_username, model, team
        ON CONFLICT (day, consumer_username, model, team) DO UPDATE SET
            calls = u.calls + excluded.calls,
            errors = u.errors + excluded.errors,
            forwarded_calls = u.forwarded_calls + excluded.forwarded_calls,
            prompt_tokens = u.prompt_tokens + excluded.prompt_tokens,
            uncached_prompt_tokens = u.uncached_prompt_tokens + excluded.uncached_prompt_tokens,
            cached_tokens = u.cached_tokens + excluded.cached_tokens,
            completion_tokens = u.completion_tokens + excluded.completion_tokens,
            reasoning_tokens = u.reasoning_tokens + excluded.reasoning_tokens,
            estimated_prompt_tokens = u.estimated_prompt_tokens + excluded.estimated_prompt_tokens,
            estimated_completion_tokens = u.estimated_completion_tokens + excluded.estimated_completion_tokens,
            timed_calls = u.timed_calls + excluded.timed_calls,
            latencies = u.latencies + excluded.latencies
    ), seen AS (
        INSERT INTO llm_usage_models SELECT DISTINCT model FROM taken
        WHERE prompt_tokens + completion_tokens + estimated_prompt_tokens + estimated_completion_tokens > 0
        ON CONFLICT DO NOTHING
    ), noted AS (
        UPDATE llm_usage_compacted c SET xid = last.xid
        FROM (SELECT xid FROM taken ORDER BY xid DESC LIMIT 1) last WHERE c.xid < last.xid
    )
    SELECT count(*) INTO compacted FROM taken;

    -- PostgreSQL analyzes no table as small as these by itself, and expects so much of one without statistics, as after a restore,
    -- that it compiles every question for a second.
    IF EXISTS (SELECT FROM pg_class WHERE reltuples < 0 AND oid IN ('llm_usage'::regclass, 'llm_usage_days'::regclass,
               'llm_usage_of_teams'::regclass, 'llm_usage_days_of_teams'::regclass, 'llm_usage_deltas'::regclass,
               'llm_usage_models'::regclass, 'llm_model_prices'::regclass)) THEN
        ANALYZE llm_usage, llm_usage_days, llm_usage_of_teams, llm_usage_days_of_teams, llm_usage_deltas, llm_usage_models,
            llm_model_prices;
    END IF;
    RETURN compacted;
END $$;

CREATE OR REPLACE FUNCTION llm_compact_usage_piece(max_deltas integer) RETURNS bigint
LANGUAGE sql AS $$
    SELECT llm_compact_usage_piece(max_deltas, true)
$$;

-- All of them at once, also those that are not settled.
CREATE OR REPLACE FUNCTION llm_compact_usage() RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    piece     bigint;
    compacted bigint := 0;
BEGIN
    LOOP
        piece := llm_compact_usage_piece(20000, false);
        compacted := compacted + piece;
        EXIT WHEN piece = 0;
    END LOOP;
    RETURN compacted;
END $$;

-- The views as before, with the new columns behind the others.

CREATE OR REPLACE VIEW llm_usage_counts AS
SELECT hour, consumer_username, model, calls, errors, prompt_tokens, uncached_prompt_tokens, cached_tokens, completion_tokens,
    reasoning_tokens, timed_calls, latencies, team, forwarded_calls, estimated_prompt_tokens, estimated_completion_tokens
FROM llm_usage
UNION ALL
SELECT hour, consumer_username, model, calls, errors, prompt_tokens, uncached_prompt_tokens, cached_tokens, completion_tokens,
    reasoning_tokens, timed_calls, latencies, team, forwarded_calls, estimated_prompt_tokens, estimated_completion_tokens
FROM llm_usage_deltas;

COMMENT ON VIEW llm_usage_counts IS 'Calls and tokens by hour, consumer, model and team; some rows more than once, to be added up.';

-- `cost` is of the tokens that were reported, `estimated_cost` of the others.
CREATE OR REPLACE VIEW llm_usage_costs AS
SELECT u.hour, u.consumer_username, u.model, u.calls, u.errors, u.prompt_tokens, u.completion_tokens, u.cached_tokens,
    u.reasoning_tokens, u.timed_calls, u.latencies,
    llm_cost(u.uncached_prompt_tokens, u.cached_tokens, u.completion_tokens,
             p.prompt_per_million, p.cached_per_million, p.completion_per_million) AS cost,
    coalesce(p.currency, '') AS currency, u.team, u.forwarded_calls, u.estimated_prompt_tokens, u.estimated_completion_tokens,
    llm_cost(u.estimated_prompt_tokens, 0, u.estimated_completion_tokens,
             p.prompt_per_million, 0, p.completion_per_million) AS estimated_cost
FROM llm_usage_counts u
LEFT JOIN llm_price_periods p ON p.model = u.model AND u.hour >= p.starts_at AND u.hour < p.ends_at;

CREATE OR REPLACE VIEW llm_usage_hourly AS
SELECT hour, consumer_username, model, sum(calls)::bigint AS calls, sum(errors)::bigint AS errors,
    sum(prompt_tokens)::bigint AS prompt_tokens, sum(completion_tokens)::bigint AS completion_tokens,
    sum(cached_tokens)::bigint AS cached_tokens, sum(reasoning_tokens)::bigint AS reasoning_tokens,
    sum(cost) AS cost, currency, team, sum(forwarded_calls)::bigint AS forwarded_calls,
    sum(estimated_prompt_tokens)::bigint AS estimated_prompt_tokens,
    sum(estimated_completion_tokens)::bigint AS estimated_completion_tokens, sum(estimated_cost) AS estimated_cost
FROM llm_usage_costs
GROUP BY hour, consumer_username, model, team, currency;

COMMENT ON VIEW llm_usage_hourly IS
    'Usage and cost by hour (of the site''s clock), consumer, model and team. Currency is empty where the model has no price.';

CREATE OR REPLACE VIEW llm_usage_day_costs AS
SELECT u.day, u.consumer_username, u.model, u.calls, u.errors, u.prompt_tokens, u.completion_tokens, u.cached_tokens,
    u.reasoning_tokens, u.timed_calls, u.latencies,
    llm_cost(u.uncached_prompt_tokens, u.cached_tokens, u.completion_tokens,
             p.prompt_per_million, p.cached_per_million, p.completion_per_million) AS cost,
    coalesce(p.currency, '') AS currency, u.team, u.forwarded_calls, u.estimated_prompt_tokens, u.estimated_completion_tokens,
    llm_cost(u.estimated_prompt_tokens, 0, u.estimated_completion_tokens,
             p.prompt_per_million, 0, p.completion_per_million) AS estimated_cost
FROM (
    SELECT day AS starts_at, day, consumer_username, model, team, calls, errors, forwarded_calls, prompt_tokens,
        uncached_prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens, estimated_prompt_tokens,
        estimated_completion_tokens, timed_calls, latencies
    FROM llm_usage_days
    WHERE day NOT IN (SELECT day FROM llm_price_change_days)
    UNION ALL
    SELECT u.hour, c.day, u.consumer_username, u.model, u.team, u.calls, u.errors, u.forwarded_calls, u.prompt_tokens,
        u.uncached_prompt_tokens, u.cached_tokens, u.completion_tokens, u.reasoning_tokens, u.estimated_prompt_tokens,
        u.estimated_completion_tokens, u.timed_calls, u.latencies
    FROM llm_price_change_days c JOIN llm_usage u ON u.hour >= c.day AND u.hour < c.day + interval '24 hours'
    UNION ALL
    SELECT hour, date_trunc('day', hour, 'UTC'), consumer_username, model, team, calls, errors, forwarded_calls, prompt_tokens,
        uncached_prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens, estimated_prompt_tokens,
        estimated_completion_tokens, timed_calls, latencies
    FROM llm_usage_deltas
) u
LEFT JOIN llm_price_periods p ON p.model = u.model AND u.starts_at >= p.starts_at AND u.starts_at < p.ends_at;

-- The hour that `since` lies in is the one that begins less than an hour before, on whatever clock: so no zone is asked for here.
CREATE OR REPLACE FUNCTION llm_usage_between(since timestamptz, until timestamptz) RETURNS SETOF llm_usage_day_costs
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT date_trunc('day', hour, 'UTC'), consumer_username, model, calls, errors, prompt_tokens, completion_tokens, cached_tokens,
        reasoning_tokens, timed_calls, latencies, cost, currency, team, forwarded_calls, estimated_prompt_tokens,
        estimated_completion_tokens, estimated_cost
    FROM llm_usage_costs
    WHERE hour > since - interval '1 hour' AND hour <= until AND hour < llm_midnight_from(since)
    UNION ALL
    SELECT * FROM llm_usage_day_costs
    WHERE day >= llm_midnight_from(since) AND day < date_trunc('day', until, 'UTC')
    UNION ALL
    SELECT date_trunc('day', hour, 'UTC'), consumer_username, model, calls, errors, prompt_tokens, completion_tokens, cached_tokens,
        reasoning_tokens, timed_calls, latencies, cost, currency, team, forwarded_calls, estimated_prompt_tokens,
        estimated_completion_tokens, estimated_cost
    FROM llm_usage_costs
    WHERE hour >= greatest(date_trunc('day', until, 'UTC'), llm_midnight_from(since)) AND hour <= until
$$;

CREATE OR REPLACE VIEW llm_usage_daily AS
SELECT day, consumer_username, model, calls, errors, prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens, cost,
    currency, percentiles[1] AS latency_p50_ms, percentiles[2] AS latency_p95_ms, percentiles[3] AS latency_p99_ms, team,
    forwarded_calls, estimated_prompt_tokens, estimated_completion_tokens, estimated_cost
FROM (
    SELECT (day AT TIME ZONE 'UTC')::date AS day, consumer_username, model, team, sum(calls)::bigint AS calls,
        sum(errors)::bigint AS errors, sum(forwarded_calls)::bigint AS forwarded_calls,
        sum(prompt_tokens)::bigint AS prompt_tokens, sum(completion_tokens)::bigint AS completion_tokens,
        sum(cached_tokens)::bigint AS cached_tokens, sum(reasoning_tokens)::bigint AS reasoning_tokens,
        sum(estimated_prompt_tokens)::bigint AS estimated_prompt_tokens,
        sum(estimated_completion_tokens)::bigint AS estimated_completion_tokens, sum(cost) AS cost,
        sum(estimated_cost) AS estimated_cost, currency,
        llm_latency_percentiles(sum(latencies), sum(timed_calls)::bigint) AS percentiles
    FROM llm_usage_day_costs
    GROUP BY llm_usage_day_costs.day, consumer_username, model, team, currency
) days;

COMMENT ON VIEW llm_usage_daily IS
    'Usage, cost and latency by day (UTC, by where hours begin), consumer, model and team. Currency is empty where the model has no price.';

-- As before, also for the calls of teams; the empty name stands for calls without one. No argument has a default here, so that it is never
-- open which of the two functions is meant.
CREATE FUNCTION llm_search(words text, since timestamptz, until timestamptz, max_rows integer, consumers text[], models text[],
    outcome text, teams text[])
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
        || CASE WHEN teams IS NOT NULL THEN ' AND coalesce(team, '''') = ANY ($8)' ELSE '' END
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
        RETURN QUERY EXECUTE chosen || newest USING since, upper, max_rows, consumers, models, pattern, doubled, teams;
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
        INTO read_from USING since, upper, read_first, consumers, models, pattern, doubled, teams;
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
            USING stretch.starts_at, stretch.ends_at, max_rows - found, consumers, models, pattern, doubled, teams;
        GET DIAGNOSTICS more = ROW_COUNT;
        found := found + more;
        EXIT WHEN found >= max_rows;
    END LOOP;
END $$;

CREATE OR REPLACE FUNCTION llm_search(words text, since timestamptz, until timestamptz, max_rows integer DEFAULT 100,
    consumers text[] DEFAULT NULL, models text[] DEFAULT NULL, outcome text DEFAULT 'any')
RETURNS SETOF llm_logs
LANGUAGE sql STABLE AS $$
    SELECT * FROM llm_search(words, since, until, max_rows, consumers, models, outcome, NULL)
$$;

COMMENT ON FUNCTION llm_search(text, timestamptz, timestamptz, integer, text[], text[], text, text[]) IS
    'The newest calls between two times whose prompt or answer holds these words, also of teams.';
