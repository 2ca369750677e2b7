//! PostgreSQL and what is in it.

use tokio_postgres::Client;

use super::{Level, Report};
use crate::config::DoctorSettings;
use crate::store::migrate;

/// Days of growth that should fit on the disk.
const DISK_DAYS: f64 = 14.0;

/// What other checks need to know of PostgreSQL.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Its `max_connections`.
    pub(super) max_connections: Option<i64>,
}

pub(super) async fn examine(settings: &DoctorSettings, report: &mut Report) -> Facts {
    let config = match settings.database.config() {
        Ok(config) => config,
        Err(error) => {
            report.problem("postgresql", format!("{error:#}"), "nothing about the database could be checked", "set DATABASE_URL");
            return Facts::default();
        }
    };
    let connected = tokio::time::timeout(settings.database.timeout(), config.connect(tokio_postgres::NoTls)).await;
    let client = match connected {
        Ok(Ok((client, connection))) => {
            tokio::spawn(connection);
            client
        }
        Ok(Err(error)) => {
            let error = crate::store::pool::StoreError::from(error);
            report.problem(
                "postgresql",
                format!("{}: {error}", migrate::advice(&config)),
                WHY_DOWN,
                "gateway up; gateway logs postgresql",
            );
            return Facts::default();
        }
        Err(_) => {
            report.problem("postgresql", format!("{}: no answer", migrate::advice(&config)), WHY_DOWN, "gateway logs postgresql");
            return Facts::default();
        }
    };
    report.good("postgresql", format!("answers, {}", migrate::name_of(&config)));
    if let Err(error) = contents(&client, settings, report).await {
        let error = crate::store::pool::StoreError::from(error);
        report.problem("postgresql.schema", error.to_string(), "rows cannot be written or read", "llm-collector migrate");
    }
    let max_connections = client.query_one("SELECT current_setting('max_connections')::bigint", &[]).await;
    Facts { max_connections: max_connections.ok().and_then(|row| row.try_get(0).ok()) }
}

const WHY_DOWN: &str = "entries wait on disk and are not visible; reports and dashboards stay empty";

async fn contents(client: &Client, settings: &DoctorSettings, report: &mut Report) -> Result<(), tokio_postgres::Error> {
    let number = async |query: &str| -> Result<i64, tokio_postgres::Error> { client.query_one(query, &[]).await?.try_get(0) };

    let newest = "SELECT extract(epoch FROM now() - max(started_at))::bigint FROM llm_logs";
    match client.query_one(newest, &[]).await?.try_get::<_, Option<i64>>(0)? {
        None => report.warning(
            "rows",
            "there is no row yet",
            "nobody called the model so far, or entries do not arrive",
            "send a call through the gateway and look again; gateway logs kong",
        ),
        Some(seconds) => report.good("rows", format!("the newest is {} old", duration(seconds))),
    }

    let ahead = "SELECT count(*) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'llm_logs'::regclass AND c.relname ~ '^llm_logs_[0-9]{8}$'
          AND to_date(right(c.relname, 8), 'YYYYMMDD') > current_date";
    match number(ahead).await? {
        0..=1 => report.problem(
            "partitions",
            "none is made for the coming days",
            "rows go to the default partition, and retention cannot drop them by day",
            "llm-collector migrate; gateway logs collector",
        ),
        days => report.good("partitions", format!("are made for {days} days ahead")),
    }
    let misplaced = number("SELECT count(*) FROM llm_logs_default").await?;
    if misplaced > 0 {
        report.warning(
            "partitions.default",
            format!("{misplaced} rows belong to no day's partition"),
            "the clock of a gateway host was wrong, or very old entries were replayed",
            "check the clocks (timedatectl); SELECT min(started_at), max(started_at) FROM llm_logs_default",
        );
    }

    match number("SELECT count(*) FROM llm_rejected").await? {
        0 => report.good("rejected", "no entry was rejected"),
        rejected => report.warning(
            "rejected",
            format!("{rejected} entries could not become rows"),
            "they are kept, but in no report",
            "llm-collector rejected list; after an upgrade: llm-collector rejected retry",
        ),
    }
    let lost = "SELECT coalesce(sum(last_seq - first_seq + 1), 0)::bigint FROM llm_sequence_gaps WHERE found_at > now() - interval '7 days'";
    match number(lost).await? {
        0 => report.good("lost", "Kong lost no entry in the last 7 days"),
        lost => report.problem(
            "lost",
            format!("Kong lost {lost} entries in the last 7 days"),
            "the audit log has holes: Kong's queue was full or its retries were over before the collector was back",
            "SELECT * FROM llm_sequence_gaps ORDER BY found_at DESC; raise AUDIT_QUEUE_BYTES or AUDIT_RETRY_SECONDS",
        ),
    }

    let keys = "SELECT count(*) FROM (SELECT raw_log FROM llm_logs ORDER BY started_at DESC LIMIT 1000) l
        WHERE raw_log->'request'->'headers' ?| array['authorization', 'x-api-key', 'apikey', 'api-key', 'cookie']";
    match number(keys).await? {
        0 => report.good("keys", "no key in the headers of the newest rows"),
        rows => report.problem(
            "keys",
            format!("{rows} of the newest rows hold a key header"),
            "keys leak to whoever reads the log",
            "upgrade the collector; UPDATE the rows, and rotate the keys",
        ),
    }
    disk(client, settings, report).await
}

/// The database's growth against what is free.
async fn disk(client: &Client, settings: &DoctorSettings, report: &mut Report) -> Result<(), tokio_postgres::Error> {
    let sizes = "SELECT pg_database_size(current_database()), coalesce(max(size), 0)::bigint FROM (
        SELECT pg_total_relation_size(i.inhrelid) AS size FROM pg_inherits i WHERE i.inhparent = 'llm_logs'::regclass) partitions";
    let row = client.query_one(sizes, &[]).await?;
    let (database, day): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
    let Ok(disk) = rustix::fs::statvfs(&settings.data_dir) else {
        report.warning(
            "disk",
            format!("the database has {}; free space is unknown, {} cannot be read", size(database), settings.data_dir.display()),
            "a full disk stops the audit log",
            "set --data-dir to a folder on the database's disk",
        );
        return Ok(());
    };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let days = free as f64 / (day.max(1) as f64);
    let what = format!("the database has {}, its largest day {}; {} are free", size(database), size(day), size(free as i64));
    // Small databases have no growth to speak of: then a full disk is not theirs.
    let level = if days < DISK_DAYS && day > 100 << 20 { Level::Warning } else { Level::Good };
    match level {
        Level::Good => report.good("disk", what),
        _ => report.warning(
            "disk",
            format!("{what}: enough for {days:.0} days"),
            "a full disk stops the audit log",
            "set KEEP_CONTENT_DAYS or KEEP_ROWS_DAYS, or give it more disk",
        ),
    }
    Ok(())
}

fn size(bytes: i64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = UNITS.iter();
    let mut name = unit.next().copied().unwrap_or_default();
    while value >= 1024.0 {
        let Some(next) = unit.next() else { break };
        value /= 1024.0;
        name = next;
    }
    format!("{value:.1} {name}")
}

fn duration(seconds: i64) -> String {
    match seconds {
        ..=119 => format!("{} s", seconds.max(0)),
        120..=7_199 => format!("{} min", seconds / 60),
        7_200..=172_799 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}
