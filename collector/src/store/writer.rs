//! The writers: one statement for what waits, the spool for what PostgreSQL cannot take.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use log::{debug, error, info, warn};
use tokio::sync::mpsc;

use super::addresses::Addresses;
use super::arrivals::Arrivals;
use super::content::KnownContent;
use super::partitions::KnownDays;
use super::pool::{Database, PooledConnection, StoreError};
use super::refused::{self, limit::Limit};
use super::rejected::{self, Rejected};
use super::spool::{Spool, SpoolError, State};
use super::{Batch, Health, Item, Job, Outcome, Raw, Sequence, insert, last_attempt, partitions};
use crate::decode::{self, json::write_string};
use crate::extract::redact::Secrets;
use crate::measure::Metrics;
use crate::panics;

/// Rows in one statement at most. Beyond a few hundred nothing is gained, and a refused row takes longer to find.
const MAX_ROWS: usize = 1_000;

/// Statements in search of refused rows while somebody waits for an answer. One refused row of a thousand takes some twenty; where
/// there are many, the drain finds them.
const MAX_SEARCHES: usize = 64;

/// PostgreSQL is not asked for an answer within less than this.
const LEAST_ATTEMPT: Duration = Duration::from_millis(200);

/// How often a statement is tried that met another one with the same rows, and the pause in between, which grows.
const MAX_ATTEMPTS: u32 = 5;
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// How long a statement from the spool may take. Nobody waits for it, and a slow server must still be able to catch up.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Writer {
    pub(super) database: Database,
    pub(super) spool: Option<Arc<Spool>>,
    pub(super) health: Arc<Health>,
    pub(super) metrics: Arc<Metrics>,
    secrets: Arc<Secrets>,
    days: Arc<KnownDays>,
    content: KnownContent,
    addresses: Arc<Addresses>,
    /// Rows were written whose day may have no partition.
    days_are_unknown: AtomicBool,
    /// The spool refused entries, and the log says so already.
    spool_refuses: AtomicBool,
    /// Numbers of entries in the spool that PostgreSQL does not know of yet.
    arrivals: Mutex<Arrivals>,
    /// Which refused calls become rows.
    pub(super) refused_limit: Limit,
}

/// What became of one item.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    Unknown,
    New,
    Duplicate,
    Counted,
    Refused(String),
}

type Queue = Arc<tokio::sync::Mutex<mpsc::Receiver<Job>>>;

/// Takes what waits and writes it, until the queue is closed and empty.
pub(super) async fn run(writer: Arc<Writer>, queue: Queue) {
    loop {
        let mut jobs = Vec::new();
        {
            let mut queue = queue.lock().await;
            let Some(first) = queue.recv().await else { return };
            let (mut rows, mut bytes) = first.batch.size();
            jobs.push(first);
            while rows < MAX_ROWS && bytes < insert::MAX_BYTES {
                let Ok(job) = queue.try_recv() else { break };
                let (more_rows, more_bytes) = job.batch.size();
                rows += more_rows;
                bytes += more_bytes;
                jobs.push(job);
            }
        }
        writer.write(jobs).await;
        if writer.spool.is_none() {
            writer.tidy_up().await;
        }
    }
}

impl Writer {
    pub(super) fn new(
        database: Database,
        spool: Option<Arc<Spool>>,
        health: Arc<Health>,
        metrics: Arc<Metrics>,
        secrets: Arc<Secrets>,
        days: Arc<KnownDays>,
        addresses: Arc<Addresses>,
    ) -> Self {
        Self {
            database,
            spool,
            health,
            metrics,
            secrets,
            days,
            content: KnownContent::default(),
            addresses,
            days_are_unknown: AtomicBool::new(false),
            spool_refuses: AtomicBool::new(false),
            arrivals: Mutex::default(),
            refused_limit: Limit::default(),
        }
    }

    /// Numbers of entries in the spool that PostgreSQL does not know of yet.
    pub(super) fn arrivals(&self) -> MutexGuard<'_, Arrivals> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether PostgreSQL answers, has the table, and would let us write to it: a standby, a lock or a missing right is found out
    /// here and not by the next rows.
    pub(super) async fn check(&self) -> Result<(), StoreError> {
        const WRITE_NOTHING: &str =
            "INSERT INTO llm_logs (request_id, consumer_username, started_at) SELECT '', '', now() WHERE false";
        let connection = self.database.connection().await?;
        connection.bounded(connection.client().simple_query(WRITE_NOTHING)).await.map(drop)
    }

    /// Whether the spool refused the entries that it was last given.
    pub(super) fn spool_refuses(&self) -> bool {
        self.spool_refuses.load(Ordering::Relaxed)
    }

