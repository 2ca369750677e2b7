-- Usage by day (UTC) beside usage by hour: a month of 200 users and 5 models is 30,000 rows instead of 700,000, and questions about
-- months and years are the ones that managers ask.
--
-- Prices change at any hour: midnight in Beijing is 16:00 in UTC. A day in whose middle a price changes is therefore asked of its
-- hours, for as long as that price is in the table. So nothing here depends on prices, and a price that is set later, for a time
-- that has gone by, counts at once.

CREATE TABLE llm_usage_days (
    -- Midnight in UTC, at which the day begins.
    day                    timestamptz NOT NULL,
    consumer_username      text        NOT NULL,
    model                  text        NOT NULL,
    calls                  bigint      NOT NULL,
    errors                 bigint      NOT NULL,
    prompt_tokens          bigint      NOT NULL,
    uncached_prompt_tokens bigint      NOT NULL,
    cached_tokens          bigint      NOT NULL,
    completion_tokens      bigint      NOT NULL,
    reasoning_tokens       bigint      NOT NULL,
    timed_calls            bigint      NOT NULL,
    latencies              numeric     NOT NULL,
    PRIMARY KEY (day, consumer_username, model)
) WITH (fillfactor = 80);

COMMENT ON TABLE llm_usage_days IS 'What llm_usage has, added up by day (UTC).';

-- What llm_compact_usage adds to llm_usage from now on it adds here too. A collector that is at it now must be done before.
SELECT pg_advisory_xact_lock(hashtext('llm_logs'), hashtext('usage'));

CREATE OR REPLACE FUNCTION llm_compact_usage() RETURNS bigint
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

INSERT INTO llm_usage_days (day, consumer_username, model, calls, errors, prompt_tokens, uncached_prompt_tokens, cached_tokens,
    completion_tokens, reasoning_tokens, timed_calls, latencies)
SELECT date_trunc('day', hour, 'UTC'), consumer_username, model, sum(calls), sum(errors), sum(prompt_tokens),
    sum(uncached_prompt_tokens), sum(cached_tokens), sum(completion_tokens), sum(reasoning_tokens), sum(timed_calls), sum(latencies)
FROM llm_usage GROUP BY date_trunc('day', hour, 'UTC'), consumer_username, model;

-- Days in whose middle a price changes.
CREATE VIEW llm_price_change_days AS
SELECT DISTINCT date_trunc('day', valid_from, 'UTC') AS day
FROM llm_model_prices
WHERE valid_from <> date_trunc('day', valid_from, 'UTC');

-- What tokens cost at prices for a million. A model without a price costs nothing, and no count takes from the cost.
CREATE FUNCTION llm_cost(uncached_prompt_tokens bigint, cached_tokens bigint, completion_tokens bigint,
    prompt_per_million numeric, cached_per_million numeric, completion_per_million numeric) RETURNS numeric
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT coalesce(greatest(0, uncached_prompt_tokens) * prompt_per_million
                    + greatest(0, cached_tokens) * cached_per_million
                    + greatest(0, completion_tokens) * completion_per_million, 0) * 0.000001
$$;

-- As before.
CREATE OR REPLACE VIEW llm_usage_costs AS
SELECT u.hour, u.consumer_username, u.model, u.calls, u.errors, u.prompt_tokens, u.completion_tokens, u.cached_tokens,
    u.reasoning_tokens, u.timed_calls, u.latencies,
    llm_cost(u.uncached_prompt_tokens, u.cached_tokens, u.completion_tokens,
             p.prompt_per_million, p.cached_per_million, p.completion_per_million) AS cost,
    coalesce(p.currency, '') AS currency
FROM llm_usage_counts u
LEFT JOIN llm_price_periods p ON p.model = u.model AND u.hour >= p.starts_at AND u.hour < p.ends_at;

