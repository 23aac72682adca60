//! Twins, farms and nodes, and the policies that they are under.

use codec::{Decode, DecodeWithMemTracking, Encode};
use frame_support::{BoundedVec, traits::ConstU32};
use scale_info::TypeInfo;

use super::{
    AccountId32, BlockNumber, Bytes, CITY_MAX, COORDINATE_MAX, COUNTRY_MAX, DOCUMENT_HASH_MAX,
    DOCUMENT_LINK_MAX, DOMAIN_MAX, FARM_IPS_MAX, FARM_NAME_MAX, GW4_MAX, GW6_MAX, INTERFACE_IP_MAX,
    INTERFACE_NAME_MAX, INTERFACES_MAX, IP4_MAX, IP6_MAX, MAC_MAX, PK_MAX, RELAY_MAX, Resources,
    SERIAL_MAX,
};

/// A public IPv4 address with its gateway.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo)]
pub struct IP4 {
    /// The address with its prefix length.
    pub ip: Bytes<IP4_MAX>,
    /// The gateway.
    pub gw: Bytes<GW4_MAX>,
}

/// A public IPv6 address with its gateway.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo)]
pub struct IP6 {
    /// The address with its prefix length.
    pub ip: Bytes<IP6_MAX>,
    /// The gateway.
    pub gw: Bytes<GW6_MAX>,
}

/// How a node is reached from the public Internet.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo)]
pub struct PublicConfig {
    /// Its IPv4 address.
    pub ip4: IP4,
    /// Its IPv6 address.
    pub ip6: Option<IP6>,
    /// The domain under which its gateways have names.
    pub domain: Option<Bytes<DOMAIN_MAX>>,
}

/// One public address of a farm.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo)]
pub struct PublicIP {
    /// The address with its prefix length.
    pub ip: Bytes<IP4_MAX>,
    /// The gateway.
    pub gateway: Bytes<GW4_MAX>,
    /// The contract that reserved it; 0 when it is free.
    pub contract_id: u64,
}

/// What is known of a farm's quality.
#[derive(
    Clone, Copy, Default, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo,
)]
pub enum FarmCertification {
    /// Nothing.
    #[default]
    NotCertified,
    /// A certified farm.
    Gold,
}

/// A farming policy that was granted to a farm, within limits.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo)]
pub struct FarmingPolicyLimit {
    /// The policy.
    pub farming_policy_id: u32,
    /// Compute units it may cover.
    pub cu: Option<u64>,
    /// Storage units it may cover.
    pub su: Option<u64>,
    /// When it ends, in seconds of Unix time.
    pub end: Option<u64>,
    /// Nodes it may cover.
    pub node_count: Option<u32>,
    /// Whether its nodes are certified.
    pub node_certification: bool,
}

/// A farm: nodes of one owner in one place.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo)]
pub struct Farm {
    /// The version of this structure.
    pub version: u32,
    /// Its number.
    pub id: u32,
    /// Its unique name.
    pub name: Bytes<FARM_NAME_MAX>,
    /// The twin that owns it.
    pub twin_id: u32,
    /// What its capacity costs.
    pub pricing_policy_id: u32,
    /// What is known of its quality.
    pub certification: FarmCertification,
    /// Its public addresses.
    pub public_ips: BoundedVec<PublicIP, ConstU32<FARM_IPS_MAX>>,
    /// Whether its nodes are rented whole only.
    pub dedicated_farm: bool,
    /// A farming policy that was granted to it.
    pub farming_policy_limits: Option<FarmingPolicyLimit>,
}

/// Where a node stands.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo)]
pub struct Location {
    /// The city.
    pub city: Bytes<CITY_MAX>,
    /// The country.
    pub country: Bytes<COUNTRY_MAX>,
    /// Degrees north, in decimal.
    pub latitude: Bytes<COORDINATE_MAX>,
    /// Degrees east, in decimal.
    pub longitude: Bytes<COORDINATE_MAX>,
}

/// A network interface of a node.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo)]
pub struct Interface {
    /// Its name.
    pub name: Bytes<INTERFACE_NAME_MAX>,
    /// Its hardware address.
    pub mac: Bytes<MAC_MAX>,
    /// Its addresses.
    pub ips: BoundedVec<Bytes<INTERFACE_IP_MAX>, ConstU32<INTERFACES_MAX>>,
}

/// What is known of a node's quality.
#[derive(
    Clone, Copy, Default, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo,
)]
pub enum NodeCertification {
    /// Built by its owner.
    #[default]
    Diy,
    /// Built and sealed by a certifier.
    Certified,
}

