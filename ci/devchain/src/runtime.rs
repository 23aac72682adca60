//! The runtime: TFChain's pallets at TFChain's indexes, compiled into this program.
//!
//! Its version is TFChain's 152, so that a client which keeps metadata by version meets no surprise
//! in how a call or an extrinsic is encoded. There is no WebAssembly anywhere: `api::dispatch` runs the
//! same runtime interface that a node would call in its sandbox.
#![allow(
    missing_docs,
    clippy::use_self,
    clippy::unwrap_used,
    unreachable_pub,
    unnameable_types,
    reason = "what the runtime macros generate carries no documentation and names types in full"
)]

use std::borrow::Cow;

use codec::{Decode, DecodeWithMemTracking, Encode};
use frame_support::{
    construct_runtime, derive_impl, parameter_types,
    traits::{ConstU16, ConstU32, ConstU64, ConstU128, SortedMembers, VariantCountOf},
    weights::{ConstantMultiplier, Weight, WeightToFee as WeightToFeeT},
};
use frame_system::{EnsureSignedBy, limits};
use pallet_transaction_payment::FungibleAdapter;
use scale_info::TypeInfo;
use sp_core::crypto::AccountId32;
use sp_runtime::{
    ApplyExtrinsicResult, MultiAddress, MultiSignature, Perbill, generic, impl_tx_ext_default,
    traits::{BlakeTwo256, TransactionExtension},
    transaction_validity::{TransactionSource, TransactionValidity},
};
use sp_version::RuntimeVersion;

use crate::{
    legacy,
    pallets::{kv_store, smart_contract, tfgrid, tft_price},
    types::{Balance, BlockNumber},
};

/// A header as any Substrate chain's.
pub type Header = generic::Header<BlockNumber, BlakeTwo256>;
/// A block.
pub type Block = generic::Block<Header, UncheckedExtrinsic>;
/// Who signs an extrinsic.
pub type Address = MultiAddress<AccountId32, ()>;
/// The nine extensions of spec 152.
pub type TxExtension = (
    frame_system::CheckNonZeroSender<Runtime>,
    frame_system::CheckSpecVersion<Runtime>,
    frame_system::CheckTxVersion<Runtime>,
    frame_system::CheckGenesis<Runtime>,
    frame_system::CheckMortality<Runtime>,
    frame_system::CheckNonce<Runtime>,
    frame_system::CheckWeight<Runtime>,
    pallet_transaction_payment::ChargeTransactionPayment<Runtime>,
    ContractIdProvides,
);
/// An extrinsic as it comes over the wire.
pub type UncheckedExtrinsic =
    generic::UncheckedExtrinsic<Address, RuntimeCall, MultiSignature, TxExtension>;
/// What is signed.
pub type SignedPayload = generic::SignedPayload<RuntimeCall, TxExtension>;
/// Runs blocks.
pub type Executive = frame_executive::Executive<
    Runtime,
    Block,
    frame_system::ChainContext<Runtime>,
    Runtime,
    AllPalletsWithSystem,
>;

/// The version clients sign for.
pub const VERSION: RuntimeVersion = RuntimeVersion {
    spec_name: Cow::Borrowed("substrate-threefold"),
    impl_name: Cow::Borrowed("substrate-threefold"),
    authoring_version: 1,
    spec_version: 152,
    impl_version: 1,
    apis: RUNTIME_API_VERSIONS,
    transaction_version: 2,
    system_version: 0,
};

/// Milliseconds of chain time from one block to the next, as TFChain's.
pub const BLOCK_TIME_MS: u64 = 6000;
/// Blocks a contract lives on without money on TFChain: 14 days.
pub const GRACE_PERIOD_BLOCKS: u64 = 201_600;
/// The least an account holds.
pub const EXISTENTIAL_DEPOSIT: Balance = 500;
/// How many blocks a mortal extrinsic can look back.
pub const BLOCK_HASH_COUNT: u32 = 2400;
/// The most bytes of extrinsics in a block.
const BLOCK_LENGTH: u32 = 5 * 1024 * 1024;
/// Seconds of computation a block could take on TFChain.
const BLOCK_WEIGHT: Weight =
    Weight::from_parts(2 * frame_support::weights::constants::WEIGHT_REF_TIME_PER_SECOND, u64::MAX);

parameter_types! {
    pub const Version: RuntimeVersion = VERSION;
    pub RuntimeBlockLength: limits::BlockLength =
        limits::BlockLength::builder().max_length(BLOCK_LENGTH).build();
    pub RuntimeBlockWeights: limits::BlockWeights =
        limits::BlockWeights::with_sensible_defaults(BLOCK_WEIGHT, Perbill::from_percent(75));
    // Settings of this chain alone, in its state so that every block is repeatable.
    pub storage GracePeriodBlocks: u64 = GRACE_PERIOD_BLOCKS;
    pub storage RelaxedMinimums: bool = false;
}

/// The council: `//Alice` alone.
pub struct CouncilMembers;

