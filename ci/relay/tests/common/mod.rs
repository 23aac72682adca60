//! A grid of twins in memory, relays on loopback, and a relay that does what a test tells it.

#![allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use hostd_rmb::envelope::{Address, Body, Envelope, Payload, Request, SCHEMA_JSON, unix_now};
use hostd_rmb::identity::Identity;
use hostd_rmb::jwt::{self, Claims};
use hostd_rmb::peer::{Peer, PeerConfig};
use hostd_rmb::relay::TrustedRoots;
use hostd_rmb::seal::Desk;
use hostd_rmb::server::{Command, CommandError, Commands, json};
use hostd_rmb::signature::{Scheme, Version};
use hostd_rmb::twins::{Twin, TwinId, TwinLookup, Twins};
use rmb_relay::{RateLimit, Relay, RelayConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

/// Nothing in these tests takes longer than that when it works.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// The name of a relay that all twins have, unless they have another.
pub const RELAY: &str = "127.0.0.1";

pub type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// What the chain would know.
#[derive(Default)]
pub struct Table(Mutex<HashMap<TwinId, Arc<Twin>>>);

impl Twins for Table {
    fn twin(&self, id: TwinId) -> TwinLookup<'_> {
        let found = self.0.lock().unwrap().get(&id).cloned();
        Box::pin(async move { Ok(found) })
    }
}

impl Table {
    pub fn add(&self, twin: Twin) {
        self.0.lock().unwrap().insert(twin.id, Arc::new(twin));
    }
}

pub fn id(number: u32) -> TwinId {
    TwinId::new(number).unwrap()
}

/// Twin `number`: even ones sign with ed25519, as nodes do.
pub fn identity(number: u32) -> Arc<Identity> {
    let scheme = if number.is_multiple_of(2) { Scheme::Ed25519 } else { Scheme::Sr25519 };
    let seed = [u8::try_from(number).unwrap(); 32];
    Arc::new(Identity::from_seed(scheme, &seed).unwrap())
}

/// What the chain says about it.
pub fn twin(number: u32, relays: &str, encryption: Option<Version>) -> Twin {
    let identity = identity(number);
    let key = encryption.map(|version| identity.encryption_key(version).to_bytes());
    let key = key.as_ref().map(|key| &key[..]);
    Twin::from_chain(id(number), identity.account(), Some(relays.as_bytes()), key)
}

/// A table of twins 1 to 9 at [`RELAY`] that all publish keys of that version.
pub fn table(encryption: Option<Version>) -> Arc<Table> {
    let table = Table::default();
    (1..10).for_each(|number| table.add(twin(number, RELAY, encryption)));
    Arc::new(table)
}

pub fn config(address: SocketAddr, number: u32, encryption: Option<Version>) -> PeerConfig {
    PeerConfig {
        twin: id(number),
        session: None,
        relays: vec![format!("ws://{address}").parse().unwrap()],
        encryption,
        roots: TrustedRoots::new(None).unwrap(),
        limits: Default::default(),
    }
}

/// A peer that has come up.
pub async fn peer(config: PeerConfig, table: &Arc<Table>, commands: Commands) -> Peer {
    let identity = identity(config.twin.number());
    let twins = Arc::clone(table) as Arc<dyn Twins>;
    let peer = Peer::start(config, identity, twins, commands).unwrap();
    assert!(peer.wait_connected(PATIENCE).await, "no connection");
    peer
}

/// Some commands: `echo`, `whoami`, `fail`, `panic`, `slow`, `count`.
pub fn commands() -> Commands {
    let count = Arc::new(Mutex::new(0));
    Commands::default()
        .with("test.echo", Command::new(|request| async move { Ok(request.payload) }))
        .with(
            "test.whoami",
            Command::new(|request| async move {
                json(&(request.source.number(), request.is_encrypted))
            }),
        )
        .with("test.nothing", Command::new(|_| async { Ok(Bytes::new()) }))
        .with("test.fail", Command::new(|_| async { Err(CommandError::new("no such disk")) }))
        .with("test.panic", Command::new(|_| async { panic!("out of disks") }))
        .with(
            "test.slow",
            Command::new(|_| async {
                tokio::time::sleep(Duration::from_millis(300)).await;
                json(&"slow")
            }),
        )
        .with(
            "test.count",
            Command::new(move |_| {
                let mut count = count.lock().unwrap();
                *count += 1;
                let count = *count;
                async move { json(&count) }
            }),
        )
}

