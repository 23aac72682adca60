//! The machine's network interfaces and their addresses, as the kernel tells of them.
//!
//! A [`Monitor`] asks for all once and hears of changes from then on. What follows from them:
//!
//! - an address or a link that came is a reason to dial peers at once;
//! - an address that went ends the links that are bound to it;
//! - interfaces on which peers are looked for come and go.
//!
//! Addresses of the overlay do not count: they are this node's own device, or another's.

mod netlink;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use mycelium_wire::identity::OVERLAY;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::interfaces::netlink::{
    GROUPS, LOOPBACK, MULTICAST, Message, POINT_TO_POINT, RUNNING, UP,
};
use crate::peers::Peers;
use crate::sys;

/// Memory for what the kernel says at once; it says no more than this when asked for all.
const BUFFER_SIZE: usize = 32 << 10;
/// What may wait to be read; what comes on top is lost, and all is asked for again on a new socket.
const WAITING_SIZE: usize = 1 << 20;
/// How long to rest when the kernel says nothing more.
const REST: Duration = Duration::from_secs(1);

/// All interfaces, by their number.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Interfaces(BTreeMap<u32, Interface>);

/// One interface.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Interface {
    /// Its name.
    pub(crate) name: String,
    flags: u32,
    addresses: BTreeSet<IpAddr>,
}

/// What follows from messages.
#[derive(Debug, Default, Eq, PartialEq)]
struct Changes {
    /// Peers may have become reachable.
    has_more: bool,
    /// Addresses that this machine no longer has.
    gone: Vec<IpAddr>,
}

/// Keeps what is known of interfaces up to date, and tells peers, for as long as the node runs.
pub(crate) async fn watch(peers: Arc<Peers>, published: watch::Sender<Interfaces>) {
    loop {
        let known = published.borrow().clone();
        let ended = match Monitor::open(known) {
            Ok(monitor) => monitor.run(&peers, &published).await,
            Err(error) => error,
        };
        tracing::debug!(error = %ended, "the kernel says nothing of interfaces for a moment");
        tokio::time::sleep(REST).await;
    }
}

/// All interfaces of the calling thread's network namespace, asked for once.
///
/// # Errors
/// When the kernel does not say.
pub(crate) fn all() -> io::Result<Interfaces> {
    let socket = socket(0)?;
    let timeout = Some(Duration::from_secs(2));
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, timeout)?;
    let mut interfaces = Interfaces::default();
    let mut buffer = vec![0; BUFFER_SIZE];
    for request in [netlink::all_links(), netlink::all_addresses()] {
        rustix::net::send(&socket, &request, SendFlags::empty())?;
        let mut is_done = false;
        while !is_done {
            let (_, size) = rustix::net::recv(&socket, &mut buffer[..], RecvFlags::empty())?;
            for message in netlink::parse(&buffer[..size]) {
                is_done |= interfaces.apply(message);
            }
        }
    }
    Ok(interfaces)
}

/// Hears what the kernel says.
struct Monitor {
    socket: AsyncFd<OwnedFd>,
    /// What is known.
    known: Interfaces,
    /// What is to be known, while it is asked for.
    asked: Option<(Question, Interfaces)>,
    buffer: Box<[u8]>,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
enum Question {
    Links,
    Addresses,
}

impl Monitor {
    /// Must be called inside a runtime.
    fn open(known: Interfaces) -> io::Result<Self> {
        let socket = socket(GROUPS)?;
        rustix::io::ioctl_fionbio(&socket, true)?;
        // Without the privilege, what is usual has to do.
        let _ = sockopt::set_socket_recv_buffer_size(&socket, WAITING_SIZE);
        let buffer = vec![0; BUFFER_SIZE].into_boxed_slice();
        let mut monitor = Self { socket: sys::watch(socket)?, known, asked: None, buffer };
        monitor.ask(Question::Links, Interfaces::default())?;
        Ok(monitor)
    }

    async fn run(mut self, peers: &Peers, published: &watch::Sender<Interfaces>) -> io::Error {
        // At first all is new, and all peers are being dialed.
        let mut is_first = self.known == Interfaces::default();
        loop {
            let changes = match self.changes().await {
                Ok(Some(changes)) => changes,
                Ok(None) => continue,
                Err(error) => return error,
            };
            published.send_replace(self.known.clone());
            if !std::mem::take(&mut is_first) {
                for address in changes.gone {
                    peers.address_gone(address);
                }
                if changes.has_more {
                    peers.hurry();
                }
            }
        }
    }

