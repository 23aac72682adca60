//! A node on the grid: known to the chain, reachable by message, doing what its contracts say.
//!
//! [`Node::start`] makes sure, in this order, that the chain has the node's account, twin and itself,
//! each made or updated only if it has to be; then deployments go on where they were, messages are
//! answered, and three duties run for ever: uptime every forty minutes, the chain's events as they
//! come, and everything compared every hour, or at once when events were missed.
//!
//! None of them ends when the chain can't be reached: each waits, and goes on.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hostd_chain::calls::NodeSpec;
use hostd_chain::{Chain, ChainError, Event, SigningChain};
use hostd_grid::ContractId;
use hostd_rmb::identity::Identity;
use hostd_rmb::peer::{Peer, PeerConfig, StartError};
use hostd_rmb::relay::{RelayAddress, TrustedRoots};
use hostd_rmb::server::limits::Limits;
use hostd_rmb::signature::Version;
use hostd_rmb::twins::{CachedTwins, TwinId, Twins};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{info, warn};

use crate::commands::commands;
use crate::engine::{Engine, EngineConfig};
use crate::host::Host;
use crate::ledger::Ledger;
use crate::store::{Store, StoreError, StoreKey};
use crate::tfchain::TfChain;

/// How often a node says that it is there.
const UPTIME_INTERVAL: Duration = Duration::from_secs(40 * 60);
/// How often everything is compared.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(3600);
/// How long a duty that failed waits before it is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);
/// What joins the names of a twin's relays on the chain.
const RELAY_SEPARATOR: &str = "_";

/// What a node is told.
pub struct NodeConfig {
    /// Where its deployments are kept.
    pub folder: PathBuf,
    /// What they are sealed with.
    pub key: StoreKey,
    /// Its relays.
    pub relays: Vec<RelayAddress>,
    /// Whose certificates relays may show.
    pub roots: TrustedRoots,
    /// Where a new account gets its first tokens.
    pub activation_urls: Vec<String>,
    /// How much others may ask for.
    pub limits: Limits,
    /// How long a contract may lag behind the message; see [`EngineConfig::confirm_patience`].
    pub confirm_patience: Duration,
    /// What the chain is to know of it.
    pub spec: NodeSpec,
}

