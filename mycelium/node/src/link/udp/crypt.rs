//! What protects a link: every payload is sealed, with a key that changes as it is used.
//!
//! Packets of others are sealed end to end already, and would need no more than to be authenticated
//! here. Sealing them whole costs less than any authentication code at hand (AES-256-GCM in hardware,
//! 0.02 CPU seconds a Gbit), and hides from the network who talks to whom.
//!
//! The nonce is the counter, which never comes twice. A key seals [`EPOCH_SIZE`] datagrams; the next one
//! is derived from a secret that only goes forward, so that who takes a node's memory can't open what it
//! sent before. Both ends tell by the counter which key is meant.

use ring::aead::{self, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, UnboundKey};
use zeroize::Zeroizing;

use crate::link::udp::packet::TAG_SIZE;

/// Datagrams that one key seals, as a power of two.
const EPOCH_BITS: u32 = 20;
/// Datagrams behind the newest that are still taken, each once.
pub(crate) const WINDOW_SIZE: u64 = 2048;

const RATCHET_CONTEXT: &str = "mycelium udp link 1 ratchet";
const KEY_CONTEXT: &str = "mycelium udp link 1 key";

/// What seals.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Algorithm {
    /// Where both ends have it in hardware.
    Aes256Gcm,
    /// Elsewhere.
    ChaCha20Poly1305,
}

/// A key that moves forward.
struct Ratchet {
    algorithm: Algorithm,
    secret: Zeroizing<[u8; 32]>,
    epoch: u64,
}

impl Ratchet {
    fn new(algorithm: Algorithm, key: &[u8; 32]) -> Self {
        Self { algorithm, secret: Zeroizing::new(*key), epoch: 0 }
    }

    fn key(&self) -> LessSafeKey {
        let key = Zeroizing::new(blake3::derive_key(KEY_CONTEXT, &*self.secret));
        let algorithm = match self.algorithm {
            Algorithm::Aes256Gcm => &AES_256_GCM,
            Algorithm::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        };
        // Both take keys of 32 bytes.
        LessSafeKey::new(UnboundKey::new(algorithm, &*key).expect("a key has 32 bytes"))
    }

    fn next(&self) -> Self {
        let secret = Zeroizing::new(blake3::derive_key(RATCHET_CONTEXT, &*self.secret));
        Self { algorithm: self.algorithm, secret, epoch: self.epoch + 1 }
    }
}

/// Seals what a link sends.
pub(crate) struct Sealer {
    ratchet: Ratchet,
    key: LessSafeKey,
    counter: u64,
}

impl Sealer {
    pub(crate) fn new(algorithm: Algorithm, key: &[u8; 32]) -> Self {
        let ratchet = Ratchet::new(algorithm, key);
        Self { key: ratchet.key(), ratchet, counter: 0 }
    }

    /// The counter that the next datagram will have.
    pub(crate) fn next_counter(&self) -> u64 {
        self.counter
    }

    /// Seals a payload that has room for the tag behind it, with the next counter.
    pub(crate) fn seal(&mut self, payload_and_room: &mut [u8]) {
        if self.counter >> EPOCH_BITS != self.ratchet.epoch {
            self.ratchet = self.ratchet.next();
            self.key = self.ratchet.key();
        }
        let size = payload_and_room.len().saturating_sub(TAG_SIZE);
        let (payload, room) = payload_and_room.split_at_mut(size);
        let sealed =
            self.key.seal_in_place_separate_tag(nonce(self.counter), Aad::empty(), payload);
        // A link that lasts for 2^64 datagrams is not of this world, nor is one as large as AEADs forbid.
        room.copy_from_slice(sealed.expect("no datagram is too large to be sealed").as_ref());
        self.counter += 1;
    }
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sealer(counter {})", self.counter)
    }
}

/// Opens what a link receives, each datagram once.
pub(crate) struct Opener {
    ratchet: Ratchet,
    key: LessSafeKey,
    /// Of the epoch before, for what comes late.
    previous: Option<LessSafeKey>,
    window: Window,
}

/// A datagram that the peer did not seal, or that came already.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Refused;

impl Opener {
    pub(crate) fn new(algorithm: Algorithm, key: &[u8; 32]) -> Self {
        let ratchet = Ratchet::new(algorithm, key);
        Self { key: ratchet.key(), ratchet, previous: None, window: Window::default() }
    }

    /// Opens a sealed payload with its tag.
    pub(crate) fn open<'a>(
        &mut self,
        counter: u64,
        sealed: &'a mut [u8],
    ) -> Result<&'a mut [u8], Refused> {
        if !self.window.may_take(counter) {
            return Err(Refused);
        }
        let epoch = counter >> EPOCH_BITS;
        let opened = if epoch == self.ratchet.epoch {
            open(&self.key, counter, sealed)?
        } else if epoch == self.ratchet.epoch + 1 {
            let next = self.ratchet.next();
            let key = next.key();
            let opened = open(&key, counter, sealed)?;
            self.ratchet = next;
            self.previous = Some(std::mem::replace(&mut self.key, key));
            opened
        } else if epoch + 1 == self.ratchet.epoch {
            open(self.previous.as_ref().ok_or(Refused)?, counter, sealed)?
        } else {
            return Err(Refused);
        };
        self.window.take(counter);
        Ok(opened)
    }

    /// Whether this is the first datagram of a new link, which is looked at without being taken.
    pub(crate) fn is_genuine(&self, counter: u64, sealed: &[u8]) -> bool {
        counter >> EPOCH_BITS == 0 && open(&self.key, counter, &mut sealed.to_vec()).is_ok()
    }

    /// Whether no datagram with a higher counter has come.
    pub(crate) fn is_newest(&self, counter: u64) -> bool {
        counter + 1 == self.window.end
    }
}

