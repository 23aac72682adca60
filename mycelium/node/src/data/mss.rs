//! The segment size that TCP asks for, made small enough for a neighbour that can't carry more.
//!
//! An existing node ends a QUIC link when a packet from its side does not fit into a datagram
//! (`reference: mycelium 3.6`), so bulk TCP towards us over such a link carries nothing at all. What its
//! side sends is as large as our hosts say they take, in their SYN or SYN-ACK; so that figure is lowered on
//! its way out. Packets that are no TCP can't be helped so.
//!
//! The headers of a packet come from hosts and are not trusted: every step is checked, and what is not
//! understood leaves as it came.

use crate::tun::segment::{
    IPV6_HEADER_SIZE, PROTOCOL_TCP, TCP_CHECKSUM, TCP_FLAGS, TCP_HEADER_SIZE_MIN,
};

/// Lowers the segment size of a TCP packet with SYN, so that packets of the answer have at most
/// `packet_size_max` bytes. `is_summed`: the packet's checksum is complete, and must stay right; else it
/// holds the pseudo header's part only, which options don't matter to. Whether it was lowered.
pub(super) fn clamp(packet: &mut [u8], packet_size_max: u16, is_summed: bool) -> bool {
    let Some(tcp) = syn_at(packet) else { return false };
    let Some(option) = option_at(packet, tcp) else { return false };
    // RFC 6691 §2: headers are counted without options, which the other side takes off itself.
    let headers = u16::try_from(IPV6_HEADER_SIZE + TCP_HEADER_SIZE_MIN).unwrap_or(u16::MAX);
    let size_max = packet_size_max.saturating_sub(headers);
    let size = u16::from_be_bytes([packet[option], packet[option + 1]]);
    if size <= size_max {
        return false;
    }
    // An option may begin at an odd place, so whole words around it are exchanged in the sum.
    let words = word_range(tcp, option);
    let before = sum_of(&packet[words.clone()]);
    packet[option..option + 2].copy_from_slice(&size_max.to_be_bytes());
    if is_summed {
        let after = sum_of(&packet[words]);
        let field = tcp + TCP_CHECKSUM;
        let checksum = u16::from_be_bytes([packet[field], packet[field + 1]]);
        packet[field..field + 2].copy_from_slice(&updated(checksum, before, after).to_be_bytes());
    }
    true
}

/// Whether a packet may be one that [`clamp`] changes. Cheap: it is asked of every packet.
pub(super) fn is_candidate(packet: &[u8]) -> bool {
    match packet.get(NEXT_HEADER) {
        Some(&PROTOCOL_TCP) => {
            let flags = packet.get(IPV6_HEADER_SIZE + TCP_FLAGS);
            flags.is_some_and(|flags| flags & FLAG_SYN != 0)
        }
        Some(next) => is_extension(*next),
        None => false,
    }
}

const NEXT_HEADER: usize = 6;
const FLAG_SYN: u8 = 0x02;
/// Where TCP's header says how long it is.
const TCP_DATA_OFFSET: usize = 12;
/// Options of TCP (RFC 9293 §3.2).
const OPTION_END: u8 = 0;
const OPTION_NOTHING: u8 = 1;
const OPTION_SEGMENT_SIZE: u8 = 2;
const OPTION_SEGMENT_SIZE_SIZE: usize = 4;
/// Extension headers that may stand before TCP (RFC 8200 §4.1).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;
/// More of them than this nobody sends.
const EXTENSION_COUNT_MAX: usize = 8;
/// Size of a fragment header.
const FRAGMENT_SIZE: usize = 8;
/// The offset of a fragment and "more follow".
const FRAGMENT_BITS: u16 = 0xfff9;

fn is_extension(next: u8) -> bool {
    matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION)
}

/// Where the TCP header of a packet with SYN begins.
fn syn_at(packet: &[u8]) -> Option<usize> {
    let (mut next, mut at) = (*packet.get(NEXT_HEADER)?, IPV6_HEADER_SIZE);
    for _ in 0..EXTENSION_COUNT_MAX {
        if !is_extension(next) {
            break;
        }
        let header = packet.get(at..at + 8)?;
        let size = if next == FRAGMENT {
            // A piece of a packet has no whole header, nor a checksum of its own.
            if u16::from_be_bytes([header[2], header[3]]) & FRAGMENT_BITS != 0 {
                return None;
            }
            FRAGMENT_SIZE
        } else {
            (usize::from(header[1]) + 1) * 8
        };
        (next, at) = (header[0], at + size);
    }
    let flags = packet.get(at + TCP_FLAGS)?;
    (next == PROTOCOL_TCP && flags & FLAG_SYN != 0).then_some(at)
}

