//! The way of a request body: decode, extract, store. Shared by `POST /log`, `replay` and `rejected retry`.

use std::sync::Arc;

use bytes::Bytes;

use crate::decode::json::Json;
use crate::decode::{self, DecodeError, Limits};
use crate::extract::{self, privacy::Privacy, redact::Secrets};
use crate::measure::Metrics;
use crate::panics;
use crate::store::pool::StoreError;
use crate::store::rejected::Rejected;
use crate::store::{Batch, Item, Outcome, Sequence, Store};

/// Raw bytes that are decoded and stored together. A larger request is worked off in parts, because its entries take several
/// times their size while they are decoded; a batch of 200 usual entries is far smaller and stays one statement.
const PART_BYTES: usize = 16 << 20;

/// Requests from this size on are decoded on a thread of their own: a millisecond of parsing must not hold up the others.
const INLINE_BYTES: usize = 64 << 10;

/// Why a request was not taken.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// Nothing in it can ever be stored.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// It cannot be made safe now.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Decode, extract, store.
#[derive(Debug, Clone)]
pub struct Pipeline {
    /// Bounds on decoding.
    pub limits: Limits,
    /// What is never stored of what Kong says.
    pub secrets: Arc<Secrets>,
    /// What is not stored of what users and models say.
    pub privacy: Arc<Privacy>,
    /// Where entries go.
    pub store: Store,
    /// What is measured.
    pub metrics: Arc<Metrics>,
}

impl Pipeline {
    /// Takes a request body: one entry or a batch. Returns once every entry is safe.
    pub async fn take(&self, body: Bytes) -> Result<Outcome, PipelineError> {
        // Bytes that are no UTF-8 cost a copy of the body, in the rare case.
        let text = match decode::text(&body) {
            std::borrow::Cow::Borrowed(_) => body,
            std::borrow::Cow::Owned(mended) => Bytes::from(mended),
        };
        let parts = parts(&text)?;
        self.metrics.observe_batch(parts.iter().map(Vec::len).sum());
        let mut outcome = Outcome::default();
        for part in parts.into_iter().filter(|part| !part.is_empty()) {
            outcome += self.store.store(self.read(part).await).await?;
        }
        Ok(outcome)
    }

    /// Decodes elements, off the caller's thread when there is much to do.
    pub async fn read(&self, elements: Vec<Bytes>) -> Batch {
        if elements.iter().map(Bytes::len).sum::<usize>() < INLINE_BYTES {
            return read(&elements, self.limits, &self.secrets, &self.privacy);
        }
        let (limits, secrets, privacy) = (self.limits, Arc::clone(&self.secrets), Arc::clone(&self.privacy));
        let on_record = elements.clone();
        match tokio::task::spawn_blocking(move || read(&elements, limits, &secrets, &privacy)).await {
            Ok(batch) => batch,
            // A panic in decode or extract is a bug of ours, and still no entry may be lost over it.
            Err(error) => Batch {
                items: Vec::new(),
                rejected: on_record
                    .iter()
                    .map(|raw| rejected(&String::from_utf8_lossy(raw), &self.secrets, panics::reason(&error).to_owned()))
                    .collect(),
            },
        }
    }
}

/// The elements of a body, in parts of bounded size.
fn parts(text: &Bytes) -> Result<Vec<Vec<Bytes>>, DecodeError> {
    // `decode::text` made sure of UTF-8; an empty text is refused as such.
    let elements = decode::elements(std::str::from_utf8(text).unwrap_or_default())?;
    let mut parts: Vec<Vec<Bytes>> = vec![Vec::new()];
    let mut size = 0;
    for element in elements {
        if size > 0 && size + element.len() > PART_BYTES {
            parts.push(Vec::new());
            size = 0;
        }
        size += element.len();
        if let Some(part) = parts.last_mut() {
            part.push(text.slice_ref(element.as_bytes()));
        }
    }
    Ok(parts)
}

/// Decodes and extracts each element; what is no entry is to be rejected.
fn read(elements: &[Bytes], limits: Limits, secrets: &Secrets, privacy: &Privacy) -> Batch {
    let mut batch = Batch::default();
    for raw in elements {
        let text = String::from_utf8_lossy(raw);
        match decode::entry::decode(&text, limits) {
            Ok(entry) => batch.items.push(Item {
                sequence: sequence(&entry.fields),
                call: extract::call(&entry, secrets, privacy),
                raw: raw.clone(),
            }),
            Err(error) => batch.rejected.push(rejected(&text, secrets, error.to_string())),
        }
    }
    batch
}

fn rejected(raw: &str, secrets: &Secrets, reason: String) -> Rejected {
    let kept = secrets.scrub_raw(raw);
    match Json::parse(raw) {
        Ok(fields) => {
            let kept = decode::entry::with_identity(kept, &decode::entry::request_id(raw, &fields));
            Rejected { raw: kept.into(), reason, sequence: sequence(&fields) }
        }
        Err(_) => Rejected { raw: kept.into(), reason, sequence: None },
    }
}

/// Largest number of an entry: beyond it Lua's numbers do not count one by one any more.
const MAX_SEQUENCE: i64 = 1 << 53;

/// The number that the llm-audit plugin gave an entry.
pub fn sequence(fields: &Json<'_>) -> Option<Sequence> {
    let worker = fields.at(&["llm", "worker"])?.as_str()?.to_owned();
    let number = fields.at(&["llm", "seq"])?.as_i64().filter(|number| (1..=MAX_SEQUENCE).contains(number))?;
    Some(Sequence { worker, number })
}
