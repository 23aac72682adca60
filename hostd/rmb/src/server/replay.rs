//! What was asked already: nothing is done twice.
//!
//! Whoever carries envelopes can deliver one again, and again, as long as it has not expired, and so
//! does a relay that is not sure whether the first time worked. So each request is remembered by
//! its source and its id until it expires, which is half an hour at most
//! ([`EXPIRATION_MAX`](crate::envelope::EXPIRATION_MAX), and the allowance for clocks).
//!
//! Memory is limited: each twin has room for so many requests and the window for so many in all. Who
//! has no room left is refused until some expire; nothing is forgotten early, since that is what a
//! replayer would work towards. Ids are kept as hashes with a random key, so nobody can choose ids
//! that collide.
//!
//! Time never goes back here: what has expired once stays so when somebody sets the clock.
//!
//! A peer that starts anew goes on with what the one before wrote down ([`ReplayWindow::to_bytes`]), and
//! with what was appended to that since ([`ReplayWindow::entry`]), as far as it is whole: a crash may
//! have torn the last one, whose request was not done then.
//!
//! ```text
//! window = "rmb-seen-1" now[8] secret[32] { expires_at[8] twin[4] hash[16] }       little-endian
//! ```

use std::collections::{BTreeMap, HashMap};

use blake2b_simd::Params;

use crate::random::{self, RandomError};
use crate::twins::TwinId;

/// Requests of one twin that are remembered.
const PER_TWIN_COUNT_MAX: u32 = 8192;
/// Requests that are remembered.
const COUNT_MAX: usize = 128 * 1024;
/// Requests that every twin has room for, even if others took all that there is.
const RESERVED_COUNT: u32 = 8;
/// Requests that are remembered when the reserve is used as well.
const HARD_COUNT_MAX: usize = 2 * COUNT_MAX;

/// What a window that was written down begins with.
const MAGIC: &[u8] = b"rmb-seen-1";
/// Bytes of one request in it.
pub const ENTRY_SIZE: usize = 8 + 4 + 16;

/// A request: its source, and a hash of its id.
type Key = (TwinId, [u8; 16]);

/// What the window says about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It came for the first time.
    New,
    /// It came before.
    Seen,
    /// It has expired.
    Expired,
    /// There is no room to remember it, so it must not be done.
    NoRoom,
}

/// Requests that came, until they expire.
pub struct ReplayWindow {
    /// Key of the hash of ids.
    secret: [u8; 32],
    /// When each expires.
    seen: HashMap<Key, u64>,
    /// The same by time.
    by_time: BTreeMap<u64, Vec<Key>>,
    per_twin: HashMap<TwinId, u32>,
    /// The latest time that was ever told.
    now: u64,
}

impl ReplayWindow {
    /// An empty one.
    pub fn new() -> Result<Self, RandomError> {
        Ok(Self {
            secret: random::bytes()?,
            seen: HashMap::new(),
            by_time: BTreeMap::new(),
            per_twin: HashMap::new(),
            now: 0,
        })
    }

    /// Says whether a request is to be done, and remembers it if so. `expires_at` and `now` are in
    /// seconds since 1970.
    pub fn check(&mut self, source: TwinId, uid: &str, expires_at: u64, now: u64) -> Verdict {
        self.now = self.now.max(now);
        self.forget();
        if expires_at <= self.now {
            return Verdict::Expired;
        }
        let key = (source, self.hash(uid));
        if self.seen.contains_key(&key) {
            return Verdict::Seen;
        }
        let count = self.per_twin.get(&source).copied().unwrap_or(0);
        let max = if self.seen.len() < COUNT_MAX { PER_TWIN_COUNT_MAX } else { RESERVED_COUNT };
        if count >= max || self.seen.len() >= HARD_COUNT_MAX {
            return Verdict::NoRoom;
        }
        self.insert(key, expires_at);
        Verdict::New
    }

    /// A request as it is appended to a window that was written down.
    pub fn entry(&self, source: TwinId, uid: &str, expires_at: u64) -> [u8; ENTRY_SIZE] {
        entry((source, self.hash(uid)), expires_at)
    }

    /// Drops what has expired.
    fn forget(&mut self) {
        while let Some(entry) = self.by_time.first_entry()
            && *entry.key() <= self.now
        {
            for key in entry.remove() {
                self.seen.remove(&key);
                if let Some(count) = self.per_twin.get_mut(&key.0) {
                    *count -= 1;
                    if *count == 0 {
                        self.per_twin.remove(&key.0);
                    }
                }
            }
        }
    }

