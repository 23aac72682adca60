//! `devgrid up`: from a directory to a running grid, until it is interrupted.

use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use devchain::ChainOptions;
use hostd_grid::network::Network;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::warn;

use crate::grid::{Grid, Sockets};

/// The port of the chain, if not asked otherwise; relay and services have the next two.
const PORT: u16 = 9944;

/// How a grid is run.
#[derive(Args)]
pub(crate) struct Options {
    /// The directory that keeps it.
    #[arg(long, default_value = "devgrid")]
    dir: PathBuf,
    /// The port of the chain; the relay has the next one, the services the one after. 0: any three.
    #[arg(long, default_value_t = PORT)]
    port: u16,
    /// Serve the relay as wss too, as clients want that know it by its host name alone.
    #[arg(long)]
    tls: bool,
    /// The port of wss. Another than 443 is for clients that know the whole address.
    #[arg(long, default_value_t = 443, requires = "tls")]
    tls_port: u16,
    /// A name beside 127.0.0.1 and localhost by which clients may know the relay and all services over TLS,
    /// such as kyc.dev.grid.tf; that it leads here is up to their machine. May be repeated.
    #[arg(long = "tls-name", value_name = "NAME", requires = "tls")]
    tls_names: Vec<String>,
    /// Milliseconds until a block is made though nothing waits for one. 0: never.
    #[arg(long, default_value_t = 6000)]
    block_time_ms: u64,
    /// Blocks from bill to bill. Settled in block 0.
    #[arg(long, default_value_t = ChainOptions::default().billing_frequency)]
    billing_frequency: u64,
    /// Blocks that a contract lives on without money. Settled in block 0.
    #[arg(long, default_value_t = ChainOptions::default().grace_blocks)]
    grace_blocks: u64,
}

/// Runs a grid as `options` say.
pub(crate) async fn up(options: Options) -> anyhow::Result<()> {
    let dir = &options.dir;
    if cfg!(panic = "abort") {
        warn!("a call that the chain panics over ends this program: build it without --release");
    }
    std::fs::create_dir_all(dir.join("hub")).with_context(|| dir.display().to_string())?;
    let mut ends = [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?];
    let sockets = bind(&options)?;
    loop {
        let mut grid = Grid::start(dir, options.chain(), &sockets, &options.tls_names).await?;
        write_network(dir, grid.network())?;
        introduce(dir, grid.network());
        let ended = tokio::select! {
            ended = grid.until_reset() => Some(ended),
            () = any(&mut ends) => None,
        };
        grid.stop().await;
        match ended {
            None => {
                eprintln!("devgrid: ended; `devgrid up --dir {}` goes on from here", dir.display());
                return Ok(());
            }
            Some(ended) => ended?,
        }
        let chain = options.chain_dir();
        std::fs::remove_dir_all(&chain).with_context(|| chain.display().to_string())?;
        // What it says is of no chain any more; it would be passed over.
        let _ = std::fs::remove_file(dir.join(crate::index::saved::FILE));
        eprintln!("devgrid: begins again at block 0");
    }
}

impl Options {
    fn chain_dir(&self) -> PathBuf {
        self.dir.join("chain")
    }

    fn chain(&self) -> ChainOptions {
        ChainOptions {
            dir: Some(self.chain_dir()),
            block_time: (self.block_time_ms > 0).then(|| Duration::from_millis(self.block_time_ms)),
            billing_frequency: self.billing_frequency,
            grace_blocks: self.grace_blocks,
            ..ChainOptions::default()
        }
    }
}

fn bind(options: &Options) -> anyhow::Result<Sockets> {
    let bind = |port: u16| {
        TcpListener::bind((Ipv4Addr::LOCALHOST, port))
            .with_context(|| format!("127.0.0.1:{port} can't be listened at; hint: --port 0"))
    };
    let port = |offset: u16| match options.port {
        0 => Ok(0),
        first => first.checked_add(offset).context("--port is too large for three ports"),
    };
    let relay_tls = options.tls.then(|| bind(options.tls_port)).transpose();
    Ok(Sockets {
        chain: bind(port(0)?)?,
        relay: bind(port(1)?)?,
        http: bind(port(2)?)?,
        relay_tls: relay_tls.context("wss needs root, or --tls-port")?,
    })
}

/// Resolves when the first of `ends` arrives.
async fn any(ends: &mut [Signal; 2]) {
    let [first, second] = ends;
    tokio::select! {
        _ = first.recv() => {}
        _ = second.recv() => {}
    }
}

/// Puts network.json in place, whole or not at all.
fn write_network(dir: &Path, network: &Network) -> anyhow::Result<()> {
    let (temporary, path) = (dir.join("network.json.new"), dir.join("network.json"));
    let write = || {
        let mut file = std::fs::File::create(&temporary)?;
        file.write_all(&network.to_json())?;
        file.sync_all()?;
        std::fs::rename(&temporary, &path)?;
        std::fs::File::open(dir)?.sync_all()
    };
    write().with_context(|| path.display().to_string())
}

/// Says what runs where, and how to go on.
fn introduce(dir: &Path, network: &Network) {
    let first = |urls: &[String]| urls.first().cloned().unwrap_or_default();
    let dir = dir.display();
    println!("chain       {}", first(&network.substrate_urls));
    println!("relay       {}", first(&network.relays_urls));
    println!("grid proxy  {}", first(&network.gridproxy_urls));
    println!("graphql     {}", first(&network.graphql_urls));
    println!("activation  {}", first(&network.activation_urls));
    println!("hub         {} serves {dir}/hub", first(&network.hub_urls));
    if !network.ca_file.is_empty() {
        println!("authority   {dir}/{}", network.ca_file);
    }
    println!("network     {dir}/network.json");
    println!();
    println!("next: grid login --network {dir}/network.json --new-key me.key");
    println!("      devgrid fund --dir {dir} ACCOUNT 1000");
    println!("      devgrid status --dir {dir}");
    let _ = std::io::stdout().flush();
}
