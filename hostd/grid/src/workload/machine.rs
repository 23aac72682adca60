//! What both types of machines have in common: all but the networks that they may join.
//!
//! Challenge: `flist network size cpu memory (mount.name mount.mountpoint)* entrypoint (key "=" value)*
//! gpu*`, the environment in the order of its keys' bytes. `corex` is not in it.
//!
//! # Deviations
//!
//! The least root size is reckoned in 128 bits: on existing nodes absurd amounts of memory wrap round
//! and get the smaller root.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

use super::rule::MEMORY_SIZE_MIN;
use super::{RuleError, Siblings};
use crate::address::Maybe;
use crate::capacity::{Capacity, GIB, MIB};
use crate::challenge::Challenge;
use crate::excerpt::excerpt;
use crate::id::Name;
use crate::json::{self, Decode, Decoder};
use crate::secret::{SecretBytes, SecretText};

/// A virtual machine; `N` is the networks that it may join.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Machine<N> {
    /// Where the image is.
    pub flist: String,
    /// Networks to join.
    pub network: N,
    /// Bytes of the root file system; 0 for the least.
    pub size: u64,
    /// CPUs and memory.
    pub compute_capacity: ComputeCapacity,
    /// Disks and directories, in the order in which the machine finds them.
    pub mounts: Vec<Mount>,
    /// The command to start; none if empty.
    pub entrypoint: String,
    /// The command's environment.
    pub env: BTreeMap<String, SecretText>,
    /// Once, another command; ignored.
    pub corex: bool,
    /// Graphics cards to hand over.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gpu: Vec<GpuId>,
}

/// The networks that a type of machine may join.
pub(super) trait Attachment {
    /// What Go calls the machine.
    const MACHINE: &'static str;

    fn interfaces(&self) -> &[Interface];
    fn mycelium(&self) -> Option<&MyceliumAddress>;
    /// Checks what this type alone has.
    fn validate(&self, siblings: &Siblings<'_>) -> Result<(), RuleError>;
    /// Writes what stands before the interfaces.
    fn challenge_head(&self, out: &mut Challenge<'_>);
}

impl<'a, N: Attachment + Decode<'a>> Decode<'a> for Machine<N> {
    const GO_TYPE: &'static str = N::MACHINE;

    fn decode(
        &mut self,
        decoder: &mut Decoder<'a>,
        go_type: &'static str,
    ) -> Result<(), json::Error> {
        decoder.object(go_type, |decoder, name| match name {
            name if name.is("flist") => decoder.member("flist", &mut self.flist),
            name if name.is("network") => decoder.member("network", &mut self.network),
            name if name.is("size") => decoder.member_of("size", &mut self.size, "gridtypes.Unit"),
            name if name.is("compute_capacity") => {
                decoder.member("compute_capacity", &mut self.compute_capacity)
            }
            name if name.is("mounts") => decoder.member("mounts", &mut self.mounts),
            name if name.is("entrypoint") => decoder.member("entrypoint", &mut self.entrypoint),
            name if name.is("env") => decoder.member("env", &mut self.env),
            name if name.is("corex") => decoder.member("corex", &mut self.corex),
            name if name.is("gpu") => decoder.member("gpu", &mut self.gpu),
            _ => {
                decoder.skip();
                Ok(())
            }
        })
    }
}

/// Names of networks that mean something else.
const RESERVED_NETWORKS: &[&str] = &["ygg", "pub", "mycelium"];

impl<N> Machine<N> {
    /// Bytes of the root file system: what was asked for, and not less than the least.
    pub fn root_size(&self) -> u64 {
        self.size.max(self.min_root_size())
    }

    fn min_root_size(&self) -> u64 {
        min_root_size(self.compute_capacity.cpu, self.compute_capacity.memory)
    }

    pub(super) fn capacity(&self) -> Capacity {
        let ComputeCapacity { cpu, memory } = self.compute_capacity;
        Capacity { cru: cpu.into(), mru: memory, sru: self.root_size(), ..Capacity::default() }
    }
}

#[expect(private_bounds, reason = "there are two types of machines, and both are ours")]
impl<N: Attachment> Machine<N> {
    pub(super) fn validate(&self, siblings: &Siblings<'_>) -> Result<(), RuleError> {
        let [interface] = self.network.interfaces() else {
            return Err(RuleError::InterfaceCount);
        };
        if interface.ip.0.is_none() {
            return Err(RuleError::InterfaceIp);
        }
        if self.compute_capacity.cpu == 0 {
            return Err(RuleError::NoCpu);
        }
        if self.compute_capacity.memory < MEMORY_SIZE_MIN {
            return Err(RuleError::Memory);
        }
        let least = self.min_root_size();
        if self.size != 0 && self.size < least {
            return Err(RuleError::RootSize(least));
        }
        self.network.validate(siblings)?;
        if RESERVED_NETWORKS.contains(&interface.network.as_str()) {
            return Err(RuleError::ReservedNetwork(interface.network.clone()));
        }
        match self.network.mycelium() {
            Some(mycelium) if mycelium.seed().is_none() => Err(RuleError::SeedSize),
            _ => Ok(()),
        }
    }

