//! The feed: slices of `llm_logs` that are over, copied to where they are kept for years.
//!
//! PostgreSQL says what is due ([`crate::store::feed`]), a [`Sink`] takes the rows. What a sink was given is seen by nobody until it is
//! whole; then it takes the place of what was there of the slice before, and only then PostgreSQL notes it. So a worker that dies at any
//! moment leaves a slice that is done once more, and nothing twice: the same rows make the same bytes.
//!
//! A slice whose rows changed since it was copied is copied again, and its manifest says so: rows came late, were erased, or lost their
//! content. Rows that the row clock dropped are no change: from then on the copy is what there is of them.
//!
//! Invariants: one worker at a time for each feed; memory is bounded by [`AHEAD_BYTES`] and by what a sink holds; a slice that fails holds
//! up no other.

pub mod folder;
pub mod manifest;
mod money;
mod parquet;

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use futures_util::TryStreamExt;
use log::{error, info};
use tokio::sync::mpsc;
use tokio_postgres::Row;

use crate::counted::counted;
use crate::store::feed::{self as notes, Computed, Feed, PricePeriod, Slice};
use crate::store::pool::StoreError;
use crate::store::session::Session;
use manifest::Manifest;

/// Rows on their way from PostgreSQL to a sink: pieces of this many bytes, so that handing them over costs nothing, and a few of them. While
/// the sink is at one the server makes the next.
const PIECE_BYTES: usize = 1 << 20;
const AHEAD_PIECES: usize = 4;

/// The most that is on its way, rows larger than a piece aside.
pub const AHEAD_BYTES: usize = PIECE_BYTES * (AHEAD_PIECES + 2);

/// Where slices go. It may block.
pub trait Sink: Send + Sync + std::fmt::Debug {
    /// Begins a slice. Nobody sees anything of it.
    fn begin(&self, slice: &Slice, computed: Computed, prices: &[PricePeriod]) -> Result<Box<dyn Writing>>;

    /// What was written takes the place of what was there of the slice, and the manifest with it.
    fn publish(&self, slice: &Slice, manifest: &Manifest) -> Result<()>;

    /// Under which name it will be known.
    fn file_name(&self, slice: &Slice) -> String;
}

/// A slice that is being written. Without [`Writing::finish`] nothing of it is left.
pub trait Writing {
    /// The next row.
    fn row(&mut self, row: &Row) -> Result<()>;

    /// All rows are there: what was written is safe, and not to be seen yet.
    fn finish(self: Box<Self>) -> Result<Written>;
}

/// What was written of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Rows.
    pub rows: i64,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 in hexadecimal digits.
    pub sha256: String,
}

/// What a round did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Round {
    /// Slices that are there for the first time.
    pub written: usize,
    /// Slices that took the place of what was there.
    pub replaced: usize,
    /// Slices that turned out to be as they were.
    pub unchanged: usize,
    /// Slices that failed; the next round tries them again.
    pub failed: usize,
    /// Rows that were written.
    pub rows: i64,
}

/// What became of a slice.
#[derive(Debug)]
enum Outcome {
    Written(Box<Manifest>),
    Replaced(Box<Manifest>),
    Unchanged,
}

/// Copies all that is due. To be called with the feed's lock held. `tell` hears of each slice: which of how many.
pub async fn round(session: &Session, feed: &Feed, sink: &Arc<dyn Sink>, tell: impl Fn(usize, usize)) -> Result<Round> {
    let sealed = notes::seal_gone(session, feed).await?;
    if sealed > 0 {
        info!("{} no longer in the table; what was copied of them stays", counted(sealed, "slice is", "slices are"));
    }
    let due = notes::due(session, feed).await?;
    let mut round = Round::default();
    let mut failure = None;
    for (position, slice) in due.iter().enumerate() {
        tell(position, due.len());
        let name = sink.file_name(slice);
        match copy(session, feed, sink, slice).await {
            Ok(Outcome::Written(manifest)) => {
                info!("{name}: {}, {} bytes", counted(manifest.rows, "row", "rows"), manifest.bytes);
                round.written += 1;
                round.rows += manifest.rows;
            }
            Ok(Outcome::Replaced(manifest)) => {
                info!("{name}: written again, {}, {} bytes", counted(manifest.rows, "row", "rows"), manifest.bytes);
                round.replaced += 1;
                round.rows += manifest.rows;
            }
            Ok(Outcome::Unchanged) => round.unchanged += 1,
            Err(cause) => {
                error!("{name} is not copied, which is tried again by the next round: {cause:#}");
                round.failed += 1;
                failure = Some(format!("{name}: {cause:#}"));
                // A connection that is gone is for the caller; on one that works a look that has failed is over.
                notes::end(session).await?;
            }
        }
    }
    notes::note_round(session, feed, failure.as_deref()).await?;
    Ok(round)
}

