//! Network links: which there are, and the requests of [`crate::network`] carried out.

use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::net::{recv, send, socket_with};

use crate::netlink::{encode, verdict};
use crate::network::{Link, Request};

/// The links with a hardware address.
pub(crate) fn list() -> Vec<Link> {
    let Ok(entries) = std::fs::read_dir("/sys/class/net") else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter_map(read).collect()
}

fn read(name: String) -> Option<Link> {
    let file = |key: &str| std::fs::read_to_string(format!("/sys/class/net/{name}/{key}")).ok();
    let index = file("ifindex")?.trim().parse().ok()?;
    let address = file("address")?;
    let mut mac = [0; 6];
    let mut parts = address.trim().split(':');
    for slot in &mut mac {
        *slot = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    Some(Link { name, index, mac })
}

/// Switches every link off, as far as that goes. Before a power-off: the kernel stops all virtio
/// devices then, and Debian's 6.1 spins for ever when it sends a packet (router solicitation,
/// multicast report) through a card that was stopped with sent packets not yet reclaimed.
pub(crate) fn all_off() {
    let Ok(mut kernel) = Rtnetlink::open() else { return };
    for Link { index, .. } in list() {
        let _ = kernel.carry_out(&Request::Down { index });
    }
}

/// A connection to the kernel's routing.
pub(crate) struct Rtnetlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Rtnetlink {
    pub(crate) fn open() -> Result<Self> {
        let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
        // Protocol 0 is NETLINK_ROUTE.
        let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None).context("no netlink")?;
        set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_LIMIT))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Switches the loopback interface on.
    pub(crate) fn loopback(&mut self) -> Result<()> {
        let index = std::fs::read_to_string("/sys/class/net/lo/ifindex").context("no loopback")?;
        self.carry_out(&Request::Up { index: index.trim().parse()?, mtu: None })
    }

    /// Carries out one request.
    pub(crate) fn carry_out(&mut self, request: &Request) -> Result<()> {
        if let Request::Sysctl { path, value } = request {
            return Ok(std::fs::write(format!("/proc/sys/net/{path}"), value)?);
        }
        self.sequence += 1;
        let Some(message) = encode(request, self.sequence) else { return Ok(()) };
        send(&self.socket, &message, SendFlags::empty())?;
        let mut buffer = [0; 4096];
        for _ in 0..ANSWERS_MAX {
            let (length, _) = recv(&self.socket, &mut buffer[..], RecvFlags::empty())?;
            let answer = buffer.get(..length).unwrap_or_default();
            match verdict(answer, self.sequence) {
                None => {}
                Some(0) => return Ok(()),
                Some(errno) => return Err(Errno::from_raw_os_error(errno).into()),
            }
        }
        bail!("no answer from the kernel")
    }
}

/// Longest wait for the kernel's answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Most messages that are read before the answer.
const ANSWERS_MAX: usize = 16;
