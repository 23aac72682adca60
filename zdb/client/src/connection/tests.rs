//! Conversations with servers that answer well, badly, or not at all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use sha1::{Digest, Sha1};

use super::*;
use crate::Password;
use crate::commands::optional_bytes;
use crate::testing::{Action, FakeServer, Session, TIMEOUTS};

type Data = Arc<Mutex<HashMap<Vec<u8>, Vec<u8>>>>;

/// A server of one namespace, `ns`, with the password `secret`.
fn zdb(data: &Data) -> Session {
    let data = Arc::clone(data);
    let challenge = "f7b69d2e8a9b4d11";
    let good: String = Sha1::digest(format!("{challenge}:secret"))
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Box::new(move |arguments| {
        let mut out = Vec::new();
        let words: Vec<&[u8]> = arguments.iter().map(Vec::as_slice).collect();
        match words.as_slice() {
            [b"PING"] => write::simple(&mut out, b"PONG"),
            [b"AUTH", b"SECURE", b"CHALLENGE"] => {
                write::simple(&mut out, challenge.as_bytes());
            }
            [b"AUTH", b"SECURE", hash] | [b"SELECT", b"ns", b"SECURE", hash]
                if *hash == good.as_bytes() =>
            {
                write::simple(&mut out, b"OK");
            }
            [b"AUTH", b"secret"] | [b"SELECT", b"ns", b"secret"] => {
                write::simple(&mut out, b"OK");
            }
            [b"AUTH", word] => {
                let text = [b"bad password ", *word].concat();
                write::error(&mut out, &text);
            }
            [b"SET", key, value] => {
                data.lock().unwrap().insert(key.to_vec(), value.to_vec());
                write::bulk(&mut out, key);
            }
            [b"GET", key] => match data.lock().unwrap().get(*key) {
                Some(value) => write::bulk(&mut out, value),
                None => write::nil(&mut out),
            },
            [b"EXISTS", key] => {
                write::integer(&mut out, data.lock().unwrap().contains_key(*key).into());
            }
            [b"LONELY"] => out.extend_from_slice(b"$5\r\nab"),
            [b"GARBAGE"] => out.extend_from_slice(b"HTTP/1.1 400\r\n"),
            [b"QUIT"] => return Action::Close,
            _ => write::error(&mut out, b"Command not supported"),
        }
        Action::Send(out)
    })
}

fn server() -> FakeServer {
    let data = Data::default();
    FakeServer::tcp(move || zdb(&data))
}

fn connect(server: &FakeServer) -> Client {
    Client::connect(&server.endpoint, &TIMEOUTS).unwrap()
}

#[test]
fn values_of_all_sizes_round_trip() {
    let server = server();
    let mut client = connect(&server);
    client.ping().unwrap();
    for size in [0, 1, 100, 1 << 16, 512 << 10, BULK_SIZE_MAX] {
        let value: Vec<u8> = (0..size).map(|i| (i % 251).to_le_bytes()[0]).collect();
        assert!(!client.exists(&size.to_le_bytes()).unwrap());
        client.set(&size.to_le_bytes(), &value).unwrap();
        assert!(client.exists(&size.to_le_bytes()).unwrap());
        assert_eq!(client.get(&size.to_le_bytes()).unwrap(), Some(value));
    }
    assert_eq!(client.get(b"nothing").unwrap(), None);
}

#[test]
fn batches_keep_their_order() {
    let server = server();
    let mut client = connect(&server);
    let pairs: Vec<_> =
        (0_u32..500).map(|i| (i.to_le_bytes(), vec![i.to_le_bytes()[0]; 20_000])).collect();
    client.set_batch(&pairs).unwrap();
    let keys: Vec<_> = (0_u32..501).rev().map(u32::to_le_bytes).collect();
    let values = client.get_batch(&keys).unwrap();
    assert_eq!(values[0], None);
    for (value, (_, expected)) in values[1..].iter().zip(pairs.iter().rev()) {
        assert_eq!(value.as_ref(), Some(expected));
    }
    assert_eq!(client.exists_batch(&keys).unwrap().iter().filter(|found| **found).count(), 500);
}

