//! Data that can be checked wherever it arrives: each word is a function of its place.

/// Fills `bytes`, which begin at `offset` of the whole. Both are multiples of eight.
pub(crate) fn fill(bytes: &mut [u8], offset: u64, seed: u64) {
    for (index, word) in (offset / 8..).zip(bytes.chunks_exact_mut(8)) {
        word.copy_from_slice(&at(index, seed).to_le_bytes());
    }
}

/// The offset of the first word that is not as it was filled.
pub(crate) fn first_difference(bytes: &[u8], offset: u64, seed: u64) -> Option<u64> {
    let words = (offset / 8..).zip(bytes.chunks_exact(8));
    let mut wrong = words.filter(|(index, word)| at(*index, seed).to_le_bytes() != *word);
    wrong.next().map(|(index, _)| index * 8)
}

/// splitmix64 (Steele, Lea, Flood 2014).
fn at(index: u64, seed: u64) -> u64 {
    let mut z = (index ^ seed.rotate_left(32)).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Numbers that look random, the same each time.
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next, below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(1);
        at(self.0, 0x6c61_6221) % bound.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flipped_bit_is_found_where_it_is() {
        let mut bytes = vec![0; 4096];
        fill(&mut bytes, 8192, 3);
        assert_eq!(first_difference(&bytes, 8192, 3), None);
        bytes[1001] ^= 4;
        assert_eq!(first_difference(&bytes, 8192, 3), Some(8192 + 1000));
        assert_eq!(first_difference(&bytes[8..], 8192, 3), Some(8192));
    }

    #[test]
    fn numbers_stay_below_their_bound_and_differ() {
        let mut numbers = Numbers::new(1);
        let found: std::collections::BTreeSet<u64> =
            (0..100).map(|_| numbers.below(1000)).collect();
        assert!(found.len() > 80 && found.iter().all(|number| *number < 1000));
    }
}
