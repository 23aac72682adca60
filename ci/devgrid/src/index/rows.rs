//! What the tables hold: what the chain stores, as text and numbers, with what its events add.
//!
//! A row knows nothing of the chain's types, so that the answers made of it can be tried without one.

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

/// One of [`NAMES`].
pub(crate) type Known = &'static str;

/// The names of the chain's certifications and discounts.
const NAMES: [Known; 8] =
    ["None", "Default", "Bronze", "Silver", "Gold", "NotCertified", "Diy", "Certified"];

fn known<'de, D: Deserializer<'de>>(from: D) -> Result<Known, D::Error> {
    let name = String::deserialize(from)?;
    let known = NAMES.into_iter().find(|known| *known == name);
    known.ok_or_else(|| D::Error::custom(format!("{name:?} is no name that the chain has")))
}

/// Cores and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Resources {
    pub(crate) cru: u64,
    pub(crate) sru: u64,
    pub(crate) hru: u64,
    pub(crate) mru: u64,
}

impl Resources {
    /// The sum, as large as it can be.
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            cru: self.cru.saturating_add(other.cru),
            sru: self.sru.saturating_add(other.sru),
            hru: self.hru.saturating_add(other.hru),
            mru: self.mru.saturating_add(other.mru),
        }
    }

    /// What is left of it.
    pub(crate) fn minus(self, other: Self) -> Self {
        Self {
            cru: self.cru.saturating_sub(other.cru),
            sru: self.sru.saturating_sub(other.sru),
            hru: self.hru.saturating_sub(other.hru),
            mru: self.mru.saturating_sub(other.mru),
        }
    }
}

/// An address of a farm; free as long as its contract is 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PublicIp {
    pub(crate) ip: String,
    pub(crate) gateway: String,
    pub(crate) contract_id: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Farm {
    pub(crate) id: u32,
    pub(crate) grid_version: u32,
    pub(crate) name: String,
    pub(crate) twin_id: u32,
    pub(crate) pricing_policy_id: u32,
    #[serde(deserialize_with = "known")]
    pub(crate) certification: Known,
    pub(crate) dedicated: bool,
    pub(crate) public_ips: Vec<PublicIp>,
}

impl Farm {
    pub(crate) fn free_ip_count(&self) -> usize {
        self.public_ips.iter().filter(|ip| ip.contract_id == 0).count()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct PublicConfig {
    pub(crate) ipv4: String,
    pub(crate) gw4: String,
    pub(crate) ipv6: String,
    pub(crate) gw6: String,
    pub(crate) domain: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) mac: String,
    pub(crate) ips: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Node {
    pub(crate) id: u32,
    pub(crate) grid_version: u32,
    pub(crate) farm_id: u32,
    pub(crate) twin_id: u32,
    pub(crate) country: String,
    pub(crate) city: String,
    pub(crate) latitude: String,
    pub(crate) longitude: String,
    pub(crate) total: Resources,
    pub(crate) public_config: Option<PublicConfig>,
    /// Unix seconds.
    pub(crate) created: u64,
    pub(crate) farming_policy_id: u32,
    pub(crate) interfaces: Vec<Interface>,
    #[serde(deserialize_with = "known")]
    pub(crate) certification: Known,
    pub(crate) secure_boot: bool,
    pub(crate) virtualized: bool,
    pub(crate) serial_number: String,
    pub(crate) connection_price: u32,
    /// Whether it sleeps, or is on its way to it.
    pub(crate) power_down: bool,
    pub(crate) power_target_down: bool,
    /// What its farmer asks for on top, in thousandths of a dollar a month.
    pub(crate) extra_fee: u64,
    /// Seconds, as it last reported; nothing before it did.
    pub(crate) uptime: Option<u64>,
    /// When it last reported, or was stored; Unix seconds.
    pub(crate) updated_at: u64,
    /// What it can do, as it says itself when asked; nothing before.
    pub(crate) features: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Twin {
    pub(crate) id: u32,
    /// In SS58.
    pub(crate) account: String,
    pub(crate) relay: Option<String>,
    pub(crate) public_key: Option<Vec<u8>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ContractState {
    Created,
    GracePeriod,
    Deleted,
    OutOfFunds,
}

impl ContractState {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Created => "Created",
            Self::GracePeriod => "GracePeriod",
            Self::Deleted => "Deleted",
            Self::OutOfFunds => "OutOfFunds",
        }
    }

    /// Whether the chain still has it.
    pub(crate) fn is_active(self) -> bool {
        matches!(self, Self::Created | Self::GracePeriod)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ContractKind {
    Node { node_id: u32, hash: String, data: String, public_ip_count: u32 },
    Name { name: String },
    Rent { node_id: u32 },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Contract {
    pub(crate) id: u64,
    pub(crate) grid_version: u32,
    pub(crate) twin_id: u32,
    pub(crate) state: ContractState,
    pub(crate) kind: ContractKind,
    pub(crate) solution_provider_id: Option<u64>,
    /// Unix seconds.
    pub(crate) created_at: u64,
    /// What its node reported.
    pub(crate) used: Resources,
}

impl Contract {
    /// The node that it is on.
    pub(crate) fn node_id(&self) -> Option<u32> {
        match self.kind {
            ContractKind::Node { node_id, .. } | ContractKind::Rent { node_id } => Some(node_id),
            ContractKind::Name { .. } => None,
        }
    }

    pub(crate) fn kind_name(&self) -> &'static str {
        match self.kind {
            ContractKind::Node { .. } => "node",
            ContractKind::Name { .. } => "name",
            ContractKind::Rent { .. } => "rent",
        }
    }
}

/// One bill of a contract.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bill {
    pub(crate) contract_id: u64,
    /// Unix seconds.
    pub(crate) timestamp: u64,
    #[serde(deserialize_with = "known")]
    pub(crate) discount: Known,
    /// In units of 10^-7 TFT.
    pub(crate) amount: u128,
}
