//! Farms, their public addresses, and the policies under which everything is priced.

use frame_support::ensure;
use sp_runtime::DispatchResult;

use super::{check, pallet::*};
use crate::types::{
    AccountId32, Bytes, FARM_NAME_MAX, Farm, FarmCertification, FarmingPolicy, IP4,
    NodeCertification, Policy, PricingPolicy, PublicIP, Unit,
};

/// The shortest name of a farm.
const FARM_NAME_MIN: usize = 3;

impl<T: Config> Pallet<T> {
    pub(super) fn do_create_farm(
        account_id: &AccountId32,
        name: Bytes<FARM_NAME_MAX>,
        public_ips: &[IP4],
    ) -> DispatchResult {
        let twin_id = Self::twin_of(account_id)?;
        Self::check_farm_name(&name)?;
        ensure!(FarmIdByName::<T>::get(name.as_slice()) == 0, Error::<T>::FarmExists);
        let id = FarmID::<T>::get().checked_add(1).ok_or(Error::<T>::StorageOverflow)?;
        let mut farm = Farm {
            version: 4,
            id,
            name: name.clone(),
            twin_id,
            pricing_policy_id: 1,
            certification: FarmCertification::NotCertified,
            public_ips: Default::default(),
            dedicated_farm: false,
            farming_policy_limits: None,
        };
        for ip in public_ips {
            Self::push_farm_ip(&mut farm, ip.clone())?;
        }
        Farms::<T>::insert(id, &farm);
        FarmIdByName::<T>::insert(name.into_inner(), id);
        FarmID::<T>::put(id);
        Self::deposit_event(Event::FarmStored(farm));
        Ok(())
    }

    pub(super) fn do_update_farm(
        account_id: &AccountId32,
        farm_id: u32,
        name: Bytes<FARM_NAME_MAX>,
    ) -> DispatchResult {
        let twin_id = Self::twin_of(account_id)?;
        let mut farm = Farms::<T>::get(farm_id).ok_or(Error::<T>::FarmNotExists)?;
        ensure!(farm.twin_id == twin_id, Error::<T>::CannotUpdateFarmWrongTwin);
        Self::check_farm_name(&name)?;
        let holder = FarmIdByName::<T>::get(name.as_slice());
        ensure!(holder == 0 || holder == farm_id, Error::<T>::InvalidFarmName);
        FarmIdByName::<T>::remove(farm.name.as_slice());
        FarmIdByName::<T>::insert(name.as_slice().to_vec(), farm_id);
        farm.name = name;
        Self::store_farm(farm);
        Ok(())
    }

    pub(super) fn do_set_payout_address(
        account_id: &AccountId32,
        farm_id: u32,
        stellar_address: Vec<u8>,
    ) -> DispatchResult {
        Self::farm_of_farmer(account_id, farm_id)?;
        FarmPayoutV2AddressByFarmID::<T>::insert(farm_id, &stellar_address);
        Self::deposit_event(Event::FarmPayoutV2AddressRegistered(farm_id, stellar_address));
        Ok(())
    }

    pub(super) fn do_set_farm_certification(
        farm_id: u32,
        certification: FarmCertification,
    ) -> DispatchResult {
        let mut farm = Farms::<T>::get(farm_id).ok_or(Error::<T>::FarmNotExists)?;
        farm.certification = certification;
        Farms::<T>::insert(farm_id, farm);
        Self::deposit_event(Event::FarmCertificationSet(farm_id, certification));
        Ok(())
    }

    pub(super) fn do_add_farm_ip(
        account_id: &AccountId32,
        farm_id: u32,
        ip: IP4,
    ) -> DispatchResult {
        let mut farm = Self::farm_of_farmer(account_id, farm_id)?;
        Self::push_farm_ip(&mut farm, ip)?;
        Self::store_farm(farm);
        Ok(())
    }

    pub(super) fn do_remove_farm_ip(
        account_id: &AccountId32,
        farm_id: u32,
        ip: &[u8],
    ) -> DispatchResult {
        let mut farm = Self::farm_of_farmer(account_id, farm_id)?;
        let index = farm
            .public_ips
            .iter()
            .position(|known| known.ip.as_slice() == ip && known.contract_id == 0)
            .ok_or(Error::<T>::IpNotExists)?;
        farm.public_ips.remove(index);
        Self::store_farm(farm);
        Ok(())
    }

