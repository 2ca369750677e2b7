//! What calls of a slice cost, as `report` computes it: by the price of the model at the beginning of the hour on the site's clock.

use tokio_postgres::Row;

use super::Slice;
use crate::store::pool::StoreError;
use crate::store::session::Session;

/// Prompt tokens of a row `l` that did not come from the cache, as `llm_count_usage` counts them: the messages API alone leaves cached ones
/// out of `prompt_tokens`.
pub(super) const UNCACHED_TOKENS: &str = "CASE WHEN l.endpoint ~ '/v1/messages/?$' THEN l.prompt_tokens
    ELSE greatest(0, l.prompt_tokens - coalesce(l.cached_tokens, 0)) END";

/// What a million tokens of a model cost for some time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PricePeriod {
    /// The model, as usage knows it.
    pub model: String,
    /// From when on, in microseconds since 1970; `None` is ever since.
    pub since: Option<i64>,
    /// Until when; `None` is for ever.
    pub until: Option<i64>,
    /// Prices of prompt tokens, of those from the cache, and of completion tokens; decimal text.
    pub per_million: [String; 3],
    /// Their currency.
    pub currency: String,
}

/// Currency, cost, and estimated cost of a slice, each in decimal text.
pub(super) async fn costs(session: &Session, slice: &Slice) -> Result<Vec<(String, String, String)>, StoreError> {
    // Added up by hour first: there are few hours and models, and prices are looked up for each.
    let query = format!(
        "SELECT p.currency, trim_scale(sum(llm_cost(u.uncached, u.cached, u.completion,
                p.prompt_per_million, p.cached_per_million, p.completion_per_million)))::text,
            trim_scale(sum(llm_cost(u.estimated_prompt, 0, u.estimated_completion,
                p.prompt_per_million, 0, p.completion_per_million)))::text
        FROM (
            SELECT date_trunc('hour', l.started_at, (SELECT llm_site_zone())) AS hour, left(coalesce(l.model, 'unknown'), 200) AS model,
                coalesce(sum({UNCACHED_TOKENS}), 0)::bigint AS uncached, coalesce(sum(l.cached_tokens), 0)::bigint AS cached,
                coalesce(sum(l.completion_tokens), 0)::bigint AS completion,
                coalesce(sum(l.estimated_prompt_tokens) FILTER (WHERE l.prompt_tokens IS NULL), 0)::bigint AS estimated_prompt,
                coalesce(sum(l.estimated_completion_tokens) FILTER (WHERE l.completion_tokens IS NULL), 0)::bigint
                    AS estimated_completion
            FROM llm_logs l WHERE l.started_at >= $1 AND l.started_at < $2 GROUP BY 1, 2
        ) u
        JOIN llm_price_periods p ON p.model = u.model AND u.hour >= p.starts_at AND u.hour < p.ends_at
        GROUP BY p.currency ORDER BY p.currency"
    );
    let rows = session.client().query(&query, &[&slice.since, &slice.until]).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))).collect()
}

/// All prices, by model and time.
pub(super) async fn periods(session: &Session) -> Result<Vec<PricePeriod>, StoreError> {
    const QUERY: &str = "SELECT model, CASE WHEN isfinite(starts_at) THEN (extract(epoch FROM starts_at) * 1000000)::bigint END,
            CASE WHEN isfinite(ends_at) THEN (extract(epoch FROM ends_at) * 1000000)::bigint END,
            prompt_per_million::text, cached_per_million::text, completion_per_million::text, currency
        FROM llm_price_periods ORDER BY model, starts_at";
    session.client().query(QUERY, &[]).await?.iter().map(period).collect()
}

fn period(row: &Row) -> Result<PricePeriod, StoreError> {
    Ok(PricePeriod {
        model: row.try_get(0)?,
        since: row.try_get(1)?,
        until: row.try_get(2)?,
        per_million: [row.try_get(3)?, row.try_get(4)?, row.try_get(5)?],
        currency: row.try_get(6)?,
    })
}
