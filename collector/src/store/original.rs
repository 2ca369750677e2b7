//! The table of an installation made by hand, as it is read row by row.
//!
//! It looks like `llm_logs (id serial primary key, request_id, consumer_username, prompt, response, latency_ms, status, raw_log,
//! created_at)`; columns may be missing and of other types, as long as a row has an identity and something to take over. Its rows are
//! only ever read. How far that got is noted in `llm_import`, after the rows are safe: a row may be read twice, and none is passed over.

mod shape;

use tokio_postgres::{Client, Row};

use super::pool::StoreError;
use super::site;
pub use shape::{Clock, Shape};

/// What the table is called once its rows are taken over, or about to be.
pub const ORIGINAL: &str = "llm_logs_original";

/// What it was called before: by whoever made it, and after a renaming that `migrate` used to advise.
const BEFORE: [&str; 2] = ["llm_logs", "llm_logs_old"];

/// Rows whose sizes are asked for together.
const PAGE_ROWS: i64 = 200;

/// Bytes of rows that are read together; a longer row alone.
const PAGE_BYTES: i64 = 8 << 20;

/// Longest `raw_log` that is read, as the longest entry that `serve` takes as it is shipped. Of a row with a longer one the columns count.
const MAX_RAW_BYTES: i64 = 64 << 20;

/// Characters of a prompt or an answer that are read. Beyond what the pipeline keeps, so that it finds out that something is missing.
const MAX_TEXT_CHARS: i32 = (8 << 20) + 1;

/// A table that was found.
#[derive(Debug)]
pub struct Original {
    /// What it is called now.
    pub name: &'static str,
    /// What it looks like.
    pub shape: Shape,
    /// Rows.
    pub rows: i64,
    zone: String,
}

/// A row of it.
#[derive(Debug, Default)]
pub struct OldRow {
    /// Its number.
    pub id: i64,
    /// Kong's identity of the request.
    pub request_id: Option<String>,
    /// Who asked.
    pub consumer_username: Option<String>,
    /// When the row was written, in milliseconds since 1970.
    pub created_ms: Option<i64>,
    /// Milliseconds, in whatever way they were written.
    pub latency_ms: Option<String>,
    /// The status that the client got.
    pub status: Option<String>,
    /// What was asked.
    pub prompt: Option<String>,
    /// What was answered.
    pub response: Option<String>,
    /// The log entry, where it is not longer than can be read.
    pub raw_log: Option<String>,
    /// A row before it says the same of the same request.
    pub is_copy: bool,
    /// A row before it says something else of the same request.
    pub is_other: bool,
}

/// What became of rows so far, as it is kept in `llm_import`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// The last row that is safe.
    pub last_id: Option<i64>,
    /// New rows.
    pub stored: i64,
    /// Rows already, or copies of another row of the table.
    pub duplicates: i64,
    /// On record as rejected.
    pub rejected: i64,
    /// Counted as refused calls, of which there were too many to be rows.
    pub counted: i64,
    /// Of all of these, those that came from their columns because `raw_log` is no log entry of Kong's.
    pub from_columns: i64,
    /// When the oldest call started, in milliseconds since 1970.
    pub oldest_ms: Option<i64>,
}

/// Looks for the table, under any of its names. `None` where there is none.
pub async fn find(client: &Client, zone: &str) -> Result<Option<Original>, StoreError> {
    site::check_zone(client, zone).await?;
    let mut found = Vec::new();
    for name in [ORIGINAL].into_iter().chain(BEFORE) {
        if shape::is_by_hand(client, name).await? {
            found.push(name);
        }
    }
    let name = match found.as_slice() {
        [] => return Ok(None),
        [name] => *name,
        names => {
            let message = format!(
                "there are several tables whose rows could be imported: {}. Keep one of them, and give the others names of your own \
                 with ALTER TABLE … RENAME TO …",
                names.join(", ")
            );
            return Err(StoreError::Foreign(message));
        }
    };
    let shape = Shape::of(client, name).await?.map_err(StoreError::Foreign)?;
    let rows = client.query_one(&format!("SELECT count(*) FROM {name}"), &[]).await?.try_get(0)?;
    Ok(Some(Original { name, shape, rows, zone: zone.to_owned() }))
}

