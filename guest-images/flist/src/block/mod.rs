//! One block: compress, encrypt, decrypt, verify.
//!
//! Current images (`reference: flist 1.1`), for plaintext P of at most 512 KiB:
//!
//! ```text
//! key = BLAKE2b-256(P)    C = snappy raw (P)    E = AES-256-GCM(key, nonce = key[0..12], C) ‖ tag
//! id  = BLAKE2b-256(E)    the store maps id to E
//! ```
//!
//! Encryption is convergent: equal plaintexts give equal blocks, which is what lets stores and the
//! node's cache hold each once. Legacy images hash with BLAKE2b-128 and encrypt with XXTEA.
//!
//! Stores are hostile. [`Codec::decode`] believes a block only when both hashes match: `id` over the
//! stored bytes before anything is parsed, `key` over the plaintext before anything is returned.

mod xxtea;

use blake2b_simd::Params;
use blake2b_simd::many::{HashManyJob, hash_many};
use flist_view::block::{BLOCK_SIZE, BlockCipher, BlockId, BlockKey, BlockRef};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

/// Most bytes a store may return for one block: snappy's worst case for 512 KiB, a tag, and room.
pub const STORED_SIZE_MAX: usize = 640 * 1024;

const TAG_SIZE: usize = 16;
const NONCE_SIZE: usize = 12;
const PLAINTEXT_SIZE_MAX: usize = BLOCK_SIZE as usize;

/// Encodes and decodes blocks; keeps its encoding buffers from one block to the next. One per thread.
pub struct Codec {
    encoder: snap::raw::Encoder,
    decoder: snap::raw::Decoder,
    /// What encoding made of the last batch, block behind block. As long as the largest batch so far
    /// needed: growing and shrinking would clear it each time.
    stored: Vec<u8>,
}

/// Why stored bytes are not the block they should be. Which block that is, the caller knows and says.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    /// The stored bytes do not hash to the block's id.
    #[error("stored bytes do not match its id")]
    Id,
    /// Longer than any block can be.
    #[error("{0} stored bytes, at most {STORED_SIZE_MAX} allowed")]
    StoredSize(usize),
    /// The cipher's own check failed: the key is not this block's key.
    #[error("decryption failed, the image's key does not fit")]
    Decrypt,
    /// What was encrypted is not snappy data of at most 512 KiB.
    #[error("not a compressed block of at most {BLOCK_SIZE} bytes")]
    Decompress,
    /// The plaintext does not hash to the block's key.
    #[error("plaintext does not match its key")]
    Key,
}

impl Default for Codec {
    fn default() -> Self {
        Self {
            encoder: snap::raw::Encoder::new(),
            decoder: snap::raw::Decoder::new(),
            stored: Vec::new(),
        }
    }
}

impl Codec {
    /// A codec with empty buffers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Encodes `plaintext` (at most 512 KiB) for a current image: its name and key, and what stores
    /// keep.
    ///
    /// # Panics
    /// As [`Codec::encode_batch`].
    pub fn encode(&mut self, plaintext: &[u8]) -> (BlockRef, &[u8]) {
        self.encode_batch(&[plaintext]).next().expect("one in, one out")
    }

    /// Encodes several blocks (each at most 512 KiB) at once, which costs far less than one by one:
    /// processors hash four at a time.
    ///
    /// # Panics
    /// If a plaintext is longer than a block: the caller cuts files.
    pub fn encode_batch(
        &mut self,
        plaintexts: &[&[u8]],
    ) -> impl Iterator<Item = (BlockRef, &[u8])> {
        let keys = blake2b_256_many(plaintexts);
        let room = |plaintext: &[u8]| snap::raw::max_compress_len(plaintext.len()) + TAG_SIZE;
        let wanted = plaintexts.iter().map(|plaintext| room(plaintext)).sum();
        if self.stored.len() < wanted {
            self.stored.resize(wanted, 0);
        }
        let mut rest = self.stored.as_mut_slice();
        let mut stored: Vec<&[u8]> = Vec::with_capacity(plaintexts.len());
        for (plaintext, key) in plaintexts.iter().zip(&keys) {
            assert!(plaintext.len() <= PLAINTEXT_SIZE_MAX, "the caller cuts files into blocks");
            let (front, behind) = rest.split_at_mut(room(plaintext));
            rest = behind;
            stored.push(compress_and_encrypt(&mut self.encoder, plaintext, key, front));
        }
        let ids = blake2b_256_many(&stored);
        ids.into_iter()
            .zip(keys)
            .zip(stored)
            .map(|((id, key), stored)| (BlockRef { id: BlockId(id), key: BlockKey(key) }, stored))
    }