/// A relay that serves at an address until it is dropped.
pub struct Served {
    pub address: SocketAddr,
    pub relay: Arc<Relay>,
    task: JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Served {
    pub async fn new(table: &Arc<Table>) -> Self {
        Self::with(table, relay_config(), "127.0.0.1:0".parse().unwrap()).await
    }

    pub async fn with(table: &Arc<Table>, config: RelayConfig, address: SocketAddr) -> Self {
        let twins = Arc::clone(table) as Arc<dyn Twins>;
        let relay = Arc::new(Relay::new(config, twins).unwrap());
        let listener = loop {
            // The port of a relay that was just stopped may not be free at once.
            match TcpListener::bind(address).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        let address = listener.local_addr().unwrap();
        let serving = Arc::clone(&relay);
        let task = tokio::spawn(async move { serving.serve(listener).await.unwrap() });
        Self { address, relay, task }
    }
}

pub fn relay_config() -> RelayConfig {
    RelayConfig {
        domains: vec![RELAY.into()],
        routes: HashMap::new(),
        rate_limit: None::<RateLimit>,
        roots: TrustedRoots::new(None).unwrap(),
    }
}

/// A websocket of twin `number`, without a peer around it.
pub async fn socket(address: SocketAddr, number: u32, sid: Option<&str>) -> Socket {
    try_socket(&format!("ws://{address}/?{}", token(number, sid))).await.unwrap()
}

pub async fn try_socket(url: &str) -> Result<Socket, tungstenite::Error> {
    let connecting = tokio_tungstenite::connect_async(url);
    timeout(PATIENCE, connecting).await.unwrap().map(|(socket, _)| socket)
}

pub fn token(number: u32, sid: Option<&str>) -> String {
    let now = unix_now();
    let sid = sid.map(String::from);
    let claims = Claims { sub: number, sid, iat: now, exp: now + 60, aud: None };
    jwt::issue(&identity(number), &claims)
}

/// The next envelope, or nothing when the socket has ended.
pub async fn next<S>(socket: &mut WebSocketStream<S>) -> Option<Envelope>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    loop {
        match timeout(PATIENCE, socket.next()).await.expect("nothing came") {
            Some(Ok(Message::Binary(bytes))) => return Some(Envelope::parse(bytes).unwrap()),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
            Some(Ok(other)) => panic!("{other:?}"),
        }
    }
}

pub async fn send<S>(socket: &mut WebSocketStream<S>, bytes: Bytes)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    socket.send(Message::Binary(bytes)).await.unwrap();
}

/// A request that is complete but for its source, the time and the signature.
pub fn request(uid: &str, to: u32, command: &str) -> Envelope {
    Envelope {
        uid: uid.into(),
        expiration: 300,
        destination: Some(Address::new(id(to), None)),
        body: Some(Body::Request(Request { command: command.into() })),
        schema: Some(SCHEMA_JSON.into()),
        payload: Some(Payload::Plain("null".into())),
        ..Envelope::default()
    }
}

pub fn desk(number: u32, encryption: Option<Version>) -> Desk {
    Desk::new(identity(number), Address::new(id(number), None), encryption)
}

/// A request of twin `from`, closed.
pub fn closed(from: u32, to: u32, encryption: Option<Version>, envelope: Envelope) -> Bytes {
    let to = twin(to, RELAY, encryption);
    desk(from, encryption).close(envelope, &to, Default::default(), unix_now()).unwrap()
}

/// Waits until something holds.
pub async fn until(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("in vain: {what}"));
}

/// A relay of a test's own: takes one connection, whoever it is.
pub async fn fake_relay() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

pub async fn accept(listener: &TcpListener) -> WebSocketStream<TcpStream> {
    let (stream, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
    tokio_tungstenite::accept_async(stream).await.unwrap()
}
