//! The node, from a configuration and a host, for as long as it is wanted.
//!
//! ```text
//!            ┌─> start ──failed──> wait a while, or until the network changes ─┐
//!  network ──┤     │                                                           │
//!            │     └─> runs ── numbers or network changed ─> rest ─────────────┤
//!            └<────────────────────────────────────────────────────────────────┘
//! ```
//!
//! A machine that belongs to no farm is no node, and says so: it registers nowhere and takes no deployments
//! (`reference: zero-os 4.1`), until it is started with a farm. What runs on it from before goes on.
//!
//! A node that can't start, because it was never registered and there is no chain, tries again. One whose
//! network changes is started anew over the same deployments: a step that is under way is
//! waited for, and what runs on the host does not notice.

use std::fs::{File, TryLockError};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use hostd_chain::{Chain, ChainConfig};
use hostd_node::node::NodeConfig;
use hostd_node::{Host, Node};
use hostd_rmb::identity::Identity;
use hostd_rmb::relay::{RelayAddress, TrustedRoots};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use crate::config::Config;
use crate::files;
use crate::identity::Seed;
use crate::network::{Loaded, Networks};
use crate::place;
use crate::remember::Remembering;
use crate::status;

/// First pause after a start that failed.
const RETRY_MIN: Duration = Duration::from_secs(2);
/// Longest pause.
const RETRY_MAX: Duration = Duration::from_secs(120);
/// Why a machine without a farm is no node.
const NO_FARM: &str =
    "it belongs to no farm, and runs nothing: `farm` of its configuration is missing";
/// How often what is remembered is made durable.
const FLUSH_INTERVAL: Duration = Duration::from_secs(10);
/// How long steps that are under way are waited for at the end.
const REST_TIME_MAX: Duration = Duration::from_secs(20);

/// A node that is wanted. What runs on its host goes on when it ends.
pub struct Daemon {
    shared: Arc<Shared>,
    /// Held, so that no other node uses the same folder.
    _lock: File,
    ending: watch::Sender<bool>,
    running: tokio::task::JoinHandle<()>,
    _tasks: JoinSet<()>,
}

/// What all of it shares.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) host: Arc<dyn Host>,
    pub(crate) identity: Arc<Identity>,
    seed: Seed,
    networks: Networks,
    state: Arc<Remembering>,
    /// The node, while it runs.
    pub(crate) node: watch::Sender<Option<Arc<Node>>>,
    /// Why it does not.
    pub(crate) problem: watch::Sender<String>,
}

impl Daemon {
    /// Starts it. Must be called in a tokio runtime. The node itself comes when it comes: see
    /// [`Daemon::node`].
    ///
    /// # Errors
    ///
    /// The folder can't be used, the seed can't be read, there is no `network.json`, or there is no place
    /// for the status.
    pub async fn start(config: Config, host: Arc<dyn Host>) -> anyhow::Result<Self> {
        config.check()?;
        let opening = tokio::task::spawn_blocking(move || open(config, host));
        let (shared, lock) = opening.await??;
        let shared = Arc::new(shared);
        let account = shared.identity.account();
        info!(%account, farm = shared.config.farm, "this node");

        let listener = status::bind(&shared.config.status_path())?;
        let mut tasks = JoinSet::new();
        tasks.spawn(status::serve(listener, Arc::clone(&shared)));
        let refreshing = Arc::clone(&shared);
        tasks.spawn(async move { refreshing.networks.refresh().await });
        tasks.spawn(flush(Arc::clone(&shared.state)));
        let (ending, end) = watch::channel(false);
        let running = tokio::spawn(run(Arc::clone(&shared), end));
        Ok(Self { shared, _lock: lock, ending, running, _tasks: tasks })
    }

    /// The node, whenever it runs; it may be another one later.
    pub fn node(&self) -> watch::Receiver<Option<Arc<Node>>> {
        self.shared.node.subscribe()
    }

    /// Ends it, when nothing is half done on the host or that takes too long.
    pub async fn stop(self) {
        self.ending.send_replace(true);
        if let Err(error) = self.running.await {
            warn!(%error, "the node ended by itself");
        }
        let state = Arc::clone(&self.shared.state);
        let _ = tokio::task::spawn_blocking(move || state.flush()).await;
        status::remove(&self.shared.config.status_path());
    }
}

