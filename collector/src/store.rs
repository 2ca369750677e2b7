//! Entries to PostgreSQL, exactly once in effect.
//!
//! Requests do not write by themselves: they hand their entries to a few writers and wait for the answer. A writer takes what
//! is there, from one request or from many, and stores it in one statement: a lone entry goes at once, and under load
//! statements grow instead of queues. What PostgreSQL cannot take goes to the [`spool`], and from there to PostgreSQL when it is
//! back ([`crate::drain`]). A row that PostgreSQL refuses goes to `llm_rejected`; its neighbours are stored.
//!
//! Invariant: an answer says what is committed or on disk. Deliberately absent: any decision by us what a duplicate is; the unique
//! key of the table decides, for repeats of a batch, for several collectors, and for statements whose answer never came.

pub mod addresses;
pub mod arrivals;
pub mod connect;
mod content;
pub mod conversations;
pub mod erase;
mod error;
pub mod feed;
pub mod gaps;
pub mod insert;
pub mod inspect;
pub mod migrate;
pub mod notices;
pub mod original;
pub mod own_usage;
pub mod partitions;
pub mod pool;
pub mod prices;
pub mod quota_facts;
pub mod quotas;
pub mod readers;
pub mod refused;
pub mod rejected;
pub mod responses;
pub mod retention;
pub mod search;
pub mod session;
mod site;
pub mod spool;
pub mod state;
pub mod suspect;
pub mod usage;
pub mod workers;
mod writer;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytestring::ByteString;
use log::{error, info};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;

use crate::call::Call;
use crate::extract::redact::Secrets;
use crate::measure::Metrics;
use addresses::Addresses;
use arrivals::Arrivals;
use partitions::KnownDays;
use pool::{Database, StoreError};
use rejected::Rejected;
use spool::{Spool, State};
use writer::Writer;

/// Statements under way at once. Two keep PostgreSQL busy while the next batch is built; more only split batches on a small host.
const WRITERS: u32 = 2;

/// Jobs that wait for a writer. The bytes in flight are bounded elsewhere; this only bounds the queue itself.
const MAX_JOBS: usize = 4_096;

/// How long before an answer is due PostgreSQL is not asked any more: the spool needs the rest.
const SPOOL_TIME: Duration = Duration::from_secs(2);

/// Until when PostgreSQL may be asked, when an answer is due at `answer_by`.
pub fn last_attempt(answer_by: Instant) -> Instant {
    answer_by.checked_sub(SPOOL_TIME).unwrap_or(answer_by)
}

/// How often it is looked whether the start is over: some hundredths of a second, once in the life of a process.
const START_POLL: Duration = Duration::from_millis(20);

/// An entry that is ready to become a row.
#[derive(Debug)]
pub struct Item {
    /// The row.
    pub call: Call,
    /// The entry it came from. Credentials are removed when it goes to the spool or on record.
    pub raw: ByteString,
    /// Its number among the entries of its Kong worker.
    pub sequence: Option<Sequence>,
    /// Where it is counted when too many calls were refused for it to become a row.
    pub refused: Option<refused::Entry>,
}

impl Item {
    /// Bytes that it takes in memory, roughly.
    pub fn weight(&self) -> usize {
        self.call.weight() + self.raw.len()
    }
}

/// An entry on its way to the spool, as it came.
#[derive(Debug, Clone)]
pub struct Raw {
    /// The entry; credentials are removed when it is written.
    pub text: ByteString,
    /// What identifies it: see [`crate::decode::entry::with_identity`].
    pub request_id: String,
    /// Its number among the entries of its Kong worker.
    pub sequence: Option<Sequence>,
}

/// An entry's number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// Identity of the worker of Kong, new at each of its starts.
    pub worker: String,
    /// From 1.
    pub number: i64,
}

/// What is to be made safe together.
#[derive(Debug, Default)]
pub struct Batch {
    /// Entries for `llm_logs`.
    pub items: Vec<Item>,
    /// Entries for `llm_rejected`.
    pub rejected: Vec<Rejected>,
}

