//! A running grid: the chain, its index, the relay and the services, on sockets it is given.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
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
use crate::{admin, browser, census, feed, graphql, rest, services};

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
    dir: PathBuf,
    chain: DevChain,
    index: Arc<Index>,
    network: Network,
    reset: mpsc::Receiver<()>,
    rpc: RpcServer,
    tasks: JoinSet<anyhow::Result<()>>,
}

impl Grid {
    /// Opens the chain as `options` say, and serves everything at `sockets`. Certificates, images and
    /// the saved index are in `dir`. Beside loopback's own names, TLS is for `tls_names`.
    pub(crate) async fn start(
        dir: &Path,
        options: ChainOptions,
        sockets: &Sockets,
        tls_names: &[String],
    ) -> anyhow::Result<Self> {
        let (chain, index) = open(dir.to_owned(), options).await?;
        let network = network(&chain, sockets)?;
        let rpc = chain.serve(sockets.chain.try_clone()?).context("the chain can't be served")?;
        let relay = Arc::new(relay(&chain, tls_names)?);
        let mut tasks = JoinSet::new();
        let services = services(dir, &chain, &index)?;
        if let Some(socket) = &sockets.relay_tls {
            let config = tls::server_config(dir, tls_names)?;
            let listener = TlsListener::new(listener(socket)?, config)?;
            let router = services.clone().merge(relay.router());
            tasks.spawn(async move { Ok(axum::serve(listener, router).await?) });
        }
        let (reset, asked) = mpsc::channel(1);
        let admin = admin::Admin {
            chain: chain.clone(),
            index: Arc::clone(&index),
            relay: Arc::clone(&relay),
            reset,
        };
        let http = listener(&sockets.http)?;
        let router = services.merge(admin::router(admin));
        let router = router.into_make_service_with_connect_info::<SocketAddr>();
        tasks.spawn(async move { Ok(axum::serve(http, router).await?) });
        let address = format!("ws://{}", sockets.relay.local_addr()?).parse()?;
        let [name, _] = RELAY_NAMES;
        tasks.spawn(census::run(chain.clone(), Arc::clone(&index), address, name));
        let socket = listener(&sockets.relay)?;
        tasks.spawn(async move { Ok(relay.serve(socket).await?) });
        tasks.spawn({
            let (chain, index, dir) = (chain.clone(), Arc::clone(&index), dir.to_owned());
            async move {
                feed::run(chain, index, dir).await;
                anyhow::bail!("the chain ended")
            }
        });
        Ok(Self { dir: dir.to_owned(), chain, index, network, reset: asked, rpc, tasks })
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
        feed::save(&self.chain, &self.index, &self.dir);
        // A client that does not let go of its connection holds nobody up.
        let _ = tokio::time::timeout(STOP_TIME_MAX, self.rpc.stop()).await;
    }
}

/// The chain and its index, up to date.
async fn open(dir: PathBuf, options: ChainOptions) -> anyhow::Result<(DevChain, Arc<Index>)> {
    let opening = move || {
        let index = Arc::new(Index::default());
        let chain = DevChain::open(options).context("the chain can't be opened")?;
        feed::rebuild(&chain, &index, &dir);
        Ok((chain, index))
    };
    tokio::task::spawn_blocking(opening).await?
}

fn relay(chain: &DevChain, tls_names: &[String]) -> anyhow::Result<Relay> {
    let names = RELAY_NAMES.into_iter().chain(tls_names.iter().map(String::as_str));
    let config = RelayConfig {
        domains: names.map(str::to_owned).collect(),
        routes: std::collections::HashMap::new(),
        rate_limit: None,
        roots: TrustedRoots::new(None)?,
    };
    Ok(Relay::new(config, Arc::new(ChainTwins(chain.clone())))?)
}

/// What anybody may ask for.
fn services(dir: &Path, chain: &DevChain, index: &Arc<Index>) -> anyhow::Result<Router> {
    let graphql = graphql::router(Arc::clone(index)).context("the GraphQL schema")?;
    Ok(rest::router(Arc::clone(index))
        .merge(graphql)
        .merge(services::activation(chain.clone()))
        .merge(services::kyc())
        .merge(services::geoip())
        .merge(services::hub(dir.join("hub")))
        .layer(axum::middleware::from_fn(browser::allow)))
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
