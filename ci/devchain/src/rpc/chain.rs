//! `chain_*`: blocks and headers.

use jsonrpsee::{PendingSubscriptionSink, RpcModule, core::RegisterMethodError};
use serde::Deserialize;
use serde_json::{Value, json};
use sp_core::H256;

use super::{RpcResult, block_number, hex, next_block, notify};
use crate::{DevChain, runtime::Header, types::BlockNumber};

/// The most heights of one `chain_getBlockHash`.
const HASHES_MAX: usize = 1024;

/// A height as clients write it.
#[derive(Clone, Copy, Deserialize)]
#[serde(untagged)]
enum Height {
    Number(u64),
    Hex(sp_core::U256),
}

impl Height {
    fn number(self) -> Option<BlockNumber> {
        match self {
            Self::Number(number) => u32::try_from(number).ok(),
            Self::Hex(number) => u32::try_from(number).ok(),
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Heights {
    One(Height),
    Many(Vec<Height>),
}

pub(super) fn register(module: &mut RpcModule<DevChain>) -> Result<(), RegisterMethodError> {
    module.register_method("chain_getBlockHash", |params, chain, _| {
        let heights: Option<Heights> = params.sequence().optional_next()?;
        RpcResult::Ok(block_hash(chain, heights))
    })?;
    module.register_method("chain_getHeader", |params, chain, _| {
        let hash: Option<H256> = params.sequence().optional_next()?;
        // An unknown block has no header: that is no error here.
        RpcResult::Ok(block_number(chain, hash).ok().and_then(|number| chain.header(number)))
    })?;
    module.register_method("chain_getBlock", |params, chain, _| {
        let hash: Option<H256> = params.sequence().optional_next()?;
        RpcResult::Ok(block_number(chain, hash).ok().and_then(|number| block(chain, number)))
    })?;
    for name in ["chain_getFinalizedHead", "chain_getFinalisedHead"] {
        module.register_method(name, |_, chain, _| chain.head().hash)?;
    }
    let subscriptions = [
        ("chain_subscribeNewHeads", "chain_newHead", "chain_unsubscribeNewHeads"),
        ("chain_subscribeNewHead", "chain_newHead", "chain_unsubscribeNewHead"),
        ("chain_subscribeAllHeads", "chain_allHead", "chain_unsubscribeAllHeads"),
        (
            "chain_subscribeFinalizedHeads",
            "chain_finalizedHead",
            "chain_unsubscribeFinalizedHeads",
        ),
    ];
    for (subscribe, notification, unsubscribe) in subscriptions {
        module.register_subscription(
            subscribe,
            notification,
            unsubscribe,
            |_, pending, chain, _| async move { heads(pending, (*chain).clone()).await },
        )?;
    }
    Ok(())
}

fn block_hash(chain: &DevChain, heights: Option<Heights>) -> Value {
    let one = |height: Height| height.number().and_then(|number| chain.hash(number));
    match heights {
        None => json!(chain.head().hash),
        Some(Heights::One(height)) => json!(one(height)),
        Some(Heights::Many(heights)) => {
            json!(heights.into_iter().take(HASHES_MAX).map(one).collect::<Vec<_>>())
        }
    }
}

fn block(chain: &DevChain, number: BlockNumber) -> Option<Value> {
    let header = chain.header(number)?;
    let extrinsics: Vec<String> =
        chain.extrinsics(number)?.iter().map(|bytes| hex(bytes)).collect();
    Some(json!({
        "block": { "header": header, "extrinsics": extrinsics },
        "justifications": null,
    }))
}

/// The head now, then each new one. A slow client misses heads, never the newest.
async fn heads(pending: PendingSubscriptionSink, chain: DevChain) {
    let mut blocks = chain.subscribe();
    let head: Option<Header> = chain.header(chain.head().number);
    // The chain must be able to end while clients listen.
    drop(chain);
    let Ok(sink) = pending.accept().await else { return };
    let Some(head) = head else { return };
    let mut last = head.number;
    if !notify(&sink, &head).await {
        return;
    }
    loop {
        let block = tokio::select! {
            block = next_block(&mut blocks) => block,
            () = sink.closed() => return,
        };
        let Some(block) = block else { return };
        if block.number > last {
            last = block.number;
            if !notify(&sink, &block.header).await {
                return;
            }
        }
    }
}
