-- Calls of people with a valid key that the gateway refused: over a limit, out of places, of a model that they may not use. A script that
-- does not wait makes thousands a second, so of each user and minute only the first ones are rows of llm_logs; the rest is counted.

CREATE TABLE llm_refused_users (
    minute     timestamptz NOT NULL,
    -- As in llm_logs.consumer_username; empty where there were too many.
    username   text        NOT NULL,
    -- 'router', 'quota', 'queue'; 'kong' for rate-limiting and whatever else answered.
    refused_by text        NOT NULL,
    status     integer     NOT NULL,
    -- The node of Kong that counted.
    source     text        NOT NULL,
    count      bigint      NOT NULL,
    PRIMARY KEY (minute, username, refused_by, status, source)
);

COMMENT ON TABLE llm_refused_users IS
    'Calls with a valid key that the gateway refused and that are counted, not stored: who, which refusal, how many in which minute.';

-- With `keep_days` > 0 removes counts that are older. To be called again while it returns true: a statement that removes everything at
-- once would hold up others.
CREATE FUNCTION llm_trim_refused_users(keep_days integer) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    piece  CONSTANT integer := 10000;
    counts bigint := 0;
BEGIN
    IF keep_days > 0 THEN
        DELETE FROM llm_refused_users c USING (
            SELECT minute, username, refused_by, status, source FROM llm_refused_users
            WHERE minute < now() - make_interval(days => keep_days)
            ORDER BY minute, username, refused_by, status, source LIMIT piece FOR UPDATE SKIP LOCKED) old
        WHERE (c.minute, c.username, c.refused_by, c.status, c.source)
            = (old.minute, old.username, old.refused_by, old.status, old.source);
        GET DIAGNOSTICS counts = ROW_COUNT;
    END IF;
    RETURN counts = piece;
END $$;
