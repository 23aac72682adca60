//! Control packets over datagrams: all of them, in order, once.
//!
//! Each has a number. Up to [`WINDOW_COUNT`] are under way; what is not acknowledged in time is sent
//! again from the first missing one on (go-back-N), less and less often, until the link is given up.
//! Control packets are few and small, so nothing cleverer is worth its code. An acknowledgement goes out
//! at once for whatever arrives, also in front of control packets that go the other way.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::link::udp::packet::{CONTROL_PREFIX_SIZE, Payload};

/// Control packets that wait on one link, in bytes. A neighbour that leaves more than this unread is
/// no neighbour.
const SIZE_MAX: usize = 1 << 20;
/// Largest control packet: a TLV with its headers has 265 bytes.
const PACKET_SIZE_MAX: usize = 512;
/// Control packets that are under way.
const WINDOW_COUNT: usize = 512;
/// How long the first acknowledgement may take, before the round trip is known.
const TIMEOUT_FIRST: Duration = Duration::from_millis(300);
const TIMEOUT_MIN: Duration = Duration::from_millis(100);
const TIMEOUT_MAX: Duration = Duration::from_secs(3);
/// A link on which as many timeouts follow each other is dead.
const TIMEOUT_COUNT_MAX: u32 = 8;

/// Both directions of one end.
#[derive(Debug, Default)]
pub(crate) struct Arq {
    /// Not acknowledged, in order; the first has the number `first`.
    waiting: VecDeque<Box<[u8]>>,
    waiting_size: usize,
    first: u32,
    /// How many of `waiting` were sent.
    sent_count: usize,
    /// When the first of those was sent, or last progress was made.
    sent_at: Option<Instant>,
    timeouts: u32,
    /// A packet whose round trip is measured; none of those that were sent twice (RFC 6298 §3).
    timed: Option<(u32, Instant)>,
    round_trip: Option<Duration>,
    /// Number that comes next from the other end.
    expected: u32,
    owes_acknowledgement: bool,
}

/// Why a link can't go on.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum ArqError {
    /// Too much waits.
    #[error("the peer acknowledges no control packets: more than {SIZE_MAX} bytes wait")]
    Full,
    /// Too many timeouts.
    #[error(
        "the peer acknowledged no control packet, though it was sent {TIMEOUT_COUNT_MAX} times"
    )]
    Silent,
}

impl Arq {
    /// Takes a control packet to send.
    pub(crate) fn push(&mut self, packet: &[u8]) -> Result<(), ArqError> {
        if packet.len() > PACKET_SIZE_MAX || self.waiting_size + packet.len() > SIZE_MAX {
            return Err(ArqError::Full);
        }
        self.waiting_size += packet.len();
        self.waiting.push_back(packet.into());
        Ok(())
    }

    /// Appends the next payload to send, of at most `size_max` bytes. False when there is none.
    pub(crate) fn next(&mut self, size_max: usize, now: Instant, out: &mut Vec<u8>) -> bool {
        let mut size = CONTROL_PREFIX_SIZE;
        let room = WINDOW_COUNT.saturating_sub(self.sent_count);
        let unsent = self.waiting.iter().skip(self.sent_count).take(room);
        let fits = unsent.map(|packet| packet.len()).take_while(|packet_size| {
            size += 2 + packet_size;
            size <= size_max
        });
        let count = fits.count();
        if count == 0 && !self.owes_acknowledgement {
            return false;
        }
        let first = self.first.wrapping_add(u32::try_from(self.sent_count).unwrap_or(0));
        Payload::Control { acknowledged: self.expected, first, packets: &[] }.encode(out);
        for packet in self.waiting.iter().skip(self.sent_count).take(count) {
            // No larger than `PACKET_SIZE_MAX`.
            out.extend(u16::try_from(packet.len()).unwrap_or(0).to_be_bytes());
            out.extend(packet);
        }
        if count > 0 {
            self.sent_count += count;
            self.sent_at.get_or_insert(now);
            if self.timeouts == 0 {
                self.timed.get_or_insert((first, now));
            }
        }
        self.owes_acknowledgement = false;
        true
    }

