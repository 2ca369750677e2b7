//! Bringing the database up to date at the start, and afterwards where that takes long.
//!
//! What is wrong with the settings (no such database, a wrong password, tables that are not ours) ends the program with a message.
//! What only takes time does not keep it from serving: a migration of a large database, a reader that holds a table, or a server that
//! is away although it was there before. Entries go to the spool meanwhile.

use std::path::PathBuf;
use std::time::Duration;

use log::error;
use tokio::task::JoinHandle;

use crate::store::connect::Target;
use crate::store::migrate::Migrator;
use crate::store::pool::StoreError;
use crate::store::spool;

/// A file in the data folder that names the database that was reached before. Any other database that cannot be reached is taken for a
/// wrong setting, which somebody has to hear about; that one, for an outage that the spool is there for. Written as soon as it was
/// reached: entries go to the spool while it is migrated, and are not to wait for somebody when it is away at the next start.
const KNOWN_DATABASE: &str = "known-database";

/// How long the address waits for a migration. Most take less, and then no entry meets the spool; who watches the address does not
/// notice.
const PATIENCE: Duration = Duration::from_secs(2);

/// The database at the start.
#[derive(Debug)]
pub struct Start {
    target: Target,
    patience: Duration,
    data_dir: PathBuf,
    /// The site's clock, where it is set here.
    zone: Option<String>,
    /// A migration that is under way.
    running: Option<JoinHandle<Result<Vec<String>, StoreError>>>,
    is_over: bool,
    /// What was told last.
    told: String,
}

impl Start {
    /// Connects, within `patience`, and migrates, or begins to. An error is one that somebody has to mend.
    pub async fn begin(target: Target, patience: Duration, data_dir: PathBuf, zone: Option<String>) -> anyhow::Result<Self> {
        let mut start = Self { target, patience, data_dir, zone, running: None, is_over: false, told: String::new() };
        if let Err(error) = start.try_to_finish(Some(PATIENCE)).await {
            let advice = start.target.advice(&error);
            let is_known = std::fs::read_to_string(start.note()).is_ok_and(|known| known == start.target.name());
            let passes = is_known && error.is_outage() || error.is_lock() || matches!(error, StoreError::Unavailable(_));
            if !passes {
                return Err(anyhow::Error::from(error).context(advice));
            }
            start.tell(&error);
        }
        Ok(start)
    }

    /// Whether the schema is what this program needs.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Does what is left to do.
    pub async fn finish(&mut self) -> Result<(), StoreError> {
        let finished = self.try_to_finish(None).await;
        if let Err(error) = &finished {
            self.tell(error);
        }
        finished
    }

    async fn try_to_finish(&mut self, limit: Option<Duration>) -> Result<(), StoreError> {
        if self.is_over {
            return Ok(());
        }
        if self.running.is_none() {
            let migrator = Migrator::connect(&self.target, self.patience, self.zone.as_deref()).await?;
            self.note_known();
            self.running = Some(tokio::spawn(migrator.run()));
        }
        let Some(running) = &mut self.running else { return Ok(()) };
        let ended = match limit {
            Some(limit) => match tokio::time::timeout(limit, running).await {
                Ok(ended) => ended,
                // It goes on.
                Err(_) => return Ok(()),
            },
            None => running.await,
        };
        self.running = None;
        ended.unwrap_or_else(|error| Err(StoreError::Migration(error.to_string(), None)))?;
        self.is_over = true;
        Ok(())
    }

    /// Says what keeps entries in the spool, once for each reason.
    fn tell(&mut self, reason: &StoreError) {
        let text = format!("{}: {reason}. Entries go to the spool until then", self.target.advice(reason));
        if text != self.told {
            error!("{text}");
            self.told = text;
        }
    }

    fn note_known(&self) {
        if let Err(error) = spool::write_note(&self.data_dir, KNOWN_DATABASE, &self.target.name()) {
            error!(
                "cannot note that the database is known, so that the next start may take an outage for a wrong setting: {error}"
            );
        }
    }

    fn note(&self) -> PathBuf {
        self.data_dir.join(KNOWN_DATABASE)
    }
}
