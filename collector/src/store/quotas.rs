//! Limits, and how far they are used (`sql/V15__quotas.sql`): one set of functions for nodes, commands, notices and gauges.

use chrono::{DateTime, Utc};
use tokio_postgres::Row;

use super::notices;
use super::pool::{PooledConnection, StoreError};

/// Limits at most: all of them are told to every node.
pub const MAX_QUOTAS: i64 = 1_000;

/// Ranges of numbers that are merged at once: some tens of milliseconds.
const PIECE: i32 = 2_000;

/// What a limit is for; together with the amount and the mode the whole limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// `each_user`, `user`, `team` or `everybody`.
    pub kind: &'static str,
    /// Name of the user or team, else empty.
    pub name: String,
    /// Pattern of models.
    pub models: String,
    /// `tokens`, `calls` or `cost`.
    pub unit: &'static str,
    /// Of a cost, else empty.
    pub currency: String,
    /// `hour`, `day`, `week` or `month`.
    pub per: &'static str,
}

/// A limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quota {
    /// Its number.
    pub id: i64,
    /// `each_user`, `user`, `team` or `everybody`.
    pub kind: String,
    /// Name of the user or team, else empty.
    pub name: String,
    /// Pattern of models.
    pub models: String,
    /// `tokens`, `calls` or `cost`.
    pub unit: String,
    /// Of a cost, else empty.
    pub currency: String,
    /// `hour`, `day`, `week` or `month`.
    pub per: String,
    /// Decimal text.
    pub amount: String,
    /// `hard`, `soft`, `wait` or `shadow`.
    pub mode: String,
}

impl Quota {
    /// As a person calls it: `team ml tokens per day`. Of one for each user whoever it is.
    pub fn label(&self) -> String {
        let whose = match self.kind.as_str() {
            "each_user" => "each user".to_owned(),
            "everybody" => "everybody".to_owned(),
            kind => format!("{kind} {}", self.name),
        };
        let unit = if self.unit == "cost" { &self.currency } else { &self.unit };
        let of = if self.models == "%" { String::new() } else { format!(" of {}", self.models) };
        format!("{whose} {unit} per {}{of}", self.per)
    }
}

/// How far a limit is used.
#[derive(Debug, Clone, PartialEq)]
pub struct Used {
    /// The limit; of one for each user its name is the user's.
    pub quota: Quota,
    /// Decimal text.
    pub used: String,
    /// What is left, not less than 0, as decimal text.
    pub left: String,
    /// The part that is used, as percent; of an amount of 0 it is 100.
    pub percent: f64,
    /// When the window began.
    pub starts_at: DateTime<Utc>,
    /// When it ends and all is there again.
    pub ends_at: DateTime<Utc>,
    /// The same on the site's clock, as `2026-11-28 00:00 Europe/Berlin`.
    pub resets: String,
}

pub(super) const COLUMNS: &str = "id, subject_kind, subject_name, models, unit, currency, per, trim_scale(amount)::text, mode";

pub(super) fn quota(row: &Row) -> Result<Quota, tokio_postgres::Error> {
    Ok(Quota {
        id: row.try_get(0)?,
        kind: row.try_get(1)?,
        name: row.try_get(2)?,
        models: row.try_get(3)?,
        unit: row.try_get(4)?,
        currency: row.try_get(5)?,
        per: row.try_get(6)?,
        amount: row.try_get(7)?,
        mode: row.try_get(8)?,
    })
}

/// All limits.
pub async fn list(connection: &PooledConnection<'_>) -> Result<Vec<Quota>, StoreError> {
    let query = format!(
        "SELECT {COLUMNS} FROM llm_quotas
        ORDER BY array_position(ARRAY['everybody', 'each_user', 'team', 'user'], subject_kind), subject_name COLLATE \"C\", id"
    );
    let rows = connection.bounded(connection.client().query(&query, &[])).await?;
    rows.iter().map(|row| Ok(quota(row)?)).collect()
}

/// Sets a limit, in place of one for the same. `None` when there are too many.
pub async fn set(connection: &PooledConnection<'_>, key: &Key, amount: &str, mode: &str) -> Result<Option<Quota>, StoreError> {
    let statement = format!(
        "INSERT INTO llm_quotas AS q (subject_kind, subject_name, models, unit, currency, per, amount, mode)
        SELECT $1::text, $2::text, $3::text, $4::text, $5::text, $6::text, $7::text::numeric, $8::text
        WHERE (SELECT count(*) FROM llm_quotas) < $9 OR EXISTS (SELECT FROM llm_quotas WHERE subject_kind = $1 AND subject_name = $2
            AND models = $3 AND unit = $4 AND currency = $5 AND per = $6)
        ON CONFLICT (subject_kind, subject_name, models, unit, currency, per) DO UPDATE SET amount = excluded.amount, mode = excluded.mode
        RETURNING {COLUMNS}"
    );
    let Key { kind, name, models, unit, currency, per } = key;
    let client = connection.client();
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 9] =
        [kind, name, models, unit, currency, per, &amount, &mode, &MAX_QUOTAS];
    let row = connection.bounded(client.query_opt(&statement, &parameters)).await?;
    Ok(row.as_ref().map(quota).transpose()?)
}

