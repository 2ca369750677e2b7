//! From the spool to PostgreSQL, when it is back.
//!
//! One task, in order, oldest file first, while new entries go on being accepted: directly when PostgreSQL is up, to the end of
//! the spool when it is not. A file is removed after its entries are committed; a crash in between stores it again, and the
//! unique key of the table makes that a no-op. A file that fails while PostgreSQL answers otherwise is put off, so that it does
//! not hold up the others. A file over which an earlier process died is taken entry by entry, and an entry over which it dies again
//! and again is put on record instead: nothing that was acknowledged may kill the collector at every start.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use log::{error, info, warn};

use crate::counted::counted;
use crate::decode;
use crate::decode::json::Json;
use crate::panics;
use crate::pipeline::{Pipeline, sequence};
use crate::start::Start;
use crate::store::arrivals::Arrivals;
use crate::store::pool::StoreError;
use crate::store::rejected::Rejected;
use crate::store::spool::{Spool, SpoolFile};
use crate::store::suspect::{MAX_DEATHS, Suspect};
use crate::store::{Batch, Health, Sequence};

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
    /// Brings the schema up to date where that is not done yet: then it is the first thing to do.
    pub start: Start,
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
                    if self.start.is_over() {
                        log::debug!("PostgreSQL is still away: {error}");
                    }
                    tokio::time::sleep(RETRY_INTERVAL).await;
                    continue;
                }
                from = 0;
            }
            let Some(file) = self.spool.first_from(from) else {
                if drained > 0 {
                    info!(entries = drained; "stored {} of the spool", counted(drained, "entry", "entries"));
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
        self.start.finish().await?;
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
                let of_entries = entries.iter().filter_map(|raw| sequence(&Json::parse(raw).ok()?));
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
    async fn read(&self, file: &SpoolFile) -> Result<Option<ByteString>, StoreError> {
        let (spool, wanted) = (Arc::clone(&self.spool), file.clone());
        match tokio::task::spawn_blocking(move || spool.read(&wanted)).await {
            Ok(Ok(content)) => Ok(content.map(|content| decode::owned_text(Bytes::from(content)))),
            Ok(Err(error)) => Err(StoreError::Unavailable(error.to_string())),
            Err(error) => Err(StoreError::Unavailable(panics::reason(&error).to_owned())),
        }
    }

    async fn drain(&self, file: &SpoolFile) -> Result<(), StoreError> {
        let Some(content) = self.read(file).await? else { return Ok(()) };
        let (entries, rejected) = split(&content);
        let result = match self.spool.suspects.of_file(file.number) {
            None => self.store_all(entries, file).await,
            Some(suspect) => self.store_one_by_one(entries, file, suspect).await,
        };
        self.spool.suspects.clear();
        result?;
        if !rejected.is_empty() {
            self.pipeline.store.store_spooled(&Batch { items: Vec::new(), rejected }, file.state).await?;
        }
        self.spool.suspects.forget(file.number);
        self.remove(file).await;
        Ok(())
    }

    async fn store_all(&self, mut entries: VecDeque<ByteString>, file: &SpoolFile) -> Result<(), StoreError> {
        self.note(Suspect { file: file.number, entry: None, deaths: 0 }).await?;
        while !entries.is_empty() {
            self.store_portion(&mut entries, file).await?;
        }
        Ok(())
    }

    /// Stores the entries of a file over which a process died, and says before each which one it is.
    async fn store_one_by_one(
        &self,
        entries: VecDeque<ByteString>,
        file: &SpoolFile,
        suspect: Suspect,
    ) -> Result<(), StoreError> {
        let begin = suspect.entry.unwrap_or(0);
        warn!("the collector died over spool file {}: going on with its entry {begin}, one entry at a time", file.number);
        for (entry, raw) in entries.into_iter().enumerate().skip(begin) {
            let deaths = if suspect.entry == Some(entry) { suspect.deaths } else { 0 };
            if deaths < MAX_DEATHS {
                self.note(Suspect { file: file.number, entry: Some(entry), deaths }).await?;
                self.store_portion(&mut VecDeque::from([raw]), file).await?;
            } else {
                error!("the collector died {deaths} times over entry {entry} of spool file {}: it is put on record", file.number);
                let reason = format!("the collector died {deaths} times while it read this entry");
                // Not read again, not even in search of credentials by the structure of the text.
                let raw = self.pipeline.reader.secrets.scrub_broken(&raw);
                let rejected = vec![Rejected { raw: raw.into(), reason, sequence: None }];
                self.pipeline.store.store_spooled(&Batch { items: Vec::new(), rejected }, file.state).await?;
            }
        }
        Ok(())
    }

    async fn store_portion(&self, entries: &mut VecDeque<ByteString>, file: &SpoolFile) -> Result<(), StoreError> {
        let stopping = || StoreError::Unavailable("the collector is stopping".to_owned());
        let portion = self.pipeline.next_portion(entries, None).await.ok_or_else(stopping)?;
        self.pipeline.store.store_spooled(&portion.batch, file.state).await
    }

    /// Notes on disk what is being worked on.
    async fn note(&self, suspect: Suspect) -> Result<(), StoreError> {
        let spool = Arc::clone(&self.spool);
        match tokio::task::spawn_blocking(move || spool.suspects.note(suspect)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(StoreError::Unavailable(error.to_string())),
            Err(error) => Err(StoreError::Unavailable(panics::reason(&error).to_owned())),
        }
    }

    async fn remove(&self, file: &SpoolFile) {
        let (spool, done) = (Arc::clone(&self.spool), file.clone());
        match tokio::task::spawn_blocking(move || spool.remove(&done)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!("entries are stored, but their spool file stays and will be stored again: {error}"),
            Err(error) => {
                warn!("entries are stored, but their spool file stays and will be stored again: {}", panics::reason(&error));
            }
        }
    }
}

/// The lines of a spool file: entries, and entries that were rejected before.
fn split(content: &ByteString) -> (VecDeque<ByteString>, Vec<Rejected>) {
    let mut entries = VecDeque::new();
    let mut rejected = Vec::new();
    for line in content.split('\n').filter(|line| !line.is_empty()) {
        match as_rejected(line) {
            Some(entry) => rejected.push(entry),
            None => entries.push_back(content.slice_ref(line)),
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
