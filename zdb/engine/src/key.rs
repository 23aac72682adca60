//! What opens an encrypted namespace: a key, or a passphrase that a key is made of. Never shown, and
//! wiped from memory when it is dropped.
//!
//! ```text
//!  key file, administrator ───────────────────────────> [MasterKey] ──> opens the descriptor's keys
//!  passphrase ── Argon2id (salt and costs: [Derivation], in the descriptor) ──┘
//! ```
//!
//! Argon2id (RFC 9106) is slow on purpose, so a [`Passphrase`] remembers the keys that it became, and
//! namespaces that are made with it share one salt: a server with many of them starts as fast as one
//! with a single one. What is sealed with the key are random keys, under random nonces, so that a
//! shared salt tells only that namespaces share their passphrase.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use argon2::{Algorithm, Argon2, Params, Version};
use zeroize::Zeroizing;

use crate::Error;
use crate::storage::Storage;

/// Bytes of a key.
const KEY_SIZE: usize = 32;
/// Bytes of a salt (RFC 9106 §3.1).
const SALT_SIZE: usize = 16;
/// Memory of one derivation (RFC 9106 §4, the second recommended option).
const MEMORY_KIB: u32 = 64 * 1024;
/// Times that memory is gone over.
const PASSES: u32 = 3;
/// Lanes of it.
const LANES: u32 = 4;
/// What a descriptor or an administrator may ask for at most: 1 GiB.
const MEMORY_KIB_MAX: u32 = 1024 * 1024;
/// The same, of passes.
const PASSES_MAX: u32 = 64;
/// The same, of lanes; Argon2 wants 8 KiB for each.
const LANES_MAX: u32 = 64;
/// Keys that a passphrase remembers.
const DERIVED_COUNT_MAX: usize = 16;
/// What a derivation's text begins with.
const PREFIX: &str = "argon2id";

/// Opens the keys in a namespace's descriptor.
#[derive(Clone, PartialEq, Eq)]
pub struct MasterKey(Zeroizing<[u8; KEY_SIZE]>);

impl MasterKey {
    /// Takes 32 bytes that nobody can guess.
    #[must_use]
    pub fn new(bytes: [u8; KEY_SIZE]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The key's bytes, for handing it over sealed.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; KEY_SIZE] {
        &self.0
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("MasterKey")
    }
}

/// How a passphrase becomes a key: salt and costs of Argon2id. No secret.
///
/// As text `argon2id:65536:3:4:` and the salt's 32 hex digits: KiB of memory, passes, lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Derivation {
    pub(crate) salt: [u8; SALT_SIZE],
    pub(crate) memory_kib: u32,
    pub(crate) passes: u32,
    pub(crate) lanes: u32,
}

impl Derivation {
    /// RFC 9106's costs, and a salt that must be random.
    #[must_use]
    pub fn new(salt: [u8; SALT_SIZE]) -> Self {
        Self { salt, memory_kib: MEMORY_KIB, passes: PASSES, lanes: LANES }
    }

    /// `None` if the costs are out of bounds: too cheap to be Argon2id's, or too dear for a server.
    pub(crate) fn with_costs(
        salt: [u8; SALT_SIZE],
        memory_kib: u32,
        passes: u32,
        lanes: u32,
    ) -> Option<Self> {
        let sound = (1..=LANES_MAX).contains(&lanes)
            && (1..=PASSES_MAX).contains(&passes)
            && (8 * lanes..=MEMORY_KIB_MAX).contains(&memory_kib);
        sound.then_some(Self { salt, memory_kib, passes, lanes })
    }

    /// The key of a passphrase. Takes a tenth of a second or so, and the memory it says.
    ///
    /// # Errors
    ///
    /// [`Error::Derivation`] if there is no memory for it.
    pub fn derive(&self, passphrase: &[u8]) -> Result<MasterKey, Error> {
        let mut key = Zeroizing::new([0; KEY_SIZE]);
        let params = Params::new(self.memory_kib, self.passes, self.lanes, Some(KEY_SIZE));
        let derived = params.and_then(|params| {
            let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
            argon.hash_password_into(passphrase, &self.salt, &mut *key)
        });
        derived.map_err(|error| Error::Derivation { reason: error.to_string() })?;
        Ok(MasterKey(key))
    }
}

