//! What nodes can do: asked of them over the message bus.
//!
//! The chain does not know it, and clients choose by it between the full and the light form of what they
//! deploy. As the grid's own proxy does, this asks each node for its features when it appears, soon
//! again as long as it does not answer, and every now and then after that.
//!
//! Nodes answer twins only. So there is a twin for this, `//Proxy` among the well-known accounts of a
//! development chain; it is made when there is a first node to ask.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use devchain::pallets::tfgrid;
use devchain::runtime::RuntimeCall;
use devchain::types::{AccountId32, Bytes, TFT};
use devchain::{DevChain, TxStatus, genesis, sign_call};
use hostd_rmb::identity::Identity;
use hostd_rmb::peer::{Call, Peer, PeerConfig};
use hostd_rmb::relay::{RelayAddress, TrustedRoots};
use hostd_rmb::server::Commands;
use hostd_rmb::signature::Scheme;
use hostd_rmb::twins::TwinId;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{debug, warn};

use crate::index::Index;
use crate::twins::ChainTwins;

/// The account that asks, behind `//`.
const NAME: &str = "Proxy";
/// What it is given for its calls.
const FUNDS_TFT: u128 = 10;
/// What the command is called.
const COMMAND: &str = "zos.system.node_features_get";
/// How often it is looked who is to be asked.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// After how long a node that answered is asked again.
const REFRESH_INTERVAL: Duration = Duration::from_secs(600);
/// After how long one that did not is asked again; each time twice as long.
const RETRY_INTERVAL_MIN: Duration = Duration::from_secs(1);
const RETRY_INTERVAL_MAX: Duration = Duration::from_secs(60);
/// How long an answer may take.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
/// Nodes that are asked at a time.
const ASKED_COUNT_MAX: usize = 32;
/// Most features of a node, and the longest one.
const FEATURE_COUNT_MAX: usize = 64;
const FEATURE_SIZE_MAX: usize = 64;
/// The terms that the account accepts.
const TERMS: (&str, &str) = ("devgrid", "00000000000000000000000000000000");

/// When a node is to be asked.
struct Schedule {
    next: Instant,
    pause: Duration,
}

/// Asks nodes by way of the relay at `relay`, whose name on the chain is `relay_name`, for ever.
pub(crate) async fn run(
    chain: DevChain,
    index: Arc<Index>,
    relay: RelayAddress,
    relay_name: &'static str,
) -> anyhow::Result<()> {
    let mut looks = interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut peer = None;
    let mut schedules = HashMap::<u32, Schedule>::new();
    let mut questions = JoinSet::new();
    loop {
        tokio::select! {
            _ = looks.tick() => {}
            Some(asked) = questions.join_next() => {
                match asked {
                    Ok((node, features)) => answered(&index, &mut schedules, node, features),
                    Err(error) => warn!(%error, "a question to a node"),
                }
                continue;
            }
        }
        let due = due(&index, &mut schedules, ASKED_COUNT_MAX - questions.len());
        if due.is_empty() {
            continue;
        }
        if peer.is_none() {
            match start(&chain, relay.clone(), relay_name).await {
                Ok(started) => peer = Some(Arc::new(started)),
                Err(error) => {
                    warn!("nodes can't be asked what they can do: {error:#}");
                    continue;
                }
            }
        }
        for (node, twin) in due {
            let (Some(peer), Some(twin)) = (peer.clone(), TwinId::new(twin)) else { continue };
            // It has its turn when it answered, or failed to.
            schedules.entry(node).and_modify(|schedule| schedule.next += ANSWER_TIME_MAX * 2);
            questions.spawn(async move { (node, ask(&peer, twin).await) });
        }
    }
}

/// Up to `most` nodes that are to be asked now, with their twins.
fn due(index: &Index, schedules: &mut HashMap<u32, Schedule>, most: usize) -> Vec<(u32, u32)> {
    let now = Instant::now();
    let tables = index.read();
    schedules.retain(|node, _| tables.nodes.contains_key(node));
    let mut due = Vec::new();
    for node in tables.nodes.values() {
        let first = || Schedule { next: now, pause: RETRY_INTERVAL_MIN };
        let schedule = schedules.entry(node.id).or_insert_with(first);
        if schedule.next <= now && due.len() < most {
            due.push((node.id, node.twin_id));
        }
    }
    due
}

/// Takes down what a node said, or when it is asked again.
fn answered(
    index: &Index,
    schedules: &mut HashMap<u32, Schedule>,
    node: u32,
    features: anyhow::Result<Vec<String>>,
) {
    let Some(schedule) = schedules.get_mut(&node) else { return };
    match features {
        Ok(features) => {
            schedule.pause = RETRY_INTERVAL_MIN;
            schedule.next = Instant::now() + REFRESH_INTERVAL;
            if let Some(row) = index.write().nodes.get_mut(&node) {
                row.features = features;
            }
        }
        Err(error) => {
            debug!(node, "no features: {error:#}");
            schedule.next = Instant::now() + schedule.pause;
            schedule.pause = (schedule.pause * 2).min(RETRY_INTERVAL_MAX);
        }
    }
}

async fn ask(peer: &Peer, twin: TwinId) -> anyhow::Result<Vec<String>> {
    let call = Call::new(twin, COMMAND, "").time_max(ANSWER_TIME_MAX).fail_fast(true);
    read_features(&peer.call(call).await?)
}

