//! `zmachine`: a virtual machine on a full node.
//!
//! It joins one private network, and beside it, if it wants, a public address, the planetary network and
//! mycelium.
//!
//! Challenge: that of [`Machine`] with the network's
//! `public_ip planetary (network ip)* [mycelium.Network hex_seed]`.
//!
//! # Deviations
//!
//! A public address that names a workload of another type passes the rules of existing nodes by mistake,
//! and fails later. It is refused at once.

use serde::Serialize;

use super::machine::Attachment;
use super::{Interface, Machine, MyceliumAddress, RuleError, Siblings, WorkloadType};
use crate::challenge::Challenge;
use crate::id::Name;
use crate::json::{self, Decode, Decoder};

/// A virtual machine on a full node.
pub type ZMachine = Machine<MachineNetwork>;

/// The networks that it joins.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct MachineNetwork {
    /// An `ip` or `ipv4` of the deployment; none if empty.
    pub public_ip: Name,
    /// Whether it joins the planetary network.
    pub planetary: bool,
    /// Its mycelium address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mycelium: Option<MyceliumAddress>,
    /// Private networks. Valid machines have one.
    pub interfaces: Vec<Interface>,
}
json::object!(MachineNetwork as "zos.MachineNetwork" {
    "public_ip" => public_ip,
    "planetary" => planetary,
    "mycelium" => mycelium,
    "interfaces" => interfaces,
});

impl Attachment for MachineNetwork {
    const MACHINE: &'static str = "zos.ZMachine";

    fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    fn mycelium(&self) -> Option<&MyceliumAddress> {
        self.mycelium.as_ref()
    }

    fn validate(&self, siblings: &Siblings<'_>) -> Result<(), RuleError> {
        let name = &self.public_ip;
        if name.is_empty() {
            return Ok(());
        }
        if !siblings.has(name) {
            return Err(RuleError::NoPublicIp);
        }
        match siblings.kind(name) {
            Some(WorkloadType::PublicIp | WorkloadType::PublicIpv4) => {}
            _ => return Err(RuleError::NotPublicIp(name.clone())),
        }
        if siblings.public_ip_users(name) > 1 {
            return Err(RuleError::SharedPublicIp);
        }
        Ok(())
    }

    fn challenge_head(&self, out: &mut Challenge<'_>) {
        out.add(&self.public_ip);
        out.add(self.planetary);
    }
}

/// What the node answers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct ZMachineResult {
    /// The workload's id.
    pub id: String,
    /// The private address.
    pub ip: String,
    /// The planetary address; empty if none.
    pub planetary_ip: String,
    /// The mycelium address; empty if none.
    pub mycelium_ip: String,
    /// `address:port` of the console, inside the private network.
    pub console_url: String,
}

impl Decode<'_> for ZMachineResult {
    const GO_TYPE: &'static str = "zos.ZMachineResult";

    /// Older nodes called the planetary address `ygg_ip`, which wins if it is there.
    fn decode(
        &mut self,
        decoder: &mut Decoder<'_>,
        go_type: &'static str,
    ) -> Result<(), json::Error> {
        let mut ygg_ip = String::new();
        decoder.object(go_type, |decoder, name| match name {
            name if name.is("id") => decoder.member("id", &mut self.id),
            name if name.is("ip") => decoder.member("ip", &mut self.ip),
            name if name.is("planetary_ip") => {
                decoder.member("planetary_ip", &mut self.planetary_ip)
            }
            name if name.is("ygg_ip") => decoder.member("ygg_ip", &mut ygg_ip),
            name if name.is("mycelium_ip") => decoder.member("mycelium_ip", &mut self.mycelium_ip),
            name if name.is("console_url") => decoder.member("console_url", &mut self.console_url),
            _ => {
                decoder.skip();
                Ok(())
            }
        })?;
        if !ygg_ip.is_empty() {
            self.planetary_ip = ygg_ip;
        }
        Ok(())
    }
}
super::result!(ZMachineResult);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_older_nodes_are_read() {
        let result = ZMachineResult::from_json(r#"{"id":"1-2-vm","ygg_ip":"300::1"}"#).unwrap();
        assert_eq!(result.planetary_ip, "300::1");
        let text = serde_json::to_string(&result).unwrap();
        assert_eq!(ZMachineResult::from_json(&text).unwrap(), result);
    }
}
