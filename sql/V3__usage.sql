-- What was used and what it costs, by hour, consumer and model, kept apart from the rows: it stays when their content or they
-- themselves are gone.
--
-- Rows are counted once, when they are inserted into llm_logs. Nothing counts again: neither what ON CONFLICT skipped, nor rows that
-- are moved, rewritten, erased or dropped later. For that, whoever moves rows writes to partitions by their own names, as
-- llm_create_partition does: the trigger below sits on llm_logs alone.

-- Counts of one statement or of a whole hour. Sums of tokens are of what was reported.
CREATE TABLE llm_usage (
    hour                   timestamptz NOT NULL,
    consumer_username      text        NOT NULL,
    model                  text        NOT NULL,
    calls                  bigint      NOT NULL,
    errors                 bigint      NOT NULL,
    prompt_tokens          bigint      NOT NULL,
    -- Prompt tokens that did not come from the cache, whichever way the API counts them.
    uncached_prompt_tokens bigint      NOT NULL,
    cached_tokens          bigint      NOT NULL,
    completion_tokens      bigint      NOT NULL,
    reasoning_tokens       bigint      NOT NULL,
    -- Calls whose latency is known, and their histogram: see llm_latency_unit.
    timed_calls            bigint      NOT NULL,
    latencies              numeric     NOT NULL,
    PRIMARY KEY (hour, consumer_username, model)
) WITH (fillfactor = 80);

-- Questions are about days.
CREATE INDEX llm_usage_day ON llm_usage (((hour AT TIME ZONE 'UTC')::date));

-- What was counted since llm_compact_usage ran last: each statement adds rows, and none waits for another's locks. Small, so it has
-- no index.
CREATE TABLE llm_usage_deltas (LIKE llm_usage)
    WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

-- Models that tokens were counted for: what prices are looked up for. Names that clients made up are not among them.
CREATE TABLE llm_usage_models (
    model text PRIMARY KEY
);

COMMENT ON TABLE llm_usage IS 'Calls, tokens and latencies by hour, consumer and model; without what llm_usage_deltas still holds.';
COMMENT ON TABLE llm_usage_deltas IS 'What is to be added to llm_usage. The views llm_usage_hourly and llm_usage_daily add both.';

-- A histogram of latencies is one number: bucket n counts in units of 10^(12 n). So histograms are added by `+` and sum(), in C:
-- 400,000 of them in half a second, where adding arrays in SQL takes most of a minute. Bucket n holds latencies above 1.15^(n-1) up
-- to 1.15^n milliseconds; the last, 110, all above an hour.
CREATE FUNCTION llm_latency_unit(latency_ms integer) RETURNS numeric
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT ('1' || repeat('0', 12 * least(110, ceil(ln(greatest(latency_ms, 1)::float8) / ln(1.15::float8)))::integer))::numeric
$$;

-- p50, p95 and p99 of such a histogram, in milliseconds, each 8 % off at most; null without calls.
CREATE FUNCTION llm_latency_percentiles(latencies numeric, calls bigint) RETURNS integer[]
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    buckets     integer := (length(latencies::text) + 11) / 12;
    digits      text    := lpad(latencies::text, 12 * buckets, '0');
    -- Counted from the slowest call, because the high buckets stand in front and two of three percentiles are there. The call at
    -- which a percentile is reached is the one that percentile_disc takes.
    ranks       bigint[] := ARRAY[calls + 1 - (99 * calls + 99) / 100, calls + 1 - (95 * calls + 99) / 100,
                                  calls + 1 - (50 * calls + 99) / 100];
    rank        bigint  := ranks[1];
    seen        bigint  := 0;
    percentiles integer[] := '{}';
BEGIN
    FOR bucket IN REVERSE buckets - 1 .. 0 LOOP
        seen := seen + substr(digits, 12 * (buckets - bucket) - 11, 12)::bigint;
        CONTINUE WHEN seen < rank;
        LOOP
            percentiles := greatest(1, round(1.15::float8 ^ (bucket - 0.5)))::integer || percentiles;
            IF cardinality(percentiles) = 3 THEN
                RETURN percentiles;
            END IF;
            rank := ranks[cardinality(percentiles) + 1];
            EXIT WHEN seen < rank;
        END LOOP;
    END LOOP;
    RETURN NULL;
END $$;

