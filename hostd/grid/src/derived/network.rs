//! Networks of a full node: names of what a private network consists of, and all addresses in it.
//!
//! ```text
//!  host                              namespace n-N
//!   b-N  private bridge ───────────── n-N   <subnet>.1, fd…::1, fe80::1
//!    └ t-<id> taps of machines         w-N  WireGuard, 100.64.a.b/16
//!   m-N  mycelium bridge ──────────── mycelium of this network, <prefix>::1
//!    └ t-<id> taps of machines
//!   br-pub ── p-<id> taps with public addresses, filtered by r-<id>
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{MacAddress, NetworkId, ShortId, WorkloadId};
use crate::address::Cidr;
use crate::id::Name;
use crate::workload::SEED_SIZE;

impl NetworkId {
    /// The network's namespace, and in it the interface to its private bridge.
    pub fn namespace(&self) -> String {
        format!("n-{self}")
    }

    /// The bridge of private interfaces.
    pub fn bridge(&self) -> String {
        format!("b-{self}")
    }

    /// The bridge of mycelium interfaces.
    pub fn mycelium_bridge(&self) -> String {
        format!("m-{self}")
    }

    /// The WireGuard interface, which light nodes call the same.
    pub fn wireguard(&self) -> String {
        format!("w-{self}")
    }

    /// The private IPv6 address that goes with a private IPv4 address. It is made of the *characters* of
    /// the network's id, where a hash of them was meant; it became the format.
    pub fn private_ipv6(&self, ipv4: Ipv4Addr) -> Ipv6Addr {
        let character =
            |at: usize| u16::from(self.as_str().as_bytes().get(at).copied().unwrap_or(0));
        let [_, _, subnet, host] = ipv4.octets();
        let pair = |at| character(at) << 8 | character(at + 1);
        Ipv6Addr::new(0xfd00 | character(0), pair(1), pair(3), subnet.into(), 0, 0, 0, host.into())
    }
}

/// A machine's interface on the host, and the MAC that it has inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tap {
    /// The tap's name.
    pub name: String,
    /// The MAC of the machine's end.
    pub mac: MacAddress,
}

impl Tap {
    fn of(prefix: &str, id: &ShortId, mac_prefix: &str) -> Self {
        let mac = MacAddress::of(&format!("{mac_prefix}{id}"));
        Self { name: format!("{prefix}{id}"), mac }
    }
}

impl WorkloadId {
    /// The interface of this machine in a private network.
    pub fn private_tap(&self, network: &Name) -> Tap {
        Tap::of("t-", &self.device(network.as_str()), "")
    }

    /// The interface of this machine in the planetary network.
    pub fn planetary_tap(&self) -> Tap {
        Tap::of("t-", &self.device("ygg"), "ygg:")
    }

    /// The interface of this machine in the mycelium subnet of its network.
    pub fn mycelium_tap(&self) -> Tap {
        Tap::of("t-", &self.device("mycelium"), "mycelium:")
    }

    /// The interface of the machine that has this public address, which is what traffic is counted by.
    pub fn public_tap(&self) -> Tap {
        Tap::of("p-", &self.device("pub"), "")
    }

    /// The name of the filter that keeps a machine from taking other public addresses than this.
    pub fn public_filter(&self) -> String {
        format!("r-{}", self.device("pub"))
    }
}

/// A node's address between nodes of a network, from its subnet: `10.3.1.0/24` is `100.64.3.1/16`. None
/// for IPv6, which private networks don't have.
pub fn wireguard_address(subnet: &Cidr) -> Option<Cidr> {
    let IpAddr::V4(address) = subnet.address() else { return None };
    let [_, a, b, _] = address.octets();
    Cidr::new(Ipv4Addr::new(100, 64, a, b).into(), 16)
}

/// Why an address can't be a machine's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts are the documentation")]
pub enum MachineAddressError {
    #[error("invalid IPv4 supplied to wg interface")]
    NotIpv4,
    #[error("IP {address} is not part of local nr subnet {subnet}")]
    Outside { address: Ipv4Addr, subnet: Cidr },
    #[error("ip {0} is reserved")]
    Reserved(Ipv4Addr),
}

