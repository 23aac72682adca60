//! One node, put together and run until a signal ends it.
//!
//! ```text
//!  listeners, dials ──> peers ──> link tasks ──inputs──> routing::Owner ──> table
//!  TUN threads ────────────────────────┬──signals──────────────┘             │
//!                                      └──────────── DataPlane <─────────────┘
//! ```

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use mycelium_router::{Router, incarnation};
use mycelium_wire::identity::{RouterId, SecretKey};
use rustix::event::{EventfdFlags, eventfd};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::config::{Config, Settings};
use crate::data::table::{Table, TableWriter};
use crate::data::{DataPlane, MessagePacket, egress};
use crate::key_file;
use crate::peers::connect::Connector;
use crate::peers::{PeerKind, Peers, listen};
use crate::routing::{INPUT_COUNT_MAX, Owner, SIGNAL_COUNT_MAX};
use crate::tun::Tun;

/// Threads that run the node's tasks, and queues of its TUN device.
const THREAD_COUNT_MAX: usize = 4;
/// Packets of messages that wait to be looked at; what comes on top is sent again by its sender.
const MESSAGE_PACKET_COUNT_MAX: usize = 1024;
/// Zone bytes of a router id; existing releases have no others.
const ZONE: [u8; 2] = [0, 0];

/// Runs a node until SIGTERM or SIGINT. SIGHUP reads `file` (the configuration) again and makes the peers
/// those that it and the flags name.
///
/// # Errors
/// When the node can't start.
pub fn run(flags: Settings, file: Option<PathBuf>) -> anyhow::Result<()> {
    let config = flags.clone().or(Settings::read_file(file.as_deref())?).check()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(thread_count())
        .thread_name("links")
        .enable_all()
        .build()
        .context("no runtime can be made")?;
    let done = runtime.block_on(async {
        let node = Node::start(config)?;
        node.until_stopped(&flags, file).await
    });
    runtime.shutdown_background();
    done
}

fn thread_count() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(THREAD_COUNT_MAX)
}

/// A node that runs.
struct Node {
    peers: Arc<Peers>,
    tun_threads: TunThreads,
    /// Kept so that the data plane can hand them on.
    _messages: mpsc::Receiver<MessagePacket>,
}

impl Node {
    fn start(config: Config) -> anyhow::Result<Self> {
        let key_path = config.key_file.map_or_else(key_file::default_path, Ok)?;
        let secret = key_file::read_or_create(&key_path)?;
        let connector = Connector { mark: config.firewall_mark };
        let tcp = listen::tcp_listener(&connector, config.tcp_listen_port)?;
        let vsock = config
            .vsock_listen_port
            .map(|port| listen::vsock_listener(&connector, port))
            .transpose()?;
        let address = secret.public().address();
        let open = |name: &String| Tun::open(name, thread_count(), address);
        let tun = config.tun_name.as_ref().map(open).transpose()?;

        let router = new_router(&secret)?;
        let table = Arc::new(Table::default());
        let (inputs, inputs_taken) = mpsc::channel(INPUT_COUNT_MAX);
        let (signals, signals_taken) = mpsc::channel(SIGNAL_COUNT_MAX);
        let (messages, messages_taken) = mpsc::channel(MESSAGE_PACKET_COUNT_MAX);
        let plane = DataPlane::new(secret, Arc::clone(&table), tun, signals, messages)?;
        let plane = Arc::new(plane);
        let writer = TableWriter::new(table);
        let owner = Owner::new(router, writer, Arc::clone(&plane), inputs_taken, signals_taken);
        tokio::spawn(owner.run());
        let tun_threads = TunThreads::start(&plane)?;
        let peers = Arc::new(Peers::new(connector, plane, inputs));
        tokio::spawn(listen::serve_tcp(Arc::clone(&peers), tcp));
        if let Some(listener) = vsock {
            tokio::spawn(listen::serve_vsock(Arc::clone(&peers), listener));
        }
        for endpoint in config.peers {
            if let Err(error) = peers.add(endpoint, PeerKind::Static) {
                tracing::warn!(%error, "peer not added");
            }
        }
        tracing::info!(%address, port = config.tcp_listen_port, "node up");
        Ok(Self { peers, tun_threads, _messages: messages_taken })
    }

    async fn until_stopped(self, flags: &Settings, file: Option<PathBuf>) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => self.reload(flags, file.as_deref()),
            }
        }
        tracing::info!("node stops");
        self.tun_threads.stop();
        Ok(())
    }

    /// Reads the configuration again. One that makes no sense changes nothing.
    fn reload(&self, flags: &Settings, file: Option<&std::path::Path>) {
        let config = Settings::read_file(file).and_then(|file| flags.clone().or(file).check());
        match config {
            Ok(config) => self.peers.replace_static(&config.peers),
            Err(error) => {
                let error = anyhow::Error::from(error);
                tracing::error!(error = format!("{error:#}"), "the configuration is not taken");
            }
        }
    }
}

fn new_router(secret: &SecretKey) -> anyhow::Result<Router> {
    let public = secret.public();
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
    let random = u16::from_be_bytes(mycelium_wire::random_bytes()?);
    let router_id = RouterId::new(public, ZONE, incarnation(seconds, random));
    let seed = u64::from_be_bytes(mycelium_wire::random_bytes()?);
    Ok(Router::new(mycelium_router::Config { router_id, subnet: public.subnet(), seed }))
}

/// The threads that read TUN.
struct TunThreads {
    stop: Arc<OwnedFd>,
    threads: Vec<JoinHandle<()>>,
}

impl TunThreads {
    /// Starts one for each queue, if there is a device.
    fn start(plane: &Arc<DataPlane>) -> anyhow::Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let queue_count = plane.tun().map_or(0, Tun::queue_count);
        let mut threads = Vec::with_capacity(queue_count);
        for number in 0..queue_count {
            let (plane, stop) = (Arc::clone(plane), Arc::clone(&stop));
            let read = move || {
                if let Some(tun) = plane.tun() {
                    egress::run(&plane, tun, number, &stop);
                }
            };
            let builder = std::thread::Builder::new().name(format!("tun-{number}"));
            threads.push(builder.spawn(read).context("no thread for TUN")?);
        }
        Ok(Self { stop, threads })
    }

    fn stop(self) {
        // Nobody else writes to it, so it takes eight bytes.
        let _ = rustix::io::write(&*self.stop, &1_u64.to_le_bytes());
        for thread in self.threads {
            // A thread that panicked has ended as well.
            let _ = thread.join();
        }
    }
}