    /// Checks and decodes what a store returned for `block`. `stored` is scratch space afterwards.
    ///
    /// # Errors
    /// [`DecodeError`] tells which check failed; nothing of the contents is returned then.
    pub fn decode(
        &mut self,
        cipher: BlockCipher,
        block: &BlockRef,
        stored: &mut Vec<u8>,
    ) -> Result<Vec<u8>, DecodeError> {
        if stored.len() > STORED_SIZE_MAX {
            return Err(DecodeError::StoredSize(stored.len()));
        }
        if hash(cipher, stored) != block.id.0 {
            return Err(DecodeError::Id);
        }
        let compressed = decrypt(cipher, block, stored)?;
        let size = snap::raw::decompress_len(compressed).map_err(|_| DecodeError::Decompress)?;
        if size > PLAINTEXT_SIZE_MAX {
            return Err(DecodeError::Decompress);
        }
        let mut plaintext = vec![0; size];
        self.decoder.decompress(compressed, &mut plaintext).map_err(|_| DecodeError::Decompress)?;
        if !is_plaintext_of(cipher, &block.key, &plaintext) {
            return Err(DecodeError::Key);
        }
        Ok(plaintext)
    }
}

/// Whether `plaintext` is what `key` names.
#[must_use]
pub fn is_plaintext_of(cipher: BlockCipher, key: &BlockKey, plaintext: &[u8]) -> bool {
    hash(cipher, plaintext) == key.0
}

/// BLAKE2b with the cipher's digest size, padded with zeros to 32 bytes.
fn hash(cipher: BlockCipher, bytes: &[u8]) -> [u8; 32] {
    let mut padded = [0; 32];
    let digest = Params::new().hash_length(cipher.hash_size()).hash(bytes);
    padded[..cipher.hash_size()].copy_from_slice(digest.as_bytes());
    padded
}

/// BLAKE2b with a 32-byte digest, without a key.
#[must_use]
pub fn blake2b_256(bytes: &[u8]) -> [u8; 32] {
    hash(BlockCipher::Aes256Gcm, bytes)
}

/// BLAKE2b of each input with a 32-byte digest.
fn blake2b_256_many(inputs: &[&[u8]]) -> Vec<[u8; 32]> {
    let mut params = Params::new();
    params.hash_length(32);
    let mut jobs: Vec<_> = inputs.iter().map(|input| HashManyJob::new(&params, input)).collect();
    hash_many(&mut jobs);
    let digest = |job: &HashManyJob<'_>| {
        let mut digest = [0; 32];
        digest.copy_from_slice(job.to_hash().as_bytes());
        digest
    };
    jobs.iter().map(digest).collect()
}

/// The front of `stored` becomes what stores keep of a block.
fn compress_and_encrypt<'a>(
    encoder: &mut snap::raw::Encoder,
    plaintext: &[u8],
    key: &[u8; 32],
    stored: &'a mut [u8],
) -> &'a [u8] {
    let size = encoder.compress(plaintext, stored).expect("the buffer holds the worst case");
    let (cipher, nonce) = aes_256_gcm(key);
    let tag = cipher
        .seal_in_place_separate_tag(nonce, Aad::empty(), &mut stored[..size])
        .expect("a block is far below the cipher's limit");
    stored[size..size + TAG_SIZE].copy_from_slice(tag.as_ref());
    &stored[..size + TAG_SIZE]
}

/// Decrypts in place; returns the compressed bytes.
fn decrypt<'a>(
    cipher: BlockCipher,
    block: &BlockRef,
    stored: &'a mut Vec<u8>,
) -> Result<&'a [u8], DecodeError> {
    let error = DecodeError::Decrypt;
    match cipher {
        BlockCipher::Aes256Gcm => {
            if stored.len() < TAG_SIZE {
                return Err(error);
            }
            let (cipher, nonce) = aes_256_gcm(&block.key.0);
            Ok(cipher.open_in_place(nonce, Aad::empty(), stored).map_err(|_| error)?)
        }
        BlockCipher::Xxtea => {
            let mut key = [0; 16];
            key.copy_from_slice(&block.key.0[..16]);
            *stored = xxtea::decrypt(stored, &key).ok_or(error)?;
            Ok(stored)
        }
    }
}

