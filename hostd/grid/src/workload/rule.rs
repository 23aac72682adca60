//! The rules that workloads break, in the words of existing nodes, and what rules need to know of the
//! other workloads of a deployment.

use std::collections::HashMap;

use super::{BackendError, Readable, UrlError, Workload, WorkloadData, WorkloadType};
use crate::capacity::MIB;
use crate::id::Name;
use crate::limits::WORKLOAD_COUNT_MAX;

/// A rule of a workload's type that its data breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts are the documentation")]
pub enum RuleError {
    #[error("only one network private network is supported at the moment")]
    InterfaceCount,
    #[error("invalid IP")]
    InterfaceIp,
    #[error("cpu capacity can't be 0")]
    NoCpu,
    #[error("mem capacity can't be less that {}M", MEMORY_SIZE_MIN / MIB)]
    Memory,
    #[error("disk size can't be less that {0}. Set to 0 for minimum")]
    RootSize(u64),
    #[error("public ip is not found")]
    NoPublicIp,
    #[error("workload of name '{0}' is not a public ip")]
    NotPublicIp(Name),
    #[error("public ip is assigned to multiple vms")]
    SharedPublicIp,
    #[error("'{0}' is reserved network name")]
    ReservedNetwork(Name),
    #[error("invalid mycelium seed length expected 6 bytes")]
    SeedSize,
    #[error("invalid size")]
    Size,
    #[error("invalid mode")]
    Mode,
    #[error("network IP range cannot be empty")]
    NoIpRange,
    #[error("network resource subnet cannot empty")]
    NoSubnet,
    #[error("network resource wireguard private key cannot empty")]
    NoPrivateKey,
    #[error("peer wireguard subnet cannot empty")]
    NoPeerSubnet,
    #[error("peer wireguard allowedIPs cannot empty")]
    NoAllowedIps,
    #[error("peer wireguard public key cannot empty")]
    NoPublicKey,
    #[error("invalid mycelium key length, expected 32")]
    MyceliumKeySize,
    #[error("user defined peers list is not supported right now")]
    MyceliumPeers,
    #[error("public ip workload with no selections")]
    NoSelection,
    #[error("name {0} is invalid")]
    GatewayName(String),
    #[error("fqdn {0} is invalid")]
    Fqdn(String),
    #[error("backends list can not be empty")]
    NoBackends,
    #[error("failed to validate backend '{backend}': {error}")]
    Backend { backend: String, error: BackendError },
    #[error("minimal shards can't be greater than expected shards")]
    Shards,
    #[error("no zmachine with name '{0}' found")]
    NoMachine(String),
    #[error("invalid url supplied in output: {0}")]
    OutputUrl(UrlError),
    #[error("invalid output schema '{0}' not supported")]
    OutputScheme(String),
}

/// Bytes of memory that a machine has at least.
pub(crate) const MEMORY_SIZE_MIN: u64 = 250 * MIB;

/// The other workloads of a deployment, as rules see them.
#[derive(Debug, Default)]
pub struct Siblings<'a> {
    /// The type of the first workload of each name; none if it isn't known.
    kinds: HashMap<&'a Name, Option<WorkloadType>>,
    /// How many machines want a public address.
    public_ip_users: HashMap<&'a Name, usize>,
}

impl<'a> Siblings<'a> {
    /// Looks at all workloads once. Those that can't have their names can't be found.
    pub fn of<D: Readable>(workloads: &'a [Workload<D>]) -> Self {
        let mut siblings = Self::default();
        let named = workloads.iter().filter(|workload| workload.name.check().is_ok());
        for workload in named.take(WORKLOAD_COUNT_MAX) {
            let kind = match workload.data.readable() {
                Ok(data) => {
                    if let WorkloadData::ZMachine(machine) = data {
                        *siblings.public_ip_users.entry(&machine.network.public_ip).or_default() +=
                            1;
                    }
                    Some(data.kind())
                }
                Err(error) => error.kind(),
            };
            siblings.kinds.entry(&workload.name).or_insert(kind);
        }
        siblings
    }

    /// The type of the workload `name`: none if there is no such workload, or nobody knows its type.
    pub(crate) fn kind(&self, name: &Name) -> Option<WorkloadType> {
        self.kinds.get(name).copied().flatten()
    }

    /// Whether there is a workload `name`.
    pub(crate) fn has(&self, name: &Name) -> bool {
        self.kinds.contains_key(name)
    }

    /// How many machines want the public address `name`.
    pub(crate) fn public_ip_users(&self, name: &Name) -> usize {
        self.public_ip_users.get(name).copied().unwrap_or_default()
    }
}
