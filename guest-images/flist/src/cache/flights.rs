//! Joining requests: many who want one missing block, one who fetches it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, PoisonError};

use flist_view::block::{BlockCipher, BlockRef};

/// Blocks being fetched, and who waits for each. `W` is how a waiter is told.
///
/// Requests are joined only if the key is the same too: a request with a wrong key fails alone.
pub struct Flights<W> {
    waiters: Mutex<HashMap<(BlockCipher, BlockRef), Vec<W>>>,
}

/// What [`Flights::join`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Join {
    /// Nobody fetches this block: the caller must, and then call [`Flights::finish`].
    First,
    /// Someone does; the waiter will be told.
    Joined,
}

impl<W> Default for Flights<W> {
    fn default() -> Self {
        Self { waiters: Mutex::default() }
    }
}

impl<W> Flights<W> {
    /// Adds a waiter for a block.
    pub fn join(&self, cipher: BlockCipher, block: &BlockRef, waiter: W) -> Join {
        let mut waiters = self.waiters.lock().unwrap_or_else(PoisonError::into_inner);
        match waiters.entry((cipher, *block)) {
            Entry::Occupied(mut others) => {
                others.get_mut().push(waiter);
                Join::Joined
            }
            Entry::Vacant(vacant) => {
                vacant.insert(vec![waiter]);
                Join::First
            }
        }
    }

    /// Ends a flight and returns all who waited, the first included. Whoever asks from now on begins
    /// a new one: a failure is told to those who waited for it, and to nobody else.
    pub fn finish(&self, cipher: BlockCipher, block: &BlockRef) -> Vec<W> {
        let mut waiters = self.waiters.lock().unwrap_or_else(PoisonError::into_inner);
        waiters.remove(&(cipher, *block)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use flist_view::block::{BlockId, BlockKey};

    use super::*;

    #[test]
    fn the_first_flies_and_the_others_are_told() {
        let flights = Flights::default();
        let block = BlockRef { id: BlockId([1; 32]), key: BlockKey([2; 32]) };
        let other_key = BlockRef { key: BlockKey([3; 32]), ..block };
        let cipher = BlockCipher::Aes256Gcm;
        assert_eq!(flights.join(cipher, &block, 'a'), Join::First);
        assert_eq!(flights.join(cipher, &block, 'b'), Join::Joined);
        assert_eq!(flights.join(cipher, &other_key, 'c'), Join::First);
        assert_eq!(flights.join(BlockCipher::Xxtea, &block, 'd'), Join::First);
        assert_eq!(flights.finish(cipher, &block), ['a', 'b']);
        assert_eq!(flights.finish(cipher, &block), [] as [char; 0]);
        assert_eq!(flights.join(cipher, &block, 'e'), Join::First);
    }
}