    /// The window as bytes, without what has expired.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(MAGIC.len() + 40 + self.seen.len() * ENTRY_SIZE);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.now.to_le_bytes());
        bytes.extend_from_slice(&self.secret);
        for (expires_at, keys) in self.by_time.range(self.now + 1..) {
            for key in keys {
                bytes.extend_from_slice(&entry(*key, *expires_at));
            }
        }
        bytes
    }

    /// A window that was written down; none if these are other bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (now, rest) = bytes.strip_prefix(MAGIC)?.split_first_chunk()?;
        let (secret, mut rest) = rest.split_first_chunk()?;
        let mut window = Self {
            secret: *secret,
            seen: HashMap::new(),
            by_time: BTreeMap::new(),
            per_twin: HashMap::new(),
            now: u64::from_le_bytes(*now),
        };
        while let Some((entry, after)) = rest.split_first_chunk::<ENTRY_SIZE>()
            && let Some((key, expires_at)) = read_entry(entry)
            && window.seen.len() < HARD_COUNT_MAX
        {
            window.insert(key, expires_at);
            rest = after;
        }
        Some(window)
    }

    fn insert(&mut self, key: Key, expires_at: u64) {
        if self.seen.insert(key, expires_at).is_none() {
            self.by_time.entry(expires_at).or_default().push(key);
            *self.per_twin.entry(key.0).or_default() += 1;
        }
    }

    fn hash(&self, uid: &str) -> [u8; 16] {
        let hash = Params::new().hash_length(16).key(&self.secret).hash(uid.as_bytes());
        *hash.as_bytes().first_chunk().expect("a hash of the size that was asked for")
    }
}

fn entry((source, hash): Key, expires_at: u64) -> [u8; ENTRY_SIZE] {
    let mut bytes = [0; ENTRY_SIZE];
    bytes[..8].copy_from_slice(&expires_at.to_le_bytes());
    bytes[8..12].copy_from_slice(&source.number().to_le_bytes());
    bytes[12..].copy_from_slice(&hash);
    bytes
}

