//! The statements that write rows.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use chrono::NaiveDate;
use tokio_postgres::types::{ToSql, Type};

use super::arrivals::Arrivals;
use super::content::{self, KnownContent};
use super::conversations;
use super::partitions::KnownDays;
use super::pool::{PooledConnection, StoreError};
use super::{Item, Sequence};
use crate::call::Call;

/// Longest identity of a Kong worker that is kept, in bytes; the plugin's are about 40. It is part of an index.
pub(super) const MAX_WORKER_BYTES: usize = 128;

/// Ranges of numbers that are noted in one statement at most.
const MAX_RANGES: usize = 1_000;

/// Bytes in one statement, but for a single larger row: both ends hold all of it in memory several times.
pub(super) const MAX_BYTES: usize = 16 << 20;

/// A range of numbers that arrived from a worker of Kong.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Range<'a> {
    worker: &'a str,
    first: i64,
    last: i64,
}

/// The numbers of entries as ranges: usually one for each worker in a batch.
fn ranges<'a>(sequences: impl Iterator<Item = &'a Sequence>) -> Vec<Range<'a>> {
    let mut numbers: Vec<(&str, i64)> = sequences
        .filter(|sequence| sequence.worker.len() <= MAX_WORKER_BYTES)
        .map(|sequence| (sequence.worker.as_str(), sequence.number))
        .collect();
    numbers.sort_unstable();
    let mut ranges: Vec<Range<'_>> = Vec::new();
    for (worker, number) in numbers {
        match ranges.last_mut() {
            Some(range) if range.worker == worker && number.saturating_sub(range.last) <= 1 => range.last = number,
            _ => ranges.push(Range { worker, first: number, last: number }),
        }
    }
    ranges
}

/// The order in which rows are written, as positions in `items`. It is the same for every collector, so that two statements with the
/// same rows wait for each other in one direction only. Equal keys stay in the order in which they came.
fn key_order(items: &[&Item]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|position| items.get(*position).map(|item| (item.call.started_at, item.call.request_id.as_str())));
    order
}

/// Notes which numbers arrived, for entries that no row stands for: they are safe elsewhere, so nothing of them will be counted as usage.
pub async fn note_sequences(connection: &PooledConnection<'_>, sequences: &[&Sequence]) -> Result<(), StoreError> {
    const NOTE: &str =
        "WITH numbers AS (SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS numbers (worker, first_seq, last_seq)),
        counted AS (INSERT INTO llm_counted_ranges (worker, first_seq, last_seq) SELECT * FROM numbers)
        INSERT INTO llm_sequences (worker, first_seq, last_seq) SELECT * FROM numbers ON CONFLICT DO NOTHING RETURNING 1";
    note(connection, NOTE, &ranges(sequences.iter().copied())).await
}

/// Notes which numbers arrived and wait in the spool: Kong did not lose them.
pub async fn note_arrivals(connection: &PooledConnection<'_>, arrivals: &Arrivals) -> Result<(), StoreError> {
    const NOTE: &str = "INSERT INTO llm_sequences (worker, first_seq, last_seq)
        SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[]) ON CONFLICT DO NOTHING RETURNING 1";
    let ranges: Vec<Range<'_>> = arrivals.ranges().map(|(worker, first, last)| Range { worker, first, last }).collect();
    for part in ranges.chunks(MAX_RANGES) {
        note(connection, NOTE, part).await?;
    }
    Ok(())
}

async fn note(connection: &PooledConnection<'_>, statement: &str, ranges: &[Range<'_>]) -> Result<(), StoreError> {
    let (workers, firsts, lasts) = columns(ranges);
    let parameters: [(&(dyn ToSql + Sync), Type); 3] =
        [(&workers, Type::TEXT_ARRAY), (&firsts, Type::INT8_ARRAY), (&lasts, Type::INT8_ARRAY)];
    connection.bounded(connection.client().query_typed(statement, &parameters)).await.map(drop)
}

