-- The feed: stretches of llm_logs (slices: a day or an hour, UTC) that are over and were copied out, to where, and what was in them.
--
-- That rows of a slice changed since (late rows, erasing, the clocks, a hand) is not told by those who change them: two things of
-- PostgreSQL's tell it. Its counters of rows inserted, updated and deleted, by partition, are the hint; a crash of the server sets them
-- back, and then everything is looked at once more. The proof is llm_feed_state: a row that was written again has another xmin, whoever
-- did it. So nothing here is in the way of an insert.

CREATE TABLE llm_feeds (
    name          text        PRIMARY KEY CHECK (name ~ '^[a-z][a-z0-9_-]{0,39}$'),
    kind          text        NOT NULL,
    -- Identity of the folder that it fills, which has it in a file: another one, or one that is not mounted, is noticed.
    target        text        NOT NULL,
    slice_hours   integer     NOT NULL CHECK (slice_hours IN (1, 24)),
    has_content   boolean     NOT NULL,
    begun_at      timestamptz NOT NULL DEFAULT now(),
    -- The last round, and what it left: null before the first.
    looked_at     timestamptz,
    -- Up to here everything is copied, as it was when it was looked at.
    covered_until timestamptz,
    failure       text,
    files         bigint      NOT NULL DEFAULT 0,
    rows          bigint      NOT NULL DEFAULT 0,
    bytes         bigint      NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

COMMENT ON TABLE llm_feeds IS 'Where calls are copied to by llm-collector feed, and how far that is.';

CREATE TABLE llm_feed_slices (
    feed      text        NOT NULL REFERENCES llm_feeds ON DELETE CASCADE,
    starts_at timestamptz NOT NULL,
    ends_at   timestamptz NOT NULL,
    -- Rows that came after their day was dropped are a part of their own: the file of the others stays.
    part      integer     NOT NULL,
    -- llm_feed_state of the rows that were copied, and what llm_feed_days said before they were read.
    state     text        NOT NULL,
    hint      text        NOT NULL,
    -- As it lies beside the file.
    manifest  jsonb       NOT NULL,
    -- The rows are no longer in the table, and the file is what there is of them.
    is_sealed boolean     NOT NULL DEFAULT false,
    PRIMARY KEY (feed, starts_at, part)
);

COMMENT ON TABLE llm_feed_slices IS 'Days and hours that a feed has copied, with the manifest of each file.';

-- Days that have rows, each with a text that changes when rows of it, prices or the site's clock do; it may change without that.
CREATE VIEW llm_feed_days AS
WITH counters AS (
    SELECT day, format('%s %s %s %s', oid, pg_stat_get_tuples_inserted(oid), pg_stat_get_tuples_updated(oid),
        pg_stat_get_tuples_deleted(oid)) AS counters
    FROM llm_partition_days
), days AS (
    SELECT day, counters FROM counters WHERE day IS NOT NULL
    UNION ALL
    SELECT far.day, counters.counters
    FROM counters CROSS JOIN (
        SELECT (started_at AT TIME ZONE 'UTC')::date AS day FROM llm_logs_default
        UNION
        -- All of whose rows were erased since.
        SELECT (starts_at AT TIME ZONE 'UTC')::date FROM llm_feed_slices
        WHERE NOT is_sealed AND split_part(hint, ' ', 1) = 'llm_logs_default'::regclass::oid::text
    ) far
    WHERE counters.day IS NULL AND far.day NOT IN (SELECT day FROM counters WHERE day IS NOT NULL)
)
SELECT day, concat_ws(' ', counters, prices, CASE WHEN NOT current_setting('track_counts')::boolean THEN now() END) AS hint
FROM days CROSS JOIN (
    SELECT md5(concat(llm_site_zone(), string_agg(format('%s %s %s %s %s %s', model_pattern, extract(epoch FROM valid_from),
        prompt_per_million, cached_per_million, completion_per_million, currency), ' ' ORDER BY model_pattern, valid_from))) AS prices
    FROM llm_model_prices
) priced;

COMMENT ON VIEW llm_feed_days IS 'Days that have rows, with a hint that changes when they do.';

-- What tells whether rows are the same as before, in a scan that reads no texts.
CREATE FUNCTION llm_feed_state(since timestamptz, until timestamptz) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT format('%s %s %s', count(*), coalesce(sum(id), 0), coalesce(sum(xmin::text::bigint), 0))
    FROM llm_logs WHERE started_at >= since AND started_at < until
$$;

-- Whether a feed has all rows of a day as they are.
CREATE FUNCTION llm_feed_has_day(of_feed text, day date) RETURNS boolean
LANGUAGE sql STABLE AS $$
    WITH day AS (
        SELECT day::timestamp AT TIME ZONE 'UTC' AS starts_at, (day + 1)::timestamp AT TIME ZONE 'UTC' AS ends_at
    ), copied AS (
        SELECT coalesce(sum((s.manifest ->> 'rows')::bigint), 0) AS rows,
            coalesce(bool_and(s.state = llm_feed_state(s.starts_at, s.ends_at)), true) AS is_current
        FROM llm_feed_slices s CROSS JOIN day
        WHERE s.feed = of_feed AND NOT s.is_sealed AND s.starts_at >= day.starts_at AND s.ends_at <= day.ends_at
    )
    SELECT copied.is_current
        AND copied.rows = (SELECT count(*) FROM llm_logs WHERE started_at >= day.starts_at AND started_at < day.ends_at)
    FROM copied CROSS JOIN day
$$;

-- Drops the partition of a day as llm_drop_day does; from then on the files of feeds are what there is of its rows. With `after_feed` only
-- if that feed has them all as they are, else null. To be called as llm_swap_day.
CREATE FUNCTION llm_drop_day_after_feed(day date, after_feed text) RETURNS bigint
LANGUAGE plpgsql AS $$
BEGIN
    IF after_feed IS NOT NULL THEN
        -- Readers go on; whoever writes to this day waits: no row can come between the look and the drop.
        EXECUTE format('LOCK TABLE %I IN SHARE ROW EXCLUSIVE MODE', 'llm_logs_' || to_char(day, 'YYYYMMDD'));
        IF NOT llm_feed_has_day(after_feed, day) THEN
            RETURN NULL;
        END IF;
    END IF;
    UPDATE llm_feed_slices SET is_sealed = true
    WHERE starts_at >= day::timestamp AT TIME ZONE 'UTC' AND starts_at < (day + 1)::timestamp AT TIME ZONE 'UTC';
    RETURN llm_drop_day(day);
END $$;

-- Which days the row clock would drop and does not, because they are not in a feed; in words, for doctor.
ALTER TABLE llm_upkeep ADD COLUMN waits_for_feed text;
