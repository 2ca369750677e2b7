//! What is due from time to time: partitions for the coming days, holes in Kong's numbers, usage that is to be added up, retention,
//! indexes of texts, and the gauges that need a look at the database or the disk.
//!
//! Each is a task of its own, so that none waits for another; what needs PostgreSQL rests while it is away. Several collectors may
//! do the same at once: who comes second finds nothing to do.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{debug, error, info, warn};
use tokio::task::JoinHandle;

use crate::counted::counted;
use crate::measure::{MAX_CONSUMERS, Metrics};
use crate::notices::Poster;
use crate::store::addresses::Addresses;
use crate::store::feed::known::{self, Known};
use crate::store::migrate::{self, Piece};
use crate::store::partitions::{self, KnownDays};
use crate::store::pool::{Database, StoreError};
use crate::store::retention::{self, Clocks};
use crate::store::session::Session;
use crate::store::{Health, conversations, gaps, notices, quotas, readers, refused, search, state, usage};
use crate::webhook::Webhook;

/// How often it is looked which partitions are missing, at least: rows that want one say so.
const PARTITION_INTERVAL: Duration = Duration::from_secs(600);

/// How soon it is tried again to make one while somebody uses the default partition, at first and at last. Each attempt holds up whoever
/// wants that partition for as long as it waits.
const PARTITION_RETRY: Duration = Duration::from_secs(1);
const MAX_PARTITION_RETRY: Duration = Duration::from_secs(30);

/// How long nothing is tried after a failure of another kind, at first and at last: an attempt may have held locks until it failed.
const PARTITION_PAUSE: Duration = Duration::from_secs(60);
const MAX_PARTITION_PAUSE: Duration = Duration::from_secs(3_600);

/// How often holes in Kong's numbers are looked for, at most: what arrived since is merged each time, some thousand ranges on a busy
/// gateway.
const GAP_INTERVAL: Duration = Duration::from_secs(5);

/// How often retention looks for what is due. Days become due once a day; the hour is for what could not be done before.
const RETENTION_INTERVAL: Duration = Duration::from_secs(3_600);

/// How often it is looked whether an hour or a day is over whose texts are to be indexed.
const SEARCH_INTERVAL: Duration = Duration::from_secs(60);

/// How long nothing is indexed after that failed: a disk that is full would be filled again at once.
const SEARCH_PAUSE: Duration = Duration::from_secs(1_800);

/// How often new usage is added to what is there. Until then every question reads it row by row: a busy gateway makes some thousand
/// rows a minute.
const COMPACTION_INTERVAL: Duration = Duration::from_secs(60);

/// How often old counts of refused calls and old numbers are removed.
const TRIM_INTERVAL: Duration = Duration::from_secs(600);

/// How often it is looked for queries of dashboards that take too long: they have a minute, and half of one more.
const READERS_INTERVAL: Duration = Duration::from_secs(10);

/// How often the gauges are brought up to date: about as often as Prometheus looks.
const STATE_INTERVAL: Duration = Duration::from_secs(15);

/// How many limits get gauges: the fullest.
const LIMITS_SHOWN: i64 = 1_000;

/// How long that may take: it adds up two months of thousands of users.
const LIMITS_PATIENCE: Duration = Duration::from_secs(20);

/// How much longer than that took nothing is done about limits afterwards, so that it is a small part of what PostgreSQL does; and the
/// longest pause.
const LIMITS_REST: u32 = 50;
const MAX_LIMITS_PAUSE: Duration = Duration::from_secs(300);

/// How often upkeep notes that it is at work. The alert waits for ten times as long.
const BEAT_INTERVAL: Duration = Duration::from_secs(60);

/// How often it is tried again while PostgreSQL is away.
const AWAY_INTERVAL: Duration = Duration::from_secs(1);

/// What the tasks need.
#[derive(Debug, Clone)]
pub struct Upkeep {
    /// The database.
    pub database: Database,
    /// Whether it takes statements.
    pub health: Arc<Health>,
    /// Where what was found is counted.
    pub metrics: Arc<Metrics>,
    /// The folder whose disk is looked at.
    pub data_dir: PathBuf,
    /// After this time a number that never arrived is lost.
    pub gap_grace: Duration,
    /// How long what is kept.
    pub clocks: Clocks,
    /// Whether texts are indexed.
    pub search_index: bool,
    /// Which days have partitions.
    pub days: Arc<KnownDays>,
    /// Who called from where.
    pub addresses: Arc<Addresses>,
    /// How often it is looked how far limits are used, at most.
    pub limits_interval: Duration,
    /// Who is told that a limit is nearly used up.
    pub webhook: Option<Arc<Webhook>>,
}

