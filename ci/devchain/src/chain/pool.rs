//! Transactions that wait for a block.
//!
//! One queue for each account, in the order of its nonces. A transaction whose nonce is the account's next
//! is ready, and so are those that follow it without a gap; the others wait for the gap to close, for
//! at most [`LIFETIME_BLOCKS`]. Clients send over several connections at once, so that a nonce
//! arrives before the one below it is ordinary.
//!
//! A second transaction with the same nonce takes the place of the first if it tips more.

use std::collections::{BTreeMap, HashMap};

use sp_core::H256;
use tokio::sync::mpsc;

use crate::types::{AccountId32, Balance};

/// The most transactions that wait.
const COUNT_MAX: usize = 16_384;
/// The most bytes of transactions that wait.
const BYTES_MAX: usize = 64 * 1024 * 1024;
/// How far above its account's next nonce a transaction may be.
const NONCE_AHEAD_MAX: u32 = 4096;
/// After how many blocks a transaction that nothing includes is dropped.
pub(super) const LIFETIME_BLOCKS: u32 = 1000;
/// Statuses that a watcher may leave unread. A transaction has at most four.
const STATUSES_MAX: usize = 8;

/// What happened to a transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TxStatus {
    /// It waits for a transaction of its account with a lower nonce.
    Future,
    /// It can be in the next block.
    Ready,
    /// It is in this block.
    InBlock(H256),
    /// That block is final.
    Finalized(H256),
    /// Another one, with this hash, took its place.
    Usurped(H256),
    /// It waited too long.
    Dropped,
    /// It can never be in a block.
    Invalid,
}

/// Why a transaction was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PoolError {
    /// It waits already.
    #[error("the transaction waits already")]
    AlreadyImported,
    /// Another one with its nonce tips as much or more.
    #[error("a transaction with the same nonce tips {old}, this one {new}")]
    TooLowPriority {
        /// The tip of the one that waits.
        old: Balance,
        /// The tip of this one.
        new: Balance,
    },
    /// There is no room.
    #[error("{COUNT_MAX} transactions or {BYTES_MAX} bytes of them wait already")]
    Full,
    /// Its nonce is too far ahead.
    #[error("nonce {nonce} is more than {NONCE_AHEAD_MAX} ahead of the account's {next}")]
    TooFarAhead {
        /// Its nonce.
        nonce: u32,
        /// The next nonce of its account.
        next: u32,
    },
}

/// A transaction on its way in.
pub(super) struct Arrival {
    pub(super) account: AccountId32,
    pub(super) nonce: u32,
    pub(super) tip: Balance,
    pub(super) hash: H256,
    pub(super) bytes: Vec<u8>,
}

struct Entry {
    hash: H256,
    bytes: Vec<u8>,
    tip: Balance,
    arrival: u64,
    drop_at: u32,
    ready: bool,
    watcher: Option<mpsc::Sender<TxStatus>>,
}

impl Entry {
    fn tell(&self, status: TxStatus) {
        if let Some(watcher) = &self.watcher {
            // A watcher that left, or reads nothing, misses it.
            let _ = watcher.try_send(status);
        }
    }
}

/// A transaction that can be in the next block.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) account: AccountId32,
    pub(super) nonce: u32,
    pub(super) hash: H256,
    pub(super) bytes: Vec<u8>,
}

/// The transactions that wait.
#[derive(Default)]
pub(super) struct Pool {
    accounts: BTreeMap<AccountId32, BTreeMap<u32, Entry>>,
    hashes: HashMap<H256, (AccountId32, u32)>,
    bytes: usize,
    arrivals: u64,
}

