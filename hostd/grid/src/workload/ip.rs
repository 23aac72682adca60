//! `ip` and `ipv4`: public addresses for a machine.
//!
//! IPv4 comes from what the contract reserved, IPv6 from the node's public network. `ipv4` is the
//! older type, always IPv4, and still accepted.
//!
//! Challenge: `v4 v6` of `ip`, and nothing of `ipv4`.

use std::net::IpAddr;

use serde::Serialize;

use super::{RuleError, Siblings};
use crate::address::{Cidr, Maybe};
use crate::capacity::Capacity;
use crate::challenge::Challenge;
use crate::json;

/// Public addresses.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct PublicIp {
    /// Whether one of the contract's IPv4 addresses is wanted.
    pub v4: bool,
    /// Whether an IPv6 address is wanted.
    pub v6: bool,
}
json::object!(PublicIp as "zos.PublicIP" { "v4" => v4, "v6" => v6 });

impl PublicIp {
    pub(super) fn validate(&self, _siblings: &Siblings<'_>) -> Result<(), RuleError> {
        if self.v4 || self.v6 { Ok(()) } else { Err(RuleError::NoSelection) }
    }

    pub(super) fn challenge(&self, out: &mut Challenge<'_>) {
        out.add(self.v4);
        out.add(self.v6);
    }

    pub(super) fn capacity(&self) -> Capacity {
        Capacity { ipv4u: self.v4.into(), ..Capacity::default() }
    }
}

/// A public IPv4 address, the older way.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct PublicIpv4 {}
json::object!(PublicIpv4 as "zos.PublicIP4" {});

impl PublicIpv4 {
    pub(super) fn validate(&self, _siblings: &Siblings<'_>) -> Result<(), RuleError> {
        Ok(())
    }

    pub(super) fn challenge(&self, _out: &mut Challenge<'_>) {}

    pub(super) fn capacity(&self) -> Capacity {
        Capacity { ipv4u: 1, ..Capacity::default() }
    }
}

/// What the node answers, for either type.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct PublicIpResult {
    /// The IPv4 address and its network.
    pub ip: Maybe<Cidr>,
    /// The IPv6 address and its network.
    pub ip6: Maybe<Cidr>,
    /// The way out for IPv4.
    pub gateway: Maybe<IpAddr>,
}
json::object!(PublicIpResult as "zos.PublicIPResult" {
    "ip" => ip,
    "ip6" => ip6,
    "gateway" => gateway,
});
super::result!(PublicIpResult);
