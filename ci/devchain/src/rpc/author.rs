//! `author_*`: transactions on their way into a block.

use jsonrpsee::{
    PendingSubscriptionSink, RpcModule, core::RegisterMethodError, types::ErrorObjectOwned,
};
use serde_json::{Value, json};
use sp_core::H256;
use sp_runtime::transaction_validity::TransactionValidityError;

use super::{from_hex, hex, notify, pace::Pace};
use crate::{DevChain, PoolError, SubmitError, TxStatus};

// The codes of a Substrate node, by which clients tell these apart.
const BAD_FORMAT: i32 = 1001;
const INVALID_TRANSACTION: i32 = 1010;
const UNKNOWN_VALIDITY: i32 = 1011;
const ALREADY_IMPORTED: i32 = 1013;
const TOO_LOW_PRIORITY: i32 = 1014;
const IMMEDIATELY_DROPPED: i32 = 1016;

pub(super) fn register(module: &mut RpcModule<DevChain>) -> Result<(), RegisterMethodError> {
    module.register_blocking_method("author_submitExtrinsic", |params, chain, _| {
        let (extrinsic,): (String,) = params.parse()?;
        chain.submit(from_hex(&extrinsic)?).map_err(|error| refusal(&error))
    })?;
    module.register_method("author_pendingExtrinsics", |_, chain, _| {
        chain.pending().iter().map(|bytes| hex(bytes)).collect::<Vec<String>>()
    })?;
    module.register_subscription(
        "author_submitAndWatchExtrinsic",
        "author_extrinsicUpdate",
        "author_unwatchExtrinsic",
        |params, pending, chain, extensions| async move {
            let parsed = params.parse::<(String,)>();
            let pace = extensions.get::<Pace>().cloned().unwrap_or_default();
            watch(parsed.map(|(extrinsic,)| extrinsic), pending, (*chain).clone(), pace).await;
        },
    )?;
    Ok(())
}

async fn watch(
    extrinsic: Result<String, ErrorObjectOwned>,
    pending: PendingSubscriptionSink,
    chain: DevChain,
    pace: Pace,
) {
    let submitted = tokio::task::spawn_blocking(move || {
        let bytes = from_hex(&extrinsic?)?;
        chain.submit_and_watch(bytes).map_err(|error| refusal(&error))
    })
    .await;
    let mut statuses = match submitted {
        Ok(Ok((_, statuses))) => statuses,
        Ok(Err(refusal)) => return pending.reject(refusal).await,
        Err(_) => return pending.reject(refusal(&SubmitError::Panicked)).await,
    };
    let Ok(sink) = pending.accept().await else { return };
    loop {
        let status = tokio::select! {
            status = statuses.recv() => status,
            () = sink.closed() => return,
        };
        let Some(status) = status else { return };
        if matches!(status, TxStatus::Finalized(_)) {
            tokio::select! {
                () = tokio::time::sleep(pace.finality_time()) => {}
                () = sink.closed() => return,
            }
        }
        if !notify(&sink, &status_json(status)).await {
            return;
        }
    }
}

fn status_json(status: TxStatus) -> Value {
    let with = |name: &str, hash: H256| json!({ name: hash });
    match status {
        TxStatus::Future => json!("future"),
        TxStatus::Ready => json!("ready"),
        TxStatus::InBlock(hash) => with("inBlock", hash),
        TxStatus::Finalized(hash) => with("finalized", hash),
        TxStatus::Usurped(hash) => with("usurped", hash),
        TxStatus::Dropped => json!("dropped"),
        TxStatus::Invalid => json!("invalid"),
    }
}

fn refusal(error: &SubmitError) -> ErrorObjectOwned {
    let (code, message, data) = match error {
        SubmitError::Undecodable(_) | SubmitError::Unsigned => {
            (BAD_FORMAT, "Extrinsic has invalid format".to_owned(), error.to_string())
        }
        SubmitError::Invalid(TransactionValidityError::Invalid(reason)) => {
            let reason: &'static str = (*reason).into();
            (INVALID_TRANSACTION, "Invalid Transaction".to_owned(), reason.to_owned())
        }
        SubmitError::Invalid(TransactionValidityError::Unknown(reason)) => {
            let reason: &'static str = (*reason).into();
            (UNKNOWN_VALIDITY, "Unknown Transaction Validity".to_owned(), reason.to_owned())
        }
        SubmitError::Panicked => {
            (INVALID_TRANSACTION, "Invalid Transaction".to_owned(), error.to_string())
        }
        SubmitError::Pool(PoolError::AlreadyImported) => {
            (ALREADY_IMPORTED, "Transaction Already Imported".to_owned(), error.to_string())
        }
        SubmitError::Pool(PoolError::TooLowPriority { .. }) => {
            (TOO_LOW_PRIORITY, "Priority is too low".to_owned(), error.to_string())
        }
        SubmitError::Pool(PoolError::Full | PoolError::TooFarAhead { .. }) => {
            (IMMEDIATELY_DROPPED, "Immediately Dropped".to_owned(), error.to_string())
        }
    };
    ErrorObjectOwned::owned(code, message, Some(data))
}
