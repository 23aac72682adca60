//! The network as a list of requests to the kernel: pure, from what the node asked for and what
//! links there are.
//!
//! Interfaces are found by hardware address. Addresses are static and routers are not asked
//! (`accept_ra` off), as the guest contract says (`reference/zero-os.md` 4.7): the grid knows every
//! address beforehand. Addresses come before routes on all interfaces, because a gateway must be
//! reachable when its route is added. [`crate::netlink`] puts the requests into bytes.

use std::fmt;
use std::net::IpAddr;

use crate::cidata::{Interface, Prefix, Route};

/// A network interface that the kernel has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Kernel name: `eth0`.
    pub name: String,
    /// Kernel index.
    pub index: u32,
    /// Hardware address.
    pub mac: [u8; 6],
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Write `value` to `/proc/sys/net/PATH`.
    Sysctl {
        /// Path below `/proc/sys/net`.
        path: String,
        /// The value.
        value: &'static str,
    },
    /// Switch the interface on, and set its MTU if given.
    Up {
        /// Kernel index.
        index: u32,
        /// Largest packet, in bytes.
        mtu: Option<u32>,
    },
    /// Switch the interface off.
    Down {
        /// Kernel index.
        index: u32,
    },
    /// Give the interface an address.
    Address {
        /// Kernel index.
        index: u32,
        /// Address and prefix length.
        prefix: Prefix,
    },
    /// Add a route.
    Route {
        /// Kernel index of the interface it leaves by.
        index: u32,
        /// The route.
        route: Route,
        /// The next hop is on the link though no address of the interface says so.
        onlink: bool,
    },
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sysctl { path, value } => write!(f, "setting {path} to {value}"),
            Self::Up { index, .. } => write!(f, "switching interface {index} on"),
            Self::Down { index } => write!(f, "switching interface {index} off"),
            Self::Address { index, prefix } => {
                write!(f, "adding address {prefix} to interface {index}")
            }
            Self::Route { index, route: Route { to, via: Some(via), .. }, .. } => {
                write!(f, "adding route {to} via {via} on interface {index}")
            }
            Self::Route { index, route, .. } => {
                write!(f, "adding route {} on interface {index}", route.to)
            }
        }
    }
}

/// The requests for `interfaces`, and those interfaces for which there is no link, by key.
#[must_use]
pub fn plan(interfaces: &[Interface], links: &[Link]) -> (Vec<Request>, Vec<String>) {
    let mut requests = Vec::new();
    let mut routes = Vec::new();
    let mut missing = Vec::new();
    for wanted in interfaces {
        let Some(link) = links.iter().find(|link| link.mac == wanted.mac) else {
            missing.push(wanted.key.clone());
            continue;
        };
        requests.extend(sysctls(&link.name));
        requests.push(Request::Up { index: link.index, mtu: wanted.mtu });
        let address = |prefix| Request::Address { index: link.index, prefix };
        requests.extend(wanted.addresses.iter().copied().map(address));
        routes.extend(wanted.routes.iter().map(|route| Request::Route {
            index: link.index,
            route: *route,
            onlink: route.via.is_some_and(|via| needs_onlink(via, &wanted.addresses)),
        }));
    }
    requests.append(&mut routes);
    (requests, missing)
}

/// Router advertisements are not for us; neighbours learn of us at once (the address may have
/// been another machine's a moment ago).
fn sysctls(name: &str) -> [Request; 4] {
    let sysctl = |family: &str, key: &str, value| Request::Sysctl {
        path: format!("{family}/conf/{name}/{key}"),
        value,
    };
    [
        sysctl("ipv6", "accept_ra", "0"),
        sysctl("ipv6", "autoconf", "0"),
        sysctl("ipv6", "ndisc_notify", "1"),
        sysctl("ipv4", "arp_notify", "1"),
    ]
}

/// A gateway outside of all the interface's networks; link-local ones are always on the link.
fn needs_onlink(via: IpAddr, addresses: &[Prefix]) -> bool {
    let link_local = matches!(via, IpAddr::V6(via) if via.is_unicast_link_local());
    !link_local && !addresses.iter().any(|prefix| prefix.contains(via))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(address: &str, length: u8) -> Prefix {
        Prefix { address: address.parse().unwrap(), length }
    }

    fn interface(key: &str, mac: u8) -> Interface {
        Interface {
            key: key.into(),
            mac: [2, 0, 0, 0, 0, mac],
            addresses: vec![prefix("10.1.2.3", 24)],
            routes: vec![Route {
                to: prefix("0.0.0.0", 0),
                via: Some("10.1.2.1".parse().unwrap()),
                metric: 0,
            }],
            nameservers: Vec::new(),
            search: Vec::new(),
            mtu: Some(1400),
        }
    }

    fn link(index: u32, mac: u8) -> Link {
        Link { name: format!("eth{index}"), index, mac: [2, 0, 0, 0, 0, mac] }
    }

    #[test]
    fn interfaces_are_found_by_hardware_address() {
        let wanted = [interface("eth0", 9), interface("eth1", 8), interface("eth2", 7)];
        let (requests, missing) = plan(&wanted, &[link(2, 8), link(3, 9)]);
        assert_eq!(missing, ["eth2"]);
        let ups: Vec<u32> = requests
            .iter()
            .filter_map(|r| match r {
                Request::Up { index, mtu: Some(1400) } => Some(*index),
                _ => None,
            })
            .collect();
        assert_eq!(ups, [3, 2]);
    }

    #[test]
    fn routes_come_after_all_addresses() {
        let (requests, _) =
            plan(&[interface("a", 8), interface("b", 9)], &[link(2, 8), link(3, 9)]);
        let is_route = |r: &Request| matches!(r, Request::Route { .. });
        let first = requests.iter().position(is_route).unwrap();
        assert!(requests[first..].iter().all(is_route));
        assert_eq!(requests.len() - first, 2);
    }

    #[test]
    fn router_advertisements_are_off_before_the_link_is_up() {
        let (requests, _) = plan(&[interface("a", 8)], &[link(2, 8)]);
        let off = Request::Sysctl { path: "ipv6/conf/eth2/accept_ra".into(), value: "0" };
        let off = requests.iter().position(|r| *r == off).unwrap();
        let up = requests.iter().position(|r| matches!(r, Request::Up { .. })).unwrap();
        assert!(off < up);
    }

    #[test]
    fn requests_say_what_they_are() {
        let (requests, _) = plan(&[interface("a", 8)], &[link(2, 8)]);
        let said: Vec<String> = requests.iter().map(ToString::to_string).collect();
        assert_eq!(said[0], "setting ipv6/conf/eth2/accept_ra to 0");
        assert_eq!(
            said[4..],
            [
                "switching interface 2 on",
                "adding address 10.1.2.3/24 to interface 2",
                "adding route 0.0.0.0/0 via 10.1.2.1 on interface 2",
            ]
        );
    }

    #[test]
    fn only_gateways_outside_are_onlink() {
        let inside = [prefix("10.1.2.3", 24), prefix("fd00::3", 64)];
        for (via, want) in [
            ("10.1.2.1", false),
            ("10.1.3.1", true),
            ("fd00::1", false),
            ("fd01::1", true),
            ("fe80::1", false),
        ] {
            assert_eq!(needs_onlink(via.parse().unwrap(), &inside), want, "{via}");
        }
    }
}
