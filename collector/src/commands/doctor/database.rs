//! PostgreSQL and what is in it.

use tokio_postgres::config::Host;
use tokio_postgres::{Client, Config};

use super::{Report, quotas};
use crate::config::DoctorSettings;
use crate::counted::counted;
use crate::store::feed::known::{self, Known};
use crate::store::inspect::{self, Contents, Recent, Upkeep};
use crate::store::quota_facts;
use crate::store::workers::{self, Standing};

/// For so long a worker may have sent nothing while it holds entries: a batch waits a second, and a collector that restarts some more.
const STANDING_SECONDS: i64 = 120;
/// Until the second look: longer than an entry waits for others.
const SECOND_LOOK: std::time::Duration = std::time::Duration::from_secs(3);
/// Upkeep says that it is at work once a minute.
const MAX_UPKEEP_SECONDS: i64 = 600;
/// A feed has a day some minutes after its end; whoever runs it once a day is up to a day later, and may miss one.
const MAX_FEED_LAG_SECONDS: i64 = 3 * 86_400;
/// Days of growth that should fit on the disk.
const DISK_DAYS: f64 = 14.0;
/// A largest day below this says nothing about growth: then a full disk is not the database's doing.
const SMALL_DAY_BYTES: i64 = 100 << 20;
/// Less, and PostgreSQL may not be able to write its own log.
const LEAST_FREE_BYTES: u64 = 256 << 20;
/// Passwords that everybody tries first.
const COMMON_PASSWORDS: [&str; 10] =
    ["postgres", "password", "passwd", "changeme", "change-me", "secret", "admin", "kong", "123456", "llm"];

/// What other checks need to know of PostgreSQL.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Its `max_connections`.
    pub(super) max_connections: Option<i64>,
    /// What is in it about limits.
    pub(super) quotas: quota_facts::Facts,
}

const WHY_DOWN: &str = "entries wait on disk and are not visible; reports and dashboards stay empty";

pub(super) async fn examine(settings: &DoctorSettings, report: &mut Report) -> Facts {
    let target = match settings.database.target() {
        Ok(target) => target,
        Err(error) => {
            report.problem("postgresql", format!("{error:#}"), "nothing about the database could be checked", "set DATABASE_URL");
            return Facts::default();
        }
    };
    let client = match target.connect(settings.database.timeout(), "", ()).await {
        Ok(client) => client,
        Err(error) => {
            report.problem(
                "postgresql",
                format!("{}: {error}", target.advice(&error)),
                WHY_DOWN,
                "gateway up; gateway logs postgresql",
            );
            return Facts::default();
        }
    };
    report.good("postgresql", format!("answers, {}", target.name()));
    password(target.config(), report);
    let contents = inspect::contents(&client).await;
    let has_schema = contents.is_ok();
    match contents {
        Ok(contents) => judge(&contents, settings, report),
        Err(error) => {
            report.problem("postgresql.schema", error.to_string(), "rows cannot be written or read", "llm-collector migrate");
        }
    }
    if let Some(upkeep) = inspect::upkeep(&client).await {
        owners_work(&upkeep, report);
    }
    feeds(&known::look(&client).await.unwrap_or_default(), report);
    match inspect::zone(&client).await {
        Some((zone, true)) => report.good("clock", format!("hours and days of usage are those of {zone}")),
        Some((zone, false)) => report.problem(
            "clock",
            format!("PostgreSQL no longer knows the time zone {zone}: usage is counted in hours of UTC"),
            "reports by day fail, and quotas would end at other times than people expect",
            "set SITE_TIME_ZONE in gateway.env to one of SELECT name FROM pg_timezone_names, then gateway apply",
        ),
        None => {}
    }
    // In the service upkeep: then the collector is another process, with another role.
    if settings.ready_file.is_some() {
        writer(inspect::writers(&client).await, report);
    }
    workers(&client, report).await;
    let quotas = quota_facts::facts(&client).await.unwrap_or_else(|error| {
        // Without any schema this was said above.
        if has_schema {
            report.problem("postgresql.schema", error.to_string(), "limits could not be looked at", "llm-collector migrate");
        }
        quota_facts::Facts::default()
    });
    quotas::in_database(&quotas, settings, report);
    Facts { max_connections: connections(&client, report).await, quotas }
}

