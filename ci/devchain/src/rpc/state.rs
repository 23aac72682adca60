//! `state_*`: storage, the runtime's functions, its metadata and version; and `payment_*`, which is
//! a call of the runtime.

use codec::{Decode as _, Encode as _};
use jsonrpsee::{
    PendingSubscriptionSink, RpcModule, core::RegisterMethodError, types::ErrorObjectOwned,
};
use pallet_transaction_payment_rpc_runtime_api::{FeeDetails, RuntimeDispatchInfo};
use serde_json::{Value, json};
use sp_core::H256;

use super::{
    INVALID_PARAMS, RpcResult, UNKNOWN_BLOCK, block_number, from_hex, hex, next_block, notify,
};
use crate::{
    DevChain,
    runtime::VERSION,
    types::{Balance, BlockNumber},
};

/// The most keys of one page, as a node allows.
const PAGE_MAX: u32 = 1000;
/// The most keys that a method answers which has no pages.
const KEYS_MAX: usize = 10_000;
/// The most blocks of one `state_queryStorage`.
const QUERY_BLOCKS_MAX: u32 = 10_000;
/// The most keys of one query or subscription.
const QUERY_KEYS_MAX: usize = 1024;

pub(super) fn register(module: &mut RpcModule<DevChain>) -> Result<(), RegisterMethodError> {
    register_storage(module)?;
    register_keys(module)?;
    register_runtime(module)?;
    register_payment(module)?;
    module.register_subscription(
        "state_subscribeStorage",
        "state_storage",
        "state_unsubscribeStorage",
        |params, pending, chain, _| async move {
            let keys: Result<Option<Vec<String>>, _> = params.sequence().optional_next();
            subscribe_storage(keys, pending, (*chain).clone()).await;
        },
    )?;
    Ok(())
}

fn register_storage(module: &mut RpcModule<DevChain>) -> Result<(), RegisterMethodError> {
    for name in ["state_getStorage", "state_getStorageAt"] {
        module.register_method(name, |params, chain, _| {
            let value = storage(chain, &params)?;
            RpcResult::Ok(value.map(|value| hex(&value)))
        })?;
    }
    for name in ["state_getStorageHash", "state_getStorageHashAt"] {
        module.register_method(name, |params, chain, _| {
            let value = storage(chain, &params)?;
            RpcResult::Ok(value.map(|value| H256::from(sp_io::hashing::blake2_256(&value))))
        })?;
    }
    for name in ["state_getStorageSize", "state_getStorageSizeAt"] {
        module.register_method(name, |params, chain, _| {
            RpcResult::Ok(storage(chain, &params)?.map(|value| value.len()))
        })?;
    }
    module.register_blocking_method("state_queryStorageAt", |params, chain, _| {
        let mut params = params.sequence();
        let keys = keys_of(params.next::<Vec<String>>()?)?;
        let hash: Option<H256> = params.optional_next()?;
        let number = block_number(&chain, hash)?;
        RpcResult::Ok(vec![change_set(&chain, &keys, number, false)])
    })?;
    module.register_blocking_method("state_queryStorage", |params, chain, _| {
        let mut params = params.sequence();
        let keys = keys_of(params.next::<Vec<String>>()?)?;
        let from = block_number(&chain, Some(params.next()?))?;
        let to = block_number(&chain, params.optional_next()?)?;
        if to.saturating_sub(from) > QUERY_BLOCKS_MAX {
            let message = format!("more than {QUERY_BLOCKS_MAX} blocks");
            return Err(ErrorObjectOwned::owned(INVALID_PARAMS, message, None::<()>));
        }
        let sets = (from..=to).filter_map(|number| {
            let any = number == from || keys.iter().any(|key| chain.written_at(key, number));
            any.then(|| change_set(&chain, &keys, number, number != from))
        });
        Ok(sets.collect::<Vec<Value>>())
    })?;
    Ok(())
}