/// Where the segment size stands in the TCP header at `tcp`.
fn option_at(packet: &[u8], tcp: usize) -> Option<usize> {
    let header_size = usize::from(packet.get(tcp + TCP_DATA_OFFSET)? >> 4) * 4;
    let options = packet.get(tcp + TCP_HEADER_SIZE_MIN..tcp + header_size)?;
    let mut at = 0;
    // Each step goes on by one byte at least.
    while let Some(kind) = options.get(at) {
        match *kind {
            OPTION_END => return None,
            OPTION_NOTHING => at += 1,
            kind => {
                let size = usize::from(*options.get(at + 1)?);
                if size < 2 || at + size > options.len() {
                    return None;
                }
                if kind == OPTION_SEGMENT_SIZE {
                    let is_whole = size == OPTION_SEGMENT_SIZE_SIZE;
                    return is_whole.then_some(tcp + TCP_HEADER_SIZE_MIN + at + 2);
                }
                at += size;
            }
        }
    }
    None
}

/// The words, counted from the TCP header, that hold the two bytes at `at`.
fn word_range(tcp: usize, at: usize) -> std::ops::Range<usize> {
    let begin = at - (at - tcp) % 2;
    // Headers of TCP have an even size, so the word behind is there.
    begin..begin + 2 + 2 * ((at - tcp) % 2)
}

fn sum_of(words: &[u8]) -> u32 {
    let words = words.as_chunks::<2>().0;
    words.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum()
}

