//! Memory for request bodies, counted in bytes as they arrive.
//!
//! Room is taken for what has come, not for what was announced: two connections that announce the most and send nothing hold nothing.
//! Bodies that each hold a part and wait for the rest must not wait for each other: the one that began first may wait for room,
//! the others are refused at once and come again. And whoever holds room and sends little or nothing gives way to those who find none:
//! nobody can hold it by standing still, and somebody always gets on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::measure::Metrics;

/// Who sends fewer bytes than this in that time gives way. A gateway on the same host or network sends a hundred times as many.
const LEAST_BYTES: usize = 256 << 10;
const LEAST_TIME: Duration = Duration::from_secs(2);

/// How long room is waited for: until those who give way have noticed, or the rows of others are safe.
const WAIT: Duration = Duration::from_secs(2);

/// Memory for request bodies.
#[derive(Debug, Clone)]
pub struct Room {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limit: usize,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct State {
    taken: usize,
    /// Bodies that are arriving, in the order in which they began.
    arriving: BTreeMap<u64, Arrival>,
    next: u64,
}

#[derive(Debug)]
struct Arrival {
    /// Since when `bytes` came.
    since: Instant,
    bytes: usize,
    last: Instant,
    /// It has sent, and waits for us.
    is_waiting: bool,
    give_way: Arc<Notify>,
    is_told: bool,
}

impl Arrival {
    fn new(give_way: Arc<Notify>) -> Self {
        let now = Instant::now();
        Self { since: now, bytes: 0, last: now, is_waiting: false, give_way, is_told: false }
    }

    fn note(&mut self, bytes: usize) {
        self.last = Instant::now();
        if self.last.duration_since(self.since) > LEAST_TIME {
            (self.since, self.bytes) = (self.last, 0);
        }
        self.bytes += bytes;
    }

    fn is_slow(&self) -> bool {
        !self.is_waiting && (self.last.elapsed() > LEAST_TIME || self.since.elapsed() > LEAST_TIME && self.bytes < LEAST_BYTES)
    }
}

/// A part of the room; given back when dropped.
#[derive(Debug)]
pub struct Place {
    number: u64,
    bytes: usize,
    give_way: Arc<Notify>,
    shared: Arc<Shared>,
}

impl Room {
    /// Room for `limit` bytes.
    pub fn new(limit: usize, metrics: Arc<Metrics>) -> Self {
        Self { shared: Arc::new(Shared { limit, metrics, state: Mutex::default(), freed: Notify::new() }) }
    }