    pub(super) fn challenge(&self, out: &mut Challenge<'_>) {
        out.add(&self.flist);
        self.network.challenge_head(out);
        for Interface { network, ip } in self.network.interfaces() {
            out.add(network);
            out.add(ip);
        }
        if let Some(MyceliumAddress { network, hex_seed }) = self.network.mycelium() {
            out.add(network);
            out.add_bytes(hex_seed.expose());
        }
        out.add(self.size);
        out.add(self.compute_capacity.cpu);
        out.add(self.compute_capacity.memory);
        for Mount { name, mountpoint } in &self.mounts {
            out.add(name);
            out.add(mountpoint);
        }
        out.add(&self.entrypoint);
        for (key, value) in &self.env {
            out.add(key);
            out.add("=");
            out.add(value.expose());
        }
        self.gpu.iter().for_each(|gpu| out.add(gpu));
    }
}

/// Bytes that a root file system has at least: small for machines with less than a compute unit.
pub fn min_root_size(cpu: u8, memory: u64) -> u64 {
    let compute_units = u128::from(cpu) * u128::from(memory) / u128::from(8 * GIB);
    if compute_units == 0 { 500 * MIB } else { 2 * GIB }
}

/// CPUs and memory of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct ComputeCapacity {
    /// Virtual CPUs.
    pub cpu: u8,
    /// Bytes of memory.
    pub memory: u64,
}
json::object!(ComputeCapacity as "zos.MachineCapacity" {
    "cpu" => cpu,
    "memory" => memory: "gridtypes.Unit",
});

/// A disk or directory in a machine.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Mount {
    /// A `zmount`, `volume` or `qsfs` of the deployment.
    pub name: Name,
    /// Where the machine finds it.
    pub mountpoint: String,
}
json::object!(Mount as "zos.MachineMount" { "name" => name, "mountpoint" => mountpoint });

/// An interface in a private network.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Interface {
    /// A `network` or `network-light` of the twin on the node.
    pub network: Name,
    /// The machine's address in it. Valid ones have it.
    pub ip: Maybe<IpAddr>,
}
json::object!(Interface as "zos.MachineInterface" { "network" => network, "ip" => ip });

/// Bytes that a machine's mycelium address ends with.
pub const SEED_SIZE: usize = 6;

/// An address in the mycelium subnet of a network.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct MyceliumAddress {
    /// The network whose subnet it is. Go clients write the member with a capital, and read it either
    /// way; others read small letters only.
    pub network: Name,
    /// What the address ends with. The same seed, with the same key of the network, gives the same
    /// address on another node.
    pub hex_seed: SecretBytes,
}
json::object!(MyceliumAddress as "zos.MyceliumIP" {
    "Network" => network,
    "hex_seed" => hex_seed,
});

impl MyceliumAddress {
    /// The seed, if it has the right size, which it has in every valid machine.
    pub fn seed(&self) -> Option<[u8; SEED_SIZE]> {
        self.hex_seed.expose().try_into().ok()
    }
}

/// A graphics card as nodes name it: `slot/vendor/device`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(transparent)]
pub struct GpuId(String);
json::newtype!(GpuId as "zos.GPU");

impl GpuId {
    /// Takes any text; [`GpuId::parts`] says whether it is an id.
    pub fn new(id: impl Into<String>) -> Self {
        Self(id.into())
    }

    /// Slot on the bus, vendor, device.
    ///
    /// # Errors
    ///
    /// The text, if it has not three parts.
    pub fn parts(&self) -> Result<(&str, &str, &str), GpuError> {
        let mut parts = self.0.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(slot), Some(vendor), Some(device), None) => Ok((slot, vendor, device)),
            _ => Err(GpuError { id: excerpt(&self.0) }),
        }
    }
}

impl fmt::Display for GpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that names no graphics card.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid GPU id format '{id}'")]
pub struct GpuError {
    id: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absurd_memory_does_not_wrap_round() {
        assert_eq!(min_root_size(2, 1 << 63), 2 * GIB);
        assert_eq!(min_root_size(u8::MAX, u64::MAX), 2 * GIB);
        assert_eq!(min_root_size(0, u64::MAX), 500 * MIB);
    }

    #[test]
    fn graphics_cards_have_three_parts() {
        let id = GpuId::new("0000:28:00.0/1002/731f");
        assert_eq!(id.parts(), Ok(("0000:28:00.0", "1002", "731f")));
        for text in ["", "a/b", "a/b/c/d"] {
            let error = GpuId::new(text).parts().unwrap_err();
            assert_eq!(error.to_string(), format!("invalid GPU id format '{text}'"));
        }
    }
}