/// The nonce is part of the key, which is safe only because each plaintext has its own key.
fn aes_256_gcm(key: &[u8; 32]) -> (LessSafeKey, Nonce) {
    let cipher = UnboundKey::new(&AES_256_GCM, key).expect("a key of 32 bytes");
    let mut nonce = [0; NONCE_SIZE];
    nonce.copy_from_slice(&key[..NONCE_SIZE]);
    (LessSafeKey::new(cipher), Nonce::assume_unique_for_key(nonce))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(plaintext: &[u8]) -> (BlockRef, Vec<u8>) {
        let mut codec = Codec::new();
        let (block, stored) = codec.encode(plaintext);
        (block, stored.to_vec())
    }

    #[test]
    fn every_size_round_trips() {
        let mut codec = Codec::new();
        for size in [0, 1, 11, 4096, PLAINTEXT_SIZE_MAX - 1, PLAINTEXT_SIZE_MAX] {
            let plaintext: Vec<u8> =
                (0..size).map(|i| u8::try_from(i * i % 251).unwrap()).collect();
            let (block, mut stored) = encoded(&plaintext);
            assert!(stored.len() <= STORED_SIZE_MAX);
            assert_eq!(
                codec.decode(BlockCipher::Aes256Gcm, &block, &mut stored).unwrap(),
                plaintext
            );
        }
    }

    #[test]
    fn a_batch_of_mixed_sizes_gives_the_same_blocks_as_one_by_one() {
        let sizes = [0, 1, 127, 128, 129, 70_000, 4096, PLAINTEXT_SIZE_MAX, 5];
        let plaintexts = sizes.map(|size| vec![u8::try_from(size % 251).unwrap(); size]);
        let mut codec = Codec::new();
        let batch = plaintexts.each_ref().map(Vec::as_slice);
        let together: Vec<_> =
            codec.encode_batch(&batch).map(|(block, stored)| (block, stored.to_vec())).collect();
        assert_eq!(together, plaintexts.map(|plaintext| encoded(&plaintext)));
    }

    #[test]
    fn a_flipped_bit_anywhere_is_refused() {
        let (block, stored) = encoded(b"some text, some text, some text");
        for position in 0..stored.len() {
            let mut bad = stored.clone();
            bad[position] ^= 1;
            let error = Codec::new().decode(BlockCipher::Aes256Gcm, &block, &mut bad).unwrap_err();
            assert_eq!(error, DecodeError::Id);
        }
    }

    #[test]
    fn a_key_that_does_not_fit_is_refused() {
        let (mut block, mut stored) = encoded(b"some text");
        block.key.0[0] ^= 1;
        let error = Codec::new().decode(BlockCipher::Aes256Gcm, &block, &mut stored).unwrap_err();
        assert_eq!(error, DecodeError::Decrypt);
    }

    #[test]
    fn a_block_that_unpacks_to_too_much_is_refused_before_it_is_unpacked() {
        let plaintext = vec![0; PLAINTEXT_SIZE_MAX + 1];
        let key = blake2b_256(&plaintext);
        let mut stored = snap::raw::Encoder::new().compress_vec(&plaintext).unwrap();
        let (cipher, nonce) = aes_256_gcm(&key);
        cipher.seal_in_place_append_tag(nonce, Aad::empty(), &mut stored).unwrap();
        let block = BlockRef { id: BlockId(blake2b_256(&stored)), key: BlockKey(key) };
        let error = Codec::new().decode(BlockCipher::Aes256Gcm, &block, &mut stored).unwrap_err();
        assert_eq!(error, DecodeError::Decompress);
    }

    #[test]
    fn plaintext_under_another_blocks_key_is_refused() {
        let key = blake2b_256(b"what the image promises");
        let mut stored = snap::raw::Encoder::new().compress_vec(b"what the packer stored").unwrap();
        let (cipher, nonce) = aes_256_gcm(&key);
        cipher.seal_in_place_append_tag(nonce, Aad::empty(), &mut stored).unwrap();
        let block = BlockRef { id: BlockId(blake2b_256(&stored)), key: BlockKey(key) };
        let error = Codec::new().decode(BlockCipher::Aes256Gcm, &block, &mut stored).unwrap_err();
        assert_eq!(error, DecodeError::Key);
    }
}
