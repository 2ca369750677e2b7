//! The feeds that a database knows: which there are, where they go, how far they are.

use chrono::{DateTime, Utc};
use tokio_postgres::Client;

use super::Feed;
use crate::store::inspect::bounded;
use crate::store::pool::{PooledConnection, StoreError};
use crate::store::session::Session;

/// A feed as the database knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its name.
    pub name: String,
    /// What it fills.
    pub kind: String,
    /// Identity of what it fills.
    pub target: String,
    /// Hours of a slice.
    pub slice_hours: i32,
    /// Whether what people wrote is copied, too.
    pub has_content: bool,
    /// When it was last at work.
    pub looked_at: Option<DateTime<Utc>>,
    /// Up to where everything is copied.
    pub covered_until: Option<DateTime<Utc>>,
    /// Seconds from there to now; from its beginning where nothing is copied yet.
    pub lag_seconds: i64,
    /// Why its last round failed.
    pub failure: Option<String>,
    /// Files that it has written and that stand.
    pub files: i64,
    /// Rows in them.
    pub rows: i64,
    /// Bytes of them.
    pub bytes: i64,
}

const QUERY: &str = "SELECT name, kind, target, slice_hours, has_content, looked_at, covered_until,
        greatest(extract(epoch FROM now() - coalesce(covered_until, begun_at)), 0)::bigint, failure, files, rows, bytes
    FROM llm_feeds ORDER BY name";

fn known(row: &tokio_postgres::Row) -> Result<Known, StoreError> {
    Ok(Known {
        name: row.try_get(0)?,
        kind: row.try_get(1)?,
        target: row.try_get(2)?,
        slice_hours: row.try_get(3)?,
        has_content: row.try_get(4)?,
        looked_at: row.try_get(5)?,
        covered_until: row.try_get(6)?,
        lag_seconds: row.try_get(7)?,
        failure: row.try_get(8)?,
        files: row.try_get(9)?,
        rows: row.try_get(10)?,
        bytes: row.try_get(11)?,
    })
}

/// All feeds.
pub async fn all(connection: &PooledConnection<'_>) -> Result<Vec<Known>, StoreError> {
    connection.bounded(connection.client().query(QUERY, &[])).await?.iter().map(known).collect()
}

/// The same on a connection of one's own.
pub async fn look(client: &Client) -> Result<Vec<Known>, StoreError> {
    bounded(client.query(QUERY, &[])).await?.iter().map(known).collect()
}

/// One of them.
pub async fn find(session: &Session, name: &str) -> Result<Option<Known>, StoreError> {
    Ok(look(session.client()).await?.into_iter().find(|known| known.name == name))
}

/// Makes a feed known.
pub async fn begin(session: &Session, feed: &Feed) -> Result<(), StoreError> {
    let statement = "INSERT INTO llm_feeds (name, kind, target, slice_hours, has_content) VALUES ($1, $2, $3, $4, $5)";
    let Feed { name, kind, target, slice_hours, has_content } = feed;
    session.client().execute(statement, &[name, kind, target, slice_hours, has_content]).await?;
    Ok(())
}

/// Forgets a feed and what it has copied, which stays where it is; `false` where there is none of that name.
pub async fn forget(session: &Session, name: &str) -> Result<bool, StoreError> {
    Ok(session.client().execute("DELETE FROM llm_feeds WHERE name = $1", &[&name]).await? > 0)
}
