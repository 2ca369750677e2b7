//! What a table made by hand looks like, and whether its rows can be taken over.

use std::collections::BTreeMap;

use tokio_postgres::GenericClient;

use crate::store::pool::StoreError;

/// The columns that are read, besides `id`.
const COLUMNS: [&str; 8] =
    ["request_id", "consumer_username", "prompt", "response", "latency_ms", "status", "raw_log", "created_at"];

/// How `created_at` is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// `timestamptz`
    WithZone,
    /// `timestamp`: on a clock that is not told
    WithoutZone,
}

/// Which columns there are.
#[derive(Debug, PartialEq, Eq)]
pub struct Shape {
    /// How `created_at` is written, where it is a time.
    pub clock: Option<Clock>,
    /// Columns that are not taken over.
    pub others: Vec<String>,
    known: Vec<&'static str>,
}

/// Whether an ordinary table has this name. Ours has partitions.
pub(super) async fn is_by_hand(client: &impl GenericClient, name: &str) -> Result<bool, StoreError> {
    let query = "SELECT EXISTS (SELECT FROM pg_class WHERE oid = to_regclass($1) AND relkind = 'r')";
    Ok(client.query_one(query, &[&name]).await?.try_get(0)?)
}

impl Shape {
    /// Looks at a table; the inner error says what is missing.
    pub async fn of(client: &impl GenericClient, table: &str) -> Result<Result<Self, String>, StoreError> {
        let query = "SELECT attname::text, format_type(atttypid, NULL),
                attnotnull AND EXISTS (SELECT FROM pg_index WHERE indrelid = attrelid AND indisunique AND indisvalid
                    AND indpred IS NULL AND indnkeyatts = 1 AND indkey[0] = attnum)
            FROM pg_attribute WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped ORDER BY attnum";
        let mut columns = BTreeMap::new();
        for row in client.query(query, &[&table]).await? {
            let (name, kind, is_key): (String, String, bool) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            columns.insert(name, (kind, is_key));
        }
        Ok(Self::read(table, &columns))
    }

    fn read(table: &str, columns: &BTreeMap<String, (String, bool)>) -> Result<Self, String> {
        let kind = |name: &str| columns.get(name).map(|(kind, _)| kind.as_str());
        let list = columns.iter().map(|(name, (kind, _))| format!("{name} {kind}")).collect::<Vec<_>>().join(", ");
        let refusal = |what: &str| Err(format!("the rows of {table} cannot be imported: {what}. It has: {list}"));
        match columns.get("id") {
            Some((kind, true)) if matches!(kind.as_str(), "smallint" | "integer" | "bigint") => {}
            Some(_) => {
                return refusal(
                    "its column id is no whole number that is unique and never null (a primary key), by which rows are told apart",
                );
            }
            None => {
                let mend = format!(
                    "it has no column id, by which rows are told apart (ALTER TABLE {table} ADD COLUMN id bigserial PRIMARY KEY adds one)"
                );
                return refusal(&mend);
            }
        }
        let clock = match kind("created_at") {
            Some("timestamp with time zone") => Some(Clock::WithZone),
            Some("timestamp without time zone") => Some(Clock::WithoutZone),
            _ => None,
        };
        let has_text = kind("prompt").is_some() || kind("response").is_some();
        if kind("raw_log").is_none() && !(has_text && clock.is_some()) {
            return refusal(
                "it has neither raw_log (Kong's log entry) nor prompt or response together with created_at (a timestamp)",
            );
        }
        let known: Vec<&str> = COLUMNS.into_iter().filter(|name| kind(name).is_some()).collect();
        let others = columns.keys().filter(|name| *name != "id" && !known.contains(&name.as_str())).cloned().collect();
        Ok(Self { clock, others, known })
    }

    /// A column as text, whatever its type; null where there is none.
    pub(super) fn text(&self, column: &str) -> String {
        if self.known.contains(&column) { format!("{column}::text") } else { "NULL::text".to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(columns: &[(&str, &str)]) -> Result<Shape, String> {
        let columns = columns.iter().map(|(name, kind)| ((*name).to_owned(), ((*kind).to_owned(), *name == "id"))).collect();
        Shape::read("llm_logs", &columns)
    }

    #[test]
    fn what_cannot_be_taken_over_is_said_by_its_column() {
        for (columns, words) in [
            (vec![("raw_log", "jsonb")], "has no column id"),
            (vec![("id", "uuid"), ("raw_log", "jsonb")], "no whole number"),
            (vec![("id", "integer"), ("status", "integer")], "neither raw_log"),
            (vec![("id", "integer"), ("prompt", "text"), ("created_at", "date")], "neither raw_log"),
        ] {
            let refusal = read(&columns).unwrap_err();
            assert!(refusal.contains(words) && refusal.contains(columns[0].1), "{refusal}");
        }
    }

    #[test]
    fn columns_may_be_missing_and_more() {
        let shape = read(&[("id", "integer"), ("raw_log", "text"), ("note", "text")]).unwrap();
        assert_eq!((shape.clock, shape.others.as_slice()), (None, &["note".to_owned()][..]));
        assert_eq!((shape.text("raw_log").as_str(), shape.text("prompt").as_str()), ("raw_log::text", "NULL::text"));
        let plain = read(&[("id", "bigint"), ("response", "text"), ("created_at", "timestamp without time zone")]).unwrap();
        assert_eq!(plain.clock, Some(Clock::WithoutZone));
    }
}
