//! Entries to PostgreSQL, exactly once in effect.
//!
//! Requests do not write by themselves: they hand their entries to a few writers and wait for the answer. A writer takes what
//! is there, from one request or from many, and stores it in one statement: a lone entry goes at once, and under load
//! statements grow instead of queues. A row that PostgreSQL refuses is found by halving the batch and goes to `llm_rejected`; its
//! neighbours are stored.
//!
//! Invariant: an answer says what is committed. Deliberately absent: any decision by us what a duplicate is; the unique key of the
//! table decides, for repeats of a batch, for several collectors and for what we no longer know.

pub mod insert;
pub mod migrate;
pub mod partitions;
pub mod pool;
pub mod rejected;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use chrono::{NaiveDate, Utc};
use log::{debug, error, warn};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::call::Call;
use crate::extract::redact::Secrets;
use crate::measure::Metrics;
use pool::{Database, PooledConnection, StoreError};
use rejected::Rejected;

/// Statements under way at once. Two keep PostgreSQL busy while the next batch is built; more only split batches on a small host.
pub const WRITERS: u32 = 2;

/// Rows in one statement at most. Beyond a few hundred nothing is gained, and a refused row takes longer to find.
const MAX_ROWS: usize = 1_000;

/// Bytes in one statement at most: both ends hold all of it in memory.
const MAX_BYTES: usize = 16 << 20;

/// Jobs that wait for a writer. The bytes in flight are bounded elsewhere; this only bounds the queue itself.
const MAX_JOBS: usize = 4_096;

/// An entry that is ready to become a row.
#[derive(Debug)]
pub struct Item {
    /// The row.
    pub call: Call,
    /// The entry it came from, credentials removed only when it is put on record.
    pub raw: Bytes,
}

/// What is to be made safe together.
#[derive(Debug, Default)]
pub struct Batch {
    /// Entries for `llm_logs`.
    pub items: Vec<Item>,
    /// Entries for `llm_rejected`.
    pub rejected: Vec<Rejected>,
}

/// What became of the entries of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcome {
    /// New rows.
    pub stored: usize,
    /// Rows already.
    pub duplicates: usize,
    /// In the spool.
    pub spooled: usize,
    /// On record as rejected.
    pub rejected: usize,
}

impl std::ops::AddAssign for Outcome {
    fn add_assign(&mut self, other: Self) {
        self.stored += other.stored;
        self.duplicates += other.duplicates;
        self.spooled += other.spooled;
        self.rejected += other.rejected;
    }
}

#[derive(Debug)]
struct Job {
    batch: Batch,
    reply: oneshot::Sender<Result<Outcome, StoreError>>,
}

/// Handle to the writers.
#[derive(Debug, Clone)]
pub struct Store {
    jobs: mpsc::Sender<Job>,
    database: Database,
}

/// The writers; they end when every [`Store`] is dropped and all jobs are done.
#[derive(Debug)]
pub struct Writers(JoinSet<()>);

impl Writers {
    /// Waits until everything that was handed over is done.
    pub async fn finish(mut self) {
        while self.0.join_next().await.is_some() {}
    }
}

impl Store {
    /// Starts the writers on the current runtime. `secrets` are removed from an entry that is put on record.
    pub fn start(database: Database, metrics: Arc<Metrics>, secrets: Arc<Secrets>) -> (Store, Writers) {
        let (jobs, queue) = mpsc::channel(MAX_JOBS);
        let queue = Arc::new(tokio::sync::Mutex::new(queue));
        let writer = Arc::new(Writer { database: database.clone(), metrics, secrets, known_days: Mutex::default() });
        let mut writers = JoinSet::new();
        for _ in 0..WRITERS {
            writers.spawn(run(Arc::clone(&writer), Arc::clone(&queue)));
        }
        (Store { jobs, database }, Writers(writers))
    }

    /// Makes a batch safe. On an error nothing is promised, and repeating the batch is right.
    pub async fn store(&self, batch: Batch) -> Result<Outcome, StoreError> {
        let (reply, answer) = oneshot::channel();
        let gone = || StoreError::NoAnswer(self.database.settings().timeout);
        self.jobs.send(Job { batch, reply }).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Whether the database answers.
    pub async fn check(&self) -> Result<(), StoreError> {
        let connection = self.database.connection().await?;
        connection.bounded(connection.client().simple_query("SELECT 1 FROM llm_logs LIMIT 0")).await.map(drop)
    }

    /// The database behind the store.
    pub fn database(&self) -> &Database {
        &self.database
    }
}

type Queue = Arc<tokio::sync::Mutex<mpsc::Receiver<Job>>>;

async fn run(writer: Arc<Writer>, queue: Queue) {
    loop {
        let mut jobs = Vec::new();
        {
            let mut queue = queue.lock().await;
            let Some(first) = queue.recv().await else { return };
            let (mut rows, mut bytes) = first.batch.size();
            jobs.push(first);
            while rows < MAX_ROWS && bytes < MAX_BYTES {
                let Ok(job) = queue.try_recv() else { break };
                let (more_rows, more_bytes) = job.batch.size();
                rows += more_rows;
                bytes += more_bytes;
                jobs.push(job);
            }
        }
        writer.write(jobs).await;
    }
}

impl Batch {
    /// Rows and bytes.
    pub fn size(&self) -> (usize, usize) {
        let bytes: usize = self.items.iter().map(|item| item.call.weight()).sum();
        let rejected_bytes: usize = self.rejected.iter().map(|entry| entry.raw.len()).sum();
        (self.items.len() + self.rejected.len(), bytes + rejected_bytes)
    }
}

#[derive(Debug)]
struct Writer {
    database: Database,
    metrics: Arc<Metrics>,
    secrets: Arc<Secrets>,
    /// Days whose partitions are known to exist.
    known_days: Mutex<HashSet<NaiveDate>>,
}

/// What became of one item.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    New,
    Duplicate,
    Refused(String),
}

