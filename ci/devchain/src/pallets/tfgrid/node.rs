//! Nodes: registration, changes, uptime and power.

use frame_support::{BoundedVec, ensure, traits::ConstU32, traits::EnsureOrigin, traits::Get};
use frame_system::pallet_prelude::OriginFor;
use sp_runtime::{DispatchError, DispatchResult, traits::UniqueSaturatedInto};

use super::{
    NodeContracts,
    check::{self, PublicAddressError},
    pallet::*,
};
use crate::types::{
    AccountId32, Bytes, INTERFACES_MAX, Interface, Location, MAC_MAX, Node, NodeCertification,
    Power, PowerState, PublicConfig, Resources, SERIAL_MAX,
};

const GIB: u64 = 1 << 30;
/// The least solid-state disk of a node on the public grid.
const SRU_MIN: u64 = 100 * GIB;
/// The least memory of a node on the public grid.
const MRU_MIN: u64 = 2 * GIB;
/// The shortest interface name.
const INTERFACE_NAME_MIN: usize = 3;
/// The shortest address of an interface.
const INTERFACE_IP_MIN: usize = 7;
/// The shortest country name.
const COUNTRY_MIN: usize = 2;
/// By how many hundredths a resource may change before a certificate is void.
const RESOURCE_CHANGE_PERCENT: u64 = 1;

/// What a node says of itself when it registers.
pub(super) struct NodeFacts {
    pub(super) farm_id: u32,
    pub(super) resources: Resources,
    pub(super) location: Location,
    pub(super) interfaces: BoundedVec<Interface, ConstU32<INTERFACES_MAX>>,
    pub(super) secure_boot: bool,
    pub(super) virtualized: bool,
    pub(super) serial_number: Option<Bytes<SERIAL_MAX>>,
}

impl<T: Config> Pallet<T> {
    pub(super) fn do_create_node(account_id: &AccountId32, facts: NodeFacts) -> DispatchResult {
        ensure!(Farms::<T>::contains_key(facts.farm_id), Error::<T>::FarmNotExists);
        let twin_id = Self::twin_of(account_id)?;
        ensure!(
            !NodeIdByTwinID::<T>::contains_key(twin_id),
            Error::<T>::NodeWithTwinIdExists
        );
        Self::check_facts(&facts)?;
        let id = NodeID::<T>::get().checked_add(1).ok_or(Error::<T>::StorageOverflow)?;
        let node = Node {
            version: 4,
            id,
            farm_id: facts.farm_id,
            twin_id,
            resources: facts.resources,
            location: facts.location,
            public_config: None,
            created: Self::now_seconds(),
            farming_policy_id: Self::farming_policy(NodeCertification::Diy),
            interfaces: facts.interfaces,
            certification: NodeCertification::Diy,
            secure_boot: facts.secure_boot,
            virtualized: facts.virtualized,
            serial_number: facts.serial_number,
            connection_price: ConnectionPrice::<T>::get(),
        };
        NodesByFarmID::<T>::mutate(node.farm_id, |nodes| nodes.push(id));
        Nodes::<T>::insert(id, &node);
        NodeID::<T>::put(id);
        NodeIdByTwinID::<T>::insert(twin_id, id);
        Self::deposit_event(Event::NodeStored(node));
        Ok(())
    }

