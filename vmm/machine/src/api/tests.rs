//! The API over a real socket, with clients good and bad, and a machine that isn't there.

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value as Json, json};
use vmm_spec::api::{Body, ROUTES};
use vmm_spec::testing::check;

use super::connection::Timeouts;
use super::fake::Fake;
use super::*;

/// Longer than any test waits for an answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server with a fake machine, on a thread of its own, until it is dropped.
struct Running {
    machine: Arc<Fake>,
    folder: tempfile::TempDir,
    stopper: Stopper,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn new() -> Self {
        Self::with(Timeouts::default())
    }

    fn with(timeouts: Timeouts) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let machine = Arc::new(Fake::default());
        let listener = Listener::bind(&folder.path().join("api.sock")).unwrap();
        let (mut server, stopper) = Server::new(listener, machine.clone()).unwrap();
        server.timeouts = timeouts;
        let thread = std::thread::spawn(move || server.run().unwrap());
        Self { machine, folder, stopper, thread: Some(thread) }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.folder.path().join("api.sock")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// One request on a connection of its own: status and body.
    fn request(&self, method: &str, target: &str, body: &str) -> (u16, String) {
        let mut stream = self.connect();
        stream.write_all(&bytes(method, target, body)).unwrap();
        read_response(&mut stream)
    }

    fn json(&self, method: &str, target: &str, body: &Json) -> (u16, Json) {
        let (status, body) = self.request(method, target, &body.to_string());
        let json = if body.is_empty() { Json::Null } else { serde_json::from_str(&body).unwrap() };
        (status, json)
    }

    /// Whether it still answers.
    fn is_well(&self) -> bool {
        self.request("GET", "/vm", "").0 == 200
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stopper.stop();
        self.thread.take().unwrap().join().unwrap();
    }
}

fn bytes(method: &str, target: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}")
        .into()
}

fn read_response(stream: &mut UnixStream) -> (u16, String) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&head));
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).unwrap();
    (status, String::from_utf8(body).unwrap())
}

fn is_closed(stream: &mut UnixStream) -> bool {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => true,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

fn send_with(stream: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let mut space = vec![MaybeUninit::uninit(); 512];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(descriptors)));
    let sent = sendmsg(stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::empty()).unwrap();
    assert_eq!(sent, bytes.len());
}

#[test]
fn every_route_answers_as_documented() {
    let running = Running::new();
    for route in ROUTES {
        let body = match route.request {
            Body::Json("BalloonTarget") => json!({"target_mib": 64}),
            Body::Json("DiskSpec") => json!({"path": "/d"}),
            Body::Json("DiskResize") => json!({"size": "1G"}),
            Body::Json("NetSpec") => json!({"tap": "t"}),
            Body::Json("SnapshotRequest") => json!({"path": "/s"}),
            _ => Json::Null,
        };
        let device = if route.path.starts_with("/nets") { "net0" } else { "disk0" };
        let target = route.path.replace("{id}", device);
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (status, answer) = running.request(route.method.name(), &target, &body);
        match route.answer {
            Body::Stream => assert_eq!(status, 426),
            Body::Json(schema) => {
                assert_eq!(status, route.status, "{target}: {answer}");
                check(schema, &serde_json::from_str(&answer).unwrap()).unwrap();
            }
            Body::Empty => assert_eq!((status, answer.as_str()), (route.status, ""), "{target}"),
            Body::OpenApi => assert_eq!(answer, vmm_spec::api::OPENAPI),
            Body::Metrics => assert!(answer.contains("\nvmm_exits_total 2\n"), "{answer}"),
        }
    }
    let expected = [
        "pause",
        "resume",
        "shutdown",
        "reboot",
        "stop",
        "balloon",
        "balloon 64",
        "add disk0 \"\"",
        "resize disk0 Some(Size(1073741824))",
        "remove disk0",
        "add net0 with 0",
        "remove net0",
        "snapshot /s, then Continue",
    ];
    assert_eq!(running.machine.calls(), expected);
}

