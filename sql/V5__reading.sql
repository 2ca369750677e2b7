-- What the dashboards read besides the views that reports use.

-- llm_usage_costs without the cost: looking up a price for each row takes half the time of a sum over a month.
CREATE VIEW llm_usage_counts AS
SELECT hour, consumer_username, model, calls, errors, prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens FROM llm_usage
UNION ALL
SELECT hour, consumer_username, model, calls, errors, prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens FROM llm_usage_deltas;

COMMENT ON VIEW llm_usage_counts IS 'Calls and tokens by hour, consumer and model; some rows more than once, to be added up.';
