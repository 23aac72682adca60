//! Links and addresses of one namespace, by the kernel's routing socket.
//!
//! A [`Netlink`] belongs to the namespace of the thread that opened it. It asks for everything at once and
//! does one step at a time; each question and step ends in time.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use futures_util::TryStreamExt;
use hostd_grid::derived::MacAddress;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::{
    Error, Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
};
use rustix::io::Errno;
use tokio::runtime::{Builder, Runtime};

use super::plan::{Address, Found, Kind, Step};
use super::sys;

/// Longest time for one question or step.
const TIME_MAX: Duration = Duration::from_secs(10);

/// A socket to the kernel.
pub(super) struct Netlink {
    runtime: Runtime,
    handle: Handle,
}

impl Netlink {
    /// Opens one in the calling thread's namespace.
    pub(super) fn open() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
        let entered = runtime.enter();
        let (connection, handle, _) = rtnetlink::new_connection()?;
        drop(entered);
        runtime.spawn(connection);
        Ok(Self { runtime, handle })
    }

    /// All links with their addresses.
    pub(super) fn links(&self) -> io::Result<Vec<Found>> {
        let messages: Vec<LinkMessage> =
            self.ask(self.handle.link().get().execute().try_collect())?;
        let addresses: Vec<AddressMessage> =
            self.ask(self.handle.address().get().execute().try_collect())?;
        let mut of_link: HashMap<u32, Vec<Address>> = HashMap::new();
        for message in &addresses {
            if let Some(address) = read_address(message) {
                of_link.entry(message.header.index).or_default().push(address);
            }
        }
        let names: HashMap<u32, String> =
            messages.iter().map(|message| (message.header.index, name_of(message))).collect();
        let mut links: Vec<Found> = messages.iter().map(|one| read_link(one, &names)).collect();
        for link in &mut links {
            link.addresses = of_link.remove(&link.index).unwrap_or_default();
        }
        Ok(links)
    }

    /// Makes a pair of links: `name` here, `other` in another namespace.
    pub(super) fn make_pair(
        &self,
        name: &str,
        other: &str,
        namespace: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let other = LinkMessageBuilder::<LinkUnspec>::new()
            .name(other)
            .setns_by_fd(namespace.as_raw_fd())
            .build();
        let message = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(name)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(other)))
            .build();
        self.ask(self.handle.link().add(message).execute())
    }

    /// Does a step. Names are looked up anew, since indices change.
    pub(super) fn execute(&self, step: &Step) -> io::Result<()> {
        match step {
            Step::Remove(name) => self.remove(name),
            Step::Make { name, kind, mac } => self.make(name, *kind, *mac),
            Step::SetMac { name, mac } => {
                self.change(name, |link| link.address(mac.as_bytes().to_vec()))
            }
            Step::SetMtu { name, mtu } => self.change(name, |link| link.mtu(*mtu)),
            Step::SetLabel { name, label } => self.change(name, |link| link.alias(label)),
            Step::Join { name, bridge } => {
                let bridge = self.index(bridge)?;
                self.change(name, |link| link.controller(bridge))
            }
            Step::DropAddress { name, address } => {
                let message = self.address_message(self.index(name)?, *address);
                self.ask(self.handle.address().del(message).execute())
            }
            Step::AddAddress { name, address } => {
                let index = self.index(name)?;
                let mut request =
                    self.handle.address().add(index, address.local, address.prefix_len);
                *request.message_mut() = self.address_message(index, *address);
                self.ask(request.replace().execute())
            }
            Step::Start(name) => self.change(name, LinkMessageBuilder::up),
            Step::DefaultRoute { name, via } => {
                let route = RouteMessageBuilder::<Ipv4Addr>::new()
                    .gateway(*via)
                    .output_interface(self.index(name)?)
                    .build();
                self.ask(self.handle.route().add(route).replace().execute())
            }
        }
    }

    /// Removes a link. One that is not there is no error.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        match self.index(name) {
            Ok(index) => self.ask(self.handle.link().del(index).execute()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn make(&self, name: &str, kind: Kind, mac: Option<MacAddress>) -> io::Result<()> {
        match kind {
            Kind::Tap => sys::make_tap(name),
            Kind::Bridge => {
                let mut link = LinkMessageBuilder::<LinkBridge>::new(name);
                if let Some(mac) = mac {
                    link = link.address(mac.as_bytes().to_vec());
                }
                self.ask(self.handle.link().add(link.build()).execute())
            }
            Kind::Pair | Kind::OtherEnd | Kind::Loopback | Kind::Other => {
                Err(io::Error::new(io::ErrorKind::NotFound, "it is gone"))
            }
        }
    }

    fn change(
        &self,
        name: &str,
        how: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
    ) -> io::Result<()> {
        let message = how(LinkUnspec::new_with_index(self.index(name)?)).build();
        self.ask(self.handle.link().change(message).execute())
    }

    fn index(&self, name: &str) -> io::Result<u32> {
        let mut found = self.handle.link().get().match_name(name.to_owned()).execute();
        match self.ask(found.try_next()) {
            Ok(Some(message)) => Ok(message.header.index),
            Ok(None) => Err(io::ErrorKind::NotFound.into()),
            Err(error) if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => {
                Err(io::ErrorKind::NotFound.into())
            }
            Err(error) => Err(error),
        }
    }

    fn address_message(&self, index: u32, address: Address) -> AddressMessage {
        let add = self.handle.address().add(index, address.local, address.prefix_len);
        let mut request = add;
        let message = request.message_mut();
        // A peer takes the place of the network's address (`rtnetlink(7)`: `IFA_ADDRESS`).
        if let Some(peer) = address.peer {
            message.attributes.retain(|attribute| {
                !matches!(attribute, AddressAttribute::Address(_) | AddressAttribute::Broadcast(_))
            });
            message.attributes.push(AddressAttribute::Address(peer));
        }
        if address.local.is_ipv6() {
            // Nobody else can have it: what machines may claim is guarded. So it is there at once.
            message.header.flags |= AddressHeaderFlags::Nodad;
        }
        message.clone()
    }

    fn ask<T>(&self, question: impl Future<Output = Result<T, Error>>) -> io::Result<T> {
        self.runtime
            .block_on(async { tokio::time::timeout(TIME_MAX, question).await })
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the kernel does not answer"))?
            .map_err(|error| match error {
                Error::NetlinkError(message) => message.to_io(),
                other => io::Error::other(other.to_string()),
            })
    }
}