impl Batch {
    /// Bytes that it takes in memory, roughly.
    pub fn weight(&self) -> usize {
        let items: usize = self.items.iter().map(Item::weight).sum();
        items + self.rejected.iter().map(|entry| entry.raw.len() + entry.reason.len()).sum::<usize>()
    }

    /// Rows, and bytes of the statement that writes them.
    fn size(&self) -> (usize, usize) {
        let bytes: usize = self.items.iter().map(|item| item.call.weight()).sum();
        let rejected_bytes: usize = self.rejected.iter().map(|entry| entry.raw.len()).sum();
        (self.items.len() + self.rejected.len(), bytes + rejected_bytes)
    }
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
    /// Counted as refused calls, of which there were too many to be rows.
    pub counted: usize,
}

impl std::ops::AddAssign for Outcome {
    fn add_assign(&mut self, other: Self) {
        self.stored += other.stored;
        self.duplicates += other.duplicates;
        self.spooled += other.spooled;
        self.rejected += other.rejected;
        self.counted += other.counted;
    }
}

/// Whether PostgreSQL takes statements, so far as is known. While it does not, nobody waits for it: entries go to the spool at
/// once, and only the drain task tries whether it is back.
#[derive(Debug)]
pub struct Health {
    up: AtomicBool,
    up_since: Mutex<Instant>,
    starts_until: Instant,
    changed: Notify,
    metrics: Arc<Metrics>,
}

impl Health {
    /// Assumed to be `up` until something fails.
    pub fn new(up: bool, metrics: Arc<Metrics>) -> Self {
        Self::starting_for(Duration::ZERO, up, metrics)
    }

    /// The same; for so long a start that is not over yet is waited for, before entries go to the spool.
    pub fn starting_for(patience: Duration, up: bool, metrics: Arc<Metrics>) -> Self {
        metrics.set_database_up(up);
        let starts_until = Instant::now() + patience;
        Self { up: AtomicBool::new(up), up_since: Mutex::new(Instant::now()), starts_until, changed: Notify::new(), metrics }
    }

    /// Whether statements may be tried.
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    /// Waits until PostgreSQL takes statements for the first time, as long as the start may take, and no longer than `until`.
    pub async fn starting(&self, until: Option<Instant>) {
        let until = until.map_or(self.starts_until, |until| until.min(self.starts_until));
        while !self.is_up() && Instant::now() < until {
            tokio::time::sleep(START_POLL).await;
        }
    }

    /// For how long statements could be tried without a break; `None` while they may not.
    pub fn up_for(&self) -> Option<Duration> {
        self.is_up().then(|| self.up_since.lock().unwrap_or_else(PoisonError::into_inner).elapsed())
    }

    /// Notes that a statement failed for a reason that is not its rows'.
    pub fn set_down(&self, error: &StoreError) {
        if self.up.swap(false, Ordering::AcqRel) {
            error!("PostgreSQL does not take entries: {error}. They go to the spool until it is back");
            self.metrics.set_database_up(false);
        }
        self.wake();
    }

