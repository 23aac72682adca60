//! What can go wrong with a network. The texts reach the owner, so no secret is ever in them.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use hostd_grid::Name;
use hostd_grid::derived::WorkloadId;
use hostd_grid::derived::network::{MachineAddressError, SeedError};
use hostd_grid::id::NameError;

use super::address::SubnetError;

/// A network, or a machine's place in one, that is not as it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The node is told to do what cannot work.
    #[error("networks of this node: {0}")]
    Config(String),
    /// The name is none.
    #[error("network '{name}': {source}")]
    Name {
        /// What was given, shortened.
        name: String,
        /// The rule.
        #[source]
        source: NameError,
    },
    /// The subnet cannot be one.
    #[error(transparent)]
    Subnet(#[from] SubnetError),
    /// A key of another size.
    #[error("mycelium key has {0} bytes, and 32 are a key")]
    KeySize(usize),
    /// The workload wants WireGuard.
    #[error("network '{0}' asks for WireGuard, which this node does not do yet")]
    WireGuard(Name),
    /// Two workloads are one network.
    #[error("network '{name}' is workload {holder} already: conflict")]
    Taken {
        /// Its name.
        name: Name,
        /// Who has it.
        holder: WorkloadId,
    },
    /// There is no such network of this twin.
    #[error("network '{0}' does not exist on this node")]
    Absent(Name),
    /// More than this node can carry.
    #[error("this node has {count} networks, and no more can be added")]
    NetworkCount {
        /// How many there are.
        count: usize,
    },
    /// More machines than a network takes.
    #[error("network '{network}' has {count} machines, and no more can be added")]
    MachineCount {
        /// Its name.
        network: Name,
        /// How many there are.
        count: usize,
    },
    /// Not a machine's address.
    #[error(transparent)]
    Address(#[from] MachineAddressError),
    /// The first or the last address of the subnet, or the node's own.
    #[error("ip {0} is reserved")]
    Reserved(Ipv4Addr),
    /// Another machine has it.
    #[error("address {address} is already used by machine {holder}")]
    AddressTaken {
        /// The address.
        address: IpAddr,
        /// Who has it.
        holder: WorkloadId,
    },
    /// Not a seed.
    #[error("mycelium seed of machine '{0}': {1}")]
    Seed(Name, #[source] SeedError),
    /// The machine is to be nowhere.
    #[error("machine '{0}' asks for no address in network '{1}'")]
    NoAddress(Name, Name),
    /// An update that machines would feel.
    #[error("{what} of network '{network}' can't change while machine {holder} uses it")]
    InUse {
        /// The network's name.
        network: Name,
        /// What was to change.
        what: &'static str,
        /// One of those that use it.
        holder: WorkloadId,
    },
    /// The kernel refuses something.
    #[error("network {network}: {step}: {source}")]
    Kernel {
        /// The network's id.
        network: String,
        /// What was tried.
        step: String,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file that is not ours, or damaged.
    #[error("{}: {reason}", path.display())]
    Record {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A program that networks need.
    #[error("{program}: {reason}")]
    Program {
        /// Its name.
        program: &'static str,
        /// What it said, or did.
        reason: String,
    },
}
