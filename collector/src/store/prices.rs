//! The prices of models, `llm_model_prices`.

use chrono::{DateTime, Utc};

use super::pool::{PooledConnection, StoreError};

/// What a million tokens cost from some time on. Amounts are decimal text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelPrice {
    /// Name of a model, `%` standing for any text.
    pub pattern: String,
    /// From when on.
    pub valid_from: DateTime<Utc>,
    /// Of the prompt.
    pub prompt: String,
    /// Of the prompt, from the cache.
    pub cached: String,
    /// Of the answer.
    pub completion: String,
    /// As CNY.
    pub currency: String,
}

/// All prices, by pattern and time.
pub async fn list(connection: &PooledConnection<'_>) -> Result<Vec<ModelPrice>, StoreError> {
    let query = "SELECT model_pattern, valid_from, trim_scale(prompt_per_million)::text, trim_scale(cached_per_million)::text,
            trim_scale(completion_per_million)::text, currency
        FROM llm_model_prices ORDER BY model_pattern COLLATE \"C\", valid_from";
    let rows = connection.bounded(connection.client().query(query, &[])).await?;
    let price = |row: &tokio_postgres::Row| {
        Ok(ModelPrice {
            pattern: row.try_get(0)?,
            valid_from: row.try_get(1)?,
            prompt: row.try_get(2)?,
            cached: row.try_get(3)?,
            completion: row.try_get(4)?,
            currency: row.try_get(5)?,
        })
    };
    rows.iter().map(price).collect()
}

/// Sets a price, in place of one of the same time. Without `from` the first of a pattern holds for all the past, a further one from
/// this hour on. Returns from when on it holds.
pub async fn set(
    connection: &PooledConnection<'_>,
    pattern: &str,
    from: Option<DateTime<Utc>>,
    [prompt, cached, completion]: [&str; 3],
    currency: &str,
) -> Result<DateTime<Utc>, StoreError> {
    let statement = "INSERT INTO llm_model_prices
            (model_pattern, valid_from, prompt_per_million, cached_per_million, completion_per_million, currency)
        SELECT $1::text,
            coalesce($2::timestamptz, CASE WHEN EXISTS (SELECT FROM llm_model_prices WHERE model_pattern = $1)
                THEN date_trunc('hour', now(), 'UTC') ELSE to_timestamp(0) END),
            $3::text::numeric, $4::text::numeric, $5::text::numeric, $6
        ON CONFLICT (model_pattern, valid_from) DO UPDATE SET prompt_per_million = excluded.prompt_per_million,
            cached_per_million = excluded.cached_per_million, completion_per_million = excluded.completion_per_million,
            currency = excluded.currency
        RETURNING valid_from";
    let client = connection.client();
    let row =
        connection.bounded(client.query_one(statement, &[&pattern, &from, &prompt, &cached, &completion, &currency])).await?;
    Ok(row.try_get(0)?)
}

/// Removes the prices of a pattern, or only the one from `from` on. Returns how many there were.
pub async fn remove(connection: &PooledConnection<'_>, pattern: &str, from: Option<DateTime<Utc>>) -> Result<u64, StoreError> {
    let statement = "DELETE FROM llm_model_prices WHERE model_pattern = $1 AND ($2::timestamptz IS NULL OR valid_from = $2)";
    connection.bounded(connection.client().execute(statement, &[&pattern, &from])).await
}
