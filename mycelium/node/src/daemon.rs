//! One node, put together and run until a signal ends it.
//!
//! ```text
//!  listeners, dials ──> peers ──> link tasks ──inputs──> routing::Owner ──> table
//!  TUN threads ────────────────────────┬──signals──────────────┘             │
//!                                      └──────────── DataPlane <─────────────┘
//!                                                        └──packets──> Mailbox <── APIs
//! ```

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use mycelium_router::{Router, incarnation};
use mycelium_wire::beacon::Beacon;
use mycelium_wire::claim;
use mycelium_wire::identity::{PublicKey, RouterId, SecretKey, Subnet};
use mycelium_wire::inner::InnerType;
use mycelium_wire::session::{Kind, ZONE};
use rustix::event::{EventfdFlags, eventfd};
use tokio::io::unix::AsyncFd;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};

use crate::api::{self, Control};
use crate::config::{ApiAddress, Config, Settings, UdpPort, thread_count};
use crate::control::NodeControl;
use crate::data::session::keeper::Keeper;
use crate::data::session::proved::ProvedFile;
use crate::data::session::{ORDER_COUNT_MAX, Order, Sessions};
use crate::data::table::{Table, TableWriter};
use crate::data::{DataPlane, MessagePacket, egress};
use crate::discovery::{Discovery, DiscoveryConfig};
use crate::interfaces::{self, Interfaces};
use crate::key_file;
use crate::link::udp::UdpCarrier;
use crate::link::udp::socket::{ACCEPTED_COUNT_MAX, SocketSettings, Sockets};
use crate::messages::mailbox::Mailbox;
use crate::messages::{Peer, Topics};
use crate::metrics::{self, Metrics};
use crate::peers::connect::Connector;
use crate::peers::direct::{Director, Means, USED_COUNT_MAX, mapping};
use crate::peers::private::PrivateNetwork;
use crate::peers::{ListenError, PeerKind, Peers, listen, quic, udp, websocket};
use crate::probe;
use crate::proofs::KeyProofs;
use crate::routing::{INPUT_COUNT_MAX, Input, Owner, SIGNAL_COUNT_MAX};
use crate::topic_config;
use crate::tun::Tun;

/// Packets of messages that wait to be looked at; what comes on top is sent again by its sender.
const MESSAGE_PACKET_COUNT_MAX: usize = 1024;
/// Zone bytes of router ids of nodes that speak sessions and prove their announcements.
const ZONE_NEW: [u8; 2] = [ZONE[0] | claim::ZONE[0], ZONE[1] | claim::ZONE[1]];
/// Zone bytes of router ids of existing releases.
const ZONE_OLD: [u8; 2] = [0, 0];

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

/// A node that runs, in the runtime that it was started in.
pub(crate) struct Node {
    peers: Arc<Peers>,
    control: Arc<NodeControl>,
    tun_threads: TunThreads,
}

/// All that a node listens on.
struct NodeSockets {
    links: LinkSockets,
    http: Option<TcpListener>,
    rpc: Option<TcpListener>,
    metrics: Option<TcpListener>,
}

/// What peers connect to.
struct LinkSockets {
    tcp: Option<TcpListener>,
    websocket: Option<TcpListener>,
    quic: Option<quinn::Endpoint>,
    udp: Option<(Arc<Sockets>, mpsc::Receiver<UdpCarrier>)>,
    vsock: Option<AsyncFd<OwnedFd>>,
}