/// Whether the collector is logged in as the role that can take nothing away.
fn writer(sessions: Option<i64>, report: &mut Report) {
    match sessions {
        Some(0) => report.problem(
            "postgresql.writer",
            "nobody is logged in as llm_writer",
            "the collector is away, or it logs in as the owner of the tables, who can change and remove what it stored",
            "gateway status; gateway apply; gateway restart collector",
        ),
        Some(_) => report.good("postgresql.writer", "the collector is logged in as llm_writer"),
        None => {}
    }
}

/// What the process does that owns the tables.
fn owners_work(upkeep: &Upkeep, report: &mut Report) {
    if upkeep.seconds > MAX_UPKEEP_SECONDS {
        report.problem(
            "upkeep",
            format!("was last at work {} ago", duration(upkeep.seconds)),
            "nothing that is too old is removed, and no texts are indexed",
            "gateway up; gateway logs upkeep (with WRITER_ROLE=off: collector)",
        );
    } else {
        report.good("upkeep", format!("was at work {} ago", duration(upkeep.seconds)));
    }
    if let Some(reason) = &upkeep.retention_held {
        report.problem(
            "retention",
            format!("removes nothing: {reason}"),
            "what is too old stays, and the disk fills",
            "llm-collector retention --dry-run; if that is right: llm-collector retention --confirm, once",
        );
    }
    if let Some(reason) = &upkeep.waits_for_feed {
        report.problem(
            "retention.feed",
            reason,
            "these rows stay until the feed has them, and the disk fills",
            "llm-collector feed status; then run the feed (llm-collector feed parquet), or see its name in KEEP_ROWS_AFTER_FEED",
        );
    }
}

/// How far feeds are. Where the schema is too old to know of any, that was said.
fn feeds(feeds: &[Known], report: &mut Report) {
    for Known { name, lag_seconds, failure, .. } in feeds {
        const WHY: &str = "days that are over are in PostgreSQL alone; rows that wait for the feed stay";
        if let Some(failure) = failure {
            report.problem("feed", format!("the last round of {name} failed: {failure}"), WHY, "mend that, and run it again");
        } else if *lag_seconds > MAX_FEED_LAG_SECONDS {
            let what = format!("{name} has copied nothing of the last {}", duration(*lag_seconds));
            report.problem("feed", what, WHY, "run it, every hour for instance: llm-collector feed parquet (docs/feed.md)");
        } else {
            report.good("feed", format!("{name} has copied all but the last {}", duration(*lag_seconds)));
        }
    }
}

/// Workers of Kong whose log queue stands, by what their nodes tell.
async fn workers(client: &Client, report: &mut Report) {
    let look = || workers::standing(client, STANDING_SECONDS);
    let mut standing = look().await;
    if standing.as_ref().is_ok_and(|found| !found.is_empty()) {
        // An entry that has just come waits for others for a moment.
        tokio::time::sleep(SECOND_LOOK).await;
        let before = standing.unwrap_or_default();
        let stood = |now: &Standing| before.iter().any(|then| (&then.worker, then.done) == (&now.worker, now.done));
        standing = look().await.map(|now| now.into_iter().filter(stood).collect());
    }
    match standing {
        Ok(standing) if standing.is_empty() => report.good("kong.queues", "no worker of Kong holds entries back"),
        Ok(standing) => {
            for Standing { worker, node, waiting, seconds, .. } in standing {
                report.problem(
                    "kong.queues",
                    format!(
                        "worker {worker} of {node} holds {}, and has sent none for {}",
                        counted(waiting, "entry", "entries"),
                        duration(seconds)
                    ),
                    "its calls are in no row; they are lost when the worker ends",
                    "is the collector up (gateway status)? If other workers send, gateway logs kong | grep queue; gateway restart kong",
                );
            }
        }
        Err(error) => {
            report.problem("postgresql.schema", error.to_string(), "rows cannot be written or read", "llm-collector migrate");
        }
    }
}

