//! Transactions signed in-process, for the chain's own purse and for programs that embed the chain.

use codec::Encode as _;
use sp_core::{H256, Pair as _, sr25519};
use sp_runtime::{MultiSignature, generic::Era};

use crate::runtime::{
    Address, ContractIdProvides, Runtime, RuntimeCall, SignedPayload, TxExtension,
    UncheckedExtrinsic, VERSION,
};

/// `call` signed by `key`: immortal, without a tip, ready to be submitted to the chain with this
/// genesis.
#[must_use]
pub fn sign_call(call: RuntimeCall, key: &sr25519::Pair, nonce: u32, genesis: H256) -> Vec<u8> {
    let extension: TxExtension = (
        frame_system::CheckNonZeroSender::<Runtime>::new(),
        frame_system::CheckSpecVersion::<Runtime>::new(),
        frame_system::CheckTxVersion::<Runtime>::new(),
        frame_system::CheckGenesis::<Runtime>::new(),
        frame_system::CheckMortality::<Runtime>::from(Era::Immortal),
        frame_system::CheckNonce::<Runtime>::from(nonce),
        frame_system::CheckWeight::<Runtime>::new(),
        pallet_transaction_payment::ChargeTransactionPayment::<Runtime>::from(0),
        ContractIdProvides,
    );
    let implicit = (
        (),
        VERSION.spec_version,
        VERSION.transaction_version,
        genesis,
        genesis,
        (),
        (),
        (),
        (),
    );
    let payload = SignedPayload::from_raw(call.clone(), extension.clone(), implicit);
    let signature = payload.using_encoded(|bytes| key.sign(bytes));
    let signer = Address::Id(key.public().into());
    UncheckedExtrinsic::new_signed(call, signer, MultiSignature::Sr25519(signature), extension)
        .encode()
}
