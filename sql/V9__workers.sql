-- How far the workers of Kong have counted. A hole in llm_sequences shows with the number behind it; what a killed worker took along
-- has none behind it, and shows because the node tells.

CREATE TABLE llm_workers (
    worker  text        PRIMARY KEY,
    node    text        NOT NULL,
    -- The highest number that the worker gave away.
    given   bigint      NOT NULL,
    -- Up to here nothing waits in the worker any more.
    done    bigint      NOT NULL,
    -- Since when that is so.
    done_at timestamptz NOT NULL DEFAULT now(),
    ended   boolean     NOT NULL,
    seen_at timestamptz NOT NULL DEFAULT now(),
    -- Up to here it was looked for a tail that never arrived.
    looked  bigint      NOT NULL DEFAULT 0
);

COMMENT ON TABLE llm_workers IS 'How far each worker of Kong has counted, as its node tells once a second.';

-- Notes what a node tells of its workers. It tells of all that run: one of which it tells no more has ended, and what it held is gone;
-- so the tail of a Kong that was killed as a whole is known when it is back. An older report changes nothing.
CREATE FUNCTION llm_note_workers(of_node text, workers text[], givens bigint[], dones bigint[], endeds boolean[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    -- In one order, so that nodes do not wait for each other in a circle. A worker that has nothing new to tell is written once a minute.
    INSERT INTO llm_workers AS known (worker, node, given, done, ended)
    SELECT worker, of_node, given, done, ended FROM unnest(workers, givens, dones, endeds) AS told (worker, given, done, ended)
    ORDER BY worker
    ON CONFLICT (worker) DO UPDATE SET
        node = excluded.node,
        given = greatest(known.given, excluded.given),
        done = greatest(known.done, excluded.done),
        done_at = CASE WHEN excluded.done > known.done OR excluded.ended AND NOT known.ended THEN now() ELSE known.done_at END,
        ended = excluded.ended,
        seen_at = now()
    WHERE excluded.given > known.given OR excluded.done > known.done OR excluded.ended <> known.ended
        OR known.seen_at < now() - interval '1 minute';

    IF cardinality(workers) > 0 THEN
        UPDATE llm_workers SET ended = true, done = given, done_at = now()
        WHERE node = of_node AND NOT ended AND NOT worker = ANY (workers);
    END IF;

    DELETE FROM llm_workers WHERE ended AND seen_at < now() - interval '90 days';
END $$;

-- Finds numbers that never arrived and have no arrived one behind them: older than `grace`, or than 20 seconds where the worker has ended
-- (then nothing is on its way any more but what a collector holds). Each worker is looked at once for what it counted. What is still missing
-- when an arrived number comes to be behind such a tail, llm_find_sequence_gaps finds.
CREATE FUNCTION llm_find_tail_gaps(grace interval)
RETURNS TABLE (gap_worker text, gap_first bigint, gap_last bigint)
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtext('llm_logs'), hashtext('sequences')) THEN
        RETURN;
    END IF;
    RETURN QUERY
    WITH quiet AS (
        -- One of which a node tells in this moment waits for the next time, or this would wait for the node and the node for this.
        SELECT w.worker FROM llm_workers w
        WHERE w.done > w.looked AND w.done_at < now() - CASE WHEN w.ended THEN least(grace, interval '20 seconds') ELSE grace END
        FOR NO KEY UPDATE SKIP LOCKED
    ), looked AS (
        UPDATE llm_workers w SET looked = w.done FROM quiet q WHERE w.worker = q.worker RETURNING w.worker, w.done
    ), new AS MATERIALIZED (
        SELECT s.worker, max(s.last_seq) AS last_seq FROM llm_sequences s
        WHERE NOT s.merged AND s.place > (SELECT m.place FROM llm_sequences_merged_to m) GROUP BY s.worker
    ), tails AS (
        SELECT l.worker, l.done AS tail_last, 1 + greatest(
            coalesce((SELECT s.last_seq FROM llm_sequences s WHERE s.merged AND s.worker = l.worker ORDER BY s.first_seq DESC LIMIT 1), 0),
            coalesce((SELECT n.last_seq FROM new n WHERE n.worker = l.worker), 0),
            coalesce((SELECT g.last_seq FROM llm_sequence_gaps g WHERE g.worker = l.worker ORDER BY g.first_seq DESC LIMIT 1), 0)) AS tail_first
        FROM looked l
    )
    INSERT INTO llm_sequence_gaps (worker, first_seq, last_seq)
    SELECT worker, tail_first, tail_last FROM tails WHERE tail_first <= tail_last ORDER BY worker
    ON CONFLICT DO NOTHING
    RETURNING worker, first_seq, last_seq;
END $$;