impl Pool {
    /// Takes a transaction whose account's next nonce is `next`, while the head is at `block`.
    pub(super) fn add(
        &mut self,
        arrival: Arrival,
        next: u32,
        block: u32,
        watched: bool,
    ) -> Result<Option<mpsc::Receiver<TxStatus>>, PoolError> {
        let Arrival { account, nonce, tip, hash, bytes } = arrival;
        if self.hashes.contains_key(&hash) {
            return Err(PoolError::AlreadyImported);
        }
        if nonce.saturating_sub(next) > NONCE_AHEAD_MAX {
            return Err(PoolError::TooFarAhead { nonce, next });
        }
        if let Some(old) = self.accounts.get(&account).and_then(|queue| queue.get(&nonce)) {
            if old.tip >= tip {
                return Err(PoolError::TooLowPriority { old: old.tip, new: tip });
            }
            old.tell(TxStatus::Usurped(hash));
            self.remove(&account, nonce);
        }
        if self.hashes.len() >= COUNT_MAX || self.bytes + bytes.len() > BYTES_MAX {
            return Err(PoolError::Full);
        }
        let (watcher, statuses) = if watched {
            let (sender, receiver) = mpsc::channel(STATUSES_MAX);
            (Some(sender), Some(receiver))
        } else {
            (None, None)
        };
        self.bytes += bytes.len();
        self.arrivals += 1;
        self.hashes.insert(hash, (account.clone(), nonce));
        let drop_at = block.saturating_add(LIFETIME_BLOCKS);
        let arrival = self.arrivals;
        let entry = Entry { hash, bytes, tip, arrival, drop_at, ready: false, watcher };
        let queue = self.accounts.entry(account).or_default();
        queue.insert(nonce, entry);
        mark_ready(queue, next, nonce);
        Ok(statuses)
    }

    /// Up to `most` transactions for the next block: of each account those that follow its next
    /// nonce without a gap, all in the order they came, as far as nonces allow.
    pub(super) fn candidates(
        &self,
        most: usize,
        next_nonce: impl Fn(&AccountId32) -> u32,
    ) -> Vec<Candidate> {
        let mut found = Vec::new();
        for (account, queue) in &self.accounts {
            let mut turn = 0;
            for (nonce, (at, entry)) in (next_nonce(account)..).zip(queue) {
                if *at != nonce || found.len() >= most {
                    break;
                }
                turn = turn.max(entry.arrival);
                found.push((turn, account, nonce, entry));
            }
        }
        found.sort_by_key(|(turn, ..)| *turn);
        found
            .into_iter()
            .map(|(_, account, nonce, entry)| Candidate {
                account: account.clone(),
                nonce,
                hash: entry.hash,
                bytes: entry.bytes.clone(),
            })
            .collect()
    }

    /// Forgets a transaction that is in a block or can never be, and tells its watcher.
    pub(super) fn settle(&mut self, candidate: &Candidate, statuses: &[TxStatus]) {
        let known = self
            .accounts
            .get(&candidate.account)
            .and_then(|queue| queue.get(&candidate.nonce))
            .filter(|entry| entry.hash == candidate.hash);
        if let Some(entry) = known {
            for status in statuses {
                entry.tell(*status);
            }
            self.remove(&candidate.account, candidate.nonce);
        }
    }

    /// Drops what waited too long or was overtaken, and says `Ready` to what became ready.
    pub(super) fn maintain(&mut self, block: u32, next_nonce: impl Fn(&AccountId32) -> u32) {
        let mut gone = Vec::new();
        for (account, queue) in &mut self.accounts {
            let next = next_nonce(account);
            for (nonce, entry) in queue.iter() {
                if *nonce < next {
                    gone.push((account.clone(), *nonce, TxStatus::Invalid));
                } else if entry.drop_at <= block {
                    gone.push((account.clone(), *nonce, TxStatus::Dropped));
                }
            }
            mark_ready(queue, next, next);
        }
        for (account, nonce, status) in gone {
            if let Some(entry) = self.accounts.get(&account).and_then(|queue| queue.get(&nonce)) {
                entry.tell(status);
            }
            self.remove(&account, nonce);
        }
    }

    /// The nonce after the last transaction of an account that waits without a gap.
    pub(super) fn next_nonce(&self, account: &AccountId32, next: u32) -> u32 {
        self.accounts.get(account).map_or(next, |queue| {
            (next..).find(|nonce| !queue.contains_key(nonce)).unwrap_or(u32::MAX)
        })
    }

