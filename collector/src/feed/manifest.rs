//! What lies beside each file: what is in it, so that whoever reads it years later can tell whether it is whole, and what became of it.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Written;
use crate::store::feed::columns::SCHEMA_VERSION;
use crate::store::feed::{Feed, Slice, Summary};

/// Earlier files of a slice that its manifest tells of; of older ones only their number is known.
const MOST_EARLIER: usize = 50;

/// The manifest of a file. Times are RFC 3339, money is decimal text: a number of JSON is read as a binary fraction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Name of the feed.
    pub feed: String,
    /// Version of the columns.
    pub schema_version: u32,
    /// Version of the collector that wrote the file.
    pub collector: String,
    /// The file, from the folder that the feed fills.
    pub file: String,
    /// Its rows began at this time or later.
    pub since: String,
    /// And before this one.
    pub until: String,
    /// 1, or more where rows came after earlier ones had been dropped from the table.
    pub part: i32,
    /// Whether what people wrote is in it.
    pub content: bool,
    /// Rows.
    pub rows: i64,
    /// Rows that have text in a column of its own; 0 without content.
    pub rows_with_content: i64,
    /// The highest `id`.
    pub last_id: i64,
    /// Sums of tokens.
    pub tokens: BTreeMap<String, i64>,
    /// Cost of tokens that were reported, by currency.
    pub cost: BTreeMap<String, String>,
    /// Cost of tokens that were estimated, by currency.
    pub estimated_cost: BTreeMap<String, String>,
    /// Size of the file.
    pub bytes: u64,
    /// SHA-256 of the file.
    pub sha256: String,
    /// 1, and one more each time the file was written again.
    pub revision: u32,
    /// When this revision was written.
    pub written_at: String,
    /// Earlier revisions, the last one first.
    pub earlier: Vec<Earlier>,
}

/// A file that another one took the place of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Earlier {
    /// Its number.
    pub revision: u32,
    /// When it was written.
    pub written_at: String,
    /// Its rows.
    pub rows: i64,
    /// Its SHA-256.
    pub sha256: String,
    /// What was different afterwards.
    pub replaced_because: Changes,
}

/// What happened to the rows of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// Rows that came late.
    pub late_rows: i64,
    /// Rows that were deleted.
    pub deleted_rows: i64,
    /// How many rows fewer have text; rows that were deleted among them.
    pub rows_without_their_content: i64,
    /// Whether they cost something else: prices were set for this time.
    pub cost: bool,
}

impl Manifest {
    /// The manifest of what was written, in the place of `before`.
    pub fn of(feed: &Feed, slice: &Slice, file: &str, summary: &Summary, written: &Written, before: Option<&Manifest>) -> Self {
        let time = |at: DateTime<Utc>| at.to_rfc3339_opts(SecondsFormat::Secs, true);
        let mut manifest = Self {
            feed: feed.name.clone(),
            schema_version: SCHEMA_VERSION,
            collector: env!("COLLECTOR_VERSION").to_owned(),
            file: file.to_owned(),
            since: time(slice.since),
            until: time(slice.until),
            part: slice.part,
            content: feed.has_content,
            rows: summary.rows,
            rows_with_content: if feed.has_content { summary.rows_with_content } else { 0 },
            last_id: summary.last_id,
            tokens: summary.tokens.iter().map(|(name, sum)| ((*name).to_owned(), *sum)).collect(),
            cost: summary.costs.iter().map(|(currency, cost, _)| (currency.clone(), cost.clone())).collect(),
            estimated_cost: summary.costs.iter().map(|(currency, _, cost)| (currency.clone(), cost.clone())).collect(),
            bytes: written.bytes,
            sha256: written.sha256.clone(),
            revision: 1,
            written_at: time(Utc::now()),
            earlier: Vec::new(),
        };
        match before {
            None => {}
            Some(before) if before.sha256 == manifest.sha256 => {
                manifest.revision = before.revision;
                manifest.written_at.clone_from(&before.written_at);
                manifest.earlier.clone_from(&before.earlier);
            }
            Some(before) => {
                manifest.revision = before.revision.saturating_add(1);
                let replaced = Earlier {
                    revision: before.revision,
                    written_at: before.written_at.clone(),
                    rows: before.rows,
                    sha256: before.sha256.clone(),
                    replaced_because: manifest.changes_since(before, summary.later_rows),
                };
                manifest.earlier = std::iter::once(replaced).chain(before.earlier.iter().cloned()).take(MOST_EARLIER).collect();
            }
        }
        manifest
    }

    fn changes_since(&self, before: &Manifest, late_rows: i64) -> Changes {
        Changes {
            late_rows,
            deleted_rows: before.rows.saturating_add(late_rows).saturating_sub(self.rows),
            rows_without_their_content: before.rows_with_content.saturating_sub(self.rows_with_content).max(0),
            cost: (&before.cost, &before.estimated_cost) != (&self.cost, &self.estimated_cost),
        }
    }

    /// Whether the rows cost what the manifest says.
    pub fn costs_as(&self, summary: &Summary) -> bool {
        let is_one =
            |costs: &BTreeMap<String, String>, now: &str, currency: &str| costs.get(currency).is_some_and(|cost| cost == now);
        self.cost.len() == summary.costs.len()
            && summary.costs.iter().all(|(currency, cost, estimated)| {
                is_one(&self.cost, cost, currency) && is_one(&self.estimated_cost, estimated, currency)
            })
    }

    /// From JSON.
    pub fn read(json: &Value) -> Result<Self> {
        serde_json::from_value(json.clone()).context("the database holds a manifest that this version cannot read")
    }

    /// As JSON.
    pub fn json(&self) -> Result<Value> {
        Ok(serde_json::to_value(self)?)
    }
}
