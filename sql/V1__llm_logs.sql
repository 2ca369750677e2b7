-- One row a call. Partitioned by day (UTC), because retention drops days and because almost every question is about some days.
CREATE TABLE llm_logs (
    id                  bigint GENERATED ALWAYS AS IDENTITY,
    request_id          text        NOT NULL,
    consumer_username   text        NOT NULL,
    started_at          timestamptz NOT NULL,
    latency_ms          integer,
    status              integer,
    prompt              text,
    response            text,
    raw_log             jsonb,
    created_at          timestamptz NOT NULL DEFAULT now(),
    model               text,
    endpoint            text,
    service             text,
    route               text,
    client_ip           inet,
    stream              boolean     NOT NULL DEFAULT false,
    aborted             boolean     NOT NULL DEFAULT false,
    truncated           boolean     NOT NULL DEFAULT false,
    reasoning           text,
    tool_calls          jsonb,
    finish_reason       text,
    error               text,
    prompt_tokens       integer,
    completion_tokens   integer,
    cached_tokens       integer,
    reasoning_tokens    integer,
    ttft_ms             integer,
    upstream_latency_ms integer,
    gateway_latency_ms  integer,
    -- PostgreSQL alone decides what is a duplicate: Kong repeats a batch whenever it did not see the answer.
    UNIQUE (request_id, started_at)
) PARTITION BY RANGE (started_at);

COMMENT ON TABLE llm_logs IS 'Calls to the model, one row each, as logged by Kong and read by llm-collector.';
COMMENT ON COLUMN llm_logs.request_id IS 'Kong''s request id; a hash of the entry where it had none.';
COMMENT ON COLUMN llm_logs.consumer_username IS 'Kong''s consumer; anonymous where authentication failed or is off.';
COMMENT ON COLUMN llm_logs.started_at IS 'When Kong received the request.';
COMMENT ON COLUMN llm_logs.latency_ms IS 'Milliseconds until the last byte of the answer.';
COMMENT ON COLUMN llm_logs.status IS 'HTTP status that the client got.';
COMMENT ON COLUMN llm_logs.prompt IS 'The last message of the user, or the input text.';
COMMENT ON COLUMN llm_logs.response IS 'The text of the answer; null for tool calls alone and for errors.';
COMMENT ON COLUMN llm_logs.raw_log IS 'Kong''s log entry without credentials, bodies as JSON.';
COMMENT ON COLUMN llm_logs.created_at IS 'When the row was written.';
COMMENT ON COLUMN llm_logs.endpoint IS 'Path of the request, without its query.';
COMMENT ON COLUMN llm_logs.stream IS 'The answer was an event stream.';
COMMENT ON COLUMN llm_logs.aborted IS 'The answer did not come to its end.';
COMMENT ON COLUMN llm_logs.truncated IS 'A captured body was cut at the configured limit.';
COMMENT ON COLUMN llm_logs.tool_calls IS 'Array of {"id","name","arguments"}, arguments as the text that came.';
COMMENT ON COLUMN llm_logs.prompt_tokens IS 'As reported by the model server; null when not reported. So are the other token counts.';
COMMENT ON COLUMN llm_logs.ttft_ms IS 'Milliseconds until the first byte of the answer''s body.';
COMMENT ON COLUMN llm_logs.upstream_latency_ms IS 'Milliseconds that Kong waited for the model server; null when Kong answered itself.';
COMMENT ON COLUMN llm_logs.gateway_latency_ms IS 'Milliseconds spent in Kong.';

CREATE INDEX llm_logs_started_at ON llm_logs (started_at DESC);
CREATE INDEX llm_logs_consumer ON llm_logs (consumer_username, started_at DESC);

-- lz4 costs a third of pglz's time on large texts; servers built without it keep their default.
DO $$
BEGIN
    ALTER TABLE llm_logs
        ALTER COLUMN prompt SET COMPRESSION lz4,
        ALTER COLUMN response SET COMPRESSION lz4,
        ALTER COLUMN reasoning SET COMPRESSION lz4,
        ALTER COLUMN tool_calls SET COMPRESSION lz4,
        ALTER COLUMN raw_log SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported OR invalid_parameter_value THEN
    RAISE NOTICE 'this server has no lz4 compression; large columns are stored with its default';
END $$;

-- Rows of days that have no partition: clocks that are wrong, and days far away. Small in a healthy installation.
CREATE TABLE llm_logs_default PARTITION OF llm_logs DEFAULT;

-- Makes the partition of one day (UTC) and moves the day's rows out of the default partition. False when it is there already.
-- ATTACH rather than CREATE … PARTITION OF: it locks out neither readers nor writers of the other days.
CREATE FUNCTION llm_create_partition(day date) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    name  text        := 'llm_logs_' || to_char(day, 'YYYYMMDD');
    lower timestamptz := day::timestamp AT TIME ZONE 'UTC';
    upper timestamptz := (day + 1)::timestamp AT TIME ZONE 'UTC';
BEGIN
    -- Several collectors make the same partitions at midnight.
    PERFORM pg_advisory_xact_lock(hashtext('llm_logs'), hashtext('partitions'));
    IF to_regclass(name) IS NOT NULL THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE llm_logs INCLUDING DEFAULTS INCLUDING CONSTRAINTS'
                   ' INCLUDING COMPRESSION INCLUDING STORAGE INCLUDING COMMENTS)', name);
    EXECUTE format('WITH moved AS (DELETE FROM llm_logs_default WHERE started_at >= %L AND started_at < %L RETURNING *)'
                   ' INSERT INTO %I SELECT * FROM moved', lower, upper, name);
    EXECUTE format('ALTER TABLE llm_logs ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', name, lower, upper);
    RETURN true;
END $$;

-- What could not become a row: kept until `llm-collector rejected retry` can store it.
CREATE TABLE llm_rejected (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    rejected_at timestamptz NOT NULL DEFAULT now(),
    reason      text        NOT NULL,
    raw         bytea       NOT NULL,
    -- A batch that Kong repeats brings the same entry again.
    raw_sha256  bytea       NOT NULL UNIQUE
);

COMMENT ON TABLE llm_rejected IS 'Log entries that could not become a row of llm_logs, credentials removed.';
