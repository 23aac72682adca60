//! A machine, played by the test: its taps, opened as a VMM opens them.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use hostd_exec::network::{Attachment, Interface};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::frames::{self, Mac};

/// How long something that should come may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait for an answer before asking again.
const SHORT: Duration = Duration::from_millis(100);

/// One card of a machine.
pub(crate) struct Card {
    tap: File,
    pub(crate) mac: Mac,
    pub(crate) interface: Interface,
}

impl Card {
    /// The card of this place in a machine's attachment.
    pub(crate) fn open(attachment: &Attachment, at: usize) -> Self {
        let interface = attachment.interfaces[at].clone();
        let name = interface.tap.clone();
        let namespace = File::open(&attachment.namespace).unwrap();
        let open = move || {
            let network = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), network).unwrap();
            open_tap(&name)
        };
        let tap = std::thread::spawn(open).join().unwrap();
        let card = Self { tap, mac: *interface.mac.as_bytes(), interface };
        card.wait_until_it_works();
        card
    }

    /// A bridge takes a moment to see that a port has somebody.
    fn wait_until_it_works(&self) {
        let deadline = Instant::now() + PATIENCE;
        let works = || match self.interface.routes.first().map(|route| route.via) {
            Some(IpAddr::V6(gateway)) => self.discover_within(gateway, SHORT).is_some(),
            _ => match self.interface.gateway {
                Some(IpAddr::V4(gateway)) => self.resolve_within(gateway, SHORT).is_some(),
                other => panic!("{other:?}"),
            },
        };
        while !works() {
            assert!(Instant::now() < deadline, "{} has no gateway", self.interface.tap);
        }
    }

    pub(crate) fn ipv4(&self) -> Ipv4Addr {
        match self.interface.address.address() {
            IpAddr::V4(address) => address,
            IpAddr::V6(address) => panic!("{address}"),
        }
    }

    pub(crate) fn ipv6(&self) -> Ipv6Addr {
        match self.interface.address.address() {
            IpAddr::V6(address) => address,
            IpAddr::V4(address) => panic!("{address}"),
        }
    }

    pub(crate) fn send(&self, frame: &[u8]) {
        // Ten bytes of `virtio_net_hdr` that ask for nothing.
        let with_header = [&[0; 10][..], frame].concat();
        assert_eq!((&self.tap).write(&with_header).unwrap(), with_header.len());
    }

    /// The next frame that is asked for; none in time. Others are passed over.
    pub(crate) fn receive(
        &self,
        patience: Duration,
        is: impl Fn(&[u8]) -> bool,
    ) -> Option<Vec<u8>> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = left.try_into().unwrap();
            let mut wait = [PollFd::new(&self.tap, PollFlags::IN)];
            if poll(&mut wait, Some(&timeout)).unwrap() == 0 {
                return None;
            }
            let mut buffer = [0; 4096];
            let size = (&self.tap).read(&mut buffer).unwrap();
            let frame = &buffer[10..size];
            if is(frame) {
                return Some(frame.to_vec());
            }
        }
    }

    /// Waits for an echo, asked or answered, that carries `mark`. Fails when one with a mark in
    /// `forbidden` comes before.
    pub(crate) fn expect_mark(&self, mark: u32, forbidden: &[u32]) {
        let is_marked = |frame: &[u8], mark: u32| frame.ends_with(&mark.to_be_bytes());
        let found = self.receive(PATIENCE, |frame| {
            for bad in forbidden {
                assert!(!is_marked(frame, *bad), "{bad:#x} came through: {frame:02x?}");
            }
            is_marked(frame, mark)
        });
        assert!(found.is_some(), "{mark:#x} did not come");
    }

    /// The MAC that somebody answers to, by ARP; none if nobody does.
    pub(crate) fn resolve(&self, target: Ipv4Addr) -> Option<Mac> {
        self.resolve_within(target, PATIENCE)
    }

    fn resolve_within(&self, target: Ipv4Addr, patience: Duration) -> Option<Mac> {
        self.send(&frames::arp(self.mac, 1, (self.mac, self.ipv4()), ([0; 6], target)));
        let is_answer = |frame: &[u8]| {
            frame[12..14] == [8, 6] && frame[20..22] == [0, 2] && frame[28..32] == target.octets()
        };
        let answer = self.receive(patience, is_answer)?;
        Some(answer[22..28].try_into().unwrap())
    }

    /// The MAC that somebody answers to, by neighbour discovery; none if nobody does.
    pub(crate) fn discover(&self, target: Ipv6Addr) -> Option<Mac> {
        self.discover_within(target, PATIENCE)
    }

    fn discover_within(&self, target: Ipv6Addr, patience: Duration) -> Option<Mac> {
        let (mac, group) = frames::solicited(target);
        let ask = frames::neighbour(0, target, 1, self.mac);
        self.send(&frames::icmp6((mac, self.mac), (self.ipv6(), group), 135, &ask));
        let is_answer = |frame: &[u8]| {
            frame[12..14] == [0x86, 0xdd] && frame[54] == 136 && frame[62..78] == target.octets()
        };
        let answer = self.receive(patience, is_answer)?;
        Some(answer[80..86].try_into().unwrap())
    }

    /// Whether a ping of an address, sent by way of a MAC, is answered within so long.
    pub(crate) fn pings(&self, by: Mac, target: Ipv4Addr, mark: u32, patience: Duration) -> bool {
        self.send(&frames::ping4((by, self.mac), self.ipv4(), target, mark));
        let is_answer = |frame: &[u8]| {
            frame[12..14] == [8, 0] && frame[34] == 0 && frame.ends_with(&mark.to_be_bytes())
        };
        self.receive(patience, is_answer).is_some()
    }
}

fn open_tap(name: &str) -> File {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let tap = rustix::fs::open("/dev/net/tun", flags, Mode::empty()).unwrap();
    let mut request =
        Request { name: [0; 16], flags: 0x0002 | 0x1000 | 0x4000 | 0x0100, rest: [0; 22] };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: `TUNSETIFF` reads and writes a `struct ifreq` of 40 bytes, which `Request` is.
    unsafe { ioctl(&tap, Updater::<TUNSETIFF, Request>::new(&mut request)) }.unwrap();
    tap.into()
}

/// A `struct ifreq` whose union holds flags.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

const TUNSETIFF: Opcode = opcode::write::<std::ffi::c_int>(b'T', 202);
