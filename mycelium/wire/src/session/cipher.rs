//! Ciphers of sessions: which one, sealing by counter, opening each counter once.
//!
//! ```text
//!  nonce = 0 4 ‖ counter 8          sealed = ciphertext ‖ tag 16
//! ```
//!
//! A key is one direction's of one handshake, so that a counter makes a nonce that is used once.
//! ChaCha20-Poly1305 is what every node can. AES-256-GCM costs a third of it where the processor has
//! instructions for it, and leaks keys through the cache where software does it with tables: it is taken
//! when both nodes have them.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use ring::aead::{self, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

use super::window::Window;
use crate::noise::TrafficKey;

/// Size of a tag, in bytes.
pub const TAG_SIZE: usize = 16;
/// Counters from here on are never used: a wrap would use nonces twice.
pub const COUNTER_END: u64 = u64::MAX - (1 << 13);

/// A cipher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Suite {
    /// RFC 8439.
    ChaCha20Poly1305,
    /// NIST SP 800-38D.
    Aes256Gcm,
}

impl Suite {
    /// Its bit among [`Suites`].
    #[must_use]
    pub const fn bit(self) -> u16 {
        match self {
            Self::ChaCha20Poly1305 => 1,
            Self::Aes256Gcm => 2,
        }
    }

    /// The suite with this bit.
    #[must_use]
    pub const fn from_bit(bit: u16) -> Option<Self> {
        match bit {
            1 => Some(Self::ChaCha20Poly1305),
            2 => Some(Self::Aes256Gcm),
            _ => None,
        }
    }

    /// Its name, as people write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ChaCha20Poly1305 => "ChaCha20-Poly1305",
            Self::Aes256Gcm => "AES-256-GCM",
        }
    }

    fn key(self, key: &TrafficKey) -> LessSafeKey {
        let algorithm: &'static aead::Algorithm = match self {
            Self::ChaCha20Poly1305 => &CHACHA20_POLY1305,
            Self::Aes256Gcm => &AES_256_GCM,
        };
        let key = UnboundKey::new(algorithm, key.as_bytes());
        LessSafeKey::new(key.expect("both ciphers have keys of 32 bytes"))
    }
}

/// Some ciphers, as one node tells the other which it can. Unknown bits are those of later versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suites(pub u16);

impl Suites {
    /// What every node can.
    pub const ALL_NODES: Self = Self(Suite::ChaCha20Poly1305.bit());

    /// What this machine can well.
    #[must_use]
    pub fn here() -> Self {
        let aes = if has_aes() { Suite::Aes256Gcm.bit() } else { 0 };
        Self(Self::ALL_NODES.0 | aes)
    }

    /// The cipher for two nodes.
    #[must_use]
    pub const fn common(self, other: Self) -> Suite {
        if self.0 & other.0 & Suite::Aes256Gcm.bit() == 0 {
            Suite::ChaCha20Poly1305
        } else {
            Suite::Aes256Gcm
        }
    }

    /// Whether it is one of these; the one that all can always is.
    #[must_use]
    pub const fn has(self, suite: Suite) -> bool {
        (self.0 | Self::ALL_NODES.0) & suite.bit() != 0
    }
}

#[cfg(target_arch = "x86_64")]
fn has_aes() -> bool {
    std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq")
}

#[cfg(target_arch = "aarch64")]
fn has_aes() -> bool {
    std::arch::is_aarch64_feature_detected!("aes")
        && std::arch::is_aarch64_feature_detected!("pmull")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn has_aes() -> bool {
    false
}

/// Seals one direction.
pub struct Sealer(LessSafeKey);

impl Sealer {
    /// For a key that nothing was sealed with yet.
    #[must_use]
    pub fn new(suite: Suite, key: &TrafficKey) -> Self {
        Self(suite.key(key))
    }

    /// Seals `bytes`, which is plaintext and [`TAG_SIZE`] bytes of room. A counter must not be used
    /// twice. `aad` is not in it, but must be the same for who opens it.
    ///
    /// # Panics
    /// When there is no room.
    pub fn seal_in_place(&self, counter: u64, aad: &[u8], bytes: &mut [u8]) {
        let size = bytes.len().checked_sub(TAG_SIZE).expect("room for the tag");
        let (plaintext, room) = bytes.split_at_mut(size);
        let tag = self.0.seal_in_place_separate_tag(nonce(counter), Aad::from(aad), plaintext);
        room.copy_from_slice(tag.expect("no packet is too large for the cipher").as_ref());
    }

    /// Opens what this sealed before, for what comes back inside errors. It may come any number of times.
    ///
    /// # Errors
    /// When this has not sealed it.
    pub fn reopen_in_place<'a>(
        &self,
        counter: u64,
        aad: &[u8],
        sealed: &'a mut [u8],
    ) -> Result<&'a mut [u8], SealError> {
        let opened = self.0.open_in_place(nonce(counter), Aad::from(aad), sealed);
        opened.map_err(|_| SealError::Forged)
    }
}

/// Opens one direction.
pub struct Opener {
    key: LessSafeKey,
    window: Mutex<Window>,
}