    /// Waits for something that the kernel says. `None` when it leaves all as it is, or more is to come.
    async fn changes(&mut self) -> io::Result<Option<Changes>> {
        let mut ready = self.socket.readable().await?;
        let received = ready.try_io(|socket| {
            Ok(rustix::net::recv(socket.get_ref(), &mut self.buffer[..], RecvFlags::empty())?.1)
        });
        // `ENOBUFS` says that messages were lost.
        let Ok(received) = received else { return Ok(None) };
        let size = received?;
        let mut next = match &self.asked {
            Some((_, asked)) => asked.clone(),
            None => self.known.clone(),
        };
        let mut is_done = false;
        for message in netlink::parse(&self.buffer[..size]) {
            is_done |= next.apply(message);
        }
        match self.asked.take() {
            Some((Question::Links, _)) if is_done => {
                self.ask(Question::Addresses, next)?;
                return Ok(None);
            }
            Some((question, _)) if !is_done => {
                self.asked = Some((question, next));
                return Ok(None);
            }
            _ => {}
        }
        if next == self.known {
            return Ok(None);
        }
        let changes = self.known.until(&next);
        self.known = next;
        Ok(Some(changes))
    }

    fn ask(&mut self, question: Question, so_far: Interfaces) -> io::Result<()> {
        let request = match question {
            Question::Links => netlink::all_links(),
            Question::Addresses => netlink::all_addresses(),
        };
        rustix::net::send(self.socket.get_ref(), &request, SendFlags::empty())?;
        self.asked = Some((question, so_far));
        Ok(())
    }
}

fn socket(groups: u32) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    // Protocol 0 is `NETLINK_ROUTE`.
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    Ok(socket)
}

impl Interfaces {
    /// Takes what the kernel says. True when all that was asked for was said.
    fn apply(&mut self, message: Message) -> bool {
        match message {
            Message::Done => return true,
            Message::Link { index, name, flags } => {
                let interface = self.0.entry(index).or_default();
                (interface.name, interface.flags) = (name, flags);
            }
            Message::LinkGone(index) => drop(self.0.remove(&index)),
            Message::Address { index, address, is_tentative: false } => {
                // Its link is always said first.
                if let Some(interface) = self.0.get_mut(&index) {
                    interface.addresses.insert(address);
                }
            }
            Message::Address { index, address, is_tentative: true }
            | Message::AddressGone { index, address } => {
                if let Some(interface) = self.0.get_mut(&index) {
                    interface.addresses.remove(&address);
                }
            }
        }
        false
    }

    /// What follows when these become `next`.
    fn until(&self, next: &Self) -> Changes {
        let (before, after) = (self.all_usable(), next.all_usable());
        let has_new_link = next.0.iter().any(|(index, interface)| {
            let was_running = self.0.get(index).is_some_and(Interface::is_running);
            interface.is_running() && !was_running && interface.usable().next().is_some()
        });
        Changes {
            has_more: has_new_link || after.difference(&before).next().is_some(),
            gone: before.difference(&after).copied().collect(),
        }
    }

    /// Addresses from which peers may be reached.
    pub(crate) fn all_usable(&self) -> BTreeSet<IpAddr> {
        self.0.values().flat_map(Interface::usable).collect()
    }

    /// Numbers of interfaces with a link-local address that can multicast and are no tunnels; those with
    /// these names, or all.
    pub(crate) fn for_discovery(&self, names: &[String]) -> Vec<u32> {
        let is_suitable = |interface: &Interface| {
            let is_wanted = names.is_empty() || names.contains(&interface.name);
            is_wanted && interface.is_suitable()
        };
        let found = self.0.iter().filter(|(_, interface)| is_suitable(interface));
        found.map(|(index, _)| *index).collect()
    }

    /// The interface that has an address.
    pub(crate) fn of(&self, address: IpAddr) -> Option<&Interface> {
        self.0.values().find(|interface| interface.addresses.contains(&address))
    }

    /// The interface of this name.
    pub(crate) fn named(&self, name: &str) -> Option<&Interface> {
        self.0.values().find(|interface| interface.name == name)
    }
}

impl Interface {
    /// Whether it is to be used.
    pub(crate) fn is_up(&self) -> bool {
        self.flags & UP != 0
    }

    /// Whether it has an address.
    pub(crate) fn has(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }

