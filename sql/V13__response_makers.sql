-- Who made which stored response of /v1/responses, as nodes of Kong tell. They ask for those that they do not know: made before a restart,
-- or at another node.

CREATE TABLE llm_response_makers (
    id      text        PRIMARY KEY,
    -- Identity of the consumer in Kong; empty where nobody needs a key.
    maker   text        NOT NULL,
    -- Whether the response's tokens are in a row: they are counted with one call, however often it is fetched.
    counted boolean     NOT NULL,
    told_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX llm_response_makers_told_at ON llm_response_makers (told_at);

COMMENT ON TABLE llm_response_makers IS 'Who made which stored response of /v1/responses, for 30 days.';

-- Notes makers. Of an id that comes again the last maker stands, as at the server; what was counted stays so for the same one.
CREATE FUNCTION llm_note_response_makers(ids text[], makers text[], counteds boolean[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    -- In one order, so that nodes do not wait for each other in a circle.
    INSERT INTO llm_response_makers AS known (id, maker, counted)
    SELECT id, maker, counted FROM unnest(ids, makers, counteds) AS told (id, maker, counted) ORDER BY id
    ON CONFLICT (id) DO UPDATE SET
        maker = excluded.maker,
        counted = excluded.counted OR known.counted AND known.maker = excluded.maker,
        told_at = now();

    DELETE FROM llm_response_makers WHERE id IN (
        SELECT id FROM llm_response_makers WHERE told_at < now() - interval '30 days'
        ORDER BY told_at LIMIT 1000 FOR UPDATE SKIP LOCKED);
END $$;
