//! The running collector: what is started, in which order, and how it stops.
//!
//! Production and tests start the same [`Application`]. Order of shutdown: stop accepting, finish what is in flight, let the
//! writers finish, close the pool.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::{Server, ServerHandle};
use actix_web::web::Data;
use actix_web::{App, HttpServer};
use anyhow::{Context, Result};
use log::{info, warn};

use crate::config::ServeSettings;
use crate::decode::Limits;
use crate::extract::redact::Secrets;
use crate::measure::Metrics;
use crate::pipeline::Pipeline;
use crate::receive::{self, Receiver, Room};
use crate::store::pool::{Database, DatabaseSettings};
use crate::store::{Store, Writers, migrate, partitions};

/// Seconds that requests in flight get after SIGTERM. Longer than the longest wait for PostgreSQL.
const SHUTDOWN_SECONDS: u64 = 20;

/// How often the partitions of the coming days are made.
const PARTITION_INTERVAL: Duration = Duration::from_secs(3_600);

/// A collector that listens.
pub struct Application {
    port: u16,
    server: Server,
    writers: Writers,
    maintenance: tokio::task::JoinHandle<()>,
}

impl Application {
    /// Migrates the database, starts the writers and binds the port.
    pub async fn build(settings: &ServeSettings) -> Result<Self> {
        let token = settings.checked_token()?;
        let config = settings.database.config()?;
        let listener = TcpListener::bind(settings.listen).with_context(|| {
            format!(
                "cannot listen on {}: is another collector running there? Choose another address with --listen",
                settings.listen
            )
        })?;
        let port = listener.local_addr().context("cannot read the address of the listener")?.port();
        migrate::migrate(&config, settings.database.timeout()).await.with_context(|| migrate::advice(&config))?;

        let metrics = Arc::new(Metrics::new());
        let secrets = Arc::new(Secrets::with_headers(&settings.pipeline.secret_headers));
        let database = Database::new(DatabaseSettings {
            config,
            connections: settings.database.database_connections,
            timeout: settings.database.timeout(),
        });
        let (store, writers) = Store::start(database.clone(), Arc::clone(&metrics), Arc::clone(&secrets));
        metrics.set_database_up(true);
        let receiver = Data::new(Receiver {
            pipeline: Pipeline {
                limits: Limits { decoded_bytes: settings.pipeline.max_decoded_bytes },
                secrets,
                store,
                metrics: Arc::clone(&metrics),
            },
            token,
            max_body_bytes: settings.max_body_bytes,
            room: Room::new(settings.max_queue_bytes, metrics),
        });
        let server = HttpServer::new(move || App::new().app_data(Data::clone(&receiver)).configure(receive::routes))
            .shutdown_timeout(SHUTDOWN_SECONDS)
            .disable_signals()
            .listen(listener)
            .context("cannot listen")?
            .run();
        info!(port = port; "listening on {}:{port}", settings.listen.ip());
        Ok(Self { port, server, writers, maintenance: tokio::spawn(maintain(database)) })
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
        self.maintenance.abort();
        self.writers.finish().await;
        info!("stopped: everything accepted is stored");
        Ok(())
    }
}

/// Makes partitions before their day comes.
async fn maintain(database: Database) {
    loop {
        tokio::time::sleep(PARTITION_INTERVAL).await;
        let created = match database.connection().await {
            Ok(connection) => connection.bounded(partitions::create_ahead(connection.client())).await,
            Err(error) => Err(error),
        };
        match created {
            Ok(0) => {}
            Ok(created) => info!("made {created} partitions ahead"),
            Err(error) => warn!("could not make partitions ahead: {error}"),
        }
    }
}
