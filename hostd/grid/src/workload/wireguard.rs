//! What both types of networks have: WireGuard peers, and a mycelium node of their own.

use serde::Serialize;

use super::RuleError;
use crate::address::{Cidr, Maybe};
use crate::challenge::Challenge;
use crate::json;
use crate::secret::SecretBytes;

/// Another node of the network, or a user's own machine.
///
/// Challenge: `wireguard_public_key endpoint subnet allowed_ips*`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Peer {
    /// Its part of the network.
    pub subnet: Maybe<Cidr>,
    /// Its key, in base64.
    pub wireguard_public_key: String,
    /// What is sent to it and accepted from it.
    pub allowed_ips: Vec<Maybe<Cidr>>,
    /// `address:port`, or empty if it can't be reached from outside.
    pub endpoint: String,
}
json::object!(Peer as "zos.Peer" {
    "subnet" => subnet,
    "wireguard_public_key" => wireguard_public_key,
    "allowed_ips" => allowed_ips,
    "endpoint" => endpoint,
});

impl Peer {
    pub(super) fn validate(&self) -> Result<(), RuleError> {
        if self.subnet.0.is_none() {
            Err(RuleError::NoPeerSubnet)
        } else if self.allowed_ips.is_empty() {
            Err(RuleError::NoAllowedIps)
        } else if self.wireguard_public_key.is_empty() {
            Err(RuleError::NoPublicKey)
        } else {
            Ok(())
        }
    }

    pub(super) fn challenge(&self, out: &mut Challenge<'_>) {
        out.add(&self.wireguard_public_key);
        out.add(&self.endpoint);
        out.add(self.subnet);
        self.allowed_ips.iter().for_each(|allowed| out.add(allowed));
    }
}

/// Bytes of a mycelium node's key.
pub const MYCELIUM_KEY_SIZE: usize = 32;

/// A network's own mycelium node. Its key moves with the network, and so do its machines' addresses.
///
/// Challenge: `hex_key peers*`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Mycelium {
    /// The node's private key.
    pub hex_key: SecretBytes,
    /// Not supported; must be empty.
    pub peers: Vec<String>,
}
json::object!(Mycelium as "zos.Mycelium" {
    "hex_key" => hex_key,
    "peers" => peers: "zos.MyceliumPeer",
});

impl Mycelium {
    pub(super) fn validate(&self) -> Result<(), RuleError> {
        if self.hex_key.expose().len() != MYCELIUM_KEY_SIZE {
            Err(RuleError::MyceliumKeySize)
        } else if !self.peers.is_empty() {
            Err(RuleError::MyceliumPeers)
        } else {
            Ok(())
        }
    }

    pub(super) fn challenge(&self, out: &mut Challenge<'_>) {
        out.add_bytes(self.hex_key.expose());
        self.peers.iter().for_each(|peer| out.add(peer));
    }
}