#[test]
fn refusals_have_the_status_of_who_must_act() {
    let running = Running::new();
    let host = std::io::Error::from(ErrorKind::StorageFull);
    let refusals = [
        (404, ControlError::NotFound { kind: "disk", id: "x".into() }, "there is no disk \"x\""),
        (400, ControlError::Invalid("too much".into()), "too much"),
        (409, ControlError::Conflict { error: "off".into(), hint: Some("on") }, "off"),
        (503, ControlError::Busy("later".into()), "later"),
        (
            500,
            ControlError::Host { what: "can't write".into(), source: host },
            "can't write: no storage space",
        ),
    ];
    for (expected, refusal, message) in refusals {
        running.machine.inner().refusal = Some(refusal);
        let (status, body) = running.json("PUT", "/vm/pause", &json!({}));
        check("ErrorBody", &body).unwrap();
        assert_eq!((status, body["error"].as_str()), (expected, Some(message)));
    }
    for (method, target, body, expected) in [
        ("GET", "/nowhere", "", 404),
        ("DELETE", "/vm", "", 405),
        ("PUT", "/balloon", "", 400),
        ("PUT", "/balloon", "{\"target_mib\": -1}", 400),
        ("PUT", "/balloon", "{\"target_mib\": 1, \"x\": 2}", 400),
        ("POST", "/disks", "{\"path\": \"\"}", 400),
        ("POST", "/nets", "{\"fds\": [5]}", 400),
        ("POST", "/nets", "not json", 400),
    ] {
        let (status, answer) = running.request(method, target, body);
        assert_eq!(status, expected, "{method} {target} {body}: {answer}");
        check("ErrorBody", &serde_json::from_str(&answer).unwrap()).unwrap();
    }
    let (_, typo) = running.json("POST", "/disks", &json!({"pth": "/d"}));
    assert_eq!(typo["hint"], "did you mean `path`?");
    assert!(running.is_well());
}