    pub(super) fn do_reset_farm_ip(farm_id: u32, ip: &[u8]) -> DispatchResult {
        let mut farm = Farms::<T>::get(farm_id).ok_or(Error::<T>::FarmNotExists)?;
        let known = farm
            .public_ips
            .iter_mut()
            .find(|known| known.ip.as_slice() == ip)
            .ok_or(Error::<T>::IpNotExists)?;
        known.contract_id = 0;
        Self::store_farm(farm);
        Ok(())
    }

    pub(super) fn do_set_farm_dedicated(farm_id: u32, dedicated: bool) -> DispatchResult {
        let mut farm = Farms::<T>::get(farm_id).ok_or(Error::<T>::FarmNotExists)?;
        farm.dedicated_farm = dedicated;
        Self::store_farm(farm);
        if dedicated {
            Self::deposit_event(Event::FarmMarkedAsDedicated(farm_id));
        }
        Ok(())
    }

    /// Writes a farm and says so.
    pub(crate) fn store_farm(farm: Farm) {
        Farms::<T>::insert(farm.id, &farm);
        Self::deposit_event(Event::FarmUpdated(farm));
    }

    /// The farm, when this account owns it.
    fn farm_of_farmer(
        account_id: &AccountId32,
        farm_id: u32,
    ) -> Result<Farm, sp_runtime::DispatchError> {
        let farm = Farms::<T>::get(farm_id).ok_or(Error::<T>::FarmNotExists)?;
        let twin = Twins::<T>::get(farm.twin_id).ok_or(Error::<T>::TwinNotExists)?;
        ensure!(twin.account_id == *account_id, Error::<T>::CannotUpdateFarmWrongTwin);
        Ok(farm)
    }

    fn push_farm_ip(farm: &mut Farm, ip: IP4) -> DispatchResult {
        check::ip4_with_gateway(&ip.ip, &ip.gw).map_err(|_| Error::<T>::InvalidPublicIP)?;
        ensure!(farm.public_ips.iter().all(|known| known.ip != ip.ip), Error::<T>::IpExists);
        farm.public_ips
            .try_push(PublicIP { ip: ip.ip, gateway: ip.gw, contract_id: 0 })
            .map_err(|_| Error::<T>::InvalidPublicIP)?;
        Ok(())
    }

    fn check_farm_name(name: &[u8]) -> DispatchResult {
        ensure!(name.len() >= FARM_NAME_MIN, Error::<T>::FarmNameTooShort);
        ensure!(check::farm_name(name), Error::<T>::InvalidFarmName);
        Ok(())
    }

    /// The pricing policy and the farming policies the public grid began with.
    pub(super) fn put_policies(foundation: &AccountId32, sales: &AccountId32) {
        let price = |value| Policy { value, unit: Unit::Gigabytes };
        let pricing = PricingPolicy {
            version: 4,
            id: 1,
            name: b"threefold_default_pricing_policy".to_vec(),
            su: price(50_000),
            cu: price(100_000),
            nu: price(15_000),
            ipu: price(40_000),
            unique_name: price(2_500),
            domain_name: price(5_000),
            foundation_account: foundation.clone(),
            certified_sales_account: sales.clone(),
            discount_for_dedication_nodes: 50,
        };
        PricingPolicyIdByName::<T>::insert(&pricing.name, pricing.id);
        PricingPolicies::<T>::insert(pricing.id, pricing);
        PricingPolicyID::<T>::put(1);
        let policies = [
            (&b"threefold_default_diy_farming_policy"[..], NodeCertification::Diy, 2400, 1000),
            (b"threefold_default_certified_farming_policy", NodeCertification::Certified, 3000, 1250),
        ];
        let mut id = 0;
        for (name, node_certification, cu, su) in policies {
            id += 1;
            FarmingPoliciesMap::<T>::insert(
                id,
                FarmingPolicy {
                    version: 2,
                    id,
                    name: name.to_vec(),
                    cu,
                    su,
                    nu: 30,
                    ipv4: 5,
                    minimal_uptime: 995,
                    immutable: true,
                    default: true,
                    node_certification,
                    ..FarmingPolicy::default()
                },
            );
        }
        FarmingPolicyID::<T>::put(id);
        ConnectionPrice::<T>::put(80);
    }
}