impl Upkeep {
    /// Starts the tasks; they run until they are aborted.
    pub fn start(self) -> Vec<JoinHandle<()>> {
        let mut tasks = vec![
            tokio::spawn(self.clone().make_partitions()),
            tokio::spawn(self.clone().count_backlog()),
            tokio::spawn(self.clone().find_gaps()),
            tokio::spawn(self.clone().compact_usage()),
            tokio::spawn(self.clone().look()),
            tokio::spawn(self.clone().trim_refused_calls()),
            tokio::spawn(self.clone().end_long_queries()),
            tokio::spawn(self.clone().watch_limits()),
        ];
        if let Some(webhook) = &self.webhook {
            let Self { database, health, metrics, limits_interval: pause, .. } = self.clone();
            tasks.push(tokio::spawn(Poster { database, health, metrics, webhook: Arc::clone(webhook), pause }.run()));
        }
        tasks.extend(self.start_owners());
        tasks
    }

    /// Starts the tasks that rewrite, drop and index tables, which their owner alone may.
    pub fn start_owners(self) -> Vec<JoinHandle<()>> {
        let mut tasks = vec![tokio::spawn(self.clone().beat())];
        if self.clocks.are_set() {
            tasks.push(tokio::spawn(self.clone().keep()));
        }
        if self.search_index {
            tasks.push(tokio::spawn(self.index_texts()));
        }
        tasks
    }

    /// Notes from time to time that whoever owns the tables is at work.
    async fn beat(self) {
        loop {
            self.while_away().await;
            let noted = match self.database.connection().await {
                Ok(connection) => state::note_upkeep(&connection).await,
                Err(error) => Err(error),
            };
            match noted {
                Ok(true) => {}
                Ok(false) => debug!("upkeep is left to llm-collector upkeep: this role owns no tables"),
                Err(error) => warn!("could not note that upkeep is at work: {error}"),
            }
            tokio::time::sleep(BEAT_INTERVAL).await;
        }
    }

    /// Waits until PostgreSQL takes statements.
    async fn while_away(&self) {
        while !self.health.is_up() {
            tokio::time::sleep(AWAY_INTERVAL).await;
        }
    }

    /// Makes partitions before their day comes, and those that rows turn out to need.
    async fn make_partitions(self) {
        let mut patience = Duration::ZERO;
        loop {
            self.while_away().await;
            let began = Instant::now();
            let pause = match partitions::make_and_note(&self.database, &self.days).await {
                Ok(partitions::Round { put_off: 0, unfinished: 0, made }) => {
                    if made > 0 {
                        info!("made {}", counted(made, "partition", "partitions"));
                    }
                    patience = Duration::ZERO;
                    PARTITION_INTERVAL
                }
                Ok(partitions::Round { put_off: 0, .. }) => {
                    patience = Duration::ZERO;
                    // Others come first: a piece has locked everybody out.
                    began.elapsed() * 2
                }
                Ok(partitions::Round { .. }) => {
                    if patience.is_zero() {
                        info!(
                            "partitions have to wait: somebody reads or locks llm_logs_default. Their rows are stored there meanwhile"
                        );
                    }
                    patience = (patience * 2).clamp(PARTITION_RETRY, MAX_PARTITION_RETRY);
                    patience
                }
                Err(error) => {
                    warn!("could not make partitions, which is tried again; their rows are stored in llm_logs_default: {error}");
                    patience = (patience * 2).clamp(PARTITION_PAUSE, MAX_PARTITION_PAUSE);
                    patience
                }
            };
            // While they have to wait, nothing is gained by more rows that want one.
            if pause == PARTITION_INTERVAL {
                let _ = tokio::time::timeout(pause, self.days.wanted()).await;
            } else {
                tokio::time::sleep(pause).await;
            }
        }
    }

