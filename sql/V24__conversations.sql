-- Calls whose messages continue an earlier call of the same person belong to one conversation.

ALTER TABLE llm_logs ADD COLUMN conversation text;
COMMENT ON COLUMN llm_logs.conversation IS
    'The request_id of the conversation''s first call: calls whose messages begin with the messages and the answer of an earlier one.';

-- Partitions that are made from now on get it, and those of days to come, which are empty. Rows of older ones have no conversation.
CREATE INDEX llm_logs_conversation ON ONLY llm_logs (conversation);
DO $$
DECLARE
    partition text;
BEGIN
    FOR partition IN SELECT d.partition FROM llm_partition_days d WHERE day > (now() AT TIME ZONE 'UTC')::date LOOP
        EXECUTE format('CREATE INDEX ON %I (conversation)', partition);
    END LOOP;
END $$;

-- What a call has to continue to belong to a conversation: hashes over a person and everything that was said. Kept for a week.
CREATE TABLE llm_turns (
    turn         bytea       PRIMARY KEY,
    conversation text        NOT NULL,
    seen_at      timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX llm_turns_conversation ON llm_turns (conversation);
CREATE INDEX llm_turns_seen_at ON llm_turns (seen_at);

COMMENT ON TABLE llm_turns IS 'Ends of calls, by which later calls find the conversation that they continue.';

-- Calls that came before the one that they continue: Kong's workers send in batches of their own.
CREATE TABLE llm_awaited_turns (
    turn         bytea       NOT NULL,
    conversation text        NOT NULL,
    noted_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (turn, conversation)
);

COMMENT ON TABLE llm_awaited_turns IS 'Calls of the last hour whose earlier call was not there yet.';

-- Ties calls to an earlier one that came after them, some at a time. Returns how many conversations became part of another one.
CREATE FUNCTION llm_join_conversations() RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    pair   record;
    joined bigint := 0;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtext('llm_logs'), hashtext('conversations')) THEN
        RETURN 0;
    END IF;
    WHILE joined < 100 LOOP
        DELETE FROM llm_awaited_turns WHERE ctid = (
            SELECT a.ctid FROM llm_awaited_turns a JOIN llm_turns t USING (turn) LIMIT 1
        ) RETURNING turn, conversation INTO pair;
        EXIT WHEN NOT FOUND;
        DECLARE
            found text := (SELECT conversation FROM llm_turns t WHERE t.turn = pair.turn);
        BEGIN
            CONTINUE WHEN found IS NULL OR found = pair.conversation;
            UPDATE llm_turns SET conversation = found WHERE conversation = pair.conversation;
            INSERT INTO llm_awaited_turns (turn, conversation) SELECT turn, found FROM llm_awaited_turns a WHERE a.conversation = pair.conversation
            ON CONFLICT DO NOTHING;
            DELETE FROM llm_awaited_turns a WHERE a.conversation = pair.conversation;
            UPDATE llm_logs SET conversation = found WHERE conversation = pair.conversation AND started_at > now() - interval '8 days';
            joined := joined + 1;
        END;
    END LOOP;
    RETURN joined;
END $$;

-- Removes what is not waited for any more, some thousand at a time. True while there is more.
CREATE FUNCTION llm_forget_turns() RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    removed bigint;
BEGIN
    DELETE FROM llm_awaited_turns WHERE noted_at < now() - interval '1 hour';
    DELETE FROM llm_turns WHERE ctid = ANY (ARRAY(SELECT ctid FROM llm_turns WHERE seen_at < now() - interval '7 days' LIMIT 10000));
    GET DIAGNOSTICS removed = ROW_COUNT;
    RETURN removed = 10000;
END $$;

-- What was new in a call: the messages that its request has after the last answer of the model, and its first answer. In one that begins
-- with answers, as after its client compacted it, all of these are older than what is shown.
CREATE FUNCTION llm_new_messages(call llm_logs) RETURNS TABLE (place bigint, role text, content text)
LANGUAGE sql STABLE AS $$
    WITH entry AS (SELECT llm_raw_log(call) AS whole),
    body AS (SELECT coalesce(whole #> '{request,body,messages}', whole #> '{request,body,input}') AS messages FROM entry),
    sent AS (
        SELECT number, message, coalesce(message ->> 'role', message ->> 'type') AS who
        FROM body, jsonb_array_elements(CASE jsonb_typeof(messages) WHEN 'array' THEN messages WHEN 'string' THEN
            jsonb_build_array(jsonb_build_object('role', 'user', 'content', messages)) END) WITH ORDINALITY AS all_sent (message, number)
    )
    SELECT number, who, coalesce(CASE jsonb_typeof(message -> 'content') WHEN 'string' THEN message ->> 'content' END,
        (SELECT string_agg(coalesce(part ->> 'text', part::text), E'\n') FROM jsonb_array_elements(
            CASE jsonb_typeof(message -> 'content') WHEN 'array' THEN message -> 'content' END) AS part),
        message ->> 'output', message ->> 'tool_calls', message::text)
    FROM sent
    WHERE number > coalesce((SELECT max(number) FROM sent WHERE who IN ('assistant', 'function_call', 'reasoning')), 0)
    ORDER BY number
$$;
