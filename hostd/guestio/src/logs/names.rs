//! Names to addresses (RFC 1035), asked of the servers that the network's machines ask.
//!
//! The C library would ask those of the node, which are often machines of the farmer's network, and out of
//! reach from here. So this asks by itself: one question a datagram, A and then AAAA, each server in
//! turn. An answer is believed when it comes from the server's address and port, has the question's
//! number, which nobody can guess together with our port, and repeats the question; from it addresses are
//! taken, and nothing else.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use rustix::rand::{GetRandomFlags, getrandom};

/// How long a server may take.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(3);
/// Bytes of an answer (RFC 1035 section 4.2.1, and what RFC 9715 says of today's networks).
const ANSWER_SIZE_MAX: usize = 1232;
/// Datagrams that are looked at before the answer has to be among them.
const DATAGRAM_COUNT_MAX: usize = 32;
/// Addresses of one name.
const ADDRESS_COUNT_MAX: usize = 16;
/// The port of servers.
const PORT: u16 = 53;

/// Types of records (RFC 1035 section 3.2.2, RFC 3596), and the Internet's class.
const A: u16 = 1;
const AAAA: u16 = 28;
const INTERNET: u16 = 1;

/// Addresses of a name, none if it has none.
///
/// # Errors
/// No server answers.
pub(super) fn resolve(name: &str, servers: &[IpAddr]) -> io::Result<Vec<IpAddr>> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "there is no name server");
    for server in servers {
        let server = SocketAddr::new(*server, PORT);
        match ask(name, A, server).and_then(|mut found| {
            found.extend(ask(name, AAAA, server)?);
            Ok(found)
        }) {
            Ok(addresses) => return Ok(addresses),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn ask(name: &str, kind: u16, server: SocketAddr) -> io::Result<Vec<IpAddr>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let mut number = [0; 2];
    getrandom(&mut number, GetRandomFlags::empty())?;
    let question = question(number, name, kind);
    let socket = unbound(any)?;
    // Only what comes from there is heard. The kernel chooses our port.
    socket.connect(server)?;
    socket.send(&question)?;
    let deadline = Instant::now() + ANSWER_TIME_MAX;
    for _ in 0..DATAGRAM_COUNT_MAX {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        socket.set_read_timeout(Some(left))?;
        let mut answer = [0; ANSWER_SIZE_MAX];
        let size = socket.recv(&mut answer)?;
        if let Some(found) = read(answer.get(..size).unwrap_or_default(), &question, kind) {
            return Ok(found);
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "the name server does not answer"))
}

/// A socket that gets its port when it is connected, for which no `bind` is needed.
fn unbound(any: IpAddr) -> io::Result<UdpSocket> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let family = if any.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    Ok(socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?.into())
}

/// A question: number, flags (recursion is desired), one question, nothing else.
fn question(number: [u8; 2], name: &str, kind: u16) -> Vec<u8> {
    let mut bytes = number.to_vec();
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        // Names with longer labels were refused when the URL was read.
        let label = label.as_bytes().get(..label.len().min(63)).unwrap_or_default();
        bytes.push(u8::try_from(label.len()).unwrap_or(0));
        bytes.extend_from_slice(label);
    }
    bytes.push(0);
    bytes.extend(kind.to_be_bytes());
    bytes.extend(INTERNET.to_be_bytes());
    bytes
}

/// The addresses in an answer; none if it is no answer to this question.
fn read(answer: &[u8], question: &[u8], kind: u16) -> Option<Vec<IpAddr>> {
    let number = |at: usize| Some(u16::from_be_bytes(answer.get(at..at + 2)?.try_into().ok()?));
    let is_answer = answer.get(..2)? == question.get(..2)? && answer.get(2)? & 0x80 != 0;
    let asks = answer.get(12..question.len())?;
    if !is_answer || number(4)? != 1 || !asks.eq_ignore_ascii_case(question.get(12..)?) {
        return None;
    }
    let count = number(6)?;
    let mut at = question.len();
    let mut found = Vec::new();
    // A record that is cut off ends the answer.
    for _ in 0..count {
        let Some(next) = record(answer, at, kind, &mut found) else { break };
        at = next;
    }
    Some(found)
}

