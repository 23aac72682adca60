//! Interfaces and addresses by rtnetlink, since there is no `ip`. The messages are those of a guest's
//! init.

use std::fs;
use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use guest_init::cidata::Prefix;
use guest_init::netlink::{encode, verdict};
use guest_init::network::Request;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

/// Sets the interface with that MAC or name up and gives it `address/prefix`.
pub(crate) fn set_address(interface: &str, address: &str) -> Result<()> {
    let (ip, prefix) = address.split_once('/').context("expected ADDRESS/PREFIX")?;
    let ip: IpAddr = ip.parse().with_context(|| format!("bad address {ip}"))?;
    let prefix: u8 = prefix.parse().with_context(|| format!("bad prefix {prefix}"))?;
    let name =
        if index_of(interface).is_ok() { interface.to_owned() } else { name_by_mac(interface)? };
    set_up(&name)?;
    let index = index_of(&name)?;
    let prefix = Prefix { address: ip, length: prefix };
    transact(&Request::Address { index, prefix })
        .with_context(|| format!("cannot give {name} the address {address}"))?;
    println!("{name} {address}");
    Ok(())
}

/// Sets an interface up.
pub(crate) fn set_up(name: &str) -> Result<()> {
    let index = index_of(name)?;
    let up = transact(&Request::Up { index, mtu: None });
    up.with_context(|| format!("cannot set {name} up"))
}

/// Switches every interface off, as far as that goes. Before a machine ends: the kernel stops all
/// virtio devices then, and Debian's 6.1 spins for ever when it sends a packet of its own through
/// a card that was stopped with sent packets not yet reclaimed.
pub(crate) fn set_all_down() {
    let names = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    for name in names.filter_map(|entry| entry.file_name().into_string().ok()) {
        let _ = index_of(&name).and_then(|index| transact(&Request::Down { index }));
    }
}

/// Sends one request and waits for its acknowledgement.
fn transact(request: &Request) -> Result<()> {
    const SEQUENCE: u32 = 1;
    let message = encode(request, SEQUENCE).context("no matter of rtnetlink")?;
    // Protocol 0, here `None`, is NETLINK_ROUTE.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    send(&socket, &message, SendFlags::empty())?;
    let mut answer = [0; 4096];
    let (_, size) = recv(&socket, &mut answer, RecvFlags::empty())?;
    let verdict = verdict(answer.get(..size).unwrap_or_default(), SEQUENCE);
    match verdict.context("the kernel's answer is no acknowledgement")? {
        0 => Ok(()),
        errno => Err(std::io::Error::from_raw_os_error(errno).into()),
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