/// Opens everything that is on disk.
fn open(config: Config, host: Arc<dyn Host>) -> anyhow::Result<(Shared, File)> {
    let folder = &config.state;
    let shown = || folder.display().to_string();
    files::make_folder(folder).with_context(shown)?;
    let lock = File::create(folder.join("lock")).with_context(shown)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => bail!("{}: another hostd uses this folder", shown()),
        Err(TryLockError::Error(error)) => return Err(error).with_context(shown),
    }
    let seed = Seed::open(folder, &config.seed_mirrors)?;
    let identity = Arc::new(seed.identity()?);
    let networks = Networks::open(&config.network, folder)?;
    let state = Arc::new(Remembering::open(&folder.join("remembered")));
    let (node, _) = watch::channel(None);
    let (problem, _) = watch::channel("it starts".to_owned());
    Ok((Shared { config, host, identity, seed, networks, state, node, problem }, lock))
}

async fn flush(state: Arc<Remembering>) {
    loop {
        sleep(FLUSH_INTERVAL).await;
        let state = Arc::clone(&state);
        let _ = tokio::task::spawn_blocking(move || state.flush()).await;
    }
}

/// Keeps a node running until the end.
async fn run(shared: Arc<Shared>, mut end: watch::Receiver<bool>) {
    if shared.config.farm == 0 {
        error!("{NO_FARM}");
        shared.problem.send_replace(NO_FARM.to_owned());
        let _ = end.wait_for(|is_so| *is_so).await;
        return;
    }
    let mut networks = shared.networks.watch();
    let mut pause = RETRY_MIN;
    loop {
        let loaded = networks.borrow_and_update().clone();
        let started = tokio::select! {
            started = start(&shared, loaded) => started,
            _ = end.wait_for(|is_so| *is_so) => return,
        };
        match started {
            Err(problem) => {
                error!("the node does not start: {problem:#}");
                shared.problem.send_replace(format!("{problem:#}"));
                tokio::select! {
                    () = sleep(pause) => {}
                    _ = networks.changed() => {}
                    _ = end.wait_for(|is_so| *is_so) => return,
                }
                pause = (pause * 2).min(RETRY_MAX);
            }
            Ok(node) => {
                pause = RETRY_MIN;
                let node = Arc::new(node);
                shared.node.send_replace(Some(Arc::clone(&node)));
                let is_end = tokio::select! {
                    () = node.renumbered() => false,
                    _ = networks.changed() => false,
                    _ = end.wait_for(|is_so| *is_so) => true,
                };
                let reason = if is_end { "it ends" } else { "it starts anew" };
                info!(reason, "the node rests");
                shared.problem.send_replace(reason.to_owned());
                if timeout(REST_TIME_MAX, node.rest()).await.is_err() {
                    warn!("a step on the host goes on");
                }
                shared.node.send_replace(None);
                drop(node);
                if is_end {
                    return;
                }
            }
        }
    }
}

/// Seconds since 1970.
fn unix_time() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.ok().and_then(|time| i64::try_from(time.as_secs()).ok()).unwrap_or(0)
}

/// Starts a node on that network.
async fn start(shared: &Arc<Shared>, loaded: Loaded) -> anyhow::Result<Node> {
    let Loaded { network, authorities } = loaded;
    let roots = TrustedRoots::new(authorities.as_deref()).context("certificates")?;
    let relays = network.relays_urls.iter().map(|url| Ok(url.parse()?));
    let relays: Vec<RelayAddress> = relays.collect::<anyhow::Result<_>>().context("relays_urls")?;
    let place = match shared.config.place.clone() {
        Some(place) => place,
        None => {
            let (urls, state) = (network.geoip_urls.clone(), Arc::clone(&shared.state));
            tokio::task::spawn_blocking(move || place::find(&urls, &*state, unix_time())).await?
        }
    };
    let genesis = network.genesis_hash;
    let chain = ChainConfig { genesis, ..ChainConfig::new(network.substrate_urls, roots.clone()) };
    let chain = Chain::new(chain)?;
    let config = NodeConfig {
        folder: shared.config.state.join("deployments"),
        reports: shared.config.state.join("reports"),
        key: shared.seed.store_key(),
        state: Arc::clone(&shared.state) as Arc<_>,
        relays,
        roots,
        activation_urls: network.activation_urls,
        kyc_url: network.kyc_url,
        limits: Default::default(),
        confirm_patience: shared.config.confirm_patience(),
        farm_id: shared.config.farm,
        place,
        admin_twins: network.admin_twins,
    };
    let (identity, host) = (Arc::clone(&shared.identity), Arc::clone(&shared.host));
    Ok(Node::start(config, identity, chain, host).await?)
}
