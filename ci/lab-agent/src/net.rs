//! Interfaces and addresses by rtnetlink (RFC 3549, rtnetlink(7)), since there is no `ip`.
//!
//! Two requests are all it takes: a new state for a link, a new address for it. Both are built
//! here byte by byte, sent on a route socket and answered by an acknowledgement.

use std::fs;
use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const IFF_UP: u32 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_F_NODAD: u8 = 2;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Sets the interface with that MAC or name up and gives it `address/prefix`.
pub(crate) fn set_address(interface: &str, address: &str) -> Result<()> {
    let (ip, prefix) = address.split_once('/').context("expected ADDRESS/PREFIX")?;
    let ip: IpAddr = ip.parse().with_context(|| format!("bad address {ip}"))?;
    let prefix: u8 = prefix.parse().with_context(|| format!("bad prefix {prefix}"))?;
    let name =
        if index_of(interface).is_ok() { interface.to_owned() } else { name_by_mac(interface)? };
    set_up(&name)?;
    let index = index_of(&name)?;
    transact(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &new_address(index, ip, prefix))
        .with_context(|| format!("cannot give {name} the address {address}"))?;
    println!("{name} {address}");
    Ok(())
}

/// Sets an interface up.
pub(crate) fn set_up(name: &str) -> Result<()> {
    let index = index_of(name)?;
    transact(RTM_NEWLINK, 0, &link(index, IFF_UP)).with_context(|| format!("cannot set {name} up"))
}

/// Switches every interface off, as far as that goes. Before a machine ends: the kernel stops all
/// virtio devices then, and Debian's 6.1 spins for ever when it sends a packet of its own through
/// a card that was stopped with sent packets not yet reclaimed.
pub(crate) fn set_all_down() {
    let names = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    for name in names.filter_map(|entry| entry.file_name().into_string().ok()) {
        let _ = index_of(&name).and_then(|index| transact(RTM_NEWLINK, 0, &link(index, 0)));
    }
}

/// `struct ifinfomsg`: family, padding, type, index, flags, change mask.
fn link(index: u32, flags: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend(index.to_le_bytes());
    body.extend(flags.to_le_bytes());
    body.extend(IFF_UP.to_le_bytes());
    body
}

/// `struct ifaddrmsg`: family, prefix, flags, scope, index; then the attributes.
fn new_address(index: u32, ip: IpAddr, prefix: u8) -> Vec<u8> {
    let (family, octets) = match ip {
        IpAddr::V4(ip) => (AF_INET, ip.octets().to_vec()),
        IpAddr::V6(ip) => (AF_INET6, ip.octets().to_vec()),
    };
    let mut body = vec![family, prefix, IFA_F_NODAD, 0];
    body.extend(index.to_le_bytes());
    for kind in [IFA_LOCAL, IFA_ADDRESS] {
        body.extend(size_u16(4 + octets.len()).to_le_bytes());
        body.extend(kind.to_le_bytes());
        body.extend(&octets);
    }
    body
}

/// Sends one request and waits for its acknowledgement.
fn transact(kind: u16, flags: u16, body: &[u8]) -> Result<()> {
    // Protocol 0, here `None`, is NETLINK_ROUTE.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    let flags = flags | NLM_F_REQUEST | NLM_F_ACK;
    send(&socket, &message(kind, flags, body), SendFlags::empty())?;
    let mut answer = [0; 4096];
    let (_, size) = recv(&socket, &mut answer, RecvFlags::empty())?;
    check_ack(answer.get(..size).unwrap_or_default())
}

/// `struct nlmsghdr` and the body: size, type, flags, sequence number, port.
fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut message = u32::from(size_u16(16 + body.len())).to_le_bytes().to_vec();
    message.extend(kind.to_le_bytes());
    message.extend(flags.to_le_bytes());
    message.extend(1u32.to_le_bytes());
    message.extend(0u32.to_le_bytes());
    message.extend(body);
    message
}

fn check_ack(answer: &[u8]) -> Result<()> {
    let kind = answer.get(4..6).and_then(|bytes| bytes.first_chunk()).copied();
    if kind.map(u16::from_le_bytes) != Some(NLMSG_ERROR) {
        bail!("the kernel's answer is no acknowledgement");
    }
    let error = answer.get(16..20).and_then(|bytes| bytes.first_chunk()).copied();
    match error.map(i32::from_le_bytes).context("the kernel's answer is cut off")? {
        0 => Ok(()),
        error => Err(std::io::Error::from_raw_os_error(-error).into()),
    }
}

fn name_by_mac(mac: &str) -> Result<String> {
    for entry in fs::read_dir("/sys/class/net").context("cannot list /sys/class/net")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let found = fs::read_to_string(format!("/sys/class/net/{name}/address"));
        if found.is_ok_and(|found| found.trim().eq_ignore_ascii_case(mac)) {
            return Ok(name);
        }
    }
    bail!("no interface has the MAC {mac}")
}

fn index_of(name: &str) -> Result<u32> {
    let path = format!("/sys/class/net/{name}/ifindex");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(text.trim().parse()?)
}

fn size_u16(size: usize) -> u16 {
    u16::try_from(size).expect("the messages of this module have less than 100 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_request_is_what_rtnetlink_7_says() {
        let body = new_address(3, "10.1.2.3".parse().unwrap(), 24);
        let expected = [
            2, 24, 2, 0, 3, 0, 0, 0, // struct ifaddrmsg
            8, 0, 2, 0, 10, 1, 2, 3, // IFA_LOCAL
            8, 0, 1, 0, 10, 1, 2, 3, // IFA_ADDRESS
        ];
        assert_eq!(body, expected);
        let whole = message(RTM_NEWADDR, NLM_F_REQUEST | NLM_F_ACK, &body);
        assert_eq!(whole[..16], [40, 0, 0, 0, 20, 0, 5, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn acknowledgements_carry_the_error() {
        let ack = |error: i32| {
            let mut answer = message(NLMSG_ERROR, 0, &error.to_le_bytes());
            answer.extend([0; 16]);
            check_ack(&answer)
        };
        assert!(ack(0).is_ok());
        assert!(ack(-17).unwrap_err().to_string().contains("exists"));
        assert!(check_ack(&[]).is_err());
    }
}
