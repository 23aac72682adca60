//! Cards that listen for a packet that wakes the machine, switched on by the kernel's own protocol for
//! cards (Linux, *Netlink interface for ethtool*, `ETHTOOL_MSG_WOL_SET`).
//!
//! Two messages: what number the protocol has this time, and that the card is to listen for magic packets.
//! Both are answered, or refused with a number.

#![expect(clippy::host_endian_bytes, reason = "netlink speaks the machine's own byte order")]

use std::io;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

/// Head of a message (linux/netlink.h), and of one of a family (linux/genetlink.h).
const HEAD_SIZE: usize = 16;
const FAMILY_HEAD_SIZE: usize = 4;
/// Where families are asked for, and how (linux/genetlink.h).
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
/// A request that is answered: NLM_F_REQUEST and NLM_F_ACK.
const REQUEST: u16 = 0x5;
const NLMSG_ERROR: u16 = 2;
/// A card is told what wakes it (linux/ethtool_netlink.h).
const ETHTOOL_MSG_WOL_SET: u8 = 10;
const ETHTOOL_A_WOL_HEADER: u16 = 1;
const ETHTOOL_A_WOL_MODES: u16 = 2;
const ETHTOOL_A_HEADER_DEV_NAME: u16 = 2;
const ETHTOOL_A_BITSET_NOMASK: u16 = 1;
const ETHTOOL_A_BITSET_SIZE: u16 = 2;
const ETHTOOL_A_BITSET_VALUE: u16 = 4;
/// Magic packets (linux/ethtool.h, WAKE_MAGIC), of eight things that may wake.
const WAKE_MAGIC: u32 = 1 << 5;
const WAKE_COUNT: u32 = 8;
/// An attribute that holds attributes.
const NESTED: u16 = 0x8000;
/// How long the kernel may take to answer.
const TIME_MAX: Duration = Duration::from_secs(5);
/// Bytes of an answer.
const ANSWER_SIZE_MAX: usize = 8192;
/// Longest name of a card (linux/if.h, IFNAMSIZ without the end).
const NAME_SIZE_MAX: usize = 15;

/// Has a card wake the machine when a magic packet comes.
///
/// # Errors
/// What the kernel says: most virtual cards can't.
pub(crate) fn enable(card: &str) -> io::Result<()> {
    if card.is_empty() || card.len() > NAME_SIZE_MAX {
        return Err(Errno::NODEV.into());
    }
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::GENERIC),
    )?;
    set_socket_timeout(&socket, Timeout::Recv, Some(TIME_MAX))?;
    let ask = |request: &[u8]| -> io::Result<Vec<u8>> {
        send(&socket, request, SendFlags::empty())?;
        let mut answer = vec![0; ANSWER_SIZE_MAX];
        let (size, _) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
        answer.truncate(size);
        Ok(answer)
    };
    let family = family_of(&ask(&message(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, &family_name()))?)?;
    // The answer to the first question is followed by its end.
    let mut end = vec![0; ANSWER_SIZE_MAX];
    recv(&socket, &mut end[..], RecvFlags::empty())?;
    refused(&ask(&message(family, ETHTOOL_MSG_WOL_SET, &wake_on_magic(card)))?)
}

fn family_name() -> Vec<u8> {
    attribute(CTRL_ATTR_FAMILY_NAME, b"ethtool\0")
}

/// The card, and the one thing that is to wake it.
fn wake_on_magic(card: &str) -> Vec<u8> {
    let name = attribute(ETHTOOL_A_HEADER_DEV_NAME, &[card.as_bytes(), b"\0"].concat());
    let modes = [
        attribute(ETHTOOL_A_BITSET_NOMASK, &[]),
        attribute(ETHTOOL_A_BITSET_SIZE, &WAKE_COUNT.to_ne_bytes()),
        attribute(ETHTOOL_A_BITSET_VALUE, &WAKE_MAGIC.to_ne_bytes()),
    ];
    [
        attribute(NESTED | ETHTOOL_A_WOL_HEADER, &name),
        attribute(NESTED | ETHTOOL_A_WOL_MODES, &modes.concat()),
    ]
    .concat()
}