    /// The transactions that wait.
    pub(super) fn pending(&self) -> Vec<Vec<u8>> {
        self.accounts.values().flat_map(BTreeMap::values).map(|entry| entry.bytes.clone()).collect()
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    fn remove(&mut self, account: &AccountId32, nonce: u32) {
        let Some(queue) = self.accounts.get_mut(account) else { return };
        if let Some(entry) = queue.remove(&nonce) {
            self.bytes -= entry.bytes.len();
            self.hashes.remove(&entry.hash);
        }
        if queue.is_empty() {
            self.accounts.remove(account);
        }
    }
}

/// Says `Ready` to the transactions that follow `next` without a gap, once; and `Future` to the one
/// that just came in at `arrived`, if it is not among them.
fn mark_ready(queue: &mut BTreeMap<u32, Entry>, next: u32, arrived: u32) {
    let mut expected = next;
    for (nonce, entry) in queue.range_mut(next..) {
        if *nonce != expected {
            break;
        }
        if !entry.ready {
            entry.ready = true;
            entry.tell(TxStatus::Ready);
        }
        expected = expected.saturating_add(1);
    }
    if let Some(entry) = queue.get(&arrived).filter(|entry| !entry.ready) {
        entry.tell(TxStatus::Future);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(byte: u8) -> AccountId32 {
        AccountId32::new([byte; 32])
    }

    fn arrival(who: u8, nonce: u32, tip: Balance) -> Arrival {
        let bytes = vec![who, u8::try_from(nonce % 256).unwrap(), u8::try_from(tip).unwrap()];
        let hash = H256::from(sp_io::hashing::blake2_256(&bytes));
        Arrival { account: account(who), nonce, tip, hash, bytes }
    }

    fn nonces(pool: &Pool) -> Vec<(u8, u32)> {
        pool.candidates(100, |_| 0).iter().map(|found| (found.bytes[0], found.nonce)).collect()
    }

    #[test]
    fn a_gap_waits_for_the_nonce_that_fills_it() {
        let mut pool = Pool::default();
        let mut second = pool.add(arrival(1, 1, 0), 0, 0, true).unwrap().unwrap();
        assert_eq!(second.try_recv(), Ok(TxStatus::Future));
        assert!(nonces(&pool).is_empty() && !pool.is_empty());
        pool.add(arrival(2, 0, 0), 0, 0, false).unwrap();
        pool.add(arrival(1, 0, 0), 0, 0, false).unwrap();
        assert_eq!(second.try_recv(), Ok(TxStatus::Ready));
        assert_eq!(nonces(&pool), [(2, 0), (1, 0), (1, 1)]);
        assert_eq!(pool.next_nonce(&account(1), 0), 2);
    }

    #[test]
    fn a_higher_tip_takes_the_place_of_a_lower() {
        let mut pool = Pool::default();
        let mut first = pool.add(arrival(1, 0, 1), 0, 0, true).unwrap().unwrap();
        let same = pool.add(arrival(1, 0, 1), 0, 0, false);
        assert!(matches!(same, Err(PoolError::AlreadyImported)));
        let lower = pool.add(arrival(1, 0, 0), 0, 0, false);
        assert!(matches!(lower, Err(PoolError::TooLowPriority { old: 1, new: 0 })));
        let new = arrival(1, 0, 2);
        let hash = new.hash;
        pool.add(new, 0, 0, false).unwrap();
        assert_eq!(first.try_recv(), Ok(TxStatus::Ready));
        assert_eq!(first.try_recv(), Ok(TxStatus::Usurped(hash)));
        assert_eq!(pool.pending().len(), 1);
    }

    #[test]
    fn what_waits_too_long_is_dropped_and_the_room_is_free_again() {
        let mut pool = Pool::default();
        let mut future = pool.add(arrival(1, 5, 0), 0, 10, true).unwrap().unwrap();
        pool.maintain(10 + LIFETIME_BLOCKS - 1, |_| 0);
        assert_eq!(future.try_recv(), Ok(TxStatus::Future));
        assert!(!pool.is_empty());
        pool.maintain(10 + LIFETIME_BLOCKS, |_| 0);
        assert_eq!(future.try_recv(), Ok(TxStatus::Dropped));
        assert!(pool.is_empty() && pool.bytes == 0 && pool.accounts.is_empty());
    }

    #[test]
    fn no_client_makes_it_grow_without_bound() {
        let mut pool = Pool::default();
        let far = pool.add(arrival(1, NONCE_AHEAD_MAX + 1, 0), 0, 0, false);
        assert!(matches!(far, Err(PoolError::TooFarAhead { .. })));
        for index in 0..COUNT_MAX {
            let mut arrival = arrival(1, 0, 0);
            arrival.account = AccountId32::new(sp_io::hashing::blake2_256(&index.to_le_bytes()));
            arrival.hash = H256::from_low_u64_be(index as u64);
            pool.add(arrival, 0, 0, false).unwrap();
        }
        assert!(matches!(pool.add(arrival(2, 0, 0), 0, 0, false), Err(PoolError::Full)));
    }
}
