//! The connection that is used at the moment, and what happens when it fails.
//!
//! There is one connection at a time, to one of the endpoints. A question is asked there; if that fails
//! for a reason that is the endpoint's, the connection is given up and the next endpoint is tried, all
//! of them once, then again with growing pauses until the time for it is over. Nothing waits without a
//! deadline.
//!
//! ```text
//!          connect ── genesis is ours? ── not behind what was seen? ──► current
//!             ▲                                                           │ fault
//!             └──────────── next endpoint, after a round a pause ◄────────┘
//! ```
//!
//! However many questions wait, an endpoint that could not be connected to is dialled again only after a
//! pause: whoever asks meanwhile gets the same answer. In an outage that keeps a node with hundreds of
//! deployments from calling hundreds of times.
//!
//! A newly opened connection must be to our chain, and not behind the newest block that any endpoint
//! has shown (less an honest lag). The second is checked again whenever the newest block is asked for.
//! An endpoint that claims blocks which do not exist yet so keeps others from being used until they are
//! there, or we start anew: an outage, and outages change nothing.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::config::{BACKOFF_MAX, BACKOFF_MIN, CONNECT_TIMEOUT, ChainConfig, ENDPOINT_COUNT_MAX};
use crate::connection::{Block, Connection, Fault, Grid};
use crate::error::{ChainError, EndpointFault, EndpointFaults};
use crate::types::BlockNumber;

/// Which state a question is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    /// The newest block: what a transaction that was just included has done is seen.
    Best,
    /// The newest block that can't be given up any more: what is gone there is gone.
    Finalized,
}

/// All endpoints, of which one is connected.
pub(crate) struct Link {
    pub(crate) config: ChainConfig,
    grid: Grid,
    genesis: OnceLock<[u8; 32]>,
    /// The newest block that any endpoint has shown.
    seen: AtomicU32,
    current: Mutex<Current>,
}

#[derive(Default)]
struct Current {
    connection: Option<Arc<Connection>>,
    /// Index of the endpoint that is used, or will be tried next.
    endpoint: usize,
    /// Endpoints that could not be connected to when they were last tried, by their indices.
    failed: BTreeMap<usize, Failed>,
}

/// A connection that could not be made.
struct Failed {
    fault: EndpointFault,
    /// The pause after it.
    pause: Duration,
    /// Until then it is not tried again.
    until: Instant,
}

impl Link {
    pub(crate) fn new(config: ChainConfig) -> Result<Self, ChainError> {
        let count = config.endpoints.len();
        if count == 0 || count > ENDPOINT_COUNT_MAX {
            let text =
                format!("1 to {ENDPOINT_COUNT_MAX} endpoints can be used, {count} are given");
            return Err(ChainError::Config(text));
        }
        for endpoint in &config.endpoints {
            if !endpoint.starts_with("ws://") && !endpoint.starts_with("wss://") {
                let text = format!("an endpoint is ws:// or wss://, not {endpoint}");
                return Err(ChainError::Config(text));
            }
        }
        let genesis = match config.genesis {
            Some(hash) => OnceLock::from(hash),
            None => OnceLock::new(),
        };
        Ok(Self {
            config,
            grid: Grid::default(),
            genesis,
            seen: AtomicU32::new(0),
            current: Mutex::default(),
        })
    }

    /// Hash of the chain's first block, once it is known.
    pub(crate) fn genesis(&self) -> Option<[u8; 32]> {
        self.genesis.get().copied()
    }

