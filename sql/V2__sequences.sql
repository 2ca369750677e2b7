-- Which entries of each Kong worker have arrived. The llm-audit plugin numbers the entries of a worker from 1; a number that
-- never arrives is an entry that Kong lost before it reached a collector.

-- Ranges that arrived, merged from time to time. Any collector may have received any part of them.
CREATE TABLE llm_sequences (
    worker        text        NOT NULL,
    first_seq     bigint      NOT NULL,
    last_seq      bigint      NOT NULL,
    -- When the first and the last of the range arrived.
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    last_seen_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (worker, first_seq, last_seq)
);

COMMENT ON TABLE llm_sequences IS 'Ranges of llm.seq that arrived, by worker of Kong.';

-- Holes that did not close in time. Each is counted once, by whichever collector found it.
CREATE TABLE llm_sequence_gaps (
    worker    text        NOT NULL,
    first_seq bigint      NOT NULL,
    last_seq  bigint      NOT NULL,
    found_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (worker, first_seq, last_seq)
);

COMMENT ON TABLE llm_sequence_gaps IS 'Ranges of llm.seq that never arrived: entries that Kong lost.';

-- Merges ranges that touch or overlap, forgets workers that ended long ago, and returns the holes that are older than `grace`.
-- A hole that is returned counts as arrived from then on, so it is never returned twice.
CREATE FUNCTION llm_find_sequence_gaps(grace interval)
RETURNS TABLE (gap_worker text, gap_first bigint, gap_last bigint)
LANGUAGE plpgsql AS $$
BEGIN
    -- One collector at a time; the others find nothing to do.
    IF NOT pg_try_advisory_xact_lock(hashtext('llm_logs'), hashtext('sequences')) THEN
        RETURN;
    END IF;

    WITH taken AS (
        DELETE FROM llm_sequences
        WHERE worker IN (SELECT worker FROM llm_sequences GROUP BY worker HAVING count(*) > 1)
        RETURNING worker, first_seq, last_seq, first_seen_at, last_seen_at
    ), marked AS (
        -- An island begins where everything before it ended earlier than the number in front of it.
        SELECT *, first_seq > coalesce(max(last_seq) OVER (
            PARTITION BY worker ORDER BY first_seq, last_seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), -1) + 1 AS begins
        FROM taken
    ), numbered AS (
        SELECT *, count(*) FILTER (WHERE begins) OVER (PARTITION BY worker ORDER BY first_seq, last_seq) AS island FROM marked
    )
    -- The hole in front of an island is as old as the island's first arrival.
    INSERT INTO llm_sequences (worker, first_seq, last_seq, first_seen_at, last_seen_at)
    SELECT worker, min(first_seq), max(last_seq), min(first_seen_at), max(last_seen_at) FROM numbered GROUP BY worker, island;

    RETURN QUERY
    WITH holes AS (
        SELECT worker, first_seq, first_seen_at,
               coalesce(lag(last_seq) OVER (PARTITION BY worker ORDER BY first_seq), 0) + 1 AS hole_first
        FROM llm_sequences
    ), found AS (
        INSERT INTO llm_sequence_gaps (worker, first_seq, last_seq)
        SELECT worker, hole_first, first_seq - 1 FROM holes
        WHERE hole_first < first_seq AND first_seen_at < now() - grace
        ON CONFLICT DO NOTHING
        RETURNING worker, first_seq, last_seq
    ), filled AS (
        INSERT INTO llm_sequences (worker, first_seq, last_seq)
        SELECT worker, first_seq, last_seq FROM found
        ON CONFLICT DO NOTHING
    )
    SELECT worker, first_seq, last_seq FROM found;

    -- A worker that was restarted has a new identity; what the old one missed was found long ago.
    DELETE FROM llm_sequences
    WHERE worker IN (SELECT worker FROM llm_sequences GROUP BY worker HAVING max(last_seen_at) < now() - interval '90 days');
END $$;
