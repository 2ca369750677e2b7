-- Who was told, or is to be told, that a limit is nearly used up. The key says it once for each limit, subject, window and threshold,
-- however many collectors look. What is said stands here: whoever posts it may read no limits.
CREATE TABLE llm_quota_notices (
    quota_id     bigint      NOT NULL REFERENCES llm_quotas ON DELETE CASCADE,
    -- As in llm_quota_state: of a limit for each user it is the user.
    subject      text        NOT NULL,
    starts_at    timestamptz NOT NULL,
    threshold    integer     NOT NULL,
    subject_kind text        NOT NULL,
    models       text        NOT NULL,
    unit         text        NOT NULL,
    currency     text        NOT NULL,
    per          text        NOT NULL,
    amount       numeric     NOT NULL,
    mode         text        NOT NULL,
    used         numeric     NOT NULL,
    ends_at      timestamptz NOT NULL,
    noted_at     timestamptz NOT NULL DEFAULT now(),
    tries        integer     NOT NULL DEFAULT 0,
    tried_at     timestamptz,
    next_try_at  timestamptz NOT NULL DEFAULT now(),
    sent_at      timestamptz,
    PRIMARY KEY (quota_id, subject, starts_at, threshold)
);
CREATE INDEX llm_quota_notices_due ON llm_quota_notices (next_try_at) WHERE sent_at IS NULL;
CREATE INDEX llm_quota_notices_tried ON llm_quota_notices (tried_at);

COMMENT ON TABLE llm_quota_notices IS 'Notices that a limit is used to 80, 95 or 100 %, until a day after its window.';
COMMENT ON COLUMN llm_quota_notices.sent_at IS 'When the webhook took it; null as long as it did not.';
