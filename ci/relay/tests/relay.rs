//! What a relay does with sessions and envelopes, seen from bare websockets and HTTP.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::collections::HashMap;
use std::net::SocketAddr;

use bytes::Bytes;
use common::*;
use futures_util::SinkExt as _;
use hostd_rmb::envelope::limits::ENVELOPE_SIZE_MAX;
use hostd_rmb::envelope::{Address, Body, Envelope, Payload, Ping, unix_now};
use hostd_rmb::jwt::{self, Claims};
use hostd_rmb::peer::Call;
use hostd_rmb::server::Commands;
use hostd_rmb::signature::Version;
use rmb_relay::{RateLimit, RelayConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{Error, Message};

/// Sends one HTTP request; returns status and body.
async fn http(address: SocketAddr, method: &str, path: &str, body: &[u8]) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let size = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {size}\r\n\
         Connection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // A relay that has read enough may hang up.
    let _ = stream.write_all(body).await;
    let mut reply = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut reply)).await.unwrap();
    let reply = String::from_utf8_lossy(&reply).into_owned();
    let status = reply.split(' ').nth(1).expect("a status line").parse().unwrap();
    (status, reply.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

/// The status with which a token is refused.
async fn refused(address: SocketAddr, query: &str) -> u16 {
    match try_socket(&format!("ws://{address}/{query}")).await {
        Err(Error::Http(response)) => response.status().as_u16(),
        other => panic!("{other:?}"),
    }
}

/// A signed request of twin `from`'s session.
fn from(from: u32, session: Option<&str>, envelope: Envelope) -> Bytes {
    let address = Address::new(id(from), session);
    let desk = hostd_rmb::seal::Desk::new(identity(from), address, None);
    let to = twin(1, RELAY, None);
    desk.close(envelope, &to, Default::default(), unix_now()).unwrap()
}

fn error(envelope: Option<Envelope>) -> (String, String) {
    let envelope = envelope.expect("an error, not the end");
    assert!(envelope.source.is_none() && envelope.signature.is_none());
    match envelope.body {
        Some(Body::Error(error)) if error.code == 0 => (envelope.uid, error.message),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn only_a_good_token_opens_a_session() {
    let served = Served::new(&table(None)).await;
    let address = served.address;
    assert_eq!(refused(address, "").await, 400);
    assert_eq!(refused(address, "?").await, 400);
    assert_eq!(refused(address, "?hello").await, 401);
    let now = unix_now();
    let good = Claims { sub: 1, sid: None, iat: now, exp: now + 60, aud: None };
    let of = |identity, claims: &Claims| format!("?{}", jwt::issue(identity, claims));
    let (one, two) = (identity(1), identity(2));
    assert_eq!(refused(address, &of(&two, &good)).await, 401);
    assert_eq!(refused(address, &of(&one, &Claims { exp: now, ..good.clone() })).await, 401);
    let unknown = Claims { sub: 100, ..good.clone() };
    assert_eq!(refused(address, &of(&one, &unknown)).await, 401);
    // Meant for another relay.
    let elsewhere = Claims { aud: Some("relay.grid.tf".into()), ..good.clone() };
    assert_eq!(refused(address, &of(&one, &elsewhere)).await, 401);
    let long = Claims { sid: Some("x".repeat(257)), ..good.clone() };
    assert_eq!(refused(address, &of(&one, &long)).await, 401);
    // Any path will do.
    let url = format!("ws://{address}/a/b{}", of(&one, &good));
    assert!(try_socket(&url).await.is_ok());
}

#[tokio::test]
async fn a_newer_connection_of_a_session_pushes_out_the_older_one() {
    let served = Served::new(&table(None)).await;
    let mut old = socket(served.address, 1, None).await;
    let mut other = socket(served.address, 1, Some("other")).await;
    let mut new = socket(served.address, 1, None).await;
    assert_eq!(next(&mut old).await, None);
    let mut sender = socket(served.address, 2, None).await;
    send(&mut sender, from(2, None, request("a", 1, "x"))).await;
    assert_eq!(next(&mut new).await.unwrap().uid, "a");
    let to_other =
        Envelope { destination: Some(Address::new(id(1), Some("other"))), ..request("b", 1, "x") };
    send(&mut sender, from(2, None, to_other)).await;
    assert_eq!(next(&mut other).await.unwrap().uid, "b");
    until("three are left", || served.relay.session_count() == 3).await;
}

#[tokio::test]
async fn what_is_sent_to_nobody_waits() {
    let served = Served::new(&table(None)).await;
    let mut sender = socket(served.address, 2, None).await;
    for uid in ["a", "b", "c"] {
        send(&mut sender, from(2, None, request(uid, 1, "x"))).await;
    }
    // Whatever came before this was put where it belongs.
    send(&mut sender, from(2, None, request("d", 100, "x"))).await;
    assert_eq!(error(next(&mut sender).await).1, "unknown twin destination");
    let mut receiver = socket(served.address, 1, None).await;
    for uid in ["a", "b", "c"] {
        assert_eq!(next(&mut receiver).await.unwrap().uid, uid);
    }
}

#[tokio::test]
async fn bad_envelopes_are_answered_as_the_grids_relays_do() {
    let table = table(None);
    table.add(twin(8, "", None));
    let served = Served::new(&table).await;
    let mut socket = socket(served.address, 2, Some("s")).await;
    let ours = |envelope| from(2, Some("s"), envelope);
    let with = |uid: &str, change: fn(&mut Envelope)| {
        let mut envelope = request(uid, 1, "x");
        change(&mut envelope);
        envelope
    };
    for (bytes, uid, text) in [
        (from(3, Some("s"), request("a", 1, "x")), "a", "message wrong source"),
        (from(2, None, request("b", 1, "x")), "b", "message wrong source"),
        (ours(with("c", |e| e.destination = None)), "c", "message with missing destination"),
        (ours(request("d", 100, "x")), "d", "unknown twin destination"),
        (ours(request("e", 8, "x")), "e", "relay info is not set for this twin"),
        (ours(with("f", |e| e.tags = Some("fail-fast".into()))), "f", "destination offline"),
    ] {
        // The same as a response is dropped without a word.
        let mut response = Envelope::parse(bytes.clone()).unwrap();
        response.body = Some(Body::Response(hostd_rmb::envelope::Response {}));
        send(&mut socket, response.to_bytes().unwrap()).await;
        send(&mut socket, bytes).await;
        assert_eq!(error(next(&mut socket).await), (uid.into(), text.into()));
    }
}

#[tokio::test]
async fn pings_come_back_as_pongs() {
    let served = Served::new(&table(None)).await;
    let mut socket = socket(served.address, 2, Some("s")).await;
    let ping = Envelope { body: Some(Body::Ping(Ping {})), payload: None, ..request("p", 1, "") };
    send(&mut socket, from(2, Some("s"), ping)).await;
    let pong = next(&mut socket).await.unwrap();
    assert_eq!(pong.uid, "p");
    assert!(matches!(pong.body, Some(Body::Pong(_))));
    assert_eq!(pong.payload, Some(Payload::Plain("hello world".into())));
    assert_eq!(pong.destination, Some(Address::new(id(2), Some("s"))));
}

#[tokio::test]
async fn text_nonsense_and_excess_end_a_session() {
    let served = Served::new(&table(None)).await;
    let large = Bytes::from(vec![0; ENVELOPE_SIZE_MAX + 1]);
    for message in [
        Message::Text("hello".into()),
        Message::Binary(Bytes::from_static(b"hello")),
        Message::Binary(large),
    ] {
        let mut socket = socket(served.address, 2, None).await;
        let _ = socket.send(message).await;
        assert_eq!(next(&mut socket).await, None);
    }
    until("all are gone", || served.relay.session_count() == 0).await;
}

#[tokio::test]
async fn a_twin_may_send_so_much_a_minute() {
    let config =
        RelayConfig { rate_limit: Some(RateLimit { count: 3, size: 10_000 }), ..relay_config() };
    let served = Served::with(&table(None), config, "127.0.0.1:0".parse().unwrap()).await;
    let mut receiver = socket(served.address, 1, None).await;
    let mut sender = socket(served.address, 2, None).await;
    for uid in ["a", "b", "c", "d"] {
        send(&mut sender, from(2, None, request(uid, 1, "x"))).await;
    }
    let refusal = ("d".into(), "exceeded rate limits, dropping message".into());
    assert_eq!(error(next(&mut sender).await), refusal);
    for uid in ["a", "b", "c"] {
        assert_eq!(next(&mut receiver).await.unwrap().uid, uid);
    }
    let large =
        Envelope { payload: Some(Payload::Plain(vec![0; 10_000].into())), ..request("e", 1, "x") };
    send(&mut receiver, from(1, None, large)).await;
    assert_eq!(error(next(&mut receiver).await).0, "e");
}

/// Two relays, `a` and `b`, that know where the other one is; twins 1 and 2 are at `a`, 3 at `b`.
/// Of those, `b` may not be there.
async fn two_relays(b_is_there: bool) -> (Served, Option<Served>) {
    let table = table(None);
    table.add(twin(1, "a", None));
    table.add(twin(2, "a", None));
    table.add(twin(3, "b", None));
    let config = |name: &str, other: &str, at: SocketAddr| RelayConfig {
        domains: vec![name.into()],
        routes: HashMap::from([(other.to_owned(), format!("http://{at}/").parse().unwrap())]),
        ..relay_config()
    };
    let [(a_listener, a_address), (b_listener, b_address)] =
        [fake_relay().await, fake_relay().await];
    drop((a_listener, b_listener));
    let b = match b_is_there {
        true => Some(Served::with(&table, config("b", "a", a_address), b_address).await),
        false => None,
    };
    (Served::with(&table, config("a", "b", b_address), a_address).await, b)
}

#[tokio::test]
async fn envelopes_for_twins_of_other_relays_are_passed_on() {
    let (a, b) = two_relays(true).await;
    let b = b.unwrap();
    let mut sender = socket(a.address, 2, None).await;
    // While it is away and while it is there.
    send(&mut sender, from(2, None, request("1", 3, "x"))).await;
    let mut receiver = socket(b.address, 3, None).await;
    assert_eq!(next(&mut receiver).await.unwrap().uid, "1");
    send(&mut sender, from(2, None, request("2", 3, "x"))).await;
    assert_eq!(next(&mut receiver).await.unwrap().uid, "2");
    // Another relay's no is final.
    drop(receiver);
    until("it is gone", || b.relay.session_count() == 0).await;
    let fast = Envelope { tags: Some("fail-fast".into()), ..request("3", 3, "x") };
    send(&mut sender, from(2, None, fast)).await;
    assert_eq!(error(next(&mut sender).await), ("3".into(), "destination offline".into()));
    // Without a signature it is not taken over there, though any relay would pass it on.
    let unsigned = Envelope {
        source: Some(Address::new(id(2), None)),
        timestamp: unix_now(),
        ..request("4", 3, "x")
    };
    send(&mut sender, unsigned.to_bytes().unwrap()).await;
    assert_eq!(error(next(&mut sender).await), ("4".into(), "destination offline".into()));
}

#[tokio::test]
async fn a_relay_that_is_not_there_is_reported() {
    let (a, _) = two_relays(false).await;
    let mut sender = socket(a.address, 2, None).await;
    send(&mut sender, from(2, None, request("1", 3, "x"))).await;
    let (uid, text) = error(next(&mut sender).await);
    assert_eq!((uid.as_str(), text.as_str()), ("1", "relays [\"b\"] were not reachable in time"));
}

#[tokio::test]
async fn calls_cross_relays() {
    let (a, b) = two_relays(true).await;
    let b = b.unwrap();
    let mut node = socket(b.address, 3, None).await;
    let mut user = socket(a.address, 2, None).await;
    send(&mut user, from(2, None, request("q", 3, "x"))).await;
    let question = next(&mut node).await.unwrap();
    let answer = Envelope {
        destination: question.source,
        body: Some(Body::Response(hostd_rmb::envelope::Response {})),
        ..request("q", 2, "")
    };
    send(&mut node, from(3, None, answer)).await;
    assert!(matches!(next(&mut user).await.unwrap().body, Some(Body::Response(_))));
}

#[tokio::test]
async fn other_relays_are_believed_nothing() {
    let served = Served::new(&table(Some(Version::V1))).await;
    served_post(&served, &from(2, None, request("a", 1, "x")), 202).await;
    served_post(&served, b"hello", 400).await;
    served_post(&served, &[], 400).await;
    let change = |change: fn(&mut Envelope)| {
        let mut envelope = Envelope::parse(from(2, None, request("a", 1, "x"))).unwrap();
        change(&mut envelope);
        envelope.to_bytes().unwrap()
    };
    served_post(&served, &change(|e| e.signature = None), 401).await;
    served_post(&served, &change(|e| e.uid = "b".into()), 401).await;
    served_post(&served, &change(|e| e.source = None), 400).await;
    served_post(&served, &from(100, None, request("a", 1, "x")), 401).await;
    served_post(&served, &change(|e| e.timestamp = 1), 400).await;
    served_post(&served, &from(2, None, request("a", 100, "x")), 404).await;
    served_post(&served, &vec![0; ENVELOPE_SIZE_MAX + 1], 413).await;
    // The one that was good has arrived.
    let mut receiver = socket(served.address, 1, None).await;
    assert_eq!(next(&mut receiver).await.unwrap().uid, "a");
}

async fn served_post(served: &Served, body: &[u8], status: u16) {
    assert_eq!(http(served.address, "POST", "/", body).await.0, status);
}

#[tokio::test]
async fn metrics_can_be_read() {
    let table = table(None);
    let served = Served::new(&table).await;
    let _node = peer(config(served.address, 2, None), &table, commands()).await;
    let user = peer(config(served.address, 1, None), &table, Commands::default()).await;
    user.call(Call::new(id(2), "test.echo", "")).await.unwrap();
    let (status, text) = http(served.address, "GET", "/metrics", b"").await;
    assert_eq!(status, 200);
    for line in
        ["relay_messages_received_total 2\n", "relay_sessions 2\n", "relay_messages_waiting 0\n"]
    {
        assert!(text.contains(line), "{line} in {text}");
    }
    assert_eq!(http(served.address, "GET", "/", b"").await.0, 404);
    assert_eq!(http(served.address, "DELETE", "/metrics", b"").await.0, 404);
}
