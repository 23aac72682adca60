//! A node on the grid: known to the chain, reachable by message, doing what its contracts say.
//!
//! ```text
//!  numbers known ───────────────────┐
//!  unknown ─> register with the chain ─> deployments go on ─> messages are answered
//!                                        and duties run until the node is dropped
//! ```
//!
//! [`Node::start`] needs the chain only if the node was never registered: one that remembers its numbers
//! makes its workloads run first, and looks afterwards whether the chain still agrees. If it does
//! not, because it is another chain, [`Node::renumbered`] says so, and the node has to be started anew.
//!
//! The duties, none of which ends when the chain can't be reached; what fails is tried again after pauses
//! that grow (`retry`):
//!
//! | duty | when |
//! |---|---|
//! | `registration` | every half hour, and when what the node is has changed |
//! | uptime, then power | every forty minutes, while the machine is well |
//! | events | as they come |
//! | comparison of everything | every hour, and when events were missed |
//! | machines that crash again and again | every ten seconds |
//! | traffic | counted every five minutes, reported every hour |
//! | the clock, compared with the chain's, if that answers | every minute |
//! | whether a relay is there | every ten seconds |
//! | health | every fifteen minutes |
//! | how fast its processors are | every six hours |
//! | a machine that nobody reserved | every day |

mod clock;
mod duties;
mod events;
mod known;
mod registration;
mod retry;
mod selftest;
#[cfg(test)]
mod tests;
mod uptime;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hostd_chain::{Chain, ChainError};
use hostd_rmb::identity::Identity;
use hostd_rmb::peer::{Peer, PeerConfig, StartError};
use hostd_rmb::relay::{RelayAddress, TrustedRoots};
use hostd_rmb::server::Journal;
use hostd_rmb::server::limits::Limits;
use hostd_rmb::signature::Version;
use hostd_rmb::twins::{CachedTwins, TwinId, Twins};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::commands::commands;
use crate::engine::{Engine, EngineConfig};
use crate::health::Health;
use crate::host::Host;
use crate::ledger::Ledger;
use crate::news::{Courier, News};
use crate::perf::Results;
use crate::place::Place;
use crate::power::BROADCAST;
use crate::registrar::{Account, Registrar};
use crate::seen::Seen;
use crate::state::{Numbers, StateStore};
use crate::store::{Store, StoreError, StoreKey};
use crate::tfchain::TfChain;

pub use known::Known;

