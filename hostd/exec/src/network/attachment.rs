//! A machine's place in a network: its interfaces, and all that it must be told about them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use hostd_grid::address::Cidr;
use hostd_grid::derived::MacAddress;

/// Bytes of a packet on the private interface.
pub const PRIVATE_MTU: u16 = 1500;
/// Bytes of a packet on the mycelium interface: what every mycelium node takes.
pub const MYCELIUM_MTU: u16 = 1400;

/// Who resolves names for machines.
pub const NAME_SERVERS: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8)),
    IpAddr::V4(Ipv4Addr::new(1, 1, 1, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0x4860, 0x4860, 0, 0, 0, 0, 0x8888)),
];

/// A machine's place in a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// The namespace that the taps are in, by its file: the VMM runs there, and so does whatever serves
    /// the machine's console.
    pub namespace: PathBuf,
    /// The machine's interfaces in the order of its network cards: the private one, then mycelium's.
    pub interfaces: Vec<Interface>,
    /// Who resolves names.
    pub name_servers: Vec<IpAddr>,
    /// The network's own mycelium address, which the console's address is made of. The console listens
    /// at this address, on the port that follows from the private one. The machines of the network reach
    /// it, and so does, over mycelium, whoever has a ticket.
    pub console_address: Ipv6Addr,
}

/// One interface of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// The tap's name, in the network's namespace. It takes one queue or several.
    pub tap: String,
    /// The MAC inside the machine. No other passes.
    pub mac: MacAddress,
    /// The address inside the machine. No other passes.
    pub address: Cidr,
    /// The default way for the address's family; none on an interface that is not the default way.
    pub gateway: Option<IpAddr>,
    /// Other ways.
    pub routes: Vec<Route>,
    /// Largest packet.
    pub mtu: u16,
}

/// A way to a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The network.
    pub to: Cidr,
    /// The next hop.
    pub via: IpAddr,
}

impl Attachment {
    /// The private address, if the machine has one.
    pub fn private_address(&self) -> Option<Ipv4Addr> {
        self.interfaces.iter().find_map(|interface| match interface.address.address() {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        })
    }

    /// The mycelium address, if the machine has one.
    pub fn mycelium_address(&self) -> Option<Ipv6Addr> {
        self.interfaces.iter().find_map(|interface| match interface.address.address() {
            IpAddr::V6(address) => Some(address),
            IpAddr::V4(_) => None,
        })
    }
}
