//! `Balances.transfer`: a call of spec 152 that the newer FRAME here no longer has.
//!
//! Clients from npm make every transfer with it. It does what `transfer_allow_death` does, under an
//! older name and number. So the metadata lists it, and a transaction that carries it, alone or in a
//! batch, is read as the newer call. All else goes by the bytes that came: the signature, the hash,
//! the block and its root.
//!
//! [`apply`] and [`validate`] stand in for those of `Executive`, which encode a transaction and decode it
//! again, and there would meet the older number.

use codec::{Compact, Decode as _, DecodeLimit as _, Encode as _, Error};
use frame_metadata::{RuntimeMetadata, RuntimeMetadataPrefixed};
use frame_support::dispatch::{DispatchClass, GetDispatchInfo as _};
use frame_system::ChainContext;
use scale_info::{TypeDef, Variant, form::PortableForm};
use sp_core::H256;
use sp_runtime::{
    ApplyExtrinsicResult, MultiSignature,
    generic::Preamble,
    traits::{Applyable as _, Checkable as _},
    transaction_validity::{InvalidTransaction, TransactionSource, TransactionValidity},
};

use crate::{
    runtime::{Address, Executive, Runtime, RuntimeCall, System, TxExtension, UncheckedExtrinsic},
    types::Balance,
};

/// How deep calls may nest in a transaction that we decode.
const DECODE_DEPTH_MAX: u32 = 256;
/// How deep batches may nest in which an older call is looked for.
const BATCH_DEPTH_MAX: u32 = 16;

const BALANCES: u8 = 20;
const TRANSFER_ALLOW_DEATH: u8 = 0;
const TRANSFER: u8 = 7;
const UTILITY: u8 = 3;
const BATCH: u8 = 0;
const BATCH_ALL: u8 = 2;
const FORCE_BATCH: u8 = 4;

/// Reads a transaction that a client sent.
pub(crate) fn decode(bytes: &[u8]) -> Result<UncheckedExtrinsic, Error> {
    decode_exactly(bytes).or_else(|error| {
        let Ok((renamed, call_at)) = rename(bytes) else { return Err(error) };
        let mut extrinsic = decode_exactly(&renamed)?;
        extrinsic.encoded_call = bytes.get(call_at..).map(<[u8]>::to_vec);
        Ok(extrinsic)
    })
}

fn decode_exactly(bytes: &[u8]) -> Result<UncheckedExtrinsic, Error> {
    let mut rest = bytes;
    let extrinsic = UncheckedExtrinsic::decode_with_depth_limit(DECODE_DEPTH_MAX, &mut rest)?;
    if rest.is_empty() { Ok(extrinsic) } else { Err("bytes after the transaction".into()) }
}

/// A transaction with the newer numbers in place of the older ones, which makes it neither longer nor
/// shorter; and where its call begins.
pub(crate) fn rename(extrinsic: &[u8]) -> Result<(Vec<u8>, usize), Error> {
    let mut rest = extrinsic;
    Compact::<u32>::decode(&mut rest)?;
    Preamble::<Address, MultiSignature, TxExtension>::decode(&mut rest)?;
    let call_at = extrinsic.len() - rest.len();
    let mut renamed = extrinsic.to_vec();
    rename_call(&mut renamed[call_at..], 0)?;
    Ok((renamed, call_at))
}

/// Renames what is in the call that `bytes` begin with, and says how long it is.
fn rename_call(bytes: &mut [u8], depth: u32) -> Result<usize, Error> {
    if depth > BATCH_DEPTH_MAX {
        return Err("batches are nested too deep".into());
    }
    match bytes {
        [BALANCES, number, arguments @ ..] if *number == TRANSFER => {
            let mut rest = &*arguments;
            Address::decode(&mut rest)?;
            Compact::<Balance>::decode(&mut rest)?;
            *number = TRANSFER_ALLOW_DEATH;
            Ok(2 + arguments.len() - rest.len())
        }
        [UTILITY, BATCH | BATCH_ALL | FORCE_BATCH, calls @ ..] => {
            let mut rest = &*calls;
            let count = Compact::<u32>::decode(&mut rest)?.0;
            let mut at = calls.len() - rest.len();
            for _ in 0..count {
                // An empty rest is no call, which ends a count that lies.
                at += rename_call(&mut calls[at..], depth + 1)?;
            }
            Ok(2 + at)
        }
        other => {
            let mut rest = &*other;
            RuntimeCall::decode_with_depth_limit(DECODE_DEPTH_MAX, &mut rest)?;
            Ok(other.len() - rest.len())
        }
    }
}

