//! SipHash (Aumasson and Bernstein, 2012): a short, keyed hash for keys that clients choose.
//!
//! Whoever knows the hash function's key can make all of a table's keys collide, so each namespace
//! has a random one. 1 round per word and 3 at the end are enough for tables; the paper's vectors
//! are for 2 and 4, hence the parameters.

/// Bytes of a hash function's key.
pub(crate) const HASH_KEY_SIZE: usize = 16;

/// A keyed hash function. Its key is a secret of an encrypted namespace: no `Debug`.
#[derive(Clone, Copy)]
pub(crate) struct Hasher {
    key: [u64; 2],
}

impl std::fmt::Debug for Hasher {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Hasher")
    }
}

impl Hasher {
    pub(crate) fn new(key: &[u8; HASH_KEY_SIZE]) -> Self {
        let whole = u128::from_le_bytes(*key);
        let low = u64::try_from(whole & u128::from(u64::MAX)).unwrap_or_default();
        let high = u64::try_from(whole >> 64).unwrap_or_default();
        Self { key: [low, high] }
    }

    pub(crate) fn hash(&self, bytes: &[u8]) -> u64 {
        sip::<1, 3>(self.key, bytes)
    }
}

fn sip<const EACH: usize, const LAST: usize>(key: [u64; 2], bytes: &[u8]) -> u64 {
    let mut state = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    let mut absorb = |word: u64, rounds: usize| {
        state[3] ^= word;
        (0..rounds).for_each(|_| round(&mut state));
        state[0] ^= word;
    };
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        absorb(u64::from_le_bytes(*word), EACH);
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    // The paper wants the size modulo 256 in the last byte.
    last[7] = bytes.len().to_le_bytes()[0];
    absorb(u64::from_le_bytes(last), EACH);
    state[2] ^= 0xff;
    (0..LAST).for_each(|_| round(&mut state));
    state[0] ^ state[1] ^ state[2] ^ state[3]
}

fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[2] = v[2].wrapping_add(v[3]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[1]);
    v[0] = v[0].wrapping_add(v[3]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Appendix A of the paper, and the first of its authors' vectors.
    #[test]
    fn the_papers_vectors() {
        let key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        let input: Vec<u8> = (0..15).collect();
        assert_eq!(sip::<2, 4>(key, &input), 0xa129_ca61_49be_45e5);
        assert_eq!(sip::<2, 4>(key, &[]), 0x726f_db47_dd0e_0e31);
    }

    #[test]
    fn the_key_matters() {
        let (one, two) = (Hasher::new(&[1; 16]), Hasher::new(&[2; 16]));
        assert_ne!(one.hash(b"key"), two.hash(b"key"));
        assert_ne!(one.hash(b"key"), one.hash(b"kez"));
    }
}