    /// Notes that PostgreSQL answers again.
    pub fn set_up(&self) {
        if !self.is_up() {
            *self.up_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
        if !self.up.swap(true, Ordering::AcqRel) {
            info!("PostgreSQL takes entries again");
            self.metrics.set_database_up(true);
        }
    }

    /// Says that there is something to drain.
    pub fn wake(&self) {
        self.changed.notify_one();
    }

    /// Waits until there may be something to drain or to try.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

#[derive(Debug)]
struct Job {
    batch: Batch,
    answer_by: Option<Instant>,
    reply: oneshot::Sender<Result<Outcome, StoreError>>,
}

/// Handle to the writers.
#[derive(Debug, Clone)]
pub struct Store {
    jobs: mpsc::Sender<Job>,
    writer: Arc<Writer>,
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
    /// Starts the writers on the current runtime. `secrets` are removed from entries that are kept as they came. Without a spool
    /// (commands that end) what PostgreSQL cannot take is an error.
    pub fn start(
        database: Database,
        spool: Option<Arc<Spool>>,
        health: Arc<Health>,
        metrics: Arc<Metrics>,
        secrets: Arc<Secrets>,
        days: Arc<KnownDays>,
        addresses: Arc<Addresses>,
    ) -> (Store, Writers) {
        let (jobs, queue) = mpsc::channel(MAX_JOBS);
        let queue = Arc::new(tokio::sync::Mutex::new(queue));
        let writer = Arc::new(Writer::new(database, spool, health, metrics, secrets, days, addresses));
        let mut writers = JoinSet::new();
        for _ in 0..WRITERS {
            writers.spawn(writer::run(Arc::clone(&writer), Arc::clone(&queue)));
        }
        (Store { jobs, writer }, Writers(writers))
    }

    /// From now on so many refused calls of a client address and minute become rows; further ones are counted.
    pub fn set_refused_rows(&self, rows: usize) {
        self.writer.refused_limit.set_rows_of_address(rows);
    }

    /// Makes a batch safe. On an error nothing is promised, and repeating the batch is right. When an answer is due, what PostgreSQL
    /// has not taken by [`last_attempt`] goes to the spool.
    pub async fn store(&self, batch: Batch, answer_by: Option<Instant>) -> Result<Outcome, StoreError> {
        let stopping = || StoreError::Unavailable("the collector is stopping".to_owned());
        let (reply, answer) = oneshot::channel();
        self.jobs.send(Job { batch, answer_by, reply }).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    }

    /// Puts entries into the spool as they came, for want of time to read them.
    pub async fn spool(&self, raws: Vec<Raw>) -> Result<Outcome, StoreError> {
        let spooled = raws.len();
        self.writer.spool(raws, &[], State::New, &StoreError::Late).await?;
        Ok(Outcome { spooled, ..Outcome::default() })
    }

    /// Stores a batch that comes from the spool; on an error it is still there. With [`State::Maybe`] a row that is there already
    /// was stored by the statement whose answer never came, and is counted now.
    pub async fn store_spooled(&self, batch: &Batch, state: State) -> Result<(), StoreError> {
        self.writer.write_spooled(batch, state).await
    }

    /// Remembers numbers whose entries were found in the spool.
    pub fn remember_arrivals(&self, arrivals: &Arrivals) {
        self.writer.arrivals().append(arrivals);
    }

    /// Tells PostgreSQL which numbers wait in the spool.
    pub async fn note_arrivals(&self) -> Result<(), StoreError> {
        let arrivals = std::mem::take(&mut *self.writer.arrivals());
        if arrivals.is_empty() {
            return Ok(());
        }
        let noted = match self.writer.database.connection().await {
            Ok(connection) => insert::note_arrivals(&connection, &arrivals).await,
            Err(error) => Err(error),
        };
        if noted.is_err() {
            self.remember_arrivals(&arrivals);
        }
        noted
    }

    /// Whether PostgreSQL answers, has the table, and would let us write to it.
    pub async fn check(&self) -> Result<(), StoreError> {
        self.writer.check().await
    }

    /// Whether what failed some rows would fail all others, too.
    pub async fn is_everybodys(&self, error: &StoreError) -> bool {
        self.writer.is_everybodys(error).await
    }

    /// Who takes entries now: `postgresql` or `spool`.
    pub async fn taker(&self) -> Result<&'static str, StoreError> {
        if self.writer.health.is_up() && self.check().await.is_ok() {
            return Ok("postgresql");
        }
        match self.writer.spool.as_ref().map(|spool| spool.check()) {
            Some(Ok(())) if self.writer.spool_refuses() => {
                Err(StoreError::Unavailable("PostgreSQL is away, and the spool refused the last entries".to_owned()))
            }
            Some(Ok(())) => Ok("spool"),
            Some(Err(error)) => Err(StoreError::Unavailable(error.to_string())),
            None => Err(StoreError::Unavailable("there is no spool".to_owned())),
        }
    }

    /// The database behind the store.
    pub fn database(&self) -> &Database {
        &self.writer.database
    }

    /// Brings the gauges of the spool up to date.
    pub fn measure_spool(&self) {
        if let Some(spool) = &self.writer.spool {
            self.writer.metrics.set_spool(spool.bytes(), spool.oldest_age());
        }
    }
}
