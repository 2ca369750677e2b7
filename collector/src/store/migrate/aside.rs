//! A table made by hand gets out of the way, and our schema comes into being where it stood.
//!
//! Invariant: both in one transaction. Whoever looks sees the old table under its own name, or the whole schema and the old table beside.

use refinery::Migration;
use tokio_postgres::Client;

use super::{Duration, Instant, OPTIONS, PATIENCE, PAUSE, StoreError, Target, embedded, foreign, lock, note_applied};
use crate::store::original::ORIGINAL;

/// As refinery makes it.
const HISTORY: &str = "CREATE TABLE IF NOT EXISTS refinery_schema_history
    (version int4 PRIMARY KEY, name varchar(255), applied_on varchar(255), checksum varchar(255))";

/// Names the table `llm_logs_original`, and makes the schema where there is none.
pub async fn move_aside(target: &Target, patience: Duration, table: &str) -> Result<(), StoreError> {
    let mut client = target.connect(patience, OPTIONS, ()).await?;
    let deadline = Instant::now() + PATIENCE;
    lock(&client, deadline).await?;
    loop {
        match attempt(&mut client, table).await {
            Err(error) if error.is_lock() && Instant::now() < deadline => tokio::time::sleep(PAUSE).await,
            // The lock ends with the connection.
            attempted => return attempted,
        }
    }
}

async fn attempt(client: &mut Client, table: &str) -> Result<(), StoreError> {
    let transaction = client.transaction().await?;
    transaction.batch_execute(&format!("LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")).await?;
    // Its indexes and sequences may have the names of ours. What refers to any of them goes on to do so.
    let rename = format!(
        "DO $$
        DECLARE
            part record;
        BEGIN
            FOR part IN SELECT relname, relkind FROM pg_class
                WHERE relkind IN ('i', 'S') AND relname LIKE 'llm\\_%' AND relname NOT LIKE '{ORIGINAL}%' AND (
                    oid IN (SELECT indexrelid FROM pg_index WHERE indrelid = '{table}'::regclass)
                    OR oid IN (SELECT objid FROM pg_depend WHERE classid = 'pg_class'::regclass
                        AND refclassid = 'pg_class'::regclass AND refobjid = '{table}'::regclass AND deptype IN ('a', 'i')))
            LOOP
                EXECUTE format('ALTER %s %I RENAME TO %I', CASE part.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'INDEX' END,
                    part.relname, left('{ORIGINAL}_' || regexp_replace(part.relname, '^llm_(logs_)?', ''), 63));
            END LOOP;
        END $$;
        ALTER TABLE {table} RENAME TO {ORIGINAL};
        COMMENT ON TABLE {ORIGINAL} IS
            'Rows from before llm-collector, as they were: keys may stand in raw_log. llm-collector import takes them over.';"
    );
    transaction.batch_execute(&rename).await?;
    let runner = embedded::migrations::runner();
    let mut migrations: Vec<&Migration> = runner.get_migrations().iter().collect();
    migrations.sort_by_key(|migration| migration.version());
    // Whatever else is in the way is named, and nothing is changed.
    foreign::refuse(&transaction, runner.get_migrations()).await?;
    transaction.batch_execute(HISTORY).await?;
    if transaction.query_opt("SELECT FROM refinery_schema_history LIMIT 1", &[]).await?.is_none() {
        for migration in migrations {
            transaction.batch_execute(migration.sql().unwrap_or_default()).await?;
            note_applied(&transaction, migration).await?;
        }
    }
    Ok(transaction.commit().await?)
}
