//! The way of a request body: decode, extract, store. Shared by `POST /log`, the drain, `replay` and `rejected retry`.
//!
//! Invariants: what entries become while they are decoded, and the rows until they are safe, has a share of [`memory`]; entries are
//! decoded a portion at a time, so that no body, however large or compressed, takes more. An entry that cannot be read, or over which
//! the reader stumbles, costs itself. Who has to answer in time says so, and gets an answer in time: what would be too late goes to
//! the spool as it came.

pub mod memory;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use bytestring::ByteString;

use crate::decode::json::Json;
use crate::decode::{self, DecodeError, Elements, EntryError, Limits};
use crate::extract::{self, privacy::Privacy, redact::Secrets, refused};
use crate::measure::Metrics;
use crate::panics;
use crate::store::pool::StoreError;
use crate::store::rejected::Rejected;
use crate::store::{Batch, Item, Outcome, Raw, Sequence, Store, last_attempt};
use memory::{Cost, Memory, Share};

/// What the rows of a portion weigh, roughly: one statement. A batch of 200 usual entries is half of it and stays one statement.
const PORTION_BYTES: usize = 8 << 20;

/// Entries of a usual batch: what Kong's http-log plugin is told to send together.
const USUAL_ENTRIES: usize = 200;

/// Raw bytes and entries that are looked at together.
const WAITING_BYTES: usize = 16 << 20;
const WAITING_ENTRIES: usize = 1_000;

/// Portions whose rows may weigh as much are decoded on a thread of their own: a millisecond of parsing must not hold up the others.
const INLINE_BYTES: usize = 512 << 10;

/// Elements without meaning that are kept on record one by one in a portion; beyond it they are kept together, or a body of a million
/// empty objects would become a million records.
const MAX_REJECTED: usize = 100;

/// Bytes of elements that are kept on record together.
const MAX_REJECTED_BYTES: usize = 64 << 10;

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
    /// Reads entries.
    pub reader: Reader,
    /// Memory for what they become.
    pub memory: Memory,
    /// Where entries go.
    pub store: Store,
    /// What is measured.
    pub metrics: Arc<Metrics>,
}

/// Decode and extract.
#[derive(Debug, Clone)]
pub struct Reader {
    /// Bounds on decoding.
    pub limits: Limits,
    /// What is never stored of what Kong says.
    pub secrets: Arc<Secrets>,
    /// What is not stored of what users and models say.
    pub privacy: Arc<Privacy>,
}

/// Entries as they came, of which not all were looked at yet.
#[derive(Debug)]
pub struct Entries {
    rest: ByteString,
    work: usize,
    in_array: bool,
}

/// Entries that were read, with the memory that they take.
#[derive(Debug)]
pub struct Portion {
    /// The entries.
    pub batch: Batch,
    _share: Share,
}

impl Entries {
    /// The entries of a request body: one, or a batch.
    pub fn of_body(body: Bytes) -> Result<Self, DecodeError> {
        let text = decode::owned_text(body);
        let Elements { rest, work, in_array } = decode::elements(&text)?;
        Ok(Self { rest: text.slice_ref(rest), work, in_array })
    }

    /// The entries of a part of a batch: whole elements, and behind the last one the end of the array.
    pub fn inside_array(part: Bytes) -> Self {
        let text = decode::owned_text(part);
        let Elements { rest, work, in_array } = Elements::inside(&text);
        Self { rest: text.slice_ref(rest), work, in_array }
    }

    /// Takes the next entries as they stand; `false` when there were none.
    pub fn look(&mut self, waiting: &mut VecDeque<ByteString>) -> bool {
        let text = self.rest.clone();
        let mut elements = Elements { rest: &text, work: self.work, in_array: self.in_array };
        let mut bytes: usize = waiting.iter().map(|raw| raw.len()).sum();
        while bytes < WAITING_BYTES && waiting.len() < WAITING_ENTRIES {
            let Some(element) = elements.next() else { break };
            bytes += element.len();
            waiting.push_back(text.slice_ref(element));
        }
        self.rest = text.slice_ref(elements.rest);
        self.work = elements.work;
        !waiting.is_empty()
    }
}

impl Pipeline {
    /// Takes a request body: one entry or a batch. Returns once every entry is safe.
    pub async fn take(&self, body: Bytes) -> Result<Outcome, PipelineError> {
        self.take_by(Entries::of_body(body)?, None).await
    }

    /// Takes entries, and returns at `answer_by` or shortly after at the latest.
    pub async fn take_by(&self, mut entries: Entries, answer_by: Option<Instant>) -> Result<Outcome, PipelineError> {
        let mut outcome = Outcome::default();
        let mut waiting = VecDeque::new();
        let mut count = 0;
        loop {
            let known = waiting.len();
            if !entries.look(&mut waiting) {
                break;
            }
            count += waiting.len() - known;
            outcome += match self.next_portion(&mut waiting, answer_by).await {
                Some(portion) => self.store.store(portion.batch, answer_by).await?,
                None => self.spool(std::mem::take(&mut waiting)).await?,
            };
        }
        self.metrics.observe_batch(count);
        Ok(outcome)
    }