/// A node is believed no more than a list of short names.
fn read_features(answer: &[u8]) -> anyhow::Result<Vec<String>> {
    let features: Vec<String> = serde_json::from_slice(answer).context("not a list of names")?;
    if features.len() > FEATURE_COUNT_MAX
        || features.iter().any(|name| name.len() > FEATURE_SIZE_MAX)
    {
        bail!("more than {FEATURE_COUNT_MAX} names, or longer than {FEATURE_SIZE_MAX} bytes");
    }
    Ok(features)
}

/// The twin that asks, on the bus.
async fn start(
    chain: &DevChain,
    relay: RelayAddress,
    relay_name: &'static str,
) -> anyhow::Result<Peer> {
    let twin = ensure_twin(chain, relay_name).await?;
    let config = PeerConfig {
        twin: TwinId::new(twin).context("twin 0")?,
        session: None,
        relays: vec![relay],
        encryption: None,
        roots: TrustedRoots::new(None)?,
        limits: Default::default(),
    };
    let identity = Identity::from_phrase(Scheme::Sr25519, &format!("//{NAME}"))?;
    let twins = Arc::new(ChainTwins(chain.clone()));
    let peer = Peer::start(config, Arc::new(identity), twins, Commands::default())?;
    if !peer.wait_connected(ANSWER_TIME_MAX).await {
        bail!("no connection to the relay");
    }
    Ok(peer)
}

/// The number of the account's twin, which is made if there is none.
async fn ensure_twin(chain: &DevChain, relay_name: &'static str) -> anyhow::Result<u32> {
    let account = genesis::dev_account(NAME);
    if let Some(twin) = twin_of(chain, &account) {
        return Ok(twin);
    }
    let (funded, purse) = (account.clone(), chain.clone());
    tokio::task::spawn_blocking(move || purse.fund(funded, FUNDS_TFT * TFT)).await??;
    let (document_link, document_hash) = TERMS;
    let terms = tfgrid::Call::user_accept_tc {
        document_link: bytes(document_link)?,
        document_hash: bytes(document_hash)?,
    };
    let twin = tfgrid::Call::create_twin { relay: Some(bytes(relay_name)?), pk: None };
    for call in [terms, twin] {
        submit(chain, RuntimeCall::TfgridModule(call)).await?;
    }
    twin_of(chain, &account).context("the chain made no twin")
}

/// A text as the chain has it.
fn bytes<const N: u32>(text: &str) -> anyhow::Result<Bytes<N>> {
    Bytes::try_from(text.as_bytes().to_vec()).map_err(|_| anyhow!("{text:?} is too long"))
}

fn twin_of(chain: &DevChain, account: &AccountId32) -> Option<u32> {
    chain.view(None)?.twin_of_account(account)
}

/// Makes a call, and waits until it is in a block.
async fn submit(chain: &DevChain, call: RuntimeCall) -> anyhow::Result<()> {
    let nonce = chain.next_nonce(&genesis::dev_account(NAME));
    let signed = sign_call(call, &genesis::dev_key(NAME), nonce, chain.genesis());
    let (_, mut statuses) = chain.submit_and_watch(signed)?;
    while let Some(status) = statuses.recv().await {
        match status {
            TxStatus::Future | TxStatus::Ready => {}
            TxStatus::InBlock(_) | TxStatus::Finalized(_) => return Ok(()),
            TxStatus::Usurped(_) | TxStatus::Dropped | TxStatus::Invalid => {
                bail!("a call of //{NAME} was refused: {status:?}");
            }
        }
    }
    bail!("the chain ended")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::samples::tables;

    fn index() -> Index {
        let index = Index::default();
        *index.write() = tables();
        index
    }

    #[tokio::test(start_paused = true)]
    async fn nodes_are_asked_again_the_later_the_less_they_answer() {
        let (index, mut schedules) = (index(), HashMap::new());
        let all = due(&index, &mut schedules, 10);
        assert_eq!(all, [(1, 2), (2, 3), (3, 4)]);
        assert_eq!(due(&index, &mut schedules, 2).len(), 2);
        answered(&index, &mut schedules, 1, Ok(vec!["zdb".into()]));
        assert_eq!(index.read().nodes[&1].features, ["zdb"]);
        for node in [2, 3] {
            answered(&index, &mut schedules, node, Err(anyhow::anyhow!("offline")));
        }
        assert!(due(&index, &mut schedules, 10).is_empty());
        tokio::time::advance(RETRY_INTERVAL_MIN).await;
        assert_eq!(due(&index, &mut schedules, 10), [(2, 3), (3, 4)]);
        answered(&index, &mut schedules, 2, Err(anyhow::anyhow!("offline")));
        tokio::time::advance(RETRY_INTERVAL_MIN).await;
        assert_eq!(due(&index, &mut schedules, 10), [(3, 4)], "twice as long");
        tokio::time::advance(REFRESH_INTERVAL).await;
        assert_eq!(due(&index, &mut schedules, 10).len(), 3);
        index.write().nodes.remove(&3);
        due(&index, &mut schedules, 10);
        assert_eq!(schedules.len(), 2);
    }

    #[test]
    fn a_node_is_believed_no_more_than_short_names() {
        assert_eq!(read_features(br#"["zdb","zmount"]"#).unwrap(), ["zdb", "zmount"]);
        let many = serde_json::to_vec(&vec!["zdb"; FEATURE_COUNT_MAX + 1]).unwrap();
        let long = serde_json::to_vec(&["z".repeat(FEATURE_SIZE_MAX + 1)]).unwrap();
        for answer in [&many[..], &long, b"null", b"{}", b"[1]", b""] {
            assert!(read_features(answer).is_err());
        }
    }
}
