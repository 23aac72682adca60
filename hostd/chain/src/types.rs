//! What the chain keeps, as far as we use it.
//!
//! The fields carry the chain's names, because names are how they are found: a field that the chain
//! adds is passed over, and the order does not matter. Numbers are as wide as the chain has them. No
//! twin, farm, node or contract has the number 0; where the chain says 0 for "none", so do the raw
//! fields here, and the questions in [`crate::reads`] answer `None`.

use std::fmt;

use scale_decode::DecodeAsType;

pub use crate::text::Text;

/// The number of a block.
pub type BlockNumber = u32;

/// Units of the chain's money in one TFT.
pub const UNITS_PER_TFT: u128 = 10_000_000;

/// What an account has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, DecodeAsType)]
pub struct Account {
    /// How many transactions it has made.
    pub nonce: u32,
    /// Modules that keep it from being removed.
    pub consumers: u32,
    /// Modules that let it exist; 0 means that there is no such account.
    pub providers: u32,
    /// Modules that let it exist on their own.
    pub sufficients: u32,
    /// Its money.
    pub data: Balance,
}

/// An account's money, in units ([`UNITS_PER_TFT`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, DecodeAsType)]
pub struct Balance {
    /// What is not reserved.
    pub free: u128,
    /// What is set aside.
    pub reserved: u128,
    /// What of the free part can't be spent.
    pub frozen: u128,
}

/// Somebody who sends and receives messages.
#[derive(Debug, Clone, PartialEq, Eq, DecodeAsType)]
pub struct Twin {
    /// Its number.
    pub id: u32,
    /// The account's public key.
    pub account_id: [u8; 32],
    /// Host names of its relays, joined by `_`.
    pub relay: Option<Text>,
    /// What to encrypt with.
    pub pk: Option<Vec<u8>>,
}

/// Who runs nodes.
#[derive(Debug, Clone, PartialEq, Eq, DecodeAsType)]
pub struct Farm {
    /// Its number.
    pub id: u32,
    /// Its name, unique.
    pub name: Text,
    /// The farmer.
    pub twin_id: u32,
    /// What its nodes cost.
    pub pricing_policy_id: u32,
    /// What the council says of it.
    pub certification: FarmCertification,
    /// Addresses that contracts can reserve.
    pub public_ips: Vec<PublicIp>,
    /// Whether its nodes are rented as a whole only.
    pub dedicated_farm: bool,
}

/// What the council says of a farm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, DecodeAsType)]
pub enum FarmCertification {
    /// Nothing.
    NotCertified,
    /// It is certified.
    Gold,
}

/// A public address of a farm.
#[derive(Debug, Clone, PartialEq, Eq, DecodeAsType)]
pub struct PublicIp {
    /// Address and prefix length.
    pub ip: Text,
    /// Its gateway.
    pub gateway: Text,
    /// Who has it; 0 if nobody.
    pub contract_id: u64,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq, DecodeAsType)]
pub struct Node {
    /// Its number.
    pub id: u32,
    /// Whose it is.
    pub farm_id: u32,
    /// As whom it sends and receives.
    pub twin_id: u32,
    /// What it has.
    pub resources: Resources,
    /// Where it is.
    pub location: Location,
    /// How the internet reaches it directly.
    pub public_config: Option<PublicConfig>,
    /// When it was registered, in seconds since 1970.
    pub created: u64,
    /// What its farmer earns.
    pub farming_policy_id: u32,
    /// Its network cards.
    pub interfaces: Vec<Interface>,
    /// What the council says of it.
    pub certification: NodeCertification,
    /// Whether its firmware checked what it boots.
    pub secure_boot: bool,
    /// Whether it is itself a virtual machine.
    pub virtualized: bool,
    /// What its board says.
    pub serial_number: Option<Text>,
}

/// What a node has, or a contract uses. Sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, DecodeAsType)]
pub struct Resources {
    /// Hard disk.
    pub hru: u64,
    /// Solid-state disk.
    pub sru: u64,
    /// Logical processors.
    pub cru: u64,
    /// Memory.
    pub mru: u64,
}

/// A place, as the chain has it.
#[derive(Debug, Clone, PartialEq, Eq, Default, DecodeAsType)]
pub struct Location {
    /// The city's name.
    pub city: Text,
    /// The country's name.
    pub country: Text,
    /// Degrees, decimal.
    pub latitude: Text,
    /// Degrees, decimal.
    pub longitude: Text,
}

/// A network card of a node.
#[derive(Debug, Clone, PartialEq, Eq, DecodeAsType)]
pub struct Interface {
    /// What the node calls it.
    pub name: Text,
    /// Its hardware address.
    pub mac: Text,
    /// Its addresses.
    pub ips: Vec<Text>,
}

/// How the internet reaches a node directly.
#[derive(Debug, Clone, PartialEq, Eq, DecodeAsType)]
pub struct PublicConfig {
    /// By IPv4.
    pub ip4: Ip4,
    /// By IPv6.
    pub ip6: Option<Ip6>,
    /// By name, for gateways.
    pub domain: Option<Text>,
}

