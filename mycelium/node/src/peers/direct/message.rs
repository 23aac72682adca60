//! What two nodes tell each other before they look for a direct way, end to end sealed.
//!
//! ```text
//!  offer   01 │ attempt 8 │ count 1 │ candidates: (kind 1 │ port 2 │ address 16) ...
//!  answer  02 │ the same, with the offer's attempt
//! ```
//!
//! An IPv4 address is written as a mapped one. What is behind the candidates, and messages of other
//! types, belong to later versions and are passed over.

use std::net::{Ipv6Addr, SocketAddr};

use crate::link::udp::mapped;

/// Candidates that a node names, and that it tries.
pub(crate) const CANDIDATE_COUNT_MAX: usize = 8;
/// Size of a candidate.
const CANDIDATE_SIZE: usize = 19;

const TYPE_OFFER: u8 = 1;
const TYPE_ANSWER: u8 = 2;

/// Names one attempt.
pub(crate) type Attempt = [u8; 8];

/// How a node knows one of its addresses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum CandidateKind {
    /// It has it.
    Host = 0,
    /// A neighbour sees it there.
    Observed = 1,
    /// A router passes on what comes there.
    Mapped = 2,
}

/// Where a node may be reached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Candidate {
    pub(crate) kind: CandidateKind,
    pub(crate) address: SocketAddr,
}

/// A message.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Message {
    pub(crate) is_answer: bool,
    pub(crate) attempt: Attempt,
    pub(crate) candidates: Vec<Candidate>,
}

impl Message {
    /// The bytes; candidates above [`CANDIDATE_COUNT_MAX`] are left out.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let candidates = self.candidates.iter().take(CANDIDATE_COUNT_MAX);
        let mut bytes = vec![if self.is_answer { TYPE_ANSWER } else { TYPE_OFFER }];
        bytes.extend(self.attempt);
        bytes.push(u8::try_from(candidates.len()).unwrap_or(0));
        for Candidate { kind, address } in candidates {
            bytes.push(*kind as u8);
            bytes.extend(address.port().to_be_bytes());
            bytes.extend(mapped(address.ip()).octets());
        }
        bytes
    }

    /// What the bytes say; none when this version does not understand them. Candidates of unknown kinds,
    /// and those above [`CANDIDATE_COUNT_MAX`], are passed over.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let (first, rest) = bytes.split_first()?;
        let is_answer = match *first {
            TYPE_OFFER => false,
            TYPE_ANSWER => true,
            _ => return None,
        };
        let (attempt, rest) = rest.split_first_chunk()?;
        let (count, rest) = rest.split_first()?;
        let (chunks, _) = rest.as_chunks::<CANDIDATE_SIZE>();
        let count = usize::from(*count);
        if chunks.len() < count {
            return None;
        }
        let known = chunks.iter().take(count).filter_map(candidate);
        Some(Self {
            is_answer,
            attempt: *attempt,
            candidates: known.take(CANDIDATE_COUNT_MAX).collect(),
        })
    }
}

fn candidate(bytes: &[u8; CANDIDATE_SIZE]) -> Option<Candidate> {
    let [kind, port_high, port_low, address @ ..] = *bytes;
    let kind = match kind {
        0 => CandidateKind::Host,
        1 => CandidateKind::Observed,
        2 => CandidateKind::Mapped,
        _ => return None,
    };
    let address = Ipv6Addr::from(address).to_canonical();
    let port = u16::from_be_bytes([port_high, port_low]);
    Some(Candidate { kind, address: SocketAddr::new(address, port) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(count: u16) -> Message {
        let kinds = [CandidateKind::Host, CandidateKind::Observed, CandidateKind::Mapped];
        let candidate = |number: u16| Candidate {
            kind: kinds[usize::from(number % 3)],
            address: if number.is_multiple_of(2) {
                ([192, 0, 2, 1], number).into()
            } else {
                ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], number).into()
            },
        };
        Message {
            is_answer: true,
            attempt: [5; 8],
            candidates: (0..count).map(candidate).collect(),
        }
    }

    #[test]
    fn what_is_written_is_read_and_no_more_than_the_limit() {
        for count in 0..12 {
            let mut expected = message(count);
            let bytes = expected.encode();
            expected.candidates.truncate(CANDIDATE_COUNT_MAX);
            assert_eq!(Message::parse(&bytes), Some(expected.clone()));
            let longer = [bytes.as_slice(), &[1, 2, 3]].concat();
            assert_eq!(Message::parse(&longer), Some(expected));
            if count > 0 {
                assert_eq!(Message::parse(&bytes[..bytes.len() - 1]), None);
            }
        }
    }

    #[test]
    fn a_kind_of_a_later_version_is_passed_over() {
        let mut bytes = message(2).encode();
        bytes[10] = 9;
        assert_eq!(Message::parse(&bytes).unwrap().candidates.len(), 1);
        bytes[0] = 3;
        assert_eq!(Message::parse(&bytes), None);
    }

    proptest! {
        #[test]
        fn nothing_that_arrives_is_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Some(message) = Message::parse(&bytes) {
                prop_assert!(message.candidates.len() <= CANDIDATE_COUNT_MAX);
                prop_assert_eq!(Message::parse(&message.encode()), Some(message));
            }
        }
    }
}
