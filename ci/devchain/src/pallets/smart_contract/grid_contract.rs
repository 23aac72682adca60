//! How contracts are made, changed, reported on and ended.

use frame_support::{BoundedVec, ensure, traits::ConstU32};
use sp_runtime::{DispatchError, DispatchResult};

use super::{cost, pallet::*};
use crate::{
    pallets::tfgrid,
    types::{
        AccountId32, Bytes, CONTRACT_IPS_MAX, Cause, Contract, ContractData, ContractPaymentState as PaymentState,
        ContractResources, ContractState, DEPLOYMENT_DATA_MAX, Farm, NameContract, Node,
        NodeContract, NruConsumption, PricingPolicy, PublicIP, RentContract,
    },
};

/// The version of the structures in storage.
const CONTRACT_VERSION: u32 = 4;
/// The shortest name of a name contract.
const NAME_MIN: usize = 3;

/// What the maker of a node contract asks for.
pub(super) struct WantedNodeContract {
    pub(super) node_id: u32,
    pub(super) deployment_hash: [u8; 32],
    pub(super) deployment_data: Bytes<DEPLOYMENT_DATA_MAX>,
    pub(super) public_ips: u32,
}

impl<T: Config> Pallet<T> {
    pub(super) fn do_create_node_contract(
        who: &AccountId32,
        wanted: WantedNodeContract,
        solution_provider_id: Option<u64>,
    ) -> DispatchResult {
        let twin_id = Self::twin_of(who)?;
        let node_id = wanted.node_id;
        let node = Self::running_node(node_id)?;
        let farm = tfgrid::Farms::<T>::get(node.farm_id).ok_or(Error::<T>::FarmNotExists)?;
        match ActiveRentContractForNode::<T>::get(node_id) {
            Some(rent_id) => {
                let rent = Contracts::<T>::get(rent_id).ok_or(Error::<T>::ContractNotExists)?;
                ensure!(rent.twin_id == twin_id, Error::<T>::NodeNotAvailableToDeploy);
            }
            None => {
                let dedicated = farm.dedicated_farm || DedicatedNodesExtraFee::<T>::get(node_id) > 0;
                ensure!(!dedicated, Error::<T>::NodeNotAvailableToDeploy);
            }
        }
        let known = ContractIDByNodeIDAndHash::<T>::get(node_id, wanted.deployment_hash);
        if let Some(known) = Contracts::<T>::get(known) {
            let ended = matches!(known.state, ContractState::Deleted(_));
            ensure!(ended, Error::<T>::ContractIsNotUnique);
        }
        let contract_id = Self::next_contract_id()?;
        let public_ips_list = Self::reserve_ips(farm, contract_id, wanted.public_ips)?;
        let contract = NodeContract {
            node_id,
            deployment_hash: wanted.deployment_hash,
            deployment_data: wanted.deployment_data,
            public_ips: wanted.public_ips,
            public_ips_list,
        };
        ContractIDByNodeIDAndHash::<T>::insert(node_id, contract.deployment_hash, contract_id);
        ActiveNodeContracts::<T>::mutate(node_id, |contracts| contracts.push(contract_id));
        let data = ContractData::NodeContract(contract);
        Self::create_contract(contract_id, twin_id, data, solution_provider_id)
    }

    pub(super) fn do_update_node_contract(
        who: &AccountId32,
        contract_id: u64,
        deployment_hash: [u8; 32],
        deployment_data: Bytes<DEPLOYMENT_DATA_MAX>,
    ) -> DispatchResult {
        let mut contract = Contracts::<T>::get(contract_id).ok_or(Error::<T>::ContractNotExists)?;
        let twin_id = Self::twin_of(who)?;
        ensure!(contract.twin_id == twin_id, Error::<T>::TwinNotAuthorizedToUpdateContract);
        ensure!(
            contract.state == ContractState::Created,
            Error::<T>::CannotUpdateContractInGraceState
        );
        let ContractData::NodeContract(data) = &mut contract.contract_type else {
            return Err(Error::<T>::InvalidContractType.into());
        };
        ContractIDByNodeIDAndHash::<T>::remove(data.node_id, data.deployment_hash);
        ContractIDByNodeIDAndHash::<T>::insert(data.node_id, deployment_hash, contract_id);
        data.deployment_hash = deployment_hash;
        data.deployment_data = deployment_data;
        Contracts::<T>::insert(contract_id, &contract);
        Self::deposit_event(Event::ContractUpdated(contract));
        Ok(())
    }

