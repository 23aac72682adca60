//! A relay of the message bus, in one process and in memory.
//!
//! A relay passes envelopes between twins that are connected to it by websocket, keeps what is for
//! twins that are not, for an hour, and passes on what is for twins of other relays. It is believed
//! nothing by anybody and believes nobody: whoever connects shows a token signed with the twin's key,
//! and an envelope leaves only with the session's own address as its source. What is in envelopes it
//! can't read.
//!
//! ```text
//!  GET /?token ─> [gate] ─> [session] ─ read ──> [switch] ─┬─> [mailbox] of (twin, session)
//!                              └──── write <─── mailbox    └─> [federation] ─> POST to other relays
//!  POST / ──────> [gate] ─> signed by its source? for a twin of ours? ─> mailbox
//!  GET /metrics ─> [metrics]
//! ```
//!
//! It behaves as the grid's relays do (`reference: tfchain-rmb 3.4`), errors' texts included, and is
//! meant for a grid on one machine and for tests. Two things it does not let pass as those do: what
//! comes from other relays must be signed by its source, and a name on the chain that is an address
//! of somebody's inner network is not posted to.
//!
//! Mailboxes are lost with the process. Peers notice that the connection is gone, come back, and ask
//! again what they may ask again.

#![forbid(unsafe_code)]

mod federation;
mod gate;
mod mailbox;
mod metrics;
mod post;
mod queue;
mod rank;
mod rate;
mod session;
mod switch;

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::serve::ListenerExt as _;
use hostd_rmb::relay::TrustedRoots;
use hostd_rmb::twins::Twins;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::debug;
use url::Url;

pub use post::RouteAddressError;
pub use rate::RateLimit;

use federation::Federation;
use mailbox::Mailboxes;
use metrics::Metrics;
use rate::Rates;

/// What a relay is told.
pub struct RelayConfig {
    /// The names by which the chain knows it. Twins that name one of them are its own.
    pub domains: Vec<String>,
    /// Where relays of other names are, if not at `https://NAME/`.
    pub routes: HashMap<String, Url>,
    /// How much a twin may send.
    pub rate_limit: Option<RateLimit>,
    /// Whose certificates other relays may show.
    pub roots: TrustedRoots,
}

/// A relay, until it is dropped: then all its sessions end.
pub struct Relay {
    state: Arc<State>,
    _tasks: JoinSet<()>,
}

/// What all sessions share.
struct State {
    domains: Vec<String>,
    twins: Arc<dyn Twins>,
    mailboxes: Mailboxes,
    rates: Option<Rates>,
    federation: Federation,
    metrics: Metrics,
    /// Closed when the relay is dropped.
    end: watch::Receiver<()>,
}

impl Relay {
    /// A relay for twins that `twins` knows, best by way of a cache. Must be called in a tokio
    /// runtime.
    pub fn new(config: RelayConfig, twins: Arc<dyn Twins>) -> Result<Self, RouteAddressError> {
        let RelayConfig { domains, routes, rate_limit, roots } = config;
        let (alive, end) = watch::channel(());
        let (federation, waiting) = Federation::new();
        let state = Arc::new(State {
            domains: domains.iter().map(|name| name.to_lowercase()).collect(),
            twins,
            mailboxes: Mailboxes::default(),
            rates: rate_limit.map(Rates::new),
            federation,
            metrics: Metrics::default(),
            end,
        });
        let poster = post::Poster::new(routes, &roots)?;
        let mut tasks = JoinSet::new();
        tasks.spawn(mailbox::keep_house(Arc::clone(&state)));
        tasks.spawn(federation::run(Arc::clone(&state), poster, waiting));
        // Holds `alive` until the relay is dropped.
        tasks.spawn(async move {
            let () = std::future::pending().await;
            drop(alive);
        });
        Ok(Self { state, _tasks: tasks })
    }

    /// Everything that it serves, for servers that have more to serve or want TLS.
    pub fn router(&self) -> Router {
        gate::router(Arc::clone(&self.state))
    }

    /// Serves at `listener`, for ever.
    pub async fn serve(&self, listener: TcpListener) -> std::io::Result<()> {
        // Envelopes are small and somebody waits for each.
        let listener = listener.tap_io(|stream| {
            if let Err(error) = stream.set_nodelay(true) {
                debug!(%error, "a connection may be slow");
            }
        });
        axum::serve(listener, self.router().into_make_service()).await
    }

    /// Sessions that are connected.
    pub fn session_count(&self) -> usize {
        self.state.mailboxes.session_count()
    }
}