/// What [`entry`] wrote; none for what it can't have written.
fn read_entry(bytes: &[u8; ENTRY_SIZE]) -> Option<(Key, u64)> {
    let (expires_at, rest) = bytes.split_first_chunk()?;
    let (source, hash) = rest.split_first_chunk()?;
    let source = TwinId::new(u32::from_le_bytes(*source))?;
    Some(((source, *hash.first_chunk()?), u64::from_le_bytes(*expires_at)))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn twin(number: u32) -> TwinId {
        TwinId::new(number).unwrap()
    }

    #[test]
    fn a_request_is_new_once() {
        let mut window = ReplayWindow::new().unwrap();
        assert_eq!(window.check(twin(1), "a", 100, 50), Verdict::New);
        assert_eq!(window.check(twin(1), "a", 100, 50), Verdict::Seen);
        // With another expiration too: that it can't have, unless it was signed again.
        assert_eq!(window.check(twin(1), "a", 200, 99), Verdict::Seen);
        assert_eq!(window.check(twin(2), "a", 100, 99), Verdict::New);
        assert_eq!(window.check(twin(1), "b", 100, 99), Verdict::New);
        assert_eq!(window.check(twin(1), "a", 100, 100), Verdict::Expired);
        assert!(window.seen.is_empty() && window.per_twin.is_empty());
    }

    #[test]
    fn who_starts_anew_goes_on_with_what_was_written_down() {
        let mut window = ReplayWindow::new().unwrap();
        assert_eq!(window.check(twin(1), "a", 100, 50), Verdict::New);
        assert_eq!(window.check(twin(2), "a", 60, 50), Verdict::New);
        assert_eq!(window.check(twin(2), "b", 300, 70), Verdict::New);
        let bytes = window.to_bytes();
        let mut window = ReplayWindow::from_bytes(&bytes).unwrap();
        assert_eq!(window.seen.len(), 2);
        assert_eq!(window.check(twin(1), "a", 100, 50), Verdict::Seen);
        assert_eq!(window.check(twin(2), "b", 300, 50), Verdict::Seen);
        assert_eq!(window.check(twin(2), "a", 60, 50), Verdict::Expired);
        assert_eq!(window.check(twin(1), "c", 300, 299), Verdict::New);
        assert_eq!(window.check(twin(2), "d", 301, 300), Verdict::New);
        assert_eq!(window.per_twin.len(), 1);
        for size in [0, 5, MAGIC.len() + 39] {
            assert!(ReplayWindow::from_bytes(&bytes[..size]).is_none(), "{size}");
        }
    }

    #[test]
    fn what_was_appended_counts_as_far_as_it_is_whole() {
        let mut window = ReplayWindow::new().unwrap();
        assert_eq!(window.check(twin(1), "a", 100, 50), Verdict::New);
        let mut bytes = window.to_bytes();
        bytes.extend(window.entry(twin(1), "b", 100));
        bytes.extend(window.entry(twin(2), "a", 100));
        // Written twice: when it came, and with the whole window.
        bytes.extend(window.entry(twin(1), "a", 100));
        let whole = bytes.len();
        for torn in [&[][..], &[7; ENTRY_SIZE - 1], &[0; ENTRY_SIZE], &[0; 3 * ENTRY_SIZE]] {
            bytes.truncate(whole);
            bytes.extend(torn);
            let mut window = ReplayWindow::from_bytes(&bytes).unwrap();
            for (source, uid) in [(1, "a"), (1, "b"), (2, "a")] {
                assert_eq!(window.check(twin(source), uid, 100, 50), Verdict::Seen);
            }
            assert_eq!(window.seen.len(), 3);
            assert_eq!(window.check(twin(2), "b", 100, 50), Verdict::New);
        }
    }

    #[test]
    fn a_clock_that_goes_back_brings_nothing_back() {
        let mut window = ReplayWindow::new().unwrap();
        assert_eq!(window.check(twin(1), "a", 100, 50), Verdict::New);
        assert_eq!(window.check(twin(1), "b", 200, 150), Verdict::New);
        assert_eq!(window.check(twin(1), "a", 100, 50), Verdict::Expired);
    }

    #[test]
    fn nobody_can_push_out_what_others_asked() {
        let mut window = ReplayWindow::new().unwrap();
        assert_eq!(window.check(twin(1), "a", 100, 50), Verdict::New);
        for number in 0..PER_TWIN_COUNT_MAX {
            assert_eq!(window.check(twin(2), &number.to_string(), 100, 50), Verdict::New);
        }
        assert_eq!(window.check(twin(2), "more", 100, 50), Verdict::NoRoom);
        assert_eq!(window.check(twin(1), "a", 100, 50), Verdict::Seen);
        assert_eq!(window.check(twin(1), "b", 100, 50), Verdict::New);
        assert_eq!(window.check(twin(2), "more", 200, 100), Verdict::New);
    }

    #[test]
    fn when_it_is_full_everybody_keeps_a_little_room() {
        let mut window = ReplayWindow::new().unwrap();
        let twins = u32::try_from(COUNT_MAX).unwrap() / PER_TWIN_COUNT_MAX;
        for number in 0..twins * PER_TWIN_COUNT_MAX {
            let source = twin(1 + number / PER_TWIN_COUNT_MAX);
            assert_eq!(window.check(source, &number.to_string(), 100, 50), Verdict::New);
        }
        for number in 0..RESERVED_COUNT {
            assert_eq!(window.check(twin(1000), &number.to_string(), 100, 50), Verdict::New);
        }
        assert_eq!(window.check(twin(1000), "more", 100, 50), Verdict::NoRoom);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// Against a model that forgets nothing: no request is new twice.
        #[test]
        fn nothing_is_new_twice(steps in proptest::collection::vec(
            (1_u32..4, 0_u8..8, 0_u64..60, 0_u64..20), 1..200,
        )) {
            let mut window = ReplayWindow::new().unwrap();
            let mut done = HashSet::new();
            let mut now = 100;
            for (source, uid, lifetime, step) in steps {
                now += step;
                // The same id always has the same expiration, as its signature says.
                let expires_at = 100 + lifetime + u64::from(uid) * 10;
                let request = (source, uid, expires_at);
                let uid = format!("{uid}-{expires_at}");
                match window.check(twin(source), &uid, expires_at, now) {
                    Verdict::New => {
                        prop_assert!(expires_at > now);
                        prop_assert!(done.insert(request));
                    }
                    Verdict::Seen => prop_assert!(done.contains(&request)),
                    Verdict::Expired => prop_assert!(expires_at <= now),
                    Verdict::NoRoom => prop_assert!(false, "there was room"),
                }
            }
        }
    }
}
