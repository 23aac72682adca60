//! `TfgridModule`: twins, farms, nodes, their power and their policies.
//!
//! The calls are declared here, each a line or two; what they do is in `twin`, `farm` and
//! `node`, and what texts they take in `check`. Rules, their order and their errors are those of
//! TFChain's pallet-tfgrid.
#![allow(
    missing_docs,
    clippy::too_many_arguments,
    clippy::cast_possible_truncation,
    clippy::use_self,
    clippy::unwrap_used,
    reason = "what the pallet macro generates carries no documentation, names types in full, and \
              has all the arguments of TFChain's calls"
)]

mod check;
mod farm;
mod node;
mod twin;

use frame_support::weights::Weight;

pub use pallet::*;

/// What any call of ours weighs: fees shall be small and even, not a measure of work.
pub const CALL_WEIGHT: Weight = Weight::from_parts(100_000_000, 0);

/// What this pallet asks of the one that keeps contracts.
pub trait NodeContracts {
    /// Whether any contract is on this node.
    fn any_on(node_id: u32) -> bool;
}

/// The pallet.
#[frame_support::pallet]
pub mod pallet {
    use frame_support::pallet_prelude::*;
    use frame_system::pallet_prelude::*;

    use super::{CALL_WEIGHT, NodeContracts};
    use crate::types::*;

    #[pallet::pallet]
    #[pallet::without_storage_info]
    pub struct Pallet<T>(_);

    #[pallet::config]
    pub trait Config:
        frame_system::Config<AccountId = AccountId32, RuntimeEvent: From<Event<Self>>>
        + pallet_timestamp::Config<Moment = u64>
    {
        /// Who certifies, prices and upgrades.
        type Council: EnsureOrigin<Self::RuntimeOrigin>;
        /// Who keeps the contracts.
        type Contracts: NodeContracts;
        /// Whether a node may be smaller than the public grid allows.
        type RelaxedMinimums: Get<bool>;
        /// The longest name of a farm.
        #[pallet::constant]
        type MaxFarmNameLength: Get<u32>;
        /// The most public addresses of a farm.
        #[pallet::constant]
        type MaxFarmPublicIps: Get<u32>;
        /// The most interfaces of a node.
        #[pallet::constant]
        type MaxInterfacesLength: Get<u32>;
        /// The most addresses of an interface.
        #[pallet::constant]
        type MaxInterfaceIpsLength: Get<u32>;
        /// How far the time of an uptime report may be off, in seconds.
        #[pallet::constant]
        type TimestampHintDrift: Get<u64>;
    }

    #[pallet::storage]
    pub type Farms<T: Config> = StorageMap<_, Blake2_128Concat, u32, Farm>;
    #[pallet::storage]
    pub type NodesByFarmID<T: Config> = StorageMap<_, Blake2_128Concat, u32, Vec<u32>, ValueQuery>;
    #[pallet::storage]
    pub type FarmIdByName<T: Config> = StorageMap<_, Blake2_128Concat, Vec<u8>, u32, ValueQuery>;
    #[pallet::storage]
    pub type FarmPayoutV2AddressByFarmID<T: Config> =
        StorageMap<_, Blake2_128Concat, u32, Vec<u8>, ValueQuery>;
    #[pallet::storage]
    pub type Nodes<T: Config> = StorageMap<_, Blake2_128Concat, u32, Node>;
    #[pallet::storage]
    pub type NodeIdByTwinID<T: Config> = StorageMap<_, Blake2_128Concat, u32, u32, ValueQuery>;
    #[pallet::storage]
    pub type Twins<T: Config> = StorageMap<_, Blake2_128Concat, u32, Twin>;
    #[pallet::storage]
    pub type TwinIdByAccountID<T: Config> = StorageMap<_, Blake2_128Concat, AccountId32, u32>;
    #[pallet::storage]
    pub type TwinBoundedAccountID<T: Config> = StorageMap<_, Blake2_128Concat, u32, AccountId32>;
    #[pallet::storage]
    pub type PricingPolicies<T: Config> = StorageMap<_, Blake2_128Concat, u32, PricingPolicy>;
    #[pallet::storage]
    pub type PricingPolicyIdByName<T: Config> =
        StorageMap<_, Blake2_128Concat, Vec<u8>, u32, ValueQuery>;
    #[pallet::storage]
    pub type FarmingPoliciesMap<T: Config> =
        StorageMap<_, Blake2_128Concat, u32, FarmingPolicy, ValueQuery>;
    #[pallet::storage]
    pub type UsersTermsAndConditions<T: Config> =
        StorageMap<_, Blake2_128Concat, AccountId32, Vec<TermsAndConditions>>;
    #[pallet::storage]
    pub type AllowedNodeCertifiers<T: Config> = StorageValue<_, Vec<AccountId32>>;
    #[pallet::storage]
    pub type ConnectionPrice<T: Config> = StorageValue<_, u32, ValueQuery>;
    #[pallet::storage]
    pub type FarmID<T: Config> = StorageValue<_, u32, ValueQuery>;
    #[pallet::storage]
    pub type NodeID<T: Config> = StorageValue<_, u32, ValueQuery>;
    #[pallet::storage]
    pub type TwinID<T: Config> = StorageValue<_, u32, ValueQuery>;
    #[pallet::storage]
    pub type PricingPolicyID<T: Config> = StorageValue<_, u32, ValueQuery>;
    #[pallet::storage]
    pub type FarmingPolicyID<T: Config> = StorageValue<_, u32, ValueQuery>;
    #[pallet::storage]
    pub type ZosVersion<T: Config> = StorageValue<_, Vec<u8>, ValueQuery>;
    #[pallet::storage]
    pub type NodePower<T: Config> =
        StorageMap<_, Blake2_128Concat, u32, crate::types::NodePower, ValueQuery>;

