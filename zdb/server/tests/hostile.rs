//! Clients that mean no good, or know no better: half requests, huge and negative sizes, readers that
//! don't read, crowds. The server keeps serving others, in bounded memory.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[allow(dead_code, reason = "each test program uses a part of it")]
mod common;

use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::{Client, Received, Server, bulk, error, simple};
use zdb_resp::write;

const MIB: u64 = 1024 * 1024;

fn request(arguments: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    write::request(&mut bytes, arguments);
    bytes
}

fn assert_serves(server: &Server) {
    assert_eq!(server.connect().ask(&[b"PING"]), simple("PONG"));
}

#[test]
fn broken_requests_get_an_error_and_the_end() {
    let server = Server::start(&[]);
    for (bytes, text) in [
        (&b"PING\r\n"[..], "Malformed request, array expected"),
        (b"*0\r\n", "Missing arguments"),
        (b"*-1\r\n", "Internal memory error"),
        (b"*abc\r\n", "Missing arguments"),
        (b"*99999999999999999999\r\n", "Missing arguments"),
        (b"*1025\r\n", "Too many arguments"),
        (b"*1\r\n*1\r\n$1\r\nX\r\n", "Malformed query string"),
        (b"*2\r\n$4\r\nWAIT\r\n$-1\r\n", "Malformed query string"),
        (b"*3\r\n$3\r\nSET\r\n$-1\r\nX$1\r\nv\r\n", "Malformed query string"),
        (b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$-1\r\n", "Malformed query string"),
        (b"*2\r\n$3\r\nGET\r\n$99999999\r\n", "Payload too big"),
        (b"*2\r\n$3\r\nGET\r\n$-9223372036854775808\r\n", "Malformed query string"),
        (b"*1\r\n$4\r\nPINGxx", "Malformed query string"),
    ] {
        let mut client = server.connect();
        client.send(bytes);
        assert_eq!(client.receive(), error(text));
        assert_eq!(client.receive(), Received::Closed);
    }
    assert_serves(&server);
}

#[test]
fn who_sends_no_more_still_gets_its_replies() {
    let server = Server::start(&[]);
    let mut client = server.connect();
    client.send(&[request(&[b"SET", b"k", b"v"]), request(&[b"GET", b"k"])].concat());
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(client.receive(), bulk(b"k"));
    assert_eq!(client.receive(), bulk(b"v"));
    assert_eq!(client.receive(), Received::Closed);
}

#[test]
fn requests_may_come_byte_by_byte_and_in_crowds() {
    let server = Server::start(&[]);
    let mut client = server.connect();
    for byte in request(&[b"SET", b"slow", b"value"]) {
        client.send(&[byte]);
    }
    assert_eq!(client.receive(), bulk(b"slow"));
    let mut bytes = Vec::new();
    for number in 0..20_000 {
        let key = format!("key{number}");
        write::request(&mut bytes, &[b"SET", key.as_bytes(), key.as_bytes()]);
        write::request(&mut bytes, &[b"GET", key.as_bytes()]);
    }
    let mut writer = client.stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || std::io::Write::write_all(&mut writer, &bytes));
    for number in 0..20_000 {
        let key = format!("key{number}");
        assert_eq!(client.receive(), bulk(key.as_bytes()), "SET {number}");
        assert_eq!(client.receive(), bulk(key.as_bytes()), "GET {number}");
    }
    sender.join().unwrap().unwrap();
}

#[test]
fn who_does_not_read_is_not_served_further() {
    let server = Server::start(&["--durability", "none"]);
    let value = vec![b'x'; 1024 * 1024];
    let small = vec![b'y'; 32 * 1024];
    let mut client = server.connect();
    assert_eq!(client.ask(&[b"SET", b"large", &value]), bulk(b"large"));
    assert_eq!(client.ask(&[b"SET", b"small", &small]), bulk(b"small"));
    let before = server.memory();
    let mut readers: Vec<Client> = (0..4).map(|_| server.connect()).collect();
    for reader in &mut readers {
        reader.stream.set_nonblocking(true).unwrap();
        let get = [request(&[b"GET", b"large"]), request(&[b"GET", b"small"])].concat();
        reader.send(&get.repeat(5000));
    }
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(2) {
        assert_eq!(client.ask(&[b"PING"]), simple("PONG"));
        std::thread::sleep(Duration::from_millis(20));
    }
    let grown = server.memory().saturating_sub(before);
    assert!(grown < 4 * 40 * MIB, "{} MiB", grown / MIB);
    // Who reads after all gets everything that was asked for, in order.
    let mut late = readers.pop().unwrap();
    late.stream.set_nonblocking(false).unwrap();
    for _ in 0..20 {
        assert_eq!(late.receive(), bulk(&value));
        assert_eq!(late.receive(), bulk(&small));
    }
    drop((late, readers));
    std::thread::sleep(Duration::from_secs(3));
    assert_serves(&server);
    let left = server.memory().saturating_sub(before);
    assert!(left < 40 * MIB, "{} MiB stay", left / MIB);
}

#[test]
fn promises_of_much_data_cost_nothing() {
    let server = Server::start(&[]);
    let before = server.memory();
    let mut clients: Vec<Client> = (0..300).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.send(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$8388608\r\n");
        client.send(&[b'x'; 1000]);
    }
    assert_serves(&server);
    let grown = server.memory().saturating_sub(before);
    assert!(grown < 32 * MIB, "{} MiB", grown / MIB);
    // And when they keep the promise almost, memory is bounded for all of them.
    let part = vec![b'x'; 4 * 1024 * 1024];
    for client in clients.iter_mut().take(150) {
        client.send(&part);
    }
    assert_serves(&server);
    let grown = server.memory().saturating_sub(before);
    assert!(grown < 700 * MIB, "{} MiB", grown / MIB);
}

#[test]
fn without_descriptors_the_server_lives_and_recovers() {
    let server = Server::start(&[]);
    let mut early = server.connect();
    assert_eq!(early.ask(&[b"SET", b"k", b"v"]), bulk(b"k"));
    let pid = rustix::process::Pid::from_raw(i32::try_from(server.pid()).unwrap());
    let open = std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count() as u64;
    let limit = rustix::process::Rlimit { current: Some(open + 10), maximum: Some(open + 10) };
    rustix::process::prlimit(pid, rustix::process::Resource::Nofile, limit).unwrap();
    let crowd: Vec<TcpStream> =
        (0..50).filter_map(|_| TcpStream::connect(("127.0.0.1", server.port)).ok()).collect();
    assert_eq!(early.ask(&[b"GET", b"k"]), bulk(b"v"));
    let busy = processor_ticks(server.pid());
    std::thread::sleep(Duration::from_secs(1));
    let busy = processor_ticks(server.pid()) - busy;
    assert!(busy < 30, "the server spins: {busy} ticks in a second");
    drop(crowd);
    std::thread::sleep(Duration::from_millis(200));
    assert_serves(&server);
}

/// User and system time of a process, in ticks of 10 ms.
fn processor_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // proc(5): utime and stime are fields 14 and 15, counted after the name in parentheses.
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}