/// Applies a transaction in the block that is being made.
pub(crate) fn apply(extrinsic: UncheckedExtrinsic) -> ApplyExtrinsicResult {
    if !extrinsic.is_signed() {
        return Executive::apply_extrinsic(extrinsic);
    }
    let encoded = extrinsic.encode();
    let length = encoded.len();
    let checked = extrinsic.check(&ChainContext::<Runtime>::default())?;
    let info = checked.get_dispatch_info();
    if !System::inherents_applied() {
        Executive::inherents_applied();
    }
    System::note_extrinsic(encoded);
    let result = checked.apply::<Runtime>(&info, length)?;
    System::note_applied_extrinsic(&result, info);
    Ok(result.map(drop).map_err(|failed| failed.error))
}

/// Whether a transaction could be in the block after `parent`.
pub(crate) fn validate(extrinsic: UncheckedExtrinsic, parent: H256) -> TransactionValidity {
    System::initialize(&(System::block_number() + 1), &parent, &Default::default());
    let length = extrinsic.encoded_size();
    let checked = extrinsic.check(&ChainContext::<Runtime>::default())?;
    let info = checked.get_dispatch_info();
    if info.class == DispatchClass::Mandatory {
        return Err(InvalidTransaction::MandatoryValidation.into());
    }
    checked.validate::<Runtime>(TransactionSource::External, &info, length)
}

/// Adds the call to metadata. Metadata of a version that we do not know stays as it is.
pub(crate) fn list_transfer(metadata: Vec<u8>) -> Vec<u8> {
    let Ok(mut decoded) = RuntimeMetadataPrefixed::decode(&mut &metadata[..]) else {
        return metadata;
    };
    match calls(&mut decoded.1).and_then(add_transfer) {
        Some(()) => decoded.encode(),
        None => metadata,
    }
}

/// The calls of balances.
fn calls(metadata: &mut RuntimeMetadata) -> Option<&mut Vec<Variant<PortableForm>>> {
    let types = match metadata {
        RuntimeMetadata::V14(inner) => &mut inner.types.types,
        RuntimeMetadata::V15(inner) => &mut inner.types.types,
        RuntimeMetadata::V16(inner) => &mut inner.types.types,
        _ => return None,
    };
    let is_call = |path: &[String]| path == ["pallet_balances", "pallet", "Call"];
    let calls = types.iter_mut().find(|entry| is_call(&entry.ty.path.segments))?;
    match &mut calls.ty.type_def {
        TypeDef::Variant(calls) => Some(&mut calls.variants),
        _ => None,
    }
}

fn add_transfer(calls: &mut Vec<Variant<PortableForm>>) -> Option<()> {
    let newer = calls.iter().find(|call| call.index == TRANSFER_ALLOW_DEATH)?.clone();
    let place = calls.iter().position(|call| call.index > TRANSFER).unwrap_or(calls.len());
    let docs = vec!["The older name of `transfer_allow_death`.".to_owned()];
    let transfer: Variant<PortableForm> =
        Variant { name: "transfer".to_owned(), index: TRANSFER, docs, ..newer };
    calls.insert(place, transfer);
    Some(())
}

#[cfg(test)]
mod tests {
    use sp_runtime::MultiAddress;

    use super::*;
    use crate::{genesis, sign_call, types::TFT};

    fn transfer(value: Balance) -> RuntimeCall {
        let dest = MultiAddress::Id(genesis::dev_account("Bob"));
        RuntimeCall::Balances(pallet_balances::Call::transfer_allow_death { dest, value })
    }

