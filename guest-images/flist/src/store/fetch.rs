//! Fetching blocks: which store to ask, what to believe, when to give up.
//!
//! ```text
//!  stores whose range matches, healthy ones first
//!        │ next
//!        ▼
//!   get ──ok──► both hashes fit? ──yes──► the block
//!    │               │ no: count, warn, never ask this store for this block again
//!    ├─ missing, refused, failed: never ask this store for this block again
//!    └─ unreachable: ask again in the next round, after a pause
//! ```
//!
//! Nothing that was not verified leaves this module. Rounds, pauses and the whole are bounded
//! ([`RetryOptions`]). A [`Fetcher`] is shared by all threads; it keeps no blocks (that is the node
//! cache's work) and does not join equal requests.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use flist_view::block::{BlockCipher, BlockId, BlockRef};

use super::route::{RoutedStore, Stores};
use super::{StoreError, store_name};
use crate::block::{Codec, DecodeError};

/// How patient a [`Fetcher`] is with stores that can't be reached.
#[derive(Clone, Copy, Debug)]
pub struct RetryOptions {
    /// Rounds over all stores of a block, the first included.
    pub round_count_max: u32,
    /// Pause before the second round; each further pause is four times as long.
    pub first_pause: Duration,
    /// No second attempt at a store begins after this time. A running one may still take its store's
    /// own timeout.
    pub deadline: Duration,
}

impl Default for RetryOptions {
    fn default() -> Self {
        Self {
            round_count_max: 4,
            first_pause: Duration::from_millis(100),
            deadline: Duration::from_secs(60),
        }
    }
}

/// Fetches and verifies the blocks of images that share a cipher and routes.
pub struct Fetcher {
    stores: Stores,
    cipher: BlockCipher,
    retry: RetryOptions,
    started: Instant,
    turn: AtomicUsize,
    totals: Totals,
    per_store: Vec<PerStore>,
}

/// What a [`Fetcher`] did so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FetchCounters {
    /// Blocks fetched and verified.
    pub fetched: u64,
    /// Their stored (compressed, encrypted) bytes.
    pub bytes: u64,
    /// Answers whose bytes were not the block.
    pub bad: u64,
    /// Attempts made after the first round.
    pub retried: u64,
    /// The same by store, in the order of the routes.
    pub stores: Vec<StoreCounters>,
}

/// What one store did so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreCounters {
    /// Its URL without secrets.
    pub store: String,
    /// Blocks it gave that were right.
    pub fetched: u64,
    /// Answers whose bytes were not the block.
    pub bad: u64,
    /// Blocks it said it does not have.
    pub missing: u64,
    /// Attempts that it refused, or in which it could not be reached.
    pub failed: u64,
}

/// Why a block can't be had. `reasons` has one line of text for each store that was tried.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No route's range has the block.
    #[error("block {block}: {}", self.reason())]
    NoRoute {
        /// The block.
        block: BlockId,
        /// The stores of all routes.
        stores: String,
    },
    /// Every store answered that it does not have it.
    #[error("block {block}: {}", self.reason())]
    Missing {
        /// The block.
        block: BlockId,
        /// What each store said.
        reasons: String,
    },
    /// At least one store could not be reached, and no other has it. Trying later may help.
    #[error("block {block}: {}", self.reason())]
    Unreachable {
        /// The block.
        block: BlockId,
        /// What each store said.
        reasons: String,
    },
    /// At least one store refused to answer, and no other has it.
    #[error("block {block}: {}", self.reason())]
    Refused {
        /// The block.
        block: BlockId,
        /// What each store said.
        reasons: String,
    },
    /// At least one store failed in a way that will not pass, and no other has it.
    #[error("block {block}: {}", self.reason())]
    Failed {
        /// The block.
        block: BlockId,
        /// What each store said.
        reasons: String,
    },
    /// A store gave bytes that are not the block, and no other has it.
    #[error("block {block}: {}", self.reason())]
    Bad {
        /// The block.
        block: BlockId,
        /// What each store said.
        reasons: String,
    },
}