/// The password with which the server has let us in.
fn password(config: &Config, report: &mut Report) {
    let over_network = config.get_hosts().iter().any(|host| matches!(host, Host::Tcp(_)));
    let given = config.get_password().map(|bytes| String::from_utf8_lossy(bytes).to_ascii_lowercase());
    let found = match given {
        None if over_network => "the server asks for no password",
        Some(given)
            if COMMON_PASSWORDS.contains(&given.as_str())
                || config.get_user().is_some_and(|user| user.eq_ignore_ascii_case(&given)) =>
        {
            "the password is one that everybody tries first"
        }
        _ => return,
    };
    report.problem(
        "postgresql.password",
        found,
        "whoever reaches the port reads and changes every conversation",
        "ALTER ROLE … PASSWORD '…' with a long random one, scram-sha-256 in pg_hba.conf, and DATABASE_URL anew",
    );
}

async fn connections(client: &Client, report: &mut Report) -> Option<i64> {
    let server = inspect::server(client).await.ok()?;
    let (used, most) = (server.connections, server.max_connections);
    if used * 10 >= most * 9 {
        report.problem(
            "postgresql.connections",
            format!("{used} of {most} connections are in use"),
            "Kong cannot look up keys and answers 500, the collector has to spool",
            "lower KONG_WORKERS, or set GATEWAY_HOSTS to the number of hosts; gateway apply",
        );
    } else {
        report.good("postgresql.connections", format!("{used} of {most} are in use"));
    }
    Some(most)
}

fn judge(contents: &Contents, settings: &DoctorSettings, report: &mut Report) {
    match contents.newest_seconds {
        None => report.warning(
            "rows",
            "there is no row yet",
            "nobody called the model so far, or entries do not arrive",
            "send a call through the gateway and look again; gateway logs kong",
        ),
        Some(seconds) => report.good("rows", format!("the newest is {} old", duration(seconds))),
    }
    match contents.days_ahead {
        0..=1 => report.problem(
            "partitions",
            format!("are made for {} ahead only", counted(contents.days_ahead, "day", "days")),
            "rows go to the default partition, and retention cannot drop them by day",
            "llm-collector migrate; gateway logs collector",
        ),
        days => report.good("partitions", format!("are made for {days} days ahead")),
    }
    if contents.rows_without_day > 0 {
        report.warning(
            "partitions.default",
            counted(contents.rows_without_day, "row belongs to no day's partition", "rows belong to no day's partition"),
            "the clock of a gateway host was wrong, or very old entries were replayed",
            "check the clocks (timedatectl); SELECT min(started_at), max(started_at) FROM llm_logs_default",
        );
    }
    match contents.rejected {
        0 => report.good("rejected", "no entry was rejected"),
        rejected => report.problem(
            "rejected",
            counted(rejected, "entry could not become a row", "entries could not become rows"),
            "they are kept, but in no report",
            "llm-collector rejected list; after an upgrade: llm-collector rejected retry",
        ),
    }
    match contents.lost {
        0 => report.good("lost", "Kong lost no entry in the last 7 days"),
        lost => report.problem(
            "lost",
            format!("Kong lost {} in the last 7 days", counted(lost, "entry", "entries")),
            "the audit log has holes: Kong's queue was full or its retries were over before the collector was back",
            "SELECT * FROM llm_sequence_gaps ORDER BY found_at DESC; raise AUDIT_QUEUE_BYTES or AUDIT_RETRY_SECONDS",
        ),
    }
    recent(&contents.recent, report);
    let free = rustix::fs::statvfs(&settings.data_dir).ok().map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize));
    disk(contents, free, report);
}

