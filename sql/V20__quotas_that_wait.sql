-- A limit whose excess waits: over it nobody is refused, but served when nobody else waits for the model server.
ALTER TABLE llm_quotas DROP CONSTRAINT llm_quotas_mode_check;
ALTER TABLE llm_quotas ADD CONSTRAINT llm_quotas_mode_check CHECK (mode IN ('hard', 'soft', 'wait', 'shadow'));

COMMENT ON COLUMN llm_quotas.mode IS 'hard: reserved before a call; soft: the call that crosses the line is the last; wait: further ones are served behind all others; shadow: refuses nobody.';
