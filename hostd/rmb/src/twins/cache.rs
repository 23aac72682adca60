//! Twins that were looked up lately.
//!
//! An entry lives for ten minutes, a *no such twin* for ten seconds, and either only until
//! [`CachedTwins::invalidate`] is called with it: whoever follows the chain's events calls that when a
//! twin was stored or updated, and [`CachedTwins::clear`] when events may have been missed. A lookup
//! that was under way meanwhile is answered but not kept, since what it brings may be of before.
//!
//! Strangers choose which twins are looked up, so both the entries and the lookups that run at a time
//! are limited.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::{Twin, TwinId, TwinLookup, Twins, TwinsError};

/// Most twins that are remembered, those that do not exist included.
const ENTRY_COUNT_MAX: usize = 16 * 1024;
/// How long a twin is remembered.
const FOUND_TIME: Duration = Duration::from_secs(600);
/// How long it is remembered that there is none.
const MISSING_TIME: Duration = Duration::from_secs(10);
/// Most lookups at a time.
const LOOKUP_COUNT_MAX: usize = 32;
/// How long one may take.
const LOOKUP_TIME_MAX: Duration = Duration::from_secs(10);

/// Twins of somebody else, remembered.
pub struct CachedTwins {
    source: Arc<dyn Twins>,
    lookups: Semaphore,
    state: Mutex<State>,
}

/// A twin, or that there is none.
type Found = Option<Arc<Twin>>;

#[derive(Default)]
struct State {
    entries: HashMap<TwinId, Entry>,
    /// Entries in the order they came, with the number that tells an entry from a later one.
    order: VecDeque<(TwinId, u64)>,
    next_number: u64,
    /// Counts what made entries untrue.
    generation: u64,
}

struct Entry {
    found: Found,
    until: Instant,
    number: u64,
}

impl CachedTwins {
    /// Remembers what `source` says.
    pub fn new(source: Arc<dyn Twins>) -> Self {
        Self { source, lookups: Semaphore::new(LOOKUP_COUNT_MAX), state: Mutex::default() }
    }

    /// Forgets a twin, because it changed on the chain.
    pub fn invalidate(&self, id: TwinId) {
        let mut state = self.state();
        state.generation += 1;
        state.entries.remove(&id);
    }

    /// Forgets all twins, because the chain was not followed for a while.
    pub fn clear(&self) {
        let mut state = self.state();
        state.generation += 1;
        state.entries.clear();
        state.order.clear();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn lookup(&self, id: TwinId) -> Result<Found, TwinsError> {
        let now = Instant::now();
        if let Some(found) = self.state().fresh(id, now) {
            return Ok(found);
        }
        let busy = || TwinsError("too many twins are being looked up".into());
        let waited = timeout(LOOKUP_TIME_MAX, self.lookups.acquire()).await;
        let _permit = waited.map_err(|_| busy())?.map_err(|_| busy())?;
        // Whoever had the permit before may have asked for the same.
        let generation = {
            let state = self.state();
            if let Some(found) = state.fresh(id, Instant::now()) {
                return Ok(found);
            }
            state.generation
        };
        let slow = |_| TwinsError(format!("twin {id} was not found out in {LOOKUP_TIME_MAX:?}"));
        let found = timeout(LOOKUP_TIME_MAX, self.source.twin(id)).await.map_err(slow)??;
        let mut state = self.state();
        if state.generation == generation {
            state.keep(id, found.clone(), Instant::now());
        }
        Ok(found)
    }
}

impl Twins for CachedTwins {
    fn twin(&self, id: TwinId) -> TwinLookup<'_> {
        Box::pin(self.lookup(id))
    }
}

impl State {
    fn fresh(&self, id: TwinId, now: Instant) -> Option<Found> {
        let entry = self.entries.get(&id).filter(|entry| entry.until > now)?;
        Some(entry.found.clone())
    }