impl fmt::Display for Derivation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{PREFIX}:{}:{}:{}:", self.memory_kib, self.passes, self.lanes)?;
        self.salt.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

/// A text is no [`Derivation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not argon2id:KIB:PASSES:LANES:SALT with costs in bounds and a salt of 32 hex digits")]
pub struct DerivationError;

impl FromStr for Derivation {
    type Err = DerivationError;

    fn from_str(text: &str) -> Result<Self, DerivationError> {
        let parsed = (|| {
            let mut fields = text.split(':');
            if fields.next()? != PREFIX {
                return None;
            }
            let [memory_kib, passes, lanes] =
                [fields.next()?, fields.next()?, fields.next()?].map(|field| field.parse().ok());
            let digits = fields.next().filter(|digits| digits.len() == 2 * SALT_SIZE)?;
            let mut salt = [0; SALT_SIZE];
            for (byte, pair) in salt.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
                let high = char::from(pair[0]).to_digit(16)?;
                let low = char::from(pair[1]).to_digit(16)?;
                *byte = u8::try_from(high << 4 | low).ok()?;
            }
            if fields.next().is_some() {
                return None;
            }
            Self::with_costs(salt, memory_kib?, passes?, lanes?)
        })();
        parsed.ok_or(DerivationError)
    }
}

/// A passphrase, and the keys that it became. Clones are the same.
#[derive(Clone)]
pub struct Passphrase(Arc<Remembered>);

struct Remembered {
    text: Zeroizing<Vec<u8>>,
    derived: Mutex<Derived>,
}

#[derive(Default)]
struct Derived {
    /// What new namespaces use.
    usual: Option<Derivation>,
    /// Oldest first.
    keys: Vec<(Derivation, MasterKey)>,
}

impl Passphrase {
    /// Takes a passphrase.
    #[must_use]
    pub fn new(text: &[u8]) -> Self {
        let text = Zeroizing::new(text.to_vec());
        Self(Arc::new(Remembered { text, derived: Mutex::default() }))
    }

    /// The key that it becomes. Those who ask at the same time wait for one another, so that the memory
    /// of one derivation is enough.
    fn key(&self, derivation: &Derivation) -> Result<MasterKey, Error> {
        let mut derived = self.0.derived.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, key)) = derived.keys.iter().find(|(known, _)| known == derivation) {
            return Ok(key.clone());
        }
        let key = derivation.derive(&self.0.text)?;
        if derived.keys.len() >= DERIVED_COUNT_MAX {
            derived.keys.remove(0);
        }
        derived.keys.push((*derivation, key.clone()));
        derived.usual.get_or_insert(*derivation);
        Ok(key)
    }

    /// How new namespaces derive their key: as others do already, if there are any.
    fn usual(&self, storage: &dyn Storage) -> Result<Derivation, Error> {
        let mut derived = self.0.derived.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(usual) = derived.usual {
            return Ok(usual);
        }
        let mut salt = [0; SALT_SIZE];
        storage.random(&mut salt).map_err(Error::Read)?;
        Ok(*derived.usual.insert(Derivation::new(salt)))
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Passphrase")
    }
}

/// What somebody who may open a namespace has.
#[derive(Clone, Debug)]
pub enum Secret {
    /// The key itself.
    Key(MasterKey),
    /// What it is made of.
    Passphrase(Passphrase),
    /// A key that somebody else made of a passphrase, and how.
    Derived(MasterKey, Derivation),
}

impl From<MasterKey> for Secret {
    fn from(key: MasterKey) -> Self {
        Self::Key(key)
    }
}

impl Secret {
    /// The key, for a namespace that derives keys in this way, if in any.
    pub(crate) fn key(&self, derivation: Option<&Derivation>) -> Result<MasterKey, Error> {
        match (self, derivation) {
            (Self::Key(key), _) => Ok(key.clone()),
            (Self::Passphrase(passphrase), Some(derivation)) => passphrase.key(derivation),
            (Self::Derived(key, known), Some(derivation)) if known == derivation => Ok(key.clone()),
            // Nothing of the namespace was ever sealed with a passphrase's key, or with another one.
            (Self::Passphrase(_) | Self::Derived(..), _) => Err(Error::WrongKey),
        }
    }