    pub(super) fn do_update_node(
        account_id: &AccountId32,
        node_id: u32,
        facts: NodeFacts,
    ) -> DispatchResult {
        let mut node = Nodes::<T>::get(node_id).ok_or(Error::<T>::NodeNotExists)?;
        let twin_id = Self::twin_of(account_id)?;
        ensure!(node.twin_id == twin_id, Error::<T>::NodeUpdateNotAuthorized);
        ensure!(Farms::<T>::contains_key(facts.farm_id), Error::<T>::FarmNotExists);
        Self::check_facts(&facts)?;
        if node.farm_id != facts.farm_id {
            NodesByFarmID::<T>::mutate(node.farm_id, |nodes| nodes.retain(|id| *id != node_id));
            NodesByFarmID::<T>::mutate(facts.farm_id, |nodes| nodes.push(node_id));
        }
        let changed = resources_changed(&node.resources, &facts.resources);
        if changed && node.certification == NodeCertification::Certified {
            node.certification = NodeCertification::Diy;
            node.farming_policy_id = Self::farming_policy(NodeCertification::Diy);
            Self::deposit_event(Event::NodeCertificationSet(node_id, NodeCertification::Diy));
        }
        node.farm_id = facts.farm_id;
        node.resources = facts.resources;
        node.location = facts.location;
        node.interfaces = facts.interfaces;
        node.secure_boot = facts.secure_boot;
        node.virtualized = facts.virtualized;
        node.serial_number = facts.serial_number;
        Self::store_node(node);
        Ok(())
    }

    pub(super) fn do_set_node_certification(
        origin: OriginFor<T>,
        node_id: u32,
        certification: NodeCertification,
    ) -> DispatchResult {
        if T::Council::ensure_origin(origin.clone()).is_err() {
            let who = frame_system::ensure_signed(origin)?;
            ensure!(
                AllowedNodeCertifiers::<T>::get().unwrap_or_default().contains(&who),
                Error::<T>::NotAllowedToCertifyNode
            );
        }
        let mut node = Nodes::<T>::get(node_id).ok_or(Error::<T>::NodeNotExists)?;
        node.certification = certification;
        node.farming_policy_id = Self::farming_policy(certification);
        Self::store_node(node);
        Self::deposit_event(Event::NodeCertificationSet(node_id, certification));
        Ok(())
    }

    pub(super) fn do_set_public_config(
        account_id: &AccountId32,
        farm_id: u32,
        node_id: u32,
        public_config: Option<PublicConfig>,
    ) -> DispatchResult {
        let farm = Farms::<T>::get(farm_id).ok_or(Error::<T>::FarmNotExists)?;
        let twin = Twins::<T>::get(farm.twin_id).ok_or(Error::<T>::TwinNotExists)?;
        ensure!(twin.account_id == *account_id, Error::<T>::CannotUpdateFarmWrongTwin);
        let mut node = Nodes::<T>::get(node_id).ok_or(Error::<T>::NodeNotExists)?;
        ensure!(node.farm_id == farm_id, Error::<T>::NodeUpdateNotAuthorized);
        if let Some(config) = &public_config {
            Self::check_public_config(config)?;
        }
        node.public_config.clone_from(&public_config);
        Nodes::<T>::insert(node_id, node);
        Self::deposit_event(Event::NodePublicConfigStored(node_id, public_config));
        Ok(())
    }

    pub(super) fn do_delete_node(node: &Node) -> DispatchResult {
        ensure!(!T::Contracts::any_on(node.id), Error::<T>::NodeHasActiveContracts);
        NodesByFarmID::<T>::mutate(node.farm_id, |nodes| nodes.retain(|id| *id != node.id));
        Nodes::<T>::remove(node.id);
        NodeIdByTwinID::<T>::remove(node.twin_id);
        crate::pallets::tfgrid::NodePower::<T>::remove(node.id);
        Self::deposit_event(Event::NodeDeleted(node.id));
        Ok(())
    }

    pub(super) fn do_report_uptime(
        account_id: &AccountId32,
        uptime: u64,
        timestamp_hint: u64,
    ) -> DispatchResult {
        let twin_id = Self::twin_of(account_id)?;
        let node_id = Self::node_of(twin_id)?;
        let now = Self::now_seconds();
        ensure!(
            now.abs_diff(timestamp_hint) <= T::TimestampHintDrift::get(),
            Error::<T>::InvalidTimestampHint
        );
        Self::deposit_event(Event::NodeUptimeReported(node_id, now, uptime));
        Ok(())
    }

