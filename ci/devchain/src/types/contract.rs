//! Contracts, what they use, and what they are billed.

use codec::{Decode, DecodeWithMemTracking, Encode, MaxEncodedLen};
use frame_support::{BoundedVec, traits::ConstU32};
use scale_info::TypeInfo;

use super::{Balance, Bytes, CONTRACT_IPS_MAX, DEPLOYMENT_DATA_MAX, NAME_MAX, PublicIP, Resources};

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
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    Debug,
    Encode,
    Decode,
    DecodeWithMemTracking,
    TypeInfo,
    MaxEncodedLen,
)]
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