impl Writer {
    async fn write(&self, jobs: Vec<Job>) {
        let items: Vec<&Item> = jobs.iter().flat_map(|job| &job.batch.items).collect();
        let started = Instant::now();
        let result = self.write_items(&items, &jobs).await;
        self.metrics.observe_store(started.elapsed());
        self.metrics.set_database_up(!result.as_ref().is_err_and(StoreError::is_transient));
        match result {
            Ok(fates) => {
                let mut fates = fates.into_iter();
                for job in jobs {
                    let outcome = outcome_of(&job.batch, &mut fates);
                    // A client that went away still has its entries stored.
                    let _ = job.reply.send(Ok(outcome));
                }
            }
            Err(error) => {
                error!(entries = items.len(); "could not store {} entries: {error}", items.len());
                let message = error.to_string();
                for job in jobs {
                    let _ = job.reply.send(Err(StoreError::Unavailable(message.clone())));
                }
            }
        }
    }

    async fn write_items(&self, items: &[&Item], jobs: &[Job]) -> Result<Vec<Fate>, StoreError> {
        let connection = self.database.connection().await?;
        self.make_partitions(&connection, items).await?;
        let fates = self.insert(&connection, items).await?;
        let mut rejected: Vec<Rejected> = jobs.iter().flat_map(|job| &job.batch.rejected).cloned().collect();
        for (item, fate) in items.iter().zip(&fates) {
            if let Fate::Refused(reason) = fate {
                warn!(request_id = item.call.request_id.as_str(); "PostgreSQL refused the row of {}: {reason}", item.call.request_id);
                let raw = self.secrets.scrub_raw(&String::from_utf8_lossy(&item.raw));
                rejected.push(Rejected { raw: raw.into(), reason: reason.clone() });
            }
        }
        if !rejected.is_empty() {
            rejected::insert(&connection, &rejected).await?;
        }
        self.metrics.entries.rejected.inc_by(rejected.len() as u64);
        Ok(fates)
    }

    /// Stores what can be stored. A batch with a row that PostgreSQL refuses is halved until the row stands alone.
    async fn insert(&self, connection: &PooledConnection<'_>, items: &[&Item]) -> Result<Vec<Fate>, StoreError> {
        let mut fates = vec![Fate::Duplicate; items.len()];
        let mut parts = vec![(0, items)];
        while let Some((start, part)) = parts.pop() {
            if part.is_empty() {
                continue;
            }
            match insert::insert(connection, part).await {
                Ok(new) => {
                    for ((fate, item), is_new) in fates.iter_mut().skip(start).zip(part).zip(new) {
                        if is_new {
                            *fate = Fate::New;
                            self.metrics.observe_call(&item.call);
                            self.metrics.entries.stored.inc();
                        } else {
                            self.metrics.entries.duplicate.inc();
                        }
                    }
                }
                Err(error) if error.is_transient() => return Err(error),
                Err(error) if part.len() == 1 => {
                    if let Some(fate) = fates.get_mut(start) {
                        *fate = Fate::Refused(error.to_string());
                    }
                }
                Err(error) => {
                    debug!("halving a batch of {}: {error}", part.len());
                    let (front, back) = part.split_at(part.len() / 2);
                    parts.push((start + front.len(), back));
                    parts.push((start, front));
                }
            }
        }
        Ok(fates)
    }

    /// Makes the partitions that the rows need and that are not known to be there.
    async fn make_partitions(&self, connection: &PooledConnection<'_>, items: &[&Item]) -> Result<(), StoreError> {
        let today = Utc::now().date_naive();
        let missing: HashSet<NaiveDate> = {
            let known = self.known_days.lock().unwrap_or_else(PoisonError::into_inner);
            let days = items.iter().filter_map(|item| partitions::day_of(item.call.started_at, today));
            days.filter(|day| !known.contains(day)).collect()
        };
        for day in missing {
            match connection.bounded(partitions::create(connection.client(), day)).await {
                Ok(_) => {}
                Err(error) if error.is_transient() => return Err(error),
                // The rows go to the default partition.
                Err(error) => warn!("could not make the partition of {day}: {error}"),
            }
            self.known_days.lock().unwrap_or_else(PoisonError::into_inner).insert(day);
        }
        Ok(())
    }
}

fn outcome_of(batch: &Batch, fates: &mut impl Iterator<Item = Fate>) -> Outcome {
    let mut outcome = Outcome { rejected: batch.rejected.len(), ..Outcome::default() };
    for fate in fates.take(batch.items.len()) {
        match fate {
            Fate::New => outcome.stored += 1,
            Fate::Duplicate => outcome.duplicates += 1,
            Fate::Refused(_) => outcome.rejected += 1,
        }
    }
    outcome
}