impl SortedMembers<AccountId32> for CouncilMembers {
    fn sorted_members() -> Vec<AccountId32> {
        vec![crate::genesis::alice()]
    }
}

/// What the council signs.
pub type Council = EnsureSignedBy<CouncilMembers, AccountId32>;

/// Where the stakers' share of every bill goes.
pub struct StakingPool;

impl frame_support::traits::Get<AccountId32> for StakingPool {
    fn get() -> AccountId32 {
        crate::genesis::staking_pool()
    }
}

/// The ninth extension. On TFChain it keeps two bills of one contract out of a block; here no bill is an
/// extrinsic, and it only has its place in the encoding, which is empty.
#[derive(
    Clone, Copy, Default, PartialEq, Eq, Debug, Encode, Decode, DecodeWithMemTracking, TypeInfo,
)]
pub struct ContractIdProvides;

impl TransactionExtension<RuntimeCall> for ContractIdProvides {
    const IDENTIFIER: &'static str = "ContractIdProvides";
    type Implicit = ();
    type Val = ();
    type Pre = ();
    impl_tx_ext_default!(RuntimeCall; weight validate prepare);
}

/// A fee of 10^-5 TFT for a call of ours, beside a unit for each byte.
pub struct WeightToFee;

impl WeightToFeeT for WeightToFee {
    type Balance = Balance;

    fn weight_to_fee(weight: &Weight) -> Balance {
        Balance::from(weight.ref_time() / 1_000_000)
    }
}

#[derive_impl(frame_system::config_preludes::SolochainDefaultConfig)]
impl frame_system::Config for Runtime {
    type Block = Block;
    type AccountData = pallet_balances::AccountData<Balance>;
    type BlockHashCount = ConstU32<BLOCK_HASH_COUNT>;
    type BlockLength = RuntimeBlockLength;
    type BlockWeights = RuntimeBlockWeights;
    type Version = Version;
    type SS58Prefix = ConstU16<42>;
    type MaxConsumers = ConstU32<16>;
}

impl pallet_timestamp::Config for Runtime {
    type Moment = u64;
    type OnTimestampSet = ();
    // TFChain's is half a block time; blocks on demand may follow one another at once.
    type MinimumPeriod = ConstU64<0>;
    type WeightInfo = ();
}

impl pallet_utility::Config for Runtime {
    type RuntimeEvent = RuntimeEvent;
    type RuntimeCall = RuntimeCall;
    type PalletsOrigin = OriginCaller;
    type WeightInfo = ();
}

#[derive_impl(pallet_balances::config_preludes::TestDefaultConfig)]
impl pallet_balances::Config for Runtime {
    type Balance = Balance;
    type ExistentialDeposit = ConstU128<EXISTENTIAL_DEPOSIT>;
    type AccountStore = System;
    type ReserveIdentifier = [u8; 8];
    type MaxLocks = ConstU32<50>;
    type MaxReserves = ConstU32<50>;
    type FreezeIdentifier = RuntimeFreezeReason;
    type MaxFreezes = VariantCountOf<RuntimeFreezeReason>;
    type RuntimeHoldReason = RuntimeHoldReason;
    type RuntimeFreezeReason = RuntimeFreezeReason;
}

impl pallet_transaction_payment::Config for Runtime {
    type RuntimeEvent = RuntimeEvent;
    type OnChargeTransaction = FungibleAdapter<Balances, ()>;
    type WeightToFee = WeightToFee;
    type LengthToFee = ConstantMultiplier<Balance, ConstU128<1>>;
    type FeeMultiplierUpdate = ();
    type OperationalFeeMultiplier = frame_support::traits::ConstU8<5>;
    type WeightInfo = ();
}

impl tfgrid::Config for Runtime {
    type Council = Council;
    type Contracts = SmartContractModule;
    type RelaxedMinimums = RelaxedMinimums;
    type MaxFarmNameLength = ConstU32<{ crate::types::FARM_NAME_MAX }>;
    type MaxFarmPublicIps = ConstU32<{ crate::types::FARM_IPS_MAX }>;
    type MaxInterfacesLength = ConstU32<{ crate::types::INTERFACES_MAX }>;
    type MaxInterfaceIpsLength = ConstU32<{ crate::types::INTERFACES_MAX }>;
    type TimestampHintDrift = ConstU64<60>;
}

impl smart_contract::Config for Runtime {
    type Currency = Balances;
    type Collective = Council;
    type GracePeriod = GracePeriodBlocks;
    type DistributionFrequency = ConstU16<24>;
    type StakingPoolAccount = StakingPool;
    type MaxNameContractNameLength = ConstU32<{ crate::types::NAME_MAX }>;
    type MaxDeploymentDataLength = ConstU32<{ crate::types::DEPLOYMENT_DATA_MAX }>;
    type MaxNodeContractPublicIps = ConstU32<{ crate::types::CONTRACT_IPS_MAX }>;
}