impl Opener {
    /// For the key that the other end seals with.
    #[must_use]
    pub fn new(suite: Suite, key: &TrafficKey) -> Self {
        Self { key: suite.key(key), window: Mutex::default() }
    }

    /// Opens `sealed`, which is ciphertext and tag, and gives its plaintext.
    ///
    /// # Errors
    /// When the other end has not sealed it, or it came before. Its bytes are of no use then.
    pub fn open_in_place<'a>(
        &self,
        counter: u64,
        aad: &[u8],
        sealed: &'a mut [u8],
    ) -> Result<&'a mut [u8], SealError> {
        if counter >= COUNTER_END {
            return Err(SealError::Forged);
        }
        let opened = self.key.open_in_place(nonce(counter), Aad::from(aad), sealed);
        let plaintext = opened.map_err(|_| SealError::Forged)?;
        // Only what is true moves the window.
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.take(counter) { Ok(plaintext) } else { Err(SealError::Repeated) }
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer(..)")
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opener(..)")
    }
}

/// A sealed packet that is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// It is cut off.
    #[error("a packet of a session has at least 28 bytes, not {0}")]
    Short(usize),
    /// It was sealed with another key, or changed.
    #[error("the packet was not sealed by the session's other end")]
    Forged,
    /// It came before, or is too old to tell.
    #[error("the packet came before")]
    Repeated,
    /// The session is over: its time or its counters are used up.
    #[error("the session is over")]
    Over,
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    let (_zeros, rest) = bytes.split_at_mut(4);
    rest.copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::SecretKey;
    use crate::noise::{Initiator, Keys, Pattern, Responder};

    fn keys() -> (Keys, Keys) {
        let secret = SecretKey::from_bytes([1; 32]);
        let mut a = Initiator::new(Pattern::Xx, &secret, None, b"").unwrap();
        let mut b = Responder::new(Pattern::Xx, &secret, b"").unwrap();
        let (mut message, mut none) = (Vec::new(), Vec::new());
        let _ = a.write(b"", &mut message).unwrap();
        let _ = b.read(&message, &mut none).unwrap();
        message.clear();
        let _ = b.write(b"", &mut message).unwrap();
        let _ = a.read(&message, &mut none).unwrap();
        message.clear();
        let _ = a.write(b"", &mut message).unwrap();
        let _ = b.read(&message, &mut none).unwrap();
        (a.finish().unwrap(), b.finish().unwrap())
    }

    #[test]
    fn each_counter_is_opened_once_by_the_other_end() {
        let (a, b) = keys();
        for suite in [Suite::ChaCha20Poly1305, Suite::Aes256Gcm] {
            let (sealer, opener) = (Sealer::new(suite, &a.send), Opener::new(suite, &b.receive));
            let seal = |counter| {
                let mut bytes = b"text".to_vec();
                bytes.resize(4 + TAG_SIZE, 0);
                sealer.seal_in_place(counter, b"outside", &mut bytes);
                bytes
            };
            for (counter, expected) in [
                (5, Ok(())),
                (5, Err(SealError::Repeated)),
                (4, Ok(())),
                (5000, Ok(())),
                (6, Err(SealError::Repeated)),
            ] {
                let opened =
                    opener.open_in_place(counter, b"outside", &mut seal(counter)).map(drop);
                assert_eq!(opened, expected, "{counter}");
            }
            let mut again = seal(7);
            assert_eq!(sealer.reopen_in_place(7, b"outside", &mut again).unwrap(), b"text");
            // What is not true does not move the window.
            let far = opener.open_in_place(1 << 40, b"outside", &mut seal(1 << 39)).map(drop);
            assert_eq!(far, Err(SealError::Forged));
            let last = COUNTER_END;
            let last = opener.open_in_place(last, b"outside", &mut seal(last)).map(drop);
            assert_eq!(last, Err(SealError::Forged));
            for place in 0..4 + TAG_SIZE {
                let mut changed = seal(5001);
                changed[place] ^= 1;
                let opened = opener.open_in_place(5001, b"outside", &mut changed).map(drop);
                assert_eq!(opened, Err(SealError::Forged));
            }
            let opened = opener.open_in_place(5001, b"0utside", &mut seal(5001)).map(drop);
            assert_eq!(opened, Err(SealError::Forged));
            assert_eq!(opener.open_in_place(5001, b"outside", &mut seal(5001)).unwrap(), b"text");
        }
    }

    #[test]
    fn the_faster_cipher_is_for_two_that_can() {
        let both = Suites(3);
        assert_eq!(both.common(both), Suite::Aes256Gcm);
        assert_eq!(both.common(Suites::ALL_NODES), Suite::ChaCha20Poly1305);
        assert_eq!(Suites(0).common(both), Suite::ChaCha20Poly1305);
        assert!(Suites(0).has(Suite::ChaCha20Poly1305) && !Suites(5).has(Suite::Aes256Gcm));
        for suite in [Suite::ChaCha20Poly1305, Suite::Aes256Gcm] {
            assert_eq!(Suite::from_bit(suite.bit()), Some(suite));
        }
        assert_eq!(Suite::from_bit(3), None);
    }
}