/// Reads one record: name, type, class, time, size, data (RFC 1035 section 4.1.3). Says where the next
/// one begins.
fn record(answer: &[u8], at: usize, kind: u16, found: &mut Vec<IpAddr>) -> Option<usize> {
    let fixed = skip_name(answer, at)?;
    let number = |at: usize| Some(u16::from_be_bytes(answer.get(at..at + 2)?.try_into().ok()?));
    let (of_kind, class, size) = (number(fixed)?, number(fixed + 2)?, number(fixed + 8)?);
    let (data, end) = (fixed + 10, fixed + 10 + usize::from(size));
    let data = answer.get(data..end)?;
    if of_kind == kind && class == INTERNET && found.len() < ADDRESS_COUNT_MAX {
        match *data {
            [a, b, c, d] if kind == A => found.push(Ipv4Addr::new(a, b, c, d).into()),
            _ if kind == AAAA => {
                let octets: Option<[u8; 16]> = data.try_into().ok();
                found.extend(octets.map(|octets| IpAddr::from(Ipv6Addr::from(octets))));
            }
            _ => {}
        }
    }
    Some(end)
}

/// Where a name ends. It is not read, so no pointer is followed.
fn skip_name(answer: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *answer.get(at)? {
            0 => return Some(at + 1),
            size if size & 0xc0 == 0xc0 => return Some(at + 2),
            size if size & 0xc0 == 0 => at += 1 + usize::from(size),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answer(question: &[u8], records: &[(&[u8], u16, &[u8])]) -> Vec<u8> {
        let mut bytes = question.to_vec();
        bytes[2] |= 0x80;
        bytes[7] = u8::try_from(records.len()).unwrap();
        for (name, kind, data) in records {
            bytes.extend_from_slice(name);
            bytes.extend(kind.to_be_bytes());
            bytes.extend([0, 1, 0, 0, 0, 60]);
            bytes.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
            bytes.extend_from_slice(data);
        }
        bytes
    }

    #[test]
    fn addresses_are_read_and_nothing_else() {
        let question = question([7, 8], "logs.example", A);
        assert_eq!(&question[12..], b"\x04logs\x07example\x00\x00\x01\x00\x01");
        let pointer: &[u8] = &[0xc0, 12];
        let good = answer(
            &question,
            &[
                (pointer, 5, b"\x01x\x00"),
                (b"\x01x\x00", A, &[198, 51, 100, 2]),
                (pointer, A, &[1]),
            ],
        );
        let expected: Vec<IpAddr> = vec!["198.51.100.2".parse().unwrap()];
        assert_eq!(read(&good, &question, A), Some(expected));
        // Cut off anywhere, it says less, and nothing wrong.
        for size in 0..good.len() {
            assert!(read(&good[..size], &question, A).unwrap_or_default().len() <= 1);
        }
        let mut other = good.clone();
        other[1] ^= 1;
        assert_eq!(read(&other, &question, A), None, "another number");
        let mut asks = good.clone();
        asks[14] ^= 3;
        assert_eq!(read(&asks, &question, A), None, "another name");
        assert_eq!(read(&question, &question, A), None, "a question");
        let none = answer(&question, &[]);
        assert_eq!(read(&none, &question, A), Some(vec![]));
    }

    #[test]
    fn of_many_addresses_some_are_enough() {
        let question = question([7, 8], "x", AAAA);
        let records: Vec<(&[u8], u16, &[u8])> = vec![(&[0xc0, 12], AAAA, &[0x20; 16]); 40];
        let found = read(&answer(&question, &records), &question, AAAA).unwrap();
        assert_eq!(found.len(), ADDRESS_COUNT_MAX);
    }

    proptest! {
        #[test]
        fn no_answer_is_too_strange(tail: Vec<u8>, count: u16) {
            let question = question([1, 2], "a.b", A);
            let mut bytes = question.clone();
            bytes[2] |= 0x80;
            bytes[6..8].copy_from_slice(&count.to_be_bytes());
            bytes.extend(tail);
            prop_assert!(read(&bytes, &question, A).unwrap().len() <= ADDRESS_COUNT_MAX);
        }
    }
}
