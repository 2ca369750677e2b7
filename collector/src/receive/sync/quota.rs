//! The part of `POST /sync` about limits: what a node knows, and what it is answered. The contract is in `docs/contract.md`.

use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{MAX_WORKERS, is_name};
use crate::receive::Refusal;
use crate::store::pool::{PooledConnection, StoreError};
use crate::store::quotas;

/// Longest version and revision: a version names the transactions that were under way, some dozens.
const MAX_VERSION_BYTES: usize = 16_384;

/// An answer with everything adds up two months of thousands of users.
const TIMEOUT: Duration = Duration::from_secs(8);

/// What a node knows.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ToldQuota {
    version: Option<String>,
    revision: Option<String>,
    workers: Vec<String>,
}

impl ToldQuota {
    /// Refuses what no node asks.
    pub(super) fn check(&self) -> Result<(), Refusal> {
        if self.workers.len() > MAX_WORKERS {
            return Err(Refusal::NotABatch(format!("more than {MAX_WORKERS} workers with calls to be counted in one report")));
        }
        Ok(())
    }
}

/// What is committed, as of one moment. What the node cannot know is taken for nothing: then it is told everything.
pub(super) async fn answer(connection: PooledConnection<'_>, told: &ToldQuota) -> Result<Box<RawValue>, StoreError> {
    let known = |text: &Option<String>| text.clone().filter(|text| text.len() <= MAX_VERSION_BYTES && !text.contains('\0'));
    let workers: Vec<&str> = told.workers.iter().map(String::as_str).filter(|worker| is_name(worker)).collect();
    let (version, revision) = (known(&told.version), known(&told.revision));
    let connection = connection.with_timeout(TIMEOUT);
    let answer = quotas::sync(&connection, version.as_deref(), revision.as_deref(), &workers).await?;
    RawValue::from_string(answer).map_err(|error| StoreError::Unavailable(format!("the answer about limits is no JSON: {error}")))
}