#[test]
fn passwords_go_in_clear_or_by_challenge() {
    let server = server();
    let mut client = connect(&server);
    let (good, bad) = (Password::new("secret"), Password::new("hunter2"));
    client.auth(&good).unwrap();
    client.auth_secure(&good).unwrap();
    client.select("ns", Some(&good)).unwrap();
    client.select_secure("ns", &good).unwrap();
    for error in [
        client.auth(&bad).unwrap_err(),
        client.auth_secure(&bad).unwrap_err(),
        client.select("ns", Some(&bad)).unwrap_err(),
        client.select_secure("ns", &bad).unwrap_err(),
    ] {
        assert!(error.is_refusal(), "{error}");
        let shown = format!("{error} {error:?} {bad:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    client.ping().unwrap();
}

#[test]
fn a_refusal_in_a_batch_leaves_the_connection_in_step() {
    let server = server();
    let mut client = connect(&server);
    client.set(b"k", b"v").unwrap();
    let requests = [[&b"GET"[..], b"k"], [b"NOPE", b"k"], [b"GET", b"k"]];
    let error = client.batch("GET", requests.into_iter(), optional_bytes).unwrap_err();
    assert!(error.is_refusal());
    client.ping().unwrap();
    assert_eq!(client.get(b"k").unwrap().as_deref(), Some(&b"v"[..]));
}

#[test]
fn a_broken_connection_stays_broken() {
    let server = server();
    for (command, expected) in [
        (&b"QUIT"[..], "closed the connection"),
        (b"GARBAGE", "broke the protocol"),
        (b"LONELY", "no reply within 50 ms"),
    ] {
        let short = Timeouts { request: Duration::from_millis(50), ..TIMEOUTS };
        let mut client = Client::connect(&server.endpoint, &short).unwrap();
        let error = client.call(&[command]).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(client.is_broken());
        assert!(matches!(client.ping(), Err(ClientError::Broken { .. })));
    }
}

#[test]
fn a_value_larger_than_accepted_is_not_read() {
    let server = server();
    connect(&server).set(b"k", &[0; 2000]).unwrap();
    let mut client = Client::connect_with(&server.endpoint, &TIMEOUTS, 1999, None).unwrap();
    assert!(matches!(client.get(b"k"), Err(ClientError::Protocol { .. })));
    let mut client = Client::connect_with(&server.endpoint, &TIMEOUTS, 2000, None).unwrap();
    assert_eq!(client.get(b"k").unwrap().unwrap().len(), 2000);
}

#[test]
fn nobody_listening_is_an_error_at_once() {
    let endpoint = Endpoint::Tcp("127.0.0.1".to_owned(), 1);
    let error = Client::connect(&endpoint, &TIMEOUTS).unwrap_err();
    assert!(matches!(error, ClientError::Connect { .. }), "{error}");
    let endpoint = Endpoint::Unix("/nonexistent/zdb.sock".into());
    let error = Client::connect(&endpoint, &TIMEOUTS).unwrap_err();
    assert!(matches!(error, ClientError::Connect { .. }), "{error}");
}

#[test]
fn unix_sockets_work_and_do_not_wait_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("zdb.sock");
    {
        let data = Data::default();
        let server = FakeServer::unix(&path, move || zdb(&data));
        connect(&server).ping().unwrap();
    }
    let path = folder.path().join("full.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let endpoint = Endpoint::Unix(path);
    let short = Timeouts { connect: Duration::from_millis(50), ..TIMEOUTS };
    let _first = Client::connect(&endpoint, &short).unwrap();
    let error = Client::connect(&endpoint, &short).unwrap_err();
    assert!(matches!(error, ClientError::Connect { .. }), "{error}");
}