    fn keep(&mut self, id: TwinId, found: Found, now: Instant) {
        let time = if found.is_some() { FOUND_TIME } else { MISSING_TIME };
        let number = self.next_number;
        self.next_number += 1;
        self.entries.insert(id, Entry { found, until: now + time, number });
        self.order.push_back((id, number));
        while self.order.len() > ENTRY_COUNT_MAX {
            let Some((oldest, number)) = self.order.pop_front() else { break };
            if self.entries.get(&oldest).is_some_and(|entry| entry.number == number) {
                self.entries.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::Notify;

    use super::*;
    use crate::identity::AccountId;

    /// Knows odd twins, counts its calls, and waits for a nod if asked to.
    #[derive(Default)]
    struct Chain {
        calls: AtomicU32,
        nod: Option<Notify>,
    }

    impl Twins for Chain {
        fn twin(&self, id: TwinId) -> TwinLookup<'_> {
            Box::pin(async move {
                self.calls.fetch_add(1, Ordering::Relaxed);
                if let Some(nod) = &self.nod {
                    nod.notified().await;
                }
                let account = AccountId::from_bytes([1; 32]);
                Ok((id.number() % 2 == 1)
                    .then(|| Arc::new(Twin::from_chain(id, account, None, None))))
            })
        }
    }

    fn id(number: u32) -> TwinId {
        TwinId::new(number).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn twins_are_remembered_for_a_while() {
        let chain = Arc::new(Chain::default());
        let twins = CachedTwins::new(Arc::clone(&chain) as Arc<dyn Twins>);
        let calls = |expected| assert_eq!(chain.calls.load(Ordering::Relaxed), expected);
        for _ in 0..3 {
            assert!(twins.twin(id(1)).await.unwrap().is_some());
            assert!(twins.twin(id(2)).await.unwrap().is_none());
        }
        calls(2);
        tokio::time::advance(MISSING_TIME).await;
        twins.twin(id(1)).await.unwrap();
        twins.twin(id(2)).await.unwrap();
        calls(3);
        twins.invalidate(id(1));
        twins.twin(id(1)).await.unwrap();
        calls(4);
        tokio::time::advance(FOUND_TIME).await;
        twins.twin(id(1)).await.unwrap();
        calls(5);
        twins.clear();
        twins.twin(id(1)).await.unwrap();
        calls(6);
    }

    #[tokio::test]
    async fn the_oldest_make_room() {
        let mut state = State::default();
        let now = Instant::now();
        let count = u32::try_from(ENTRY_COUNT_MAX).unwrap();
        for number in 1..=count + 1 {
            state.keep(id(number), None, now);
            // One that is stored again and again stays.
            state.keep(id(1), None, now);
        }
        assert!(state.entries.len() <= ENTRY_COUNT_MAX && state.order.len() <= ENTRY_COUNT_MAX);
        assert!(state.fresh(id(1), now).is_some());
        assert!(state.fresh(id(2), now).is_none());
        assert!(state.fresh(id(count + 1), now).is_some());
    }

    #[tokio::test]
    async fn what_a_lookup_brings_of_before_a_change_is_not_kept() {
        let chain = Arc::new(Chain { nod: Some(Notify::new()), ..Chain::default() });
        let twins = Arc::new(CachedTwins::new(Arc::clone(&chain) as Arc<dyn Twins>));
        let asked = tokio::spawn({
            let twins = Arc::clone(&twins);
            async move { twins.twin(id(1)).await }
        });
        while chain.calls.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        twins.invalidate(id(1));
        chain.nod.as_ref().unwrap().notify_one();
        assert!(asked.await.unwrap().unwrap().is_some());
        assert!(twins.state().fresh(id(1), Instant::now()).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_chain_that_hangs_is_given_up() {
        let chain = Arc::new(Chain { nod: Some(Notify::new()), ..Chain::default() });
        let twins = CachedTwins::new(chain);
        let error = twins.twin(id(1)).await.unwrap_err();
        assert_eq!(error.to_string(), "twin 1 was not found out in 10s");
    }
}
