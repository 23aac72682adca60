//! Plaintext that has been checked against what an image says of it.

use std::borrow::Cow;

use flist_view::block::{BLOCK_SIZE, BlockCipher, BlockRef};

use crate::block::{self, Codec, DecodeError};

/// A block's plaintext that hashes to the block's key. Only the checks below make one, and only this
/// type gets into the cache.
#[derive(Clone)]
pub struct Verified<'a> {
    cipher: BlockCipher,
    block: BlockRef,
    plaintext: Cow<'a, [u8]>,
}

impl<'a> Verified<'a> {
    /// Decodes what a store returned, checking both hashes.
    ///
    /// # Errors
    /// [`DecodeError`] tells which check failed.
    pub fn decode(
        codec: &mut Codec,
        cipher: BlockCipher,
        block: &BlockRef,
        stored: &mut Vec<u8>,
    ) -> Result<Self, DecodeError> {
        let plaintext = codec.decode(cipher, block, stored)?;
        Ok(Self { cipher, block: *block, plaintext: Cow::Owned(plaintext) })
    }

    /// Takes plaintext that someone else decoded, hashing it again.
    ///
    /// # Errors
    /// [`DecodeError::Key`] if it is not what the block's key names, [`DecodeError::Decompress`] if
    /// it is longer than a block.
    pub fn check(
        cipher: BlockCipher,
        block: &BlockRef,
        plaintext: &'a [u8],
    ) -> Result<Self, DecodeError> {
        if plaintext.len() > BLOCK_SIZE as usize {
            return Err(DecodeError::Decompress);
        }
        if !block::is_plaintext_of(cipher, &block.key, plaintext) {
            return Err(DecodeError::Key);
        }
        Ok(Self { cipher, block: *block, plaintext: Cow::Borrowed(plaintext) })
    }

    /// Takes what [`crate::store::fetch::Fetcher`] returned, which is the result of [`Codec::decode`].
    pub(super) const fn fetched(cipher: BlockCipher, block: BlockRef, plaintext: Vec<u8>) -> Self {
        Self { cipher, block, plaintext: Cow::Owned(plaintext) }
    }

    /// How the block's image hashes and encrypts.
    #[must_use]
    pub const fn cipher(&self) -> BlockCipher {
        self.cipher
    }

    /// The block's name and key.
    #[must_use]
    pub const fn block(&self) -> &BlockRef {
        &self.block
    }

    /// The contents, at most 512 KiB.
    #[must_use]
    pub fn plaintext(&self) -> &[u8] {
        &self.plaintext
    }
}