    /// Counts the usage of rows that an upgrade left uncounted, with as much rest as work.
    async fn count_backlog(self) {
        let mut is_told = false;
        loop {
            self.while_away().await;
            let began = Instant::now();
            let counted = match self.database.connection().await {
                Ok(connection) => migrate::count_piece(&connection).await,
                Err(error) => Err(error),
            };
            match counted {
                Ok(Piece::Counted) => {
                    if !is_told {
                        info!(
                            "counting the usage of older rows in the background; until it is done, reports about them are too low"
                        );
                        is_told = true;
                    }
                    tokio::time::sleep(began.elapsed()).await;
                }
                Ok(Piece::Busy) => tokio::time::sleep(AWAY_INTERVAL).await,
                Ok(Piece::NothingLeft) => {
                    if is_told {
                        info!("the usage of all rows is counted");
                    }
                    return;
                }
                Err(error) => {
                    warn!("could not count the usage of older rows, which is tried again: {error}");
                    tokio::time::sleep(PARTITION_PAUSE).await;
                }
            }
        }
    }

    /// Looks for entries that Kong numbered and that never arrived.
    async fn find_gaps(self) {
        let interval = GAP_INTERVAL.min(self.gap_grace / 2).max(Duration::from_millis(200));
        loop {
            tokio::time::sleep(interval).await;
            // A hole may be in the spool of any collector: each has the grace to say so, after an outage as after a start.
            if self.health.up_for().is_none_or(|up_for| up_for < self.gap_grace) {
                continue;
            }
            match self.found_gaps().await {
                Ok((gaps, closed, missing)) => {
                    self.metrics.set_missing(missing);
                    for (worker, entries) in closed {
                        let one = format!("entry of worker {worker} that was taken for lost has come");
                        let more = format!("entries of worker {worker} that were taken for lost have come");
                        info!(worker = worker.as_str(), entries = entries; "{}", counted(entries, &one, &more));
                    }
                    for gap in gaps {
                        error!(
                            worker = gap.worker.as_str(), first = gap.first, last = gap.last;
                            "Kong lost {}: worker {} numbers {} to {} never arrived (queue full or retries over; see the log of Kong)",
                            counted(gap.entries(), "entry", "entries"), gap.worker, gap.first, gap.last
                        );
                        self.metrics.observe_lost(&gap.worker, gap.entries());
                    }
                }
                Err(error) => warn!("could not look for lost entries: {error}"),
            }
        }
    }

    /// The holes that are new, the workers whose holes closed, and what is missing in all.
    async fn found_gaps(&self) -> Result<(Vec<gaps::Gap>, Vec<(String, u64)>, i64), StoreError> {
        let connection = self.database.connection().await?;
        let closed = gaps::close(&connection).await?;
        Ok((gaps::find(&connection, self.gap_grace).await?, closed, gaps::missing(&connection).await?))
    }

    /// Adds new usage to what is there.
    async fn compact_usage(self) {
        loop {
            tokio::time::sleep(COMPACTION_INTERVAL).await;
            self.while_away().await;
            if let Err(error) = self.compacted().await {
                warn!(
                    "could not add up usage and counted numbers, or tie conversations, which is tried again; all else is right, but slower: {error}"
                );
            }
        }
    }

    async fn compacted(&self) -> Result<(), StoreError> {
        // Somebody else may want the connection between two pieces.
        while usage::compact_piece(&self.database.connection().await?).await? {}
        while quotas::merge_piece(&self.database.connection().await?).await? {}
        while conversations::join(&self.database.connection().await?).await? > 0 {}
        Ok(())
    }

    /// Removes old counts of refused calls, what was only kept to count each once, and the numbers of workers that are long gone.
    async fn trim_refused_calls(self) {
        loop {
            tokio::time::sleep(TRIM_INTERVAL).await;
            self.while_away().await;
            if let Err(error) = self.trimmed().await {
                warn!("could not remove old counts of refused calls and numbers of workers: {error}");
            }
        }
    }

    async fn trimmed(&self) -> Result<(), StoreError> {
        let connection = self.database.connection().await?;
        while refused::trim(&connection, self.clocks.rows_days).await? {}
        while conversations::forget(&connection).await? {}
        gaps::forget(&connection).await?;
        notices::forget(&connection).await?;
        quotas::forget(&connection).await
    }

    /// Ends queries of dashboards that lifted their time limit.
    async fn end_long_queries(self) {
        loop {
            tokio::time::sleep(READERS_INTERVAL).await;
            self.while_away().await;
            let ended = match self.database.connection().await {
                Ok(connection) => readers::end_long_queries(&connection).await,
                Err(error) => Err(error),
            };
            match ended {
                Ok(0) => {}
                Ok(ended) => warn!("ended {ended} sessions of dashboards that were at work for too long"),
                Err(error) => warn!("could not look for queries of dashboards that take too long: {error}"),
            }
        }
    }