    /// A place for a body that begins to arrive; it takes no room yet.
    pub fn enter(&self) -> Place {
        let give_way = Arc::new(Notify::new());
        let mut state = self.shared.state();
        let number = state.next;
        state.next += 1;
        state.arriving.insert(number, Arrival::new(Arc::clone(&give_way)));
        Place { number, bytes: 0, give_way, shared: Arc::clone(&self.shared) }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What came of asking for room.
enum Asked {
    Granted,
    Wait,
    Refused,
}

impl Place {
    /// Takes more room, waiting for it where that helps; `false` when there is none.
    pub async fn grow(&mut self, more: usize) -> bool {
        let shared = Arc::clone(&self.shared);
        let until = tokio::time::Instant::now() + WAIT;
        loop {
            let freed = shared.freed.notified();
            tokio::pin!(freed);
            // From here on nothing that is given back is missed.
            freed.as_mut().enable();
            match self.ask(more) {
                Asked::Granted => return true,
                Asked::Refused => return false,
                Asked::Wait => {}
            }
            if tokio::time::timeout_at(until, freed).await.is_err() {
                return false;
            }
        }
    }

    fn ask(&mut self, more: usize) -> Asked {
        let mut state = self.shared.state();
        let fits = state.taken.saturating_add(more) <= self.shared.limit;
        if let Some(arrival) = state.arriving.get_mut(&self.number) {
            arrival.note(if fits { more } else { 0 });
            arrival.is_waiting = !fits;
        }
        if fits {
            state.taken += more;
            self.bytes += more;
            self.shared.metrics.set_queue_bytes(state.taken);
            return Asked::Granted;
        }
        if self.bytes + more > self.shared.limit {
            return Asked::Refused;
        }
        let is_first = state.arriving.first_key_value().is_some_and(|(first, _)| *first == self.number);
        let mut gives_way = false;
        for (number, arrival) in &mut state.arriving {
            if *number != self.number && (arrival.is_told || arrival.is_slow()) {
                gives_way = true;
                if !std::mem::replace(&mut arrival.is_told, true) {
                    arrival.give_way.notify_one();
                }
                break;
            }
        }
        if is_first || gives_way { Asked::Wait } else { Asked::Refused }
    }

    /// Waits until others need the room more than a body that takes so long.
    pub async fn told_to_give_way(&self) {
        self.give_way.notified().await;
    }

    /// The body is there: from now on it does not give way.
    pub fn arrived(&self) {
        self.shared.state().arriving.remove(&self.number);
    }

    /// Gives back what is over `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        let surplus = self.bytes.saturating_sub(bytes);
        self.bytes -= surplus;
        let mut state = self.shared.state();
        state.taken = state.taken.saturating_sub(surplus);
        self.shared.metrics.set_queue_bytes(state.taken);
        drop(state);
        self.shared.freed.notify_waiters();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.arrived();
        self.shrink_to(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(limit: usize) -> Room {
        Room::new(limit, Arc::new(Metrics::new()))
    }

    #[tokio::test]
    async fn a_body_that_has_sent_nothing_holds_nothing() {
        let room = room(100);
        let _idle: Vec<Place> = (0..1_000).map(|_| room.enter()).collect();
        let mut place = room.enter();
        assert!(place.grow(100).await);
        place.shrink_to(40);
        assert!(room.enter().grow(60).await);
    }

    #[tokio::test]
    async fn of_bodies_that_wait_for_each_other_the_first_goes_on_and_the_others_are_refused() {
        let room = room(100);
        let (mut first, mut second) = (room.enter(), room.enter());
        assert!(first.grow(50).await && second.grow(50).await);
        assert!(!second.grow(1).await);
        let waiting = tokio::spawn(async move { first.grow(1).await });
        tokio::task::yield_now().await;
        drop(second);
        assert!(waiting.await.unwrap());
    }

    /// Makes it later for one that arrives.
    fn age(room: &Room, place: &Place) {
        let mut state = room.shared.state();
        let arrival = state.arriving.get_mut(&place.number).unwrap();
        arrival.since = arrival.since.checked_sub(LEAST_TIME * 2).unwrap();
        arrival.last = arrival.last.checked_sub(LEAST_TIME * 2).unwrap();
    }

    #[tokio::test]
    async fn who_sends_little_gives_way_and_who_sends_much_does_not() {
        let limit = 4 * LEAST_BYTES;
        let room = room(limit);
        let mut slow = room.enter();
        assert!(slow.grow(limit).await);
        assert!(!room.enter().grow(1).await, "it has only begun");
        age(&room, &slow);
        // It goes on sending, a byte at a time.
        slow.shrink_to(limit - 10);
        assert!(slow.grow(10).await);
        assert!(!room.enter().grow(1).await, "it has just sent something");
        room.shared.state().arriving.get_mut(&slow.number).unwrap().since -= LEAST_TIME * 2;
        let told = tokio::spawn(async move { slow.told_to_give_way().await });
        assert!(room.enter().grow(1).await);
        told.await.unwrap();

        // However long it takes.
        let mut quick = room.enter();
        for _ in 0..3 {
            age(&room, &quick);
            assert!(quick.grow(LEAST_BYTES).await);
        }
        assert!(quick.grow(LEAST_BYTES).await);
        assert!(!room.enter().grow(1).await, "it sends enough");
    }

    #[tokio::test]
    async fn a_body_that_is_there_does_not_give_way() {
        let room = room(100);
        let mut place = room.enter();
        assert!(place.grow(100).await);
        place.arrived();
        assert!(room.shared.state().arriving.is_empty());
        let mut second = room.enter();
        let waiting = tokio::spawn(async move { second.grow(1).await });
        tokio::task::yield_now().await;
        drop(place);
        assert!(waiting.await.unwrap(), "the first that arrives may wait for those that are there");
    }

    #[tokio::test]
    async fn what_can_never_fit_is_refused_at_once() {
        assert!(!room(100).enter().grow(101).await);
    }
}