    /// Reads entries from the front of `waiting`, which must not be empty. `None` when there is no memory for them in time.
    pub async fn next_portion(&self, waiting: &mut VecDeque<ByteString>, answer_by: Option<Instant>) -> Option<Portion> {
        let costs = waiting.iter().map(|raw| Cost::of(raw, self.reader.limits));
        let (rows, row, work) =
            costs.fold((0, 0, 0), |(rows, row, work), cost| (rows + cost.row, cost.row.max(row), cost.work.max(work)));
        let share = self.memory.share(rows.min(PORTION_BYTES + row) + work);
        let mut share = match answer_by {
            None => share.await?,
            Some(answer_by) => tokio::time::timeout_at(last_attempt(answer_by).into(), share).await.ok()??,
        };
        let batch = if rows < INLINE_BYTES {
            self.reader.read(waiting)
        } else {
            let (reader, mut taken) = (self.reader.clone(), std::mem::take(waiting));
            let read = tokio::task::spawn_blocking(move || {
                let batch = reader.read(&mut taken);
                (batch, taken)
            });
            // It does not panic, so this is the end of the process.
            let (batch, left) = read.await.ok()?;
            *waiting = left;
            batch
        };
        share.shrink_to(batch.weight());
        Some(Portion { batch, _share: share })
    }

    /// Puts entries into the spool that there is no time to read.
    async fn spool(&self, waiting: VecDeque<ByteString>) -> Result<Outcome, StoreError> {
        let identified = tokio::task::spawn_blocking(move || waiting.into_iter().map(as_it_came).collect()).await;
        let raws: Vec<Raw> = identified.map_err(|error| StoreError::Unavailable(panics::reason(&error).to_owned()))?;
        self.store.spool(raws).await
    }

    /// Puts on record what is no entry.
    pub async fn reject(&self, raw: &[u8], reason: String, answer_by: Option<Instant>) -> Result<Outcome, StoreError> {
        let raw = self.reader.secrets.scrub_raw(&String::from_utf8_lossy(raw));
        let rejected = vec![Rejected { raw: raw.into(), reason, sequence: None }];
        self.store.store(Batch { items: Vec::new(), rejected }, answer_by).await
    }
}

impl Reader {
    /// Decodes and extracts entries from the front of `waiting` until they weigh as much as a portion; what is no entry is to be
    /// rejected.
    pub fn read(&self, waiting: &mut VecDeque<ByteString>) -> Batch {
        // A call has many columns: room for a usual batch, so that they are not moved from one vector to the next.
        let mut batch = Batch { items: Vec::with_capacity(waiting.len().min(USUAL_ENTRIES)), rejected: Vec::new() };
        let mut weight = 0;
        while weight < PORTION_BYTES {
            let Some(raw) = waiting.pop_front() else { break };
            // A panic in decode or extract is a bug of ours, and still no entry may be lost over it, nor a second one.
            let read = catch_unwind(AssertUnwindSafe(|| self.read_one(&raw)));
            match read.unwrap_or_else(|_| Err(panics::CAUGHT.to_owned())) {
                Ok(item) => {
                    weight += item.weight();
                    batch.items.push(item);
                }
                Err(reason) => {
                    weight += raw.len();
                    self.reject(&mut batch, &raw, reason);
                }
            }
        }
        batch
    }

    fn read_one(&self, raw: &ByteString) -> Result<Item, String> {
        let whole = decode::entry::decode(raw, self.limits).map_err(|error: EntryError| error.to_string())?;
        let reduced = refused::reduced(&whole);
        let (entry, raw) = match &reduced {
            None => (&whole, raw.clone()),
            Some((small, text)) => (small, ByteString::from(text.as_str())),
        };
        let call = extract::call(entry, &self.secrets, &self.privacy);
        let refused = reduced.is_some().then(|| crate::store::refused::Entry::of(&call));
        Ok(Item { sequence: sequence(&entry.fields), call, raw, refused })
    }

    fn reject(&self, batch: &mut Batch, raw: &str, reason: String) {
        let mut scrubbed = self.secrets.scrub_raw(raw);
        let mut number = None;
        if let Ok(fields) = Json::parse(raw) {
            scrubbed = decode::entry::with_identity(scrubbed, &decode::entry::request_id(raw, &fields));
            number = sequence(&fields);
        }
        if batch.rejected.len() >= MAX_REJECTED
            && number.is_none()
            && let Some(last) = batch.rejected.last_mut().filter(|last| last.sequence.is_none() && last.reason == reason)
            && last.raw.len() + scrubbed.len() < MAX_REJECTED_BYTES
        {
            let mut together = std::mem::take(&mut last.raw).try_into_mut().unwrap_or_else(|raw| raw.as_ref().into());
            together.extend_from_slice(b",");
            together.extend_from_slice(scrubbed.as_bytes());
            last.raw = together.freeze();
            return;
        }
        batch.rejected.push(Rejected { raw: scrubbed.into(), reason, sequence: number });
    }
}

/// An entry that is to wait in the spool.
fn as_it_came(text: ByteString) -> Raw {
    let fields = Json::parse(&text).unwrap_or(Json::Null);
    let (request_id, sequence) = (decode::entry::request_id(&text, &fields), sequence(&fields));
    drop(fields);
    Raw { text, request_id, sequence }
}

/// Largest number of an entry: beyond it Lua's numbers do not count one by one any more.
const MAX_SEQUENCE: i64 = 1 << 53;

/// The number that the llm-audit plugin gave an entry.
pub fn sequence(fields: &Json<'_>) -> Option<Sequence> {
    let worker = fields.at(&["llm", "worker"])?.as_str()?.to_owned();
    let number = fields.at(&["llm", "seq"])?.as_i64().filter(|number| (1..=MAX_SEQUENCE).contains(number))?;
    Some(Sequence { worker, number })
}
