//! What TFChain stores, field by field in SCALE order.
//!
//! These are the types of spec version 152. The pallets keep them, the chain's view hands them out, and
//! a client that decodes them by the metadata meets the same layout as on the public chain. Texts are
//! bytes because the chain's are; [`text`] reads them for people.
//!
//! Where TFChain wraps a text in a type of its own (`FarmName`, `CityName`, …) we keep the bytes: the
//! encoding is the same, and the rules live beside the calls that check them.

use codec::{Decode, DecodeWithMemTracking, Encode, MaxEncodedLen};
use frame_support::{BoundedVec, traits::ConstU32};
use scale_info::TypeInfo;
pub use sp_runtime::AccountId32;

/// At most `N` bytes.
pub type Bytes<const N: u32> = BoundedVec<u8, ConstU32<N>>;

/// TFT in units of 10^-7.
pub type Balance = u128;

/// The height of a block.
pub type BlockNumber = u32;

/// One TFT.
pub const TFT: Balance = 10_000_000;

/// The longest name of a farm.
pub const FARM_NAME_MAX: u32 = 40;
/// The most public addresses of one farm.
pub const FARM_IPS_MAX: u32 = 256;
/// The longest IPv4 address with its prefix length.
pub const IP4_MAX: u32 = 18;
/// The longest IPv4 gateway.
pub const GW4_MAX: u32 = 15;
/// The longest IPv6 address with its prefix length.
pub const IP6_MAX: u32 = 43;
/// The longest IPv6 gateway.
pub const GW6_MAX: u32 = 39;
/// The longest domain of a public configuration.
pub const DOMAIN_MAX: u32 = 128;
/// The longest relay of a twin.
pub const RELAY_MAX: u32 = 1024;
/// The longest public key of a twin.
pub const PK_MAX: u32 = 128;
/// The longest name of a city.
pub const CITY_MAX: u32 = 58;
/// The longest name of a country.
pub const COUNTRY_MAX: u32 = 56;
/// The longest latitude or longitude.
pub const COORDINATE_MAX: u32 = 50;
/// The longest serial number.
pub const SERIAL_MAX: u32 = 128;
/// The longest name of a network interface.
pub const INTERFACE_NAME_MAX: u32 = 20;
/// The length of a hardware address.
pub const MAC_MAX: u32 = 17;
/// The longest address of a network interface.
pub const INTERFACE_IP_MAX: u32 = 42;
/// The most interfaces of a node, and addresses of an interface.
pub const INTERFACES_MAX: u32 = 10;
/// The longest link to the terms and conditions.
pub const DOCUMENT_LINK_MAX: u32 = 100;
/// The longest hash of the terms and conditions.
pub const DOCUMENT_HASH_MAX: u32 = 32;
/// The longest data a node contract carries.
pub const DEPLOYMENT_DATA_MAX: u32 = 512;
/// The most public addresses of one node contract.
pub const CONTRACT_IPS_MAX: u32 = 512;
/// The longest name of a name contract.
pub const NAME_MAX: u32 = 64;

/// Bytes of the chain as text; what is not UTF-8 becomes a replacement character.
#[must_use]
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a node has, or a contract uses: bytes, and cores.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo)]
pub struct Resources {
    /// Bytes of hard disk.
    pub hru: u64,
    /// Bytes of solid-state disk.
    pub sru: u64,
    /// Cores.
    pub cru: u64,
    /// Bytes of memory.
    pub mru: u64,
}

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
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo)]
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
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo)]
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
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo)]
pub enum Power {
    /// It should.
    #[default]
    Up,
    /// It should sleep.
    Down,
}

/// Whether a node runs.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo)]
pub enum PowerState {
    /// It does.
    #[default]
    Up,
    /// It has slept since this block.
    Down(BlockNumber),
}

/// A node's power: what is and what should be.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo)]
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
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo)]
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
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo)]
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

/// Why a contract ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo)]
pub enum Cause {
    /// Its owner cancelled it.
    CanceledByUser,
    /// Its owner's money ended, and so did the grace period.
    OutOfFunds,
    /// The council cancelled it.
    CanceledByCollective,
}