impl tft_price::Config for Runtime {
    type Council = Council;
}

impl kv_store::Config for Runtime {}

construct_runtime!(
    pub enum Runtime {
        System: frame_system = 0,
        Timestamp: pallet_timestamp = 1,
        Utility: pallet_utility = 3,
        Balances: pallet_balances = 20,
        TransactionPayment: pallet_transaction_payment = 21,
        TfgridModule: tfgrid = 25,
        SmartContractModule: smart_contract = 26,
        TFTPriceModule: tft_price = 28,
        TFKVStore: kv_store = 30,
    }
);

/// The metadata that clients read, at the version that all of them know.
#[must_use]
pub fn metadata() -> Vec<u8> {
    legacy::list_transfer(Runtime::metadata().into())
}

/// The metadata at a version, if there is any.
pub(crate) fn metadata_at(version: u32) -> Option<Vec<u8>> {
    Runtime::metadata_at_version(version).map(|metadata| legacy::list_transfer(metadata.to_vec()))
}

sp_api::impl_runtime_apis! {
    impl sp_api::Core<Block> for Runtime {
        fn version() -> RuntimeVersion {
            VERSION
        }

        fn execute_block(block: <Block as sp_runtime::traits::Block>::LazyBlock) {
            Executive::execute_block(block);
        }

        fn initialize_block(header: &Header) -> sp_runtime::ExtrinsicInclusionMode {
            Executive::initialize_block(header)
        }
    }

    impl sp_api::Metadata<Block> for Runtime {
        fn metadata() -> sp_core::OpaqueMetadata {
            sp_core::OpaqueMetadata::new(metadata())
        }

        fn metadata_at_version(version: u32) -> Option<sp_core::OpaqueMetadata> {
            metadata_at(version).map(sp_core::OpaqueMetadata::new)
        }

        fn metadata_versions() -> Vec<u32> {
            Runtime::metadata_versions()
        }
    }

    impl sp_block_builder::BlockBuilder<Block> for Runtime {
        fn apply_extrinsic(extrinsic: UncheckedExtrinsic) -> ApplyExtrinsicResult {
            Executive::apply_extrinsic(extrinsic)
        }

        fn finalize_block() -> Header {
            Executive::finalize_block()
        }

        fn inherent_extrinsics(data: sp_inherents::InherentData) -> Vec<UncheckedExtrinsic> {
            data.create_extrinsics()
        }

        fn check_inherents(
            block: <Block as sp_runtime::traits::Block>::LazyBlock,
            data: sp_inherents::InherentData,
        ) -> sp_inherents::CheckInherentsResult {
            data.check_extrinsics(&block)
        }
    }

    impl sp_transaction_pool::runtime_api::TaggedTransactionQueue<Block> for Runtime {
        fn validate_transaction(
            source: TransactionSource,
            extrinsic: UncheckedExtrinsic,
            block_hash: sp_core::H256,
        ) -> TransactionValidity {
            Executive::validate_transaction(source, extrinsic, block_hash)
        }
    }

    impl frame_system_rpc_runtime_api::AccountNonceApi<Block, AccountId32, u32> for Runtime {
        fn account_nonce(account: AccountId32) -> u32 {
            System::account_nonce(account)
        }
    }

    impl pallet_transaction_payment_rpc_runtime_api::TransactionPaymentApi<Block, Balance>
        for Runtime
    {
        fn query_info(
            extrinsic: UncheckedExtrinsic,
            len: u32,
        ) -> pallet_transaction_payment_rpc_runtime_api::RuntimeDispatchInfo<Balance> {
            TransactionPayment::query_info(extrinsic, len)
        }

        fn query_fee_details(
            extrinsic: UncheckedExtrinsic,
            len: u32,
        ) -> pallet_transaction_payment_rpc_runtime_api::FeeDetails<Balance> {
            TransactionPayment::query_fee_details(extrinsic, len)
        }

        fn query_weight_to_fee(weight: Weight) -> Balance {
            TransactionPayment::weight_to_fee(weight)
        }

        fn query_length_to_fee(length: u32) -> Balance {
            TransactionPayment::length_to_fee(length)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ninth_extension_takes_no_byte() {
        assert!(ContractIdProvides.encode().is_empty());
    }

    #[test]
    fn a_call_of_the_reference_encodes_to_its_bytes() {
        let call = RuntimeCall::SmartContractModule(smart_contract::Call::cancel_contract {
            contract_id: 5,
        });
        assert_eq!(call.encode(), [0x1a, 2, 5, 0, 0, 0, 0, 0, 0, 0]);
        let call = RuntimeCall::TfgridModule(tfgrid::Call::report_uptime_v2 {
            uptime: 3600,
            timestamp_hint: 1_700_000_000,
        });
        assert_eq!(
            call.encode(),
            [0x19, 0x26, 0x10, 0x0e, 0, 0, 0, 0, 0, 0, 0, 0xf1, 0x53, 0x65, 0, 0, 0, 0]
        );
    }
}