/// Removes a limit, by its number.
pub async fn remove(connection: &PooledConnection<'_>, id: i64) -> Result<Option<Quota>, StoreError> {
    let statement = format!("DELETE FROM llm_quotas WHERE id = $1 RETURNING {COLUMNS}");
    let row = connection.bounded(connection.client().query_opt(&statement, &[&id])).await?;
    Ok(row.as_ref().map(quota).transpose()?)
}

/// Removes all limits for the same: with any mode, and with any unit, pattern and time where these are `None`.
pub async fn remove_of(
    connection: &PooledConnection<'_>,
    kind: &str,
    name: &str,
    models: Option<&str>,
    unit: Option<&str>,
    per: Option<&str>,
) -> Result<Vec<Quota>, StoreError> {
    let statement = format!(
        "DELETE FROM llm_quotas WHERE subject_kind = $1 AND subject_name = $2 AND ($3::text IS NULL OR models = $3)
            AND ($4::text IS NULL OR unit = $4) AND ($5::text IS NULL OR per = $5) RETURNING {COLUMNS}"
    );
    let client = connection.client();
    let rows = connection.bounded(client.query(&statement, &[&kind, &name, &models, &unit, &per])).await?;
    rows.iter().map(|row| Ok(quota(row)?)).collect()
}

/// What [`used`] reads, of a row `s` as `llm_quota_state` has it; `site` is the site's clock.
pub(super) const USED_COLUMNS: &str = "s.quota_id, s.subject_kind, s.subject, s.models, s.unit, s.currency, s.per,
    trim_scale(s.amount)::text, s.mode, s.used::text, trim_scale(greatest(0, s.amount - s.used))::text,
    CASE WHEN s.amount = 0 THEN 100 ELSE s.used / s.amount * 100 END::float8 AS percent, s.starts_at, s.ends_at,
    to_char(s.ends_at AT TIME ZONE site.zone, 'YYYY-MM-DD HH24:MI ') || site.zone";

pub(super) fn used(row: &Row) -> Result<Used, tokio_postgres::Error> {
    Ok(Used {
        quota: quota(row)?,
        used: row.try_get(9)?,
        left: row.try_get(10)?,
        percent: row.try_get(11)?,
        starts_at: row.try_get(12)?,
        ends_at: row.try_get(13)?,
        resets: row.try_get(14)?,
    })
}

/// How far limits are used now: the fullest first, at most `most`. With a user what holds for this one, for his team and for everybody together.
pub async fn state(connection: &PooledConnection<'_>, user: Option<&str>, most: i64) -> Result<Vec<Used>, StoreError> {
    let query = state_query("");
    let rows = connection.bounded(connection.client().query(&query, &[&most, &user])).await?;
    rows.iter().map(|row| Ok(used(row)?)).collect()
}

/// The same, and notes which limits passed a threshold (see [`super::notices`]).
pub async fn state_noting(connection: &PooledConnection<'_>, most: i64) -> Result<Vec<Used>, StoreError> {
    let query = state_query(notices::NOTING);
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 3] = [&most, &None::<&str>, &notices::THRESHOLDS.as_slice()];
    let rows = connection.bounded(connection.client().query(&query, &parameters)).await?;
    rows.iter().map(|row| Ok(used(row)?)).collect()
}

fn state_query(beside: &str) -> String {
    format!(
        "WITH state AS MATERIALIZED (SELECT * FROM llm_quota_state(now(), $2)){beside}
        SELECT {USED_COLUMNS} FROM state s CROSS JOIN (SELECT llm_site_zone() AS zone) site
        ORDER BY percent DESC, s.quota_id, s.subject COLLATE \"C\" LIMIT $1"
    )
}

/// What a node is answered that has the usage as of `version` and limits as of `revision`: JSON, described in `docs/contract.md`.
pub async fn sync(
    connection: &PooledConnection<'_>,
    version: Option<&str>,
    revision: Option<&str>,
    workers: &[&str],
) -> Result<String, StoreError> {
    let client = connection.client();
    connection.bounded(client.execute("SELECT llm_know_cluster()", &[])).await?;
    let query = "SELECT llm_quota_sync($1, $2, $3)";
    Ok(connection.bounded(client.query_one(query, &[&version, &revision, &workers])).await?.try_get(0)?)
}

/// Merges ranges of numbers that were counted. `true` when there may be more.
pub async fn merge_piece(connection: &PooledConnection<'_>) -> Result<bool, StoreError> {
    let row = connection.bounded(connection.client().query_one("SELECT llm_merge_counted_ranges($1)", &[&PIECE])).await?;
    Ok(row.try_get::<_, i64>(0)? >= i64::from(PIECE))
}

/// Forgets the counted numbers of workers that ended long ago.
pub async fn forget(connection: &PooledConnection<'_>) -> Result<(), StoreError> {
    connection.bounded(connection.client().execute("SELECT llm_forget_counted_ranges()", &[])).await.map(drop)
}