impl FetchError {
    /// What is wrong, without the block's name: for those who name it themselves.
    #[must_use]
    pub fn reason(&self) -> String {
        match self {
            Self::NoRoute { stores, .. } => format!("no route covers it (stores: {stores})"),
            Self::Missing { reasons, .. } => format!("no store has it: {reasons}"),
            Self::Unreachable { reasons, .. }
            | Self::Refused { reasons, .. }
            | Self::Failed { reasons, .. }
            | Self::Bad { reasons, .. } => reasons.clone(),
        }
    }
}

/// How long a store that could not be reached comes after all others.
const PENALTY_MS: u64 = 10_000;
/// Each pause is this many times the one before.
const PAUSE_FACTOR: u32 = 4;

#[derive(Default)]
struct Totals {
    fetched: AtomicU64,
    bytes: AtomicU64,
    bad: AtomicU64,
    retried: AtomicU64,
}

#[derive(Default)]
struct PerStore {
    fetched: AtomicU64,
    bad: AtomicU64,
    missing: AtomicU64,
    failed: AtomicU64,
    /// Milliseconds since the fetcher's start until which the store comes last.
    penalty_until_ms: AtomicU64,
}

/// One store in the course of one fetch.
struct Attempt<'a> {
    position: usize,
    store: &'a RoutedStore,
    outcome: Option<Outcome>,
}

enum Outcome {
    Store(StoreError),
    Bad(DecodeError),
}

impl Fetcher {
    /// A fetcher over `stores` for blocks of one cipher.
    #[must_use]
    pub fn new(stores: Stores, cipher: BlockCipher, retry: RetryOptions) -> Self {
        let per_store = stores.all().iter().map(|_| PerStore::default()).collect();
        Self {
            stores,
            cipher,
            retry,
            started: Instant::now(),
            turn: AtomicUsize::new(0),
            totals: Totals::default(),
            per_store,
        }
    }

    /// The verified plaintext of a block.
    ///
    /// # Errors
    /// [`FetchError`] names the block and what each store said.
    pub fn fetch(&self, codec: &mut Codec, block: &BlockRef) -> Result<Vec<u8>, FetchError> {
        self.with_verified(block, |stored| codec.decode(self.cipher, block, stored))
    }

    /// The stored (compressed, encrypted) bytes of a block, verified by decoding a copy: what is put
    /// into another store.
    ///
    /// # Errors
    /// [`FetchError`] names the block and what each store said.
    pub fn fetch_stored(&self, codec: &mut Codec, block: &BlockRef) -> Result<Vec<u8>, FetchError> {
        self.with_verified(block, |stored| {
            let original = stored.clone();
            codec.decode(self.cipher, block, stored).map(|_| original)
        })
    }

    /// How the blocks are hashed and encrypted.
    #[must_use]
    pub const fn cipher(&self) -> BlockCipher {
        self.cipher
    }

    /// The stores that blocks come from.
    #[must_use]
    pub fn stores(&self) -> &Stores {
        &self.stores
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> FetchCounters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let stores = self.stores.names().into_iter().zip(&self.per_store);
        FetchCounters {
            fetched: read(&self.totals.fetched),
            bytes: read(&self.totals.bytes),
            bad: read(&self.totals.bad),
            retried: read(&self.totals.retried),
            stores: stores
                .map(|(store, counters)| StoreCounters {
                    store,
                    fetched: read(&counters.fetched),
                    bad: read(&counters.bad),
                    missing: read(&counters.missing),
                    failed: read(&counters.failed),
                })
                .collect(),
        }
    }