impl Node {
    /// Must be called inside a runtime.
    pub(crate) fn start(config: Config) -> anyhow::Result<Self> {
        let key_path = config.key_file.clone().map_or_else(key_file::default_path, Ok)?;
        let secret = key_file::read_or_create(&key_path)?;
        let router_id = new_router_id(&secret, config.has_sessions)?;
        let sessions = SessionSettings::read(&config)?;
        let topics = match &config.topic_config {
            Some(path) => topic_config::read(path)?,
            None => Topics::default(),
        };
        let (connector, sockets) = open_sockets(&config, router_id, &secret)?;
        let key = secret.public();
        let address = key.address();
        let mtu = config.tun_mtu;
        let open = |name: &String| Tun::open(name, config.queue_count, (address, mtu));
        let tun = config.tun_name.as_ref().map(open).transpose()?;

        let subnet = key.subnet();
        let router = new_router(router_id, subnet, &secret)?;
        let table = Arc::new(Table::default());
        let (inputs, inputs_taken) = mpsc::channel(INPUT_COUNT_MAX);
        let (signals, signals_taken) = mpsc::channel(SIGNAL_COUNT_MAX);
        let (packets, packets_taken) = mpsc::channel(MESSAGE_PACKET_COUNT_MAX);
        let (sessions, keeping) = sessions.parts();
        let own = secret.clone();
        let plane = DataPlane::new(own, Arc::clone(&table), tun, signals, packets, sessions)?;
        let plane = Arc::new(plane);
        keeping.start(secret, &plane)?;
        tokio::spawn(probe::serve(Arc::clone(&plane)));
        let writer = TableWriter::new(Arc::clone(&table));
        let mut owner = Owner::new(router, writer, Arc::clone(&plane), inputs_taken, signals_taken);
        let (uses, used) = mpsc::channel(USED_COUNT_MAX);
        if config.has_direct {
            owner.report_uses(uses);
        }
        tokio::spawn(owner.run());
        let own = Peer { address, key };
        let mailbox = Mailbox::new(own, topics);
        tokio::spawn(send_messages(Arc::clone(&mailbox), Arc::clone(&plane)));
        tokio::spawn(take_messages(Arc::clone(&mailbox), packets_taken));
        let tun_threads = TunThreads::start(&plane)?;
        let peers = Peers::new(connector, Arc::clone(&plane), inputs.clone());
        let peers = Arc::new(peers);
        serve(&peers, sockets.links);
        if config.has_direct {
            find_direct_ways(&peers, &plane, &inputs, (used, config.map_port));
        }
        if let Some(listener) = sockets.metrics {
            let (peers, plane) = (Arc::clone(&peers), Arc::clone(&plane));
            let (inputs, table) = (inputs.clone(), Arc::clone(&table));
            let metrics = Metrics { peers, plane, inputs, table };
            tokio::spawn(metrics::serve(metrics, listener));
        }
        let control = NodeControl::new(mailbox, Arc::clone(&peers), table, plane, inputs);
        let control = Arc::new(control);
        serve_apis(&control, sockets.http, sockets.rpc);
        let (published, interfaces) = watch::channel(Interfaces::default());
        tokio::spawn(interfaces::watch(Arc::clone(&peers), published));
        discover(&peers, &config, router_id, interfaces);
        for endpoint in config.peers {
            if let Err(error) = peers.add(endpoint, PeerKind::Static) {
                tracing::warn!(%error, "peer not added");
            }
        }
        tracing::info!(%address, port = config.tcp_listen_port, "node up");
        Ok(Self { peers, control, tun_threads })
    }