    /// Shows how far limits are used, and notes of which somebody is to be told.
    async fn watch_limits(self) {
        loop {
            self.while_away().await;
            let began = Instant::now();
            match self.seen_limits().await {
                Ok(state) => {
                    self.metrics.limits.set_used(state.iter().map(|used| (used.quota.label(), used.percent / 100.0)));
                }
                Err(error) => warn!("could not look how far limits are used: {error}"),
            }
            let longest = MAX_LIMITS_PAUSE.max(self.limits_interval);
            tokio::time::sleep((began.elapsed() * LIMITS_REST).clamp(self.limits_interval, longest)).await;
        }
    }

    async fn seen_limits(&self) -> Result<Vec<quotas::Used>, StoreError> {
        let connection = self.database.connection().await?.with_timeout(LIMITS_PATIENCE);
        match self.webhook {
            Some(_) => quotas::state_noting(&connection, LIMITS_SHOWN).await,
            None => quotas::state(&connection, None, LIMITS_SHOWN).await,
        }
    }

    /// Brings the gauges up to date.
    async fn look(self) {
        loop {
            match rustix::fs::statvfs(&self.data_dir) {
                Ok(disk) => self
                    .metrics
                    .set_disk(disk.f_bavail.saturating_mul(disk.f_frsize), disk.f_blocks.saturating_mul(disk.f_frsize)),
                Err(error) => warn!("cannot see how full the disk of {} is: {error}", self.data_dir.display()),
            }
            // The disk matters most while PostgreSQL is away: then the spool grows.
            if !self.health.is_up() {
                tokio::time::sleep(AWAY_INTERVAL).await;
                continue;
            }
            match self.seen().await {
                Ok((state, upkeep, feeds)) => {
                    self.metrics.set_state(&state);
                    self.metrics.upkeep.set(upkeep);
                    self.metrics.feeds.set(&feeds);
                }
                Err(error) => warn!("could not look at the state of the database: {error}"),
            }
            tokio::time::sleep(STATE_INTERVAL).await;
        }
    }

    async fn seen(&self) -> Result<(state::State, state::UpkeepState, Vec<Known>), StoreError> {
        let connection = self.database.connection().await?;
        self.addresses.flush(&connection).await?;
        let seen = state::read(&connection, i64::try_from(MAX_CONSUMERS).unwrap_or(i64::MAX)).await?;
        Ok((seen, state::upkeep(&connection).await?, known::all(&connection).await?))
    }

    /// Removes what is older than it is to be kept.
    async fn keep(self) {
        loop {
            self.while_away().await;
            match self.kept().await {
                Ok(Some(_)) => {}
                Ok(None) => debug!("another collector is at retention"),
                Err(error) => error!("retention failed: {error}"),
            }
            tokio::time::sleep(RETENTION_INTERVAL).await;
        }
    }

    async fn kept(&self) -> Result<Option<retention::Round>, StoreError> {
        let session = self.session().await?;
        if !session.owns_tables().await? {
            debug!("retention is left to llm-collector upkeep: this role owns no tables");
            return Ok(None);
        }
        retention::run(&session, &self.clocks, &self.metrics, false).await
    }

    /// Indexes the texts of hours and days that are over.
    async fn index_texts(self) {
        loop {
            self.while_away().await;
            let pause = match self.indexed().await {
                Ok(()) => SEARCH_INTERVAL,
                Err(error) => {
                    error!(
                        "could not index prompts and answers, so looking for text reads them; trying again in {} minutes: {error} \
                         (pg_trgm: its files come with PostgreSQL's contrib package; where only a superuser may, let one say CREATE \
                         EXTENSION pg_trgm in this database)",
                        SEARCH_PAUSE.as_secs() / 60
                    );
                    SEARCH_PAUSE
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn indexed(&self) -> Result<(), StoreError> {
        let session = self.session().await?;
        if !session.owns_tables().await? {
            debug!("indexing texts is left to llm-collector upkeep: this role owns no tables");
            return Ok(());
        }
        search::index(&session).await
    }

    async fn session(&self) -> Result<Session, StoreError> {
        self.database.session().await
    }
}
