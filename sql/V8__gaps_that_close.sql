-- Holes that close later: an entry that waited on a disk for longer than the grace, or came from a collector that was down, was not
-- lost. Its number is taken back from llm_sequence_gaps.
--
-- llm_sequences therefore holds what arrived and nothing else: a hole that was found stays a hole. Until now it was filled there, so
-- of older gaps nobody can tell any more whether they closed.

ALTER TABLE llm_sequence_gaps ADD COLUMN settled boolean NOT NULL DEFAULT true;
ALTER TABLE llm_sequence_gaps ALTER COLUMN settled SET DEFAULT false;

COMMENT ON COLUMN llm_sequence_gaps.settled IS 'Found by an older version, which did not keep what is needed to see it close.';

CREATE INDEX llm_sequence_gaps_found ON llm_sequence_gaps (found_at);

-- Gaps in the numbers, in three steps that can be told apart: merging what arrived, taking back what closed, and finding holes.

-- Merges ranges that touch or overlap. To be called with the advisory lock of the numbers held.
CREATE FUNCTION llm_merge_sequences() RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    WITH marked AS (
        -- An island begins where everything before it ended earlier than the number in front of it.
        SELECT worker, first_seq, last_seq, first_seq > coalesce(max(last_seq) OVER (
            PARTITION BY worker ORDER BY first_seq, last_seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), -1) + 1 AS begins
        FROM llm_sequences
        WHERE worker IN (SELECT worker FROM llm_sequences GROUP BY worker HAVING count(*) > 1)
    ), numbered AS (
        SELECT *, count(*) FILTER (WHERE begins) OVER (PARTITION BY worker ORDER BY first_seq, last_seq) AS island FROM marked
    ), islands AS (
        -- Of one range alone there is nothing to merge: with many holes those are nearly all.
        SELECT worker, min(first_seq) AS island_first, max(last_seq) AS island_last FROM numbered GROUP BY worker, island
        HAVING count(*) > 1
    ), taken AS (
        DELETE FROM llm_sequences s USING islands i
        WHERE s.worker = i.worker AND s.first_seq >= i.island_first AND s.last_seq <= i.island_last
        RETURNING s.worker, i.island_first, s.last_seq, s.first_seen_at, s.last_seen_at
    )
    -- The hole in front of an island is as old as the island's first arrival.
    INSERT INTO llm_sequences (worker, first_seq, last_seq, first_seen_at, last_seen_at)
    SELECT worker, island_first, max(last_seq), min(first_seen_at), max(last_seen_at) FROM taken GROUP BY worker, island_first
    ORDER BY worker, island_first;
END $$;

-- Takes back what arrived after it was found missing: of a gap stays what is still missing. Returns how many numbers came, by worker.
CREATE FUNCTION llm_close_sequence_gaps() RETURNS TABLE (gap_worker text, arrived bigint)
LANGUAGE plpgsql AS $$
BEGIN
    -- One collector at a time; the others find nothing to do.
    IF NOT pg_try_advisory_xact_lock(hashtext('llm_logs'), hashtext('sequences')) THEN
        RETURN;
    END IF;
    PERFORM llm_merge_sequences();
    RETURN QUERY
    WITH touched AS (
        SELECT g.worker, g.first_seq, g.last_seq, g.found_at FROM llm_sequence_gaps g
        WHERE NOT g.settled AND coalesce((SELECT s.last_seq FROM llm_sequences s WHERE s.worker = g.worker AND s.first_seq <= g.last_seq
                                          ORDER BY s.first_seq DESC LIMIT 1), 0) >= g.first_seq
    ), remains AS (
        SELECT t.worker, t.first_seq, t.last_seq, t.found_at,
            int8multirange(int8range(t.first_seq, t.last_seq, '[]')) - range_agg(int8range(s.first_seq, s.last_seq, '[]')) AS missing
        FROM touched t
        JOIN llm_sequences s ON s.worker = t.worker AND s.first_seq <= t.last_seq AND s.last_seq >= t.first_seq
        GROUP BY t.worker, t.first_seq, t.last_seq, t.found_at
    ), closed AS (
        DELETE FROM llm_sequence_gaps g USING remains r WHERE g.worker = r.worker AND g.first_seq = r.first_seq
        RETURNING r.worker, r.first_seq, r.last_seq, r.found_at, r.missing
    ), kept AS (
        -- A part that begins where the gap began ends earlier, so its key is another one.
        INSERT INTO llm_sequence_gaps (worker, first_seq, last_seq, found_at)
        SELECT worker, lower(part), upper(part) - 1, found_at FROM closed, unnest(missing) AS part
        ON CONFLICT DO NOTHING
    )
    SELECT worker, (sum(last_seq - first_seq + 1) - sum((SELECT coalesce(sum(upper(part) - lower(part)), 0) FROM unnest(missing) AS part)))::bigint
    FROM closed GROUP BY worker;
END $$;

-- Merges, takes back what closed, returns the holes that are older than `grace` and were not found before, and forgets workers that ended
-- long ago.
CREATE OR REPLACE FUNCTION llm_find_sequence_gaps(grace interval)
RETURNS TABLE (gap_worker text, gap_first bigint, gap_last bigint)
LANGUAGE plpgsql AS $$
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtext('llm_logs'), hashtext('sequences')) THEN
        RETURN;
    END IF;
    PERFORM llm_close_sequence_gaps();

    RETURN QUERY
    WITH holes AS (
        SELECT worker, coalesce(lag(last_seq) OVER (PARTITION BY worker ORDER BY first_seq), 0) + 1 AS hole_first,
            first_seq - 1 AS hole_last, first_seen_at
        FROM llm_sequences
    ), places AS (
        SELECT worker, hole_last AS place, hole_first, hole_last, first_seen_at, NULL::bigint AS gap_end FROM holes
        WHERE hole_first <= hole_last
        UNION ALL SELECT worker, first_seq, NULL, NULL, NULL, last_seq FROM llm_sequence_gaps
        WHERE worker IN (SELECT worker FROM holes)
    ), known AS (
        -- How far the gaps reach that begin before the end of a hole. Read once for all holes: a look for each of them would see what
        -- this statement inserts, and pass over it, again and again.
        SELECT *, coalesce(max(gap_end) OVER (PARTITION BY worker ORDER BY place), 0) AS known_last FROM places
    ), found AS (
        INSERT INTO llm_sequence_gaps (worker, first_seq, last_seq)
        -- Gaps do not overlap. Of a hole that began as the tail of a worker, the rest is found by whoever finds tails.
        SELECT worker, hole_first, hole_last FROM known
        WHERE hole_first > known_last AND first_seen_at < now() - grace
        ON CONFLICT DO NOTHING
        RETURNING worker, first_seq, last_seq
    )
    SELECT worker, first_seq, last_seq FROM found;

    -- A worker that was restarted has a new identity; what the old one missed was found long ago.
    DELETE FROM llm_sequences
    WHERE worker IN (SELECT worker FROM llm_sequences GROUP BY worker HAVING max(last_seen_at) < now() - interval '90 days');
END $$;
