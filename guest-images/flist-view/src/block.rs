//! Blocks: how contents are named, and where a reader gets them.
//!
//! A file is cut at [`BLOCK_SIZE`]; each piece has a name in its stores ([`BlockId`]) and the hash
//! of its plaintext, which is also the key that decrypts it ([`BlockKey`]). Layout and ciphers are
//! the image format's affair (`reference: flist 1.1, 1.2`); here blocks are only names, and a
//! [`BlockSource`] is whoever can turn a name into a range of a local, verified file.

use std::fmt;
use std::fs::File;
use std::sync::Arc;

/// Bytes of plaintext in every block of a file but the last.
pub const BLOCK_SIZE: u32 = 512 * 1024;

/// Name of a block in its stores: the hash of its stored (compressed, encrypted) bytes.
///
/// Current images use 32 bytes (BLAKE2b-256). Legacy images use 16 (BLAKE2b-128), padded here with
/// zeros; [`BlockCipher::hash_size`] tells how many count.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub [u8; 32]);

/// Hash of a block's plaintext, and the key that decrypts it. Padded like [`BlockId`].
///
/// Whoever holds it can read the block, so its `Debug` shows nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockKey(pub [u8; 32]);

/// What an image says of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockRef {
    /// Its name in the stores.
    pub id: BlockId,
    /// Its plaintext hash and decryption key.
    pub key: BlockKey,
}

/// How a generation of images hashes and encrypts its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum BlockCipher {
    /// Current `.fl`: BLAKE2b-256, snappy, AES-256-GCM.
    Aes256Gcm = 1,
    /// Legacy `.flist`: BLAKE2b-128, snappy, XXTEA.
    Xxtea = 2,
}

/// A verified block, as a range of a local file that nobody rewrites.
#[derive(Clone, Debug)]
pub struct BlockData {
    /// Open for reading.
    pub file: Arc<File>,
    /// Where the plaintext begins, in bytes.
    pub offset: u64,
    /// Plaintext size in bytes, at most [`BLOCK_SIZE`].
    pub size: u32,
}

/// Turns block names into local, verified plaintext. Implemented by the client of the node's cache
/// process, and in process by the cache itself.
pub trait BlockSource: Send + Sync {
    /// The block's plaintext. May wait for a fetch, within the source's own bound in time.
    ///
    /// `position` is the block's number in the image's index; sources use it to remember answers
    /// and to record access order.
    fn block(&self, position: u32, block: &BlockRef) -> Result<BlockData, BlockError>;
}

/// Why a block can't be had.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BlockError {
    /// No store has it, or every store failed, within the bound on retries.
    #[error("block {id}: {reason}")]
    Unavailable {
        /// The block.
        id: BlockId,
        /// What the last attempt said.
        reason: String,
    },
    /// The cache process is gone or broke the protocol.
    #[error("block cache: {0}")]
    Cache(String),
}

impl BlockCipher {
    /// Bytes of a [`BlockId`] or [`BlockKey`] that count.
    #[must_use]
    pub const fn hash_size(self) -> usize {
        match self {
            Self::Aes256Gcm => 32,
            Self::Xxtea => 16,
        }
    }

    /// The cipher with this number in an index or protocol, if there is one.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Aes256Gcm),
            2 => Some(Self::Xxtea),
            _ => None,
        }
    }
}

impl fmt::Display for BlockId {
    /// Lower-case hex, without the padding of legacy ids.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (head, tail) = self.0.split_at(16);
        let legacy = tail.iter().all(|b| *b == 0);
        head.iter().chain(if legacy { &[] } else { tail }).try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockId({self})")
    }
}

impl fmt::Debug for BlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BlockKey(..)")
    }
}
