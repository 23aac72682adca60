//! Who twin N is: what the chain says, behind a trait.
//!
//! This crate knows no chain. Whoever uses it says how twins are looked up, by implementing [`Twins`],
//! and puts a [`CachedTwins`] in front: nearly every message needs one lookup or two.

mod cache;

use std::fmt;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;

use crate::identity::AccountId;
use crate::seal::{EncryptionKey, KeyError};

pub use cache::CachedTwins;

/// A twin's number on the chain, never 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TwinId(NonZeroU32);

impl TwinId {
    /// The twin of that number; 0 is nobody.
    pub fn new(number: u32) -> Option<Self> {
        NonZeroU32::new(number).map(Self)
    }

    /// The number.
    pub fn number(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for TwinId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for TwinId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What the chain says about a twin, as far as messages are concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Twin {
    /// Its number.
    pub id: TwinId,
    /// Whose signatures count.
    pub account: AccountId,
    /// Host names of its relays. On the chain they are one text, joined by `_`.
    pub relays: Vec<String>,
    /// What to encrypt with; none for a twin that published no key, an error for one whose key is of
    /// no kind that we know.
    pub encryption_key: Result<Option<EncryptionKey>, KeyError>,
}

impl Twin {
    /// From the fields of the chain's type `Twin`: `relay` is a list joined by `_`, `pk` a key.
    pub fn from_chain(
        id: TwinId,
        account: AccountId,
        relay: Option<&[u8]>,
        pk: Option<&[u8]>,
    ) -> Self {
        let relays = String::from_utf8_lossy(relay.unwrap_or_default());
        let relays = relays.split('_').filter(|name| !name.is_empty()).map(str::to_lowercase);
        let key = pk.filter(|pk| !pk.is_empty()).map(EncryptionKey::parse).transpose();
        Self { id, account, relays: relays.collect(), encryption_key: key }
    }
}

/// Twins could not be looked up; nothing is said about whether there is such a twin.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
#[error("{0}")]
pub struct TwinsError(pub String);

/// What looking up a twin leads to.
pub type TwinLookup<'a> =
    Pin<Box<dyn Future<Output = Result<Option<Arc<Twin>>, TwinsError>> + Send + 'a>>;

/// Something that knows twins.
pub trait Twins: Send + Sync {
    /// Twin `id`, or nothing if there is none.
    fn twin(&self, id: TwinId) -> TwinLookup<'_>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chains_fields_are_understood() {
        let id = TwinId::new(7).unwrap();
        let account = AccountId::from_bytes([1; 32]);
        let twin = Twin::from_chain(id, account, Some(b"Relay.grid.tf_r2.grid.tf"), None);
        assert_eq!(twin.relays, ["relay.grid.tf", "r2.grid.tf"]);
        assert_eq!(twin.encryption_key, Ok(None));
        let twin = Twin::from_chain(id, account, None, Some(b""));
        assert!(twin.relays.is_empty());
        assert_eq!(twin.encryption_key, Ok(None));
        let twin = Twin::from_chain(id, account, None, Some(b"hello"));
        assert!(twin.encryption_key.is_err());
    }
}