    pub(super) fn do_change_power_state(account_id: &AccountId32, power: Power) -> DispatchResult {
        let twin_id = Self::twin_of(account_id)?;
        let node_id = Self::node_of(twin_id)?;
        let node = Nodes::<T>::get(node_id).ok_or(Error::<T>::NodeNotExists)?;
        let block = frame_system::Pallet::<T>::block_number().unique_saturated_into();
        let power_state = match power {
            Power::Up => PowerState::Up,
            Power::Down => PowerState::Down(block),
        };
        let mut node_power = crate::pallets::tfgrid::NodePower::<T>::get(node_id);
        let same = matches!(
            (&node_power.state, power),
            (PowerState::Up, Power::Up) | (PowerState::Down(_), Power::Down)
        );
        if !same {
            node_power.state = power_state;
            crate::pallets::tfgrid::NodePower::<T>::insert(node_id, node_power);
            Self::deposit_event(Event::PowerStateChanged {
                farm_id: node.farm_id,
                node_id,
                power_state,
            });
        }
        Ok(())
    }

    pub(super) fn do_change_power_target(
        account_id: &AccountId32,
        node_id: u32,
        power_target: Power,
    ) -> DispatchResult {
        let twin_id = Self::twin_of(account_id)?;
        let node = Nodes::<T>::get(node_id).ok_or(Error::<T>::NodeNotExists)?;
        let farm = Farms::<T>::get(node.farm_id).ok_or(Error::<T>::FarmNotExists)?;
        ensure!(farm.twin_id == twin_id, Error::<T>::UnauthorizedToChangePowerTarget);
        ensure!(
            power_target == Power::Up || !T::Contracts::any_on(node_id),
            Error::<T>::NodeHasActiveContracts
        );
        let mut node_power = crate::pallets::tfgrid::NodePower::<T>::get(node_id);
        if node_power.target != power_target {
            node_power.target = power_target;
            crate::pallets::tfgrid::NodePower::<T>::insert(node_id, node_power);
            Self::deposit_event(Event::PowerTargetChanged {
                farm_id: node.farm_id,
                node_id,
                power_target,
            });
        }
        Ok(())
    }

    pub(super) fn do_add_certifier(certifier: AccountId32) -> DispatchResult {
        let mut certifiers = AllowedNodeCertifiers::<T>::get().unwrap_or_default();
        ensure!(!certifiers.contains(&certifier), Error::<T>::AlreadyCertifier);
        certifiers.push(certifier.clone());
        AllowedNodeCertifiers::<T>::put(certifiers);
        Self::deposit_event(Event::NodeCertifierAdded(certifier));
        Ok(())
    }

    pub(super) fn do_remove_certifier(certifier: AccountId32) -> DispatchResult {
        let mut certifiers = AllowedNodeCertifiers::<T>::get().unwrap_or_default();
        ensure!(certifiers.contains(&certifier), Error::<T>::NotCertifier);
        certifiers.retain(|known| *known != certifier);
        AllowedNodeCertifiers::<T>::put(certifiers);
        Self::deposit_event(Event::NodeCertifierRemoved(certifier));
        Ok(())
    }

    /// The node of a twin.
    fn node_of(twin_id: u32) -> Result<u32, DispatchError> {
        match NodeIdByTwinID::<T>::get(twin_id) {
            0 => Err(Error::<T>::NodeNotExists.into()),
            node_id => Ok(node_id),
        }
    }

    fn store_node(node: Node) {
        Nodes::<T>::insert(node.id, &node);
        Self::deposit_event(Event::NodeUpdated(node));
    }

    /// The default policy for nodes of this certification.
    fn farming_policy(certification: NodeCertification) -> u32 {
        (1..=FarmingPolicyID::<T>::get())
            .find(|id| {
                let policy = FarmingPoliciesMap::<T>::get(id);
                policy.default && policy.node_certification == certification
            })
            .unwrap_or(0)
    }

