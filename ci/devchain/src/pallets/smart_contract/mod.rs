//! `SmartContractModule`: contracts on nodes, names and whole nodes, and their bills.
//!
//! ```text
//!             create                       no money                grace_blocks later
//!   (none) ───────────> Created ─────────────────────> GracePeriod ───────────────────> Deleted
//!                          │ ^        money again           │                              ^
//!                          │ └──────────────────────────────┘                              │
//!                          └──────────────────────── cancel ───────────────────────────────┘
//! ```
//!
//! A deleted contract is billed a last time and its storage removed in the same block. The calls are
//! declared here; `grid_contract` makes and ends contracts, `billing` charges for them, and
//! `cost` knows what they cost.
//!
//! Left out are the calls no part of the grid needs from a chain of its own: solution providers and
//! service contracts.
#![allow(
    missing_docs,
    clippy::cast_possible_truncation,
    clippy::use_self,
    clippy::unwrap_used,
    reason = "what the pallet macro generates carries no documentation and names types in full"
)]

mod billing;
mod cost;
mod grid_contract;

pub use pallet::*;

/// The pallet.
#[frame_support::pallet]
pub mod pallet {
    use frame_support::{
        pallet_prelude::*,
        traits::{ConstU64, Currency, ReservableCurrency},
    };
    use frame_system::pallet_prelude::*;
    use sp_runtime::traits::UniqueSaturatedInto;

    use crate::{
        pallets::{
            tfgrid::{self, CALL_WEIGHT},
            tft_price,
        },
        types::*,
    };

    #[pallet::pallet]
    #[pallet::without_storage_info]
    pub struct Pallet<T>(_);

    #[pallet::config]
    pub trait Config:
        frame_system::Config<AccountId = AccountId32, RuntimeEvent: From<Event<Self>>>
        + tfgrid::Config
        + tft_price::Config
    {
        /// What contracts are paid with.
        type Currency: Currency<AccountId32, Balance = Balance>
            + ReservableCurrency<AccountId32, Balance = Balance>;
        /// Who may cancel and bill any contract.
        type Collective: EnsureOrigin<Self::RuntimeOrigin>;
        /// How many blocks a contract lives on without money.
        type GracePeriod: Get<u64>;
        /// Bills between two distributions of what was paid.
        type DistributionFrequency: Get<u16>;
        /// Where the stakers' share goes.
        type StakingPoolAccount: Get<AccountId32>;
        /// The longest name of a name contract.
        #[pallet::constant]
        type MaxNameContractNameLength: Get<u32>;
        /// The longest data of a node contract.
        #[pallet::constant]
        type MaxDeploymentDataLength: Get<u32>;
        /// The most public addresses of a node contract.
        #[pallet::constant]
        type MaxNodeContractPublicIps: Get<u32>;
    }

    #[pallet::storage]
    pub type Contracts<T: Config> = StorageMap<_, Blake2_128Concat, u64, Contract>;
    #[pallet::storage]
    pub type ContractBillingInformationByID<T: Config> =
        StorageMap<_, Blake2_128Concat, u64, ContractBillingInformation, ValueQuery>;
    #[pallet::storage]
    pub type NodeContractResources<T: Config> =
        StorageMap<_, Blake2_128Concat, u64, ContractResources, ValueQuery>;
    #[pallet::storage]
    pub type ContractIDByNodeIDAndHash<T: Config> =
        StorageDoubleMap<_, Blake2_128Concat, u32, Blake2_128Concat, [u8; 32], u64, ValueQuery>;
    #[pallet::storage]
    pub type ActiveNodeContracts<T: Config> =
        StorageMap<_, Blake2_128Concat, u32, Vec<u64>, ValueQuery>;
    #[pallet::storage]
    pub type ContractsToBillAt<T: Config> =
        StorageMap<_, Blake2_128Concat, u64, Vec<u64>, ValueQuery>;
    #[pallet::storage]
    pub type ContractIDByNameRegistration<T: Config> =
        StorageMap<_, Blake2_128Concat, Bytes<NAME_MAX>, u64, ValueQuery>;
    #[pallet::storage]
    pub type ActiveRentContractForNode<T: Config> = StorageMap<_, Blake2_128Concat, u32, u64>;
    #[pallet::storage]
    pub type ContractID<T: Config> = StorageValue<_, u64, ValueQuery>;
    #[pallet::storage]
    pub type BillingFrequency<T: Config> =
        StorageValue<_, u64, ValueQuery, ConstU64<BILLING_FREQUENCY_DEFAULT>>;
    #[pallet::storage]
    pub type DedicatedNodesExtraFee<T: Config> =
        StorageMap<_, Blake2_128Concat, u32, u64, ValueQuery>;
    #[pallet::storage]
    pub type ContractPaymentState<T: Config> =
        StorageMap<_, Blake2_128Concat, u64, crate::types::ContractPaymentState>;

    /// Blocks between two bills of a contract: an hour's.
    pub const BILLING_FREQUENCY_DEFAULT: u64 = 600;

