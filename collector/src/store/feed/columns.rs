//! The columns of the feed: one list for the statement that reads rows, the schema of files and the table in `docs/feed.md`.
//!
//! Columns are only added, at the end, and each addition is a new [`SCHEMA_VERSION`].

/// Version of this list.
pub const SCHEMA_VERSION: u32 = 1;

/// The entry that a row was made of, whole.
const RAW_LOG_AS_TEXT: &str = "CASE WHEN l.contents IS NULL THEN l.raw_log ELSE llm_raw_log(l) END::text";

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text that comes again and again: names.
    Name,
    /// Text that hardly ever comes again.
    Text,
    /// 32 bits.
    Integer,
    /// 64 bits.
    Bigint,
    /// True or false.
    Boolean,
    /// Microseconds since 1970 (UTC), read as such.
    Timestamp,
    /// What the call cost, in `currency`: computed of the tokens that the model server reported.
    Cost,
    /// The same of tokens that were estimated.
    EstimatedCost,
    /// The currency of both.
    Currency,
}

/// A column.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// Its name.
    pub name: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// Whether it may be null.
    pub is_nullable: bool,
    /// Whether people wrote it: null in a feed without content.
    pub is_content: bool,
    /// How it is read of a row `l`; as `name` where it is empty.
    sql: &'static str,
}

const fn column(name: &'static str, kind: Kind) -> Column {
    Column { name, kind, is_nullable: true, is_content: false, sql: "" }
}

const fn never_null(name: &'static str, kind: Kind) -> Column {
    Column { is_nullable: false, ..column(name, kind) }
}

const fn read_as(sql: &'static str, column: Column) -> Column {
    Column { sql, ..column }
}

const fn content(sql: &'static str, name: &'static str) -> Column {
    Column { is_content: true, ..read_as(sql, column(name, Kind::Text)) }
}

/// The columns, in their order.
pub const COLUMNS: [Column; 45] = [
    read_as("(extract(epoch FROM l.started_at) * 1000000)::bigint", never_null("started_at", Kind::Timestamp)),
    never_null("request_id", Kind::Text),
    never_null("id", Kind::Bigint),
    read_as("(extract(epoch FROM l.created_at) * 1000000)::bigint", never_null("created_at", Kind::Timestamp)),
    never_null("consumer_username", Kind::Name),
    column("team", Kind::Name),
    column("model", Kind::Name),
    column("endpoint", Kind::Name),
    column("service", Kind::Name),
    column("route", Kind::Name),
    column("backend", Kind::Name),
    read_as("host(l.client_ip)", column("client_ip", Kind::Name)),
    column("trace_id", Kind::Text),
    column("conversation", Kind::Text),
    column("status", Kind::Integer),
    column("finish_reason", Kind::Name),
    column("refused_by", Kind::Name),
    never_null("stream", Kind::Boolean),
    never_null("aborted", Kind::Boolean),
    never_null("truncated", Kind::Boolean),
    never_null("unread", Kind::Boolean),
    column("prompt_tokens", Kind::Integer),
    column("cached_tokens", Kind::Integer),
    column("completion_tokens", Kind::Integer),
    column("reasoning_tokens", Kind::Integer),
    column("estimated_prompt_tokens", Kind::Integer),
    column("estimated_completion_tokens", Kind::Integer),
    never_null("cost", Kind::Cost),
    never_null("estimated_cost", Kind::EstimatedCost),
    column("currency", Kind::Currency),
    column("latency_ms", Kind::Integer),
    column("ttft_ms", Kind::Integer),
    column("upstream_latency_ms", Kind::Integer),
    column("gateway_latency_ms", Kind::Integer),
    column("queue_ms", Kind::Integer),
    column("engine_queue_ms", Kind::Integer),
    column("prefill_ms", Kind::Integer),
    column("decode_ms", Kind::Integer),
    read_as("(llm_error_without_content(l.error))", column("error_kind", Kind::Name)),
    content("", "error"),
    content("", "prompt"),
    content("", "response"),
    content("", "reasoning"),
    content("l.tool_calls::text", "tool_calls"),
    content(RAW_LOG_AS_TEXT, "raw_log"),
];

/// Expressions of a row `l` in the order of [`COLUMNS`] without those that are computed; content is null where it is not wanted.
pub(super) fn expressions(has_content: bool) -> Vec<String> {
    let read = |column: &&Column| !matches!(column.kind, Kind::Cost | Kind::EstimatedCost | Kind::Currency);
    let expression = |column: &Column| match (column.is_content && !has_content, column.sql) {
        (true, _) => "NULL::text".to_owned(),
        (false, "") => format!("l.{}", column.name),
        (false, sql) => sql.to_owned(),
    };
    COLUMNS.iter().filter(read).map(expression).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_these_columns() {
        let page = include_str!("../../../../docs/feed.md");
        let (_, table) = page.split_once("## Columns").unwrap();
        assert!(table.contains(&format!("Version {SCHEMA_VERSION}.")));
        let rows = table.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
        let documented: Vec<_> = rows
            .map(|(name, rest)| {
                let cells: Vec<&str> = rest.split('|').map(str::trim).collect();
                (name, cells[1], cells[2] == "yes", cells[3] == "content")
            })
            .collect();
        let word = |kind| match kind {
            Kind::Name | Kind::Text | Kind::Currency => "string",
            Kind::Integer => "int32",
            Kind::Bigint => "int64",
            Kind::Boolean => "boolean",
            Kind::Timestamp => "timestamp (µs, UTC)",
            Kind::Cost | Kind::EstimatedCost => "decimal(38, 18)",
        };
        let listed: Vec<_> =
            COLUMNS.iter().map(|column| (column.name, word(column.kind), column.is_nullable, column.is_content)).collect();
        assert_eq!(documented, listed);
    }
}
