-- Calls of one trace, as the client's `traceparent` names it. Rows from before have none. No index: partitions of years would be read for
-- it while nothing can be written; a question names the time besides, and reads the days of it.
ALTER TABLE llm_logs ADD COLUMN trace_id text;
COMMENT ON COLUMN llm_logs.trace_id IS 'The trace of the client''s traceparent (W3C Trace Context); null where it sent none that is valid.';
