//! Tables that have our names and are not ours.
//!
//! Before this program there was often a table `llm_logs` made by hand. It is recognised before anything is changed, and said how its rows
//! are taken over, or how it gets out of the way.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use refinery::Migration;
use regex::Regex;
use tokio_postgres::GenericClient;

use crate::store::original::Shape;
use crate::store::pool::StoreError;

/// What migrations make, by its name.
#[expect(clippy::expect_used, reason = "a constant, compiled by every test")]
static MADE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(?m)^CREATE (?:UNIQUE )?(?:TABLE|INDEX|VIEW|SEQUENCE) (\w+)").expect("valid pattern"));

/// What is said of a table whose rows can be taken over.
const IMPORT: &str = " Its rows can be taken over: stop whatever writes into it, then run llm-collector import (with --dry-run it only says \
    what it would do); docs/move.md tells the whole move. Or leave them behind.";

/// An error when something stands where migrations would make it, and no migration was ever applied.
pub(super) async fn refuse(client: &impl GenericClient, migrations: &[Migration]) -> Result<(), StoreError> {
    if is_ours(client).await? {
        return Ok(());
    }
    let texts = migrations.iter().filter_map(Migration::sql);
    let names: BTreeSet<&str> =
        texts.flat_map(|sql| MADE.captures_iter(sql)).filter_map(|found| found.get(1)).map(|name| name.as_str()).collect();
    let names: Vec<&str> = names.into_iter().collect();
    // A table before its indexes: they may well have the names of ours, too.
    let query = "SELECT relname::text, relkind::text,
            (SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' ORDER BY attnum)
             FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped)
        FROM unnest($1::text[]) AS name JOIN pg_class c ON c.oid = to_regclass(name) ORDER BY relkind <> 'r', relname";
    let mut message = String::new();
    for row in client.query(query, &[&names]).await? {
        let (name, kind, columns): (String, String, String) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let what = match kind.as_str() {
            "i" | "I" => "INDEX",
            "v" => "VIEW",
            "m" => "MATERIALIZED VIEW",
            "S" => "SEQUENCE",
            "f" => "FOREIGN TABLE",
            _ => "TABLE",
        };
        if message.is_empty() {
            let columns: String = columns.chars().take(200).collect();
            let takes_over = name == "llm_logs" && what == "TABLE" && Shape::of(client, &name).await?.is_ok();
            let import = if takes_over { IMPORT } else { "" };
            message = format!(
                "the database has a {} \"{name}\" that this program did not make ({columns}); nothing was changed.{import} Rename what \
                 is in the way, which keeps its rows, or use another database:",
                what.to_lowercase()
            );
        }
        message.push_str(&format!(" ALTER {what} {name} RENAME TO {name}_old;"));
    }
    // Another collector may have begun to migrate in between.
    if message.is_empty() || is_ours(client).await? { Ok(()) } else { Err(StoreError::Foreign(message)) }
}

/// Whether a migration was ever applied.
async fn is_ours(client: &impl GenericClient) -> Result<bool, StoreError> {
    let has_history = "SELECT to_regclass('refinery_schema_history') IS NOT NULL";
    Ok(client.query_one(has_history, &[]).await?.try_get(0)?
        && client.query_opt("SELECT FROM refinery_schema_history LIMIT 1", &[]).await?.is_some())
}
