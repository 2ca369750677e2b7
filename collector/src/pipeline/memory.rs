//! Memory for entries on their way from bytes to rows, for all requests and the drain together.
//!
//! A body is bounded when it comes in, but what it becomes is larger, and some more than others: a tree of `[{},{},…]` is thirty times
//! its text. So whoever decodes first takes a share for the most that its entries can become, gives back what was not needed, and keeps the
//! rest until the rows are safe. Shares are handed out in the order in which they were asked for; nobody holds one while
//! asking for another, so they cannot wait for each other in a circle.

use std::sync::Arc;

use bytestring::ByteString;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::decode::json::MAX_TREE_BYTES;
use crate::decode::{Limits, inflate};

/// Bytes of a permit. Coarse, because a semaphore counts in 32 bits.
const UNIT: usize = 1 << 10;

/// Bytes of a row besides its texts, and of what is needed to make it.
const ROW_BYTES: usize = 4 << 10;

/// How many bytes of a tree one byte of JSON can become: `[[[0]],…]` with four places in each list.
const TREE_FACTOR: usize = 72;

/// Memory that is shared.
#[derive(Debug, Clone)]
pub struct Memory {
    permits: Arc<Semaphore>,
    units: u32,
}

/// A part of the memory; given back when dropped.
#[derive(Debug)]
pub struct Share(OwnedSemaphorePermit);

impl Memory {
    /// `bytes` to be shared, but room for one entry of the largest size at least.
    pub fn new(bytes: usize, limits: Limits) -> Self {
        let largest = 8 * limits.decoded_bytes + 3 * MAX_TREE_BYTES;
        let units = u32::try_from(bytes.max(largest).div_ceil(UNIT)).unwrap_or(u32::MAX);
        Self { permits: Arc::new(Semaphore::new(units as usize)), units }
    }

    /// A share of `bytes`, or of everything when that is less, as soon as it is free.
    pub async fn share(&self, bytes: usize) -> Option<Share> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).min(self.units);
        // It is never closed; if it were, nothing could be decoded any more.
        Arc::clone(&self.permits).acquire_many_owned(units).await.ok().map(Share)
    }
}

impl Share {
    /// Gives back what is over `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        let surplus = self.0.num_permits().saturating_sub(bytes.div_ceil(UNIT));
        drop(self.0.split(surplus));
    }
}

/// The most bytes that an entry takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// While it is decoded.
    pub work: usize,
    /// As a row.
    pub row: usize,
}

impl Cost {
    /// The most that the entry `raw` can take.
    pub fn of(raw: &ByteString, limits: Limits) -> Self {
        let most = if may_be_compressed(raw) { inflate::most(raw.len()) } else { raw.len() };
        let body = most.min(limits.decoded_bytes);
        Self {
            // The captured string in bytes, the body inflated, as text, and mended; then the trees of the entry and of two bodies.
            work: raw.len() + 3 * body + (3 * MAX_TREE_BYTES).min(TREE_FACTOR * (body + raw.len())),
            // Columns repeat what raw_log holds, and numbers may be written longer than they came.
            row: ROW_BYTES + 2 * body + (4 * body).min(2 * limits.decoded_bytes) + raw.len(),
        }
    }
}

/// Whether the entry names a content encoding, or may: an escape can hide a letter of the name.
fn may_be_compressed(raw: &str) -> bool {
    let bytes = raw.as_bytes();
    let word = |start: usize, word: &[u8]| bytes.get(start..start + word.len()).is_some_and(|at| at.eq_ignore_ascii_case(word));
    let mut from = 0;
    // Base64 has neither dashes nor backslashes, so this passes over it at the speed of memory.
    while let Some(found) = bytes.get(from..).and_then(|rest| memchr::memchr2(b'-', b'\\', rest)) {
        let at = from + found;
        let is_dash = bytes.get(at) == Some(&b'-');
        if is_dash && at >= 7 && word(at - 7, b"content") && word(at + 1, b"encoding") {
            return true;
        }
        // Escapes of control characters are none of letters.
        if !is_dash && word(at + 1, b"u00") && matches!(bytes.get(at + 4), Some(b'2'..=b'7')) {
            return true;
        }
        // What an escape escapes may be a backslash.
        from = at + if is_dash { 1 } else { 2 };
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { decoded_bytes: 8 << 20 };

    #[test]
    fn only_what_may_be_compressed_may_grow() {
        let plain = ByteString::from(r#"{"request":{"headers":{"accept-encoding":"gzip","content-type":"a"},"body":"e30="}}"#);
        let escaped = ByteString::from(r#"{"request":{"headers":{},"body":"a\\u0041-\u001b\n-\"-"}}"#);
        let named = ByteString::from(r#"{"request":{"headers":{"Content-Encoding":"gzip"},"body":"e30="}}"#);
        let hidden = ByteString::from(r#"{"request":{"headers":{"content\u002dencoding":"gzip"},"body":"e30="}}"#);
        for raw in [plain, escaped] {
            assert!(Cost::of(&raw, LIMITS).row < 6 << 10, "{raw}");
        }
        for raw in [named, hidden] {
            assert!(Cost::of(&raw, LIMITS).row > 256 << 10, "{raw}");
        }
    }

    #[tokio::test]
    async fn a_share_is_waited_for_until_there_is_room_and_given_back_in_parts() {
        let memory = Memory::new(0, LIMITS);
        let all = memory.units as usize * UNIT;
        let mut share = memory.share(usize::MAX).await.unwrap();
        let second = tokio::spawn({
            let memory = memory.clone();
            async move { memory.share(all / 2).await.unwrap() }
        });
        tokio::task::yield_now().await;
        assert!(!second.is_finished());
        share.shrink_to(all / 4);
        second.await.unwrap();
        assert_eq!(memory.permits.available_permits(), (all - all / 4) / UNIT);
        drop(share);
        assert_eq!(memory.permits.available_permits(), all / UNIT);
    }
}
