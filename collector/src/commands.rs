//! The commands besides `serve`. What they print on standard output is their result; everything else is logged.

pub mod certificate;
pub mod doctor;
pub mod erase;
pub mod feed;
pub mod healthcheck;
pub mod import;
pub mod kong;
pub mod models;
mod moment;
pub mod prices;
pub mod quota;
pub mod rejected;
pub mod replay;
pub mod report;
pub mod retention;
pub mod say;
mod table;
pub mod upkeep;
pub mod users;

use std::sync::Arc;

use anyhow::Result;

use crate::config::{DatabaseArgs, PipelineSettings};
use crate::decode::Limits;
use crate::measure::Metrics;
use crate::pipeline::{Pipeline, Reader, memory::Memory};
use crate::store::pool::{Database, DatabaseSettings};
use crate::store::{Health, Store, Writers, migrate};

/// What this program is called where no other command is known that runs it.
pub const PROGRAM: &str = "llm-collector";

/// Brings the database to the current schema and says what was done. With a `zone` the site's clock is set to it.
pub async fn migrate(args: &DatabaseArgs, zone: Option<&str>) -> Result<Vec<String>> {
    let target = args.target()?;
    migrate::migrate(&target, args.timeout(), zone).await.map_err(|error| {
        let advice = target.advice(&error);
        anyhow::Error::from(error).context(advice)
    })
}

/// The database of a command that only reads and writes records. It is reached once here, so that a
/// person who waits for the command learns at once when it is not there.
async fn database(args: &DatabaseArgs) -> Result<Database> {
    let database = unasked(args)?;
    let reached = database.connection().await.map(drop);
    reached.map_err(|error| {
        let advice = database.settings().target.advice(&error);
        anyhow::Error::from(error).context(advice)
    })?;
    Ok(database)
}

/// The same before anybody asked for it.
fn unasked(args: &DatabaseArgs) -> Result<Database> {
    let settings = DatabaseSettings { target: args.target()?, connections: args.database_connections, timeout: args.timeout() };
    Ok(Database::new(settings))
}

/// A pipeline without a server, on a migrated database.
async fn pipeline(args: &DatabaseArgs, settings: &PipelineSettings) -> Result<(Pipeline, Writers)> {
    migrate(args, None).await?;
    let metrics = Arc::new(Metrics::new());
    let secrets = Arc::new(settings.secrets());
    let privacy = Arc::new(settings.privacy()?);
    let health = Arc::new(Health::new(true, Arc::clone(&metrics)));
    let (store, writers) =
        Store::start(unasked(args)?, None, health, Arc::clone(&metrics), Arc::clone(&secrets), Arc::default(), Arc::default());
    let limits = Limits { decoded_bytes: settings.max_decoded_bytes };
    let memory = Memory::new(settings.decode_memory_bytes, limits);
    Ok((Pipeline { reader: Reader { limits, secrets, privacy }, memory, store, metrics }, writers))
}
