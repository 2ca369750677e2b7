//! The clock of the site: by which hours, days and months are counted (`sql/V14__teams.sql`).

use log::info;
use tokio_postgres::Client;

use super::pool::StoreError;

/// Fails when PostgreSQL knows no such time zone: it is the one that computes with it.
pub(super) async fn check_zone(client: &Client, zone: &str) -> Result<(), StoreError> {
    let query = "SELECT EXISTS (SELECT FROM pg_timezone_names WHERE name = $1)";
    if client.query_one(query, &[&zone]).await?.try_get(0)? {
        return Ok(());
    }
    let message = format!(
        "PostgreSQL knows no time zone {zone:?}: set SITE_TIME_ZONE to a name as Europe/Berlin, exactly as one of SELECT name FROM \
         pg_timezone_names"
    );
    Err(StoreError::Migration(message, None))
}

/// Sets it. Calls that were counted keep the hour they were counted in.
pub(super) async fn set_zone(client: &Client, zone: &str) -> Result<(), StoreError> {
    let query = "INSERT INTO llm_site AS site (time_zone) VALUES ($1)
        ON CONFLICT (is_only) DO UPDATE SET time_zone = excluded.time_zone WHERE site.time_zone <> excluded.time_zone";
    if client.execute(query, &[&zone]).await? > 0 {
        info!(zone = zone; "hours, days and months are those of the time zone {zone} from now on");
    }
    Ok(())
}
