//! `network`: a node's part of a private network that spans nodes by WireGuard.
//!
//! The user chose all keys, ports and subnets, since every node must know the others'. Nothing here says
//! that the range is a /16, the subnet a /24 inside it, or that peers don't overlap: clients do that.
//!
//! Challenge: `ip_range subnet wireguard_private_key wireguard_listen_port peer* [mycelium]`.

use serde::Serialize;

use super::{Mycelium, Peer, RuleError, Siblings};
use crate::address::{Cidr, Maybe};
use crate::capacity::Capacity;
use crate::challenge::Challenge;
use crate::json;
use crate::secret::SecretText;

/// A node's part of a private network.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Network {
    /// The whole network. Valid ones have it.
    pub ip_range: Maybe<Cidr>,
    /// This node's part. Valid ones have it.
    pub subnet: Maybe<Cidr>,
    /// This node's key, in base64.
    pub wireguard_private_key: SecretText,
    /// The UDP port where other nodes find this one.
    pub wireguard_listen_port: u16,
    /// Other nodes.
    pub peers: Vec<Peer>,
    /// A mycelium node for this network's machines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mycelium: Option<Mycelium>,
}
json::object!(Network as "zos.Network" {
    "ip_range" => ip_range,
    "subnet" => subnet,
    "wireguard_private_key" => wireguard_private_key,
    "wireguard_listen_port" => wireguard_listen_port,
    "peers" => peers,
    "mycelium" => mycelium,
});

impl Network {
    pub(super) fn validate(&self, _siblings: &Siblings<'_>) -> Result<(), RuleError> {
        if self.ip_range.0.is_none() {
            return Err(RuleError::NoIpRange);
        }
        if self.subnet.0.is_none() {
            return Err(RuleError::NoSubnet);
        }
        if self.wireguard_private_key.expose().is_empty() {
            return Err(RuleError::NoPrivateKey);
        }
        self.peers.iter().try_for_each(Peer::validate)?;
        self.mycelium.as_ref().map_or(Ok(()), Mycelium::validate)
    }

    pub(super) fn challenge(&self, out: &mut Challenge<'_>) {
        out.add(self.ip_range);
        out.add(self.subnet);
        out.add(self.wireguard_private_key.expose());
        out.add(self.wireguard_listen_port);
        self.peers.iter().for_each(|peer| peer.challenge(out));
        if let Some(mycelium) = &self.mycelium {
            mycelium.challenge(out);
        }
    }

    pub(super) fn capacity(&self) -> Capacity {
        Capacity::default()
    }
}
