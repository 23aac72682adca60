//! What turns keys and values into ciphertext and back, and keys into hashes.
//!
//! An encrypted namespace has three layers of keys. The *master key* comes from outside and only
//! seals the others in the descriptor. *Data keys* seal records; each segment names the one it
//! uses, and a new one can be begun at any time. The *hash key* makes a key's hash, which stands in
//! the index files; it never changes, because old index files must go on being right.
//!
//! A record is sealed by ChaCha20-Poly1305 (RFC 8439). The nonce is the segment's random number (8
//! bytes) and the record's offset (4 bytes). It can't repeat under one key: within a file offsets
//! are used once, because an encrypted segment is never continued after a restart or a failed
//! write; across files the numbers are random. The record's fixed part is authenticated along.

use std::collections::BTreeMap;
use std::sync::Arc;

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::hash::Hasher;
use crate::log::header::Header;
use crate::log::record::{self, Head, TAG_SIZE};
use crate::{MasterKey, Mode};

/// Bytes of a data key and of a master key.
pub(crate) const SECRET_SIZE: usize = 32;
/// What sealing adds to a secret: nonce and tag.
pub(crate) const SEAL_SIZE: usize = NONCE_LEN + TAG_SIZE;

/// Bytes of an id, which is the key in sequential mode.
const ID_SIZE: usize = 8;

/// A data key.
pub(crate) struct Sealer(LessSafeKey);

impl Sealer {
    /// `None` never happens: the size is right.
    pub(crate) fn new(key: &[u8; SECRET_SIZE]) -> Option<Self> {
        Some(Self(LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).ok()?)))
    }

    /// Seals what follows the fixed part, and appends the tag. `record` is the whole of `buffer`
    /// from `from` on; it will stand at `offset` of the segment with this number.
    pub(crate) fn seal(
        &self,
        buffer: &mut Vec<u8>,
        from: usize,
        head_size: usize,
        number: u64,
        offset: u64,
    ) -> Option<()> {
        let record = buffer.get_mut(from..)?;
        let (head, body) = record.split_at_mut_checked(head_size)?;
        let aad = Aad::from(record::sealed_head(head, head_size));
        let tag = self.0.seal_in_place_separate_tag(nonce(number, offset)?, aad, body).ok()?;
        buffer.extend_from_slice(tag.as_ref());
        Some(())
    }

    /// Opens a record in place; what it gives is key and value. `None`: it was tampered with.
    pub(crate) fn open<'a>(
        &self,
        record: &'a mut [u8],
        head_size: usize,
        number: u64,
        offset: u64,
    ) -> Option<&'a mut [u8]> {
        let (head, body) = record.split_at_mut_checked(head_size)?;
        let aad = Aad::from(record::sealed_head(head, head_size));
        self.0.open_in_place(nonce(number, offset)?, aad, body).ok()
    }
}

fn nonce(number: u64, offset: u64) -> Option<Nonce> {
    let mut bytes = [0; NONCE_LEN];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes[8..].copy_from_slice(&u32::try_from(offset).ok()?.to_le_bytes());
    Some(Nonce::assume_unique_for_key(bytes))
}

/// Seals a secret under a master key. `nonce` must be random.
pub(crate) fn seal_secret(
    key: &MasterKey,
    nonce: [u8; NONCE_LEN],
    purpose: &[u8],
    secret: &[u8],
) -> Option<Vec<u8>> {
    let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key.as_bytes()).ok()?);
    let mut sealed = Vec::with_capacity(secret.len() + SEAL_SIZE);
    sealed.extend_from_slice(&nonce);
    sealed.extend_from_slice(secret);
    let (_, body) = sealed.split_at_mut_checked(NONCE_LEN)?;
    let nonce = Nonce::assume_unique_for_key(nonce);
    let tag = key.seal_in_place_separate_tag(nonce, Aad::from(purpose), body).ok()?;
    sealed.extend_from_slice(tag.as_ref());
    Some(sealed)
}