impl std::fmt::Debug for Opener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Opener(counter {})", self.window.end)
    }
}

fn open<'a>(
    key: &LessSafeKey,
    counter: u64,
    sealed: &'a mut [u8],
) -> Result<&'a mut [u8], Refused> {
    key.open_in_place(nonce(counter), Aad::empty(), sealed).map_err(|_| Refused)
}

fn nonce(counter: u64) -> aead::Nonce {
    let mut nonce = [0; aead::NONCE_LEN];
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    aead::Nonce::assume_unique_for_key(nonce)
}

/// Which counters came, as far back as it matters (RFC 6479).
#[derive(Debug)]
struct Window {
    /// One more than the highest.
    end: u64,
    /// A bit for each counter, by its remainder; one word more than the window, which is cleared ahead.
    words: [u64; WORD_COUNT],
}

const WORD_COUNT: usize = 33;
const _: () = assert!((WORD_COUNT as u64 - 1) * 64 == WINDOW_SIZE);

impl Default for Window {
    fn default() -> Self {
        Self { end: 0, words: [0; WORD_COUNT] }
    }
}

impl Window {
    fn may_take(&self, counter: u64) -> bool {
        if counter >= self.end {
            return counter < u64::MAX;
        }
        let (word, bit) = place(counter);
        self.end - counter <= WINDOW_SIZE && self.words[word] & bit == 0
    }

    fn take(&mut self, counter: u64) {
        if counter >= self.end {
            // Words that are entered anew still hold what came long ago.
            let (from, to) = (self.end.div_ceil(64), counter / 64);
            for word in (from..=to).take(WORD_COUNT) {
                self.words[place(word * 64).0] = 0;
            }
            self.end = counter + 1;
        }
        let (word, bit) = place(counter);
        self.words[word] |= bit;
    }
}

fn place(counter: u64) -> (usize, u64) {
    let word = usize::try_from(counter / 64 % WORD_COUNT as u64).unwrap_or(0);
    (word, 1 << (counter % 64))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn pair(algorithm: Algorithm) -> (Sealer, Opener) {
        let key = [7; 32];
        (Sealer::new(algorithm, &key), Opener::new(algorithm, &key))
    }

    fn seal(sealer: &mut Sealer, payload: &[u8]) -> (u64, Vec<u8>) {
        let counter = sealer.next_counter();
        let mut bytes = payload.to_vec();
        bytes.resize(payload.len() + TAG_SIZE, 0);
        sealer.seal(&mut bytes);
        (counter, bytes)
    }

    #[test]
    fn what_is_sealed_opens_once_and_only_unchanged() {
        for algorithm in [Algorithm::Aes256Gcm, Algorithm::ChaCha20Poly1305] {
            let (mut sealer, mut opener) = pair(algorithm);
            let (counter, mut bytes) = seal(&mut sealer, b"hello");
            let mut changed = bytes.clone();
            changed[2] ^= 1;
            assert_eq!(opener.open(counter, &mut changed), Err(Refused));
            assert_eq!(opener.open(counter + 1, &mut bytes.clone()), Err(Refused));
            assert_eq!(opener.open(counter, &mut bytes.clone()).unwrap(), b"hello");
            assert_eq!(opener.open(counter, &mut bytes), Err(Refused));
        }
    }

    #[test]
    fn keys_change_on_the_way_and_late_datagrams_still_open() {
        let (mut sealer, mut opener) = pair(Algorithm::Aes256Gcm);
        sealer.counter = (1 << EPOCH_BITS) - 2;
        let [old, late, new] = [1, 2, 3].map(|number| seal(&mut sealer, &[number]));
        assert_eq!(new.0 >> EPOCH_BITS, 1);
        for (number, (counter, mut bytes)) in [(1, old), (3, new), (2, late)] {
            assert_eq!(opener.open(counter, &mut bytes).unwrap(), [number]);
        }
        // Two epochs ahead is none of the peer's.
        let (_, mut bytes) = seal(&mut sealer, b"far");
        assert_eq!(opener.open(3 << EPOCH_BITS, &mut bytes), Err(Refused));
    }

    proptest! {
        #[test]
        fn a_window_takes_each_counter_once_like_a_set(
            steps in proptest::collection::vec((0_u64..5000, any::<bool>()), 1..300),
        ) {
            let (mut window, mut taken, mut highest) = (Window::default(), BTreeSet::new(), 0_u64);
            for (step, is_far) in steps {
                let counter = if is_far { highest + step } else { highest.saturating_sub(step) };
                let is_old = counter + WINDOW_SIZE < window.end;
                let expected = !is_old && !taken.contains(&counter);
                prop_assert_eq!(window.may_take(counter), expected, "{}", counter);
                if expected {
                    window.take(counter);
                    taken.insert(counter);
                    highest = highest.max(counter);
                }
            }
        }
    }
}