-- All usage by day with its cost, some keys more than once: days on which one price holds, the hours of other days, and what is not
-- added up yet. `day` is midnight in UTC.
CREATE VIEW llm_usage_day_costs AS
SELECT u.day, u.consumer_username, u.model, u.calls, u.errors, u.prompt_tokens, u.completion_tokens, u.cached_tokens,
    u.reasoning_tokens, u.timed_calls, u.latencies,
    llm_cost(u.uncached_prompt_tokens, u.cached_tokens, u.completion_tokens,
             p.prompt_per_million, p.cached_per_million, p.completion_per_million) AS cost,
    coalesce(p.currency, '') AS currency
FROM (
    SELECT day AS starts_at, d.* FROM llm_usage_days d
    WHERE day NOT IN (SELECT day FROM llm_price_change_days)
    UNION ALL
    SELECT u.hour, c.day, u.consumer_username, u.model, u.calls, u.errors, u.prompt_tokens, u.uncached_prompt_tokens,
        u.cached_tokens, u.completion_tokens, u.reasoning_tokens, u.timed_calls, u.latencies
    FROM llm_price_change_days c JOIN llm_usage u ON u.hour >= c.day AND u.hour < c.day + interval '24 hours'
    UNION ALL
    SELECT hour, date_trunc('day', hour, 'UTC'), consumer_username, model, calls, errors, prompt_tokens, uncached_prompt_tokens,
        cached_tokens, completion_tokens, reasoning_tokens, timed_calls, latencies
    FROM llm_usage_deltas
) u
LEFT JOIN llm_price_periods p ON p.model = u.model AND u.starts_at >= p.starts_at AND u.starts_at < p.ends_at;

-- The first midnight (UTC) that is not before `since`.
CREATE FUNCTION llm_midnight_from(since timestamptz) RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT date_trunc('day', since - interval '1 microsecond', 'UTC') + interval '24 hours'
$$;

-- Usage and cost from the hour of `since` to the hour of `until`, in as few rows as can be had: whole days by day, the rest by hour.
-- Questions about days or about all of that time add it up; those about hours read llm_usage_counts.
CREATE FUNCTION llm_usage_between(since timestamptz, until timestamptz) RETURNS SETOF llm_usage_day_costs
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT date_trunc('day', hour, 'UTC'), consumer_username, model, calls, errors, prompt_tokens, completion_tokens, cached_tokens,
        reasoning_tokens, timed_calls, latencies, cost, currency
    FROM llm_usage_costs
    WHERE hour >= date_trunc('hour', since, 'UTC') AND hour <= until AND hour < llm_midnight_from(since)
    UNION ALL
    SELECT * FROM llm_usage_day_costs
    WHERE day >= llm_midnight_from(since) AND day < date_trunc('day', until, 'UTC')
    UNION ALL
    SELECT date_trunc('day', hour, 'UTC'), consumer_username, model, calls, errors, prompt_tokens, completion_tokens, cached_tokens,
        reasoning_tokens, timed_calls, latencies, cost, currency
    FROM llm_usage_costs
    WHERE hour >= greatest(date_trunc('day', until, 'UTC'), llm_midnight_from(since)) AND hour <= until
$$;

COMMENT ON FUNCTION llm_usage_between IS 'Usage and cost from the hour of since to the hour of until, to be added up.';

-- As before, from fewer rows.
CREATE OR REPLACE VIEW llm_usage_daily AS
SELECT day, consumer_username, model, calls, errors, prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens, cost,
    currency, percentiles[1] AS latency_p50_ms, percentiles[2] AS latency_p95_ms, percentiles[3] AS latency_p99_ms
FROM (
    SELECT (day AT TIME ZONE 'UTC')::date AS day, consumer_username, model, sum(calls)::bigint AS calls,
        sum(errors)::bigint AS errors, sum(prompt_tokens)::bigint AS prompt_tokens,
        sum(completion_tokens)::bigint AS completion_tokens, sum(cached_tokens)::bigint AS cached_tokens,
        sum(reasoning_tokens)::bigint AS reasoning_tokens, sum(cost) AS cost, currency,
        llm_latency_percentiles(sum(latencies), sum(timed_calls)::bigint) AS percentiles
    FROM llm_usage_day_costs
    GROUP BY llm_usage_day_costs.day, consumer_username, model, currency
) days;