    #[pallet::event]
    #[pallet::generate_deposit(pub(super) fn deposit_event)]
    pub enum Event<T: Config> {
        #[codec(index = 0)]
        FarmStored(Farm),
        #[codec(index = 1)]
        FarmUpdated(Farm),
        #[codec(index = 3)]
        NodeStored(Node),
        #[codec(index = 4)]
        NodeUpdated(Node),
        #[codec(index = 5)]
        NodeDeleted(u32),
        /// The node, when, and its uptime: all in seconds.
        #[codec(index = 6)]
        NodeUptimeReported(u32, u64, u64),
        #[codec(index = 7)]
        NodePublicConfigStored(u32, Option<PublicConfig>),
        #[codec(index = 11)]
        TwinStored(Twin),
        #[codec(index = 12)]
        TwinUpdated(Twin),
        #[codec(index = 16)]
        TwinAccountBounded(u32, AccountId32),
        #[codec(index = 17)]
        PricingPolicyStored(PricingPolicy),
        #[codec(index = 18)]
        FarmingPolicyStored(FarmingPolicy),
        #[codec(index = 19)]
        FarmPayoutV2AddressRegistered(u32, Vec<u8>),
        #[codec(index = 20)]
        FarmMarkedAsDedicated(u32),
        #[codec(index = 21)]
        ConnectionPriceSet(u32),
        #[codec(index = 22)]
        NodeCertificationSet(u32, NodeCertification),
        #[codec(index = 23)]
        NodeCertifierAdded(AccountId32),
        #[codec(index = 24)]
        NodeCertifierRemoved(AccountId32),
        #[codec(index = 27)]
        FarmCertificationSet(u32, FarmCertification),
        #[codec(index = 28)]
        ZosVersionUpdated(Vec<u8>),
        #[codec(index = 29)]
        PowerTargetChanged { farm_id: u32, node_id: u32, power_target: Power },
        #[codec(index = 30)]
        PowerStateChanged { farm_id: u32, node_id: u32, power_state: PowerState },
    }