fn name_of(message: &LinkMessage) -> String {
    let name = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    name.unwrap_or_default()
}

fn read_link(message: &LinkMessage, names: &HashMap<u32, String>) -> Found {
    let flags = message.header.flags;
    let is_loopback = flags.contains(LinkFlags::Loopback);
    let mut link = Found {
        index: message.header.index,
        name: name_of(message),
        kind: if is_loopback { Kind::Loopback } else { Kind::Other },
        mac: None,
        mtu: 0,
        bridge: None,
        label: None,
        is_up: flags.contains(LinkFlags::Up),
        addresses: Vec::new(),
        received_bytes: 0,
        sent_bytes: 0,
        received_packets: 0,
        sent_packets: 0,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Address(bytes) => {
                link.mac = bytes.as_slice().try_into().ok().map(MacAddress::from_bytes);
            }
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Controller(index) => link.bridge = names.get(index).cloned(),
            LinkAttribute::IfAlias(label) => link.label = Some(label.clone()),
            LinkAttribute::Stats64(stats) => {
                (link.received_bytes, link.sent_bytes) = (stats.rx_bytes, stats.tx_bytes);
                (link.received_packets, link.sent_packets) = (stats.rx_packets, stats.tx_packets);
            }
            LinkAttribute::LinkInfo(infos) => {
                let kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(InfoKind::Bridge) => Some(Kind::Bridge),
                    LinkInfo::Kind(InfoKind::Veth) => Some(Kind::Pair),
                    LinkInfo::Kind(InfoKind::Tun) => Some(Kind::Tap),
                    _ => None,
                });
                link.kind = kind.unwrap_or(link.kind);
            }
            _ => {}
        }
    }
    link
}

/// An address of a message. IPv6 has no `IFA_LOCAL` unless there is a peer.
fn read_address(message: &AddressMessage) -> Option<Address> {
    let find = |is: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(is);
    let local = find(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let far = find(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    let local = local.or(far)?;
    let peer = far.filter(|far| *far != local);
    Some(Address { local, prefix_len: message.header.prefix_len, peer })
}