/// What a node is told.
pub struct NodeConfig {
    /// Where its deployments are kept.
    pub folder: PathBuf,
    /// Where reports wait that the chain has not taken yet, and requests are written down that must not be
    /// done twice.
    pub reports: PathBuf,
    /// What they are sealed with.
    pub key: StoreKey,
    /// What it remembers.
    pub state: Arc<dyn StateStore>,
    /// Its relays.
    pub relays: Vec<RelayAddress>,
    /// Whose certificates relays may show.
    pub roots: TrustedRoots,
    /// Where a new account gets its first tokens.
    pub activation_urls: Vec<String>,
    /// Who knows which twins are somebody; nobody is asked if that is empty.
    pub kyc_url: String,
    /// How much others may ask for.
    pub limits: Limits,
    /// How long a contract may lag behind the message; see [`EngineConfig::confirm_patience`].
    pub confirm_patience: Duration,
    /// The farm that it belongs to.
    pub farm_id: u32,
    /// Where it is.
    pub place: Place,
    /// Twins that may ask what a farmer may.
    pub admin_twins: Vec<u32>,
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
    /// There is no place for its reports.
    #[error("reports of traffic")]
    Reports(#[source] std::io::Error),
    /// It can't be reached.
    #[error("message bus")]
    Peer(#[from] StartError),
    /// This machine can't be a node, and here is why.
    #[error("{0}")]
    Unfit(String),
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
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    seen: Seen,
    renumbered: watch::Receiver<bool>,
    _duties: JoinSet<()>,
}

/// What the duties share.
struct Shared {
    numbers: Numbers,
    /// To follow its events.
    chain: Chain,
    registrar: Arc<dyn Registrar>,
    site: Site,
    state: Arc<dyn StateStore>,
    host: Arc<dyn Host>,
    engine: Arc<Engine>,
    twins: Arc<CachedTwins>,
    known: Arc<Known>,
    health: Arc<Health>,
    /// Held while it is decided whether the node runs.
    power: tokio::sync::Mutex<()>,
}

/// What the chain is told beside what the host says.
struct Site {
    farm_id: u32,
    place: Place,
    account: Account,
    /// Where siblings are woken.
    wake_to: SocketAddr,
}

/// The file of requests that must not be done again.
const SEEN: &str = "seen";
/// What joins the names of a twin's relays on the chain.
const RELAY_SEPARATOR: &str = "_";

impl Site {
    fn new(config: &NodeConfig, identity: &Identity) -> Self {
        let relays: Vec<_> = config.relays.iter().map(RelayAddress::host).collect();
        Self {
            farm_id: config.farm_id,
            place: config.place.clone(),
            account: Account {
                activation_urls: config.activation_urls.clone(),
                relays: relays.join(RELAY_SEPARATOR),
                encryption_key: identity.encryption_key(Version::V1).to_bytes().to_vec(),
            },
            wake_to: BROADCAST,
        }
    }
}

impl Shared {
    /// Starts the duties that need nobody else.
    fn duties(self: &Arc<Self>, reports: duties::Reports) -> JoinSet<()> {
        let mut duties = JoinSet::new();
        duties.spawn(Arc::clone(self).report_uptime());
        duties.spawn(Arc::clone(self).compare());
        duties.spawn(Arc::clone(self).compare_clock());
        duties.spawn(Arc::clone(self).check_health());
        duties.spawn(Arc::clone(self).measure());
        duties.spawn(Arc::clone(self).rehearse());
        duties.spawn(Arc::clone(self).watch_machines());
        duties.spawn(Arc::clone(self).watch_relays());
        duties.spawn(Arc::clone(self).follow());
        duties.spawn(Arc::clone(self).count_traffic(reports));
        duties
    }
}

impl Node {
    /// Starts everything, and registers first if that never succeeded before. Must be called in a
    /// tokio runtime.
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
        let site = Site::new(&config, &identity);
        let remembered = Numbers::recall(&*config.state, signing.account(), chain.genesis());
        let is_registered = remembered.is_none();
        let numbers = match remembered {
            Some(numbers) => numbers,
            None => registration::register(&signing, &site, &*host).await?,
        };
        numbers.remember(&*config.state);
        let Numbers { node_id, twin_id, .. } = numbers;
        info!(node_id, twin_id, is_registered, "node");
        let twin = TwinId::new(twin_id).ok_or(NodeError::Twin)?;
        let reports = duties::Reports::open(&config.reports).map_err(NodeError::Reports)?;
        let store = Store::open(config.folder, config.key)?;
        let twins = Arc::new(CachedTwins::new(Arc::new(chain.clone())));
        let lookup = Arc::clone(&twins) as Arc<dyn Twins>;
        let ledger = TfChain::new(signing.clone(), node_id, Arc::clone(&lookup));
        let ledger: Arc<dyn Ledger> = Arc::new(ledger.with_kyc(&config.kyc_url));
        let engine_config = EngineConfig { node_id, confirm_patience: config.confirm_patience };
        let engine = Engine::start(engine_config, store, ledger, Arc::clone(&host)).await?;
        let engine = Arc::new(engine);

        let health = Arc::<Health>::default();
        let results = Results::new(Arc::clone(&config.state));
        let known = Known::new(config.place, config.admin_twins, Arc::clone(&health), results);
        let known = Arc::new(known);
        let peer_config = PeerConfig {
            twin,
            session: None,
            relays: config.relays,
            encryption: Some(Version::V1),
            roots: config.roots,
            limits: config.limits,
        };
        let (before, seen) = Seen::open(&config.reports.join(SEEN)).map_err(StartError::from)?;
        let news = Arc::new(News::new(Arc::clone(&config.state)));
        let answers = commands(&engine, &host, &known, &news);
        let journal = Some(Arc::new(seen.clone()) as Arc<dyn Journal>);
        let peer = Peer::start_after(peer_config, identity, lookup, answers, &before, journal)?;
        let peer = Arc::new(peer);
        known.set_peer(&peer);

        let registrar = Arc::new(signing) as Arc<dyn Registrar>;
        let shared = Arc::new(Shared {
            numbers,
            chain,
            registrar,
            site,
            state: config.state,
            host,
            engine,
            twins,
            known,
            health,
            power: tokio::sync::Mutex::default(),
        });
        let (renumber, renumbered) = watch::channel(false);
        let mut duties = shared.duties(reports);
        duties.spawn(Arc::clone(&shared).keep_registered(is_registered, renumber));
        let courier: Arc<dyn Courier> = Arc::new(Arc::downgrade(&peer));
        duties.spawn(news.run(shared.engine.listen(), courier));
        duties.spawn(Arc::clone(&shared).rewrite_seen(seen.clone(), Arc::downgrade(&peer)));
        Ok(Self { node_id, twin_id, shared, peer, seen, renumbered, _duties: duties })
    }

    /// Its deployments.
    pub fn engine(&self) -> &Engine {
        &self.shared.engine
    }

    /// Its place on the message bus.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// How its duties go.
    pub fn health(&self) -> &Health {
        &self.shared.health
    }

    /// What it knows of itself from the chain.
    pub fn known(&self) -> &Known {
        &self.shared.known
    }

    /// The last block whose events were obeyed.
    pub fn block(&self) -> Option<u32> {
        crate::state::cursor(&*self.shared.state)
    }

    /// Waits until nothing is half done on the host, and lets nothing begin. Then the node can be dropped.
    pub async fn rest(&self) {
        self.shared.engine.rest().await;
        let peer = Arc::clone(&self.peer);
        if let Err(error) = self.seen.rewrite(move || peer.seen()).await {
            warn!(%error, "not all requests are written down");
        }
    }

    /// Waits until the chain says that the account is another node than this. Then it has to be started
    /// anew.
    pub async fn renumbered(&self) {
        let mut renumbered = self.renumbered.clone();
        if renumbered.wait_for(|is_so| *is_so).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
