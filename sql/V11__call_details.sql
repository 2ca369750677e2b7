-- What the gateway and the model server tell about a call beyond the first columns. Constant defaults: no row is written anew.
ALTER TABLE llm_logs
    ADD COLUMN team                        text,
    ADD COLUMN backend                     text,
    ADD COLUMN queue_ms                    integer,
    ADD COLUMN estimated_prompt_tokens     integer,
    ADD COLUMN estimated_completion_tokens integer,
    ADD COLUMN unread                      boolean NOT NULL DEFAULT false,
    ADD COLUMN engine_queue_ms             integer,
    ADD COLUMN prefill_ms                  integer,
    ADD COLUMN decode_ms                   integer;

COMMENT ON COLUMN llm_logs.team IS 'The caller''s team: the tag team:NAME of Kong''s consumer.';
COMMENT ON COLUMN llm_logs.backend IS 'The model server that the gateway chose.';
COMMENT ON COLUMN llm_logs.queue_ms IS 'Milliseconds that the gateway held the call back; null when it did not.';
COMMENT ON COLUMN llm_logs.estimated_prompt_tokens IS
    'As estimated by the gateway, only where the model server reported no tokens. So is estimated_completion_tokens.';
COMMENT ON COLUMN llm_logs.unread IS 'Text of the call may be missing from the columns: nobody understood a body or an event of it. See raw_log.';
COMMENT ON COLUMN llm_logs.engine_queue_ms IS 'Milliseconds in the model server''s queue, where it reports them. So are the next two.';
COMMENT ON COLUMN llm_logs.prefill_ms IS 'Milliseconds from there to the first token.';
COMMENT ON COLUMN llm_logs.decode_ms IS 'Milliseconds from the first token to the last.';