    #[pallet::error]
    pub enum Error<T> {
        NoneValue,
        StorageOverflow,
        CannotCreateNode,
        NodeNotExists,
        NodeWithTwinIdExists,
        CannotDeleteNode,
        NodeDeleteNotAuthorized,
        NodeUpdateNotAuthorized,
        FarmExists,
        FarmNotExists,
        CannotCreateFarmWrongTwin,
        CannotUpdateFarmWrongTwin,
        CannotDeleteFarm,
        CannotDeleteFarmWithPublicIPs,
        CannotDeleteFarmWithNodesAssigned,
        CannotDeleteFarmWrongTwin,
        IpExists,
        IpNotExists,
        EntityWithNameExists,
        EntityWithPubkeyExists,
        EntityNotExists,
        EntitySignatureDoesNotMatch,
        EntityWithSignatureAlreadyExists,
        CannotUpdateEntity,
        CannotDeleteEntity,
        SignatureLengthIsIncorrect,
        TwinExists,
        TwinNotExists,
        TwinWithPubkeyExists,
        CannotCreateTwin,
        UnauthorizedToUpdateTwin,
        TwinCannotBoundToItself,
        PricingPolicyExists,
        PricingPolicyNotExists,
        PricingPolicyWithDifferentIdExists,
        CertificationCodeExists,
        FarmingPolicyAlreadyExists,
        FarmPayoutAdressAlreadyRegistered,
        FarmerDoesNotHaveEnoughFunds,
        UserDidNotSignTermsAndConditions,
        FarmerDidNotSignTermsAndConditions,
        FarmerNotAuthorized,
        InvalidFarmName,
        AlreadyCertifier,
        NotCertifier,
        NotAllowedToCertifyNode,
        FarmingPolicyNotExists,
        RelayTooShort,
        RelayTooLong,
        InvalidRelay,
        FarmNameTooShort,
        FarmNameTooLong,
        InvalidPublicIP,
        PublicIPTooShort,
        PublicIPTooLong,
        GatewayIPTooShort,
        GatewayIPTooLong,
        IP4TooShort,
        IP4TooLong,
        InvalidIP4,
        GW4TooShort,
        GW4TooLong,
        InvalidGW4,
        IP6TooShort,
        IP6TooLong,
        InvalidIP6,
        GW6TooShort,
        GW6TooLong,
        InvalidGW6,
        DomainTooShort,
        DomainTooLong,
        InvalidDomain,
        MethodIsDeprecated,
        InterfaceNameTooShort,
        InterfaceNameTooLong,
        InvalidInterfaceName,
        InterfaceMacTooShort,
        InterfaceMacTooLong,
        InvalidMacAddress,
        InterfaceIpTooShort,
        InterfaceIpTooLong,
        InvalidInterfaceIP,
        InvalidZosVersion,
        FarmingPolicyExpired,
        InvalidHRUInput,
        InvalidSRUInput,
        InvalidCRUInput,
        InvalidMRUInput,
        LatitudeInputTooShort,
        LatitudeInputTooLong,
        InvalidLatitudeInput,
        LongitudeInputTooShort,
        LongitudeInputTooLong,
        InvalidLongitudeInput,
        CountryNameTooShort,
        CountryNameTooLong,
        InvalidCountryName,
        CityNameTooShort,
        CityNameTooLong,
        InvalidCityName,
        InvalidCountryCityPair,
        SerialNumberTooShort,
        SerialNumberTooLong,
        InvalidSerialNumber,
        DocumentLinkInputTooShort,
        DocumentLinkInputTooLong,
        InvalidDocumentLinkInput,
        DocumentHashInputTooShort,
        DocumentHashInputTooLong,
        InvalidDocumentHashInput,
        InvalidPublicConfig,
        UnauthorizedToChangePowerTarget,
        NodeHasActiveContracts,
        InvalidRelayAddress,
        InvalidTimestampHint,
        InvalidStorageInput,
    }

    #[pallet::genesis_config]
    #[derive(frame_support::DefaultNoBound)]
    pub struct GenesisConfig<T: Config> {
        /// The accounts that pricing policy 1 pays: foundation and certified sales.
        pub policy_accounts: Option<(AccountId32, AccountId32)>,
        #[serde(skip)]
        pub _config: core::marker::PhantomData<T>,
    }

    #[pallet::genesis_build]
    impl<T: Config> BuildGenesisConfig for GenesisConfig<T> {
        fn build(&self) {
            if let Some((foundation, sales)) = &self.policy_accounts {
                Pallet::<T>::put_policies(foundation, sales);
            }
        }
    }

    #[pallet::call]
    impl<T: Config> Pallet<T> {
        #[pallet::call_index(1)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn create_farm(
            origin: OriginFor<T>,
            name: Bytes<FARM_NAME_MAX>,
            public_ips: BoundedVec<IP4, ConstU32<FARM_IPS_MAX>>,
        ) -> DispatchResult {
            Self::do_create_farm(&ensure_signed(origin)?, name, &public_ips)
        }