    fn check_facts(facts: &NodeFacts) -> DispatchResult {
        Self::check_resources(&facts.resources)?;
        Self::check_location(&facts.location)?;
        facts.interfaces.iter().try_for_each(Self::check_interface)?;
        if let Some(serial) = &facts.serial_number {
            ensure!(!serial.is_empty(), Error::<T>::SerialNumberTooShort);
            ensure!(check::serial(serial), Error::<T>::InvalidSerialNumber);
        }
        Ok(())
    }

    fn check_resources(resources: &Resources) -> DispatchResult {
        let relaxed = T::RelaxedMinimums::get();
        ensure!(relaxed || resources.sru >= SRU_MIN, Error::<T>::InvalidSRUInput);
        ensure!(resources.cru >= 1, Error::<T>::InvalidCRUInput);
        ensure!(relaxed || resources.mru >= MRU_MIN, Error::<T>::InvalidMRUInput);
        Ok(())
    }

    fn check_location(location: &Location) -> DispatchResult {
        ensure!(!location.city.is_empty(), Error::<T>::CityNameTooShort);
        ensure!(check::place(&location.city), Error::<T>::InvalidCityName);
        ensure!(location.country.len() >= COUNTRY_MIN, Error::<T>::CountryNameTooShort);
        ensure!(check::place(&location.country), Error::<T>::InvalidCountryName);
        ensure!(!location.latitude.is_empty(), Error::<T>::LatitudeInputTooShort);
        ensure!(check::degrees(&location.latitude, 90.0), Error::<T>::InvalidLatitudeInput);
        ensure!(!location.longitude.is_empty(), Error::<T>::LongitudeInputTooShort);
        ensure!(check::degrees(&location.longitude, 180.0), Error::<T>::InvalidLongitudeInput);
        Ok(())
    }

    fn check_interface(interface: &Interface) -> DispatchResult {
        ensure!(interface.name.len() >= INTERFACE_NAME_MIN, Error::<T>::InterfaceNameTooShort);
        ensure!(check::interface_name(&interface.name), Error::<T>::InvalidInterfaceName);
        ensure!(interface.mac.len() >= MAC_MAX as usize, Error::<T>::InterfaceMacTooShort);
        ensure!(check::mac(&interface.mac), Error::<T>::InvalidMacAddress);
        for ip in &interface.ips {
            ensure!(ip.len() >= INTERFACE_IP_MIN, Error::<T>::InterfaceIpTooShort);
            ensure!(check::interface_ip(ip), Error::<T>::InvalidInterfaceIP);
        }
        Ok(())
    }

    fn check_public_config(config: &PublicConfig) -> DispatchResult {
        check::ip4_with_gateway(&config.ip4.ip, &config.ip4.gw).map_err(|error| match error {
            PublicAddressError::Address => Error::<T>::InvalidIP4,
            PublicAddressError::Gateway => Error::<T>::InvalidGW4,
        })?;
        if let Some(ip6) = &config.ip6 {
            check::ip6_with_gateway(&ip6.ip, &ip6.gw).map_err(|error| match error {
                PublicAddressError::Address => Error::<T>::InvalidIP6,
                PublicAddressError::Gateway => Error::<T>::InvalidGW6,
            })?;
        }
        if let Some(domain) = &config.domain {
            ensure!(check::domain(domain), Error::<T>::InvalidDomain);
        }
        Ok(())
    }
}

/// Whether any resource changed by more than [`RESOURCE_CHANGE_PERCENT`].
fn resources_changed(old: &Resources, new: &Resources) -> bool {
    [(old.hru, new.hru), (old.sru, new.sru), (old.cru, new.cru), (old.mru, new.mru)]
        .into_iter()
        .any(|(old, new)| {
            u128::from(old.abs_diff(new)) * 100
                > u128::from(old) * u128::from(RESOURCE_CHANGE_PERCENT)
        })
}