    /// Asks store after store until `verify` accepts what one of them returns.
    fn with_verified(
        &self,
        block: &BlockRef,
        mut verify: impl FnMut(&mut Vec<u8>) -> Result<Vec<u8>, DecodeError>,
    ) -> Result<Vec<u8>, FetchError> {
        let begin = Instant::now();
        let name = store_name(&block.id, self.cipher);
        let mut attempts = self.order(block.id.0[0]);
        let mut pause = self.retry.first_pause;
        for round in 0..self.retry.round_count_max {
            for attempt in attempts.iter_mut().filter(|attempt| attempt.is_open()) {
                if round > 0 {
                    if begin.elapsed() >= self.retry.deadline {
                        break;
                    }
                    count(&self.totals.retried);
                }
                match self.attempt(attempt, name, &mut verify) {
                    Ok(bytes) => return Ok(bytes),
                    Err(outcome) => attempt.outcome = Some(self.note(attempt, block, outcome)),
                }
            }
            let is_last = round + 1 >= self.retry.round_count_max;
            let is_late = begin.elapsed() + pause >= self.retry.deadline;
            if is_last || is_late || !attempts.iter().any(Attempt::is_open) {
                break;
            }
            std::thread::sleep(pause);
            pause = pause.saturating_mul(PAUSE_FACTOR);
        }
        Err(self.failure(block.id, &attempts))
    }

    fn attempt(
        &self,
        attempt: &Attempt<'_>,
        name: &[u8],
        verify: &mut impl FnMut(&mut Vec<u8>) -> Result<Vec<u8>, DecodeError>,
    ) -> Result<Vec<u8>, Outcome> {
        let store = attempt.store.store().map_err(Outcome::Store)?;
        let mut stored = store.get(name).map_err(Outcome::Store)?;
        let size = stored.len() as u64;
        let bytes = verify(&mut stored).map_err(Outcome::Bad)?;
        let counters = &self.per_store[attempt.position];
        counters.penalty_until_ms.store(0, Ordering::Relaxed);
        count(&counters.fetched);
        count(&self.totals.fetched);
        self.totals.bytes.fetch_add(size, Ordering::Relaxed);
        Ok(bytes)
    }

    /// Counts and reports what went wrong.
    fn note(&self, attempt: &Attempt<'_>, block: &BlockRef, outcome: Outcome) -> Outcome {
        let counters = &self.per_store[attempt.position];
        match &outcome {
            Outcome::Bad(reason) => {
                count(&self.totals.bad);
                count(&counters.bad);
                let store = attempt.store.name();
                tracing::warn!(block = %block.id, %store, %reason, "a store gave a bad block");
            }
            Outcome::Store(StoreError::Missing { .. }) => count(&counters.missing),
            Outcome::Store(error) => {
                count(&counters.failed);
                let until = self.elapsed_ms().saturating_add(PENALTY_MS);
                counters.penalty_until_ms.store(until, Ordering::Relaxed);
                tracing::debug!(block = %block.id, %error, "a store did not answer");
            }
        }
        outcome
    }

    /// The stores to try: those that answered last before those that did not, and among them a
    /// different one first each time, so that equal stores share the load.
    fn order(&self, first_byte: u8) -> Vec<Attempt<'_>> {
        let mut attempts: Vec<_> = self
            .stores
            .candidates(first_byte)
            .map(|(position, store)| Attempt { position, store, outcome: None })
            .collect();
        if attempts.len() > 1 {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed) % attempts.len();
            attempts.rotate_left(turn);
            let now = self.elapsed_ms();
            attempts.sort_by_key(|attempt| {
                self.per_store[attempt.position].penalty_until_ms.load(Ordering::Relaxed) > now
            });
        }
        attempts
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn failure(&self, block: BlockId, attempts: &[Attempt<'_>]) -> FetchError {
        if attempts.is_empty() {
            return FetchError::NoRoute { block, stores: self.stores.names().join(", ") };
        }
        let reasons = attempts.iter().map(Attempt::reason).collect::<Vec<_>>().join("; ");
        let any = |test: fn(&Outcome) -> bool| {
            attempts.iter().filter_map(|attempt| attempt.outcome.as_ref()).any(test)
        };
        if any(|outcome| matches!(outcome, Outcome::Store(StoreError::Unreachable { .. }))) {
            FetchError::Unreachable { block, reasons }
        } else if any(|outcome| matches!(outcome, Outcome::Bad(_))) {
            FetchError::Bad { block, reasons }
        } else if any(|outcome| matches!(outcome, Outcome::Store(StoreError::Refused { .. }))) {
            FetchError::Refused { block, reasons }
        } else if any(|outcome| !matches!(outcome, Outcome::Store(StoreError::Missing { .. }))) {
            FetchError::Failed { block, reasons }
        } else {
            FetchError::Missing { block, reasons }
        }
    }
}