    #[pallet::event]
    #[pallet::generate_deposit(pub(super) fn deposit_event)]
    pub enum Event<T: Config> {
        #[codec(index = 0)]
        ContractCreated(Contract),
        #[codec(index = 1)]
        ContractUpdated(Contract),
        #[codec(index = 2)]
        NodeContractCanceled { contract_id: u64, node_id: u32, twin_id: u32 },
        #[codec(index = 3)]
        NameContractCanceled { contract_id: u64 },
        #[codec(index = 4)]
        IPsReserved {
            contract_id: u64,
            public_ips: BoundedVec<PublicIP, ConstU32<CONTRACT_IPS_MAX>>,
        },
        #[codec(index = 5)]
        IPsFreed { contract_id: u64, public_ips: BoundedVec<PublicIP, ConstU32<CONTRACT_IPS_MAX>> },
        #[codec(index = 8)]
        ContractBilled(ContractBill),
        #[codec(index = 9)]
        TokensBurned { contract_id: u64, amount: Balance },
        #[codec(index = 10)]
        UpdatedUsedResources(ContractResources),
        #[codec(index = 11)]
        NruConsumptionReportReceived(NruConsumption),
        #[codec(index = 12)]
        RentContractCanceled { contract_id: u64 },
        #[codec(index = 13)]
        ContractGracePeriodStarted {
            contract_id: u64,
            node_id: u32,
            twin_id: u32,
            block_number: u64,
        },
        #[codec(index = 14)]
        ContractGracePeriodEnded { contract_id: u64, node_id: u32, twin_id: u32 },
        #[codec(index = 23)]
        BillingFrequencyChanged(u64),
        #[codec(index = 24)]
        NodeExtraFeeSet { node_id: u32, extra_fee: u64 },
        #[codec(index = 25)]
        RentWaived { contract_id: u64 },
        #[codec(index = 26)]
        ContractGracePeriodElapsed { contract_id: u64, grace_period: u64 },
        #[codec(index = 27)]
        ContractPaymentOverdrawn {
            contract_id: u64,
            timestamp: u64,
            partially_billed_amount: Balance,
            overdraft: Balance,
        },
        #[codec(index = 28)]
        RewardDistributed {
            contract_id: u64,
            standard_rewards: Balance,
            additional_rewards: Balance,
        },
    }

    #[pallet::error]
    pub enum Error<T> {
        TwinNotExists,
        NodeNotExists,
        FarmNotExists,
        FarmHasNotEnoughPublicIPs,
        FarmHasNotEnoughPublicIPsFree,
        FailedToReserveIP,
        FailedToFreeIPs,
        ContractNotExists,
        TwinNotAuthorizedToUpdateContract,
        TwinNotAuthorizedToCancelContract,
        NodeNotAuthorizedToDeployContract,
        NodeNotAuthorizedToComputeReport,
        PricingPolicyNotExists,
        ContractIsNotUnique,
        ContractWrongBillingLoopIndex,
        NameExists,
        NameNotValid,
        InvalidContractType,
        TFTPriceValueError,
        NotEnoughResourcesOnNode,
        NodeNotAuthorizedToReportResources,
        MethodIsDeprecated,
        NodeHasActiveContracts,
        NodeHasRentContract,
        FarmIsNotDedicated,
        NodeNotAvailableToDeploy,
        CannotUpdateContractInGraceState,
        NumOverflow,
        OffchainSignedTxCannotSign,
        OffchainSignedTxAlreadySent,
        OffchainSignedTxNoLocalAccountAvailable,
        NameContractNameTooShort,
        NameContractNameTooLong,
        InvalidProviderConfiguration,
        NoSuchSolutionProvider,
        SolutionProviderNotApproved,
        TwinNotAuthorized,
        ServiceContractNotExists,
        ServiceContractCreationNotAllowed,
        ServiceContractModificationNotAllowed,
        ServiceContractApprovalNotAllowed,
        ServiceContractRejectionNotAllowed,
        ServiceContractBillingNotApprovedByBoth,
        ServiceContractBillingVariableAmountTooHigh,
        ServiceContractBillMetadataTooLong,
        ServiceContractMetadataTooLong,
        ServiceContractNotEnoughFundsToPayBill,
        CanOnlyIncreaseFrequency,
        IsNotAnAuthority,
        WrongAuthority,
        UnauthorizedToChangeSolutionProviderId,
        UnauthorizedToSetExtraFee,
        RewardDistributionError,
        ContractPaymentStateNotExists,
    }

    #[pallet::genesis_config]
    #[derive(frame_support::DefaultNoBound)]
    pub struct GenesisConfig<T: Config> {
        /// Blocks between two bills of a contract; 0 for TFChain's.
        pub billing_frequency: u64,
        #[serde(skip)]
        pub _config: core::marker::PhantomData<T>,
    }

    #[pallet::genesis_build]
    impl<T: Config> BuildGenesisConfig for GenesisConfig<T> {
        fn build(&self) {
            if self.billing_frequency > 0 {
                BillingFrequency::<T>::put(self.billing_frequency);
            }
        }
    }

