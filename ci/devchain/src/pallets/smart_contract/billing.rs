//! The billing loop, the grace period and its end, and where the money goes.
//!
//! Each contract has a place in a loop of `BillingFrequency` blocks, by its number. When its turn
//! comes it is charged for the seconds since its last bill. What is charged is reserved on the
//! owner's account, and distributed every [`Config::DistributionFrequency`] bills and at the end. What
//! cannot be reserved is owed: the contract is in its grace period until all of it is paid, or until
//! [`Config::GracePeriod`] blocks have gone by.

use frame_support::{
    storage::with_storage_layer,
    traits::{Currency, ExistenceRequirement, Get, ReservableCurrency},
};
use sp_runtime::{DispatchError, DispatchResult, traits::UniqueSaturatedInto};

use super::{cost, pallet::*};
use crate::{
    pallets::{tfgrid, tft_price},
    types::{
        AccountId32, Balance, Cause, Contract, ContractBill, ContractData,
        ContractPaymentState as PaymentState, ContractState, NodeCertification,
    },
};

/// The shares of what is distributed, in percent; the rest is burned.
const FOUNDATION_PERCENT: Balance = 10;
const STAKING_POOL_PERCENT: Balance = 5;
const SALES_PERCENT: Balance = 50;

/// What a contract costs over some seconds, in 10^-7 USD.
struct Due {
    standard: u128,
    additional: u128,
}

/// What a bill takes.
struct Charge {
    standard: Balance,
    additional: Balance,
}

impl<T: Config> Pallet<T> {
    /// Gives a new contract its place in the loop.
    pub(super) fn join_billing_loop(contract_id: u64) {
        let index = contract_id % BillingFrequency::<T>::get();
        ContractsToBillAt::<T>::mutate(index, |contracts| contracts.push(contract_id));
    }

    /// Takes an ended contract out of the loop. The frequency may have changed since it joined.
    pub(super) fn leave_billing_loop(contract_id: u64) {
        let index = contract_id % BillingFrequency::<T>::get();
        let leave = |index: u64| {
            let mut contracts = ContractsToBillAt::<T>::get(index);
            let count = contracts.len();
            contracts.retain(|id| *id != contract_id);
            if contracts.len() == count {
                return false;
            }
            if contracts.is_empty() {
                ContractsToBillAt::<T>::remove(index);
            } else {
                ContractsToBillAt::<T>::insert(index, contracts);
            }
            true
        };
        if !leave(index) {
            let places: Vec<u64> = ContractsToBillAt::<T>::iter_keys().collect();
            places.into_iter().any(leave);
        }
    }

    /// Bills the contracts whose turn it is. A bill that fails changes nothing, and is tried again the
    /// next time round.
    pub(super) fn bill_contracts_of_block(block: u64) {
        let index = block % BillingFrequency::<T>::get();
        for contract_id in ContractsToBillAt::<T>::get(index) {
            if let Err(error) = with_storage_layer(|| Self::bill_contract(contract_id)) {
                tracing::warn!(contract_id, ?error, "a contract could not be billed");
            }
        }
    }

    /// Charges a contract for the time since its last bill, and removes it when it has ended.
    pub(super) fn bill_contract(contract_id: u64) -> DispatchResult {
        let mut contract = Contracts::<T>::get(contract_id).ok_or(Error::<T>::ContractNotExists)?;
        let mut payment = ContractPaymentState::<T>::get(contract_id)
            .ok_or(Error::<T>::ContractPaymentStateNotExists)?;
        let payer = tfgrid::Twins::<T>::get(contract.twin_id)
            .ok_or(Error::<T>::TwinNotExists)?
            .account_id;
        let now = tfgrid::Pallet::<T>::now_seconds();
        let seconds = now.saturating_sub(payment.last_updated_seconds);
        payment.last_updated_seconds = payment.last_updated_seconds.max(now);
        let due = Self::due(&contract, seconds)?;
        let charge = Self::charge(&mut payment, &contract, &due, seconds, &payer)?;
        let paid = Self::reserve_due(&mut payment, contract_id, &payer, charge)?;
        Self::follow_grace_period(&mut contract, &payment)?;
        payment.cycles = payment.cycles.saturating_add(u16::from(paid));
        let ended = matches!(contract.state, ContractState::Deleted(_));
        if ended || payment.cycles >= T::DistributionFrequency::get() {
            Self::distribute(&contract, &mut payment, &payer)?;
        }
        ContractPaymentState::<T>::insert(contract_id, payment);
        Contracts::<T>::insert(contract_id, &contract);
        if ended { Self::end(&contract) } else { Ok(()) }
    }