/// RFC 1624 §3, equation 3: `HC' = ~(~HC + ~m + m')`.
fn updated(checksum: u16, before: u32, after: u32) -> u16 {
    // Two words at most were summed: their complement is taken from twice the largest.
    let mut sum = u32::from(!checksum) + (2 * 0xffff - before) + after;
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    // It has been folded to two bytes.
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tun::checksum::Sum;
    use crate::tun::segment::tests::tcp;

    const SYN: u8 = 0x02;
    const SYN_ACK: u8 = 0x12;
    const ACK: u8 = 0x10;

    /// A TCP packet with these options behind these extension headers, and a right checksum.
    fn packet(flags: u8, options: &[u8], extensions: &[(u8, &[u8])]) -> Vec<u8> {
        let mut segment = tcp(1, flags, &[])[IPV6_HEADER_SIZE..].to_vec();
        let header_size = TCP_HEADER_SIZE_MIN + options.len();
        segment[TCP_DATA_OFFSET] = u8::try_from(header_size * 4).unwrap();
        segment.extend_from_slice(options);
        let mut packet = tcp(1, flags, &[])[..IPV6_HEADER_SIZE].to_vec();
        let kinds = extensions.iter().map(|(kind, _)| *kind).chain([PROTOCOL_TCP]);
        let kinds: Vec<u8> = kinds.collect();
        packet[NEXT_HEADER] = kinds[0];
        for ((_, body), next) in extensions.iter().zip(&kinds[1..]) {
            packet.push(*next);
            packet.extend_from_slice(body);
        }
        segment[TCP_CHECKSUM..TCP_CHECKSUM + 2].fill(0);
        let checksum = sum(&packet, &segment).checksum();
        segment[TCP_CHECKSUM..TCP_CHECKSUM + 2].copy_from_slice(&checksum);
        packet.extend_from_slice(&segment);
        packet
    }

    fn sum(headers: &[u8], segment: &[u8]) -> Sum {
        let size = u32::try_from(segment.len()).unwrap();
        let mut sum = Sum::pseudo_header(headers, PROTOCOL_TCP, size);
        sum.add(segment);
        sum
    }

    fn is_whole(packet: &[u8], tcp: usize) -> bool {
        sum(&packet[..IPV6_HEADER_SIZE], &packet[tcp..]).is_whole()
    }

    fn size_option(size: u16) -> [u8; 4] {
        let [high, low] = size.to_be_bytes();
        [OPTION_SEGMENT_SIZE, 4, high, low]
    }

    #[test]
    fn the_segment_size_of_syn_and_syn_ack_is_lowered_and_the_checksum_stays_right() {
        for flags in [SYN, SYN_ACK] {
            let mut bytes = packet(flags, &size_option(1340), &[]);
            assert!(is_candidate(&bytes));
            assert!(clamp(&mut bytes, 1330, true));
            assert_eq!(bytes[60..64], size_option(1270));
            assert!(is_whole(&bytes, IPV6_HEADER_SIZE));
            assert!(!clamp(&mut bytes, 1330, true), "it is small enough now");
        }
    }

    #[test]
    fn what_is_no_syn_or_small_enough_stays() {
        for (flags, size) in [(ACK, 1340), (SYN, 1270), (SYN, 536)] {
            let before = packet(flags, &size_option(size), &[]);
            let mut after = before.clone();
            assert!(!clamp(&mut after, 1330, true));
            assert_eq!(after, before);
        }
        assert!(!is_candidate(&packet(ACK, &[], &[])));
        assert!(!clamp(&mut packet(SYN, &[], &[]), 1330, true), "no option: 1220 (RFC 9293 3.7.1)");
    }

    #[test]
    fn a_partial_checksum_knows_nothing_of_options() {
        let mut bytes = packet(SYN, &size_option(1340), &[]);
        let partial = [bytes[56], bytes[57]];
        assert!(clamp(&mut bytes, 1330, false));
        assert_eq!([bytes[56], bytes[57]], partial);
    }

    #[test]
    fn options_before_it_are_stepped_over_even_to_an_odd_place() {
        let options: [&[u8]; 3] = [&[1], &[4, 2, 3, 3, 7], &[8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1]];
        for front in options {
            let mut all = [front, &size_option(1340)].concat();
            let at = 60 + front.len() + 2;
            all.resize(all.len().next_multiple_of(4), OPTION_END);
            let mut bytes = packet(SYN, &all, &[]);
            assert!(clamp(&mut bytes, 1330, true), "{front:?}");
            assert_eq!(bytes[at..at + 2], 1270_u16.to_be_bytes());
            assert!(is_whole(&bytes, IPV6_HEADER_SIZE), "{front:?}");
        }
        for broken in [[2, 0, 5, 60], [2, 3, 5, 60], [9, 0, 0, 0], [0, 4, 5, 60], [1, 1, 1, 2]] {
            assert!(!clamp(&mut packet(SYN, &broken, &[]), 1330, true), "{broken:?}");
        }
    }

    #[test]
    fn rfc8200_4_extension_headers_are_stepped_over_and_fragments_left_alone() {
        let (short, long) = ([0; 7], [&[1][..], &[0; 14]].concat());
        let atomic = [0, 0, 0, 0, 0, 0, 7];
        for (extensions, tcp) in [
            (vec![(HOP_BY_HOP, &short[..])], 48),
            (vec![(HOP_BY_HOP, &short[..]), (ROUTING, &long), (DESTINATION, &short)], 72),
            (vec![(FRAGMENT, &atomic[..])], 48),
        ] {
            let mut bytes = packet(SYN, &size_option(1340), &extensions);
            assert!(is_candidate(&bytes) && clamp(&mut bytes, 1330, true), "{extensions:?}");
            assert!(is_whole(&bytes, tcp), "{extensions:?}");
        }
        for piece in [[0, 0, 1, 0, 0, 0, 7], [0, 1, 0x28, 0, 0, 0, 7]] {
            assert!(!clamp(&mut packet(SYN, &size_option(1340), &[(FRAGMENT, &piece)]), 9, true));
        }
        let many = vec![(HOP_BY_HOP, &short[..]); EXTENSION_COUNT_MAX + 1];
        assert!(!clamp(&mut packet(SYN, &size_option(1340), &many), 1330, true));
        // Authentication covers what would be changed.
        assert!(!clamp(&mut packet(SYN, &size_option(1340), &[(51, &short)]), 1330, true));
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_and_only_the_option_and_the_checksum_change(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..160),
            next in proptest::sample::select(vec![0_u8, 6, 17, 43, 44, 60]),
            is_summed in any::<bool>(),
        ) {
            if let Some(byte) = bytes.get_mut(NEXT_HEADER) {
                *byte = next;
            }
            let before = bytes.clone();
            clamp(&mut bytes, 1330, is_summed);
            let changed = bytes.iter().zip(&before).filter(|(a, b)| a != b).count();
            prop_assert!(bytes.len() == before.len() && changed <= 4);
        }

        #[test]
        fn a_checksum_follows_any_change(
            size in 1271_u16.., front in 0_usize..4, sequence in any::<[u8; 4]>(),
        ) {
            let mut options = vec![OPTION_NOTHING; front];
            options.extend(size_option(size));
            options.resize(8, OPTION_END);
            let mut bytes = packet(SYN, &options, &[]);
            let field = IPV6_HEADER_SIZE + TCP_CHECKSUM;
            bytes[44..48].copy_from_slice(&sequence);
            bytes[field..field + 2].fill(0);
            let checksum = sum(&bytes[..40], &bytes[40..]).checksum();
            bytes[field..field + 2].copy_from_slice(&checksum);
            prop_assert!(clamp(&mut bytes, 1330, true));
            prop_assert!(is_whole(&bytes, IPV6_HEADER_SIZE));
        }
    }
}