        #[pallet::call_index(2)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn update_farm(
            origin: OriginFor<T>,
            farm_id: u32,
            name: Bytes<FARM_NAME_MAX>,
        ) -> DispatchResult {
            Self::do_update_farm(&ensure_signed(origin)?, farm_id, name)
        }

        #[pallet::call_index(3)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn add_stellar_payout_v2address(
            origin: OriginFor<T>,
            farm_id: u32,
            stellar_address: Vec<u8>,
        ) -> DispatchResult {
            Self::do_set_payout_address(&ensure_signed(origin)?, farm_id, stellar_address)
        }

        #[pallet::call_index(4)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn set_farm_certification(
            origin: OriginFor<T>,
            farm_id: u32,
            certification: FarmCertification,
        ) -> DispatchResult {
            T::Council::ensure_origin(origin)?;
            Self::do_set_farm_certification(farm_id, certification)
        }

        #[pallet::call_index(5)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn add_farm_ip(
            origin: OriginFor<T>,
            farm_id: u32,
            ip: Bytes<IP4_MAX>,
            gw: Bytes<GW4_MAX>,
        ) -> DispatchResult {
            Self::do_add_farm_ip(&ensure_signed(origin)?, farm_id, IP4 { ip, gw })
        }

        #[pallet::call_index(6)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn remove_farm_ip(
            origin: OriginFor<T>,
            farm_id: u32,
            ip: Bytes<IP4_MAX>,
        ) -> DispatchResult {
            Self::do_remove_farm_ip(&ensure_signed(origin)?, farm_id, &ip)
        }

        #[pallet::call_index(8)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn create_node(
            origin: OriginFor<T>,
            farm_id: u32,
            resources: Resources,
            location: Location,
            interfaces: BoundedVec<Interface, ConstU32<INTERFACES_MAX>>,
            secure_boot: bool,
            virtualized: bool,
            serial_number: Option<Bytes<SERIAL_MAX>>,
        ) -> DispatchResult {
            let facts = super::node::NodeFacts {
                farm_id,
                resources,
                location,
                interfaces,
                secure_boot,
                virtualized,
                serial_number,
            };
            Self::do_create_node(&ensure_signed(origin)?, facts)
        }

        #[pallet::call_index(9)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn update_node(
            origin: OriginFor<T>,
            node_id: u32,
            farm_id: u32,
            resources: Resources,
            location: Location,
            interfaces: BoundedVec<Interface, ConstU32<INTERFACES_MAX>>,
            secure_boot: bool,
            virtualized: bool,
            serial_number: Option<Bytes<SERIAL_MAX>>,
        ) -> DispatchResultWithPostInfo {
            let facts = super::node::NodeFacts {
                farm_id,
                resources,
                location,
                interfaces,
                secure_boot,
                virtualized,
                serial_number,
            };
            Self::do_update_node(&ensure_signed(origin)?, node_id, facts)?;
            Ok(Pays::No.into())
        }

        #[pallet::call_index(10)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn set_node_certification(
            origin: OriginFor<T>,
            node_id: u32,
            node_certification: NodeCertification,
        ) -> DispatchResult {
            Self::do_set_node_certification(origin, node_id, node_certification)
        }

        /// Replaced by `report_uptime_v2`.
        #[pallet::call_index(11)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn report_uptime(origin: OriginFor<T>, uptime: u64) -> DispatchResultWithPostInfo {
            let _ = (ensure_signed(origin)?, uptime);
            Err(Error::<T>::MethodIsDeprecated.into())
        }

        #[pallet::call_index(12)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn add_node_public_config(
            origin: OriginFor<T>,
            farm_id: u32,
            node_id: u32,
            public_config: Option<PublicConfig>,
        ) -> DispatchResult {
            Self::do_set_public_config(&ensure_signed(origin)?, farm_id, node_id, public_config)
        }

        #[pallet::call_index(13)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn delete_node(origin: OriginFor<T>, node_id: u32) -> DispatchResult {
            let who = ensure_signed(origin)?;
            let node = Nodes::<T>::get(node_id).ok_or(Error::<T>::NodeNotExists)?;
            ensure!(
                TwinIdByAccountID::<T>::get(&who) == Some(node.twin_id),
                Error::<T>::NodeDeleteNotAuthorized
            );
            Self::do_delete_node(&node)
        }

        #[pallet::call_index(17)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn create_twin(
            origin: OriginFor<T>,
            relay: Option<Bytes<RELAY_MAX>>,
            pk: Option<Bytes<PK_MAX>>,
        ) -> DispatchResult {
            Self::do_create_twin(ensure_signed(origin)?, relay, pk)
        }

        #[pallet::call_index(18)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn update_twin(
            origin: OriginFor<T>,
            relay: Option<Bytes<RELAY_MAX>>,
            pk: Option<Bytes<PK_MAX>>,
        ) -> DispatchResult {
            Self::do_update_twin(&ensure_signed(origin)?, relay, pk)
        }

        #[pallet::call_index(25)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn user_accept_tc(
            origin: OriginFor<T>,
            document_link: Bytes<DOCUMENT_LINK_MAX>,
            document_hash: Bytes<DOCUMENT_HASH_MAX>,
        ) -> DispatchResult {
            Self::do_accept_terms(ensure_signed(origin)?, document_link, document_hash)
        }

        #[pallet::call_index(26)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn delete_node_farm(origin: OriginFor<T>, node_id: u32) -> DispatchResult {
            let who = ensure_signed(origin)?;
            let node = Nodes::<T>::get(node_id).ok_or(Error::<T>::NodeNotExists)?;
            let farm = Farms::<T>::get(node.farm_id).ok_or(Error::<T>::FarmNotExists)?;
            ensure!(
                TwinIdByAccountID::<T>::get(&who) == Some(farm.twin_id),
                Error::<T>::FarmerNotAuthorized
            );
            Self::do_delete_node(&node)
        }

        #[pallet::call_index(27)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn set_farm_dedicated(
            origin: OriginFor<T>,
            farm_id: u32,
            dedicated: bool,
        ) -> DispatchResult {
            T::Council::ensure_origin(origin)?;
            Self::do_set_farm_dedicated(farm_id, dedicated)
        }

        #[pallet::call_index(28)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn force_reset_farm_ip(
            origin: OriginFor<T>,
            farm_id: u32,
            ip: Bytes<IP4_MAX>,
        ) -> DispatchResult {
            T::Council::ensure_origin(origin)?;
            Self::do_reset_farm_ip(farm_id, &ip)
        }

        #[pallet::call_index(29)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn set_connection_price(origin: OriginFor<T>, price: u32) -> DispatchResult {
            T::Council::ensure_origin(origin)?;
            ConnectionPrice::<T>::put(price);
            Self::deposit_event(Event::ConnectionPriceSet(price));
            Ok(())
        }

        #[pallet::call_index(30)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn add_node_certifier(origin: OriginFor<T>, certifier: AccountId32) -> DispatchResult {
            T::Council::ensure_origin(origin)?;
            Self::do_add_certifier(certifier)
        }

        #[pallet::call_index(31)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn remove_node_certifier(
            origin: OriginFor<T>,
            certifier: AccountId32,
        ) -> DispatchResult {
            T::Council::ensure_origin(origin)?;
            Self::do_remove_certifier(certifier)
        }

        #[pallet::call_index(34)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn set_zos_version(origin: OriginFor<T>, zos_version: Vec<u8>) -> DispatchResult {
            T::Council::ensure_origin(origin)?;
            ensure!(ZosVersion::<T>::get() != zos_version, Error::<T>::InvalidZosVersion);
            ZosVersion::<T>::put(&zos_version);
            Self::deposit_event(Event::ZosVersionUpdated(zos_version));
            Ok(())
        }

        #[pallet::call_index(35)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn change_power_state(
            origin: OriginFor<T>,
            power_state: Power,
        ) -> DispatchResultWithPostInfo {
            Self::do_change_power_state(&ensure_signed(origin)?, power_state)?;
            Ok(Pays::No.into())
        }

        #[pallet::call_index(36)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn change_power_target(
            origin: OriginFor<T>,
            node_id: u32,
            power_target: Power,
        ) -> DispatchResult {
            Self::do_change_power_target(&ensure_signed(origin)?, node_id, power_target)
        }

        #[pallet::call_index(37)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn bond_twin_account(origin: OriginFor<T>, twin_id: u32) -> DispatchResult {
            Self::do_bond_twin_account(ensure_signed(origin)?, twin_id)
        }

        #[pallet::call_index(38)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn report_uptime_v2(
            origin: OriginFor<T>,
            uptime: u64,
            timestamp_hint: u64,
        ) -> DispatchResultWithPostInfo {
            Self::do_report_uptime(&ensure_signed(origin)?, uptime, timestamp_hint)?;
            Ok(Pays::No.into())
        }
    }

    impl<T: Config> Pallet<T> {
        /// The block's time in seconds of Unix time.
        #[must_use]
        pub fn now_seconds() -> u64 {
            pallet_timestamp::Now::<T>::get() / 1000
        }
    }
}