    pub(super) fn do_create_name_contract(who: &AccountId32, name: Vec<u8>) -> DispatchResult {
        let twin_id = Self::twin_of(who)?;
        ensure!(name.len() >= NAME_MIN, Error::<T>::NameContractNameTooShort);
        let name = BoundedVec::try_from(name).map_err(|_| Error::<T>::NameContractNameTooLong)?;
        let valid = name.iter().all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_')
        });
        ensure!(valid, Error::<T>::NameNotValid);
        ensure!(ContractIDByNameRegistration::<T>::get(&name) == 0, Error::<T>::NameExists);
        let contract_id = Self::next_contract_id()?;
        ContractIDByNameRegistration::<T>::insert(&name, contract_id);
        let data = ContractData::NameContract(NameContract { name });
        Self::create_contract(contract_id, twin_id, data, None)
    }

    pub(super) fn do_create_rent_contract(
        who: &AccountId32,
        node_id: u32,
        solution_provider_id: Option<u64>,
    ) -> DispatchResult {
        ensure!(
            !ActiveRentContractForNode::<T>::contains_key(node_id),
            Error::<T>::NodeHasRentContract
        );
        let node = Self::running_node(node_id)?;
        ensure!(tfgrid::Farms::<T>::contains_key(node.farm_id), Error::<T>::FarmNotExists);
        let twin_id = Self::twin_of(who)?;
        ensure!(
            ActiveNodeContracts::<T>::get(node_id).is_empty(),
            Error::<T>::NodeNotAvailableToDeploy
        );
        let contract_id = Self::next_contract_id()?;
        ActiveRentContractForNode::<T>::insert(node_id, contract_id);
        let data = ContractData::RentContract(RentContract { node_id });
        Self::create_contract(contract_id, twin_id, data, solution_provider_id)
    }

    pub(super) fn do_cancel_contract(mut contract: Contract, cause: Cause) -> DispatchResult {
        if let ContractData::RentContract(rent) = &contract.contract_type {
            ensure!(
                ActiveNodeContracts::<T>::get(rent.node_id).is_empty(),
                Error::<T>::NodeHasActiveContracts
            );
        }
        contract.state = ContractState::Deleted(cause);
        Contracts::<T>::insert(contract.contract_id, &contract);
        Self::bill_contract(contract.contract_id)
    }

    pub(super) fn do_set_extra_fee(
        who: &AccountId32,
        node_id: u32,
        extra_fee: u64,
    ) -> DispatchResult {
        let twin_id = Self::twin_of(who)?;
        let node = tfgrid::Nodes::<T>::get(node_id).ok_or(Error::<T>::NodeNotExists)?;
        let farm = tfgrid::Farms::<T>::get(node.farm_id).ok_or(Error::<T>::FarmNotExists)?;
        ensure!(farm.twin_id == twin_id, Error::<T>::UnauthorizedToSetExtraFee);
        ensure!(
            !<Self as tfgrid::NodeContracts>::any_on(node_id),
            Error::<T>::NodeHasActiveContracts
        );
        DedicatedNodesExtraFee::<T>::insert(node_id, extra_fee);
        Self::deposit_event(Event::NodeExtraFeeSet { node_id, extra_fee });
        Ok(())
    }

    pub(super) fn do_report_resources(
        who: &AccountId32,
        reports: Vec<ContractResources>,
    ) -> DispatchResult {
        let node_id = Self::node_of(who)?;
        for report in reports {
            let Some(contract) = Contracts::<T>::get(report.contract_id) else { continue };
            Self::ensure_node_contract_on(&contract, node_id)?;
            NodeContractResources::<T>::insert(report.contract_id, &report);
            Self::deposit_event(Event::UpdatedUsedResources(report));
        }
        Ok(())
    }

    pub(super) fn do_add_nru_reports(
        who: &AccountId32,
        reports: Vec<NruConsumption>,
    ) -> DispatchResult {
        let node_id = Self::node_of(who)?;
        let policy = Self::pricing_policy_of_node(node_id)?;
        for report in reports {
            let Some(contract) = Contracts::<T>::get(report.contract_id) else { continue };
            Self::ensure_node_contract_on(&contract, node_id)?;
            let mut billing = ContractBillingInformationByID::<T>::get(report.contract_id);
            if report.timestamp < billing.last_updated {
                continue;
            }
            // A counter below the last one began anew, with the machine it counts for.
            let used = report.nru.checked_sub(billing.previous_nu_reported).unwrap_or(report.nru);
            let due = u64::try_from(cost::of_traffic(&policy, used)).unwrap_or(u64::MAX);
            billing.amount_unbilled = billing.amount_unbilled.saturating_add(due);
            billing.previous_nu_reported = report.nru;
            billing.last_updated = report.timestamp;
            ContractBillingInformationByID::<T>::insert(report.contract_id, billing);
            Self::deposit_event(Event::NruConsumptionReportReceived(report));
        }
        Ok(())
    }

    /// Forgets a contract that has ended and is billed, and says so.
    pub(super) fn remove_contract(contract: &Contract) -> DispatchResult {
        let contract_id = contract.contract_id;
        let event = match &contract.contract_type {
            ContractData::NodeContract(node_contract) => {
                Self::free_ips(contract_id, node_contract)?;
                let node_id = node_contract.node_id;
                let hash = node_contract.deployment_hash;
                if ContractIDByNodeIDAndHash::<T>::get(node_id, hash) == contract_id {
                    ContractIDByNodeIDAndHash::<T>::remove(node_id, hash);
                }
                ActiveNodeContracts::<T>::mutate(node_id, |ids| ids.retain(|id| *id != contract_id));
                NodeContractResources::<T>::remove(contract_id);
                ContractBillingInformationByID::<T>::remove(contract_id);
                Event::NodeContractCanceled { contract_id, node_id, twin_id: contract.twin_id }
            }
            ContractData::NameContract(name_contract) => {
                ContractIDByNameRegistration::<T>::remove(&name_contract.name);
                Event::NameContractCanceled { contract_id }
            }
            ContractData::RentContract(rent_contract) => {
                ActiveRentContractForNode::<T>::remove(rent_contract.node_id);
                Event::RentContractCanceled { contract_id }
            }
        };
        Contracts::<T>::remove(contract_id);
        ContractPaymentState::<T>::remove(contract_id);
        Self::leave_billing_loop(contract_id);
        Self::deposit_event(event);
        Ok(())
    }

    pub(super) fn pricing_policy_of_node(node_id: u32) -> Result<PricingPolicy, DispatchError> {
        let node = tfgrid::Nodes::<T>::get(node_id).ok_or(Error::<T>::NodeNotExists)?;
        let farm = tfgrid::Farms::<T>::get(node.farm_id).ok_or(Error::<T>::FarmNotExists)?;
        tfgrid::PricingPolicies::<T>::get(farm.pricing_policy_id)
            .ok_or_else(|| Error::<T>::PricingPolicyNotExists.into())
    }

    /// The last step of every creation.
    fn create_contract(
        contract_id: u64,
        twin_id: u32,
        contract_type: ContractData,
        solution_provider_id: Option<u64>,
    ) -> DispatchResult {
        // This chain keeps no solution providers, so there is none by any number.
        ensure!(solution_provider_id.is_none(), Error::<T>::NoSuchSolutionProvider);
        let contract = Contract {
            version: CONTRACT_VERSION,
            state: ContractState::Created,
            contract_id,
            twin_id,
            contract_type,
            solution_provider_id,
        };
        let payment = PaymentState {
            last_updated_seconds: tfgrid::Pallet::<T>::now_seconds(),
            ..PaymentState::default()
        };
        ContractID::<T>::put(contract_id);
        Contracts::<T>::insert(contract_id, &contract);
        ContractPaymentState::<T>::insert(contract_id, payment);
        Self::join_billing_loop(contract_id);
        Self::deposit_event(Event::ContractCreated(contract));
        Ok(())
    }

    fn next_contract_id() -> Result<u64, DispatchError> {
        ContractID::<T>::get().checked_add(1).ok_or_else(|| Error::<T>::NumOverflow.into())
    }

    fn twin_of(who: &AccountId32) -> Result<u32, DispatchError> {
        tfgrid::TwinIdByAccountID::<T>::get(who).ok_or_else(|| Error::<T>::TwinNotExists.into())
    }

    fn node_of(who: &AccountId32) -> Result<u32, DispatchError> {
        match tfgrid::NodeIdByTwinID::<T>::get(Self::twin_of(who)?) {
            0 => Err(Error::<T>::NodeNotExists.into()),
            node_id => Ok(node_id),
        }
    }

    /// The node, when it neither sleeps nor is about to.
    fn running_node(node_id: u32) -> Result<Node, DispatchError> {
        let node = tfgrid::Nodes::<T>::get(node_id).ok_or(Error::<T>::NodeNotExists)?;
        let standby = tfgrid::NodePower::<T>::get(node_id).is_standby();
        ensure!(!standby, Error::<T>::NodeNotAvailableToDeploy);
        Ok(node)
    }

    fn ensure_node_contract_on(contract: &Contract, node_id: u32) -> DispatchResult {
        let on = match &contract.contract_type {
            ContractData::NodeContract(contract) => contract.node_id == node_id,
            ContractData::NameContract(_) | ContractData::RentContract(_) => false,
        };
        ensure!(on, Error::<T>::NodeNotAuthorizedToComputeReport);
        Ok(())
    }

    /// Takes `count` free addresses of the farm for a contract.
    fn reserve_ips(
        mut farm: Farm,
        contract_id: u64,
        count: u32,
    ) -> Result<BoundedVec<PublicIP, ConstU32<CONTRACT_IPS_MAX>>, DispatchError> {
        let mut reserved = BoundedVec::default();
        if count == 0 {
            return Ok(reserved);
        }
        let count = count as usize;
        ensure!(farm.public_ips.len() >= count, Error::<T>::FarmHasNotEnoughPublicIPs);
        for ip in farm.public_ips.iter_mut().filter(|ip| ip.contract_id == 0).take(count) {
            ip.contract_id = contract_id;
            reserved.try_push(ip.clone()).map_err(|_| Error::<T>::FailedToReserveIP)?;
        }
        ensure!(reserved.len() == count, Error::<T>::FarmHasNotEnoughPublicIPsFree);
        tfgrid::Farms::<T>::insert(farm.id, farm);
        Self::deposit_event(Event::IPsReserved { contract_id, public_ips: reserved.clone() });
        Ok(reserved)
    }

    fn free_ips(contract_id: u64, contract: &NodeContract) -> DispatchResult {
        if contract.public_ips == 0 {
            return Ok(());
        }
        let node = tfgrid::Nodes::<T>::get(contract.node_id).ok_or(Error::<T>::NodeNotExists)?;
        tfgrid::Farms::<T>::mutate(node.farm_id, |farm| {
            for ip in farm.iter_mut().flat_map(|farm| farm.public_ips.iter_mut()) {
                if ip.contract_id == contract_id {
                    ip.contract_id = 0;
                }
            }
        });
        let public_ips = contract.public_ips_list.clone();
        Self::deposit_event(Event::IPsFreed { contract_id, public_ips });
        Ok(())
    }
}