/// A node of the grid.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo)]
pub struct Node {
    /// The version of this structure.
    pub version: u32,
    /// Its number.
    pub id: u32,
    /// The farm it belongs to.
    pub farm_id: u32,
    /// Its own twin.
    pub twin_id: u32,
    /// What it has.
    pub resources: Resources,
    /// Where it stands.
    pub location: Location,
    /// How it is reached from the public Internet.
    pub public_config: Option<PublicConfig>,
    /// When it was registered, in seconds of Unix time.
    pub created: u64,
    /// The farming policy it was registered under.
    pub farming_policy_id: u32,
    /// Its network interfaces.
    pub interfaces: BoundedVec<Interface, ConstU32<INTERFACES_MAX>>,
    /// What is known of its quality.
    pub certification: NodeCertification,
    /// Whether it booted securely.
    pub secure_boot: bool,
    /// Whether it is itself a virtual machine.
    pub virtualized: bool,
    /// The serial number of its mainboard.
    pub serial_number: Option<Bytes<SERIAL_MAX>>,
    /// The price of connecting it, when it was registered.
    pub connection_price: u32,
}

/// Whether a node should run.
#[derive(
    Clone, Copy, Default, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo,
)]
pub enum Power {
    /// It should.
    #[default]
    Up,
    /// It should sleep.
    Down,
}

/// Whether a node runs.
#[derive(
    Clone, Copy, Default, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo,
)]
pub enum PowerState {
    /// It does.
    #[default]
    Up,
    /// It has slept since this block.
    Down(BlockNumber),
}

/// A node's power: what is and what should be.
#[derive(
    Clone, Copy, Default, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo,
)]
pub struct NodePower {
    /// What is.
    pub state: PowerState,
    /// What should be.
    pub target: Power,
}

impl NodePower {
    /// Whether the node sleeps, or is about to.
    #[must_use]
    pub fn is_standby(&self) -> bool {
        self.state != PowerState::Up || self.target != Power::Up
    }
}

/// An entity that vouches for a twin.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo)]
pub struct EntityProof {
    /// The entity.
    pub entity_id: u32,
    /// Its signature.
    pub signature: Vec<u8>,
}

/// A twin: whoever sends and receives messages.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo)]
pub struct Twin {
    /// Its number.
    pub id: u32,
    /// The account that owns it, which is also its public key.
    pub account_id: AccountId32,
    /// The relays where it listens, joined by `_`.
    pub relay: Option<Bytes<RELAY_MAX>>,
    /// Who vouches for it.
    pub entities: Vec<EntityProof>,
    /// The key it is sent secrets with.
    pub pk: Option<Bytes<PK_MAX>>,
}

/// What a price is per.
#[derive(
    Clone, Copy, Default, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo,
)]
pub enum Unit {
    /// Per byte.
    Bytes,
    /// Per KiB.
    Kilobytes,
    /// Per MiB.
    Megabytes,
    /// Per GiB.
    #[default]
    Gigabytes,
    /// Per TiB.
    Terrabytes,
}

/// One price: 10^-7 USD an hour.
#[derive(
    Clone, Copy, Default, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo,
)]
pub struct Policy {
    /// 10^-7 USD an hour.
    pub value: u32,
    /// What the price is per.
    pub unit: Unit,
}

/// What capacity costs.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo)]
pub struct PricingPolicy {
    /// The version of this structure.
    pub version: u32,
    /// Its number.
    pub id: u32,
    /// Its name.
    pub name: Vec<u8>,
    /// A storage unit.
    pub su: Policy,
    /// A compute unit.
    pub cu: Policy,
    /// Network use.
    pub nu: Policy,
    /// A public address.
    pub ipu: Policy,
    /// A unique name.
    pub unique_name: Policy,
    /// A domain.
    pub domain_name: Policy,
    /// The account of the foundation.
    pub foundation_account: AccountId32,
    /// The account of the certified sales channel.
    pub certified_sales_account: AccountId32,
    /// What a whole node costs less, in percent.
    pub discount_for_dedication_nodes: u8,
}

/// What farming is worth. The dev chain pays no farmer: it only picks one for each node.
#[derive(Clone, Default, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo)]
pub struct FarmingPolicy {
    /// The version of this structure.
    pub version: u32,
    /// Its number.
    pub id: u32,
    /// Its name.
    pub name: Vec<u8>,
    /// Reward of a compute unit.
    pub cu: u32,
    /// Reward of a storage unit.
    pub su: u32,
    /// Reward of network use.
    pub nu: u32,
    /// Reward of a public address.
    pub ipv4: u32,
    /// The uptime it asks for, in tenths of a percent.
    pub minimal_uptime: u16,
    /// The block in which it was created.
    pub policy_created: BlockNumber,
    /// The block in which it ends; 0 for never.
    pub policy_end: BlockNumber,
    /// Whether it can never change.
    pub immutable: bool,
    /// Whether it is taken when no other is named.
    pub default: bool,
    /// The certification of the nodes it is for.
    pub node_certification: NodeCertification,
    /// The certification of the farms it is for.
    pub farm_certification: FarmCertification,
}

/// That an account accepted the terms.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo)]
pub struct TermsAndConditions {
    /// The account.
    pub account_id: AccountId32,
    /// When, in seconds of Unix time.
    pub timestamp: u64,
    /// Where the terms are.
    pub document_link: Bytes<DOCUMENT_LINK_MAX>,
    /// Their hash.
    pub document_hash: Bytes<DOCUMENT_HASH_MAX>,
}