fn register_keys(module: &mut RpcModule<DevChain>) -> Result<(), RegisterMethodError> {
    for name in ["state_getKeysPaged", "state_getKeysPagedAt"] {
        module.register_blocking_method(name, |params, chain, _| {
            let mut params = params.sequence();
            let prefix = params.optional_next::<String>()?;
            let prefix = prefix.as_deref().map(from_hex).transpose()?.unwrap_or_default();
            let count: u32 = params.next()?;
            let after: Option<String> = params.optional_next()?;
            let after = after.as_deref().map(from_hex).transpose()?;
            let number = block_number(&chain, params.optional_next()?)?;
            if count > PAGE_MAX {
                let message = format!("count {count} exceeds {PAGE_MAX}");
                return Err(ErrorObjectOwned::owned(INVALID_PARAMS, message, None::<()>));
            }
            Ok(hex_all(&chain.keys(&prefix, after.as_deref(), count as usize, number)))
        })?;
    }
    module.register_blocking_method("state_getKeys", |params, chain, _| {
        let mut params = params.sequence();
        let prefix = from_hex(&params.next::<String>()?)?;
        let number = block_number(&chain, params.optional_next()?)?;
        RpcResult::Ok(hex_all(&chain.keys(&prefix, None, KEYS_MAX, number)))
    })?;
    module.register_blocking_method("state_getPairs", |params, chain, _| {
        let mut params = params.sequence();
        let prefix = from_hex(&params.next::<String>()?)?;
        let number = block_number(&chain, params.optional_next()?)?;
        let pairs = chain.keys(&prefix, None, KEYS_MAX, number).into_iter().map(|key| {
            let value = chain.storage(&key, number).unwrap_or_default();
            (hex(&key), hex(&value))
        });
        RpcResult::Ok(pairs.collect::<Vec<_>>())
    })?;
    Ok(())
}

fn register_runtime(module: &mut RpcModule<DevChain>) -> Result<(), RegisterMethodError> {
    for name in ["state_call", "state_callAt"] {
        module.register_blocking_method(name, |params, chain, _| {
            let mut params = params.sequence();
            let method: String = params.next()?;
            let data = from_hex(&params.next::<String>()?)?;
            let number = block_number(&chain, params.optional_next()?)?;
            call(&chain, &method, &data, number).map(|answer| hex(&answer))
        })?;
    }
    module.register_blocking_method("state_getMetadata", |_, chain, _| {
        let answer = call(&chain, "Metadata_metadata", &[], chain.head().number)?;
        let metadata = Vec::<u8>::decode(&mut &answer[..]).map_err(|_| no_answer("metadata"))?;
        RpcResult::Ok(hex(&metadata))
    })?;
    for name in ["state_getRuntimeVersion", "chain_getRuntimeVersion"] {
        module.register_method(name, |_, _, _| runtime_version())?;
    }
    let subscriptions = [
        (
            "state_subscribeRuntimeVersion",
            "state_runtimeVersion",
            "state_unsubscribeRuntimeVersion",
        ),
        (
            "chain_subscribeRuntimeVersion",
            "chain_runtimeVersion",
            "chain_unsubscribeRuntimeVersion",
        ),
    ];
    for (subscribe, notification, unsubscribe) in subscriptions {
        module.register_subscription(
            subscribe,
            notification,
            unsubscribe,
            |_, pending: PendingSubscriptionSink, _, _| async move {
                let Ok(sink) = pending.accept().await else { return };
                // The runtime is part of the program: its version never changes.
                if notify(&sink, &runtime_version()).await {
                    sink.closed().await;
                }
            },
        )?;
    }
    Ok(())
}

fn register_payment(module: &mut RpcModule<DevChain>) -> Result<(), RegisterMethodError> {
    module.register_blocking_method("payment_queryInfo", |params, chain, _| {
        let mut params = params.sequence();
        let data = with_length(from_hex(&params.next::<String>()?)?);
        let number = block_number(&chain, params.optional_next()?)?;
        let answer = call(&chain, "TransactionPaymentApi_query_info", &data, number)?;
        let info = RuntimeDispatchInfo::<Balance>::decode(&mut &answer[..])
            .map_err(|_| no_answer("TransactionPaymentApi_query_info"))?;
        RpcResult::Ok(json!({
            "weight": {
                "ref_time": info.weight.ref_time(),
                "proof_size": info.weight.proof_size(),
            },
            "class": "normal",
            "partialFee": info.partial_fee.to_string(),
        }))
    })?;
    module.register_blocking_method("payment_queryFeeDetails", |params, chain, _| {
        let mut params = params.sequence();
        let data = with_length(from_hex(&params.next::<String>()?)?);
        let number = block_number(&chain, params.optional_next()?)?;
        let answer = call(&chain, "TransactionPaymentApi_query_fee_details", &data, number)?;
        let details = FeeDetails::<Balance>::decode(&mut &answer[..])
            .map_err(|_| no_answer("TransactionPaymentApi_query_fee_details"))?;
        let inclusion = details.inclusion_fee.map(|fee| {
            json!({
                "baseFee": hex_number(fee.base_fee),
                "lenFee": hex_number(fee.len_fee),
                "adjustedWeightFee": hex_number(fee.adjusted_weight_fee),
            })
        });
        RpcResult::Ok(json!({ "inclusionFee": inclusion }))
    })?;
    Ok(())
}

