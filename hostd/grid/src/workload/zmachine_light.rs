//! `zmachine-light`: a virtual machine on a light node, which has no public addresses and no planetary
//! network.
//!
//! Challenge: that of [`Machine`] with the network's `(network ip)* [mycelium.Network hex_seed]`.

use serde::Serialize;

use super::machine::Attachment;
use super::{Interface, Machine, MyceliumAddress, RuleError, Siblings};
use crate::challenge::Challenge;
use crate::json;

/// A virtual machine on a light node.
pub type ZMachineLight = Machine<MachineNetworkLight>;

/// The networks that it joins.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct MachineNetworkLight {
    /// Its mycelium address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mycelium: Option<MyceliumAddress>,
    /// Private networks. Valid machines have one.
    pub interfaces: Vec<Interface>,
}
json::object!(MachineNetworkLight as "zos.MachineNetworkLight" {
    "mycelium" => mycelium,
    "interfaces" => interfaces,
});

impl Attachment for MachineNetworkLight {
    const MACHINE: &'static str = "zos.ZMachineLight";

    fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    fn mycelium(&self) -> Option<&MyceliumAddress> {
        self.mycelium.as_ref()
    }

    fn validate(&self, _siblings: &Siblings<'_>) -> Result<(), RuleError> {
        Ok(())
    }

    fn challenge_head(&self, _out: &mut Challenge<'_>) {}
}

/// What the node answers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct ZMachineLightResult {
    /// The workload's id.
    pub id: String,
    /// The private address.
    pub ip: String,
    /// The mycelium address; empty if none.
    pub mycelium_ip: String,
    /// `address:port` of the console, in the network's mycelium subnet.
    pub console_url: String,
}
json::object!(ZMachineLightResult as "zos.ZMachineLightResult" {
    "id" => id,
    "ip" => ip,
    "mycelium_ip" => mycelium_ip,
    "console_url" => console_url,
});
super::result!(ZMachineLightResult);
