-- Calls that the gateway refused before it knew who called: no valid key, no such path. Whoever can reach the gateway can make as
-- many of them as the network carries, so only the first ones of an address and minute are rows of llm_logs; the rest is counted.

-- How often an address was refused in a minute beyond what is a row.
CREATE TABLE llm_refused_calls (
    minute  timestamptz NOT NULL,
    -- An IPv4 address, the /64 network of an IPv6 address, or 'other' where there were too many.
    address text        NOT NULL,
    status  integer     NOT NULL,
    -- Who counted: '' for entries that reached a collector, else the node of Kong that counted instead of sending entries.
    source  text        NOT NULL,
    count   bigint      NOT NULL,
    PRIMARY KEY (minute, address, status, source)
);

COMMENT ON TABLE llm_refused_calls IS 'Calls without a valid key that are counted, not stored: address, minute, status, count.';

-- Which entries were counted, so that an entry that comes again is not counted again. Kept for a day: see llm_trim_refused_calls.
CREATE TABLE llm_refused_seen (
    minute timestamptz NOT NULL,
    -- The first 64 bits of a SHA-256 of the entry's identity.
    id     bigint      NOT NULL,
    PRIMARY KEY (minute, id)
);

-- Forgets which entries were counted more than a day ago, and with `keep_days` > 0 the counts that are older than that. To be called
-- again while it returns true: a statement that removes everything at once would hold up others.
CREATE FUNCTION llm_trim_refused_calls(keep_days integer) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    piece   CONSTANT integer := 10000;
    seen    bigint;
    counts  bigint := 0;
BEGIN
    DELETE FROM llm_refused_seen s USING (
        SELECT minute, id FROM llm_refused_seen WHERE minute < now() - interval '1 day'
        ORDER BY minute, id LIMIT piece FOR UPDATE SKIP LOCKED) old
    WHERE s.minute = old.minute AND s.id = old.id;
    GET DIAGNOSTICS seen = ROW_COUNT;
    IF keep_days > 0 THEN
        DELETE FROM llm_refused_calls c USING (
            SELECT minute, address, status, source FROM llm_refused_calls WHERE minute < now() - make_interval(days => keep_days)
            ORDER BY minute, address, status, source LIMIT piece FOR UPDATE SKIP LOCKED) old
        WHERE (c.minute, c.address, c.status, c.source) = (old.minute, old.address, old.status, old.source);
        GET DIAGNOSTICS counts = ROW_COUNT;
    END IF;
    RETURN seen = piece OR counts = piece;
END $$;
