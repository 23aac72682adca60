//! What the relay carries, from one session to another, on one machine: prints a line a figure, its name
//! and its value with a tab in between (`ci/bench grid` reads them).
//!
//! Sender, relay and receiver are tasks of one process on two threads, over loopback, so the figures
//! include two websocket clients. Run it optimised: `cargo run --release -p rmb-relay --example
//! throughput [--sessions N]`. Only idle sessions: `--sessions N --idle`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use hostd_rmb::envelope::{Address, Body, Envelope, Payload, Request, unix_now};
use hostd_rmb::identity::Identity;
use hostd_rmb::jwt::{self, Claims};
use hostd_rmb::relay::TrustedRoots;
use hostd_rmb::signature::Scheme;
use hostd_rmb::twins::{Twin, TwinId, TwinLookup, Twins};
use rmb_relay::{Relay, RelayConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;
type Error = Box<dyn std::error::Error + Send + Sync>;

/// Envelopes that a sender writes before it flushes.
const BATCH_COUNT: usize = 64;

/// Every twin has the same key; this measures the relay.
struct Everybody(Arc<Identity>);

impl Twins for Everybody {
    fn twin(&self, id: TwinId) -> TwinLookup<'_> {
        let twin = Twin::from_chain(id, self.0.account(), Some(b"127.0.0.1"), None);
        Box::pin(async move { Ok(Some(Arc::new(twin))) })
    }
}

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let sessions = match (arguments.next().as_deref(), arguments.next()) {
        (Some("--sessions"), Some(count)) => count.parse()?,
        _ => 0,
    };
    let only_idle = arguments.next().as_deref() == Some("--idle");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(measure(sessions, only_idle))
}

async fn measure(sessions: usize, only_idle: bool) -> Result<(), Error> {
    let identity = Arc::new(Identity::from_seed(Scheme::Ed25519, &[7; 32])?);
    let config = RelayConfig {
        domains: vec!["127.0.0.1".into()],
        routes: HashMap::new(),
        rate_limit: None,
        roots: TrustedRoots::new(None)?,
    };
    let relay = Arc::new(Relay::new(config, Arc::new(Everybody(Arc::clone(&identity))))?);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let serving = Arc::clone(&relay);
    let _server = tokio::spawn(async move { serving.serve(listener).await });

    if !only_idle {
        let a = connect(address, &identity, 1).await?;
        let b = connect(address, &identity, 2).await?;
        let (a, b) = one_way(a, b, "warm-up", 100, 5_000).await?;
        let (a, b) = one_way(a, b, "100 B", 100, 100_000).await?;
        let (a, b) = one_way(a, b, "4 KiB", 4096, 50_000).await?;
        let (a, b) = one_way(a, b, "64 KiB", 65_536, 10_000).await?;
        round_trips(a, b, 3_000, Duration::from_millis(1)).await?;
    }
    if sessions > 0 {
        idle(address, &identity, sessions).await?;
    }
    Ok(())
}

