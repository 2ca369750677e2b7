-- Holes that close later: an entry that waited on a disk for longer than the grace, or came from a collector that was down, was not
-- lost. Its number is taken back from llm_sequence_gaps.
--
-- llm_sequences therefore holds what arrived and nothing else: a hole that was found stays a hole. Until now it was filled there, so
-- of older gaps nobody can tell any more whether they closed.
--
-- Every few seconds it is looked for holes, on a gateway that may have tens of thousands of them. So each range is looked at when it is
-- new, and with it what is beside it, each found by an index; what was looked at is not looked at again.

ALTER TABLE llm_sequence_gaps ADD COLUMN settled boolean NOT NULL DEFAULT true;
ALTER TABLE llm_sequence_gaps ALTER COLUMN settled SET DEFAULT false;

COMMENT ON COLUMN llm_sequence_gaps.settled IS 'Found by an older version, which did not keep what is needed to see it close.';

CREATE INDEX llm_sequence_gaps_found ON llm_sequence_gaps (found_at);

ALTER TABLE llm_sequences ADD COLUMN merged boolean NOT NULL DEFAULT false;
ALTER TABLE llm_sequences ADD COLUMN hole_found boolean NOT NULL DEFAULT false;
ALTER TABLE llm_sequences ADD COLUMN place bigint GENERATED ALWAYS AS IDENTITY;

COMMENT ON COLUMN llm_sequences.merged IS 'Neither touches nor overlaps another merged one, and no gap has a number of it.';
COMMENT ON COLUMN llm_sequences.hole_found IS 'All that is missing in front of it is in llm_sequence_gaps.';
COMMENT ON COLUMN llm_sequences.place IS 'In the order of writing, whatever the clock says.';

CREATE INDEX llm_sequences_new ON llm_sequences (place) WHERE NOT merged;
CREATE INDEX llm_sequences_merged ON llm_sequences (worker, first_seq) WHERE merged;
CREATE INDEX llm_sequences_open ON llm_sequences (first_seen_at) WHERE merged AND NOT hole_found;

-- Up to which place everything is merged. It spares the way past thousands of ranges a minute that were merged long ago and that PostgreSQL
-- cannot forget as long as a backup may want to see them. Ten minutes late, because what gets a place first may be there last.
CREATE TABLE llm_sequences_merged_to (
    is_only boolean     PRIMARY KEY DEFAULT true CHECK (is_only),
    place   bigint      NOT NULL,
    next    bigint      NOT NULL,
    next_at timestamptz NOT NULL
);
INSERT INTO llm_sequences_merged_to (place, next, next_at) VALUES (0, 0, '-infinity');

-- Merges what arrived since, and takes back what of it was found missing: of a gap stays what is still missing. Returns how many numbers
-- came, by worker. Of what is new a thousand ranges at a time, in the order of writing: some tens of milliseconds.
--
-- The settings are part of it: with statistics of a minute ago the planner would take a table for empty that is not.
CREATE FUNCTION llm_close_sequence_gaps() RETURNS TABLE (gap_worker text, arrived bigint)
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
DECLARE
    workers text[];
    firsts  bigint[];
    lasts   bigint[];
    began   timestamptz[];
    ended   timestamptz[];
    ranges  bigint;