    async fn write(&self, jobs: Vec<Job>) {
        let items: Vec<&Item> = jobs.iter().flat_map(|job| &job.batch.items).collect();
        let rejected: Vec<&Rejected> = jobs.iter().flat_map(|job| &job.batch.rejected).collect();
        let mut fates = vec![Fate::Unknown; items.len()];
        let answer_by = jobs.iter().filter_map(|job| job.answer_by).min();
        self.health.starting(answer_by.map(last_attempt)).await;
        let failure = if self.health.is_up() || self.spool.is_none() {
            self.write_in_time(&items, &rejected, &mut fates, answer_by).await.err()
        } else {
            Some(StoreError::Unavailable("PostgreSQL is away".to_owned()))
        };
        let Some(failure) = failure else {
            answer(jobs, fates, None);
            return;
        };
        let unsafe_items = items.iter().zip(&fates).filter(|(_, fate)| !fate.is_safe()).map(|(item, _)| item);
        let raws = unsafe_items.map(|item| Raw {
            text: item.raw.clone(),
            request_id: item.call.request_id.clone(),
            sequence: item.sequence.clone(),
        });
        let state = if failure.is_uncertain() { State::Maybe } else { State::New };
        let spooled = self.spool(raws.collect(), &rejected, state, &failure).await;
        answer(jobs, fates, Some(spooled));
    }

    /// One attempt, in bounded time over all its statements together: Kong waits for the answer.
    async fn write_in_time(
        &self,
        items: &[&Item],
        rejected: &[&Rejected],
        fates: &mut [Fate],
        answer_by: Option<Instant>,
    ) -> Result<(), StoreError> {
        let patience = self.database.settings().timeout;
        let left = answer_by.map_or(patience, |due| last_attempt(due).saturating_duration_since(Instant::now()));
        let timeout = patience.min(left);
        if timeout < LEAST_ATTEMPT && self.spool.is_some() {
            return Err(StoreError::Late);
        }
        let attempt = async {
            let connection = self.database.connection().await?;
            self.write_items(&connection, items, rejected, fates, State::New).await
        };
        let result = tokio::time::timeout(timeout, attempt).await.unwrap_or(Err(StoreError::NoAnswer(timeout)));
        // When the queue left less time than that, running out of it says nothing about PostgreSQL.
        if let Err(error) = &result
            && (timeout == patience || !matches!(error, StoreError::NoAnswer(_)))
            && self.is_everybodys(error).await
        {
            self.health.set_down(error);
        }
        result
    }

    /// Whether what failed these rows would fail all others, too. A deadlock is theirs alone, and so may be a lock that somebody holds
    /// on one day.
    pub(super) async fn is_everybodys(&self, error: &StoreError) -> bool {
        if error.is_conflict() || matches!(error, StoreError::Late) {
            return false;
        }
        !error.is_lock() || self.check().await.is_err()
    }

    /// Stores a batch from the spool.
    pub(super) async fn write_spooled(&self, batch: &Batch, state: State) -> Result<(), StoreError> {
        let items: Vec<&Item> = batch.items.iter().collect();
        let rejected: Vec<&Rejected> = batch.rejected.iter().collect();
        let mut fates = vec![Fate::Unknown; items.len()];
        let connection = self.database.connection().await?.with_timeout(DRAIN_TIMEOUT);
        self.write_items(&connection, &items, &rejected, &mut fates, state).await
    }

    async fn write_items(
        &self,
        connection: &PooledConnection<'_>,
        items: &[&Item],
        rejected: &[&Rejected],
        fates: &mut [Fate],
        state: State,
    ) -> Result<(), StoreError> {
        self.count_refused(connection, items, fates).await?;
        let open: Vec<usize> = fates.iter().enumerate().filter(|(_, fate)| **fate == Fate::Unknown).map(|(at, _)| at).collect();
        let rows: Vec<&Item> = open.iter().filter_map(|at| items.get(*at).copied()).collect();
        let mut row_fates = vec![Fate::Unknown; rows.len()];
        let inserted = self.insert(connection, &rows, &mut row_fates, state).await;
        for (at, row_fate) in open.into_iter().zip(row_fates) {
            if let Some(fate) = fates.get_mut(at) {
                *fate = row_fate;
            }
        }
        inserted?;
        let mut on_record: Vec<Rejected> = rejected.iter().copied().cloned().collect();
        for (item, fate) in items.iter().zip(fates.iter()) {
            if let Fate::Refused(reason) = fate {
                warn!(request_id = item.call.request_id.as_str(); "PostgreSQL refused the row of {}: {reason}", item.call.request_id);
                let raw = kept(&item.raw, &item.call.request_id, &self.secrets);
                on_record.push(Rejected { raw: raw.into(), reason: reason.clone(), sequence: item.sequence.clone() });
            }
        }
        if !on_record.is_empty() {
            rejected::insert(connection, &on_record).await?;
            let sequences: Vec<&Sequence> = on_record.iter().filter_map(|entry| entry.sequence.as_ref()).collect();
            insert::note_sequences(connection, &sequences).await?;
            self.metrics.entries.rejected.inc_by(on_record.len() as u64);
        }
        Ok(())
    }

