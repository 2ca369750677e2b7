//! Tells a webhook that limits are nearly used up: what is noted in PostgreSQL is posted, and posted again with growing pauses until it is
//! taken or its window is over.
//!
//! Any collector may do it. Whoever takes a notice has it for a while; a collector that dies between the answer and the note of it leaves
//! it to be posted once more, with the same `id`.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use log::{debug, info, warn};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::measure::{Metrics, limits::Outcome};
use crate::page::{grouped, number};
use crate::store::Health;
use crate::store::notices::{self, Notice};
use crate::store::pool::{Database, StoreError};
use crate::store::quotas::{Quota, Used};
use crate::webhook::{self, Webhook};

/// How often it is looked for notices that are due, at most.
const ROUND: Duration = Duration::from_secs(15);

/// The longest pause before a notice is tried again, in times of the first one.
const LONGEST_PAUSE: u32 = 30;

/// How long a notice is left to who took it: longer than a post may take.
const LEASE: Duration = webhook::TIMEOUT.saturating_mul(2);

/// Failures one after the other, after which the rest waits for the next round: the receiver is away.
const MAX_FAILURES: u32 = 3;

/// Notices of which it is said one by one that nobody took them.
const MAX_SAID: usize = 10;

/// Version of what is posted.
const VERSION: u32 = 1;

/// Posts what is due.
#[derive(Debug)]
pub struct Poster {
    /// Where the notices are.
    pub database: Database,
    /// Whether it takes statements.
    pub health: Arc<Health>,
    /// Where posts are counted.
    pub metrics: Arc<Metrics>,
    /// Who is told.
    pub webhook: Arc<Webhook>,
    /// Pause before a notice is tried again for the first time.
    pub pause: Duration,
}

impl Poster {
    /// Works until it is aborted.
    pub async fn run(self) {
        loop {
            if self.health.is_up()
                && let Err(error) = self.round().await
            {
                warn!("could not look for notices about limits, which is tried again: {error}");
            }
            tokio::time::sleep(self.pause.min(ROUND)).await;
        }
    }

    async fn round(&self) -> Result<(), StoreError> {
        let missed = notices::give_up(&self.database.connection().await?, LEASE).await?;
        self.metrics.limits.observe_notices(Outcome::GivenUp, missed.len());
        for missed in missed.iter().take(MAX_SAID) {
            let place = self.webhook.place();
            let (quota, threshold, tries) = (missed.quota, missed.threshold, missed.tries);
            warn!("gave up telling {place} that limit {quota} reached {threshold} %, after {tries} tries: its window is over");
        }
        if missed.len() > MAX_SAID {
            warn!("gave up {} more notices whose windows are over", missed.len() - MAX_SAID);
        }
        let mut failures = 0;
        while failures < MAX_FAILURES {
            let Some(notice) = notices::take(&self.database.connection().await?, LEASE).await? else { return Ok(()) };
            // Nobody waits for the webhook with a connection in hand.
            let outcome = post(&self.webhook, body(&notice)).await;
            let connection = self.database.connection().await?;
            match outcome {
                Ok(()) => {
                    failures = 0;
                    notices::sent(&connection, &notice).await?;
                    self.metrics.limits.observe_notices(Outcome::Sent, 1);
                    info!("told {} that limit {} reached {} %", self.webhook.place(), notice.used.quota.id, notice.threshold);
                }
                Err(reason) => {
                    failures += 1;
                    let pause = pause_after(notice.tries, self.pause);
                    notices::put_off(&connection, &notice, pause).await?;
                    self.metrics.limits.observe_notices(Outcome::Failed, 1);
                    warn!(
                        "could not tell {} that limit {} reached {} %, which is tried again in {} s: {reason}",
                        self.webhook.place(),
                        notice.used.quota.id,
                        notice.threshold,
                        pause.as_secs()
                    );
                }
            }
        }
        debug!("the webhook does not take notices: the others wait");
        Ok(())
    }
}

/// How long a notice waits after so many tries, of which the first waits for `first`: twice as long each time.
fn pause_after(tries: i32, first: Duration) -> Duration {
    let doubled = u32::try_from(tries).unwrap_or(0).saturating_sub(1).min(LONGEST_PAUSE.ilog2() + 1);
    first * (1 << doubled).min(LONGEST_PAUSE)
}

