//! What a light network consists of, all of it derived from its id, its subnet and its keys.
//!
//! ```text
//!   the uplink's namespace                  namespace nN
//!
//!    100.127.0.1 ── u-N ═════════════ public  100.127.a.b, default route
//!                                       │
//!                                       ├── rN  <subnet>.1     bridge, IPv4 alone
//!                                       │    └ b-<id>  taps of machines
//!                                       ├── mN  <prefix>::1, fe80::1   bridge, IPv6 alone
//!                                       │    └ m-<id>  taps of machines
//!                                       └── my0  TUN of this network's mycelium
//! ```
//!
//! Bridges and taps are inside the namespace: a VMM that runs there sees one user's network, whatever a
//! guest makes of it. Each network has a line of its own to the node instead of a port of a common
//! bridge, so no two networks ever share a wire; the addresses of those lines are how the node knows
//! which are taken.

use std::net::{Ipv4Addr, Ipv6Addr};

use hostd_grid::address::Cidr;
use hostd_grid::derived::network::mycelium_gateway;
use hostd_grid::derived::{MacAddress, NetworkId};

use super::address::{LINK_LOCAL_GATEWAY, Member, Subnet};
use super::config::NODE_ADDRESS;
use super::plan::{Address, Kind, Link};

/// The end of the way out that is in the namespace.
pub(super) const PUBLIC: &str = "public";
/// The device of the network's mycelium.
pub(super) const MYCELIUM_DEVICE: &str = "my0";
/// Bytes of a frame's contents on all of it.
const MTU: u32 = 1500;

/// A network, as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) id: NetworkId,
    pub(super) subnet: Subnet,
    /// The address of the network's mycelium node.
    pub(super) mycelium: Ipv6Addr,
    pub(super) members: Vec<Member>,
}

/// The end of the way out that is the node's.
pub(super) fn uplink_name(id: &NetworkId) -> String {
    format!("{UPLINK_PREFIX}{id}")
}

/// What the names of all ways out begin with, on the node.
pub(super) const UPLINK_PREFIX: &str = "u-";

impl Layout {
    /// The bridge of private interfaces.
    pub(super) fn bridge(&self) -> String {
        self.id.light_bridge()
    }

    /// The bridge of mycelium interfaces.
    pub(super) fn mycelium_bridge(&self) -> String {
        self.id.light_mycelium_bridge()
    }

    /// The node's address in the mycelium subnet.
    pub(super) fn mycelium_gateway(&self) -> Cidr {
        mycelium_gateway(self.mycelium)
    }

    /// The links in the namespace, for a network that has this address of the node.
    pub(super) fn links(&self, lease: Ipv4Addr) -> Vec<Link> {
        let gateway = self.mycelium_gateway();
        let private = Address {
            local: self.subnet.gateway().into(),
            prefix_len: self.subnet.prefix_len(),
            peer: None,
        };
        let mycelium =
            Address { local: gateway.address(), prefix_len: gateway.prefix_len(), peer: None };
        let link_local = Address { local: LINK_LOCAL_GATEWAY.into(), prefix_len: 64, peer: None };
        let line = Address { local: lease.into(), prefix_len: 32, peer: Some(NODE_ADDRESS.into()) };
        let mut links = vec![
            Link { mtu: 0, ..link("lo".to_owned(), Kind::Loopback) },
            bridge(self.bridge(), vec![private]),
            bridge(self.mycelium_bridge(), vec![mycelium, link_local]),
            Link {
                addresses: vec![line],
                default_via: Some(NODE_ADDRESS),
                ..link(PUBLIC.to_owned(), Kind::Pair)
            },
        ];
        links.extend(self.members.iter().map(|member| Link {
            bridge: Some(if member.address.is_ipv4() {
                self.bridge()
            } else {
                self.mycelium_bridge()
            }),
            label: Some(member.label()),
            ..link(member.tap.clone(), Kind::Tap)
        }));
        links
    }

    /// The node's end of the way out.
    pub(super) fn uplink(&self, lease: Ipv4Addr) -> Link {
        let line = Address { local: NODE_ADDRESS.into(), prefix_len: 32, peer: Some(lease.into()) };
        Link { addresses: vec![line], ..link(uplink_name(&self.id), Kind::OtherEnd) }
    }

