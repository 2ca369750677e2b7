-- How far limits are used now, for dashboards: a role that reads them has no other rights to the tables below.
CREATE FUNCTION llm_quota_overview()
RETURNS TABLE (subject text, models text, unit text, per text, mode text, amount numeric, used numeric, remaining numeric,
    used_ratio double precision, resets text)
LANGUAGE sql STABLE AS $$
    SELECT CASE s.subject_kind WHEN 'everybody' THEN 'everybody' WHEN 'each_user' THEN 'each user: ' || s.subject
                ELSE s.subject_kind || ' ' || s.subject END,
        s.models, CASE s.unit WHEN 'cost' THEN s.currency ELSE s.unit END, s.per, s.mode, s.amount, s.used,
        greatest(0, s.amount - s.used), CASE WHEN s.amount = 0 THEN 1 ELSE s.used / s.amount END::float8,
        to_char(s.ends_at AT TIME ZONE site.zone, 'YYYY-MM-DD HH24:MI ') || site.zone
    FROM llm_quota_state(now()) s CROSS JOIN (SELECT llm_site_zone() AS zone) site
    ORDER BY 9 DESC, 1, 4, 2 LIMIT 1000
$$;
REVOKE EXECUTE ON FUNCTION llm_quota_overview() FROM PUBLIC;
-- With the path fixed, nobody can put a function or table of theirs in the way.
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION llm_quota_overview() SECURITY DEFINER SET search_path = %I, pg_temp', current_schema());
END $$;
