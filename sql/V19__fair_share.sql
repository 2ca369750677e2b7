-- How long whose calls waited for a place of a model server, counted with the rest of usage: by hour, consumer, model and team.
--
-- By day it is not added up: a report reads hours.

ALTER TABLE llm_usage
    -- Calls that the gateway held, and for how long together. Those from before are not known.
    ADD COLUMN waited_calls bigint NOT NULL DEFAULT 0,
    ADD COLUMN queue_ms     bigint NOT NULL DEFAULT 0;
ALTER TABLE llm_usage_deltas
    ADD COLUMN waited_calls bigint NOT NULL DEFAULT 0,
    ADD COLUMN queue_ms     bigint NOT NULL DEFAULT 0;

-- As before, and what was waited.
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
        estimated_completion_tokens, timed_calls, latencies, waited_calls, queue_ms)
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
        count(latency_ms), coalesce(sum(llm_latency_unit(latency_ms)), 0),
        count(queue_ms), coalesce(sum(queue_ms), 0)
    FROM new_rows GROUP BY 1, 2, 3, 4;
    RETURN NULL;
END $$;

-- As before, and what was waited.
CREATE OR REPLACE FUNCTION llm_compact_usage_piece(max_deltas integer, only_settled boolean) RETURNS bigint
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
            sum(timed_calls) AS timed_calls, sum(latencies) AS latencies,
            sum(waited_calls) AS waited_calls, sum(queue_ms) AS queue_ms
        FROM taken GROUP BY hour, consumer_username, model, team
    ), added AS (
        INSERT INTO llm_usage_of_teams AS u (hour, consumer_username, model, team, calls, errors, forwarded_calls, prompt_tokens,
            uncached_prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens, estimated_prompt_tokens,
            estimated_completion_tokens, timed_calls, latencies, waited_calls, queue_ms)
        SELECT hour, consumer_username, model, team, calls, errors, forwarded_calls, prompt_tokens, uncached_prompt_tokens,
            cached_tokens, completion_tokens, reasoning_tokens, estimated_prompt_tokens, estimated_completion_tokens, timed_calls,
            latencies, waited_calls, queue_ms
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
            latencies = u.latencies + excluded.latencies,
            waited_calls = u.waited_calls + excluded.waited_calls,
            queue_ms = u.queue_ms + excluded.queue_ms
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

-- The views as before, with the new columns behind the others.

CREATE OR REPLACE VIEW llm_usage_counts AS
SELECT hour, consumer_username, model, calls, errors, prompt_tokens, uncached_prompt_tokens, cached_tokens, completion_tokens,
    reasoning_tokens, timed_calls, latencies, team, forwarded_calls, estimated_prompt_tokens, estimated_completion_tokens,
    waited_calls, queue_ms
FROM llm_usage
UNION ALL
SELECT hour, consumer_username, model, calls, errors, prompt_tokens, uncached_prompt_tokens, cached_tokens, completion_tokens,
    reasoning_tokens, timed_calls, latencies, team, forwarded_calls, estimated_prompt_tokens, estimated_completion_tokens,
    waited_calls, queue_ms
FROM llm_usage_deltas;

CREATE OR REPLACE VIEW llm_usage_costs AS
SELECT u.hour, u.consumer_username, u.model, u.calls, u.errors, u.prompt_tokens, u.completion_tokens, u.cached_tokens,
    u.reasoning_tokens, u.timed_calls, u.latencies,
    llm_cost(u.uncached_prompt_tokens, u.cached_tokens, u.completion_tokens,
             p.prompt_per_million, p.cached_per_million, p.completion_per_million) AS cost,
    coalesce(p.currency, '') AS currency, u.team, u.forwarded_calls, u.estimated_prompt_tokens, u.estimated_completion_tokens,
    llm_cost(u.estimated_prompt_tokens, 0, u.estimated_completion_tokens,
             p.prompt_per_million, 0, p.completion_per_million) AS estimated_cost, u.waited_calls, u.queue_ms
FROM llm_usage_counts u
LEFT JOIN llm_price_periods p ON p.model = u.model AND u.hour >= p.starts_at AND u.hour < p.ends_at;