BEGIN
    -- One collector at a time; the others find nothing to do.
    IF NOT pg_try_advisory_xact_lock(hashtext('llm_logs'), hashtext('sequences')) THEN
        RETURN;
    END IF;

    -- What is new, as islands.
    WITH taken AS (
        DELETE FROM llm_sequences
        WHERE ctid = ANY (ARRAY(SELECT ctid FROM llm_sequences WHERE NOT merged AND place > (SELECT place FROM llm_sequences_merged_to)
                                ORDER BY place LIMIT 1000))
        RETURNING worker, first_seq, last_seq, first_seen_at, last_seen_at
    ), marked AS (
        -- An island begins where everything before it ended earlier than the number in front of it.
        SELECT *, first_seq > coalesce(max(last_seq) OVER (
            PARTITION BY worker ORDER BY first_seq, last_seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), -1) + 1 AS begins
        FROM taken
    ), numbered AS (
        SELECT *, count(*) FILTER (WHERE begins) OVER (PARTITION BY worker ORDER BY first_seq, last_seq) AS island FROM marked
    ), islands AS (
        SELECT worker, min(first_seq) AS island_first, max(last_seq) AS island_last, min(first_seen_at) AS began, max(last_seen_at) AS ended
        FROM numbered GROUP BY worker, island
    )
    SELECT array_agg(i.worker), array_agg(i.island_first), array_agg(i.island_last), array_agg(i.began), array_agg(i.ended),
        (SELECT count(*) FROM taken)
    INTO workers, firsts, lasts, began, ended, ranges FROM islands i;
    IF ranges < 1000 THEN
        UPDATE llm_sequences_merged_to
        SET place = next, next = coalesce(pg_sequence_last_value(pg_get_serial_sequence('llm_sequences', 'place')::regclass), 0), next_at = now()
        WHERE next_at NOT BETWEEN now() - interval '10 minutes' AND now();
    END IF;
    IF workers IS NULL THEN
        RETURN;
    END IF;

    WITH islands AS (
        SELECT * FROM unnest(workers, firsts, lasts, began, ended) AS i (worker, first_seq, last_seq, first_seen_at, last_seen_at)
    ), beside AS (
        -- Of the merged ones the last that begins before the island, and those that begin in it or right behind it.
        SELECT DISTINCT near.row FROM islands i CROSS JOIN LATERAL (
            (SELECT s.ctid AS row, s.last_seq FROM llm_sequences s
             WHERE s.merged AND s.worker = i.worker AND s.first_seq < i.first_seq ORDER BY s.first_seq DESC LIMIT 1)
            UNION ALL
            SELECT s.ctid, s.last_seq FROM llm_sequences s
            WHERE s.merged AND s.worker = i.worker AND s.first_seq >= i.first_seq AND s.first_seq <= i.last_seq + 1
        ) AS near WHERE near.last_seq >= i.first_seq - 1
    ), taken AS (
        DELETE FROM llm_sequences WHERE ctid = ANY (ARRAY(SELECT row FROM beside))
        RETURNING worker, first_seq, last_seq, first_seen_at, last_seen_at, hole_found
    ), members AS (
        SELECT worker, first_seq, last_seq, first_seen_at, last_seen_at, first_seq = 1 AS hole_found FROM islands
        UNION ALL SELECT * FROM taken
    ), marked AS (
        SELECT *, first_seq > coalesce(max(last_seq) OVER (
            PARTITION BY worker ORDER BY first_seq, last_seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), -1) + 1 AS begins
        FROM members
    ), numbered AS (
        SELECT *, count(*) FILTER (WHERE begins) OVER (PARTITION BY worker ORDER BY first_seq, last_seq) AS island FROM marked
    )
    -- The hole in front of an island is as old as the island's first arrival, and was found where it was found in front of its first part.
    INSERT INTO llm_sequences AS s (worker, first_seq, last_seq, first_seen_at, last_seen_at, merged, hole_found)
    SELECT worker, min(first_seq), max(last_seq), min(first_seen_at), max(last_seen_at), true,
        (array_agg(hole_found ORDER BY first_seq, hole_found DESC))[1]
    FROM numbered GROUP BY worker, island ORDER BY worker, min(first_seq)
    -- The very same numbers arrived once more in this moment.
    ON CONFLICT (worker, first_seq, last_seq) DO UPDATE SET
        merged = true, hole_found = excluded.hole_found, first_seen_at = least(s.first_seen_at, excluded.first_seen_at);

    RETURN QUERY
    WITH islands AS (
        SELECT * FROM unnest(workers, firsts, lasts) AS i (worker, first_seq, last_seq)
    ), met AS (
        -- Gaps do not overlap: of those that begin before the island only the last one can reach into it.
        SELECT near.*, int8range(i.first_seq, i.last_seq, '[]') AS numbers FROM islands i CROSS JOIN LATERAL (
            (SELECT g.worker, g.first_seq, g.last_seq, g.found_at, g.settled FROM llm_sequence_gaps g
             WHERE g.worker = i.worker AND g.first_seq < i.first_seq ORDER BY g.first_seq DESC LIMIT 1)
            UNION ALL
            SELECT g.worker, g.first_seq, g.last_seq, g.found_at, g.settled FROM llm_sequence_gaps g
            WHERE g.worker = i.worker AND g.first_seq >= i.first_seq AND g.first_seq <= i.last_seq
        ) AS near WHERE NOT near.settled AND near.last_seq >= i.first_seq
    ), remains AS (
        SELECT m.worker, m.first_seq, m.last_seq, m.found_at,
            int8multirange(int8range(m.first_seq, m.last_seq, '[]')) - range_agg(m.numbers) AS missing
        FROM met m GROUP BY m.worker, m.first_seq, m.last_seq, m.found_at
    ), closed AS (
        DELETE FROM llm_sequence_gaps g USING remains r WHERE g.worker = r.worker AND g.first_seq = r.first_seq AND g.last_seq = r.last_seq
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

-- Merges, takes back what closed, and returns the holes that are older than `grace` and were not found before, of a thousand at a time.
CREATE OR REPLACE FUNCTION llm_find_sequence_gaps(grace interval)
RETURNS TABLE (gap_worker text, gap_first bigint, gap_last bigint)
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtext('llm_logs'), hashtext('sequences')) THEN
        RETURN;
    END IF;
    PERFORM llm_close_sequence_gaps();
    -- More arrived than is merged at a time, and what is left may be what seems to be missing.
    IF EXISTS (SELECT FROM llm_sequences WHERE NOT merged AND place > (SELECT place FROM llm_sequences_merged_to)
                   AND first_seen_at < now() - interval '10 seconds') THEN
        RETURN;
    END IF;

    RETURN QUERY
    WITH old AS MATERIALIZED (
        SELECT ctid AS row, worker, first_seq FROM llm_sequences WHERE merged AND NOT hole_found AND first_seen_at < now() - grace
        ORDER BY first_seen_at LIMIT 1000
    ), holes AS MATERIALIZED (
        SELECT o.worker, coalesce((SELECT s.last_seq FROM llm_sequences s WHERE s.merged AND s.worker = o.worker AND s.first_seq < o.first_seq
                                   ORDER BY s.first_seq DESC LIMIT 1), 0) + 1 AS hole_first, o.first_seq - 1 AS hole_last
        FROM old o
    ), missing AS (
        -- A part may be known: of a hole that was a worker's tail, or that another entry fell into since.
        SELECT h.worker, int8multirange(int8range(h.hole_first, h.hole_last, '[]')) - coalesce((
            SELECT range_agg(int8range(near.first_seq, near.last_seq, '[]')) FROM (
                (SELECT g.first_seq, g.last_seq FROM llm_sequence_gaps g
                 WHERE g.worker = h.worker AND g.first_seq < h.hole_first ORDER BY g.first_seq DESC LIMIT 1)
                UNION ALL
                SELECT g.first_seq, g.last_seq FROM llm_sequence_gaps g
                WHERE g.worker = h.worker AND g.first_seq >= h.hole_first AND g.first_seq <= h.hole_last
            ) AS near), '{}') AS numbers
        FROM holes h WHERE h.hole_first <= h.hole_last
    ), noted AS (
        UPDATE llm_sequences SET hole_found = true WHERE ctid = ANY (ARRAY(SELECT row FROM old))
    )
    INSERT INTO llm_sequence_gaps (worker, first_seq, last_seq)
    -- In order, and so all looked for before the first is written: else each look would pass over what this statement wrote.
    SELECT m.worker, lower(part), upper(part) - 1 FROM missing m, unnest(m.numbers) AS part ORDER BY m.worker, lower(part)
    ON CONFLICT DO NOTHING
    RETURNING worker, first_seq, last_seq;
END $$;

-- Forgets the numbers of workers that ended long ago: one that was restarted has a new identity, and what the old one missed was found.
CREATE FUNCTION llm_forget_sequences() RETURNS void
LANGUAGE sql AS $$
    DELETE FROM llm_sequences WHERE worker IN (
        SELECT worker FROM llm_sequences GROUP BY worker HAVING max(last_seen_at) < now() - interval '90 days')
$$;