-- About 4 % of the time of a statement with 200 calls of usual size (1.3 of 32 ms), which adds about 100 rows.
CREATE FUNCTION llm_count_usage() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    -- Names are cut, because an index cannot hold all that a client may make up as a model.
    -- `prompt_tokens` leaves out cached tokens for the messages API alone.
    INSERT INTO llm_usage_deltas (hour, consumer_username, model, calls, errors, prompt_tokens, uncached_prompt_tokens,
        cached_tokens, completion_tokens, reasoning_tokens, timed_calls, latencies)
    SELECT date_trunc('hour', started_at, 'UTC'), left(consumer_username, 200), left(coalesce(model, 'unknown'), 200),
        count(*), count(*) FILTER (WHERE status IS NULL OR status >= 400 OR error IS NOT NULL),
        coalesce(sum(prompt_tokens), 0),
        coalesce(sum(CASE WHEN endpoint ~ '/v1/messages/?$' THEN prompt_tokens
                          ELSE greatest(0, prompt_tokens - coalesce(cached_tokens, 0)) END), 0),
        coalesce(sum(cached_tokens), 0), coalesce(sum(completion_tokens), 0), coalesce(sum(reasoning_tokens), 0),
        count(latency_ms), coalesce(sum(llm_latency_unit(latency_ms)), 0)
    FROM new_rows GROUP BY 1, 2, 3;
    RETURN NULL;
END $$;

CREATE TRIGGER llm_count_usage AFTER INSERT ON llm_logs REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION llm_count_usage();

-- Adds the deltas to llm_usage, and returns how many there were. Collectors call it about every minute; one at a time does it.
CREATE FUNCTION llm_compact_usage() RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    compacted bigint;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtext('llm_logs'), hashtext('usage')) THEN
        RETURN 0;
    END IF;
    -- One statement: whoever reads meanwhile sees all of it or nothing.
    WITH taken AS (
        DELETE FROM llm_usage_deltas RETURNING *
    ), added AS (
        INSERT INTO llm_usage AS u (hour, consumer_username, model, calls, errors, prompt_tokens, uncached_prompt_tokens,
            cached_tokens, completion_tokens, reasoning_tokens, timed_calls, latencies)
        SELECT hour, consumer_username, model, sum(calls), sum(errors), sum(prompt_tokens), sum(uncached_prompt_tokens),
            sum(cached_tokens), sum(completion_tokens), sum(reasoning_tokens), sum(timed_calls), sum(latencies)
        FROM taken GROUP BY hour, consumer_username, model
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
    ), seen AS (
        INSERT INTO llm_usage_models SELECT DISTINCT model FROM taken WHERE prompt_tokens + completion_tokens > 0
        ON CONFLICT DO NOTHING
    )
    SELECT count(*) INTO compacted FROM taken;

    -- PostgreSQL analyzes no table as small as these by itself, and expects so much of one without statistics, as after a restore,
    -- that it compiles every question for a second.
    IF EXISTS (SELECT FROM pg_class WHERE reltuples < 0 AND oid IN ('llm_usage'::regclass, 'llm_usage_deltas'::regclass,
               'llm_usage_models'::regclass, 'llm_model_prices'::regclass)) THEN
        ANALYZE llm_usage, llm_usage_deltas, llm_usage_models, llm_model_prices;
    END IF;
    RETURN compacted;
END $$;