/// Posts in a thread of its own: those of the runtime are few, and a receiver may be slow.
async fn post(webhook: &Arc<Webhook>, body: String) -> Result<(), String> {
    let (tell, told) = oneshot::channel();
    let webhook = Arc::clone(webhook);
    let post = move || tell.send(webhook.post(&body));
    std::thread::Builder::new()
        .name("quota-webhook".to_owned())
        .spawn(post)
        .map_err(|error| format!("no thread can be started: {error}"))?;
    match told.await.unwrap_or_else(|_| Err("the thread ended".to_owned()))? {
        status if webhook::is_taken(status) => Ok(()),
        status => Err(format!("it answers with status {status}")),
    }
}

/// What is posted, described in `docs/quotas.md` and `docs/schema/quota-notice.json`.
fn body(notice: &Notice) -> String {
    let Notice { threshold, used, noted_at, .. } = notice;
    let (quota, starts) = (&used.quota, used.starts_at.timestamp());
    let id = format!("{}-{starts}-{threshold}-{}", quota.id, quota.name);
    page("quota.threshold", &id, *threshold, used, *noted_at).to_string()
}

/// A sample for trying the webhook: like a real notice but for its kind, and about a limit that does not exist.
pub fn sample(now: DateTime<Utc>) -> String {
    let text = |text: &str| text.to_owned();
    let quota = Quota {
        id: 0,
        kind: text("team"),
        name: text("sample"),
        models: text("%"),
        unit: text("tokens"),
        currency: String::new(),
        per: text("day"),
        amount: text("2000000"),
        mode: text("soft"),
    };
    let starts_at = now - chrono::TimeDelta::hours(12);
    let ends_at = now + chrono::TimeDelta::hours(12);
    let resets = ends_at.format("%Y-%m-%d %H:%M UTC").to_string();
    let used = Used { quota, used: text("1640000"), left: text("360000"), percent: 82.0, starts_at, ends_at, resets };
    page("quota.test", &format!("test-{}", now.timestamp()), 80, &used, now).to_string()
}

fn page(kind: &str, id: &str, threshold: i32, used: &Used, noted_at: DateTime<Utc>) -> Value {
    let time = |moment: DateTime<Utc>| moment.to_rfc3339_opts(SecondsFormat::Secs, true);
    let Used { quota, used: amount, left, percent, starts_at, ends_at, resets } = used;
    json!({
        "v": VERSION, "type": kind, "id": id, "text": sentence(threshold, used), "threshold": threshold,
        "limit": {"id": quota.id, "subject": quota.kind, "name": quota.name, "models": quota.models, "unit": quota.unit,
            "currency": quota.currency, "per": quota.per, "amount": number(&quota.amount), "mode": quota.mode},
        "used": number(amount), "left": number(left), "percent": (percent * 100.0).round() / 100.0,
        "starts_at": time(*starts_at), "resets_at": time(*ends_at), "resets": resets, "noted_at": time(noted_at),
    })
}

fn sentence(threshold: i32, used: &Used) -> String {
    let quota = &used.quota;
    let whose = match quota.kind.as_str() {
        "everybody" => "everybody together".to_owned(),
        "team" => format!("team {}", quota.name),
        _ => format!("user {}", quota.name),
    };
    let unit = if quota.unit == "cost" { &quota.currency } else { &quota.unit };
    let models = if quota.models == "%" { String::new() } else { format!(" of models {}", quota.models) };
    format!(
        "{whose}: {threshold} % of {} {unit} per {}{models} reached (limit {}, {}): {} used, all is there again at {}",
        grouped(&quota.amount),
        quota.per,
        quota.id,
        quota.mode,
        grouped(&used.used),
        used.resets
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end_growing() {
        let pauses = |tries: i32| pause_after(tries, Duration::from_secs(30)).as_secs();
        assert_eq!((1..8).map(pauses).collect::<Vec<_>>(), [30, 60, 120, 240, 480, 900, 900]);
        assert_eq!(pauses(i32::MAX), 900);
    }

    #[test]
    fn a_sentence_says_who_and_how_much() {
        let sample: Value = serde_json::from_str(&sample(DateTime::UNIX_EPOCH)).unwrap();
        assert_eq!(
            sample["text"],
            "team sample: 80 % of 2,000,000 tokens per day reached (limit 0, soft): 1,640,000 used, all is there again at 1970-01-01 12:00 UTC"
        );
    }
}
