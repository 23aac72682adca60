//! Whatever the sizes of packets and buffers: bytes arrive identical, in order, none twice.

use super::*;

/// What the driver does with receive buffers: posts them, and puts packets together again.
struct Reader {
    posted: std::collections::VecDeque<(u16, Vec<(u64, u32)>)>,
    received: Vec<Vec<u8>>,
}

impl Reader {
    /// Takes all used buffers; `is_mergeable` packets may span several.
    fn collect(&mut self, driver: &mut Driver) {
        while let Some(first) = self.take(driver) {
            let count = u16::from_le_bytes([first[10], first[11]]);
            let mut packet = first[HEADER..].to_vec();
            for _ in 1..count {
                // All buffers of a packet are there once the first one is.
                packet.extend(self.take(driver).expect("a buffer of the packet"));
            }
            self.received.push(packet);
        }
    }

    fn take(&mut self, driver: &mut Driver) -> Option<Vec<u8>> {
        let (used, mut left) = driver.take_used()?;
        let (head, pieces) = self.posted.pop_front().expect("a buffer that was posted");
        assert_eq!(used, head, "buffers come back in order, each once");
        let mut bytes = Vec::new();
        for (place, size) in pieces {
            let size = size.min(left);
            left -= size;
            bytes.extend(driver.read(place, usize::try_from(size).unwrap()));
        }
        assert_eq!(left, 0, "more than the buffer holds");
        Some(bytes)
    }
}

fn sizes() -> impl Strategy<Value = (Vec<usize>, Vec<u32>)> {
    let packet = prop_oneof![4 => 1_usize..200, 4 => 1000_usize..1600, 2 => 1600_usize..65_553];
    let buffer = prop_oneof![1 => 12_u32..64, 4 => 1500_u32..1600, 2 => 1600_u32..70_000];
    (proptest::collection::vec(packet, 1..12), proptest::collection::vec(buffer, 1..24))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn received_packets_are_those_sent(
        (packets, buffers) in sizes(),
        is_mergeable: bool,
        has_event_idx: bool,
        post_first in 0_usize..24,
    ) {
        let features = if is_mergeable { MERGEABLE } else { 0 };
        let mut rig = Rig::new(features | if has_event_idx { EVENT_IDX } else { 0 }, 1);
        let mut reader = Reader { posted: [].into(), received: Vec::new() };
        let frames: Vec<_> = packets.iter().enumerate().map(|(i, size)| frame(*size, i)).collect();
        let mut waiting = frames.iter();
        let mut next = waiting.next();
        // The driver's memory is bounded, and so is what it posts.
        let mut room = 600_000;
        for (i, size) in buffers.iter().cycle().take(400).enumerate() {
            if room >= *size && reader.posted.len() < usize::from(RING) / 2 {
                room -= *size;
                let half = size / 2;
                let pieces = if i % 3 == 0 { vec![half, size - half] } else { vec![*size] };
                let buffers: Vec<_> = pieces.iter().map(|size| Buffer::Writable(*size)).collect();
                let (head, places) = rig.rx[0].add(&buffers);
                reader.posted.push_back((head, places.into_iter().zip(pieces).collect()));
                if i >= post_first {
                    rig.units[0].kicked(0).unwrap();
                }
            }
            if i >= post_first {
                while let Some(frame) = next {
                    if rig.put(0, frame).is_err() {
                        break;
                    }
                    next = waiting.next();
                }
                rig.read_all().unwrap();
                reader.collect(&mut rig.rx[0]);
            }
        }
        let drops = usize::try_from(rig.counter("rx_drops")).unwrap();
        // What arrived is a subsequence of what was sent; what is missing was counted or still waits.
        let mut sent = frames.iter();
        for packet in &reader.received {
            prop_assert!(sent.any(|frame| frame == packet), "a packet that was not sent, or twice");
        }
        prop_assert!(reader.received.len() + drops <= frames.len());
        if is_mergeable && buffers.iter().all(|size| *size >= 1600) && room > 70_000 {
            prop_assert_eq!(&reader.received, &frames, "nothing had to be dropped");
        }
    }

    #[test]
    fn sent_packets_arrive_as_they_were(
        packets in proptest::collection::vec((1_usize..30_000, 1_usize..5), 1..20),
        has_event_idx: bool,
    ) {
        let mut rig = Rig::new(if has_event_idx { EVENT_IDX } else { 0 }, 1);
        let mut arrived = Vec::new();
        let mut expected = Vec::new();
        for (i, (size, pieces)) in packets.iter().enumerate() {
            let mut bytes = vec![0; HEADER];
            bytes.extend(frame(*size, i));
            let cut = bytes.len().div_ceil(*pieces);
            let pieces: Vec<_> = bytes.chunks(cut).map(|c| Buffer::Readable(c.to_vec())).collect();
            if expected.iter().map(Vec::len).sum::<usize>() + bytes.len() > 500_000 {
                break;
            }
            rig.tx[0].add(&pieces);
            expected.push(bytes);
            if i % 3 == 0 {
                rig.units[0].kicked(1).unwrap();
            }
        }
        for _ in 0..100 {
            rig.units[0].kicked(1).unwrap();
            arrived.extend(rig.arrived(0));
            if rig.interest(0) != Some(Interest::Read) {
                rig.units[0].ready(unit::BACKEND).unwrap();
            }
        }
        prop_assert_eq!(arrived, expected);
    }
}