#[test]
fn connections_stay_and_requests_may_be_sent_ahead() {
    let running = Running::new();
    let mut stream = running.connect();
    let mut ahead = bytes("PUT", "/vm/pause", "");
    ahead.extend(bytes("GET", "/vm", ""));
    ahead.extend(bytes("PUT", "/vm/resume", ""));
    stream.write_all(&ahead).unwrap();
    assert_eq!(read_response(&mut stream).0, 204);
    assert!(read_response(&mut stream).1.contains("\"state\":\"paused\""));
    assert_eq!(read_response(&mut stream).0, 204);
    stream.write_all(&bytes("GET", "/metrics", "")).unwrap();
    assert_eq!(read_response(&mut stream).0, 200);
    stream.write_all(b"GET /vm HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    assert_eq!(read_response(&mut stream).0, 200);
    assert!(is_closed(&mut stream));
}

#[test]
fn a_client_that_has_said_all_still_gets_its_answer() {
    let running = Running::new();
    let mut stream = running.connect();
    stream.write_all(&bytes("GET", "/vm", "")).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(read_response(&mut stream).0, 200);
    assert!(is_closed(&mut stream));
}

#[test]
fn descriptors_come_with_their_request() {
    let running = Running::new();
    let file = running.folder.path().join("disk");
    std::fs::write(&file, "contents").unwrap();
    let file = std::fs::File::open(&file).unwrap();
    let mut stream = running.connect();
    send_with(&stream, &bytes("POST", "/disks", "{\"path\":\"/d\"}"), &[file.as_fd()]);
    assert_eq!(read_response(&mut stream), (201, "{\"id\":\"disk0\"}\n".to_owned()));
    let two = [file.as_fd(), file.as_fd()];
    let net = bytes("POST", "/nets", "{\"tap\":\"t\",\"queues\":2}");
    send_with(&stream, &net, &two);
    assert_eq!(read_response(&mut stream).0, 201);
    assert_eq!(running.machine.calls(), ["add disk0 \"contents\"", "add net0 with 2"]);
    // Too few, too many, and far too many.
    send_with(&stream, &net, &two[..1]);
    assert_eq!(read_response(&mut stream).0, 400);
    send_with(&stream, &bytes("POST", "/disks", "{\"path\":\"/e\"}"), &two);
    assert_eq!(read_response(&mut stream).0, 400);
    send_with(&stream, &net, &[file.as_fd(); 40]);
    assert_eq!(read_response(&mut stream).0, 400);
    assert!(is_closed(&mut stream));
}

#[test]
fn a_snapshot_goes_into_the_files_that_were_sent() {
    let running = Running::new();
    let paths = ["state", "memory"].map(|name| running.folder.path().join(name));
    let files = paths.each_ref().map(|path| std::fs::File::create(path).unwrap());
    let mut stream = running.connect();
    let request = bytes("PUT", "/snapshot", "{\"path\":\"/s\"}");
    send_with(&stream, &request, &[files[0].as_fd(), files[1].as_fd()]);
    assert_eq!(read_response(&mut stream).0, 204);
    assert_eq!(paths.map(|path| std::fs::read_to_string(path).unwrap()), ["state", "memory"]);
    send_with(&stream, &request, &[files[0].as_fd()]);
    assert_eq!(read_response(&mut stream).0, 400);
}

#[test]
fn a_console_is_a_raw_stream() {
    let running = Running::new();
    let upgrade =
        b"GET /console HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: vmm-console\r\n\r\n";
    let mut stream = running.connect();
    stream.write_all(upgrade).unwrap();
    assert_eq!(read_response(&mut stream), (101, String::new()));
    let mut greeting = String::new();
    stream.read_to_string(&mut greeting).unwrap();
    assert_eq!(greeting, "login: ");
    // Without a console, and with bytes that came too early.
    let error = ControlError::Conflict { error: "no console".into(), hint: None };
    running.machine.inner().refusal = Some(error);
    let mut stream = running.connect();
    stream.write_all(upgrade).unwrap();
    assert_eq!(read_response(&mut stream).0, 409);
    let mut early = upgrade.to_vec();
    early.extend_from_slice(b"root\n");
    stream.write_all(&early).unwrap();
    assert_eq!(read_response(&mut stream).0, 400);
    assert!(is_closed(&mut stream));
}

#[test]
fn floods_are_cut_off() {
    let running = Running::new();
    for (flood, expected) in [
        (vec![b'x'; 1 << 20], 431),
        ([b"GET / HTTP/1.1\r\n".as_slice(), &b"a: b\r\n".repeat(1 << 16)].concat(), 431),
        (b"PUT /balloon HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n".to_vec(), 413),
        (b"PUT /vm/pause HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec(), 501),
    ] {
        let mut stream = running.connect();
        // The server may hang up while we still send.
        let _ = stream.write_all(&flood);
        assert_eq!(read_response(&mut stream).0, expected);
        assert!(is_closed(&mut stream));
    }
    assert!(running.machine.calls().is_empty());
    assert!(running.is_well());
}

#[test]
fn slow_clients_are_not_in_the_way_and_run_out_of_time() {
    let short = Duration::from_millis(300);
    let running = Running::with(Timeouts { idle: short, request: short, write: short });
    let mut half = running.connect();
    half.write_all(b"GET /vm HTT").unwrap();
    let mut silent = running.connect();
    assert!(running.is_well());
    assert_eq!(read_response(&mut half).0, 408);
    assert!(is_closed(&mut half));
    assert!(is_closed(&mut silent));
    // One byte after the other does not make it last.
    let mut dripping = running.connect();
    let begin = Instant::now();
    while dripping.write_all(b"x").is_ok() {
        assert!(begin.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn who_reads_no_answers_gets_no_more() {
    let short = Duration::from_millis(300);
    let running = Running::with(Timeouts { write: short, ..Timeouts::default() });
    let mut stream = running.connect();
    let request = bytes("GET", "/openapi.json", "");
    let begin = Instant::now();
    while stream.write_all(&request).is_ok() {
        assert!(begin.elapsed() < PATIENCE);
    }
    assert!(running.is_well());
}

#[test]
fn one_connection_more_makes_room_for_itself() {
    let running = Running::new();
    let mut hogs: Vec<UnixStream> = (0..CONNECTION_COUNT_MAX * 3)
        .map(|_| {
            let mut hog = running.connect();
            hog.write_all(b"GET").unwrap();
            hog
        })
        .collect();
    assert!(running.is_well());
    assert!(is_closed(&mut hogs[0]));
}

#[test]
fn stopping_sends_what_is_on_its_way() {
    let running = Running::new();
    let mut stream = running.connect();
    stream.write_all(&bytes("PUT", "/vm/stop", "")).unwrap();
    let path = running.folder.path().join("api.sock");
    assert_eq!(read_response(&mut stream).0, 202);
    running.stopper.stop();
    assert!(is_closed(&mut stream));
    let begin = Instant::now();
    while path.exists() {
        assert!(begin.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(5));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever comes, in whatever pieces, the server answers the next client.
    #[test]
    fn no_bytes_bring_the_server_down(
        pieces in proptest::collection::vec(
            prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..64),
                Just(b"PUT /balloon HTTP/1.1\r\nHost: x\r\n".to_vec()),
                Just(b"Content-Length: 17\r\n\r\n".to_vec()),
                Just(b"{\"target_mib\": 1}".to_vec()),
                Just(b"\r\n\r\n".to_vec()),
            ],
            0..8,
        ),
    ) {
        let running = Running::new();
        let mut stream = running.connect();
        for piece in pieces {
            if stream.write_all(&piece).is_err() {
                break;
            }
        }
        drop(stream);
        prop_assert!(running.is_well());
    }
}
