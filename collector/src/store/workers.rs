//! How far the workers of Kong have counted, as their node tells. With it the numbers that a killed worker took along are known:
//! `llm_find_tail_gaps`, in `sql/V9__workers.sql`, which [`super::gaps::find`] asks as well.

use tokio_postgres::Client;

use super::pool::{PooledConnection, StoreError};

/// A worker of Kong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Worker {
    /// Its name, new at each of its starts.
    pub worker: String,
    /// The highest number that it gave away.
    pub given: i64,
    /// Up to here nothing waits in it any more.
    pub done: i64,
    /// Whether it is gone, and what it held with it.
    pub ended: bool,
}

/// Notes what a node tells of its workers: of all that run. Those of which it told before, and does no more, have ended; unless it
/// tells of none at all. Of several of one name the last in order stands.
pub async fn note(connection: &PooledConnection<'_>, node: &str, workers: &[Worker]) -> Result<(), StoreError> {
    let mut sorted: Vec<&Worker> = workers.iter().collect();
    sorted.sort_unstable();
    // A name that comes twice would make the statement fail.
    sorted.reverse();
    sorted.dedup_by(|later, earlier| later.worker == earlier.worker);
    let names: Vec<&str> = sorted.iter().map(|worker| worker.worker.as_str()).collect();
    let given: Vec<i64> = sorted.iter().map(|worker| worker.given).collect();
    let done: Vec<i64> = sorted.iter().map(|worker| worker.done).collect();
    let ended: Vec<bool> = sorted.iter().map(|worker| worker.ended).collect();
    let query = "SELECT llm_note_workers($1, $2, $3, $4, $5)";
    connection.bounded(connection.client().execute(query, &[&node, &names, &given, &done, &ended])).await.map(drop)
}

/// A worker that runs and holds entries, of which none has left it for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Its name, which begins with its process number.
    pub worker: String,
    /// Where it runs.
    pub node: String,
    /// Up to here nothing waits in it any more.
    pub done: i64,
    /// Entries that wait.
    pub waiting: i64,
    /// For how long none has left it.
    pub seconds: i64,
}

/// Workers of which no entry has left for `seconds`, the longest first; at most ten. One that was idle is among them for the moment
/// in which its next entry waits for others: look again.
pub async fn standing(client: &Client, seconds: i64) -> Result<Vec<Standing>, StoreError> {
    const QUERY: &str = "SELECT worker, node, done, given - done, extract(epoch FROM now() - done_at)::bigint FROM llm_workers
        WHERE NOT ended AND given > done AND done_at < now() - make_interval(secs => $1::bigint)
            AND seen_at > now() - interval '3 minutes'
        ORDER BY done_at LIMIT 10";
    let rows = client.query(QUERY, &[&seconds]).await?;
    let standing = rows.iter().map(|row| Standing {
        worker: row.get(0),
        node: row.get(1),
        done: row.get(2),
        waiting: row.get(3),
        seconds: row.get(4),
    });
    Ok(standing.collect())
}