    fn is_running(&self) -> bool {
        self.flags & (UP | RUNNING) == UP | RUNNING
    }

    /// Whether peers may be looked for on it.
    fn is_suitable(&self) -> bool {
        let is_link_local =
            |address: &IpAddr| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        self.flags & (UP | MULTICAST) == UP | MULTICAST
            && self.flags & (LOOPBACK | POINT_TO_POINT) == 0
            && self.addresses.iter().any(is_link_local)
    }

    /// Addresses from which peers may be reached.
    fn usable(&self) -> impl Iterator<Item = IpAddr> {
        let is_overlay =
            |address: &IpAddr| matches!(address, IpAddr::V6(v6) if OVERLAY.contains(*v6));
        let is_none = !self.is_up() || self.flags & LOOPBACK != 0;
        let addresses = self.addresses.iter().filter(move |_| !is_none);
        addresses.filter(move |address| !is_overlay(address)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ETHERNET: u32 = UP | RUNNING | MULTICAST;

    fn link(index: u32, flags: u32) -> Message {
        Message::Link { index, name: format!("eth{index}"), flags }
    }

    fn address(index: u32, text: &str, is_tentative: bool) -> Message {
        Message::Address { index, address: text.parse().unwrap(), is_tentative }
    }

    fn interfaces(messages: impl IntoIterator<Item = Message>) -> Interfaces {
        let mut interfaces = Interfaces::default();
        for message in messages {
            interfaces.apply(message);
        }
        interfaces
    }

    #[test]
    fn an_address_that_came_and_one_that_went_are_seen() {
        let before = interfaces([link(1, ETHERNET), address(1, "10.0.0.1", false)]);
        let mut after = before.clone();
        after.apply(address(1, "fe80::1", true));
        assert_eq!(before.until(&after), Changes::default());
        after.apply(address(1, "fe80::1", false));
        assert_eq!(before.until(&after), Changes { has_more: true, gone: Vec::new() });
        let address = "10.0.0.1".parse().unwrap();
        after.apply(Message::AddressGone { index: 1, address });
        assert_eq!(before.until(&after).gone, [address]);
    }

    #[test]
    fn an_interface_that_is_shut_or_removed_takes_its_addresses_with_it() {
        let before = interfaces([link(1, ETHERNET), address(1, "10.0.0.1", false)]);
        for message in [link(1, MULTICAST), Message::LinkGone(1)] {
            let mut after = before.clone();
            after.apply(message);
            assert_eq!(before.until(&after).gone.len(), 1);
            assert!(after.until(&before).has_more);
        }
        // A cable that was pulled: the address stays, and the link is worth a dial when it is back.
        let mut after = before.clone();
        after.apply(link(1, UP | MULTICAST));
        assert_eq!(before.until(&after), Changes::default());
        assert!(after.until(&before).has_more);
    }

    #[test]
    fn what_is_no_way_to_peers_does_not_count() {
        let before = Interfaces::default();
        let after = interfaces([
            link(1, UP | RUNNING | LOOPBACK),
            address(1, "127.0.0.1", false),
            link(2, UP | RUNNING | POINT_TO_POINT),
            address(2, "400::1", false),
            link(3, ETHERNET),
            address(9, "10.0.0.1", false),
        ]);
        assert_eq!(before.until(&after), Changes::default());
    }

    #[test]
    fn peers_are_looked_for_where_many_can_be_reached() {
        let mut all = interfaces((1..=4).map(|index| link(index, ETHERNET)));
        for index in 1..=3 {
            all.apply(address(index, &format!("fe80::{index}"), index == 2));
        }
        all.apply(address(4, "2001:db8::1", false));
        all.apply(link(3, ETHERNET | POINT_TO_POINT));
        assert_eq!(all.for_discovery(&[]), [1]);
        assert_eq!(all.for_discovery(&["eth1".to_owned()]), [1]);
        assert!(all.for_discovery(&["eth2".to_owned()]).is_empty());
    }

    #[test]
    fn this_machine_has_a_loopback_interface() {
        let all = all().unwrap();
        let loopback = all.named("lo").unwrap();
        assert!(!loopback.is_suitable() && loopback.usable().next().is_none());
        if loopback.is_up() {
            assert!(loopback.has("127.0.0.1".parse().unwrap()));
            assert_eq!(all.of("127.0.0.1".parse().unwrap()).unwrap().name, "lo");
        }
    }
}
