//! The statements that write rows.

use tokio_postgres::types::{ToSql, Type};

use super::Item;
use super::pool::{PooledConnection, StoreError};

/// One array parameter for each column, so that a batch of any size is one statement and one round trip. As fast as COPY into a
/// temporary table, and unlike COPY it can skip duplicates.
const INSERT: &str = "\
INSERT INTO llm_logs (request_id, consumer_username, started_at, latency_ms, status, prompt, response, raw_log, model,
    endpoint, service, route, client_ip, stream, aborted, truncated, reasoning, tool_calls, finish_reason, error,
    prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens, ttft_ms, upstream_latency_ms, gateway_latency_ms)
SELECT request_id, consumer_username, started_at, latency_ms, status, prompt, response, raw_log::jsonb, model,
    endpoint, service, route, client_ip::inet, stream, aborted, truncated, reasoning, tool_calls::jsonb, finish_reason, error,
    prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens, ttft_ms, upstream_latency_ms, gateway_latency_ms
FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::int[], $5::int[], $6::text[], $7::text[], $8::text[], $9::text[],
    $10::text[], $11::text[], $12::text[], $13::text[], $14::bool[], $15::bool[], $16::bool[], $17::text[], $18::text[],
    $19::text[], $20::text[], $21::int[], $22::int[], $23::int[], $24::int[], $25::int[], $26::int[], $27::int[])
    AS new (request_id, consumer_username, started_at, latency_ms, status, prompt, response, raw_log, model,
    endpoint, service, route, client_ip, stream, aborted, truncated, reasoning, tool_calls, finish_reason, error,
    prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens, ttft_ms, upstream_latency_ms, gateway_latency_ms)
ON CONFLICT (request_id, started_at) DO NOTHING
RETURNING request_id, (extract(epoch FROM started_at) * 1000)::bigint";

/// Writes the rows of `items` in one statement. Returns for each whether it was new: of equal ones only the first.
pub async fn insert(connection: &PooledConnection<'_>, items: &[&Item]) -> Result<Vec<bool>, StoreError> {
    macro_rules! column {
        ($item:ident => $value:expr) => {
            items
                .iter()
                .map(|item| {
                    let $item = &item.call;
                    $value
                })
                .collect::<Vec<_>>()
        };
    }
    let request_id = column!(call => call.request_id.as_str());
    let consumer_username = column!(call => call.consumer_username.as_str());
    let started_at = column!(call => call.started_at);
    let latency_ms = column!(call => call.latency_ms);
    let status = column!(call => call.status);
    let prompt = column!(call => call.prompt.as_deref());
    let response = column!(call => call.response.as_deref());
    let raw_log = column!(call => call.raw_log.as_str());
    let model = column!(call => call.model.as_deref());
    let endpoint = column!(call => call.endpoint.as_deref());
    let service = column!(call => call.service.as_deref());
    let route = column!(call => call.route.as_deref());
    let client_ip = column!(call => call.client_ip.map(|ip| ip.to_string()));
    let stream = column!(call => call.stream);
    let aborted = column!(call => call.aborted);
    let truncated = column!(call => call.truncated);
    let reasoning = column!(call => call.reasoning.as_deref());
    let tool_calls = column!(call => call.tool_calls_json());
    let finish_reason = column!(call => call.finish_reason.as_deref());
    let error = column!(call => call.error.as_deref());
    let prompt_tokens = column!(call => call.usage.prompt_tokens);
    let completion_tokens = column!(call => call.usage.completion_tokens);
    let cached_tokens = column!(call => call.usage.cached_tokens);
    let reasoning_tokens = column!(call => call.usage.reasoning_tokens);
    let ttft_ms = column!(call => call.ttft_ms);
    let upstream_latency_ms = column!(call => call.upstream_latency_ms);
    let gateway_latency_ms = column!(call => call.gateway_latency_ms);

    let (text, integer, flag) = (Type::TEXT_ARRAY, Type::INT4_ARRAY, Type::BOOL_ARRAY);
    let parameters: [(&(dyn ToSql + Sync), Type); 27] = [
        (&request_id, text.clone()),
        (&consumer_username, text.clone()),
        (&started_at, Type::TIMESTAMPTZ_ARRAY),
        (&latency_ms, integer.clone()),
        (&status, integer.clone()),
        (&prompt, text.clone()),
        (&response, text.clone()),
        (&raw_log, text.clone()),
        (&model, text.clone()),
        (&endpoint, text.clone()),
        (&service, text.clone()),
        (&route, text.clone()),
        (&client_ip, text.clone()),
        (&stream, flag.clone()),
        (&aborted, flag.clone()),
        (&truncated, flag),
        (&reasoning, text.clone()),
        (&tool_calls, text.clone()),
        (&finish_reason, text.clone()),
        (&error, text),
        (&prompt_tokens, integer.clone()),
        (&completion_tokens, integer.clone()),
        (&cached_tokens, integer.clone()),
        (&reasoning_tokens, integer.clone()),
        (&ttft_ms, integer.clone()),
        (&upstream_latency_ms, integer.clone()),
        (&gateway_latency_ms, integer),
    ];
    // Typed, not prepared: parse, bind and execute travel together, and nothing has to be remembered for each connection.
    let rows = connection.bounded(connection.client().query_typed(INSERT, &parameters)).await?;

    let mut new_keys = std::collections::HashSet::with_capacity(rows.len());
    for row in &rows {
        new_keys.insert((row.try_get::<_, &str>(0)?, row.try_get::<_, i64>(1)?));
    }
    Ok(items
        .iter()
        .map(|item| new_keys.remove(&(item.call.request_id.as_str(), item.call.started_at.timestamp_millis())))
        .collect())
}