fn recent(recent: &Recent, report: &mut Report) {
    let newest = recent.rows;
    match recent.with_key {
        0 => report.good("keys", format!("none in the newest {}, bodies aside", counted(newest, "row", "rows"))),
        rows => report.problem(
            "keys",
            format!("{rows} of the newest {newest} rows hold a key"),
            "keys leak to whoever reads the log",
            "key_in_query off and hide_credentials on (llm-collector kong apply), COLLECTOR_SECRET_HEADERS for headers of your \
             own; then UPDATE the rows, and rotate the keys",
        ),
    }
    if recent.without_audit > 0 {
        report.problem(
            "bodies",
            format!("{} of the newest {newest} rows came without what llm-audit adds", recent.without_audit),
            "these calls have neither prompt nor answer nor tokens",
            "the plugin must be on for every route to vLLM: gateway apply, or llm-collector kong apply",
        );
    }
    if recent.cut > 0 {
        report.warning(
            "bodies.cut",
            format!("{} of the newest {newest} rows have a body that was cut", recent.cut),
            "the end of these conversations is not in the log",
            "raise AUDIT_MAX_REQUEST_BYTES and AUDIT_MAX_RESPONSE_BYTES, and KONG_MEMORY_MB with them; gateway apply",
        );
    }
}

/// The database's growth against what is free.
fn disk(contents: &Contents, free: Option<u64>, report: &mut Report) {
    let (database, day) = (contents.database_bytes, contents.largest_day_bytes);
    let Some(free) = free else {
        report.warning(
            "disk",
            format!("the database has {}; how much is free is unknown", size(database)),
            "a full disk stops the audit log",
            "set --data-dir to a folder on the database's disk",
        );
        return;
    };
    let days = free as f64 / (day.max(1) as f64);
    let what = format!("the database has {}, its largest day {}; {} are free", size(database), size(day), size(free as i64));
    const MEND: &str = "set KEEP_CONTENT_DAYS or KEEP_ROWS_DAYS, or give it more disk";
    if free < LEAST_FREE_BYTES {
        report.problem("disk", what, "PostgreSQL and the spool are about to stop", MEND);
    } else if days < DISK_DAYS && day > SMALL_DAY_BYTES {
        report.warning("disk", format!("{what}: enough for {days:.0} days"), "a full disk stops the audit log", MEND);
    } else {
        report.good("disk", what);
    }
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

pub(super) fn duration(seconds: i64) -> String {
    match seconds {
        ..=119 => format!("{} s", seconds.max(0)),
        120..=7_199 => format!("{} min", seconds / 60),
        7_200..=172_799 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    fn disk_finding(largest_day_bytes: i64, free: Option<u64>) -> (Level, String) {
        let recent = Recent { rows: 0, with_key: 0, without_audit: 0, cut: 0 };
        let contents = Contents {
            newest_seconds: None,
            days_ahead: 7,
            rows_without_day: 0,
            rejected: 0,
            lost: 0,
            recent,
            database_bytes: 3 << 30,
            largest_day_bytes,
        };
        let mut report = Report::default();
        disk(&contents, free, &mut report);
        let finding = &report.findings[0];
        assert_eq!((report.findings.len(), finding.check), (1, "disk"));
        (finding.level, finding.what.clone())
    }

    #[test]
    fn free_space_is_held_against_the_growth_of_a_day() {
        assert_eq!(disk_finding(1 << 30, Some(100 << 30)).0, Level::Good);
        let (level, what) = disk_finding(10 << 30, Some(100 << 30));
        assert_eq!(level, Level::Warning);
        assert!(what.contains("3.0 GiB") && what.contains("10.0 GiB") && what.contains("enough for 10 days"), "{what}");
        assert_eq!(disk_finding(1 << 20, Some(1 << 30)).0, Level::Good, "a small database is not what fills the disk");
        assert_eq!(disk_finding(1 << 20, Some(100 << 20)).0, Level::Problem);
        assert_eq!(disk_finding(1 << 30, None).0, Level::Warning);
    }
}