/// Why there is no node.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The chain does not know it, and can't be told.
    #[error("registration")]
    Chain(#[from] ChainError),
    /// Its deployments can't be read.
    #[error("deployments")]
    Store(#[from] StoreError),
    /// It can't be reached.
    #[error("message bus")]
    Peer(#[from] StartError),
    /// The chain gave it a number that nobody has.
    #[error("the chain says that this node is twin 0")]
    Twin,
}

/// A node, until it is dropped. What runs on its host goes on.
pub struct Node {
    /// Its number on the chain.
    pub node_id: u32,
    /// Its twin's number.
    pub twin_id: u32,
    engine: Arc<Engine>,
    peer: Peer,
    _duties: JoinSet<()>,
}

impl Node {
    /// Registers, and starts everything. Must be called in a tokio runtime.
    ///
    /// # Errors
    ///
    /// Registration failed, or there is no place for deployments.
    pub async fn start(
        config: NodeConfig,
        identity: Arc<Identity>,
        chain: Chain,
        host: Arc<dyn Host>,
    ) -> Result<Self, NodeError> {
        let signing = chain.signed_by(Arc::clone(&identity));
        let (twin_id, node_id) = register(&signing, &config, &identity).await?;
        // Events from here on are followed, and what was before is compared.
        let head = chain.finalized().await?;
        info!(node_id, twin_id, "registered");

        let twin = TwinId::new(twin_id).ok_or(NodeError::Twin)?;
        let store = Store::open(config.folder, config.key)?;
        let ledger: Arc<dyn Ledger> = Arc::new(TfChain::new(signing.clone(), node_id));
        let engine_config = EngineConfig { node_id, confirm_patience: config.confirm_patience };
        let engine = Engine::start(engine_config, store, ledger, Arc::clone(&host)).await?;
        let engine = Arc::new(engine);

        let twins = Arc::new(CachedTwins::new(Arc::new(chain.clone())));
        let peer_config = PeerConfig {
            twin,
            session: None,
            relays: config.relays,
            encryption: Some(Version::V1),
            roots: config.roots,
            limits: config.limits,
        };
        let known = Arc::clone(&twins) as Arc<dyn Twins>;
        let peer = Peer::start(peer_config, identity, known, commands(&engine, &host))?;

        let mut duties = JoinSet::new();
        duties.spawn(report_uptime(signing, Instant::now()));
        duties.spawn(reconcile(Arc::clone(&engine)));
        duties.spawn(follow(chain, head.saturating_add(1), node_id, Arc::clone(&engine), twins));
        Ok(Self { node_id, twin_id, engine, peer, _duties: duties })
    }

    /// Its deployments.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Its place on the message bus.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }
}

/// Account, twin, node: their numbers.
async fn register(
    chain: &SigningChain,
    config: &NodeConfig,
    identity: &Identity,
) -> Result<(u32, u32), ChainError> {
    chain.ensure_account(&config.activation_urls).await?;
    let relays: Vec<_> = config.relays.iter().map(RelayAddress::host).collect();
    let key = identity.encryption_key(Version::V1).to_bytes();
    let twin = chain.ensure_twin(Some(&relays.join(RELAY_SEPARATOR)), Some(&key)).await?;
    let node = chain.ensure_node(&config.spec).await?;
    Ok((twin, node))
}

/// Says every now and then that the node is there.
async fn report_uptime(chain: SigningChain, since: Instant) {
    loop {
        let unix = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let unix = unix.map_or(0, |time| time.as_secs());
        let pause = match chain.report_uptime(since.elapsed().as_secs(), unix).await {
            Ok(()) => UPTIME_INTERVAL,
            Err(error) => {
                warn!(%error, "uptime was not reported");
                RETRY_INTERVAL
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Compares everything every now and then, and at once after a failure that passes.
async fn reconcile(engine: Arc<Engine>) {
    loop {
        let pause = match engine.reconcile().await {
            Ok(()) => RECONCILE_INTERVAL,
            Err(error) => {
                warn!(%error, "not everything was compared");
                RETRY_INTERVAL
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Does what the chain's events say.
async fn follow(
    chain: Chain,
    from: hostd_chain::BlockNumber,
    node_id: u32,
    engine: Arc<Engine>,
    twins: Arc<CachedTwins>,
) {
    let mut follow = chain.follow(from);
    // Whatever was missed is compared, again and again until it succeeds.
    let mut is_behind = false;
    let mut retry = interval(RETRY_INTERVAL);
    retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            block = follow.next() => {
                if let Some(missed) = block.missed {
                    warn!(?missed, "blocks were missed: everything is compared");
                    twins.clear();
                    is_behind = true;
                    retry.reset_immediately();
                }
                for event in block.events {
                    obey(event, node_id, &engine, &twins).await;
                }
            }
            _ = retry.tick(), if is_behind => is_behind = engine.reconcile().await.is_err(),
        }
    }
}

/// Does what one event says, if it is about this node or about somebody who may write to it.
async fn obey(event: Event, node_id: u32, engine: &Engine, twins: &CachedTwins) {
    match event {
        Event::TwinStored(twin) | Event::TwinUpdated(twin) => {
            if let Some(id) = TwinId::new(twin.id) {
                twins.invalidate(id);
            }
        }
        Event::NodeContractCanceled(over) if over.node_id == node_id => {
            engine.cancel(ContractId(over.contract_id), "contract canceled event received").await;
        }
        Event::GracePeriodStarted(unpaid) if unpaid.node_id == node_id => {
            engine.set_grace(ContractId(unpaid.contract_id), true).await;
        }
        Event::GracePeriodEnded(paid) if paid.node_id == node_id => {
            engine.set_grace(ContractId(paid.contract_id), false).await;
        }
        _ => {}
    }
}
