//! The running collector: what is started, in which order, and how it stops.
//!
//! Production and tests start the same [`Application`]. Order of shutdown: stop accepting, finish what is in flight, let the
//! writers finish, close the pool. What is in the spool stays there for the next start.

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::{Server, ServerHandle};
use actix_web::web::Data;
use actix_web::{App, HttpServer};
use anyhow::{Context, Result};
use log::{error, info};
use tokio::task::JoinHandle;
use tokio_postgres::Config;

use crate::config::ServeSettings;
use crate::decode::Limits;
use crate::drain::Drain;
use crate::measure::Metrics;
use crate::pipeline::{Pipeline, Reader, memory::Memory};
use crate::receive::{self, Receiver, room::Room};
use crate::store::pool::{Database, DatabaseSettings};
use crate::store::spool::{self, Spool, SpoolLimits};
use crate::store::{Health, Store, Writers, migrate};
use crate::upkeep::Upkeep;

/// Seconds that requests in flight get after SIGTERM. Longer than the longest wait for PostgreSQL and the disk.
const SHUTDOWN_SECONDS: u64 = 20;

/// A file in the data folder that names the database that was reached and migrated before. Any other database that cannot be
/// reached is taken for a wrong setting, which somebody has to hear about; that one, for an outage that the spool is there for.
const KNOWN_DATABASE: &str = "known-database";

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
    /// Migrates the database, starts the writers and binds the port.
    pub async fn build(settings: &ServeSettings) -> Result<Self> {
        let token = settings.checked_token()?;
        let config = settings.database.config()?;
        let patience = settings.database.timeout();
        let privacy = Arc::new(settings.pipeline.privacy()?);
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
        let migrate_first = migrate_or_put_off(&config, patience, &settings.data_dir).await?;

        let metrics = Arc::new(Metrics::new());
        let secrets = Arc::new(settings.pipeline.secrets());
        let database =
            Database::new(DatabaseSettings { config, connections: settings.database.database_connections, timeout: patience });
        let health = Arc::new(Health::new(migrate_first.is_none(), Arc::clone(&metrics)));
        let (store, writers) = Store::start(
            database.clone(),
            Some(Arc::clone(&spool)),
            Arc::clone(&health),
            Arc::clone(&metrics),
            Arc::clone(&secrets),
        );
        let limits = Limits { decoded_bytes: settings.pipeline.max_decoded_bytes };
        let memory = Memory::new(settings.pipeline.decode_memory_bytes, limits);
        let reader = Reader { limits, secrets, privacy };
        let pipeline = Pipeline { reader, memory, store, metrics: Arc::clone(&metrics) };
        let drain =
            Drain { pipeline: pipeline.clone(), spool: Arc::clone(&spool), health: Arc::clone(&health), migrate_first, patience };
        let upkeep = Upkeep {
            database,
            health,
            metrics: Arc::clone(&metrics),
            data_dir: settings.data_dir.clone(),
            gap_grace: Duration::from_secs(settings.gap_grace_seconds),
            clocks: settings.retention.clocks(),
            search_index: settings.search_index,
        };
        let mut background = upkeep.start();
        background.push(tokio::spawn(drain.run()));
        let receiver = Data::new(Receiver {
            pipeline,
            token,
            max_body_bytes: settings.max_body_bytes,
            room: Room::new(settings.max_queue_bytes, metrics),
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

/// Migrates. When the database is away that was there before, entries go to the spool meanwhile: then what is still to be done is
/// returned.
async fn migrate_or_put_off(config: &Config, patience: Duration, data_dir: &Path) -> Result<Option<Config>> {
    let name = migrate::name_of(config);
    let is_known = || std::fs::read_to_string(data_dir.join(KNOWN_DATABASE)).is_ok_and(|known| known == name);
    match migrate::migrate(config, patience).await {
        Ok(_) => {
            spool::write_note(data_dir, KNOWN_DATABASE, &name)?;
            Ok(None)
        }
        Err(error) if error.is_outage() && is_known() => {
            error!("{}: {error}. Entries go to the spool until it is back", migrate::advice(config));
            Ok(Some(config.clone()))
        }
        Err(error) => Err(error).with_context(|| migrate::advice(config)),
    }
}