/// A message of a family.
fn message(family: u16, command: u8, attributes: &[u8]) -> Vec<u8> {
    let size = HEAD_SIZE + FAMILY_HEAD_SIZE + attributes.len();
    let mut message = vec![0; HEAD_SIZE + FAMILY_HEAD_SIZE];
    message[..4].copy_from_slice(&u32::try_from(size).unwrap_or_default().to_ne_bytes());
    message[4..6].copy_from_slice(&family.to_ne_bytes());
    message[6..8].copy_from_slice(&REQUEST.to_ne_bytes());
    message[16] = command;
    message[17] = 1;
    message.extend_from_slice(attributes);
    message
}

/// An attribute: its size, its kind, its value, and bytes up to the next fourth.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let size = u16::try_from(4 + value.len()).unwrap_or_default();
    let mut bytes = [size.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The number of the family that an answer is about.
fn family_of(answer: &[u8]) -> io::Result<u16> {
    refused(answer)?;
    let mut attributes = answer.get(HEAD_SIZE + FAMILY_HEAD_SIZE..).unwrap_or_default();
    while let Some((size, kind)) = u16_at(attributes, 0).zip(u16_at(attributes, 2)) {
        let size = usize::from(size);
        if kind == CTRL_ATTR_FAMILY_ID
            && let Some(family) = u16_at(attributes, 4)
        {
            return Ok(family);
        }
        if size < 4 {
            break;
        }
        attributes = attributes.get(size.next_multiple_of(4)..).unwrap_or_default();
    }
    Err(io::Error::other("the kernel does not say what it calls ethtool"))
}

/// An error, if an answer is one. Zero is none.
fn refused(answer: &[u8]) -> io::Result<()> {
    if u16_at(answer, 4) != Some(NLMSG_ERROR) {
        return Ok(());
    }
    let number = answer.get(HEAD_SIZE..).and_then(|bytes| bytes.first_chunk());
    match number.map(|bytes| i32::from_ne_bytes(*bytes)) {
        Some(0) => Ok(()),
        Some(number) => Err(io::Error::from_raw_os_error(number.saturating_neg())),
        None => Err(io::Error::other("the kernel's answer is cut")),
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_what_the_kernel_reads() {
        let sent = wake_on_magic("eth0");
        let expected: &[u8] = &[
            16, 0, 1, 0x80, 9, 0, 2, 0, b'e', b't', b'h', b'0', 0, 0, 0, 0, 24, 0, 2, 0x80, 4, 0,
            1, 0, 8, 0, 2, 0, 8, 0, 0, 0, 8, 0, 4, 0, 32, 0, 0, 0,
        ];
        if cfg!(target_endian = "little") {
            assert_eq!(sent, expected);
        }
        let whole = message(21, ETHTOOL_MSG_WOL_SET, &sent);
        assert_eq!(whole.len(), 20 + 40);
        assert_eq!(whole[..4], 60_u32.to_ne_bytes());
    }

    #[test]
    fn answers_are_read_whatever_they_are() {
        let mut answer = message(GENL_ID_CTRL, 1, &attribute(CTRL_ATTR_FAMILY_NAME, b"ethtool\0"));
        assert!(family_of(&answer).is_err());
        answer.extend(attribute(CTRL_ATTR_FAMILY_ID, &21_u16.to_ne_bytes()));
        assert_eq!(family_of(&answer).unwrap(), 21);
        let mut error = message(NLMSG_ERROR, 0, &[]);
        error[16..20].copy_from_slice(&(-95_i32).to_ne_bytes());
        assert_eq!(refused(&error).unwrap_err().raw_os_error(), Some(95));
        error[16..20].copy_from_slice(&0_i32.to_ne_bytes());
        refused(&error).unwrap();
        for nonsense in [&[][..], &[0; 7], &[255; 40], &error[..18]] {
            assert!(family_of(nonsense).is_err(), "{nonsense:?}");
        }
    }

    #[test]
    fn a_card_that_is_not_there_is_refused_by_the_kernel() {
        // Without such sockets, that is said; with them, that there is no such card.
        assert!(enable("absent0").is_err());
        assert!(enable("").is_err());
        assert!(enable("a-name-that-is-too-long").is_err());
        // The loopback interface has nothing that could wake.
        assert!(enable("lo").is_err());
    }
}
