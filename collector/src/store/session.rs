//! A connection of its own for work that takes longer than a statement of the running collector may: retention and erasing, and
//! making indexes of texts.
//!
//! Invariant: at most one of each kind is at work on a database, whatever collectors there are. The advisory lock belongs to the
//! connection, so it is free again when its holder crashes.

use std::time::Duration;

use log::debug;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::connect::Target;
use super::pool::StoreError;

/// Longest wait for a lock on a table. Inserts queue up behind us for as long, and they have 4 s.
const LOCK_WAIT: &str = "150ms";

/// How often a table is asked for, and the pause in between. Together they outlast dashboards, not backups: those have the next
/// round to be over.
const ATTEMPTS: u32 = 60;
const PAUSE: Duration = Duration::from_millis(500);

/// Work of which one at a time is done on a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Retention and erasing.
    Retention,
    /// Making indexes of texts.
    Search,
    /// Taking over the rows of a table made by hand.
    Import,
}

impl Work {
    /// The second half of its advisory lock.
    fn name(self) -> &'static str {
        match self {
            Work::Retention => "retention",
            Work::Search => "search",
            Work::Import => "import",
        }
    }
}

/// The connection.
#[derive(Debug)]
pub struct Session {
    client: Client,
}

impl Session {
    /// Connects. `guard` is dropped when the connection is gone.
    pub async fn open<G: Send + 'static>(target: &Target, patience: Duration, guard: G) -> Result<Self, StoreError> {
        // Rewriting a day takes as long as it takes.
        Ok(Self { client: target.connect(patience, "-c statement_timeout=0", guard).await? })
    }

    /// The client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Whether this role may rewrite, drop and index tables. One that only writes rows leaves that to `llm-collector upkeep`.
    pub async fn owns_tables(&self) -> Result<bool, StoreError> {
        let query = "SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = 'llm_logs'::regclass";
        Ok(self.client.query_one(query, &[]).await?.try_get(0)?)
    }

    /// Takes the advisory lock of some work; `false` when another one holds it.
    pub async fn try_lock(&self, work: Work) -> Result<bool, StoreError> {
        let query = "SELECT pg_try_advisory_lock(hashtext('llm_logs'), hashtext($1))";
        Ok(self.client.query_one(query, &[&work.name()]).await?.try_get(0)?)
    }

    /// Takes the advisory lock of some work within `wait`.
    pub async fn lock_within(&self, work: Work, wait: Duration) -> Result<bool, StoreError> {
        let started = std::time::Instant::now();
        loop {
            if self.try_lock(work).await? {
                return Ok(true);
            }
            if started.elapsed() >= wait {
                return Ok(false);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Carries out a statement that locks tables which others use: it waits for them shortly, and often. It returns one row
    /// with one number, or null.
    pub async fn with_short_waits(
        &self,
        statement: &str,
        parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)],
    ) -> Result<Option<i64>, StoreError> {
        let mut attempt = 1;
        loop {
            self.client.batch_execute(&format!("SET lock_timeout = '{LOCK_WAIT}'")).await?;
            let result = self.client.query_one(statement, parameters).await;
            self.client.batch_execute("SET lock_timeout = 0").await?;
            match result {
                Ok(row) => return Ok(row.try_get(0)?),
                Err(error) if attempt < ATTEMPTS && is_lock(&error) => {
                    debug!("a table is in use, trying again: {error}");
                    attempt += 1;
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Carries out statements.
    pub async fn batch(&self, statements: &str) -> Result<(), StoreError> {
        Ok(self.client.batch_execute(statements).await?)
    }
}

fn is_lock(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| [SqlState::LOCK_NOT_AVAILABLE, SqlState::T_R_DEADLOCK_DETECTED].contains(code))
}