/// The value that `(key, at)` names.
fn storage(chain: &DevChain, params: &jsonrpsee::types::Params<'_>) -> RpcResult<Option<Vec<u8>>> {
    let mut params = params.sequence();
    let key = from_hex(&params.next::<String>()?)?;
    let number = block_number(chain, params.optional_next()?)?;
    Ok(chain.storage(&key, number))
}

/// The values of `keys` after a block; only of those that it wrote when `written` is set.
fn change_set(chain: &DevChain, keys: &[Vec<u8>], number: BlockNumber, written: bool) -> Value {
    let changes: Vec<(String, Option<String>)> = keys
        .iter()
        .filter(|key| !written || chain.written_at(key, number))
        .map(|key| (hex(key), chain.storage(key, number).map(|value| hex(&value))))
        .collect();
    json!({ "block": chain.hash(number), "changes": changes })
}

async fn subscribe_storage(
    keys: Result<Option<Vec<String>>, ErrorObjectOwned>,
    pending: PendingSubscriptionSink,
    chain: DevChain,
) {
    let keys = match keys.and_then(|keys| keys_of(keys.unwrap_or_default())) {
        Ok(keys) => keys,
        Err(error) => return pending.reject(error).await,
    };
    let mut blocks = chain.subscribe();
    let Ok(sink) = pending.accept().await else { return };
    let mut last = chain.head().number;
    if !notify(&sink, &change_set(&chain, &keys, last, false)).await {
        return;
    }
    loop {
        let block = tokio::select! {
            block = next_block(&mut blocks) => block,
            () = sink.closed() => return,
        };
        let Some(block) = block else { return };
        if block.number <= last {
            continue;
        }
        // Blocks that a slow client missed may have written as well.
        let skipped = block.number > last + 1;
        last = block.number;
        let any = skipped || keys.iter().any(|key| chain.written_at(key, block.number));
        if any && !notify(&sink, &change_set(&chain, &keys, block.number, !skipped)).await {
            return;
        }
    }
}

fn keys_of(keys: Vec<String>) -> RpcResult<Vec<Vec<u8>>> {
    if keys.len() > QUERY_KEYS_MAX {
        let message = format!("{} keys are more than {QUERY_KEYS_MAX}", keys.len());
        return Err(ErrorObjectOwned::owned(INVALID_PARAMS, message, None::<()>));
    }
    keys.iter().map(|key| from_hex(key)).collect()
}

fn call(chain: &DevChain, method: &str, data: &[u8], number: BlockNumber) -> RpcResult<Vec<u8>> {
    chain.call_runtime(method, data, number).flatten().ok_or_else(|| no_answer(method))
}

fn no_answer(method: &str) -> ErrorObjectOwned {
    let message = format!("Client error: the runtime has no answer to {method}");
    ErrorObjectOwned::owned(UNKNOWN_BLOCK, message, None::<()>)
}

fn hex_all(keys: &[Vec<u8>]) -> Vec<String> {
    keys.iter().map(|key| hex(key)).collect()
}

fn hex_number(number: Balance) -> String {
    format!("{number:#x}")
}

/// A transaction with its length, as the payment functions take it.
fn with_length(mut extrinsic: Vec<u8>) -> Vec<u8> {
    let length = u32::try_from(extrinsic.len()).unwrap_or(u32::MAX);
    extrinsic.extend(length.encode());
    extrinsic
}

fn runtime_version() -> Value {
    let apis: Vec<(String, u32)> =
        VERSION.apis.iter().map(|(id, version)| (hex(id), *version)).collect();
    json!({
        "specName": VERSION.spec_name,
        "implName": VERSION.impl_name,
        "authoringVersion": VERSION.authoring_version,
        "specVersion": VERSION.spec_version,
        "implVersion": VERSION.impl_version,
        "apis": apis,
        "transactionVersion": VERSION.transaction_version,
        "systemVersion": VERSION.system_version,
        "stateVersion": VERSION.system_version,
    })
}
