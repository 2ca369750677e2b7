//! The running collector: what is started, in which order, and how it stops.
//!
//! Production and tests start the same [`Application`]. Order of shutdown: stop accepting, finish what is in flight, let the
//! writers finish, close the pool. What is in the spool stays there for the next start.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::{Server, ServerHandle};
use actix_web::web::Data;
use actix_web::{App, HttpServer};
use anyhow::{Context, Result};
use log::info;
use tokio::task::JoinHandle;

use crate::config::ServeSettings;
use crate::decode::Limits;
use crate::drain::Drain;
use crate::measure::Metrics;
use crate::pipeline::{Pipeline, Reader, memory::Memory};
use crate::receive::{self, Receiver, room::Room};
use crate::start::Start;
use crate::store::addresses::Addresses;
use crate::store::partitions::KnownDays;
use crate::store::pool::{Database, DatabaseSettings};
use crate::store::spool::{Spool, SpoolLimits};
use crate::store::{Health, Store, Writers};
use crate::upkeep::Upkeep;

/// Seconds that requests in flight get after SIGTERM. Longer than the longest wait for PostgreSQL and the disk.
const SHUTDOWN_SECONDS: u64 = 20;

/// How long after the start entries wait for a migration that is still under way, as far as their answers can wait, before they go to the
/// spool at once: on a busy machine an empty database takes some seconds.
const START_PATIENCE: Duration = Duration::from_secs(10);

/// Threads of a worker for what blocks, decoding of large bodies above all. There are [`ServeSettings::workers`] of them, so all of it
/// stays far below what containers allow, on any machine.
pub const BLOCKING_THREADS: usize = 2;

/// A collector that listens.
pub struct Application {
    port: u16,
    server: Server,
    writers: Writers,
    background: Vec<JoinHandle<()>>,
    spool: Arc<Spool>,
}

impl Application {
    /// Binds the port, reaches the database, starts the writers. The database may still be migrated afterwards.
    pub async fn build(settings: &ServeSettings) -> Result<Self> {
        let token = settings.checked_token()?;
        let target = settings.database.target()?;
        let patience = settings.database.timeout();
        let privacy = Arc::new(settings.pipeline.privacy()?);
        let webhook = settings.webhook.webhook()?.map(Arc::new);
        let listener = TcpListener::bind(settings.listen).with_context(|| {
            format!(
                "cannot listen on {}: is another collector running there? Choose another address with --listen",
                settings.listen
            )
        })?;
        let port = listener.local_addr().context("cannot read the address of the listener")?.port();
        let limits = SpoolLimits {
            bytes: settings.max_spool_bytes,
            age: Duration::from_secs(settings.max_spool_age_hours.saturating_mul(3_600)),
        };
        let spool = Arc::new(Spool::open(&settings.data_dir, limits)?);
        let start = Start::begin(target.clone(), patience, settings.data_dir.clone(), settings.site.zone()).await?;

        let metrics = Arc::new(Metrics::new());
        let secrets = Arc::new(settings.pipeline.secrets());
        let database =
            Database::new(DatabaseSettings { target, connections: settings.database.database_connections, timeout: patience });
        let health = Arc::new(Health::starting_for(START_PATIENCE, start.is_over(), Arc::clone(&metrics)));
        let days = Arc::new(KnownDays::default());
        let addresses = Arc::new(Addresses::default());
        let (store, writers) = Store::start(
            database.clone(),
            Some(Arc::clone(&spool)),
            Arc::clone(&health),
            Arc::clone(&metrics),
            Arc::clone(&secrets),
            Arc::clone(&days),
            Arc::clone(&addresses),
        );
        store.set_refused_rows(settings.refused_rows_per_minute);
        let limits = Limits { decoded_bytes: settings.pipeline.max_decoded_bytes };
        let memory = Memory::new(settings.pipeline.decode_memory_bytes, limits);
        let reader = Reader { limits, secrets, privacy };
        let pipeline = Pipeline { reader, memory, store, metrics: Arc::clone(&metrics) };
        let drain = Drain { pipeline: pipeline.clone(), spool: Arc::clone(&spool), health: Arc::clone(&health), start };
        let upkeep = Upkeep {
            database,
            health,
            metrics: Arc::clone(&metrics),
            data_dir: settings.data_dir.clone(),
            gap_grace: Duration::from_secs(settings.gap_grace_seconds),
            clocks: settings.retention.clocks(),
            search_index: settings.search_index,
            days,
            addresses,
            limits_interval: Duration::from_secs(settings.quota_watch_seconds),
            webhook,
        };
        let mut background = upkeep.start();
        background.push(tokio::spawn(drain.run()));
        let receiver = Data::new(Receiver {
            pipeline,
            token,
            max_body_bytes: settings.max_body_bytes,
            room: Room::new(settings.max_queue_bytes, metrics),
            usage: receive::usage::Desk::default(),
        });
        let server = HttpServer::new(move || App::new().app_data(Data::clone(&receiver)).configure(receive::routes))
            .workers(settings.workers)
            .worker_max_blocking_threads(BLOCKING_THREADS)
            .shutdown_timeout(SHUTDOWN_SECONDS)
            .disable_signals()
            .listen(listener)
            .context("cannot listen")?
            .run();
        info!(port = port; "listening on {}:{port}", settings.listen.ip());
        Ok(Self { port, server, writers, background, spool })
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A handle that stops it from another task.
    pub fn handle(&self) -> ServerHandle {
        self.server.handle()
    }

    /// Serves until it is stopped, then finishes what is in flight.
    pub async fn run_until_stopped(self) -> Result<()> {
        self.server.await.context("the server failed")?;
        for task in self.background {
            task.abort();
            // Until it is gone it holds the store, and the writers would wait for it.
            let _ = task.await;
        }
        self.writers.finish().await;
        // The drain was stopped; it did not die.
        self.spool.suspects.clear();
        info!("stopped: everything accepted is stored or in the spool");
        Ok(())
    }
}