/// Opens what [`seal_secret`] made; `None` if the key is another.
pub(crate) fn open_secret(
    key: &MasterKey,
    purpose: &[u8],
    sealed: &[u8],
) -> Option<Zeroizing<Vec<u8>>> {
    let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key.as_bytes()).ok()?);
    let (nonce, body) = sealed.split_first_chunk::<NONCE_LEN>()?;
    let mut body = Zeroizing::new(body.to_vec());
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let size = key.open_in_place(nonce, Aad::from(purpose), &mut body).ok()?.len();
    body.truncate(size);
    Some(body)
}

/// All that is needed to tell whose record it is. Its `Debug` shows no secrets. Copies share the data
/// keys.
#[derive(Clone)]
pub(crate) struct Keys {
    pub(crate) mode: Mode,
    pub(crate) hasher: Hasher,
    /// Data keys by their number; none in a plain namespace.
    pub(crate) sealers: BTreeMap<u32, Arc<Sealer>>,
    /// The one that seals new records; 0: none.
    pub(crate) current: u32,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Keys({:?}, {} data keys)", self.mode, self.sealers.len())
    }
}

impl Keys {
    /// What the index knows a key by; `None` if it can't be a key.
    pub(crate) fn hash(&self, key: &[u8]) -> Option<u64> {
        match self.mode {
            Mode::User => Some(self.hasher.hash(key)),
            Mode::Sequential => key
                .first_chunk::<ID_SIZE>()
                .filter(|_| key.len() == ID_SIZE)
                .map(|id| u64::from_le_bytes(*id)),
        }
    }

    /// Key and value of a record whose checksum was verified. Works in place; `None` if the seal is
    /// broken or its key unknown.
    pub(crate) fn open<'a>(
        &self,
        header: &Header,
        head: &Head,
        record: &'a mut [u8],
        offset: u64,
    ) -> Option<(&'a mut [u8], &'a mut [u8])> {
        let body = if head.sealed {
            let sealer = self.sealers.get(&header.key_id)?;
            sealer.open(record, head.head_size(), header.number, offset)?
        } else {
            record.get_mut(head.head_size()..)?
        };
        body.split_at_mut_checked(usize::from(head.key_size))
    }

    /// The hash of a verified record's key.
    pub(crate) fn identify(
        &self,
        header: &Header,
        head: &Head,
        record: &[u8],
        offset: u64,
    ) -> Option<u64> {
        if head.sealed {
            let mut copy = record.to_vec();
            let (key, _) = self.open(header, head, &mut copy, offset)?;
            return self.hash(key);
        }
        self.hash(record.get(head.head_size()..head.head_size() + usize::from(head.key_size))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_opens_at_its_place_only() {
        let sealer = Sealer::new(&[7; 32]).unwrap();
        let mut buffer = b"junkHEADkeyvalue".to_vec();
        sealer.seal(&mut buffer, 4, 4, 99, 64).unwrap();
        let record = &buffer[4..];
        assert_eq!(&record[..4], b"HEAD");
        assert_ne!(&record[4..12], b"keyvalue");
        assert_eq!(sealer.open(&mut record.to_vec(), 4, 99, 64).unwrap(), b"keyvalue");
        assert!(sealer.open(&mut record.to_vec(), 4, 98, 64).is_none());
        assert!(sealer.open(&mut record.to_vec(), 4, 99, 65).is_none());
    }

    #[test]
    fn a_secret_opens_for_its_key_and_purpose_only() {
        let (key, other) = (MasterKey::new([1; 32]), MasterKey::new([2; 32]));
        let sealed = seal_secret(&key, [9; 12], b"purpose", b"secret").unwrap();
        assert_eq!(sealed.len(), 6 + SEAL_SIZE);
        assert_eq!(*open_secret(&key, b"purpose", &sealed).unwrap(), b"secret");
        assert!(open_secret(&other, b"purpose", &sealed).is_none());
        assert!(open_secret(&key, b"other", &sealed).is_none());
        assert!(open_secret(&key, b"purpose", b"short").is_none());
    }
}