fn columns<'a>(ranges: &[Range<'a>]) -> (Vec<&'a str>, Vec<i64>, Vec<i64>) {
    let workers = ranges.iter().map(|range| range.worker).collect();
    (workers, ranges.iter().map(|range| range.first).collect(), ranges.iter().map(|range| range.last).collect())
}

/// One array parameter for each column, so that a batch of any size is one statement and one round trip. As fast as COPY into a
/// temporary table, and unlike COPY it can skip duplicates. The numbers that arrived travel along, and with the rows' usage they are counted:
/// whoever sees the one sees the other. So do the parts of bodies
/// that new rows refer to; what the statement relies on besides must still be there.
const INSERT: &str = "\
WITH numbers AS (SELECT * FROM unnest($41::text[], $42::bigint[], $43::bigint[]) AS numbers (worker, first_seq, last_seq)),
arrived AS (INSERT INTO llm_sequences (worker, first_seq, last_seq) SELECT * FROM numbers ON CONFLICT DO NOTHING),
counted AS (INSERT INTO llm_counted_ranges (worker, first_seq, last_seq) SELECT * FROM numbers),
new_rows AS (INSERT INTO llm_logs (request_id, consumer_username, started_at, latency_ms, status, prompt, response, raw_log, model,
    endpoint, service, route, client_ip, stream, aborted, truncated, reasoning, tool_calls, finish_reason, error,
    prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens, ttft_ms, upstream_latency_ms, gateway_latency_ms,
    team, backend, queue_ms, estimated_prompt_tokens, estimated_completion_tokens,
    unread, engine_queue_ms, prefill_ms, decode_ms, refused_by, trace_id, contents, conversation)
SELECT request_id, consumer_username, started_at, latency_ms, status, prompt, response, raw_log::jsonb, model,
    endpoint, service, route, client_ip::inet, stream, aborted, truncated, reasoning, tool_calls::jsonb, finish_reason, error,
    prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens, ttft_ms, upstream_latency_ms, gateway_latency_ms,
    team, backend, queue_ms, estimated_prompt_tokens, estimated_completion_tokens,
    unread, engine_queue_ms, prefill_ms, decode_ms, refused_by, trace_id, contents, conversation
FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::int[], $5::int[], $6::text[], $7::text[], $8::text[], $9::text[],
    $10::text[], $11::text[], $12::text[], $13::text[], $14::bool[], $15::bool[], $16::bool[], $17::text[], $18::text[],
    $19::text[], $20::text[], $21::int[], $22::int[], $23::int[], $24::int[], $25::int[], $26::int[], $27::int[],
    $28::text[], $29::text[], $30::int[], $31::int[], $32::int[], $33::bool[], $34::int[], $35::int[], $36::int[], $37::text[],
    $38::text[], $39::bytea[], $40::text[])
    AS new (request_id, consumer_username, started_at, latency_ms, status, prompt, response, raw_log, model,
    endpoint, service, route, client_ip, stream, aborted, truncated, reasoning, tool_calls, finish_reason, error,
    prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens, ttft_ms, upstream_latency_ms, gateway_latency_ms,
    team, backend, queue_ms, estimated_prompt_tokens, estimated_completion_tokens,
    unread, engine_queue_ms, prefill_ms, decode_ms, refused_by, trace_id, contents, conversation)
WHERE $44::text IS NULL OR llm_expect_content($44::text)
ON CONFLICT (request_id, started_at) DO NOTHING
RETURNING request_id, started_at, contents),
content AS (INSERT INTO llm_content (day, sha256, body)
    SELECT * FROM unnest($45::date[], $46::bytea[], $47::text[]) AS parts (day, sha256, body)
    WHERE (day, substring(sha256 FOR 16)) IN (SELECT (started_at AT TIME ZONE 'UTC')::date, llm_content_hashes(contents) FROM new_rows)
    ON CONFLICT DO NOTHING),