    /// Its peers.
    pub(crate) fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }

    /// What its APIs ask.
    pub(crate) fn control(&self) -> &Arc<NodeControl> {
        &self.control
    }

    /// Comes back when its device is gone, which nobody but the system can have removed.
    pub(crate) async fn device_gone(&self) {
        self.tun_threads.ended.notified().await;
    }

    /// Ends what does not end with the runtime.
    pub(crate) fn stop(self) {
        tracing::info!("node stops");
        self.peers.close();
        self.tun_threads.stop();
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
        self.stop();
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

/// Whether a node has sessions, and who had one with it in earlier runs.
#[derive(Default)]
struct SessionSettings {
    has_sessions: bool,
    file: Option<ProvedFile>,
    proved: Vec<PublicKey>,
}

/// What is left to do when there is a data plane.
struct SessionKeeping {
    settings: SessionSettings,
    orders: mpsc::Receiver<Order>,
}

impl SessionSettings {
    fn read(config: &Config) -> anyhow::Result<Self> {
        if !config.has_sessions {
            return Ok(Self::default());
        }
        let file = config.state_dir.as_deref().map(ProvedFile::new).transpose()?;
        let proved = file.as_ref().map(ProvedFile::read).transpose()?.unwrap_or_default();
        Ok(Self { has_sessions: true, file, proved })
    }

    fn parts(self) -> (Arc<Sessions>, SessionKeeping) {
        let (sender, orders) = mpsc::channel(ORDER_COUNT_MAX);
        let sender = self.has_sessions.then_some(sender);
        let sessions = Arc::new(Sessions::new(sender, &self.proved));
        (sessions, SessionKeeping { settings: self, orders })
    }
}

impl SessionKeeping {
    fn start(self, secret: SecretKey, plane: &Arc<DataPlane>) -> anyhow::Result<()> {
        let SessionSettings { has_sessions, file, proved } = self.settings;
        if has_sessions {
            let keeper = Keeper::new(secret, Arc::clone(plane), &proved, file)?;
            tokio::spawn(keeper.run(self.orders));
        }
        Ok(())
    }
}

/// A router that proves what it announces, if its id says that it does.
fn new_router(router_id: RouterId, subnet: Subnet, secret: &SecretKey) -> anyhow::Result<Router> {
    let seed = u64::from_be_bytes(mycelium_wire::random_bytes()?);
    let config = mycelium_router::Config { router_id, subnet, seed };
    if !claim::is_announced(&router_id) {
        return Ok(Router::new(config));
    }
    let proofs = KeyProofs::new(secret.clone());
    Ok(Router::with_proofs(config, Box::new(proofs)))
}

fn new_router_id(secret: &SecretKey, has_sessions: bool) -> anyhow::Result<RouterId> {
    let zone = if has_sessions { ZONE_NEW } else { ZONE_OLD };
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
    let random = u16::from_be_bytes(mycelium_wire::random_bytes()?);
    Ok(RouterId::new(secret.public(), zone, incarnation(seconds, random)))
}

fn open_sockets(
    config: &Config,
    router_id: RouterId,
    secret: &SecretKey,
) -> anyhow::Result<(Connector, NodeSockets)> {
    let private = match &config.private_network {
        Some((name, key_file)) => Some(PrivateNetwork::new(name, key_file)?),
        None => None,
    };
    let mut connector = Connector { mark: config.firewall_mark, private, quic: None, udp: None };
    let listen = |port: Option<u16>, flag| {
        port.map(|port| listen::tcp_listener(&connector, port, flag)).transpose()
    };
    let tcp = listen(config.tcp_listen_port, "--tcp-listen-port")?;
    let websocket = listen(config.ws_listen_port, "--ws-listen-port")?;
    if let Some(port) = config.quic_listen_port {
        connector.quic = Some(quic::endpoint(&connector, port, &router_id.to_string())?);
    }
    let udp = match config.udp_listen_port {
        Some(port) => Some(udp_sockets(&connector, port, config, secret)?),
        None => None,
    };
    connector.udp = udp.as_ref().map(|(sockets, _)| Arc::clone(sockets));
    let vsock = match config.vsock_listen_port {
        Some(port) => Some(listen::vsock_listener(&connector, port)?),
        None => None,
    };
    let quic = connector.quic.clone();
    let links = LinkSockets { tcp, websocket, quic, udp, vsock };
    let http = api_listener(config.api_address, "--api-addr")?;
    let rpc = api_listener(config.jsonrpc_address, "--jsonrpc-addr")?;
    let metrics = match config.metrics_address {
        Some(address) => {
            let (port, flag) = (address.port().into(), "--metrics-api-address");
            let failed = |source| ListenError { port, flag, source };
            Some(metrics::listener(address).map_err(failed)?)
        }
        None => None,
    };
    Ok((connector, NodeSockets { links, http, rpc, metrics }))
}

/// Opens the sockets of UDP links. A default port that is taken, by another node on this machine, is no
/// reason to stay down: any other will do, since who dials learns it from its configuration.
fn udp_sockets(
    connector: &Connector,
    port: UdpPort,
    config: &Config,
    secret: &SecretKey,
) -> anyhow::Result<(Arc<Sockets>, mpsc::Receiver<UdpCarrier>)> {
    let (accepted, links) = mpsc::channel(ACCEPTED_COUNT_MAX);
    let mark = |socket: &OwnedFd| connector.mark(socket).map_err(std::io::Error::other);
    let (takes, reader_count) = (config.tun_mtu, config.queue_count);
    let open = |port| {
        let settings = SocketSettings { port, takes, reader_count };
        Sockets::open(secret.clone(), settings, mark, accepted.clone())
    };
    let sockets = match open(port.port) {
        Err(error) if port.is_default && error.kind() == std::io::ErrorKind::AddrInUse => open(0),
        opened => opened,
    };
    let failed = |source| {
        let (port, flag) = (port.port.into(), "--udp-listen-port");
        ListenError { port, flag, source }
    };
    Ok((sockets.map_err(failed)?, links))
}

/// Takes connections from now on.
fn serve(peers: &Arc<Peers>, sockets: LinkSockets) {
    if let Some(listener) = sockets.tcp {
        tokio::spawn(listen::serve_tcp(Arc::clone(peers), listener));
    }
    if let Some(listener) = sockets.websocket {
        tokio::spawn(websocket::serve(Arc::clone(peers), listener));
    }
    if let Some(endpoint) = sockets.quic {
        tokio::spawn(quic::serve(Arc::clone(peers), endpoint));
    }
    if let Some((_, accepted)) = sockets.udp {
        tokio::spawn(udp::serve(Arc::clone(peers), accepted));
    }
    if let Some(listener) = sockets.vsock {
        tokio::spawn(listen::serve_vsock(Arc::clone(peers), listener));
    }
}

/// Listens for programs. A port of the default address that is taken, by another node on this machine, is
/// no reason to stay down; one that somebody chose is.
fn api_listener(
    address: Option<ApiAddress>,
    flag: &'static str,
) -> anyhow::Result<Option<TcpListener>> {
    let Some(address) = address else { return Ok(None) };
    let bind = || {
        let listener = std::net::TcpListener::bind(address.address)?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    };
    match bind() {
        Ok(listener) => Ok(Some(listener)),
        Err(source) if address.is_default => {
            tracing::warn!(address = %address.address, error = %source, "no API there");
            Ok(None)
        }
        Err(source) => {
            Err(ListenError { port: address.address.port().into(), flag, source }.into())
        }
    }
}

fn serve_apis(control: &Arc<NodeControl>, http: Option<TcpListener>, rpc: Option<TcpListener>) {
    if let Some(listener) = http {
        tokio::spawn(api::serve_http(Arc::clone(control) as Arc<dyn Control>, listener));
    }
    if let Some(listener) = rpc {
        tokio::spawn(api::serve_rpc(Arc::clone(control) as Arc<dyn Control>, listener));
    }
}

/// Seals and routes packets of messages when they are due.
async fn send_messages(mailbox: Arc<Mailbox>, plane: Arc<DataPlane>) {
    let source = mailbox.own().address;
    let send = |destination, payload: &[u8]| {
        plane.send(InnerType::Message, source, destination, payload);
    };
    mailbox.run(send).await;
}

/// Gives packets that links brought to the messages' machine, which may start tasks.
async fn take_messages(mailbox: Arc<Mailbox>, mut packets: mpsc::Receiver<MessagePacket>) {
    while let Some(packet) = packets.recv().await {
        let source = Peer { address: packet.source, key: packet.public_key };
        mailbox.received(source, packet.destination, &packet.payload);
    }
}

/// Looks for direct ways to nodes that this one has traffic with.
fn find_direct_ways(
    peers: &Arc<Peers>,
    plane: &Arc<DataPlane>,
    inputs: &mpsc::Sender<Input>,
    (used, map_port): (mpsc::Receiver<PublicKey>, bool),
) {
    let Some(sockets) = peers.connector().udp.clone() else { return };
    let (mapping, mapped) = watch::channel(None);
    if map_port {
        tokio::spawn(mapping::keep(sockets.port(), mapping));
    }
    let means = Means {
        own: sockets.secret.public(),
        peers: Arc::clone(peers),
        messages: plane.sessions().subscribe(Kind::RENDEZVOUS),
        plane: Arc::clone(plane),
        sockets,
        inputs: inputs.clone(),
        used,
        mapped,
    };
    tokio::spawn(Director::new(means).run());
}

/// Looks for peers on the local network. A node lives without: its port is often taken by another
/// instance on the same machine.
fn discover(
    peers: &Arc<Peers>,
    config: &Config,
    router_id: RouterId,
    known: watch::Receiver<Interfaces>,
) {
    let Some((port, interfaces)) = config.peer_discovery.clone() else { return };
    // Nobody dials a port of zero.
    let beacon = Beacon { tcp_port: config.tcp_listen_port.unwrap_or(0), router_id };
    let config = DiscoveryConfig { port, interfaces };
    match Discovery::new(config, beacon, Arc::clone(peers), known) {
        Ok(discovery) => drop(tokio::spawn(discovery.run())),
        Err(error) => {
            tracing::warn!(error = format!("{error:#}"), "no peers are found on the local network");
        }
    }
}

/// The threads that read TUN.
struct TunThreads {
    stop: Arc<OwnedFd>,
    /// A thread ended.
    ended: Arc<Notify>,
    threads: Vec<JoinHandle<()>>,
}

impl TunThreads {
    /// Starts one for each queue, if there is a device.
    fn start(plane: &Arc<DataPlane>) -> anyhow::Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let ended = Arc::<Notify>::default();
        let queue_count = plane.tun().map_or(0, Tun::queue_count);
        let mut threads = Vec::with_capacity(queue_count);
        for number in 0..queue_count {
            let (plane, stop) = (Arc::clone(plane), Arc::clone(&stop));
            let ended = Arc::clone(&ended);
            let read = move || {
                if let Some(tun) = plane.tun() {
                    egress::run(&plane, tun, number, &stop);
                }
                ended.notify_one();
            };
            let builder = std::thread::Builder::new().name(format!("tun-{number}"));
            threads.push(builder.spawn(read).context("no thread for TUN")?);
        }
        Ok(Self { stop, ended, threads })
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