    /// Removes an ended contract, and with a node the contracts on it.
    fn end(contract: &Contract) -> DispatchResult {
        if let ContractData::RentContract(rent) = &contract.contract_type {
            for id in ActiveNodeContracts::<T>::get(rent.node_id) {
                let Some(mut tenant) = Contracts::<T>::get(id) else { continue };
                tenant.state = contract.state;
                Contracts::<T>::insert(id, &tenant);
                Self::bill_contract(id)?;
            }
        }
        Self::remove_contract(contract)
    }

    /// What a contract costs over `seconds`.
    fn due(contract: &Contract, seconds: u64) -> Result<Due, DispatchError> {
        let mut due = Due { standard: 0, additional: 0 };
        match &contract.contract_type {
            ContractData::NameContract(_) => {
                let policy = tfgrid::PricingPolicies::<T>::get(1)
                    .ok_or(Error::<T>::PricingPolicyNotExists)?;
                due.standard = cost::of_name(&policy, seconds);
            }
            ContractData::NodeContract(node_contract) => {
                let policy = Self::pricing_policy_of_node(node_contract.node_id)?;
                let rented = ActiveRentContractForNode::<T>::contains_key(node_contract.node_id);
                if !rented {
                    let used = NodeContractResources::<T>::get(contract.contract_id).used;
                    due.standard = cost::of_resources(&policy, &used, seconds);
                }
                due.standard += cost::of_public_ips(&policy, node_contract.public_ips, seconds);
                let unbilled =
                    ContractBillingInformationByID::<T>::mutate(contract.contract_id, |billing| {
                        core::mem::take(&mut billing.amount_unbilled)
                    });
                due.standard += u128::from(unbilled);
                due.standard = Self::on_node(node_contract.node_id, due.standard);
            }
            ContractData::RentContract(rent) => {
                if Self::waives_rent(contract, rent.node_id) {
                    Self::deposit_event(Event::RentWaived { contract_id: contract.contract_id });
                    return Ok(due);
                }
                let policy = Self::pricing_policy_of_node(rent.node_id)?;
                let node = tfgrid::Nodes::<T>::get(rent.node_id).ok_or(Error::<T>::NodeNotExists)?;
                let whole = cost::of_resources(&policy, &node.resources, seconds);
                let whole = cost::discounted(whole, policy.discount_for_dedication_nodes);
                due.standard = Self::on_node(rent.node_id, whole);
                let fee = DedicatedNodesExtraFee::<T>::get(rent.node_id);
                due.additional = cost::of_extra_fee(fee, seconds);
            }
        }
        Ok(due)
    }

    /// A rented node that sleeps costs nothing, unless the contract ends now.
    fn waives_rent(contract: &Contract, node_id: u32) -> bool {
        let ended = matches!(contract.state, ContractState::Deleted(_));
        !ended && tfgrid::NodePower::<T>::get(node_id).is_standby()
    }

    fn on_node(node_id: u32, standard: u128) -> u128 {
        let certified = tfgrid::Nodes::<T>::get(node_id)
            .is_some_and(|node| node.certification == NodeCertification::Certified);
        if certified { cost::certified(standard) } else { standard }
    }