ends AS (INSERT INTO llm_turns (turn, conversation) SELECT * FROM unnest($48::bytea[], $49::text[])
    ON CONFLICT (turn) DO UPDATE SET conversation = excluded.conversation, seen_at = excluded.seen_at),
awaited AS (INSERT INTO llm_awaited_turns (turn, conversation) SELECT * FROM unnest($50::bytea[], $51::text[]) ON CONFLICT DO NOTHING)
SELECT request_id, (extract(epoch FROM started_at) * 1000)::bigint FROM new_rows";

/// Parts of `items` that weigh no more than a statement may, each with where it begins; the last one first.
pub(super) fn by_weight<'p, 'i>(items: &'p [&'i Item]) -> Vec<(usize, &'p [&'i Item])> {
    let mut parts = Vec::new();
    let (mut start, mut weight) = (0, 0);
    for (at, item) in items.iter().enumerate() {
        let more = item.call.weight();
        if at > start && weight + more > MAX_BYTES {
            parts.push((start, items.get(start..at).unwrap_or_default()));
            (start, weight) = (at, 0);
        }
        weight += more;
    }
    parts.push((start, items.get(start..).unwrap_or_default()));
    parts.reverse();
    parts
}

/// Writes the rows of `items` in one statement. Returns for each whether it was new: of equal ones only the first. Parts of bodies are
/// stored apart on days that have a place for them, and are not sent where they are `known` to be there.
pub(super) async fn insert(
    connection: &PooledConnection<'_>,
    items: &[&Item],
    known: &KnownContent,
    days: &KnownDays,
) -> Result<Vec<bool>, StoreError> {
    let with_content = match items.iter().any(|item| !item.call.parts.is_empty()) {
        true => days.with_content(connection).await?,
        false => Arc::default(),
    };
    let is_split = |call: &Call| !call.parts.is_empty() && with_content.contains(&call.started_at.date_naive());
    let splits = || items.iter().copied().filter(|item| is_split(&item.call));
    let version = match splits().next() {
        Some(_) => Some(content_version(connection, known).await?),
        None => None,
    };
    let ordered: Vec<&Item> = key_order(items).into_iter().filter_map(|position| items.get(position).copied()).collect();
    macro_rules! column {
        ($item:ident => $value:expr) => {
            ordered
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
    let raw_log = column!(call => if is_split(call) { Cow::Owned(content::with_references(call)) } else { Cow::Borrowed(call.raw_log.as_str()) });
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
    let team = column!(call => call.team.as_deref());
    let backend = column!(call => call.backend.as_deref());
    let queue_ms = column!(call => call.queue_ms);
    let estimated_prompt_tokens = column!(call => call.estimated.0);
    let estimated_completion_tokens = column!(call => call.estimated.1);
    let unread = column!(call => call.is_unread());
    let engine_queue_ms = column!(call => call.engine.queue_ms);
    let prefill_ms = column!(call => call.engine.prefill_ms);
    let decode_ms = column!(call => call.engine.decode_ms);
    let refused_by = column!(call => call.refused_by.as_deref());
    let trace_id = column!(call => call.trace_id.as_deref());

    let contents = column!(call => is_split(call).then(|| content::hashes(call)));
    let found = conversations::find(connection, &ordered).await?;
    let conversation: Vec<Option<&str>> = (0..ordered.len()).map(|place| found.of(place)).collect();
    let (ends, end_conversations): (Vec<&[u8]>, Vec<&str>) =
        found.ends.iter().map(|(turn, conversation)| (turn.as_slice(), conversation.as_str())).unzip();
    let (awaited, awaiting): (Vec<&[u8]>, Vec<&str>) =
        found.awaited.iter().map(|(turn, conversation)| (turn.as_slice(), conversation.as_str())).unzip();
    let parts = content::to_send(splits(), known);
    let (part_days, part_hashes): (Vec<NaiveDate>, Vec<&[u8]>) = parts.keys().map(|(day, hash)| (*day, hash.as_slice())).unzip();
    let part_bodies: Vec<&str> = parts.values().copied().collect();

    let ranges = ranges(items.iter().filter_map(|item| item.sequence.as_ref()));
    let (workers, firsts, lasts) = columns(&ranges);

    let (text, integer, flag) = (Type::TEXT_ARRAY, Type::INT4_ARRAY, Type::BOOL_ARRAY);
    let parameters: [(&(dyn ToSql + Sync), Type); 51] = [
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
        (&truncated, flag.clone()),
        (&reasoning, text.clone()),
        (&tool_calls, text.clone()),
        (&finish_reason, text.clone()),
        (&error, text.clone()),
        (&prompt_tokens, integer.clone()),
        (&completion_tokens, integer.clone()),
        (&cached_tokens, integer.clone()),
        (&reasoning_tokens, integer.clone()),
        (&ttft_ms, integer.clone()),
        (&upstream_latency_ms, integer.clone()),
        (&gateway_latency_ms, integer.clone()),
        (&team, text.clone()),
        (&backend, text.clone()),
        (&queue_ms, integer.clone()),
        (&estimated_prompt_tokens, integer.clone()),
        (&estimated_completion_tokens, integer.clone()),
        (&unread, flag),
        (&engine_queue_ms, integer.clone()),
        (&prefill_ms, integer.clone()),
        (&decode_ms, integer),
        (&refused_by, text.clone()),
        (&trace_id, text.clone()),
        (&contents, Type::BYTEA_ARRAY),
        (&conversation, text.clone()),
        (&workers, text.clone()),
        (&firsts, Type::INT8_ARRAY),
        (&lasts, Type::INT8_ARRAY),
        (&version, Type::TEXT),
        (&part_days, Type::DATE_ARRAY),
        (&part_hashes, Type::BYTEA_ARRAY),
        (&part_bodies, text.clone()),
        (&ends, Type::BYTEA_ARRAY),
        (&end_conversations, text.clone()),
        (&awaited, Type::BYTEA_ARRAY),
        (&awaiting, text),
    ];
    let rows = connection.bounded(connection.query_again(INSERT, &parameters)).await?;

    let mut new_keys = HashSet::with_capacity(rows.len());
    for row in &rows {
        new_keys.insert((row.try_get::<_, &str>(0)?, row.try_get::<_, i64>(1)?));
    }
    let are_new: Vec<bool> = items
        .iter()
        .map(|item| new_keys.remove(&(item.call.request_id.as_str(), item.call.started_at.timestamp_millis())))
        .collect();
    if let Some(version) = version {
        let written = items.iter().zip(&are_new).filter(|(item, is_new)| **is_new && is_split(&item.call));
        known.remember(&version, written.flat_map(|(item, _)| content::keys(&item.call)));
    }
    Ok(are_new)
}

/// The version of the database for which what is known holds.
async fn content_version(connection: &PooledConnection<'_>, known: &KnownContent) -> Result<String, StoreError> {
    if let Some(version) = known.version() {
        return Ok(version);
    }
    let row = connection.bounded(connection.client().query_one("SELECT llm_content_version()", &[])).await?;
    let version: String = row.try_get(0)?;
    known.begin(&version);
    Ok(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_number_has_none_after_it() {
        let sequences = [i64::MAX, i64::MAX, 1].map(|number| Sequence { worker: "w".to_owned(), number });
        assert_eq!(ranges(sequences.iter()).len(), 2);
    }

    #[test]
    fn numbers_become_ranges_whatever_their_order() {
        let sequences = [("b", 7), ("a", 3), ("a", 1), ("a", 2), ("a", 2), ("a", 5)]
            .map(|(worker, number)| Sequence { worker: worker.to_owned(), number });
        let seen: Vec<_> = ranges(sequences.iter()).into_iter().map(|range| (range.worker, range.first, range.last)).collect();
        assert_eq!(seen, [("a", 1, 3), ("a", 5, 5), ("b", 7, 7)]);
    }
}
