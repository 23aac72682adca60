//! Where blocks live: directories, ZDB, HTTP servers, S3 buckets.
//!
//! A [`Store`] is dumb on purpose: it maps names to bytes and promises nothing about them. Who
//! retries and verifies is [`fetch::Fetcher`]; who shards and replicates on the way in is
//! [`route::Stores`].
//!
//! Store URLs can carry passwords and keys. They are parsed once into a [`url::StoreUrl`], whose
//! `Display` and `Debug` never show them.

pub mod dir;
pub mod fetch;
pub mod http;
pub mod policy;
pub mod route;
pub mod s3;
#[cfg(test)]
mod testing;
pub mod url;
mod writeback;
pub mod zdb;

use flist_view::block::BlockId;

/// Where blocks are kept, by name. Implementations are synchronous and serve many threads at once.
pub trait Store: Send + Sync {
    /// The stored bytes of a block.
    ///
    /// `name` is the block's id without padding: 32 bytes, or 16 for legacy images. The bytes are
    /// unverified. At most one byte more than
    /// [`STORED_SIZE_MAX`](crate::block::STORED_SIZE_MAX) is read, which is enough to tell that it
    /// is no block.
    ///
    /// # Errors
    /// [`StoreError::Missing`] if the store answered and does not have it.
    fn get(&self, name: &[u8]) -> Result<Vec<u8>, StoreError>;

    /// Keeps a block; does nothing when the store has one of that name already.
    ///
    /// # Errors
    /// [`StoreError::ReadOnly`] for stores that only read.
    fn put(&self, name: &[u8], stored: &[u8]) -> Result<(), StoreError>;

    /// Makes durable what `put` returned for. Called once, before an image that needs the blocks is
    /// published.
    ///
    /// # Errors
    /// If the store cannot promise it.
    fn sync(&self) -> Result<(), StoreError>;
}

/// Why a store did not do what it was asked. `store` is a URL without secrets.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It answered that it has no such block.
    #[error("{store}: no block {block}")]
    Missing {
        /// The store.
        store: String,
        /// The block, in hex.
        block: String,
    },
    /// It can't be written.
    #[error("{store}: this kind of store is read-only")]
    ReadOnly {
        /// The store.
        store: String,
    },
    /// The URL is not one of a store.
    #[error("store {store:?}: {rule}")]
    Url {
        /// The URL, without secrets.
        store: String,
        /// What a store URL must look like.
        rule: String,
    },
    /// It refused (wrong password, no such namespace or bucket), or the [`policy`] forbids to follow the
    /// route. Trying again will not help.
    #[error("{store}: {reason}")]
    Refused {
        /// The store.
        store: String,
        /// What it said, or the rule.
        reason: String,
    },
    /// It failed, and would fail again: disk full, not permitted by the system, damaged, no valid
    /// certificate.
    #[error("{store}: {reason}")]
    Failed {
        /// The store.
        store: String,
        /// What happened.
        reason: String,
    },
    /// It could not be reached, or broke off. Trying again may help.
    #[error("{store}: {reason}")]
    Unreachable {
        /// The store.
        store: String,
        /// What happened.
        reason: String,
    },
}

/// A block's name in its stores: its id without the padding of legacy ids.
#[must_use]
pub fn store_name(id: &BlockId, cipher: flist_view::block::BlockCipher) -> &[u8] {
    &id.0[..cipher.hash_size()]
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] =
        ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    let digits = |byte: &u8| [byte >> 4, byte & 15].map(|digit| DIGITS[usize::from(digit)]);
    bytes.iter().flat_map(digits).collect()
}
