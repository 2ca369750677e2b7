//! From the spool to PostgreSQL, when it is back.
//!
//! One task, in order, oldest file first, while new entries go on being accepted: directly when PostgreSQL is up, to the end of
//! the spool when it is not. A file is removed after its entries are committed; a crash in between stores it again, and the
//! unique key of the table makes that a no-op. A file that fails while PostgreSQL answers otherwise is put off, so that it does
//! not hold up the others.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use log::{error, info, warn};
use tokio_postgres::Config;

use crate::decode::json::Json;
use crate::panics;
use crate::pipeline::{Pipeline, sequence};
use crate::store::arrivals::Arrivals;
use crate::store::pool::StoreError;
use crate::store::rejected::Rejected;
use crate::store::spool::{Spool, SpoolFile};
use crate::store::{Batch, Health, Sequence, migrate};

/// How often PostgreSQL is tried while it is away.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// How often the spool is looked at without being told: a safety net, everything that spools says so.
const IDLE_INTERVAL: Duration = Duration::from_secs(5);

/// Failures after which a file is put off while PostgreSQL answers otherwise.
const MAX_FAILURES: u32 = 3;

/// What the drain task needs.
pub struct Drain {
    /// Decodes what comes from disk, and stores it.
    pub pipeline: Pipeline,
    /// Where entries wait.
    pub spool: Arc<Spool>,
    /// Whether PostgreSQL takes statements.
    pub health: Arc<Health>,
    /// Set when the schema could not be brought up to date at the start: then it is the first thing to do.
    pub migrate_first: Option<Config>,
    /// Longest wait for a new connection.
    pub patience: Duration,
}

impl Drain {
    /// Drains until the task is aborted.
    pub async fn run(mut self) {
        // The next file to try, and how often files before it failed.
        let mut from = 0;
        let mut failures: HashMap<u64, u32> = HashMap::new();
        let mut drained = 0;
        self.survey().await;
        loop {
            if !self.health.is_up() {
                if let Err(error) = self.revive().await {
                    log::debug!("PostgreSQL is still away: {error}");
                    tokio::time::sleep(RETRY_INTERVAL).await;
                    continue;
                }
                from = 0;
            }
            let Some(file) = self.spool.first_from(from) else {
                if drained > 0 {
                    info!(entries = drained; "stored {drained} entries of the spool");
                    drained = 0;
                }
                // Files that were put off are tried again with the next round.
                from = 0;
                let _ = tokio::time::timeout(IDLE_INTERVAL, self.health.changed()).await;
                continue;
            };
            match self.drain(&file).await {
                Ok(()) => {
                    failures.remove(&file.number);
                    drained += file.entries;
                }
                Err(error) => {
                    let count = failures.entry(file.number).or_default();
                    *count += 1;
                    if *count >= MAX_FAILURES && self.pipeline.store.check().await.is_ok() {
                        error!(entries = file.entries; "spool file {} cannot be stored and is put off: {error}", file.number);
                        from = file.number + 1;
                    } else {
                        if self.pipeline.store.is_everybodys(&error).await {
                            self.health.set_down(&error);
                        }
                        tokio::time::sleep(RETRY_INTERVAL).await;
                    }
                }
            }
        }
    }

    /// Finds out whether PostgreSQL is back, and brings its schema up to date if that is due.
    async fn revive(&mut self) -> Result<(), StoreError> {
        if let Some(config) = &self.migrate_first {
            migrate::migrate(config, self.patience).await?;
            self.migrate_first = None;
        }
        self.pipeline.store.check().await?;
        // Before anybody looks for lost entries again.
        self.pipeline.store.note_arrivals().await?;
        self.health.set_up();
        Ok(())
    }

    /// Remembers the numbers of what an earlier process left in the spool. Several seconds for each gigabyte: long before holes in the
    /// numbers are looked for after a start, and draining all of it may take hours.
    async fn survey(&self) {
        let mut from = 0;
        while let Some(file) = self.spool.first_from(from) {
            from = file.number + 1;
            let Ok(Some(content)) = self.read(&file).await else { continue };
            let numbers = tokio::task::spawn_blocking(move || {
                let mut arrivals = Arrivals::default();
                let (entries, rejected) = split(&content);
                let of_entries = entries.iter().filter_map(|raw| sequence(&Json::parse(&String::from_utf8_lossy(raw)).ok()?));
                of_entries
                    .chain(rejected.into_iter().filter_map(|entry| entry.sequence))
                    .for_each(|number| arrivals.add(&number));
                arrivals
            });
            if let Ok(numbers) = numbers.await {
                self.pipeline.store.remember_arrivals(&numbers);
            }
        }
        if self.health.is_up()
            && let Err(error) = self.pipeline.store.note_arrivals().await
        {
            self.health.set_down(&error);
        }
    }

    /// The content of a file; `None` when it is damaged.
    async fn read(&self, file: &SpoolFile) -> Result<Option<Bytes>, StoreError> {
        let (spool, wanted) = (Arc::clone(&self.spool), file.clone());
        match tokio::task::spawn_blocking(move || spool.read(&wanted)).await {
            Ok(Ok(content)) => Ok(content.map(Bytes::from)),
            Ok(Err(error)) => Err(StoreError::Unavailable(error.to_string())),
            Err(error) => Err(StoreError::Unavailable(panics::reason(&error).to_owned())),
        }
    }

    async fn drain(&self, file: &SpoolFile) -> Result<(), StoreError> {
        let Some(content) = self.read(file).await? else { return Ok(()) };
        let (entries, rejected) = split(&content);
        let mut batch = self.pipeline.read(entries).await;
        batch.rejected.extend(rejected);
        self.store(&batch, file).await
    }

    async fn store(&self, batch: &Batch, file: &SpoolFile) -> Result<(), StoreError> {
        self.pipeline.store.store_spooled(batch, file.state).await?;
        let (spool, done) = (Arc::clone(&self.spool), file.clone());
        match tokio::task::spawn_blocking(move || spool.remove(&done)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!("entries are stored, but their spool file stays and will be stored again: {error}"),
            Err(error) => {
                warn!("entries are stored, but their spool file stays and will be stored again: {}", panics::reason(&error));
            }
        }
        Ok(())
    }
}

/// The lines of a spool file: entries, and entries that were rejected before.
fn split(content: &Bytes) -> (Vec<Bytes>, Vec<Rejected>) {
    let mut entries = Vec::new();
    let mut rejected = Vec::new();
    for line in content.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        match std::str::from_utf8(line).ok().and_then(as_rejected) {
            Some(entry) => rejected.push(entry),
            None => entries.push(content.slice_ref(line)),
        }
    }
    (entries, rejected)
}

fn as_rejected(line: &str) -> Option<Rejected> {
    if !line.starts_with("{\"llm_rejected\":") {
        return None;
    }
    let line = Json::parse(line).ok()?;
    let member = |name| line.at(&["llm_rejected", name]);
    let text = |name| Some(member(name)?.as_str()?.to_owned());
    let sequence = || Some(Sequence { worker: text("worker")?, number: member("seq")?.as_i64()? });
    Some(Rejected { raw: text("raw")?.into(), reason: text("reason")?, sequence: sequence() })
}