/// Where a contract is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo)]
pub enum ContractState {
    /// It is in force.
    Created,
    /// It has ended.
    Deleted(Cause),
    /// Its owner has had no money since this block.
    GracePeriod(u64),
}

/// A deployment on a node.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo)]
pub struct NodeContract {
    /// The node.
    pub node_id: u32,
    /// The hash of the deployment, as 32 characters of hexadecimal.
    pub deployment_hash: [u8; 32],
    /// What its owner wants to remember.
    pub deployment_data: Bytes<DEPLOYMENT_DATA_MAX>,
    /// How many public addresses it has.
    pub public_ips: u32,
    /// Which ones.
    pub public_ips_list: BoundedVec<PublicIP, ConstU32<CONTRACT_IPS_MAX>>,
}

/// A unique name.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo)]
pub struct NameContract {
    /// The name.
    pub name: Bytes<NAME_MAX>,
}

/// A whole node, rented.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo)]
pub struct RentContract {
    /// The node.
    pub node_id: u32,
}

/// What a contract is about.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo)]
pub enum ContractData {
    /// A deployment on a node.
    NodeContract(NodeContract),
    /// A unique name.
    NameContract(NameContract),
    /// A whole node.
    RentContract(RentContract),
}

/// A contract.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo)]
pub struct Contract {
    /// The version of this structure.
    pub version: u32,
    /// Where it is in its life.
    pub state: ContractState,
    /// Its number.
    pub contract_id: u64,
    /// The twin that pays for it.
    pub twin_id: u32,
    /// What it is about.
    pub contract_type: ContractData,
    /// Who brought the customer.
    pub solution_provider_id: Option<u64>,
}

impl Contract {
    /// The node it is on, if on any.
    #[must_use]
    pub fn node_id(&self) -> Option<u32> {
        match &self.contract_type {
            ContractData::NodeContract(contract) => Some(contract.node_id),
            ContractData::RentContract(contract) => Some(contract.node_id),
            ContractData::NameContract(_) => None,
        }
    }
}

/// What a contract uses of its node.
#[derive(Clone, Default, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo)]
pub struct ContractResources {
    /// The contract.
    pub contract_id: u64,
    /// What it uses.
    pub used: Resources,
}

/// What a contract sent and received.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo)]
pub struct NruConsumption {
    /// The contract.
    pub contract_id: u64,
    /// When it was read, in seconds of Unix time.
    pub timestamp: u64,
    /// Over how many seconds.
    pub window: u64,
    /// Bytes since the contract began.
    pub nru: u64,
}

/// How far a contract's network use is billed.
#[derive(Clone, Default, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo)]
pub struct ContractBillingInformation {
    /// Bytes of the last report.
    pub previous_nu_reported: u64,
    /// When it was, in seconds of Unix time.
    pub last_updated: u64,
    /// What waits for the next bill, in 10^-7 USD.
    pub amount_unbilled: u64,
}

/// What a contract has paid and owes.
#[derive(Clone, Default, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo)]
pub struct ContractPaymentState {
    /// Reserved and not distributed yet.
    pub standard_reserve: Balance,
    /// The same, of the farmer's extra fee.
    pub additional_reserve: Balance,
    /// Owed.
    pub standard_overdraft: Balance,
    /// The same, of the farmer's extra fee.
    pub additional_overdraft: Balance,
    /// Billed until here, in seconds of Unix time.
    pub last_updated_seconds: u64,
    /// Bills since the last distribution.
    pub cycles: u16,
}

/// How much less someone pays who holds much TFT.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo, MaxEncodedLen)]
pub enum DiscountLevel {
    /// Nothing.
    None,
    /// 20 percent.
    Default,
    /// 30 percent.
    Bronze,
    /// 40 percent.
    Silver,
    /// 60 percent.
    Gold,
}

/// One bill.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo)]
pub struct ContractBill {
    /// The contract.
    pub contract_id: u64,
    /// When, in seconds of Unix time.
    pub timestamp: u64,
    /// The discount it had.
    pub discount_level: DiscountLevel,
    /// How much.
    pub amount_billed: Balance,
}
