-- The message of an error is content: it may repeat the request. Where content is removed, a word in brackets stays in its place,
-- because whether a call failed is none.

-- Whether an error says more than such a word. In step with extract/error.rs.
CREATE FUNCTION llm_error_has_content(error text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT error IS NOT NULL AND error !~ '^\[[A-Za-z0-9_.-]{1,64}\]$'
$$;

CREATE FUNCTION llm_error_without_content(error text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN error IS NOT NULL AND error !~ '^\[[A-Za-z0-9_.-]{1,64}\]$' THEN '[error]' ELSE error END
$$;

COMMENT ON COLUMN llm_logs.error IS 'The message of a failure; a word in brackets where it was not stored or has been removed.';

-- As llm_logs_default_content is for the other columns. Days have such indexes of their own from when their content is removed:
-- llm_rewrite_day makes them, and retention does for those that were done before.
CREATE INDEX llm_logs_default_error ON llm_logs_default (started_at) WHERE llm_error_has_content(error);

-- As before, and without the messages of errors.
CREATE OR REPLACE FUNCTION llm_copy_statement(partition text, condition text) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT format('INSERT INTO %I (%s) SELECT %s FROM %I p, LATERAL (SELECT p.raw_log || ''{}'' AS raw OFFSET 0) entry WHERE %s',
        partition || '_rewrite', string_agg(quote_ident(attname), ', ' ORDER BY attnum),
        string_agg(CASE
            WHEN attname IN ('prompt', 'response', 'reasoning', 'tool_calls') THEN 'NULL'
            WHEN attname = 'error' THEN 'llm_error_without_content(p.error)'
            WHEN attname = 'raw_log' THEN 'llm_without_bodies(entry.raw)'
            ELSE 'p.' || quote_ident(attname)
        END, ', ' ORDER BY attnum), partition, condition)
    FROM pg_attribute
    WHERE attrelid = 'llm_logs'::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
$$;

-- As before, with the index of errors.
CREATE OR REPLACE FUNCTION llm_rewrite_day(day date) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    name    text        := 'llm_logs_' || to_char(day, 'YYYYMMDD');
    lower   timestamptz := day::timestamp AT TIME ZONE 'UTC';
    upper   timestamptz := (day + 1)::timestamp AT TIME ZONE 'UTC';
    copied  bigint;
BEGIN
    EXECUTE format('CREATE TABLE %I (LIKE llm_logs INCLUDING ALL EXCLUDING IDENTITY)', name || '_rewrite');
    -- With it, ATTACH needs not read the table to know that the rows belong there.
    EXECUTE format('ALTER TABLE %I ADD CONSTRAINT of_that_day CHECK (started_at >= %L AND started_at < %L)',
                   name || '_rewrite', lower, upper);
    -- Rows that come for a day that was done are few: retention finds them by these indexes, which are empty otherwise.
    EXECUTE format('CREATE INDEX %I ON %I (started_at) WHERE llm_has_content(prompt, response, reasoning, tool_calls, raw_log)',
                   name || '_content', name || '_rewrite');
    EXECUTE format('CREATE INDEX %I ON %I (started_at) WHERE llm_error_has_content(error)', name || '_error', name || '_rewrite');
    EXECUTE llm_copy_statement(name, 'true');
    GET DIAGNOSTICS copied = ROW_COUNT;
    RETURN copied;
END $$;