impl Original {
    /// Finds out which rows say something of a request of which another row does. Before the first page is read.
    ///
    /// Kong repeats a batch whose answer it did not see, and such a table has nothing that keeps the repeat out.
    pub async fn note_repeats(&self, client: &Client) -> Result<(), StoreError> {
        let shape = &self.shape;
        let digest = |column: &str| format!("md5({})", shape.text(column));
        let contents = ["consumer_username", "prompt", "response", "latency_ms", "status"].map(digest).join(", ");
        let (table, request_id) = (self.name, shape.text("request_id"));
        client
            .batch_execute(&format!(
                "DROP TABLE IF EXISTS pg_temp.llm_import_repeats;
                CREATE TEMPORARY TABLE llm_import_repeats AS
                WITH repeated AS (
                    SELECT {request_id} AS request FROM {table} WHERE {request_id} <> '' GROUP BY 1 HAVING count(*) > 1
                ), same AS (
                    SELECT id::bigint AS id, {request_id} AS request, ROW({contents})::text AS content
                    FROM {table} WHERE {request_id} IN (SELECT request FROM repeated)
                ), firsts AS (
                    SELECT id, request, min(id) OVER (PARTITION BY request, content) AS first_id FROM same
                )
                SELECT id, id > first_id AS is_copy, first_id > min(id) OVER (PARTITION BY request) AS is_other FROM firsts;
                CREATE UNIQUE INDEX ON llm_import_repeats (id);
                ANALYZE llm_import_repeats;"
            ))
            .await?;
        Ok(())
    }

    /// The ends of the next pages after row `last`: of each the number of its last row. None when there are no more rows.
    pub async fn pages(&self, client: &Client, last: Option<i64>) -> Result<Vec<i64>, StoreError> {
        let length = |column: &str| format!("coalesce(octet_length({}), 0)::bigint", self.shape.text(column));
        let query = format!(
            "SELECT id::bigint, {} + {} + {} FROM {} WHERE id >= $1::bigint ORDER BY id LIMIT $2",
            length("raw_log"),
            length("prompt"),
            length("response"),
            self.name
        );
        let Some(from) = after(last) else { return Ok(Vec::new()) };
        let (mut ends, mut bytes) = (Vec::new(), i64::MAX);
        for row in client.query(&query, &[&from, &PAGE_ROWS]).await? {
            let (id, more): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
            bytes = bytes.saturating_add(more);
            match ends.last_mut() {
                Some(end) if bytes <= PAGE_BYTES => *end = id,
                _ => {
                    ends.push(id);
                    bytes = more;
                }
            }
        }
        Ok(ends)
    }

    /// The rows after `last` up to `end`.
    pub async fn page(&self, client: &Client, last: Option<i64>, end: i64) -> Result<Vec<OldRow>, StoreError> {
        let shape = &self.shape;
        let created = match shape.clock {
            Some(Clock::WithZone) => "created_at".to_owned(),
            Some(Clock::WithoutZone) => "created_at AT TIME ZONE $3::text".to_owned(),
            None => "NULL::timestamptz".to_owned(),
        };
        let raw = shape.text("raw_log");
        let query = format!(
            "SELECT old.id::bigint, {}, {},
                CASE WHEN isfinite({created}) THEN (extract(epoch FROM {created}) * 1000)::bigint END,
                {}, {}, left({}, {MAX_TEXT_CHARS}), left({}, {MAX_TEXT_CHARS}),
                CASE WHEN octet_length({raw}) <= {MAX_RAW_BYTES} THEN {raw} END,
                coalesce(repeats.is_copy, false), coalesce(repeats.is_other, false)
            FROM {} old LEFT JOIN pg_temp.llm_import_repeats repeats USING (id)
            WHERE old.id >= $1::bigint AND old.id <= $2::bigint AND $3::text IS NOT NULL ORDER BY old.id",
            shape.text("request_id"),
            shape.text("consumer_username"),
            shape.text("latency_ms"),
            shape.text("status"),
            shape.text("prompt"),
            shape.text("response"),
            self.name
        );
        let Some(from) = after(last) else { return Ok(Vec::new()) };
        client.query(&query, &[&from, &end, &self.zone]).await?.iter().map(old_row).collect()
    }

