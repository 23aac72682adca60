//! Which subnets a network may have, which addresses machines may have in it, and who has them.
//!
//! The kernel of the node never sees a user's subnet: it exists in the network's namespace alone, and
//! leaves it behind one address of the node's. So two users may well have the same. What a subnet must
//! not do is hide the way out, or be something that is no unicast address at all.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hostd_grid::address::Cidr;
use hostd_grid::derived::WorkloadId;
use hostd_grid::derived::network::machine_address;
use hostd_grid::{ContractId, Name, TwinId};

use super::NetworkError;

/// The largest subnet: bits of its prefix.
pub const PREFIX_LEN_MIN: u8 = 8;
/// The smallest: room for the node and one machine.
pub const PREFIX_LEN_MAX: u8 = 30;

/// Where networks have their addresses of the node: `100.127.0.0/16`.
pub(super) const LEASES: (Ipv4Addr, u8) = (Ipv4Addr::new(100, 127, 0, 0), 16);

/// Ranges that a subnet must not touch.
const SPECIAL: [(Ipv4Addr, u8); 5] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    LEASES,
    (Ipv4Addr::new(224, 0, 0, 0), 3),
];

/// A subnet that cannot be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubnetError {
    /// There is none.
    #[error("network has no subnet")]
    Missing,
    /// IPv6.
    #[error("subnet {0}: private networks are IPv4")]
    NotIpv4(Cidr),
    /// Too large or too small.
    #[error("subnet {0}: its prefix must have {PREFIX_LEN_MIN} to {PREFIX_LEN_MAX} bits")]
    PrefixLen(Cidr),
    /// It touches a range that means something else.
    #[error("subnet {subnet}: it overlaps {range}, which is no private network's")]
    Special {
        /// The subnet.
        subnet: Cidr,
        /// The range.
        range: String,
    },
}

/// A subnet that was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Subnet {
    first: Ipv4Addr,
    prefix_len: u8,
}

impl Subnet {
    /// Checks a subnet.
    pub(super) fn check(subnet: Option<Cidr>) -> Result<Self, SubnetError> {
        let subnet = subnet.ok_or(SubnetError::Missing)?;
        let IpAddr::V4(first) = subnet.network() else { return Err(SubnetError::NotIpv4(subnet)) };
        let prefix_len = subnet.prefix_len();
        if !(PREFIX_LEN_MIN..=PREFIX_LEN_MAX).contains(&prefix_len) {
            return Err(SubnetError::PrefixLen(subnet));
        }
        let this = Self { first, prefix_len };
        match SPECIAL.iter().find(|(first, len)| this.overlaps(*first, *len)) {
            Some((first, len)) => {
                Err(SubnetError::Special { subnet, range: format!("{first}/{len}") })
            }
            None => Ok(this),
        }
    }

    fn overlaps(self, first: Ipv4Addr, prefix_len: u8) -> bool {
        let shift = u32::from(32 - self.prefix_len.min(prefix_len));
        self.first.to_bits() >> shift == first.to_bits() >> shift
    }

    /// As it is written.
    pub(super) fn cidr(self) -> Cidr {
        Cidr::new(self.first.into(), self.prefix_len)
            .unwrap_or_else(|| unreachable!("the prefix was checked"))
    }

    /// Bits of the prefix.
    pub(super) fn prefix_len(self) -> u8 {
        self.prefix_len
    }

    fn last(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.first.to_bits() | u32::MAX >> self.prefix_len)
    }

    /// The node's address: the one that ends with 1, or the first if none does.
    pub(super) fn gateway(self) -> Ipv4Addr {
        let [a, b, c, _] = self.first.octets();
        let one = Ipv4Addr::new(a, b, c, 1);
        if one >= self.first { one } else { Ipv4Addr::from_bits(self.first.to_bits() | 1) }
    }

    /// Checks that a machine may have this address.
    pub(super) fn machine(self, address: Ipv4Addr) -> Result<Ipv4Addr, NetworkError> {
        let address = machine_address(address.into(), &self.cidr())?;
        if [self.first, self.last(), self.gateway()].contains(&address) {
            return Err(NetworkError::Reserved(address));
        }
        Ok(address)
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cidr().fmt(f)
    }
}

/// Who has an address: what is written at a tap, so that the machine itself remembers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) machine: WorkloadId,
    pub(super) tap: String,
    pub(super) address: IpAddr,
}

impl Member {
    /// What its tap is labelled with. An id has at most 70 characters, so it fits a label's 255.
    pub(super) fn label(&self) -> String {
        format!("{LABEL} {} {}", self.machine, self.address)
    }

    /// Reads a tap's label; none if it is none of ours, or does not fit the tap.
    pub(super) fn read(tap: &str, label: &str) -> Option<Self> {
        let (machine, address) = label.strip_prefix(LABEL)?.strip_prefix(' ')?.split_once(' ')?;
        let mut parts = machine.splitn(3, '-');
        let twin_id = TwinId(parts.next()?.parse().ok()?);
        let contract_id = ContractId(parts.next()?.parse().ok()?);
        let name = Name::new(parts.next()?);
        name.check().ok()?;
        let address: IpAddr = address.parse().ok()?;
        let fits = match address {
            IpAddr::V4(_) => tap.starts_with("b-"),
            IpAddr::V6(_) => tap.starts_with("m-"),
        };
        let machine = WorkloadId { twin_id, contract_id, name };
        fits.then(|| Self { machine, tap: tap.to_owned(), address })
    }
}

/// The first word of a label, with its version.
const LABEL: &str = "zos1";

