//! Addresses of all interfaces, from the kernel's routing socket (rtnetlink(7), RTM_GETADDR).
//!
//! ```text
//! message = size[4] type[2] flags[2] sequence[4] port[4]  family[1] prefix[1] flags[1] scope[1] index[4]
//!           { attribute: size[2] type[2] value, padded to 4 }
//! ```

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use rustix::net::netdevice::index_to_name;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

/// What is asked (linux/rtnetlink.h).
const RTM_GETADDR: u16 = 22;
/// How one address is answered.
const RTM_NEWADDR: u16 = 20;
/// That something was wrong (linux/netlink.h).
const NLMSG_ERROR: u16 = 2;
/// That all was told.
const NLMSG_DONE: u16 = 3;
/// A request for all there are: NLM_F_REQUEST and NLM_F_DUMP.
const REQUEST_ALL: u16 = 0x301;
/// The address of the interface itself, where that differs from the other end's (linux/if_addr.h).
const IFA_LOCAL: u16 = 2;
/// The address.
const IFA_ADDRESS: u16 = 1;
/// Bytes of a message's head, and of the head of an address in it.
const HEAD_SIZE: usize = 16;
const ADDRESS_HEAD_SIZE: usize = 8;
/// Bytes that the kernel sends at once at most.
const BUFFER_SIZE: usize = 64 << 10;
/// Answers that are read.
const ANSWER_COUNT_MAX: usize = 256;

/// All addresses, by interface, in the kernel's order.
pub(super) fn addresses() -> io::Result<BTreeMap<String, Vec<IpAddr>>> {
    let flags = SocketFlags::CLOEXEC;
    let kind = SocketType::RAW;
    // Routes are netlink's protocol 0.
    let socket = socket_with(AddressFamily::NETLINK, kind, flags, None)?;
    let mut request = [0; HEAD_SIZE + ADDRESS_HEAD_SIZE];
    request[0] = u8::try_from(request.len()).unwrap_or_default();
    request[4..6].copy_from_slice(&RTM_GETADDR.to_ne_bytes());
    request[6..8].copy_from_slice(&REQUEST_ALL.to_ne_bytes());
    send(&socket, &request, SendFlags::empty())?;
    let mut found = Vec::new();
    let mut buffer = vec![0; BUFFER_SIZE];
    for _ in 0..ANSWER_COUNT_MAX {
        let (size, _) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        if parse(buffer.get(..size).unwrap_or_default(), &mut found) {
            break;
        }
    }
    let mut addresses = BTreeMap::<_, Vec<_>>::new();
    for (index, ip) in found {
        // An interface that went away meanwhile has no name.
        if let Ok(name) = index_to_name(&socket, index) {
            addresses.entry(name).or_default().push(ip);
        }
    }
    Ok(addresses)
}

/// Adds what one answer says, and says whether it was the last.
fn parse(mut bytes: &[u8], found: &mut Vec<(u32, IpAddr)>) -> bool {
    while let Some((size, kind)) = u32_at(bytes, 0).zip(u16_at(bytes, 4)) {
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let Some(message) = bytes.get(HEAD_SIZE..size) else { return true };
        match kind {
            NLMSG_DONE | NLMSG_ERROR => return true,
            RTM_NEWADDR => found.extend(address(message)),
            _ => {}
        }
        bytes = bytes.get(size.next_multiple_of(4)..).unwrap_or_default();
    }
    false
}

/// One address, and the index of its interface.
fn address(message: &[u8]) -> Option<(u32, IpAddr)> {
    let index = u32_at(message, 4)?;
    let mut attributes = message.get(ADDRESS_HEAD_SIZE..)?;
    let mut ip = None;
    while let Some((size, kind)) = u16_at(attributes, 0).zip(u16_at(attributes, 2)) {
        let value = attributes.get(4..usize::from(size))?;
        let read = match *value {
            [a, b, c, d] => Some(IpAddr::from([a, b, c, d])),
            _ => <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
        };
        match kind {
            IFA_LOCAL => return Some((index, read?)),
            IFA_ADDRESS => ip = read,
            _ => {}
        }
        attributes = attributes.get(usize::from(size).next_multiple_of(4)..).unwrap_or_default();
    }
    Some((index, ip?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_address_is_found() {
        let addresses = addresses().unwrap();
        assert!(addresses["lo"].contains(&IpAddr::from([127, 0, 0, 1])), "{addresses:?}");
    }

    #[test]
    fn nonsense_ends_the_reading() {
        let mut found = Vec::new();
        for bytes in [&[0; 16][..], &[255; 64], &[17, 0, 0, 0, 20, 0]] {
            assert!(parse(bytes, &mut found) || bytes.len() < 8);
        }
        // An address that is cut, and one whose attribute says that it is longer than all.
        let mut message = vec![28, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        message.extend([2, 8, 0, 0, 1, 0, 0, 0, 99, 0, 1, 0]);
        assert!(!parse(&message, &mut found));
        assert_eq!(found, []);
    }
}