/// Sends `count` envelopes and waits until all have arrived.
async fn one_way(
    mut a: Socket,
    mut b: Socket,
    name: &str,
    payload_size: usize,
    count: usize,
) -> Result<(Socket, Socket), Error> {
    let bytes = envelope(1, 2, payload_size)?;
    let size = bytes.len();
    let begin = Instant::now();
    let sending = tokio::spawn(async move {
        for index in 0..count {
            a.feed(Message::Binary(bytes.clone())).await?;
            if index % BATCH_COUNT == 0 {
                a.flush().await?;
            }
        }
        a.flush().await?;
        Ok::<_, Error>(a)
    });
    let mut received = 0;
    while received < count {
        if let Message::Binary(_) = b.next().await.ok_or("the relay hung up")?? {
            received += 1;
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    let rate = f64::from(u32::try_from(count)?) / seconds;
    let mib = rate * f64::from(u32::try_from(size)?) / f64::from(1 << 20);
    figure(&format!("one way, {name}: messages/s"), rate);
    figure(&format!("one way, {name}: MiB/s"), mib);
    Ok((sending.await??, b))
}

/// Asks and answers, one question every `pause`.
async fn round_trips(
    mut a: Socket,
    mut b: Socket,
    count: usize,
    pause: Duration,
) -> Result<(), Error> {
    let (question, answer) = (envelope(1, 2, 100)?, envelope(2, 1, 100)?);
    let answering = tokio::spawn(async move {
        while let Some(Ok(message)) = b.next().await {
            if let Message::Binary(_) = message
                && b.send(Message::Binary(answer.clone())).await.is_err()
            {
                return;
            }
        }
    });
    let mut times = Vec::with_capacity(count);
    let mut ticks = tokio::time::interval(pause);
    while times.len() < count {
        ticks.tick().await;
        let begin = Instant::now();
        a.send(Message::Binary(question.clone())).await?;
        while !matches!(a.next().await.ok_or("the relay hung up")??, Message::Binary(_)) {}
        times.push(begin.elapsed());
    }
    answering.abort();
    times.sort();
    let at = |percent: usize| times.get(count * percent / 100).copied().unwrap_or_default();
    for percent in [50, 99] {
        let name = format!("round trip, 1000 a second, p{percent}: ms");
        figure(&name, at(percent).as_secs_f64() * 1e3);
    }
    Ok(())
}

/// Opens sessions that do nothing, and looks at this process's memory, which has both ends.
async fn idle(address: SocketAddr, identity: &Identity, count: usize) -> Result<(), Error> {
    let before = resident_kib()?;
    let mut sockets = Vec::with_capacity(count);
    for number in 0..count {
        sockets.push(connect_bare(address, identity, 1000 + u32::try_from(number)?).await?);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let grown = resident_kib()?.saturating_sub(before);
    let each = f64::from(u32::try_from(grown)?) / f64::from(u32::try_from(count)?);
    figure("idle sessions", f64::from(u32::try_from(count)?));
    figure("idle session: KiB", each);
    Ok(())
}

fn figure(what: &str, value: f64) {
    println!("{what}\t{value:.3}");
}

fn resident_kib() -> Result<usize, Error> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

fn envelope(from: u32, to: u32, payload_size: usize) -> Result<Bytes, Error> {
    let address = |twin| Some(Address { twin, connection: None });
    let envelope = Envelope {
        uid: "6f1f6d3a-9b0e-4a63-8f5c-0d8f5b1f2a3c".into(),
        timestamp: unix_now(),
        expiration: 300,
        source: address(from),
        destination: address(to),
        body: Some(Body::Request(Request { command: "bench".into() })),
        payload: Some(Payload::Plain(vec![0; payload_size].into())),
        ..Envelope::default()
    };
    Ok(envelope.to_bytes()?)
}

fn url(address: SocketAddr, identity: &Identity, twin: u32) -> String {
    let now = unix_now();
    let claims = Claims { sub: twin, sid: None, iat: now, exp: now + 60, aud: None };
    format!("ws://{address}/?{}", jwt::issue(identity, &claims))
}

async fn connect(address: SocketAddr, identity: &Identity, twin: u32) -> Result<Socket, Error> {
    let (socket, _) = tokio_tungstenite::connect_async(url(address, identity, twin)).await?;
    if let MaybeTlsStream::Plain(stream) = socket.get_ref() {
        stream.set_nodelay(true)?;
    }
    Ok(socket)
}

/// A session whose client has no buffers: the handshake by hand, then nothing.
async fn connect_bare(
    address: SocketAddr,
    identity: &Identity,
    twin: u32,
) -> Result<TcpStream, Error> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = TcpStream::connect(address).await?;
    let url = url(address, identity, twin);
    let (_, path) = url.split_once("/?").ok_or("a token")?;
    let request = format!(
        "GET /?{path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut reply = [0; 12];
    stream.read_exact(&mut reply).await?;
    if &reply != b"HTTP/1.1 101" {
        return Err("the relay refuses".into());
    }
    Ok(stream)
}
