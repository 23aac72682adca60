//! What a node knows of itself beside its deployments and its machine.
//!
//! Filled by the duties as they learn it, read by commands: so a command answers at once, whether
//! the chain does or not.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use hostd_chain::types::PublicConfig;
use hostd_rmb::peer::Peer;

use crate::health::{Duty, Health};
use crate::host::Module;
use crate::perf::Results;
use crate::place::Place;

/// What is wrong with a node that no message reaches.
pub(super) const NO_RELAY: &str = "not connected to any relay";

/// What a node knows of itself.
pub struct Known {
    /// Where it is.
    pub(crate) place: Place,
    /// What it found out about itself.
    pub(crate) results: Results,
    admin_twins: Vec<u32>,
    health: Arc<Health>,
    peer: OnceLock<Weak<Peer>>,
    learned: Mutex<Learned>,
}

/// What the chain says.
#[derive(Default)]
struct Learned {
    farmer: Option<u32>,
    public_config: Option<PublicConfig>,
}

impl Known {
    pub(crate) fn new(
        place: Place,
        admin_twins: Vec<u32>,
        health: Arc<Health>,
        results: Results,
    ) -> Self {
        let (peer, learned) = (OnceLock::new(), Mutex::default());
        Self { place, results, admin_twins, health, peer, learned }
    }

    /// Its place on the message bus, once it has one.
    pub(crate) fn set_peer(&self, peer: &Arc<Peer>) {
        // It is set once, by the only one who makes it.
        let _ = self.peer.set(Arc::downgrade(peer));
    }

    pub(crate) fn set_farmer(&self, twin: u32) {
        self.learned().farmer = Some(twin);
    }

    pub(crate) fn set_public_config(&self, config: Option<PublicConfig>) {
        self.learned().public_config = config;
    }

    /// How the internet reaches it directly, as its farmer said.
    pub fn public_config(&self) -> Option<PublicConfig> {
        self.learned().public_config.clone()
    }

    /// Whether a twin may know what a farmer may. Nobody may while the farmer is not known.
    pub(crate) fn is_farmer(&self, twin: u32) -> bool {
        self.learned().farmer == Some(twin) || self.admin_twins.contains(&twin)
    }

    /// Whether a twin administers the grid.
    pub(crate) fn is_admin(&self, twin: u32) -> bool {
        self.admin_twins.contains(&twin)
    }

    /// To how many relays it is connected.
    pub fn relay_count(&self) -> usize {
        let peer = self.peer.get().and_then(Weak::upgrade);
        peer.map_or(0, |peer| peer.connected_count())
    }

    /// The parts of the node that are not the machine.
    pub(crate) fn modules(&self) -> BTreeMap<String, Module> {
        let mut modules = self.health.modules();
        let count = self.relay_count();
        let since = self.health.progress().remove(&Duty::Relay);
        let status = match since.and_then(|progress| progress.failing_since) {
            Some(since) if count == 0 => format!("connected to none since {since}"),
            _ => format!("connected to {count} relays"),
        };
        let error = if count == 0 { NO_RELAY } else { "" };
        modules.insert("relay".to_owned(), Module { status, error: error.to_owned() });
        modules
    }

    fn learned(&self) -> MutexGuard<'_, Learned> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