    /// What is due in TFT after the discount, with what was owed before. Says the bill.
    fn charge(
        payment: &mut PaymentState,
        contract: &Contract,
        due: &Due,
        seconds: u64,
        payer: &AccountId32,
    ) -> Result<Charge, DispatchError> {
        let mut charge = Charge {
            standard: core::mem::take(&mut payment.standard_overdraft),
            additional: core::mem::take(&mut payment.additional_overdraft),
        };
        if due.standard == 0 && due.additional == 0 {
            return Ok(charge);
        }
        let price = tft_price::Pallet::<T>::billing_price();
        let in_tft = |units| cost::in_tft(units, price).ok_or(Error::<T>::TFTPriceValueError);
        let full = in_tft(due.standard)?;
        let discount_level = cost::discount(Self::spendable(payer), full, seconds);
        let standard = cost::discounted(full, cost::percent(discount_level));
        let additional = in_tft(due.additional)?;
        charge.standard = charge.standard.saturating_add(standard);
        charge.additional = charge.additional.saturating_add(additional);
        Self::deposit_event(Event::ContractBilled(ContractBill {
            contract_id: contract.contract_id,
            timestamp: payment.last_updated_seconds,
            discount_level,
            amount_billed: standard.saturating_add(additional),
        }));
        Ok(charge)
    }

    /// Reserves what is due as far as the account goes; the rest is owed. Whether anything was paid.
    fn reserve_due(
        payment: &mut PaymentState,
        contract_id: u64,
        payer: &AccountId32,
        charge: Charge,
    ) -> Result<bool, DispatchError> {
        let spendable = Self::spendable(payer);
        let standard = charge.standard.min(spendable);
        let additional = charge.additional.min(spendable - standard);
        let paid = standard.saturating_add(additional);
        T::Currency::reserve(payer, paid)?;
        payment.standard_reserve = payment.standard_reserve.saturating_add(standard);
        payment.additional_reserve = payment.additional_reserve.saturating_add(additional);
        payment.standard_overdraft = charge.standard - standard;
        payment.additional_overdraft = charge.additional - additional;
        let overdraft = payment.standard_overdraft.saturating_add(payment.additional_overdraft);
        if overdraft > 0 {
            Self::deposit_event(Event::ContractPaymentOverdrawn {
                contract_id,
                timestamp: payment.last_updated_seconds,
                partially_billed_amount: paid,
                overdraft,
            });
        }
        Ok(paid > 0)
    }

    /// What the account can pay and still exist.
    fn spendable(payer: &AccountId32) -> Balance {
        T::Currency::free_balance(payer).saturating_sub(T::Currency::minimum_balance())
    }

    /// Moves the contract into its grace period, out of it, or to its end.
    fn follow_grace_period(contract: &mut Contract, payment: &PaymentState) -> DispatchResult {
        let owes = payment.standard_overdraft > 0 || payment.additional_overdraft > 0;
        let block: u64 = frame_system::Pallet::<T>::block_number().unique_saturated_into();
        match contract.state {
            ContractState::Created if owes => {
                Self::start_grace_period(contract, block);
                Self::for_tenants(contract, |tenant| {
                    if tenant.state == ContractState::Created {
                        Self::start_grace_period(tenant, block);
                    }
                });
            }
            ContractState::GracePeriod(_) if !owes && !Self::landlord_owes(contract) => {
                Self::end_grace_period(contract);
                Self::for_tenants(contract, |tenant| {
                    let owes = ContractPaymentState::<T>::get(tenant.contract_id)
                        .is_some_and(|payment| {
                            payment.standard_overdraft > 0 || payment.additional_overdraft > 0
                        });
                    if matches!(tenant.state, ContractState::GracePeriod(_)) && !owes {
                        Self::end_grace_period(tenant);
                    }
                });
            }
            ContractState::GracePeriod(since) if owes => {
                let grace_period = T::GracePeriod::get();
                if block.saturating_sub(since) >= grace_period {
                    let contract_id = contract.contract_id;
                    Self::deposit_event(Event::ContractGracePeriodElapsed {
                        contract_id,
                        grace_period,
                    });
                    contract.state = ContractState::Deleted(Cause::OutOfFunds);
                }
            }
            ContractState::Created
            | ContractState::GracePeriod(_)
            | ContractState::Deleted(_) => {}
        }
        Ok(())
    }