/// Checks that a machine may have this address in the node's part of a network.
///
/// # Errors
///
/// It is no IPv4 address, is elsewhere, or ends with 1, which the node itself has.
pub fn machine_address(address: IpAddr, subnet: &Cidr) -> Result<Ipv4Addr, MachineAddressError> {
    let IpAddr::V4(ipv4) = address.to_canonical() else { return Err(MachineAddressError::NotIpv4) };
    if !subnet.contains(address) {
        return Err(MachineAddressError::Outside { address: ipv4, subnet: *subnet });
    }
    match ipv4.octets() {
        [.., 1] => Err(MachineAddressError::Reserved(ipv4)),
        _ => Ok(ipv4),
    }
}

/// The port of a machine's console, from its private address.
pub fn console_port(address: Ipv4Addr) -> u16 {
    let [.., last] = address.octets();
    20_000 + u16::from(last)
}

/// A seed that nobody may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid seed")]
pub struct SeedError;

/// Bits of a mycelium subnet's prefix.
const MYCELIUM_PREFIX_LEN: u8 = 64;

/// The address of a machine in the mycelium subnet of its network, whose node has the address `node`.
///
/// # Errors
///
/// The seed is all zeros or all ones.
pub fn mycelium_address(node: Ipv6Addr, seed: [u8; SEED_SIZE]) -> Result<Cidr, SeedError> {
    if seed == [0; SEED_SIZE] || seed == [0xff; SEED_SIZE] {
        return Err(SeedError);
    }
    let mut low = [0xff, 0x0f, 0, 0, 0, 0, 0, 0];
    low.iter_mut().skip(2).zip(seed).for_each(|(byte, seed)| *byte = seed);
    Ok(in_subnet_of(node, u64::from_be_bytes(low)))
}

/// The address of the node itself in the mycelium subnet of a network.
pub fn mycelium_gateway(node: Ipv6Addr) -> Cidr {
    in_subnet_of(node, 1)
}

/// The public IPv6 address that a machine with this MAC gives itself in a subnet (RFC 4291 appendix A).
pub fn slaac_address(subnet: Ipv6Addr, mac: MacAddress) -> Ipv6Addr {
    let [a, b, c, d, e, f] = *mac.as_bytes();
    let low = u64::from_be_bytes([a ^ 0x02, b, c, 0xff, 0xfe, d, e, f]);
    with_low_half(subnet, low)
}

fn in_subnet_of(address: Ipv6Addr, low: u64) -> Cidr {
    let address = with_low_half(address, low);
    // 64 bits fit an IPv6 address.
    Cidr::new(address.into(), MYCELIUM_PREFIX_LEN).unwrap_or_else(|| unreachable!("{address}"))
}

fn with_low_half(address: Ipv6Addr, low: u64) -> Ipv6Addr {
    Ipv6Addr::from_bits(address.to_bits() >> 64 << 64 | u128::from(low))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_have_addresses_of_their_subnet_but_the_first() {
        let subnet = Cidr::parse("10.20.2.0/24").unwrap();
        let check = |address: &str| {
            machine_address(address.parse().unwrap(), &subnet).map_err(|error| error.to_string())
        };
        assert_eq!(check("10.20.2.5"), Ok(Ipv4Addr::new(10, 20, 2, 5)));
        assert_eq!(check("10.20.2.1"), Err("ip 10.20.2.1 is reserved".to_owned()));
        let outside = "IP 10.20.3.5 is not part of local nr subnet 10.20.2.0/24";
        assert_eq!(check("10.20.3.5"), Err(outside.to_owned()));
        assert_eq!(check("fd00::2"), Err("invalid IPv4 supplied to wg interface".to_owned()));
        assert_eq!(console_port(Ipv4Addr::new(10, 20, 2, 5)), 20_005);
    }

    #[test]
    fn seeds_that_mean_nobody_are_refused() {
        let node = "4a5:1b2c::1".parse().unwrap();
        assert_eq!(mycelium_address(node, [0; 6]), Err(SeedError));
        assert_eq!(mycelium_address(node, [0xff; 6]), Err(SeedError));
    }

    #[test]
    fn names_fit_an_interface() {
        let id = WorkloadId {
            twin_id: crate::TwinId(u32::MAX),
            contract_id: crate::ContractId(u64::MAX),
            name: Name::new("z".repeat(36)),
        };
        let network = NetworkId::of(id.twin_id, &id.name);
        for name in [
            id.private_tap(&Name::new("net1")).name,
            id.public_tap().name,
            id.public_filter(),
            network.namespace(),
            network.bridge(),
            network.mycelium_bridge(),
            network.wireguard(),
        ] {
            assert_eq!(name.len(), 15, "{name}");
        }
    }
}
