//! A peer whose relay forges, repeats, reorders, drops and misdirects.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use common::*;
use hostd_rmb::envelope::limits::ENVELOPE_SIZE_MAX;
use hostd_rmb::envelope::{Address, Body, Envelope, ErrorReply, Payload, Response, unix_now};
use hostd_rmb::peer::{Call, CallError, Event, Peer, Retry};
use hostd_rmb::server::Commands;
use hostd_rmb::signature::Version;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;

const KEY: Option<Version> = Some(Version::V1);

/// A node (twin 2) and the relay that it believes in.
async fn node(encryption: Option<Version>) -> (Peer, WebSocketStream<TcpStream>) {
    let (listener, address) = fake_relay().await;
    let table = table(encryption);
    let starting = peer(config(address, 2, encryption), &table, commands());
    tokio::join!(starting, accept(&listener))
}

/// What the node's answer to `uid` says: a payload, or a code and a text.
async fn answer(
    socket: &mut WebSocketStream<TcpStream>,
    uid: &str,
    encryption: Option<Version>,
) -> Result<String, (u32, String)> {
    let envelope = next(socket).await.expect("an answer");
    assert_eq!(envelope.uid, uid);
    let opened = desk(1, encryption).open(&envelope, &twin(2, RELAY, encryption)).unwrap();
    match envelope.body {
        Some(Body::Response(_)) => Ok(String::from_utf8(opened.payload.to_vec()).unwrap()),
        Some(Body::Error(error)) => Err((error.code, error.message)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn duplicates_run_once() {
    for encryption in [KEY, Some(Version::V2)] {
        let (node, mut relay) = node(encryption).await;
        let bytes = closed(1, 2, encryption, request("a", 2, "test.count"));
        for _ in 0..3 {
            send(&mut relay, bytes.clone()).await;
        }
        // Signed again, with the same id.
        send(&mut relay, closed(1, 2, encryption, request("a", 2, "test.count"))).await;
        assert_eq!(answer(&mut relay, "a", encryption).await, Ok("1".into()));
        until("all were seen", || node.count(Event::Replayed) == 3).await;
        // Of another twin it is another one.
        send(&mut relay, closed(3, 2, encryption, request("a", 2, "test.count"))).await;
        next(&mut relay).await.unwrap();
        assert_eq!(node.count(Event::Run), 2);
    }
}

#[tokio::test]
async fn order_does_not_matter_and_loss_is_lost() {
    let (node, mut relay) = node(KEY).await;
    let uids = ["a", "b", "c", "d"];
    let all = uids.map(|uid| closed(1, 2, KEY, request(uid, 2, "test.echo")));
    // The third never comes.
    for index in [3, 0, 1] {
        send(&mut relay, all[index].clone()).await;
    }
    let mut answered = Vec::new();
    for _ in 0..3 {
        answered.push(next(&mut relay).await.unwrap().uid);
    }
    answered.sort();
    assert_eq!(answered, ["a", "b", "d"]);
    assert_eq!(node.count(Event::Received), 3);
}

#[tokio::test]
async fn expired_requests_are_answered_with_102() {
    let (node, mut relay) = node(KEY).await;
    let to = twin(2, RELAY, KEY);
    let close =
        |envelope: Envelope, now| desk(1, KEY).close(envelope, &to, Default::default(), now);
    let old = close(request("old", 2, "test.echo"), unix_now() - 301).unwrap();
    send(&mut relay, old).await;
    let (code, message) = answer(&mut relay, "old", KEY).await.unwrap_err();
    assert_eq!(code, 102);
    assert!(message.starts_with("envelope validation error: "), "{message}");
    // Half an hour is all that anybody gets.
    let long = Envelope { expiration: 1_000_000, ..request("long", 2, "test.echo") };
    send(&mut relay, close(long, unix_now() - 1801).unwrap()).await;
    assert_eq!(answer(&mut relay, "long", KEY).await.unwrap_err().0, 102);
    let future = close(request("future", 2, "test.echo"), unix_now() + 700).unwrap();
    send(&mut relay, future).await;
    assert_eq!(answer(&mut relay, "future", KEY).await.unwrap_err().0, 102);
    assert_eq!((node.count(Event::Expired), node.count(Event::Run)), (3, 0));
}

#[tokio::test]
async fn forged_requests_are_answered_with_104() {
    for (encryption, text) in [
        (KEY, "invalid envelope signature: the signature is not of this message by account"),
        (Some(Version::V2), "invalid envelope signature: the signature is not of this message"),
    ] {
        let (node, mut relay) = node(encryption).await;
        let genuine = closed(1, 2, encryption, request("a", 2, "test.echo"));
        let mut changed = Envelope::parse(genuine).unwrap();
        changed.body =
            Some(Body::Request(hostd_rmb::envelope::Request { command: "test.count".into() }));
        // As if twin 1 had sent what twin 3 signed.
        let mut borrowed =
            Envelope::parse(closed(3, 2, encryption, request("a", 2, "test.echo"))).unwrap();
        borrowed.source = Some(Address::new(id(1), None));
        let unsigned = Envelope { signature: None, ..changed.clone() };
        for forged in [changed, borrowed] {
            send(&mut relay, forged.to_bytes().unwrap()).await;
            let (code, message) = answer(&mut relay, "a", encryption).await.unwrap_err();
            assert_eq!(code, 104);
            assert!(message.starts_with(text), "{message}");
        }
        send(&mut relay, unsigned.to_bytes().unwrap()).await;
        let refused = answer(&mut relay, "a", encryption).await.unwrap_err();
        assert_eq!(refused, (104, "invalid envelope signature: there is no signature".into()));
        assert_eq!((node.count(Event::Forged), node.count(Event::Run)), (3, 0));
    }
}

#[tokio::test]
async fn nobody_is_talked_down_to_version_1() {
    let v2 = Some(Version::V2);
    let (node, mut relay) = node(v2).await;
    // Twin 1's own signature, of version 1, over a readable request.
    let bytes = desk(1, None)
        .close(request("a", 2, "test.echo"), &twin(2, RELAY, v2), Default::default(), unix_now())
        .unwrap();
    send(&mut relay, bytes).await;
    let (code, message) = answer(&mut relay, "a", v2).await.unwrap_err();
    assert_eq!(code, 104);
    assert!(message.ends_with("the signature is of V1 where V2 is due"), "{message}");
    assert_eq!(node.count(Event::Run), 0);
}

#[tokio::test]
async fn what_can_not_be_decrypted_is_answered_with_105_and_106() {
    let (listener, address) = fake_relay().await;
    let table = table(KEY);
    table.add(twin(3, RELAY, None));
    let starting = peer(config(address, 2, KEY), &table, commands());
    let (node, mut relay) = tokio::join!(starting, accept(&listener));
    // For twin 4, redirected by its own writer.
    let readable = request("a", 2, "test.echo");
    let bytes =
        desk(1, KEY).close(readable, &twin(4, RELAY, KEY), Default::default(), unix_now()).unwrap();
    send(&mut relay, bytes).await;
    let (code, message) = answer(&mut relay, "a", KEY).await.unwrap_err();
    assert_eq!((code, message.starts_with("e2e error: ")), (106, true), "{message}");
    // Twin 3 encrypts, and published nothing.
    send(&mut relay, closed(3, 2, KEY, request("b", 2, "test.echo"))).await;
    let envelope = next(&mut relay).await.unwrap();
    let Some(Body::Error(error)) = envelope.body else { panic!() };
    let expected = ErrorReply { code: 105, message: "sender twin has no public key".into() };
    assert_eq!(error, expected);
    assert_eq!((node.count(Event::Unreadable), node.count(Event::Run)), (2, 0));
}

#[tokio::test]
async fn what_is_for_others_or_of_nobody_is_dropped() {
    let (node, mut relay) = node(KEY).await;
    let with = |change: fn(&mut Envelope)| {
        let mut envelope = request("a", 2, "test.count");
        change(&mut envelope);
        closed(1, 2, KEY, envelope)
    };
    send(&mut relay, with(|e| e.destination = Some(Address::new(id(3), None)))).await;
    send(&mut relay, with(|e| e.destination = Some(Address::new(id(2), Some("x"))))).await;
    send(&mut relay, with(|e| e.destination = None)).await;
    until("misdirected", || node.count(Event::Misdirected) == 3).await;
    send(&mut relay, closed(100, 2, KEY, request("a", 2, "test.count"))).await;
    until("unknown", || node.count(Event::UnknownTwin) == 1).await;
    send(&mut relay, with(|e| e.schema = Some("text/plain".into()))).await;
    send(&mut relay, with(|e| e.schema = None)).await;
    until("schema", || node.count(Event::OtherSchema) == 2).await;
    for nonsense in ["", "hello", "\u{1}"] {
        send(&mut relay, bytes::Bytes::from_static(nonsense.as_bytes())).await;
    }
    until("malformed", || node.count(Event::Malformed) == 3).await;
    // An answer that nobody asked for costs no lookup and no signature.
    send(&mut relay, with(|e| e.body = Some(Body::Response(Response {})))).await;
    until("unasked", || node.count(Event::Unasked) == 1).await;
    // And after all that it still works.
    send(&mut relay, closed(1, 2, KEY, request("b", 2, "test.count"))).await;
    assert_eq!(answer(&mut relay, "b", KEY).await, Ok("1".into()));
}

#[tokio::test]
async fn an_envelope_that_is_too_large_ends_the_connection() {
    let (listener, address) = fake_relay().await;
    let table = table(KEY);
    let starting = peer(config(address, 2, KEY), &table, commands());
    let (node, mut relay) = tokio::join!(starting, accept(&listener));
    let large = vec![0; ENVELOPE_SIZE_MAX + 1];
    let message = tokio_tungstenite::tungstenite::Message::Binary(large.into());
    let _ = futures_util::SinkExt::send(&mut relay, message).await;
    until("it hangs up", || node.connected_count() == 0).await;
    // And comes back.
    let mut relay = accept(&listener).await;
    send(&mut relay, closed(1, 2, KEY, request("b", 2, "test.echo"))).await;
    assert!(answer(&mut relay, "b", KEY).await.is_ok());
}

#[tokio::test]
async fn answers_count_only_from_who_was_asked() {
    let (listener, address) = fake_relay().await;
    let table = table(KEY);
    let starting = peer(config(address, 1, KEY), &table, Commands::default());
    let (user, mut relay) = tokio::join!(starting, accept(&listener));
    let user = Arc::new(user);
    let asking = {
        let user = Arc::clone(&user);
        tokio::spawn(async move { user.call(Call::new(id(2), "test.echo", "")).await })
    };
    let asked = next(&mut relay).await.unwrap();
    let reply = |payload: &'static str| Envelope {
        body: Some(Body::Response(Response {})),
        payload: Some(Payload::Plain(payload.into())),
        ..request(&asked.uid, 1, "")
    };
    // Of twin 3; in the name of twin 2 without its key; expired; and then the right one, twice.
    send(&mut relay, closed(3, 1, KEY, reply("3"))).await;
    let mut forged = Envelope::parse(closed(3, 1, KEY, reply("4"))).unwrap();
    forged.source = Some(Address::new(id(2), None));
    send(&mut relay, forged.to_bytes().unwrap()).await;
    let old = desk(2, KEY)
        .close(reply("5"), &twin(1, RELAY, KEY), Default::default(), unix_now() - 400)
        .unwrap();
    send(&mut relay, old).await;
    until("all were looked at", || {
        [Event::Unasked, Event::Forged, Event::Expired].map(|event| user.count(event)) == [1, 1, 1]
    })
    .await;
    let right = closed(2, 1, KEY, reply("6"));
    send(&mut relay, right.clone()).await;
    send(&mut relay, right).await;
    assert_eq!(asking.await.unwrap().unwrap(), "6");
    until("the second is one too many", || user.count(Event::Unasked) == 2).await;
}

#[tokio::test]
async fn only_reads_are_asked_again() {
    let (listener, address) = fake_relay().await;
    let table = table(KEY);
    let starting = peer(config(address, 1, KEY), &table, Commands::default());
    let (user, mut relay) = tokio::join!(starting, accept(&listener));
    let user = Arc::new(user);
    let ask = |retry| {
        let user = Arc::clone(&user);
        let call = Call::new(id(2), "test.echo", "").retry(retry).time_max(Duration::from_secs(15));
        tokio::spawn(async move { user.call(call).await })
    };
    let (once, again) = (ask(Retry::Never), ask(Retry::Reads));
    let mut uids = Vec::new();
    for _ in 0..3 {
        uids.push(next(&mut relay).await.unwrap().uid);
    }
    uids.sort();
    uids.dedup();
    assert_eq!(uids.len(), 3, "a second attempt has an id of its own");
    // The late answer to any of them counts.
    for uid in uids {
        let reply = Envelope {
            body: Some(Body::Error(ErrorReply { code: 0, message: "late".into() })),
            ..request(&uid, 1, "")
        };
        send(&mut relay, closed(2, 1, KEY, reply)).await;
    }
    for call in [once, again] {
        let late = CallError::Failed { code: 0, message: "late".into() };
        assert_eq!(call.await.unwrap(), Err(late));
    }
    assert_eq!(user.count(Event::Called), 3);
}