    /// Asks until there is an answer, every endpoint was tried and the time for it is over.
    pub(crate) async fn run<T, F, Answer>(&self, question: F) -> Result<T, ChainError>
    where
        F: Fn(Arc<Connection>) -> Answer,
        Answer: Future<Output = Result<T, Fault>>,
    {
        let started = Instant::now();
        let mut faults = EndpointFaults::default();
        let mut pause = BACKOFF_MIN;
        let mut misfit_count = 0;
        let mut failed_count = 0;
        loop {
            let (endpoint, fault) = match self.attempt(&question).await {
                Ok(answer) => return Ok(answer),
                Err((_, Fault::Answer(error))) => return Err(error),
                Err((endpoint, Fault::Incompatible(reason))) => {
                    // The chain may have been upgraded under us, or this endpoint is odd.
                    self.grid.forget_metadata();
                    misfit_count += 1;
                    if misfit_count > self.config.endpoints.len() {
                        return Err(ChainError::Incompatible(reason));
                    }
                    if misfit_count > 1 {
                        self.leave(&endpoint).await;
                    }
                    continue;
                }
                Err((endpoint, Fault::Endpoint(fault))) => (endpoint, fault),
                Err((endpoint, Fault::Pruned(text))) => (endpoint, EndpointFault::Answer(text)),
            };
            tracing::debug!(endpoint, %fault, "the endpoint fails");
            self.leave(&endpoint).await;
            faults.add(&endpoint, fault);
            failed_count += 1;
            let round_done = failed_count % self.config.endpoints.len() == 0;
            if round_done {
                if started.elapsed() >= self.config.retry_max {
                    return Err(ChainError::Unreachable(faults));
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(BACKOFF_MAX);
            }
        }
    }

    /// Asks once, at the current endpoint.
    async fn attempt<T, F, Answer>(&self, question: &F) -> Result<T, (String, Fault)>
    where
        F: Fn(Arc<Connection>) -> Answer,
        Answer: Future<Output = Result<T, Fault>>,
    {
        let connection = self.connection().await?;
        let endpoint = connection.endpoint.clone();
        let limit = self.config.call_timeout;
        match tokio::time::timeout(limit, question(connection)).await {
            Ok(answer) => answer.map_err(|fault| (endpoint, fault)),
            Err(_) => Err((endpoint, timed_out(limit))),
        }
    }

    /// The current connection; a new one, if there is none. Waits for nobody longer than that takes.
    pub(crate) async fn connection(&self) -> Result<Arc<Connection>, (String, Fault)> {
        let limit = CONNECT_TIMEOUT + self.config.call_timeout;
        let connecting = tokio::time::timeout(limit, self.connect());
        connecting.await.unwrap_or_else(|_| Err(("any endpoint".to_owned(), timed_out(limit))))
    }

    async fn connect(&self) -> Result<Arc<Connection>, (String, Fault)> {
        let mut current = self.current.lock().await;
        if let Some(connection) = &current.connection {
            return Ok(Arc::clone(connection));
        }
        let index = current.endpoint;
        let endpoint = self.endpoint(index).to_owned();
        let failed = current.failed.remove(&index);
        let pause = failed.as_ref().map_or(BACKOFF_MIN, |failed| failed.pause * 2);
        if let Some(failed) = failed.filter(|failed| Instant::now() < failed.until) {
            let fault = failed.fault.clone();
            current.failed.insert(index, failed);
            return Err((endpoint, fault.into()));
        }
        match self.open(&endpoint).await {
            Ok(connection) => {
                let connection = Arc::new(connection);
                current.connection = Some(Arc::clone(&connection));
                tracing::info!(endpoint, "connected to the chain");
                Ok(connection)
            }
            Err(fault) => {
                if let Fault::Endpoint(fault) = &fault {
                    let failed = self.failed(fault.clone(), pause);
                    current.failed.insert(index, failed);
                }
                Err((endpoint, fault))
            }
        }
    }

    fn failed(&self, fault: EndpointFault, pause: Duration) -> Failed {
        // Shorter than the pauses of whoever asks, and all of the time for that: nobody gives up without
        // having tried for real.
        let longest = BACKOFF_MAX.min(self.config.retry_max / 2).max(BACKOFF_MIN);
        let pause = pause.min(longest);
        Failed { fault, pause, until: Instant::now() + pause * 3 / 4 }
    }

    /// Gives the connection to `endpoint` up, if it is still the current one, in favour of the next.
    pub(crate) async fn leave(&self, endpoint: &str) {
        let mut current = self.current.lock().await;
        if self.endpoint(current.endpoint) == endpoint {
            current.connection = None;
            current.endpoint = (current.endpoint + 1) % self.config.endpoints.len();
        }
    }

    fn endpoint(&self, index: usize) -> &str {
        self.config.endpoints.get(index).map_or("", String::as_str)
    }

    async fn open(&self, endpoint: &str) -> Result<Connection, Fault> {
        let limit = self.config.call_timeout;
        let connection = Connection::open(endpoint, &self.config.roots, &self.grid, limit).await?;
        let found = connection.genesis();
        let expected = self.genesis().unwrap_or(found);
        if found != expected {
            return Err(EndpointFault::Genesis { expected, found }.into());
        }
        let best = tokio::time::timeout(limit, connection.best());
        let (height, _) = best.await.unwrap_or_else(|_| Err(timed_out(limit)))?;
        self.observe(height)?;
        // Only now it has shown that it is a chain at all.
        let _ = self.genesis.set(found);
        Ok(connection)
    }

    /// Checks an endpoint's newest block against what was seen.
    fn observe(&self, height: BlockNumber) -> Result<(), Fault> {
        let seen = self.seen.fetch_max(height, Ordering::Relaxed).max(height);
        if height.saturating_add(self.config.height_lag_max) < seen {
            return Err(EndpointFault::Behind { height, seen }.into());
        }
        Ok(())
    }

    /// The newest block of that kind, at this connection.
    pub(crate) async fn head(
        &self,
        connection: &Connection,
        at: At,
    ) -> Result<(BlockNumber, subxt::config::substrate::H256), Fault> {
        match at {
            At::Best => {
                let (height, hash) = connection.best().await?;
                self.observe(height)?;
                Ok((height, hash))
            }
            At::Finalized => connection.finalized().await,
        }
    }

    /// That block, ready to be asked.
    pub(crate) async fn block(&self, connection: &Connection, at: At) -> Result<Block, Fault> {
        let head = self.head(connection, at).await?;
        connection.at(head).await
    }

    /// Forgets the metadata, which is then asked for again.
    pub(crate) fn forget_metadata(&self) {
        self.grid.forget_metadata();
    }
}

/// The fault of an endpoint that did not answer within `limit`.
pub(crate) fn timed_out(limit: Duration) -> Fault {
    EndpointFault::Timeout(limit.as_secs_f32()).into()
}