impl Attempt<'_> {
    /// Whether asking (again) may help.
    fn is_open(&self) -> bool {
        matches!(self.outcome, None | Some(Outcome::Store(StoreError::Unreachable { .. })))
    }

    fn reason(&self) -> String {
        let name = self.store.name();
        match &self.outcome {
            None => format!("{name}: not tried"),
            Some(Outcome::Store(StoreError::Missing { store, .. })) => {
                format!("{store}: has no such block")
            }
            Some(Outcome::Store(error)) => error.to_string(),
            Some(Outcome::Bad(error)) => format!("{name}: gave a bad block ({error})"),
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::format::Route;
    use crate::store::Store;
    use crate::store::url::StoreUrl;

    /// What a fake store answers next; the last answer is repeated.
    #[derive(Clone)]
    enum Answer {
        Bytes(Vec<u8>),
        Missing,
        Unreachable,
        Refused,
        Failed,
    }

    struct Fake {
        answers: Mutex<VecDeque<Answer>>,
        asked: AtomicU64,
    }

    impl Store for Fake {
        fn get(&self, _name: &[u8]) -> Result<Vec<u8>, StoreError> {
            count(&self.asked);
            let mut answers = self.answers.lock().unwrap();
            let answer =
                if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() };
            let store = "fake".to_owned();
            match answer.unwrap() {
                Answer::Bytes(bytes) => Ok(bytes),
                Answer::Missing => Err(StoreError::Missing { store, block: "x".to_owned() }),
                Answer::Unreachable => {
                    Err(StoreError::Unreachable { store, reason: "timeout".to_owned() })
                }
                Answer::Refused => Err(StoreError::Refused { store, reason: "no".to_owned() }),
                Answer::Failed => Err(StoreError::Failed { store, reason: "full".to_owned() }),
            }
        }

        fn put(&self, _name: &[u8], _stored: &[u8]) -> Result<(), StoreError> {
            Ok(())
        }

        fn sync(&self) -> Result<(), StoreError> {
            Ok(())
        }
    }

    fn fake(answers: &[Answer]) -> Arc<Fake> {
        let answers = Mutex::new(answers.iter().cloned().collect());
        Arc::new(Fake { answers, asked: AtomicU64::new(0) })
    }

    fn fetcher(stores: &[&Arc<Fake>]) -> Fetcher {
        let routed = stores.iter().enumerate().map(|(i, store)| {
            let url = StoreUrl::parse(&format!("dir:///fake{i}")).unwrap();
            (Route { start: 0, end: 255, url }, Arc::clone(store) as Arc<dyn Store>)
        });
        let retry = RetryOptions { first_pause: Duration::from_millis(1), ..Default::default() };
        Fetcher::new(Stores::from_open(routed.collect()), BlockCipher::Aes256Gcm, retry)
    }

    fn block() -> (BlockRef, Vec<u8>) {
        let mut codec = Codec::new();
        let (block, stored) = codec.encode(b"the contents");
        (block, stored.to_vec())
    }

    #[test]
    fn a_bad_block_is_counted_and_fetched_from_another_store() {
        let (block, stored) = block();
        let mut bad = stored.clone();
        bad[3] ^= 1;
        let [liar, honest] = [fake(&[Answer::Bytes(bad)]), fake(&[Answer::Bytes(stored.clone())])];
        let fetcher = fetcher(&[&liar, &honest]);
        for _ in 0..4 {
            assert_eq!(fetcher.fetch(&mut Codec::new(), &block).unwrap(), b"the contents");
        }
        let counters = fetcher.counters();
        assert_eq!((counters.fetched, counters.bad, counters.retried), (4, 2, 0));
        assert_eq!(counters.bytes, 4 * stored.len() as u64);
        assert_eq!((counters.stores[0].bad, counters.stores[1].fetched), (2, 4));
    }

    #[test]
    fn stored_bytes_are_verified_and_returned_as_they_were() {
        let (block, stored) = block();
        let fetcher = fetcher(&[&fake(&[Answer::Bytes(stored.clone())])]);
        assert_eq!(fetcher.fetch_stored(&mut Codec::new(), &block).unwrap(), stored);
        let mut other = block;
        other.key.0[0] ^= 1;
        let error = fetcher.fetch_stored(&mut Codec::new(), &other).unwrap_err();
        assert!(matches!(error, FetchError::Bad { .. }), "{error}");
        let text = error.to_string();
        assert_eq!(text.matches(&block.id.to_string()).count(), 1, "{text}");
        assert_eq!(text.matches("block").count(), 2, "named once, called bad once: {text}");
    }

    #[test]
    fn a_store_that_comes_back_is_asked_again() {
        let (block, stored) = block();
        let flaky = fake(&[Answer::Unreachable, Answer::Unreachable, Answer::Bytes(stored)]);
        let fetcher = fetcher(&[&flaky]);
        assert_eq!(fetcher.fetch(&mut Codec::new(), &block).unwrap(), b"the contents");
        let counters = fetcher.counters();
        assert_eq!((counters.retried, counters.stores[0].failed), (2, 2));
    }

    #[test]
    fn rounds_are_bounded_and_only_the_unreachable_are_asked_again() {
        let (block, _) = block();
        let [gone, empty, closed] =
            [fake(&[Answer::Unreachable]), fake(&[Answer::Missing]), fake(&[Answer::Refused])];
        let fetcher = fetcher(&[&gone, &empty, &closed]);
        let error = fetcher.fetch(&mut Codec::new(), &block).unwrap_err();
        assert!(matches!(error, FetchError::Unreachable { .. }));
        let asked = [&gone, &empty, &closed].map(|store| store.asked.load(Ordering::Relaxed));
        assert_eq!(asked, [4, 1, 1]);
        let text = error.to_string();
        assert!(text.contains(&block.id.to_string()) && text.contains("timeout"), "{text}");
    }

    #[test]
    fn what_no_store_has_is_missing_and_names_block_and_stores() {
        let (block, _) = block();
        let fetcher = fetcher(&[&fake(&[Answer::Missing]), &fake(&[Answer::Missing])]);
        let error = fetcher.fetch(&mut Codec::new(), &block).unwrap_err();
        assert!(matches!(error, FetchError::Missing { .. }), "{error}");
        assert!(error.to_string().contains(&block.id.to_string()));
    }

    #[test]
    fn what_will_not_pass_is_not_tried_again() {
        let (block, _) = block();
        let [broken, empty] = [fake(&[Answer::Failed]), fake(&[Answer::Missing])];
        let fetcher = fetcher(&[&broken, &empty]);
        let error = fetcher.fetch(&mut Codec::new(), &block).unwrap_err();
        assert!(matches!(error, FetchError::Failed { .. }), "{error}");
        assert_eq!(broken.asked.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_block_without_a_route_says_so() {
        let (block, _) = block();
        let error = fetcher(&[]).fetch(&mut Codec::new(), &block).unwrap_err();
        assert!(matches!(error, FetchError::NoRoute { .. }), "{error}");
    }

    #[test]
    fn a_store_that_failed_comes_last_for_a_while() {
        let (block, stored) = block();
        let [gone, good] = [fake(&[Answer::Unreachable]), fake(&[Answer::Bytes(stored)])];
        let fetcher = fetcher(&[&gone, &good]);
        for _ in 0..10 {
            fetcher.fetch(&mut Codec::new(), &block).unwrap();
        }
        assert_eq!(gone.asked.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn no_attempt_begins_after_the_deadline() {
        let (block, _) = block();
        let gone = fake(&[Answer::Unreachable]);
        let retry = RetryOptions {
            round_count_max: 10,
            first_pause: Duration::from_millis(40),
            deadline: Duration::from_millis(100),
        };
        let fetcher = Fetcher { retry, ..fetcher(&[&gone]) };
        fetcher.fetch(&mut Codec::new(), &block).unwrap_err();
        assert_eq!(gone.asked.load(Ordering::Relaxed), 2);
    }
}