/// Chooses an address of the node for a network: the same again if it is free, so that nothing changes
/// when a node starts anew; else the next that is.
pub(super) fn lease(network: &str, is_taken: impl Fn(Ipv4Addr) -> bool) -> Option<Ipv4Addr> {
    // FNV-1a, folded: any spread will do.
    let hash = network
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let start = (hash ^ hash >> 16) & 0xffff;
    (0..=0xffff)
        .map(|step| Ipv4Addr::from_bits(LEASES.0.to_bits() | ((start + step) & 0xffff)))
        // 100.127.0.* is the node's own, and the last is a broadcast to some.
        .filter(|address| address.octets()[2] != 0 && address.octets()[3] != 0xff)
        .find(|address| !is_taken(*address))
}

/// The address that a mycelium node's machines see it at, for packets that never leave their bridge.
pub(super) const LINK_LOCAL_GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(subnet: &str) -> Result<Subnet, String> {
        Subnet::check(Some(Cidr::parse(subnet).unwrap())).map_err(|error| error.to_string())
    }

    #[test]
    fn a_subnet_is_an_ordinary_one() {
        assert_eq!(check("10.20.2.9/24").unwrap().to_string(), "10.20.2.0/24");
        assert_eq!(Subnet::check(None), Err(SubnetError::Missing));
        for (bad, why) in [
            ("fd00::/64", "are IPv4"),
            ("10.0.0.0/7", "8 to 30 bits"),
            ("10.0.0.0/31", "8 to 30 bits"),
            ("0.0.0.0/0", "8 to 30 bits"),
            ("127.0.0.0/24", "overlaps 127.0.0.0/8"),
            ("100.0.0.0/8", "overlaps 100.127.0.0/16"),
            ("100.127.9.0/24", "overlaps 100.127.0.0/16"),
            ("169.254.169.0/24", "overlaps 169.254.0.0/16"),
            ("255.255.255.0/24", "overlaps 224.0.0.0/3"),
            ("224.0.0.0/24", "overlaps 224.0.0.0/3"),
        ] {
            let error = check(bad).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn the_node_has_the_address_that_ends_with_one() {
        for (subnet, expected) in [
            ("10.20.2.0/24", "10.20.2.1"),
            ("10.20.0.0/16", "10.20.0.1"),
            ("10.20.2.128/25", "10.20.2.129"),
            ("10.20.2.4/30", "10.20.2.5"),
        ] {
            assert_eq!(check(subnet).unwrap().gateway().to_string(), expected);
        }
    }

    #[test]
    fn a_machine_has_none_that_means_something_else() {
        let small = check("10.20.2.128/25").unwrap();
        for reserved in ["10.20.2.128", "10.20.2.129", "10.20.2.255"] {
            let error = small.machine(reserved.parse().unwrap()).unwrap_err();
            assert_eq!(error.to_string(), format!("ip {reserved} is reserved"));
        }
        assert!(small.machine("10.20.2.5".parse().unwrap()).is_err());
        assert!(small.machine("10.20.2.130".parse().unwrap()).is_ok());
        assert!(check("10.20.0.0/16").unwrap().machine("10.20.7.1".parse().unwrap()).is_err());
    }

    #[test]
    fn leases_are_stable_and_distinct() {
        let mut taken = Vec::new();
        for at in 0..300 {
            let network = format!("net{at}");
            let first = lease(&network, |_| false).unwrap();
            assert_eq!(lease(&network, |_| false), Some(first));
            let next = lease(&network, |address| taken.contains(&address)).unwrap();
            assert!(!taken.contains(&next) && next.octets()[..2] == [100, 127]);
            assert_ne!(next, super::super::config::NODE_ADDRESS);
            taken.push(next);
        }
        assert_eq!(lease("full", |_| true), None);
    }

    #[test]
    fn labels_of_others_are_not_believed() {
        let machine = WorkloadId {
            twin_id: TwinId(u32::MAX),
            contract_id: ContractId(u64::MAX),
            name: Name::new("m".repeat(36)),
        };
        let address = "5ff:ffff:ffff:ffff:ff0f:ffff:ffff:fffe".parse().unwrap();
        let member = Member { machine, tap: "m-1".to_owned(), address };
        let label = member.label();
        assert!(label.len() <= 128, "{label}");
        assert_eq!(Member::read("m-1", &label), Some(member));
        for (tap, label) in [
            ("b-1", label.as_str()),
            ("m-1", ""),
            ("m-1", "zos1 1-2-x"),
            ("m-1", "zos1 1-2 5ff::1"),
            ("m-1", "zos1 1-2-a/b 5ff::1"),
            ("b-1", "zos1 1-2-x 10.0.0.256"),
            ("b-1", "zos2 1-2-x 10.0.0.2"),
        ] {
            assert_eq!(Member::read(tap, label), None, "{tap} {label}");
        }
    }

    proptest! {
        #[test]
        fn what_is_accepted_has_room_and_overlaps_nothing(bits: u32, len in 0u8..=32) {
            let cidr = Cidr::new(Ipv4Addr::from_bits(bits).into(), len).unwrap();
            if let Ok(subnet) = Subnet::check(Some(cidr)) {
                prop_assert!(subnet.cidr().contains(subnet.gateway().into()));
                prop_assert!(subnet.first < subnet.gateway() && subnet.gateway() < subnet.last());
                prop_assert!(!subnet.cidr().contains(super::super::config::NODE_ADDRESS.into()));
            }
        }

        #[test]
        fn any_label_is_read_without_a_panic(tap in ".{0,16}", label in ".{0,64}") {
            let _ = Member::read(&tap, &label);
        }
    }
}