    /// Settings of the kernel in the namespace, by their paths below `/proc/sys/net`, once the links are
    /// there. Without IPv6 in the kernel there is no mycelium, and setting them says so; those that
    /// only a module brings are marked.
    pub(super) fn settings(&self) -> Vec<Setting> {
        let off = |name: &str| Setting::of(format!("ipv6/conf/{name}/disable_ipv6"), "1");
        let mycelium = self.mycelium_bridge();
        let mut settings = vec![
            Setting::of("ipv4/ip_forward", "1"),
            Setting::of("ipv6/conf/all/forwarding", "1"),
            // What a machine is told about other ways may be a lie of another machine.
            Setting::of("ipv4/conf/all/accept_redirects", "0"),
            Setting::of("ipv4/conf/all/send_redirects", "0"),
            Setting::of("ipv6/conf/all/accept_redirects", "0"),
            Setting::of("ipv4/conf/all/rp_filter", "1"),
            off(&self.bridge()),
            off(PUBLIC),
            Setting::of(format!("ipv6/conf/{mycelium}/accept_ra"), "0"),
            Setting::of(format!("ipv6/conf/{mycelium}/addr_gen_mode"), "1"),
        ];
        // Ports of bridges are no interfaces of the node's own.
        settings.extend(self.members.iter().map(|member| off(&member.tap)));
        // Frames inside a bridge are the guard's matter, not that of rules for routed packets.
        settings.extend(["iptables", "ip6tables", "arptables"].map(|what| Setting {
            is_optional: true,
            ..Setting::of(format!("bridge/bridge-nf-call-{what}"), "0")
        }));
        settings
    }

    /// Settings in the uplink's namespace.
    pub(super) fn uplink_settings(&self) -> Vec<Setting> {
        let name = uplink_name(&self.id);
        vec![
            Setting::of("ipv4/ip_forward", "1"),
            Setting {
                is_optional: true,
                ..Setting::of(format!("ipv6/conf/{name}/disable_ipv6"), "1")
            },
            Setting::of(format!("ipv4/conf/{name}/rp_filter"), "1"),
            Setting::of(format!("ipv4/conf/{name}/accept_redirects"), "0"),
        ]
    }
}

/// A setting of the kernel's network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) path: String,
    pub(super) value: &'static str,
    /// Whether it may be missing.
    pub(super) is_optional: bool,
}

impl Setting {
    fn of(path: impl Into<String>, value: &'static str) -> Self {
        Self { path: path.into(), value, is_optional: false }
    }
}

fn link(name: String, kind: Kind) -> Link {
    Link {
        name,
        kind,
        mac: None,
        mtu: MTU,
        bridge: None,
        label: None,
        addresses: Vec::new(),
        default_via: None,
    }
}

/// A bridge with a MAC that follows from its name: it stays when ports come and go, and machines keep
/// what they know.
fn bridge(name: String, addresses: Vec<Address>) -> Link {
    let mac = Some(MacAddress::of(&name));
    Link { mac, addresses, ..link(name, Kind::Bridge) }
}

#[cfg(test)]
pub(super) mod tests {
    use hostd_grid::derived::WorkloadId;
    use hostd_grid::{ContractId, Name, TwinId};

    use super::*;

    /// A network with one machine that has both addresses.
    pub(in super::super) fn example() -> Layout {
        let machine = WorkloadId {
            twin_id: TwinId(11),
            contract_id: ContractId(4242),
            name: Name::new("vm1"),
        };
        let network = Name::new("net1");
        let mycelium = "4a5:1b2c:3d4e:5f60:7182:93a4:b5c6:d7e8".parse().unwrap();
        let members = vec![
            Member {
                machine: machine.clone(),
                tap: machine.light_private_tap(&network).name,
                address: "10.20.2.5".parse().unwrap(),
            },
            Member {
                machine: machine.clone(),
                tap: machine.light_mycelium_tap(&network).name,
                address: "4a5:1b2c:3d4e:5f60:ff0f:102:304:506".parse().unwrap(),
            },
        ];
        let subnet = Subnet::check(Some(Cidr::parse("10.20.2.0/24").unwrap())).unwrap();
        Layout { id: NetworkId::of(TwinId(11), &network), subnet, mycelium, members }
    }

    #[test]
    fn names_are_those_that_existing_nodes_use() {
        let layout = example();
        let id = layout.id.to_string();
        let lease = Ipv4Addr::new(100, 127, 3, 4);
        let links = layout.links(lease);
        let names: Vec<_> = links.iter().map(|link| link.name.clone()).collect();
        assert_eq!(names[..4], ["lo", &format!("r{id}"), &format!("m{id}"), "public"]);
        assert!(names[4].starts_with("b-") && names[5].starts_with("m-"));
        assert_eq!(links[4].bridge, Some(format!("r{id}")));
        assert_eq!(links[5].bridge, Some(format!("m{id}")));
        assert!(names.iter().all(|name| name.len() <= 15));
        let shown = |link: &Link| link.addresses.iter().map(|a| a.local.to_string()).collect();
        let addresses: Vec<Vec<String>> = links.iter().map(shown).collect();
        assert_eq!(addresses[1], ["10.20.2.1"]);
        assert_eq!(addresses[2], ["4a5:1b2c:3d4e:5f60::1", "fe80::1"]);
        assert_eq!(addresses[3], ["100.127.3.4"]);
        let uplink = layout.uplink(lease);
        assert_eq!(uplink.name, format!("u-{id}"));
        assert_eq!(uplink.addresses[0].peer, Some(lease.into()));
    }
}