/// An IPv4 address with its gateway.
#[derive(Debug, Clone, PartialEq, Eq, DecodeAsType)]
pub struct Ip4 {
    /// Address and prefix length.
    pub ip: Text,
    /// The gateway.
    pub gw: Text,
}

/// An IPv6 address with its gateway.
#[derive(Debug, Clone, PartialEq, Eq, DecodeAsType)]
pub struct Ip6 {
    /// Address and prefix length.
    pub ip: Text,
    /// The gateway.
    pub gw: Text,
}

/// What the council says of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, DecodeAsType)]
pub enum NodeCertification {
    /// Nothing.
    Diy,
    /// It is certified.
    Certified,
}

/// Whether a node should run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, DecodeAsType)]
pub enum Power {
    /// It should.
    Up,
    /// It should be off.
    Down,
}

/// Whether a node runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, DecodeAsType)]
pub enum PowerState {
    /// It does.
    Up,
    /// It is off since that block.
    Down(BlockNumber),
}

/// What a node is, and what its farmer wants it to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, DecodeAsType)]
pub struct NodePower {
    /// What it says itself.
    pub state: PowerState,
    /// What the farmer wants.
    pub target: Power,
}

/// An agreement that somebody pays for.
#[derive(Debug, Clone, PartialEq, Eq, DecodeAsType)]
pub struct Contract {
    /// How far it got.
    pub state: ContractState,
    /// Its number.
    pub contract_id: u64,
    /// Who pays.
    pub twin_id: u32,
    /// What for.
    pub contract_type: ContractData,
    /// Who gets a share.
    pub solution_provider_id: Option<u64>,
}

/// How far a contract got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, DecodeAsType)]
pub enum ContractState {
    /// In force.
    Created,
    /// Over; usually it is removed at once.
    Deleted(Cause),
    /// Not paid for since that block.
    GracePeriod(u64),
}

/// Why a contract is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, DecodeAsType)]
pub enum Cause {
    /// Its owner wanted it.
    CanceledByUser,
    /// It was not paid for.
    OutOfFunds,
    /// The council wanted it.
    CanceledByCollective,
}

/// What a contract is about.
#[derive(Debug, Clone, PartialEq, Eq, DecodeAsType)]
pub enum ContractData {
    /// A deployment on a node.
    NodeContract(NodeContract),
    /// A name.
    NameContract(NameContract),
    /// A whole node.
    RentContract(RentContract),
}

/// A deployment on a node.
#[derive(Clone, PartialEq, Eq, DecodeAsType)]
pub struct NodeContract {
    /// The node.
    pub node_id: u32,
    /// The deployment's hash: 32 lower-case hexadecimal digits.
    pub deployment_hash: [u8; 32],
    /// What the owner wrote beside it.
    pub deployment_data: Vec<u8>,
    /// How many public addresses it has.
    pub public_ips: u32,
    /// Those addresses.
    pub public_ips_list: Vec<PublicIp>,
}

impl fmt::Debug for NodeContract {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeContract")
            .field("node_id", &self.node_id)
            .field("deployment_hash", &String::from_utf8_lossy(&self.deployment_hash))
            .field("deployment_data", &String::from_utf8_lossy(&self.deployment_data))
            .field("public_ips", &self.public_ips)
            .field("public_ips_list", &self.public_ips_list)
            .finish()
    }
}

/// A name, for gateways.
#[derive(Debug, Clone, PartialEq, Eq, DecodeAsType)]
pub struct NameContract {
    /// The name, unique on the grid.
    pub name: Text,
}

/// A whole node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, DecodeAsType)]
pub struct RentContract {
    /// The node.
    pub node_id: u32,
}

/// What a contract uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, DecodeAsType)]
pub struct ContractResources {
    /// The contract.
    pub contract_id: u64,
    /// What it uses.
    pub used: Resources,
}

/// How much a contract sent and received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, DecodeAsType)]
pub struct NruConsumption {
    /// The contract.
    pub contract_id: u64,
    /// When this was counted, in seconds since 1970.
    pub timestamp: u64,
    /// For how long, in seconds.
    pub window: u64,
    /// Bytes, both ways.
    pub nru: u64,
}

/// What a contract was charged.
#[derive(Debug, Clone, PartialEq, Eq, DecodeAsType)]
pub struct ContractBill {
    /// The contract.
    pub contract_id: u64,
    /// When, in seconds since 1970.
    pub timestamp: u64,
    /// For which discount its owner has enough.
    pub discount_level: DiscountLevel,
    /// Units of TFT.
    pub amount_billed: u128,
}

/// What an owner with enough money saves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, DecodeAsType)]
pub enum DiscountLevel {
    /// Nothing.
    None,
    /// The least.
    Default,
    /// More.
    Bronze,
    /// Still more.
    Silver,
    /// The most.
    Gold,
}

/// What TFT costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Price {
    /// In thousandths of a dollar, last reported.
    pub current_musd: u32,
    /// The same, on average.
    pub average_musd: u32,
}