    fn start_grace_period(contract: &mut Contract, block_number: u64) {
        contract.state = ContractState::GracePeriod(block_number);
        Self::deposit_event(Event::ContractGracePeriodStarted {
            contract_id: contract.contract_id,
            node_id: contract.node_id().unwrap_or(0),
            twin_id: contract.twin_id,
            block_number,
        });
    }

    fn end_grace_period(contract: &mut Contract) {
        contract.state = ContractState::Created;
        Self::deposit_event(Event::ContractGracePeriodEnded {
            contract_id: contract.contract_id,
            node_id: contract.node_id().unwrap_or(0),
            twin_id: contract.twin_id,
        });
    }

    /// Whether the contract is on a rented node whose rent is itself in its grace period.
    fn landlord_owes(contract: &Contract) -> bool {
        let ContractData::NodeContract(node_contract) = &contract.contract_type else {
            return false;
        };
        ActiveRentContractForNode::<T>::get(node_contract.node_id)
            .and_then(Contracts::<T>::get)
            .is_some_and(|rent| matches!(rent.state, ContractState::GracePeriod(_)))
    }

    /// Changes the contracts on a rented node; nothing for any other contract.
    fn for_tenants(contract: &Contract, change: impl Fn(&mut Contract)) {
        let ContractData::RentContract(rent) = &contract.contract_type else { return };
        for id in ActiveNodeContracts::<T>::get(rent.node_id) {
            if let Some(mut tenant) = Contracts::<T>::get(id) {
                change(&mut tenant);
                Contracts::<T>::insert(id, tenant);
            }
        }
    }

    /// Gives what was reserved to those it is for.
    fn distribute(
        contract: &Contract,
        payment: &mut PaymentState,
        payer: &AccountId32,
    ) -> DispatchResult {
        payment.cycles = 0;
        let standard = core::mem::take(&mut payment.standard_reserve);
        let additional = core::mem::take(&mut payment.additional_reserve);
        if standard == 0 && additional == 0 {
            return Ok(());
        }
        T::Currency::unreserve(payer, standard.saturating_add(additional));
        let policy =
            tfgrid::PricingPolicies::<T>::get(1).ok_or(Error::<T>::PricingPolicyNotExists)?;
        let shares = [
            (policy.foundation_account, FOUNDATION_PERCENT),
            (T::StakingPoolAccount::get(), STAKING_POOL_PERCENT),
            (policy.certified_sales_account, SALES_PERCENT),
        ];
        let mut burned = standard;
        for (account, percent) in shares {
            let share = standard.saturating_mul(percent) / 100;
            Self::pay(payer, &account, share)?;
            burned = burned.saturating_sub(share);
        }
        let (lost, _) = T::Currency::slash(payer, burned);
        drop(lost);
        Self::deposit_event(Event::TokensBurned {
            contract_id: contract.contract_id,
            amount: burned,
        });
        if let Some(farmer) = Self::farmer(contract) {
            Self::pay(payer, &farmer, additional)?;
        }
        Self::deposit_event(Event::RewardDistributed {
            contract_id: contract.contract_id,
            standard_rewards: standard,
            additional_rewards: additional,
        });
        Ok(())
    }

    fn pay(from: &AccountId32, to: &AccountId32, amount: Balance) -> DispatchResult {
        if amount == 0 || from == to {
            return Ok(());
        }
        T::Currency::transfer(from, to, amount, ExistenceRequirement::AllowDeath)
            .map_err(|_| Error::<T>::RewardDistributionError.into())
    }

    /// The account of the farmer on whose node the contract is.
    fn farmer(contract: &Contract) -> Option<AccountId32> {
        let node = tfgrid::Nodes::<T>::get(contract.node_id()?)?;
        let farm = tfgrid::Farms::<T>::get(node.farm_id)?;
        tfgrid::Twins::<T>::get(farm.twin_id).map(|twin| twin.account_id)
    }
}