    /// How a namespace that is sealed with it for the first time derives keys, if it must.
    pub(crate) fn derivation(&self, storage: &dyn Storage) -> Result<Option<Derivation>, Error> {
        match self {
            Self::Key(_) => Ok(None),
            Self::Passphrase(passphrase) => passphrase.usual(storage).map(Some),
            Self::Derived(_, derivation) => Ok(Some(*derivation)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::sim::SimDisk;

    /// The cheapest costs, so that a test takes no time.
    fn cheap(salt: u8) -> Derivation {
        Derivation::with_costs([salt; SALT_SIZE], 8, 1, 1).unwrap()
    }

    #[test]
    fn a_key_depends_on_all_that_makes_it_and_on_nothing_else() {
        let key = cheap(1).derive(b"correct horse").unwrap();
        assert_eq!(cheap(1).derive(b"correct horse").unwrap(), key);
        assert_ne!(cheap(1).derive(b"correct horsf").unwrap(), key);
        assert_ne!(cheap(2).derive(b"correct horse").unwrap(), key);
        let dearer = Derivation { passes: 2, ..cheap(1) };
        assert_ne!(dearer.derive(b"correct horse").unwrap(), key);
    }

    /// What the reference implementation makes of the same, by way of Python's `argon2-cffi`.
    #[test]
    fn keys_are_those_of_the_reference_implementation() {
        for (costs, expected) in [
            ("64:2:1", "1a98fba8e6394425c9bdc333a9c750aaf811df070f5fb4a5788e1cf4db5793a1"),
            ("256:3:4", "3ae75675fc1875866526c8f930cb40d6fe751ec0bea5ad3052bafca5369373b3"),
        ] {
            let text = format!("argon2id:{costs}:736f6d6573616c74736f6d6573616c74");
            let derivation: Derivation = text.parse().unwrap();
            assert_eq!((derivation.salt, derivation.to_string()), (*b"somesaltsomesalt", text));
            let key = derivation.derive(b"password").unwrap();
            let digits: String = key.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(digits, expected);
        }
    }

    #[test]
    fn a_text_out_of_bounds_is_refused() {
        let salt = "00".repeat(SALT_SIZE);
        assert!(format!("argon2id:65536:3:4:{salt}").parse::<Derivation>().is_ok());
        for bad in [
            String::new(),
            format!("argon2i:65536:3:4:{salt}"),
            format!("argon2id:65536:3:4:{salt}00"),
            format!("argon2id:65536:3:4:{salt}:"),
            format!("argon2id:31:3:4:{salt}"),
            format!("argon2id:2000000:3:4:{salt}"),
            format!("argon2id:65536:0:4:{salt}"),
            format!("argon2id:65536:65:4:{salt}"),
            format!("argon2id:65536:3:0:{salt}"),
            format!("argon2id:65536:3:65:{salt}"),
            format!("argon2id:65536:3:4:{}", "zz".repeat(SALT_SIZE)),
        ] {
            assert_eq!(bad.parse::<Derivation>(), Err(DerivationError), "{bad}");
        }
    }

    #[test]
    fn new_namespaces_share_a_salt_and_the_work() {
        let disk = SimDisk::new(1);
        let fresh = Passphrase::new(b"words");
        assert_eq!(fresh.usual(&disk).unwrap(), fresh.usual(&disk).unwrap());
        // One that has opened something goes on in that way.
        let used = Passphrase::new(b"words");
        let key = used.key(&cheap(3)).unwrap();
        assert_eq!(used.usual(&disk).unwrap(), cheap(3));
        assert_eq!(used.key(&cheap(3)).unwrap(), key);
        for salt in 0..40 {
            used.key(&cheap(salt)).unwrap();
        }
        let derived = used.0.derived.lock().unwrap();
        assert_eq!((derived.keys.len(), derived.usual), (DERIVED_COUNT_MAX, Some(cheap(3))));
    }

    #[test]
    fn nothing_secret_is_shown() {
        let secrets = [
            Secret::Key(MasterKey::new(*b"abcdefghijklmnopqrstuvwxyz012345")),
            Secret::Passphrase(Passphrase::new(b"abcdef")),
            Secret::Derived(MasterKey::new([b'a'; KEY_SIZE]), cheap(1)),
        ];
        for secret in secrets {
            let shown = format!("{secret:?}");
            assert!(!shown.contains("abc") && !shown.contains("97"), "{shown}");
        }
    }
}
