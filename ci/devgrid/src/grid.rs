//! A running grid: the chain, its index, the relay and the services, on sockets it is given.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use devchain::{ChainOptions, DevChain, RpcServer};
use hostd_grid::network::Network;
use hostd_rmb::relay::TrustedRoots;
use rmb_relay::{Relay, RelayConfig};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::index::Index;
use crate::tls::{self, TlsListener};
use crate::twins::ChainTwins;
use crate::{admin, feed, graphql, rest, services};

/// The names by which twins say that they are at this relay.
const RELAY_NAMES: [&str; 2] = ["127.0.0.1", "localhost"];
/// The port of `wss` that needs no mention.
const WSS_PORT: u16 = 443;
/// How long the chain's clients have to go.
const STOP_TIME_MAX: Duration = Duration::from_secs(5);

/// The sockets of a grid. They outlive a reset.
pub(crate) struct Sockets {
    pub(crate) chain: TcpListener,
    pub(crate) relay: TcpListener,
    pub(crate) http: TcpListener,
    pub(crate) relay_tls: Option<TcpListener>,
}

/// A grid, until it is dropped.
pub(crate) struct Grid {
    network: Network,
    reset: mpsc::Receiver<()>,
    rpc: RpcServer,
    tasks: JoinSet<anyhow::Result<()>>,
}

impl Grid {
    /// Opens the chain as `options` say, and serves everything at `sockets`. Certificates and images
    /// are in `dir`.
    pub(crate) async fn start(
        dir: &Path,
        options: ChainOptions,
        sockets: &Sockets,
    ) -> anyhow::Result<Self> {
        let index = Arc::new(Index::default());
        let chain = tokio::task::spawn_blocking({
            let index = Arc::clone(&index);
            move || {
                let chain = DevChain::open(options).context("the chain can't be opened")?;
                feed::rebuild(&chain, &index);
                anyhow::Ok(chain)
            }
        })
        .await??;
        let network = network(&chain, sockets)?;
        let rpc = chain.serve(sockets.chain.try_clone()?).context("the chain can't be served")?;
        let relay = Arc::new(relay(&chain)?);
        let mut tasks = JoinSet::new();
        if let Some(socket) = &sockets.relay_tls {
            let listener = TlsListener::new(listener(socket)?, tls::server_config(dir)?)?;
            let router = relay.router();
            tasks.spawn(async move { Ok(axum::serve(listener, router).await?) });
        }
        let (reset, asked) = mpsc::channel(1);
        let router = services(dir, &chain, &index, &relay, reset)?;
        let http = listener(&sockets.http)?;
        let router = router.into_make_service_with_connect_info::<SocketAddr>();
        tasks.spawn(async move { Ok(axum::serve(http, router).await?) });
        let socket = listener(&sockets.relay)?;
        tasks.spawn(async move { Ok(relay.serve(socket).await?) });
        tasks.spawn(async move {
            feed::run(chain, index).await;
            anyhow::bail!("the chain ended")
        });
        Ok(Self { network, reset: asked, rpc, tasks })
    }

    /// Where everything is.
    pub(crate) fn network(&self) -> &Network {
        &self.network
    }

    /// Waits until somebody asks for a reset; an error if a part of the grid ended.
    pub(crate) async fn until_reset(&mut self) -> anyhow::Result<()> {
        tokio::select! {
            Some(()) = self.reset.recv() => Ok(()),
            Some(ended) = self.tasks.join_next() => {
                ended??;
                anyhow::bail!("a server of the grid ended")
            }
        }
    }

    /// Ends all of it. What the chain accepted is durable already.
    pub(crate) async fn stop(mut self) {
        self.tasks.shutdown().await;
        // A client that does not let go of its connection holds nobody up.
        let _ = tokio::time::timeout(STOP_TIME_MAX, self.rpc.stop()).await;
    }
}

fn relay(chain: &DevChain) -> anyhow::Result<Relay> {
    let config = RelayConfig {
        domains: RELAY_NAMES.map(str::to_owned).to_vec(),
        routes: std::collections::HashMap::new(),
        rate_limit: None,
        roots: TrustedRoots::new(None)?,
    };
    Ok(Relay::new(config, Arc::new(ChainTwins(chain.clone())))?)
}

fn services(
    dir: &Path,
    chain: &DevChain,
    index: &Arc<Index>,
    relay: &Arc<Relay>,
    reset: mpsc::Sender<()>,
) -> anyhow::Result<Router> {
    let admin = admin::Admin {
        chain: chain.clone(),
        index: Arc::clone(index),
        relay: Arc::clone(relay),
        reset,
    };
    let graphql = graphql::router(Arc::clone(index)).context("the GraphQL schema")?;
    Ok(rest::router(Arc::clone(index))
        .merge(graphql)
        .merge(services::activation(chain.clone()))
        .merge(services::kyc())
        .merge(services::geoip())
        .merge(services::hub(dir.join("hub")))
        .merge(admin::router(admin)))
}

fn network(chain: &DevChain, sockets: &Sockets) -> anyhow::Result<Network> {
    let http = format!("http://{}", sockets.http.local_addr()?);
    let plain = format!("ws://{}", sockets.relay.local_addr()?);
    let relays_urls = match &sockets.relay_tls {
        None => vec![plain],
        Some(socket) => match socket.local_addr()? {
            address if address.port() == WSS_PORT => vec![format!("wss://{}", address.ip())],
            address => vec![format!("wss://{address}")],
        },
    };
    Ok(Network {
        name: "devgrid".to_owned(),
        substrate_urls: vec![format!("ws://{}", sockets.chain.local_addr()?)],
        relays_urls,
        activation_urls: vec![format!("{http}/activation/activate")],
        graphql_urls: vec![format!("{http}/graphql")],
        kyc_url: format!("{http}/kyc"),
        geoip_urls: vec![format!("{http}/geoip")],
        hub_urls: vec![format!("{http}/hub")],
        v4_hub_urls: vec![format!("{http}/hub")],
        genesis_hash: Some(chain.genesis().0),
        ca_file: sockets.relay_tls.as_ref().map(|_| tls::CA_FILE.to_owned()).unwrap_or_default(),
        gridproxy_urls: vec![http],
        ..Network::default()
    })
}

fn listener(socket: &TcpListener) -> std::io::Result<tokio::net::TcpListener> {
    let socket = socket.try_clone()?;
    socket.set_nonblocking(true)?;
    tokio::net::TcpListener::from_std(socket)
}
