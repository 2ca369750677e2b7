-- What one consumer used, for that consumer: the usage page and /v1/usage. `serve`, which may not read tables, calls these functions
-- with the owner's rights, and gets no more than what belongs to one name.

-- Usage of one consumer, added up in several ways ("part"), by the site's clock:
--   today, month   the day and the calendar month of now
--   days           the last `most_days` days, today among them
--   model          the same, of one model (null: of all that are not among the 20 most used)
--   day, day_model the same, of one day, and of one day and model
-- Currencies, and what was spent in each; of tokens that were reported, and of those that were estimated.
--
-- Usage has no index by consumer: it is looked up at each hour that a clock may have had. All clocks of today are whole quarters of an
-- hour ahead of UTC, so these are 2,976 places a month, some milliseconds, however many others there are.
CREATE FUNCTION llm_own_usage(consumer text, most_days integer)
RETURNS TABLE (part text, on_day date, of_model text, calls bigint, errors bigint, prompt_tokens bigint, cached_tokens bigint,
    completion_tokens bigint, reasoning_tokens bigint, estimated_prompt_tokens bigint, estimated_completion_tokens bigint,
    currencies text[], costs text[], estimated_costs text[])
LANGUAGE sql STABLE SET jit = off AS $$
    WITH site AS MATERIALIZED (
        SELECT zone, local::date AS today, date_trunc('month', local)::date AS month, local::date - (most_days - 1) AS first
        FROM (SELECT zone, now() AT TIME ZONE zone AS local
              FROM (SELECT coalesce((SELECT time_zone FROM llm_site), 'UTC') AS zone) zones) clock
    ), used AS MATERIALIZED (
        SELECT (c.hour AT TIME ZONE s.zone)::date AS day, c.model, c.currency, sum(c.calls) AS calls, sum(c.errors) AS errors,
            sum(c.prompt_tokens) AS prompt_tokens, sum(c.cached_tokens) AS cached_tokens,
            sum(c.completion_tokens) AS completion_tokens, sum(c.reasoning_tokens) AS reasoning_tokens,
            sum(c.estimated_prompt_tokens) AS estimated_prompt_tokens,
            sum(c.estimated_completion_tokens) AS estimated_completion_tokens, sum(c.cost) AS cost,
            sum(c.estimated_cost) AS estimated_cost
        FROM llm_usage_costs c, site s
        WHERE c.consumer_username = left(consumer, 200) AND c.hour = ANY (ARRAY(
            SELECT generate_series(least(month, first)::timestamp AT TIME ZONE zone, now(), interval '15 minutes') FROM site))
        GROUP BY 1, 2, 3
    ), top AS (
        SELECT u.model FROM used u, site s WHERE u.day >= s.first GROUP BY u.model
        ORDER BY sum(u.prompt_tokens + u.completion_tokens + u.estimated_prompt_tokens + u.estimated_completion_tokens) DESC,
            sum(u.calls) DESC, u.model LIMIT 20
    ), parts AS (
        SELECT p.part, p.day, p.model, u.currency, sum(u.calls) AS calls, sum(u.errors) AS errors,
            sum(u.prompt_tokens) AS prompt_tokens, sum(u.cached_tokens) AS cached_tokens,
            sum(u.completion_tokens) AS completion_tokens, sum(u.reasoning_tokens) AS reasoning_tokens,
            sum(u.estimated_prompt_tokens) AS estimated_prompt_tokens,
            sum(u.estimated_completion_tokens) AS estimated_completion_tokens, sum(u.cost) AS cost,
            sum(u.estimated_cost) AS estimated_cost
        FROM used u
        CROSS JOIN site s
        LEFT JOIN top ON top.model = u.model
        CROSS JOIN LATERAL (VALUES
            (u.day = s.today, 'today', NULL::date, NULL::text),
            (u.day >= s.month, 'month', NULL, NULL),
            (u.day >= s.first, 'days', NULL, NULL),
            (u.day >= s.first, 'model', NULL, top.model),
            (u.day >= s.first, 'day', u.day, NULL),
            (u.day >= s.first, 'day_model', u.day, top.model)
        ) AS p (counts, part, day, model)
        WHERE p.counts
        GROUP BY p.part, p.day, p.model, u.currency
    )
    SELECT part, day, model, sum(calls)::bigint, sum(errors)::bigint, sum(prompt_tokens)::bigint, sum(cached_tokens)::bigint,
        sum(completion_tokens)::bigint, sum(reasoning_tokens)::bigint, sum(estimated_prompt_tokens)::bigint,
        sum(estimated_completion_tokens)::bigint,
        coalesce(array_agg(currency ORDER BY currency) FILTER (WHERE currency <> ''), '{}'),
        coalesce(array_agg(trim_scale(cost)::text ORDER BY currency) FILTER (WHERE currency <> ''), '{}'),
        coalesce(array_agg(trim_scale(estimated_cost)::text ORDER BY currency) FILTER (WHERE currency <> ''), '{}')
    FROM parts GROUP BY part, day, model ORDER BY part, day, sum(prompt_tokens + completion_tokens) DESC, model NULLS LAST
$$;

-- The last calls of one consumer, of the last seven days, without what was asked and answered. `local_time` is on the site's clock.
CREATE FUNCTION llm_own_calls(consumer text, most integer)
RETURNS TABLE (started_at timestamptz, local_time timestamp, model text, status integer, prompt_tokens integer,
    completion_tokens integer, latency_ms integer)
LANGUAGE sql STABLE SET jit = off AS $$
    SELECT l.started_at, l.started_at AT TIME ZONE coalesce((SELECT time_zone FROM llm_site), 'UTC'), l.model, l.status, l.prompt_tokens,
        l.completion_tokens, l.latency_ms
    FROM llm_logs l
    WHERE l.consumer_username = consumer AND l.started_at > now() - interval '7 days' AND l.started_at < now() + interval '1 hour'
    ORDER BY l.started_at DESC LIMIT least(most, 100)
$$;
