//! Typed reads of what the chain holds after a block, for whoever embeds it.

use codec::Decode;
use frame_support::storage::StoragePrefixedMap as _;

use super::DevChain;
use crate::{
    pallets::{kv_store, smart_contract, tfgrid, tft_price},
    runtime::Runtime,
    types::{
        AccountId32, Balance, BlockNumber, Contract, ContractBillingInformation,
        ContractPaymentState, ContractResources, Farm, Node, NodePower, PricingPolicy, Twin, text,
    },
};

/// What an account holds.
pub type AccountInfo = frame_system::AccountInfo<u32, pallet_balances::AccountData<Balance>>;

/// The chain as it was after one block.
#[derive(Clone)]
pub struct View {
    chain: DevChain,
    number: BlockNumber,
}

impl View {
    pub(super) fn new(chain: DevChain, number: BlockNumber) -> Self {
        Self { chain, number }
    }

    /// The block.
    #[must_use]
    pub fn number(&self) -> BlockNumber {
        self.number
    }

    /// The time of the block, in milliseconds of Unix time.
    #[must_use]
    pub fn timestamp_ms(&self) -> u64 {
        self.value(&pallet_timestamp::Now::<Runtime>::hashed_key()).unwrap_or(0)
    }

    /// An account; an empty one when nobody has it.
    #[must_use]
    pub fn account(&self, account: &AccountId32) -> AccountInfo {
        self.value(&frame_system::Account::<Runtime>::hashed_key_for(account)).unwrap_or_default()
    }

    /// A twin.
    #[must_use]
    pub fn twin(&self, id: u32) -> Option<Twin> {
        self.value(&tfgrid::Twins::<Runtime>::hashed_key_for(id))
    }

    /// The twin of an account.
    #[must_use]
    pub fn twin_of_account(&self, account: &AccountId32) -> Option<u32> {
        self.value(&tfgrid::TwinIdByAccountID::<Runtime>::hashed_key_for(account))
    }

    /// All twins, by number.
    #[must_use]
    pub fn twins(&self) -> Vec<Twin> {
        let mut twins: Vec<Twin> = self.values(&tfgrid::Twins::<Runtime>::final_prefix());
        twins.sort_by_key(|twin| twin.id);
        twins
    }

    /// A farm.
    #[must_use]
    pub fn farm(&self, id: u32) -> Option<Farm> {
        self.value(&tfgrid::Farms::<Runtime>::hashed_key_for(id))
    }

    /// All farms, by number.
    #[must_use]
    pub fn farms(&self) -> Vec<Farm> {
        let mut farms: Vec<Farm> = self.values(&tfgrid::Farms::<Runtime>::final_prefix());
        farms.sort_by_key(|farm| farm.id);
        farms
    }

    /// The Stellar address a farm is paid at.
    #[must_use]
    pub fn payout_address(&self, farm_id: u32) -> Option<String> {
        self.value::<Vec<u8>>(&tfgrid::FarmPayoutV2AddressByFarmID::<Runtime>::hashed_key_for(
            farm_id,
        ))
        .map(|address| text(&address))
    }

    /// A node.
    #[must_use]
    pub fn node(&self, id: u32) -> Option<Node> {
        self.value(&tfgrid::Nodes::<Runtime>::hashed_key_for(id))
    }

    /// All nodes, by number.
    #[must_use]
    pub fn nodes(&self) -> Vec<Node> {
        let mut nodes: Vec<Node> = self.values(&tfgrid::Nodes::<Runtime>::final_prefix());
        nodes.sort_by_key(|node| node.id);
        nodes
    }

    /// The power of a node.
    #[must_use]
    pub fn node_power(&self, node_id: u32) -> NodePower {
        self.value(&tfgrid::NodePower::<Runtime>::hashed_key_for(node_id)).unwrap_or_default()
    }

    /// A contract that has not ended.
    #[must_use]
    pub fn contract(&self, id: u64) -> Option<Contract> {
        self.value(&smart_contract::Contracts::<Runtime>::hashed_key_for(id))
    }