    /// How far an earlier attempt got; makes the note where there is none, or where it is about another table.
    pub async fn tally(&self, client: &Client) -> Result<Tally, StoreError> {
        client.batch_execute(NOTE).await?;
        let restart = "INSERT INTO llm_import AS note (table_oid) VALUES (to_regclass($1)::oid::bigint)
            ON CONFLICT (is_only) DO UPDATE SET table_oid = excluded.table_oid, last_id = NULL, stored = 0, duplicates = 0,
                rejected = 0, counted = 0, from_columns = 0, oldest_ms = NULL
            WHERE note.table_oid <> excluded.table_oid";
        client.execute(restart, &[&self.name]).await?;
        let query = "SELECT last_id, stored, duplicates, rejected, counted, from_columns, oldest_ms FROM llm_import";
        let row = client.query_one(query, &[]).await?;
        Ok(Tally {
            last_id: row.try_get(0)?,
            stored: row.try_get(1)?,
            duplicates: row.try_get(2)?,
            rejected: row.try_get(3)?,
            counted: row.try_get(4)?,
            from_columns: row.try_get(5)?,
            oldest_ms: row.try_get(6)?,
        })
    }
}

/// Notes what is safe.
pub async fn note(client: &Client, tally: &Tally) -> Result<(), StoreError> {
    let update = "UPDATE llm_import SET last_id = $1, stored = $2, duplicates = $3, rejected = $4, counted = $5,
        from_columns = $6, oldest_ms = $7";
    let Tally { last_id, stored, duplicates, rejected, counted, from_columns, oldest_ms } = tally;
    client.execute(update, &[last_id, stored, duplicates, rejected, counted, from_columns, oldest_ms]).await?;
    Ok(())
}

/// Not a migration: only whoever comes from such a table has it, and it goes with that table.
const NOTE: &str = "CREATE TABLE IF NOT EXISTS llm_import (
        is_only      boolean PRIMARY KEY DEFAULT true CHECK (is_only),
        table_oid    bigint NOT NULL,
        last_id      bigint,
        stored       bigint NOT NULL DEFAULT 0,
        duplicates   bigint NOT NULL DEFAULT 0,
        rejected     bigint NOT NULL DEFAULT 0,
        counted      bigint NOT NULL DEFAULT 0,
        from_columns bigint NOT NULL DEFAULT 0,
        oldest_ms    bigint
    );
    COMMENT ON TABLE llm_import IS 'How far llm-collector import got with llm_logs_original; goes with that table.'";

/// The least number after `last`.
fn after(last: Option<i64>) -> Option<i64> {
    last.map_or(Some(i64::MIN), |last| last.checked_add(1))
}

fn old_row(row: &Row) -> Result<OldRow, StoreError> {
    Ok(OldRow {
        id: row.try_get(0)?,
        request_id: row.try_get(1)?,
        consumer_username: row.try_get(2)?,
        created_ms: row.try_get(3)?,
        latency_ms: row.try_get(4)?,
        status: row.try_get(5)?,
        prompt: row.try_get(6)?,
        response: row.try_get(7)?,
        raw_log: row.try_get(8)?,
        is_copy: row.try_get(9)?,
        is_other: row.try_get(10)?,
    })
}
