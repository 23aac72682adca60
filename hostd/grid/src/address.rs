//! Addresses and networks as deployments write them.
//!
//! They enter the hash in one canonical form, whatever form was sent: IPv4 inside IPv6
//! (`::ffff:10.1.2.3`) as plain IPv4, IPv6 by RFC 5952, host bits of a network kept, and what is absent
//! as `<nil>`. Parsing is as strict as Go's `net`: no leading zeros in IPv4, no zones.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use serde::{Serialize, Serializer};

use crate::excerpt::excerpt;

/// What JSON may leave out, or give as `null` or `""`: an address or a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Maybe<T>(pub Option<T>);

impl<T> Default for Maybe<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> From<T> for Maybe<T> {
    fn from(value: T) -> Self {
        Self(Some(value))
    }
}

impl<T: fmt::Display> fmt::Display for Maybe<T> {
    /// The canonical form, `<nil>` for nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(value) => value.fmt(f),
            None => f.write_str("<nil>"),
        }
    }
}

impl<T: fmt::Display> Serialize for Maybe<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Some(value) => serializer.collect_str(value),
            None => serializer.serialize_str(""),
        }
    }
}

impl Maybe<IpAddr> {
    /// Reads an address; an empty text is none.
    ///
    /// # Errors
    ///
    /// The text, when it is no address.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        if text.is_empty() {
            return Ok(Self(None));
        }
        let address: IpAddr =
            text.parse().map_err(|_| AddressError { what: "IP address", text: excerpt(text) })?;
        Ok(Self(Some(address.to_canonical())))
    }
}

impl Maybe<Cidr> {
    /// Reads a network; an empty text is none.
    ///
    /// # Errors
    ///
    /// The text, when it is no network.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        if text.is_empty() { Ok(Self(None)) } else { Cidr::parse(text).map(Self::from) }
    }
}

/// A text that is no address, or no network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid {what}: {text}")]
pub struct AddressError {
    what: &'static str,
    text: String,
}

/// An address and the length of its network's prefix: `10.1.2.3/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cidr {
    address: IpAddr,
    prefix_len: u8,
}

impl Cidr {
    /// An address in a network with a prefix of `prefix_len` bits; none if it can't have so many.
    pub fn new(address: IpAddr, prefix_len: u8) -> Option<Self> {
        (prefix_len <= bits_of(address)).then(|| Self::canonical(address, prefix_len))
    }

    /// Reads `address/length`.
    ///
    /// # Errors
    ///
    /// The text, when it is none.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let read = || {
            let (address, len) = text.split_once('/')?;
            let address: IpAddr = address.parse().ok()?;
            let digits = !len.is_empty() && len.bytes().all(|digit| digit.is_ascii_digit());
            // `u128` is wide enough for any number of leading zeros that anybody writes.
            let len: u128 = digits.then(|| len.parse().ok()).flatten()?;
            Self::new(address, u8::try_from(len).ok()?)
        };
        read().ok_or_else(|| AddressError { what: "CIDR address", text: excerpt(text) })
    }

    /// IPv4 inside IPv6 becomes IPv4; what its prefix says of the outer part is lost.
    fn canonical(address: IpAddr, prefix_len: u8) -> Self {
        let inner = address.to_canonical();
        let outer_bits = bits_of(address) - bits_of(inner);
        Self { address: inner, prefix_len: prefix_len.saturating_sub(outer_bits) }
    }

    /// The address, host bits and all.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Bits of the network's prefix.
    pub fn prefix_len(&self) -> u8 {
        self.prefix_len
    }

    /// Whether `address` is in this network. IPv4 and IPv6 have nothing in common.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4()
            && self.network_bits(address) == self.network_bits(self.address)
    }

    /// The first address of the network.
    pub fn network(&self) -> IpAddr {
        let host_bits = u32::from(bits_of(self.address) - self.prefix_len);
        let bits = self.network_bits(self.address).checked_shl(host_bits).unwrap_or(0);
        match self.address {
            // Shifted right and left again, it has the bits of an IPv4 address.
            IpAddr::V4(_) => IpAddr::V4(u32::try_from(bits).unwrap_or(0).into()),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(bits)),
        }
    }

    fn network_bits(&self, address: IpAddr) -> u128 {
        let bits = match address {
            IpAddr::V4(address) => u128::from(address.to_bits()),
            IpAddr::V6(address) => address.to_bits(),
        };
        let host_bits = u32::from(bits_of(self.address) - self.prefix_len);
        bits.checked_shr(host_bits).unwrap_or(0)
    }
}

fn bits_of(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str) -> Result<String, String> {
        Cidr::parse(text).map(|cidr| cidr.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn networks_keep_their_host_bits() {
        for (text, expected) in [
            ("10.1.2.3/24", "10.1.2.3/24"),
            ("10.1.2.3/024", "10.1.2.3/24"),
            ("::FFFF:10.1.2.3/120", "10.1.2.3/24"),
            ("::ffff:10.1.2.3/64", "10.1.2.3/0"),
            ("2A02:0:0::1/0", "2a02::1/0"),
            ("::1.2.3.4/128", "::102:304/128"),
            ("2a02:0:0:1:0:0:0:1/64", "2a02:0:0:1::1/64"),
            ("1:0:2:3:4:5:6:7/64", "1:0:2:3:4:5:6:7/64"),
        ] {
            assert_eq!(canonical(text), Ok(expected.to_owned()));
        }
    }

    #[test]
    fn what_is_no_network_is_named() {
        for text in [
            "10.1.2.3",
            "10.1.2.3/33",
            "10.1.2.3/",
            "10.1.2.3/+8",
            "10.1.2/8",
            "010.1.2.3/8",
            "fe80::1%eth0/64",
            "::/129",
            "10.0.0.0/8/8",
            "10.0.0.0/340282366920938463463374607431768211456",
        ] {
            assert_eq!(canonical(text), Err(format!("invalid CIDR address: {text}")));
        }
    }

    #[test]
    fn containment_and_network() {
        let subnet = Cidr::parse("10.20.2.7/24").unwrap();
        assert_eq!(subnet.network().to_string(), "10.20.2.0");
        for (address, inside) in [
            ("10.20.2.255", true),
            ("::ffff:10.20.2.9", true),
            ("10.20.3.1", false),
            ("2a02::1", false),
        ] {
            assert_eq!(subnet.contains(address.parse().unwrap()), inside, "{address}");
        }
        let all = Cidr::parse("::1/0").unwrap();
        assert_eq!(all.network().to_string(), "::");
        assert!(all.contains("ff::".parse().unwrap()));
        assert!(!all.contains("1.2.3.4".parse().unwrap()));
    }
}
