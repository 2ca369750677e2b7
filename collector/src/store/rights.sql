-- What the role llm_writer may do, with which `llm-collector serve` works where it exists. It takes entries in and can neither read what
-- people wrote, nor change, remove or drop what it stored: whoever takes over the process that reads hostile input has these
-- rights and no more. Run by the owner after migrations, because these bring new tables and make functions anew.
DO $$
DECLARE
    -- What it works with besides, through functions that do one thing with the owner's rights.
    works   CONSTANT text[] := ARRAY['llm_create_partition', 'llm_fill_partition', 'llm_missing_partitions', 'llm_count_usage', 'llm_count_usage_backlog',
        'llm_has_usage_backlog', 'llm_compact_usage', 'llm_compact_usage_piece', 'llm_find_sequence_gaps',
        'llm_close_sequence_gaps', 'llm_forget_sequences', 'llm_note_workers', 'llm_note_response_makers', 'llm_find_tail_gaps',
        'llm_trim_refused_calls', 'llm_trim_refused_users', 'llm_merge_counted_ranges', 'llm_forget_counted_ranges', 'llm_know_cluster', 'llm_quota_used',
        'llm_quota_state', 'llm_quota_sync', 'llm_site_zone', 'llm_own_usage', 'llm_own_calls', 'llm_create_content', 'llm_join_conversations',
        'llm_forget_turns'];
    -- The record: calls, what they cost, what could not be stored and what was lost.
    record  CONSTANT text[] := ARRAY['llm_rejected', 'llm_usage', 'llm_usage_days', 'llm_usage_of_teams', 'llm_usage_days_of_teams',
        'llm_usage_deltas', 'llm_usage_models', 'llm_usage_compacted', 'llm_model_prices', 'llm_site', 'llm_quotas', 'llm_quota_revision',
        'llm_sequence_gaps', 'llm_content', 'llm_content_state', 'llm_erased_content', 'llm_usage_backlog', 'llm_retention_rounds', 'llm_partition_moves', 'llm_upkeep', 'llm_feeds', 'llm_feed_slices', 'refinery_schema_history'];
    own     CONSTANT text   := current_schema();
    name    text;
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO llm_writer', own);
    FOR name IN SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = own::regnamespace AND proname = ANY (works) LOOP
        -- With the path fixed, nobody can put a function or table of theirs in the way.
        EXECUTE format('ALTER FUNCTION %s SECURITY DEFINER SET search_path = %I, pg_temp', name, own);
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', name);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO llm_writer', name);
    END LOOP;
    -- Its own notes: which numbers arrived, how often somebody was refused, which workers there are.
    FOR name IN
        SELECT oid::regclass FROM pg_class WHERE relnamespace = own::regnamespace AND relkind = 'r' AND NOT relispartition
            AND relname LIKE 'llm\_%' AND NOT relname LIKE '%\_rewrite' AND NOT relname = ANY (record)
    LOOP
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %s TO llm_writer', name);
    END LOOP;
    -- To know what is there already, and for the gauges. Partitions are written through their parent.
    GRANT INSERT, SELECT (request_id, started_at, consumer_username, client_ip, contents) ON llm_logs TO llm_writer;
    GRANT INSERT, SELECT (id, raw_sha256) ON llm_rejected TO llm_writer;
    GRANT INSERT ON llm_content TO llm_writer;
    GRANT SELECT ON llm_content_state, llm_content_days, llm_sequence_gaps, llm_upkeep, llm_feeds, refinery_schema_history, llm_partitions, llm_partition_days TO llm_writer;
END $$;