-- What a model costs from some time on. Of the patterns that match a model the longest counts, of its prices the latest that is
-- valid at the beginning of the hour. A model without a price costs nothing.
CREATE TABLE llm_model_prices (
    -- A pattern that ends with LIKE's escape character would fail every report.
    model_pattern          text        NOT NULL CHECK (model_pattern <> '' AND strpos(model_pattern, '\') = 0),
    valid_from             timestamptz NOT NULL DEFAULT '1970-01-01 00:00:00+00',
    prompt_per_million     numeric     NOT NULL DEFAULT 0 CHECK (prompt_per_million >= 0),
    cached_per_million     numeric     NOT NULL DEFAULT 0 CHECK (cached_per_million >= 0),
    completion_per_million numeric     NOT NULL DEFAULT 0 CHECK (completion_per_million >= 0),
    currency               text        NOT NULL CHECK (currency <> ''),
    PRIMARY KEY (model_pattern, valid_from)
);

COMMENT ON TABLE llm_model_prices IS 'Prices of models for a million tokens; llm-collector prices sets them.';
COMMENT ON COLUMN llm_model_prices.model_pattern IS 'Name of a model; % stands for any text, _ for any character.';
COMMENT ON COLUMN llm_model_prices.cached_per_million IS 'For prompt tokens that came from the cache.';

-- Which price each model has from when to when. Looked up for each model instead of each row of usage: there are a few models and
-- prices, and half a million rows a month.
CREATE VIEW llm_price_periods AS
SELECT model, starts_at, lead(starts_at, 1, 'infinity') OVER (PARTITION BY model ORDER BY starts_at) AS ends_at,
    prompt_per_million, cached_per_million, completion_per_million, currency
FROM (SELECT model FROM llm_usage_models UNION SELECT DISTINCT model FROM llm_usage_deltas) models
CROSS JOIN (SELECT DISTINCT valid_from AS starts_at FROM llm_model_prices) changes
CROSS JOIN LATERAL (
    SELECT prompt_per_million, cached_per_million, completion_per_million, currency
    FROM llm_model_prices
    WHERE model LIKE model_pattern AND valid_from <= starts_at
    ORDER BY length(model_pattern) DESC, valid_from DESC, model_pattern
    LIMIT 1
) price;

-- Both tables, some keys more than once: to be added up. Questions about counts alone read this, because looking up a price for each
-- row takes half the time of a sum over a month.
CREATE VIEW llm_usage_counts AS
SELECT hour, consumer_username, model, calls, errors, prompt_tokens, uncached_prompt_tokens, cached_tokens, completion_tokens,
    reasoning_tokens, timed_calls, latencies FROM llm_usage
UNION ALL
SELECT hour, consumer_username, model, calls, errors, prompt_tokens, uncached_prompt_tokens, cached_tokens, completion_tokens,
    reasoning_tokens, timed_calls, latencies FROM llm_usage_deltas;

COMMENT ON VIEW llm_usage_counts IS 'Calls and tokens by hour, consumer and model; some rows more than once, to be added up.';

-- The same with the cost: what the other views and `llm-collector report` add up.
CREATE VIEW llm_usage_costs AS
SELECT u.hour, u.consumer_username, u.model, u.calls, u.errors, u.prompt_tokens, u.completion_tokens, u.cached_tokens,
    u.reasoning_tokens, u.timed_calls, u.latencies,
    coalesce(greatest(0, u.uncached_prompt_tokens) * p.prompt_per_million
             + greatest(0, u.cached_tokens) * p.cached_per_million
             + greatest(0, u.completion_tokens) * p.completion_per_million, 0) * 0.000001 AS cost,
    coalesce(p.currency, '') AS currency
FROM llm_usage_counts u
LEFT JOIN llm_price_periods p ON p.model = u.model AND u.hour >= p.starts_at AND u.hour < p.ends_at;

CREATE VIEW llm_usage_hourly AS
SELECT hour, consumer_username, model, sum(calls)::bigint AS calls, sum(errors)::bigint AS errors,
    sum(prompt_tokens)::bigint AS prompt_tokens, sum(completion_tokens)::bigint AS completion_tokens,
    sum(cached_tokens)::bigint AS cached_tokens, sum(reasoning_tokens)::bigint AS reasoning_tokens,
    sum(cost) AS cost, currency
FROM llm_usage_costs
GROUP BY hour, consumer_username, model, currency;

COMMENT ON VIEW llm_usage_hourly IS 'Usage and cost by hour (UTC), consumer and model. Currency is empty where the model has no price.';

-- On the day on which a model gets another currency it has a row for each.
CREATE VIEW llm_usage_daily AS
SELECT day, consumer_username, model, calls, errors, prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens, cost,
    currency, percentiles[1] AS latency_p50_ms, percentiles[2] AS latency_p95_ms, percentiles[3] AS latency_p99_ms
FROM (
    SELECT (hour AT TIME ZONE 'UTC')::date AS day, consumer_username, model, sum(calls)::bigint AS calls,
        sum(errors)::bigint AS errors, sum(prompt_tokens)::bigint AS prompt_tokens,
        sum(completion_tokens)::bigint AS completion_tokens, sum(cached_tokens)::bigint AS cached_tokens,
        sum(reasoning_tokens)::bigint AS reasoning_tokens, sum(cost) AS cost, currency,
        llm_latency_percentiles(sum(latencies), sum(timed_calls)::bigint) AS percentiles
    FROM llm_usage_costs
    GROUP BY (hour AT TIME ZONE 'UTC')::date, consumer_username, model, currency
) days;

COMMENT ON VIEW llm_usage_daily IS 'Usage, cost and latency by day (UTC), consumer and model. Currency is empty where the model has no price.';

-- The rows that are there already, counted by the same trigger. Making it on llm_logs keeps others from inserting until the migration
-- is done, so that none is missed and none counted twice.
CREATE TABLE llm_usage_past AS
SELECT started_at, consumer_username, model, endpoint, status, error, prompt_tokens, completion_tokens, cached_tokens,
    reasoning_tokens, latency_ms
FROM llm_logs WITH NO DATA;

CREATE TRIGGER llm_count_usage AFTER INSERT ON llm_usage_past REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION llm_count_usage();

INSERT INTO llm_usage_past
SELECT started_at, consumer_username, model, endpoint, status, error, prompt_tokens, completion_tokens, cached_tokens,
    reasoning_tokens, latency_ms
FROM llm_logs;

DROP TABLE llm_usage_past;
SELECT llm_compact_usage();