    /// When [`Self::tick`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.sent_at.map(|at| at + self.timeout())
    }

    /// Sends again what was not acknowledged in time.
    pub(crate) fn tick(&mut self, now: Instant) -> Result<(), ArqError> {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return Ok(());
        }
        if self.timeouts >= TIMEOUT_COUNT_MAX {
            return Err(ArqError::Silent);
        }
        self.timeouts += 1;
        (self.sent_count, self.sent_at, self.timed) = (0, None, None);
        Ok(())
    }

    /// Takes a payload of the other end: gives control packets that are new, in order, to `deliver`.
    pub(crate) fn received(
        &mut self,
        acknowledged: u32,
        first: u32,
        mut packets: &[u8],
        now: Instant,
        mut deliver: impl FnMut(&[u8]),
    ) {
        self.acknowledged(acknowledged, now);
        let mut number = first;
        while let Some((length, rest)) = packets.split_first_chunk() {
            let Some((packet, rest)) =
                rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
            else {
                return;
            };
            self.owes_acknowledgement = true;
            if number == self.expected {
                self.expected = number.wrapping_add(1);
                deliver(packet);
            }
            number = number.wrapping_add(1);
            packets = rest;
        }
    }

    fn acknowledged(&mut self, acknowledged: u32, now: Instant) {
        let count = usize::try_from(acknowledged.wrapping_sub(self.first)).unwrap_or(usize::MAX);
        // After a timeout, what was sent before it may be acknowledged still; nothing else may.
        if count == 0 || count > self.waiting.len().min(WINDOW_COUNT) {
            return;
        }
        if let Some((number, sent)) = self.timed
            && usize::try_from(number.wrapping_sub(self.first)).is_ok_and(|at| at < count)
        {
            let sample = now.saturating_duration_since(sent);
            let smoothed = self.round_trip.map_or(sample, |before| (before * 7 + sample) / 8);
            self.round_trip = Some(smoothed);
            self.timed = None;
        }
        let size: usize = self.waiting.drain(..count).map(|packet| packet.len()).sum();
        self.waiting_size -= size;
        self.first = acknowledged;
        self.sent_count = self.sent_count.saturating_sub(count);
        self.sent_at = (self.sent_count > 0).then_some(now);
        self.timeouts = 0;
    }

    fn timeout(&self) -> Duration {
        let base = self.round_trip.map_or(TIMEOUT_FIRST, |round_trip| round_trip * 2);
        (base.max(TIMEOUT_MIN) * (1 << self.timeouts.min(8))).min(TIMEOUT_MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: usize = 200;

    fn step(from: &mut Arq, to: &mut Arq, is_lost: bool, now: Instant) -> Vec<Vec<u8>> {
        let (mut bytes, mut delivered) = (Vec::new(), Vec::new());
        if from.next(SIZE, now, &mut bytes) && !is_lost {
            assert!(bytes.len() <= SIZE);
            let Some(Payload::Control { acknowledged, first, packets }) = Payload::parse(&bytes)
            else {
                panic!("{bytes:?}")
            };
            let deliver = |packet: &[u8]| delivered.push(packet.to_vec());
            to.received(acknowledged, first, packets, now, deliver);
        }
        delivered
    }

    #[test]
    fn a_link_without_answers_is_given_up() {
        let (mut arq, mut now) = (Arq::default(), Instant::now());
        let start = now;
        arq.push(b"anybody?").unwrap();
        let mut sent = 0;
        let error = loop {
            sent += u32::from(arq.next(SIZE, now, &mut Vec::new()));
            now = arq.deadline().unwrap();
            if let Err(error) = arq.tick(now) {
                break error;
            }
        };
        assert_eq!((error, sent), (ArqError::Silent, TIMEOUT_COUNT_MAX + 1));
        assert!(now - start < Duration::from_secs(25), "{:?}", now - start);
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut arq = Arq::default();
        while arq.push(&[0; 500]).is_ok() {}
        assert!(arq.waiting_size <= SIZE_MAX);
        assert_eq!(arq.push(&[0; PACKET_SIZE_MAX + 1]), Err(ArqError::Full));
    }

    #[test]
    fn an_acknowledgement_of_what_was_not_sent_changes_nothing() {
        let (mut arq, now) = (Arq::default(), Instant::now());
        arq.push(b"one").unwrap();
        arq.received(7, 0, &[], now, |_| panic!("nothing came"));
        arq.received(u32::MAX, 0, &[0, 9, 1], now, |_| panic!("nothing whole came"));
        assert_eq!((arq.first, arq.waiting.len(), arq.owes_acknowledgement), (0, 1, false));
    }

    proptest! {
        #[test]
        fn all_arrive_in_order_and_once_whatever_is_lost(
            losses in proptest::collection::vec((any::<bool>(), any::<bool>(), 0_u8..4), 1..400),
        ) {
            let (mut a, mut b, mut now) = (Arq::default(), Arq::default(), Instant::now());
            let (mut sent, mut received) = (Vec::new(), Vec::new());
            let quiet = std::iter::repeat_n((false, false, 0), 400);
            for (lost, back_lost, new) in losses.into_iter().chain(quiet) {
                for _ in 0..new {
                    let packet = vec![u8::try_from(sent.len() % 251).unwrap(); sent.len() % 90];
                    a.push(&packet).unwrap();
                    sent.push(packet);
                }
                received.extend(step(&mut a, &mut b, lost, now));
                step(&mut b, &mut a, back_lost, now);
                now += Duration::from_millis(120);
                if a.tick(now).is_err() {
                    return Ok(());
                }
            }
            prop_assert_eq!(received, sent);
            prop_assert!(a.waiting.is_empty() && a.waiting_size == 0 && a.deadline().is_none());
        }
    }
}