    #[pallet::hooks]
    impl<T: Config> Hooks<BlockNumberFor<T>> for Pallet<T> {
        /// Bills the contracts whose turn this block is.
        fn on_initialize(block: BlockNumberFor<T>) -> Weight {
            Self::bill_contracts_of_block(UniqueSaturatedInto::<u64>::unique_saturated_into(block));
            Weight::zero()
        }
    }

    #[pallet::call]
    impl<T: Config> Pallet<T> {
        #[pallet::call_index(0)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn create_node_contract(
            origin: OriginFor<T>,
            node_id: u32,
            deployment_hash: [u8; 32],
            deployment_data: Bytes<DEPLOYMENT_DATA_MAX>,
            public_ips: u32,
            solution_provider_id: Option<u64>,
        ) -> DispatchResult {
            let who = ensure_signed(origin)?;
            let wanted = super::grid_contract::WantedNodeContract {
                node_id,
                deployment_hash,
                deployment_data,
                public_ips,
            };
            Self::do_create_node_contract(&who, wanted, solution_provider_id)
        }

        #[pallet::call_index(1)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn update_node_contract(
            origin: OriginFor<T>,
            contract_id: u64,
            deployment_hash: [u8; 32],
            deployment_data: Bytes<DEPLOYMENT_DATA_MAX>,
        ) -> DispatchResult {
            let who = ensure_signed(origin)?;
            Self::do_update_node_contract(&who, contract_id, deployment_hash, deployment_data)
        }

        #[pallet::call_index(2)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn cancel_contract(origin: OriginFor<T>, contract_id: u64) -> DispatchResult {
            let who = ensure_signed(origin)?;
            let contract = Contracts::<T>::get(contract_id).ok_or(Error::<T>::ContractNotExists)?;
            let twin_id =
                tfgrid::TwinIdByAccountID::<T>::get(&who).ok_or(Error::<T>::TwinNotExists)?;
            ensure!(contract.twin_id == twin_id, Error::<T>::TwinNotAuthorizedToCancelContract);
            Self::do_cancel_contract(contract, Cause::CanceledByUser)
        }

        #[pallet::call_index(4)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn create_name_contract(origin: OriginFor<T>, name: Vec<u8>) -> DispatchResult {
            Self::do_create_name_contract(&ensure_signed(origin)?, name)
        }

        #[pallet::call_index(5)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn add_nru_reports(
            origin: OriginFor<T>,
            reports: Vec<NruConsumption>,
        ) -> DispatchResultWithPostInfo {
            Self::do_add_nru_reports(&ensure_signed(origin)?, reports)?;
            Ok(Pays::No.into())
        }

        #[pallet::call_index(6)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn report_contract_resources(
            origin: OriginFor<T>,
            contract_resources: Vec<ContractResources>,
        ) -> DispatchResultWithPostInfo {
            Self::do_report_resources(&ensure_signed(origin)?, contract_resources)?;
            Ok(Pays::No.into())
        }

        #[pallet::call_index(7)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn create_rent_contract(
            origin: OriginFor<T>,
            node_id: u32,
            solution_provider_id: Option<u64>,
        ) -> DispatchResult {
            Self::do_create_rent_contract(&ensure_signed(origin)?, node_id, solution_provider_id)
        }

        #[pallet::call_index(10)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn bill_contract_for_block(
            origin: OriginFor<T>,
            contract_id: u64,
        ) -> DispatchResultWithPostInfo {
            T::Collective::ensure_origin(origin).map_err(|_| Error::<T>::IsNotAnAuthority)?;
            Self::bill_contract(contract_id)?;
            Ok(Pays::No.into())
        }

        #[pallet::call_index(18)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn change_billing_frequency(origin: OriginFor<T>, frequency: u64) -> DispatchResult {
            T::Collective::ensure_origin(origin)?;
            ensure!(frequency > BillingFrequency::<T>::get(), Error::<T>::CanOnlyIncreaseFrequency);
            BillingFrequency::<T>::put(frequency);
            Self::deposit_event(Event::BillingFrequencyChanged(frequency));
            Ok(())
        }

        #[pallet::call_index(20)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn set_dedicated_node_extra_fee(
            origin: OriginFor<T>,
            node_id: u32,
            extra_fee: u64,
        ) -> DispatchResultWithPostInfo {
            Self::do_set_extra_fee(&ensure_signed(origin)?, node_id, extra_fee)?;
            Ok(Pays::No.into())
        }

        #[pallet::call_index(21)]
        #[pallet::weight(CALL_WEIGHT)]
        pub fn cancel_contract_collective(
            origin: OriginFor<T>,
            contract_id: u64,
        ) -> DispatchResult {
            T::Collective::ensure_origin(origin)?;
            let contract = Contracts::<T>::get(contract_id).ok_or(Error::<T>::ContractNotExists)?;
            Self::do_cancel_contract(contract, Cause::CanceledByCollective)
        }
    }
}

impl<T: Config> crate::pallets::tfgrid::NodeContracts for Pallet<T> {
    fn any_on(node_id: u32) -> bool {
        !ActiveNodeContracts::<T>::get(node_id).is_empty()
            || ActiveRentContractForNode::<T>::contains_key(node_id)
    }
}
