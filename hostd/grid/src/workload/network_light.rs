//! `network-light`: a private network of one node, reached from others over mycelium, and by WireGuard
//! if the user wants it.
//!
//! Only the subnet and the mycelium key are checked; the WireGuard part came later and may be absent.
//!
//! Challenge: `ip_range subnet wireguard_private_key wireguard_listen_port peer* mycelium`, where clients
//! disagree about what is absent: see [`Form`].

use serde::Serialize;

use super::{Mycelium, Peer, RuleError, Siblings};
use crate::address::{Cidr, Maybe};
use crate::capacity::Capacity;
use crate::challenge::{Challenge, Form};
use crate::json;
use crate::secret::SecretText;

/// A private network of one node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct NetworkLight {
    /// This node's part. Valid ones have it.
    pub subnet: Maybe<Cidr>,
    /// The mycelium node of this network's machines.
    pub mycelium: Mycelium,
    /// The whole network, if there is WireGuard.
    pub ip_range: Maybe<Cidr>,
    /// This node's key, in base64; none if empty.
    pub wireguard_private_key: SecretText,
    /// The UDP port where other nodes find this one; none if 0.
    pub wireguard_listen_port: u16,
    /// Other nodes.
    pub peers: Vec<Peer>,
}
json::object!(NetworkLight as "zos.NetworkLight" {
    "subnet" => subnet,
    "mycelium" => mycelium,
    "ip_range" => ip_range,
    "wireguard_private_key" => wireguard_private_key,
    "wireguard_listen_port" => wireguard_listen_port,
    "peers" => peers,
});

impl NetworkLight {
    /// Whether something is absent that the forms of the challenge write differently.
    pub(crate) fn has_two_forms(&self) -> bool {
        self.ip_range.0.is_none() || self.wireguard_listen_port == 0
    }

    pub(super) fn validate(&self, _siblings: &Siblings<'_>) -> Result<(), RuleError> {
        if self.subnet.0.is_none() {
            return Err(RuleError::NoSubnet);
        }
        self.mycelium.validate()
    }

    pub(super) fn challenge(&self, out: &mut Challenge<'_>) {
        let omit = out.form() == Form::Omitting;
        if !(omit && self.ip_range.0.is_none()) {
            out.add(self.ip_range);
        }
        out.add(self.subnet);
        out.add(self.wireguard_private_key.expose());
        if !(omit && self.wireguard_listen_port == 0) {
            out.add(self.wireguard_listen_port);
        }
        self.peers.iter().for_each(|peer| peer.challenge(out));
        self.mycelium.challenge(out);
    }

    pub(super) fn capacity(&self) -> Capacity {
        Capacity::default()
    }
}