    /// All contracts that have not ended, by number.
    #[must_use]
    pub fn contracts(&self) -> Vec<Contract> {
        let mut contracts: Vec<Contract> =
            self.values(&smart_contract::Contracts::<Runtime>::final_prefix());
        contracts.sort_by_key(|contract| contract.contract_id);
        contracts
    }

    /// The node contracts of a node.
    #[must_use]
    pub fn active_contracts(&self, node_id: u32) -> Vec<u64> {
        self.value(&smart_contract::ActiveNodeContracts::<Runtime>::hashed_key_for(node_id))
            .unwrap_or_default()
    }

    /// The contract under which a node is rented.
    #[must_use]
    pub fn rent_contract(&self, node_id: u32) -> Option<u64> {
        self.value(&smart_contract::ActiveRentContractForNode::<Runtime>::hashed_key_for(node_id))
    }

    /// What a contract uses, as its node reported.
    #[must_use]
    pub fn contract_resources(&self, contract_id: u64) -> Option<ContractResources> {
        self.value(&smart_contract::NodeContractResources::<Runtime>::hashed_key_for(contract_id))
    }

    /// How far a contract's network use is billed.
    #[must_use]
    pub fn billing_information(&self, contract_id: u64) -> ContractBillingInformation {
        let key =
            smart_contract::ContractBillingInformationByID::<Runtime>::hashed_key_for(contract_id);
        self.value(&key).unwrap_or_default()
    }

    /// What a contract has paid and owes.
    #[must_use]
    pub fn payment_state(&self, contract_id: u64) -> Option<ContractPaymentState> {
        self.value(&smart_contract::ContractPaymentState::<Runtime>::hashed_key_for(contract_id))
    }

    /// What the farmer takes for a whole node, in thousandths of a dollar a month.
    #[must_use]
    pub fn extra_fee(&self, node_id: u32) -> u64 {
        self.value(&smart_contract::DedicatedNodesExtraFee::<Runtime>::hashed_key_for(node_id))
            .unwrap_or(0)
    }

    /// A pricing policy.
    #[must_use]
    pub fn pricing_policy(&self, id: u32) -> Option<PricingPolicy> {
        self.value(&tfgrid::PricingPolicies::<Runtime>::hashed_key_for(id))
    }

    /// All pricing policies, by number.
    #[must_use]
    pub fn pricing_policies(&self) -> Vec<PricingPolicy> {
        let mut policies: Vec<PricingPolicy> =
            self.values(&tfgrid::PricingPolicies::<Runtime>::final_prefix());
        policies.sort_by_key(|policy| policy.id);
        policies
    }

    /// The price of a TFT, in thousandths of a dollar.
    #[must_use]
    pub fn tft_price(&self) -> u32 {
        self.value(&tft_price::TftPrice::<Runtime>::hashed_key()).unwrap_or(0)
    }

    /// The version nodes should run, as the council set it.
    #[must_use]
    pub fn zos_version(&self) -> String {
        let version: Option<Vec<u8>> = self.value(&tfgrid::ZosVersion::<Runtime>::hashed_key());
        text(&version.unwrap_or_default())
    }

    /// What an account keeps under a key.
    #[must_use]
    pub fn kv(&self, account: &AccountId32, key: &[u8]) -> Option<Vec<u8>> {
        self.value(&kv_store::TFKVStore::<Runtime>::hashed_key_for(account, key))
    }

    fn value<V: Decode>(&self, key: &[u8]) -> Option<V> {
        self.chain.inner.ledger().value(key, self.number)
    }

    fn values<V: Decode>(&self, prefix: &[u8]) -> Vec<V> {
        let ledger = self.chain.inner.ledger();
        ledger
            .history
            .pairs(prefix, None, self.number)
            .filter_map(|(_, mut value)| V::decode(&mut value).ok())
            .collect()
    }
}