    /// Counts refused calls of which there are too many, and finds out which of the others were counted before.
    async fn count_refused(
        &self,
        connection: &PooledConnection<'_>,
        items: &[&Item],
        fates: &mut [Fate],
    ) -> Result<(), StoreError> {
        let (mut rows, mut counted) = (Vec::new(), Vec::new());
        for (at, item) in items.iter().enumerate() {
            if let Some(entry) = &item.refused {
                let mut entry = entry.clone();
                let kind = if self.refused_limit.is_row(&mut entry) { &mut rows } else { &mut counted };
                kind.push((at, entry));
            }
        }
        for (kind, is_row) in [(rows, true), (counted, false)].into_iter().filter(|(kind, _)| !kind.is_empty()) {
            let entries: Vec<&refused::Entry> = kind.iter().map(|(_, entry)| entry).collect();
            let found = match is_row {
                true => refused::counted(connection, &entries).await?,
                false => refused::count(connection, &entries).await?,
            };
            let mut sequences = Vec::new();
            for ((at, _), found) in kind.iter().zip(found) {
                let (Some(fate), Some(item)) = (fates.get_mut(*at), items.get(*at)) else { continue };
                if is_row && !found {
                    continue;
                }
                sequences.extend(&item.sequence);
                if is_row || !found {
                    *fate = Fate::Duplicate;
                    self.metrics.entries.duplicate.inc();
                } else {
                    *fate = Fate::Counted;
                    self.metrics.observe_call(&item.call);
                    self.metrics.entries.counted.inc();
                }
            }
            if !sequences.is_empty() {
                insert::note_sequences(connection, &sequences).await?;
            }
        }
        Ok(())
    }

    /// Stores what can be stored, in statements of bounded weight. A statement with a row that PostgreSQL refuses is halved until the
    /// row stands alone; while somebody waits for an answer, not for ever.
    async fn insert(
        &self,
        connection: &PooledConnection<'_>,
        items: &[&Item],
        fates: &mut [Fate],
        state: State,
    ) -> Result<(), StoreError> {
        let mut parts = insert::by_weight(items);
        let mut searches = 0;
        while let Some((start, part)) = parts.pop() {
            if part.is_empty() {
                continue;
            }
            match self.insert_part(connection, part).await {
                Ok(new) => {
                    if self.days.written(part.iter().map(|item| item.call.started_at)) {
                        self.days_are_unknown.store(true, Ordering::Relaxed);
                    }
                    for ((fate, item), is_new) in fates.iter_mut().skip(start).zip(part).zip(new) {
                        *fate = if is_new { Fate::New } else { Fate::Duplicate };
                        // Counted here and nowhere else: as soon as it is known, whatever fails afterwards.
                        if is_new || state == State::Maybe {
                            self.metrics.observe_call(&item.call);
                            self.addresses.note(&item.call);
                            self.metrics.entries.stored.inc();
                        } else {
                            self.metrics.entries.duplicate.inc();
                        }
                    }
                }
                Err(error) if error.is_transient() => return Err(error),
                Err(_) if searches >= MAX_SEARCHES && connection.timeout() < DRAIN_TIMEOUT && self.spool.is_some() => {
                    return Err(StoreError::Late);
                }
                Err(error) if part.len() == 1 => {
                    searches += 1;
                    if let Some(fate) = fates.get_mut(start) {
                        *fate = Fate::Refused(error.to_string());
                    }
                }
                Err(error) => {
                    searches += 1;
                    debug!("halving a batch of {}: {error}", part.len());
                    let (front, back) = part.split_at(part.len() / 2);
                    parts.push((start + front.len(), back));
                    parts.push((start, front));
                }
            }
        }
        Ok(())
    }

    /// One statement, again when it met another one that writes the same rows or changes the partitions.
    async fn insert_part(&self, connection: &PooledConnection<'_>, part: &[&Item]) -> Result<Vec<bool>, StoreError> {
        let mut attempt = 1;
        loop {
            let began = Instant::now();
            let inserted = insert::insert(connection, part, &self.content, &self.days).await;
            self.metrics.observe_store(began.elapsed());
            if let Err(error) = &inserted {
                self.content.forget();
                if error.is_about_content() {
                    self.days.forget_content();
                }
            }
            match inserted {
                Err(error) if error.is_conflict() && attempt < MAX_ATTEMPTS => {
                    debug!("trying a statement again: {error}");
                    tokio::time::sleep(RETRY_PAUSE * attempt).await;
                    attempt += 1;
                }
                inserted => return inserted,
            }
        }
    }