async fn copy(session: &Session, feed: &Feed, sink: &Arc<dyn Sink>, slice: &Slice) -> Result<Outcome> {
    let before = slice.before.as_ref().map(|copied| Manifest::read(&copied.manifest)).transpose()?;
    notes::begin(session).await?;
    let summary = notes::summary(session, slice, before.as_ref().map_or(0, |manifest| manifest.last_id)).await?;
    let state_before = slice.before.as_ref().map(|copied| copied.state.as_str());
    if let Some(before) = before.as_ref().filter(|before| state_before == Some(&summary.state) && before.costs_as(&summary)) {
        notes::end(session).await?;
        notes::note(session, feed, slice, &summary.state, &before.json()?).await?;
        return Ok(Outcome::Unchanged);
    }
    let written = write(session, feed, sink, slice).await?;
    notes::end(session).await?;
    ensure!(written.rows == summary.rows, "{} rows were written and there are {}", written.rows, summary.rows);
    let file = sink.file_name(slice);
    let manifest = Manifest::of(feed, slice, &file, &summary, &written, before.as_ref());
    let (taker, place, published) = (Arc::clone(sink), slice.clone(), manifest.clone());
    tokio::task::spawn_blocking(move || taker.publish(&place, &published)).await??;
    notes::note(session, feed, slice, &summary.state, &manifest.json()?).await?;
    Ok(match before {
        None => Outcome::Written(Box::new(manifest)),
        // Of rows that were only written anew the same bytes are made.
        Some(before) if before.revision == manifest.revision => Outcome::Unchanged,
        Some(_) => Outcome::Replaced(Box::new(manifest)),
    })
}

/// Leads the rows to the sink, which works in a thread of its own: compressing takes as long as reading.
async fn write(session: &Session, feed: &Feed, sink: &Arc<dyn Sink>, slice: &Slice) -> Result<Written> {
    let prices = notes::price_periods(session).await?;
    let (stream, computed) = notes::rows(session, feed, slice).await?;
    let (send, mut receive) = mpsc::channel::<Vec<Row>>(AHEAD_PIECES);
    let (all_read, is_whole) = std::sync::mpsc::channel::<()>();
    let (taker, place) = (Arc::clone(sink), slice.clone());
    let writing = tokio::task::spawn_blocking(move || -> Result<Written> {
        let mut writing = taker.begin(&place, computed, &prices)?;
        while let Some(rows) = receive.blocking_recv() {
            rows.iter().try_for_each(|row| writing.row(row))?;
        }
        // The rows are at an end also where reading them failed.
        is_whole.recv().context("not all rows could be read")?;
        writing.finish()
    });
    let read = async {
        tokio::pin!(stream);
        let (mut piece, mut bytes) = (Vec::new(), 0);
        while let Some(row) = stream.try_next().await? {
            bytes += row.raw_size_bytes();
            piece.push(row);
            if bytes >= PIECE_BYTES {
                bytes = 0;
                // Whoever takes them has given up, and says why.
                if send.send(std::mem::take(&mut piece)).await.is_err() {
                    return Ok(());
                }
            }
        }
        let _ = send.send(piece).await;
        let _ = all_read.send(());
        Ok(())
    };
    let read: Result<(), StoreError> = read.await;
    drop(send);
    drop(all_read);
    let written = writing.await?;
    read?;
    written
}
