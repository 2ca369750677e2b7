-- Limits of what people and teams may use, and which numbers of Kong's are in the usage that is committed: a node adds to the committed
-- usage what it knows of and is not in it yet, so that admission and ledger are one number.

CREATE TABLE llm_quotas (
    id           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    subject_kind text        NOT NULL CHECK (subject_kind IN ('each_user', 'user', 'team', 'everybody')),
    -- Empty where the kind says it all.
    subject_name text        NOT NULL DEFAULT '',
    -- A pattern that ends with LIKE's escape character would fail every question.
    models       text        NOT NULL DEFAULT '%' CHECK (models <> '' AND length(models) <= 200 AND strpos(models, '\') = 0),
    unit         text        NOT NULL CHECK (unit IN ('tokens', 'calls', 'cost')),
    currency     text        NOT NULL DEFAULT '',
    per          text        NOT NULL CHECK (per IN ('hour', 'day', 'week', 'month')),
    amount       numeric     NOT NULL CHECK (amount >= 0 AND amount <= 1e15),
    mode         text        NOT NULL DEFAULT 'soft' CHECK (mode IN ('hard', 'soft', 'shadow')),
    created_at   timestamptz NOT NULL DEFAULT now(),
    UNIQUE (subject_kind, subject_name, models, unit, currency, per),
    CHECK ((subject_kind IN ('user', 'team')) = (subject_name <> '') AND length(subject_name) <= 200),
    CHECK ((unit = 'cost') = (currency <> '') AND length(currency) <= 10)
);

COMMENT ON TABLE llm_quotas IS 'Limits; llm-collector quota sets them.';
COMMENT ON COLUMN llm_quotas.models IS 'Name of a model; % stands for any text, _ for any character.';
COMMENT ON COLUMN llm_quotas.mode IS 'hard: reserved before a call; soft: the call that crosses the line is the last; shadow: refuses nobody.';

-- Another one: what somebody remembers of limits, prices and used amounts is to be asked for anew.
CREATE TABLE llm_quota_revision (
    is_only  boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    revision uuid    NOT NULL DEFAULT gen_random_uuid(),
    -- The server that the transaction numbers in the tables are of.
    cluster  text    NOT NULL DEFAULT ''
) WITH (fillfactor = 50);
INSERT INTO llm_quota_revision DEFAULT VALUES;

CREATE FUNCTION llm_revise_quotas() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE llm_quota_revision SET revision = gen_random_uuid();
    RETURN NULL;
END $$;
CREATE TRIGGER llm_quotas_revised AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON llm_quotas
    FOR EACH STATEMENT EXECUTE FUNCTION llm_revise_quotas();
CREATE TRIGGER llm_model_prices_revised AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON llm_model_prices
    FOR EACH STATEMENT EXECUTE FUNCTION llm_revise_quotas();
CREATE TRIGGER llm_site_revised AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON llm_site
    FOR EACH STATEMENT EXECUTE FUNCTION llm_revise_quotas();

-- Numbers of which nothing more will come than is in the usage: written in the transaction that wrote their rows, or once they are known
-- to make none. Not so llm_sequences, which has those that wait in a spool as well.
CREATE TABLE llm_counted_ranges (
    worker    text        NOT NULL,
    first_seq bigint      NOT NULL,
    last_seq  bigint      NOT NULL,
    -- Several ranges become one in a transaction of its own, so that whoever read before is told of all of it again.
    xid       xid8        NOT NULL DEFAULT pg_current_xact_id(),
    noted_at  timestamptz NOT NULL DEFAULT now(),
    merged    boolean     NOT NULL DEFAULT false
);
CREATE INDEX llm_counted_ranges_worker ON llm_counted_ranges (worker, first_seq);
CREATE INDEX llm_counted_ranges_xid ON llm_counted_ranges (xid);
CREATE INDEX llm_counted_ranges_new ON llm_counted_ranges (noted_at) WHERE NOT merged;

COMMENT ON TABLE llm_counted_ranges IS 'Ranges of llm.seq, by worker of Kong, that are in the usage or never will be.';

-- Nobody waits for what was lost. If it comes after all, it is counted then.
CREATE FUNCTION llm_count_lost() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO llm_counted_ranges (worker, first_seq, last_seq) SELECT worker, first_seq, last_seq FROM lost;
    RETURN NULL;
END $$;
CREATE TRIGGER llm_sequence_gaps_counted AFTER INSERT ON llm_sequence_gaps
    REFERENCING NEW TABLE AS lost FOR EACH STATEMENT EXECUTE FUNCTION llm_count_lost();

-- Makes one range of those that touch or overlap, of up to `max_ranges` that are a minute old. Returns how many these were. One collector
-- at a time does it.
CREATE FUNCTION llm_merge_counted_ranges(max_ranges integer) RETURNS bigint
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
DECLARE
    looked_at bigint;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtext('llm_logs'), hashtext('counted')) THEN
        RETURN 0;
    END IF;
    WITH new AS MATERIALIZED (
        SELECT ctid AS row, worker, first_seq, last_seq, noted_at FROM llm_counted_ranges
        WHERE NOT merged AND noted_at < now() - interval '60 seconds' ORDER BY noted_at LIMIT max_ranges
    ), islands AS MATERIALIZED (
        SELECT worker, lower(part) AS first_seq, upper(part) - 1 AS last_seq FROM (
            SELECT worker, unnest(range_agg(int8range(first_seq, last_seq, '[]'))) AS part FROM new GROUP BY worker
        ) parts
    ), beside AS MATERIALIZED (
        -- Merged ones do not touch: of those that begin before the island only the last one can.
        SELECT DISTINCT near.row FROM islands i CROSS JOIN LATERAL (
            (SELECT r.ctid AS row, r.last_seq FROM llm_counted_ranges r
             WHERE r.merged AND r.worker = i.worker AND r.first_seq < i.first_seq ORDER BY r.first_seq DESC LIMIT 1)
            UNION ALL
            SELECT r.ctid, r.last_seq FROM llm_counted_ranges r
            WHERE r.merged AND r.worker = i.worker AND r.first_seq >= i.first_seq AND r.first_seq <= i.last_seq + 1
        ) AS near WHERE near.last_seq >= i.first_seq - 1
    ), taken AS (
        DELETE FROM llm_counted_ranges WHERE ctid = ANY (ARRAY(SELECT row FROM new UNION ALL SELECT row FROM beside))
        RETURNING worker, first_seq, last_seq, noted_at
    ), put AS (
        INSERT INTO llm_counted_ranges (worker, first_seq, last_seq, noted_at, merged)
        SELECT worker, lower(part), upper(part) - 1, noted_at, true FROM (
            SELECT worker, unnest(range_agg(int8range(first_seq, last_seq, '[]'))) AS part, max(noted_at) AS noted_at
            FROM taken GROUP BY worker
        ) parts
    )
    SELECT count(*) INTO looked_at FROM new;
    RETURN looked_at;
END $$;

-- Forgets those of workers that ended long ago: no node has calls of theirs any more that wait.
CREATE FUNCTION llm_forget_counted_ranges() RETURNS void
LANGUAGE sql AS $$
    DELETE FROM llm_counted_ranges WHERE worker IN (
        SELECT worker FROM llm_counted_ranges GROUP BY worker HAVING max(noted_at) < now() - interval '90 days')
$$;

-- Transaction numbers are a server's own: in a database that was restored elsewhere, or to an earlier time, those of the tables say
-- nothing of its snapshots, and all that is there is old. Called before snapshots are compared.
CREATE FUNCTION llm_know_cluster() RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    here text := (SELECT s.system_identifier || ':' || c.timeline_id || ':' || d.oid
                  FROM pg_control_system() s, pg_control_checkpoint() c, pg_database d WHERE d.datname = current_database());
BEGIN
    IF EXISTS (SELECT FROM llm_quota_revision WHERE cluster = here) THEN
        RETURN;
    END IF;
    UPDATE llm_quota_revision SET cluster = here, revision = gen_random_uuid() WHERE cluster <> here;
    IF FOUND THEN
        UPDATE llm_usage_deltas SET xid = '0' WHERE xid >= pg_snapshot_xmax(pg_current_snapshot());
        UPDATE llm_counted_ranges SET xid = '0' WHERE xid >= pg_snapshot_xmax(pg_current_snapshot());
        UPDATE llm_usage_compacted SET xid = '0' WHERE xid >= pg_snapshot_xmax(pg_current_snapshot());
    END IF;
END $$;

-- The site's time zone, or UTC where this server does not know it any more.
CREATE FUNCTION llm_site_zone() RETURNS text
LANGUAGE plpgsql STABLE AS $$
DECLARE
    zone text := coalesce((SELECT time_zone FROM llm_site), 'UTC');
BEGIN
    PERFORM date_trunc('hour', now(), zone);
    RETURN zone;
EXCEPTION WHEN invalid_parameter_value THEN
    RETURN 'UTC';
END $$;

-- The beginning of the hour, day, week or month of the site's clock that a moment lies in, or of one so many later. Where the clock is
-- set back over midnight, a day begins with the second one; where it is set forward over it, when it is.
CREATE FUNCTION llm_window_start(per text, at timestamptz, later integer, zone text) RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT CASE per
        WHEN 'hour' THEN date_trunc('hour', date_trunc('hour', at, zone) + later * interval '1 hour', zone)
        ELSE (date_trunc(per, at AT TIME ZONE zone)
              + (later - CASE WHEN date_trunc(per, at, zone) > at THEN 1 ELSE 0 END) * ('1 ' || per)::interval) AT TIME ZONE zone
    END
$$;

-- The team that a user was in at his last call: null where in none, or where he never called.
CREATE FUNCTION llm_last_team(of_user text) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT team FROM llm_logs WHERE consumer_username = of_user ORDER BY started_at DESC LIMIT 1
$$;

-- What was counted for windows of limits, by who and what: of the window of `at`, the one before and later ones (calls whose clock was
-- ahead). With a snapshot only what is new since then: it has to be above llm_usage_compacted. With a user, of others only what it takes to
-- tell what holds for this one: his team's where teams have limits, and everybody's where a limit holds for everybody together. `price_at` is when its price holds.
CREATE FUNCTION llm_quota_counts(at timestamptz, since pg_snapshot, of_user text DEFAULT NULL)
RETURNS TABLE (per text, starts_at timestamptz, consumer_username text, team text, model text, price_at timestamptz, calls bigint,
    tokens bigint, uncached_prompt_tokens bigint, cached_tokens bigint, completion_tokens bigint, estimated_prompt_tokens bigint,
    estimated_completion_tokens bigint)
LANGUAGE plpgsql STABLE SET jit = off AS $$
DECLARE
    zone    text := llm_site_zone();
    changes timestamptz[];
    -- Whose usage is enough; null: everybody's.
    only_of text := CASE WHEN NOT EXISTS (SELECT FROM llm_quotas q WHERE q.subject_kind = 'everybody') THEN left(of_user, 200) END;
    of_team text := CASE WHEN EXISTS (SELECT FROM llm_quotas q WHERE q.subject_kind = 'team') THEN left(llm_last_team(of_user), 200) END;
    w       record;
    s       record;
BEGIN
    IF since IS NOT NULL THEN
        RETURN QUERY
        SELECT pers.per, llm_window_start(pers.per, d.hour, 0, zone), d.consumer_username, d.team, d.model, d.hour, d.forwarded_calls,
            d.prompt_tokens + d.completion_tokens + d.estimated_prompt_tokens + d.estimated_completion_tokens,
            d.uncached_prompt_tokens, d.cached_tokens, d.completion_tokens, d.estimated_prompt_tokens, d.estimated_completion_tokens
        FROM llm_usage_deltas d
        JOIN (SELECT used.per, llm_window_start(used.per, at, -1, zone) AS before FROM (SELECT DISTINCT q.per FROM llm_quotas q) used) pers
            ON d.hour >= pers.before
        WHERE d.xid >= pg_snapshot_xmin(since) AND NOT pg_visible_in_snapshot(d.xid, since);
        RETURN;
    END IF;

    IF EXISTS (SELECT FROM llm_quotas q WHERE q.unit = 'cost') THEN
        changes := ARRAY(SELECT DISTINCT unnest(ARRAY[date_trunc('day', valid_from, 'UTC'), valid_from, llm_midnight_from(valid_from)])
                         FROM llm_model_prices);
    END IF;
    FOR w IN
        SELECT used.per, llm_window_start(used.per, at, -1, zone) AS before, llm_window_start(used.per, at, 0, zone) AS this,
            llm_window_start(used.per, at, 1, zone) AS next
        FROM (SELECT DISTINCT q.per FROM llm_quotas q) used
    LOOP
        -- Between two of these moments lies one window, with one price for each model, and either whole days (UTC) or a part of one.
        FOR s IN
            SELECT cut AS starts, lead(cut, 1, 'infinity') OVER (ORDER BY cut) AS ends FROM (
                SELECT DISTINCT cut FROM unnest(changes || ARRAY[w.before, llm_midnight_from(w.before), date_trunc('day', w.this, 'UTC'),
                    w.this, llm_midnight_from(w.this), date_trunc('day', w.next, 'UTC'), w.next]) AS cut
                WHERE cut >= w.before AND (cut <= w.next OR cut = ANY (changes))
            ) cuts
        LOOP
            IF s.starts = date_trunc('day', s.starts, 'UTC') AND s.ends = date_trunc('day', s.ends, 'UTC') AND s.ends <= w.next THEN
                RETURN QUERY
                SELECT w.per, llm_window_start(w.per, s.starts, 0, zone), u.consumer_username, u.team, u.model, s.starts,
                    sum(u.forwarded_calls)::bigint,
                    sum(u.prompt_tokens + u.completion_tokens + u.estimated_prompt_tokens + u.estimated_completion_tokens)::bigint,
                    sum(u.uncached_prompt_tokens)::bigint, sum(u.cached_tokens)::bigint, sum(u.completion_tokens)::bigint,
                    sum(u.estimated_prompt_tokens)::bigint, sum(u.estimated_completion_tokens)::bigint
                FROM (
                    SELECT y.consumer_username, y.team, y.model, y.forwarded_calls, y.prompt_tokens, y.uncached_prompt_tokens,
                        y.cached_tokens, y.completion_tokens, y.estimated_prompt_tokens, y.estimated_completion_tokens
                    FROM llm_usage_days y
                    WHERE y.day >= s.starts AND y.day < s.ends AND (only_of IS NULL OR y.consumer_username = only_of OR y.team = of_team)
                    UNION ALL
                    SELECT d.consumer_username, d.team, d.model, d.forwarded_calls, d.prompt_tokens, d.uncached_prompt_tokens,
                        d.cached_tokens, d.completion_tokens, d.estimated_prompt_tokens, d.estimated_completion_tokens
                    FROM llm_usage_deltas d
                    WHERE d.hour >= s.starts AND d.hour < s.ends AND (only_of IS NULL OR d.consumer_username = only_of OR d.team = of_team)
                ) u
                GROUP BY 3, 4, 5;
            ELSE
                RETURN QUERY
                SELECT w.per, llm_window_start(w.per, CASE WHEN s.starts < w.next THEN s.starts ELSE u.hour END, 0, zone),
                    u.consumer_username, u.team, u.model, s.starts, sum(u.forwarded_calls)::bigint,
                    sum(u.prompt_tokens + u.completion_tokens + u.estimated_prompt_tokens + u.estimated_completion_tokens)::bigint,
                    sum(u.uncached_prompt_tokens)::bigint, sum(u.cached_tokens)::bigint, sum(u.completion_tokens)::bigint,
                    sum(u.estimated_prompt_tokens)::bigint, sum(u.estimated_completion_tokens)::bigint
                FROM llm_usage_counts u
                WHERE u.hour >= s.starts AND u.hour < s.ends AND (only_of IS NULL OR u.consumer_username = only_of OR u.team = of_team)
                GROUP BY 2, 3, 4, 5;
            END IF;
        END LOOP;
    END LOOP;
END $$;

-- What is used of each limit, by subject and window; which windows, and what a snapshot does, is said above. Tokens are those that were
-- reported, else estimated ones; calls those that a model server got; a call belongs to the window in which it began.
CREATE FUNCTION llm_quota_used(at timestamptz, since pg_snapshot, of_user text DEFAULT NULL)
RETURNS TABLE (quota_id bigint, subject text, window_start timestamptz, amount numeric)
LANGUAGE plpgsql STABLE SET jit = off AS $$
BEGIN
    RETURN QUERY
    WITH counts AS MATERIALIZED (
        SELECT * FROM llm_quota_counts(at, since, of_user)
    ), prices AS MATERIALIZED (
        -- As llm_price_periods has it.
        SELECT c.model, c.price_at, p.* FROM (SELECT DISTINCT k.model, k.price_at FROM counts k) c CROSS JOIN LATERAL (
            SELECT m.prompt_per_million, m.cached_per_million, m.completion_per_million, m.currency FROM llm_model_prices m
            WHERE c.model LIKE m.model_pattern AND m.valid_from <= c.price_at
            ORDER BY length(m.model_pattern) DESC, m.valid_from DESC, m.model_pattern LIMIT 1
        ) p
        WHERE EXISTS (SELECT FROM llm_quotas q WHERE q.unit = 'cost')
    ), charges AS (
        SELECT c.per, c.starts_at, c.consumer_username, c.team, c.model, p.currency, c.tokens, c.calls,
            llm_cost(c.uncached_prompt_tokens, c.cached_tokens, c.completion_tokens,
                     p.prompt_per_million, p.cached_per_million, p.completion_per_million)
            + llm_cost(c.estimated_prompt_tokens, 0, c.estimated_completion_tokens,
                       p.prompt_per_million, 0, p.completion_per_million) AS cost
        FROM counts c LEFT JOIN prices p ON p.model = c.model AND p.price_at = c.price_at
    )
    SELECT q.id, CASE q.subject_kind WHEN 'each_user' THEN c.consumer_username ELSE q.subject_name END, c.starts_at,
        sum(CASE q.unit WHEN 'tokens' THEN c.tokens WHEN 'calls' THEN c.calls ELSE c.cost END)
    FROM charges c
    CROSS JOIN LATERAL (VALUES ('each_user', ''), ('user', c.consumer_username), ('team', c.team), ('everybody', '')) AS of (kind, name)
    JOIN llm_quotas q ON q.subject_kind = of.kind AND q.subject_name = of.name AND q.per = c.per AND c.model LIKE q.models
        AND (q.unit <> 'cost' OR q.currency = c.currency)
    GROUP BY 1, 2, 3
    HAVING sum(CASE q.unit WHEN 'tokens' THEN c.tokens WHEN 'calls' THEN c.calls ELSE c.cost END) <> 0;
END $$;

-- How far each limit is used in the window of `at`; of limits for each user those who used something. With a user only what holds for
-- this one, for his team, and for everybody together.
CREATE FUNCTION llm_quota_state(at timestamptz, of_user text DEFAULT NULL)
RETURNS TABLE (quota_id bigint, subject_kind text, subject text, models text, unit text, currency text, per text, amount numeric,
    mode text, used numeric, starts_at timestamptz, ends_at timestamptz)
LANGUAGE sql STABLE AS $$
    SELECT q.id, q.subject_kind, coalesce(u.subject, CASE q.subject_kind WHEN 'each_user' THEN of_user ELSE q.subject_name END), q.models,
        q.unit, q.currency, q.per, q.amount, q.mode, trim_scale(coalesce(u.amount, 0)), w.starts, w.ends
    FROM llm_quotas q
    CROSS JOIN (SELECT llm_site_zone() AS zone, left(llm_last_team(of_user), 200) AS team) site
    CROSS JOIN LATERAL (SELECT llm_window_start(q.per, at, 0, site.zone) AS starts, llm_window_start(q.per, at, 1, site.zone) AS ends) w
    LEFT JOIN llm_quota_used(at, NULL, of_user) u ON u.quota_id = q.id AND u.window_start = w.starts
        AND (of_user IS NULL OR q.subject_kind <> 'each_user' OR u.subject = left(of_user, 200))
    WHERE CASE WHEN of_user IS NULL THEN q.subject_kind <> 'each_user' OR u.quota_id IS NOT NULL
               ELSE q.subject_kind IN ('each_user', 'everybody') OR q.subject_kind = 'user' AND q.subject_name = left(of_user, 200)
                    OR q.subject_kind = 'team' AND q.subject_name = site.team END
$$;

-- What a node of Kong is answered that knows the committed usage as of the snapshot `version` and all else as of `of_revision`: what is
-- new since then, or, where that cannot be told, everything. As JSON, described in docs/contract.md. Everything is of one snapshot,
-- because whoever calls a stable function reads with his.
CREATE FUNCTION llm_quota_sync(version text, of_revision text, workers text[]) RETURNS text
LANGUAGE plpgsql STABLE SET jit = off AS $$
DECLARE
    here     pg_snapshot := pg_current_snapshot();
    zone     text        := llm_site_zone();
    -- Prices begin at hours, and lists of windows come to an end: every hour is another revision.
    current  text        := (SELECT revision || '-' || floor(extract(epoch FROM now()) / 3600) FROM llm_quota_revision);
    since    pg_snapshot;
    used     text;
    counted  text;
    lists    text := '';
BEGIN
    IF of_revision = current THEN
        BEGIN
            since := version::pg_snapshot;
        EXCEPTION WHEN invalid_text_representation OR numeric_value_out_of_range THEN
            since := NULL;
        END;
        IF pg_snapshot_xmax(since) > pg_snapshot_xmax(here)
            OR (SELECT c.xid FROM llm_usage_compacted c) >= pg_snapshot_xmin(since)
        THEN
            since := NULL;
        END IF;
    END IF;

    -- If there are too many, those that are nearest to their limit.
    SELECT string_agg(format('[%s,%s,%s,%s]', u.quota_id, to_json(u.subject), extract(epoch FROM u.window_start)::bigint,
                             trim_scale(u.amount)), ',')
    INTO used FROM (
        SELECT a.* FROM llm_quota_used(now(), since) a JOIN llm_quotas q ON q.id = a.quota_id
        ORDER BY a.amount / greatest(q.amount, 1) DESC LIMIT 200000
    ) u;

    SELECT string_agg(format('%s:[%s]', to_json(w.worker), w.ranges), ',') INTO counted FROM (
        SELECT p.worker, string_agg(format('[%s,%s]', lower(p.part), upper(p.part) - 1), ',' ORDER BY lower(p.part)) AS ranges
        FROM (
            SELECT r.worker, unnest(range_agg(int8range(r.first_seq, r.last_seq, '[]'))) AS part
            FROM llm_counted_ranges r
            WHERE r.worker = ANY (workers)
                AND (since IS NULL OR r.xid >= pg_snapshot_xmin(since) AND NOT pg_visible_in_snapshot(r.xid, since))
            GROUP BY r.worker
        ) p GROUP BY p.worker
    ) w;

    IF since IS NULL THEN
        lists := ',' || concat_ws(',',
            (SELECT format('"limits":%s', coalesce(json_agg(l), '[]')) FROM (
                SELECT id, subject_kind AS subject, subject_name AS name, models, unit, currency, per, amount, mode
                FROM llm_quotas ORDER BY id LIMIT 1000) l),
            (SELECT format('"windows":{%s}', string_agg(format('"%s":[%s]', per, starts), ',')) FROM (
                SELECT per, string_agg(extract(epoch FROM llm_window_start(per, now(), later, zone))::bigint::text, ',' ORDER BY later)
                    AS starts
                FROM (VALUES ('hour', 50), ('day', 9), ('week', 4), ('month', 4)) AS pers (per, number),
                    generate_series(0, number - 1) AS later
                GROUP BY per) w),
            (SELECT format('"prices":%s', coalesce(json_agg(p), '[]')) FROM (
                SELECT models, prompt, cached, completion, currency FROM (
                    SELECT DISTINCT ON (model_pattern) model_pattern AS models, prompt_per_million AS prompt,
                        cached_per_million AS cached, completion_per_million AS completion, currency
                    FROM llm_model_prices WHERE valid_from <= now() ORDER BY model_pattern, valid_from DESC
                ) valid ORDER BY length(models) DESC, models LIMIT 1000) p));
    END IF;
    RETURN format('{"version":%s,"revision":%s,"full":%s,"zone":%s%s,"used":[%s],"counted":{%s}}', to_json(here::text),
                  to_json(current), CASE WHEN since IS NULL THEN 'true' ELSE 'false' END, to_json(zone), lists, used, counted);
END $$;

ALTER TABLE llm_logs ADD COLUMN refused_by text;
COMMENT ON COLUMN llm_logs.refused_by IS 'What of the gateway answered instead of a model: router, quota or queue; null where none did.';