    /// A transaction with `call`, whose bytes `change` changes before they are put in.
    fn with_call(call: &RuntimeCall, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let signed = sign_call(call.clone(), &genesis::dev_key("Alice"), 0, H256::zero());
        let mut extrinsic = decode_exactly(&signed).unwrap();
        let mut bytes = call.encode();
        change(&mut bytes);
        extrinsic.encoded_call = Some(bytes);
        extrinsic.encode()
    }

    #[test]
    fn an_older_transfer_is_read_and_keeps_its_bytes() {
        let call = transfer(TFT);
        let older = with_call(&call, |bytes| bytes[1] = TRANSFER);
        assert!(decode_exactly(&older).is_err(), "FRAME knows it no more");
        let extrinsic = decode(&older).unwrap();
        assert_eq!(extrinsic.function, call);
        assert_eq!(extrinsic.encode(), older);
    }

    #[test]
    fn it_is_found_in_batches_of_batches() {
        let inner = pallet_utility::Call::batch { calls: vec![transfer(1), transfer(2)] };
        let outer = pallet_utility::Call::batch_all {
            calls: vec![transfer(3), RuntimeCall::Utility(inner), transfer(4)],
        };
        let call = RuntimeCall::Utility(outer);
        let plain = with_call(&call, |_| ());
        assert_eq!(decode(&plain).unwrap().function, call);
        let dest = transfer(1).encode()[..4].to_vec();
        let older = with_call(&call, |bytes| {
            for at in 0..bytes.len() - dest.len() {
                if bytes[at..at + dest.len()] == dest {
                    bytes[at + 1] = TRANSFER;
                }
            }
        });
        assert_ne!(older, plain);
        let extrinsic = decode(&older).unwrap();
        assert_eq!(extrinsic.function, call);
        assert_eq!(extrinsic.encode(), older);
    }

    #[test]
    fn what_is_no_transaction_stays_none() {
        let older = with_call(&transfer(TFT), |bytes| bytes[1] = TRANSFER);
        assert!(decode(&older[..older.len() - 1]).is_err());
        assert!(decode(&[&older[..], &[0]].concat()).is_err());
        let mut other = older.clone();
        let call_at = rename(&older).unwrap().1;
        other[call_at + 1] = TRANSFER + 100;
        assert!(decode(&other).is_err());
        let batch = RuntimeCall::Utility(pallet_utility::Call::batch { calls: Vec::new() });
        let lies = with_call(&batch, |bytes| {
            bytes.truncate(2);
            bytes.extend(Compact(u32::MAX).encode());
            bytes.extend([BALANCES, TRANSFER]);
        });
        assert!(decode(&lies).is_err());
        let deep = with_call(&batch, |bytes| {
            bytes.clear();
            for _ in 0..1000 {
                bytes.extend([UTILITY, BATCH, 4]);
            }
            bytes.extend([BALANCES, TRANSFER]);
        });
        assert!(decode(&deep).is_err());
    }

    #[test]
    fn metadata_of_every_version_lists_it_once() {
        let versions = crate::runtime::Runtime::metadata_versions();
        for version in versions.into_iter().filter(|version| *version < 100) {
            let bytes = crate::runtime::metadata_at(version).unwrap();
            let mut metadata = RuntimeMetadataPrefixed::decode(&mut &bytes[..]).unwrap();
            let calls = calls(&mut metadata.1).unwrap();
            let numbers: Vec<u8> = calls.iter().map(|call| call.index).collect();
            assert!(numbers.is_sorted(), "version {version}: {numbers:?}");
            let found: Vec<_> = calls.iter().filter(|call| call.name == "transfer").collect();
            assert_eq!(found.len(), 1, "version {version}");
            assert_eq!((found[0].index, found[0].fields.len()), (TRANSFER, 2));
        }
        assert_eq!(list_transfer(b"nonsense".to_vec()), b"nonsense");
    }
}
