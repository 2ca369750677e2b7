//! Counting the usage of rows that are older than the counting.
//!
//! `sql/V3__usage.sql` counts them in its own transaction and keeps everybody from inserting meanwhile: seconds for some hundred
//! thousand rows, an hour for a hundred million. A migration that was published cannot be changed, so where there are rows, what it
//! makes is made here, without the counting; that is left to [`count_piece`], in pieces, while new rows come in.
//!
//! Invariant: each row is counted once. The trigger comes into being under a lock that lets no insert be under way, together with a
//! note of the last identity given away by then: rows up to it are the backlog, all others are the trigger's. A piece and the note how
//! far it got are one transaction. Retention and erasing of rows wait until all is counted.

use refinery::Migration;
use tokio_postgres::Client;

use crate::store::pool::{PooledConnection, StoreError};

/// The migration that counts.
pub(super) const VERSION: i32 = 3;

/// Where in it the counting begins; what comes before only makes tables, functions and the trigger.
const COUNTING: &str = "-- The rows that are there already";

/// Rows in a piece: some 70 ms.
const PIECE: i32 = 2_000;

/// The note how far counting got.
const NOTE: &str = "
    CREATE TABLE llm_usage_backlog (last_id bigint NOT NULL, next_at timestamptz NOT NULL);
    COMMENT ON TABLE llm_usage_backlog IS 'Rows up to last_id that began at next_at or later are not counted into usage yet.';
    DO $$
    DECLARE
        last_id bigint;
    BEGIN
        EXECUTE 'SELECT last_value FROM ' || pg_get_serial_sequence('llm_logs', 'id') INTO last_id;
        INSERT INTO llm_usage_backlog VALUES (last_id, '-infinity');
    END $$;";

/// Whether the database has rows and no counting yet.
pub(super) async fn is_needed(client: &Client) -> Result<bool, StoreError> {
    if !client.query_one("SELECT to_regclass('refinery_schema_history') IS NOT NULL", &[]).await?.try_get::<_, bool>(0)? {
        return Ok(false);
    }
    let version = client.query_one("SELECT coalesce(max(version), 0)::int FROM refinery_schema_history", &[]).await?;
    if !(1..VERSION).contains(&version.try_get(0)?) {
        return Ok(false);
    }
    Ok(client.query_opt("SELECT FROM llm_logs LIMIT 1", &[]).await?.is_some())
}

/// Applies the migration without its counting; returns its name.
pub(super) async fn park(client: &mut Client, migrations: &[Migration]) -> Result<String, StoreError> {
    let found = migrations.iter().find(|migration| migration.version() == VERSION);
    let whole = found.and_then(|migration| Some((migration, migration.sql()?.split_once(COUNTING)?.0)));
    let Some((migration, tables)) = whole else {
        return Err(StoreError::Migration(format!("V{VERSION} is not what it was when it was published"), None));
    };
    let transaction = client.transaction().await?;
    transaction.batch_execute(tables).await?;
    transaction.batch_execute(NOTE).await?;
    super::note_applied(&transaction, migration).await?;
    transaction.commit().await?;
    Ok(format!("V{VERSION}__{} (rows that are there are counted in the background)", migration.name()))
}

/// What became of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// It is counted, and there may be more.
    Counted,
    /// Another collector is at it.
    Busy,
    /// All is counted.
    NothingLeft,
}

/// Counts a piece of what is left.
pub async fn count_piece(connection: &PooledConnection<'_>) -> Result<Piece, StoreError> {
    let query = "SELECT llm_count_usage_backlog($1), llm_has_usage_backlog()";
    let row = connection.bounded(connection.client().query_one(query, &[&PIECE])).await?;
    Ok(match (row.try_get(0)?, row.try_get(1)?) {
        (true, _) => Piece::Counted,
        (false, true) => Piece::Busy,
        (false, false) => Piece::NothingLeft,
    })
}

/// Whether rows are left that are not counted yet: until then none may go.
pub async fn is_pending(client: &Client) -> Result<bool, StoreError> {
    Ok(client.query_one("SELECT llm_has_usage_backlog()", &[]).await?.try_get(0)?)
}