    /// Makes partitions that rows of a command need, for which no service does it. Until then they are in the default partition.
    async fn tidy_up(&self) {
        if self.days_are_unknown.swap(false, Ordering::Relaxed)
            && let Err(error) = partitions::make_and_note(&self.database, &self.days).await
        {
            debug!("could not make partitions: {error}");
        }
    }

    /// Puts on disk what is not safe otherwise.
    pub(super) async fn spool(
        &self,
        raws: Vec<Raw>,
        rejected: &[&Rejected],
        state: State,
        failure: &StoreError,
    ) -> Result<(), StoreError> {
        let Some(spool) = &self.spool else { return Err(StoreError::Unavailable(failure.to_string())) };
        let entries = raws.len() + rejected.len();
        let spool = Arc::clone(spool);
        let secrets = Arc::clone(&self.secrets);
        let sequences = raws.iter().map(|raw| &raw.sequence).chain(rejected.iter().map(|entry| &entry.sequence));
        let sequences: Vec<Sequence> = sequences.flatten().cloned().collect();
        let records: Vec<Rejected> = rejected.iter().copied().cloned().collect();
        let write = move || spool.write(&lines(&raws, &records, &secrets), entries, state);
        let written = tokio::task::spawn_blocking(write).await;
        let result = match written {
            Ok(result) => result.map_err(|error: SpoolError| error.to_string()),
            Err(error) => Err(panics::reason(&error).to_owned()),
        };
        match result {
            Ok(()) => {
                self.metrics.entries.spooled.inc_by(entries as u64);
                if self.spool_refuses.swap(false, Ordering::Relaxed) {
                    info!("the spool takes entries again");
                }
                let mut arrivals = self.arrivals();
                sequences.iter().for_each(|sequence| arrivals.add(sequence));
                drop(arrivals);
                self.health.wake();
                Ok(())
            }
            Err(refusal) => {
                if !self.spool_refuses.swap(true, Ordering::Relaxed) {
                    error!("neither PostgreSQL ({failure}) nor the spool ({refusal}) takes entries; Kong keeps them for a while");
                }
                self.metrics.observe_spool_refusal();
                Err(StoreError::Unavailable(format!("PostgreSQL: {failure}; spool: {refusal}")))
            }
        }
    }
}

impl Fate {
    fn is_safe(&self) -> bool {
        matches!(self, Fate::New | Fate::Duplicate | Fate::Counted)
    }
}

/// Entries as lines of a spool file.
fn lines(raws: &[Raw], rejected: &[Rejected], secrets: &Secrets) -> Vec<u8> {
    let mut lines = String::with_capacity(raws.iter().map(|raw| raw.text.len()).sum::<usize>() + 1024);
    for raw in raws {
        lines.push_str(&kept(&raw.text, &raw.request_id, secrets));
        lines.push('\n');
    }
    for entry in rejected {
        lines.push_str("{\"llm_rejected\":{\"reason\":");
        write_string(&mut lines, &entry.reason);
        lines.push_str(",\"raw\":");
        write_string(&mut lines, &String::from_utf8_lossy(&entry.raw));
        if let Some(sequence) = &entry.sequence {
            lines.push_str(",\"worker\":");
            write_string(&mut lines, &sequence.worker);
            lines.push_str(&format!(",\"seq\":{}", sequence.number));
        }
        lines.push_str("}}\n");
    }
    lines.into_bytes()
}

/// An entry as it is kept to be read again.
fn kept(raw: &str, request_id: &str, secrets: &Secrets) -> String {
    decode::entry::with_identity(secrets.scrub_raw(raw), request_id)
}

/// Answers each job. `spooled` is `None` when PostgreSQL took everything; else it says whether the rest is safe on disk.
fn answer(jobs: Vec<Job>, fates: Vec<Fate>, spooled: Option<Result<(), StoreError>>) {
    let mut fates = fates.into_iter();
    for job in jobs {
        let mut outcome = Outcome { rejected: job.batch.rejected.len(), ..Outcome::default() };
        for fate in fates.by_ref().take(job.batch.items.len()) {
            match fate {
                Fate::New => outcome.stored += 1,
                Fate::Duplicate => outcome.duplicates += 1,
                Fate::Counted => outcome.counted += 1,
                Fate::Refused(_) => outcome.rejected += 1,
                Fate::Unknown => outcome.spooled += 1,
            }
        }
        if spooled.is_some() {
            outcome.spooled += std::mem::take(&mut outcome.rejected);
        }
        let result = match &spooled {
            Some(Err(error)) if outcome.spooled > 0 => Err(StoreError::Unavailable(error.to_string())),
            _ => Ok(outcome),
        };
        // A client that went away still has its entries stored.
        let _ = job.reply.send(result);
    }
}
