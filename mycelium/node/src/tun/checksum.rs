//! The Internet checksum (RFC 1071) over pieces of a packet, fast enough to run over every byte.
//!
//! Words are summed in little-endian order, four bytes at a time: the sum of swapped words is the
//! swapped sum (RFC 1071 §2.B), so the result is stored in that order too and no word is ever swapped.

#[cfg(test)]
use std::net::Ipv6Addr;

/// A sum that grows by pieces. Each piece but the last must have an even size.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sum(u64);

impl Sum {
    /// The pseudo header of IPv6 (RFC 8200 §8.1).
    pub(crate) fn pseudo_header(packet: &[u8], protocol: u8, size: u32) -> Self {
        let mut sum = Self::default();
        sum.add(&packet[8..40]);
        sum.add(&size.to_be_bytes());
        sum.add(&[0, protocol]);
        sum
    }

    /// The same, from addresses.
    #[cfg(test)]
    pub(crate) fn between(
        source: Ipv6Addr,
        destination: Ipv6Addr,
        protocol: u8,
        size: u32,
    ) -> Self {
        let mut packet = [0; 40];
        packet[8..24].copy_from_slice(&source.octets());
        packet[24..].copy_from_slice(&destination.octets());
        Self::pseudo_header(&packet, protocol, size)
    }

    /// Adds a piece; an odd last byte counts as if a zero followed.
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        // Eight independent lanes let the compiler use vector registers.
        let mut lanes = [0_u64; 8];
        let (blocks, rest) = bytes.as_chunks::<32>();
        for block in blocks {
            let (words, _) = block.as_chunks::<4>();
            for (lane, word) in lanes.iter_mut().zip(words) {
                // No packet has the 2^32 words that it takes to overflow, and a check would cost more
                // than the sum.
                *lane = lane.wrapping_add(u64::from(u32::from_le_bytes(*word)));
            }
        }
        self.0 += lanes.iter().sum::<u64>();
        let (pairs, odd) = rest.as_chunks::<2>();
        for pair in pairs {
            self.0 += u64::from(u16::from_le_bytes(*pair));
        }
        if let [last] = odd {
            self.0 += u64::from(*last);
        }
    }

    /// The folded sum, in the order in which it is stored.
    pub(crate) fn folded(self) -> [u8; 2] {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        // It has been folded to two bytes.
        u16::try_from(sum).unwrap_or(u16::MAX).to_le_bytes()
    }

    /// The checksum: the complement of the folded sum.
    pub(crate) fn checksum(self) -> [u8; 2] {
        self.folded().map(|byte| !byte)
    }

    /// Whether a sum over data and its checksum says that both are whole.
    pub(crate) fn is_whole(self) -> bool {
        self.folded() == [0xff, 0xff]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071 §4.1 word by word, in network order.
    fn plain(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
            sum = (sum >> 16) + (sum & 0xffff);
        }
        !u16::try_from(sum).unwrap()
    }

    #[test]
    fn the_example_of_rfc_1071_section_3() {
        let mut sum = Sum::default();
        sum.add(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.folded(), [0xdd, 0xf2]);
    }

    #[test]
    fn a_pseudo_header_counts_addresses_size_and_protocol() {
        let (a, b) = ("400::1".parse().unwrap(), "500::2".parse().unwrap());
        let sum = Sum::between(a, b, 58, 0x0001_0002);
        assert_eq!(sum.folded(), (0x400_u16 + 1 + 0x500 + 2 + 58 + 3).to_be_bytes());
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_sum_as_word_by_word(
            bytes in proptest::collection::vec(any::<u8>(), 0..3000), cut in 0_usize..3000,
        ) {
            let cut = (cut & !1).min(bytes.len() & !1);
            let mut sum = Sum::default();
            sum.add(&bytes[..cut]);
            sum.add(&bytes[cut..]);
            prop_assert_eq!(sum.checksum(), plain(&bytes).to_be_bytes());
        }
    }
}
