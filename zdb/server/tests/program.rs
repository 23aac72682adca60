//! The program as an operator meets it: flags, sockets, hooks, metrics, copies, a clean end.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[allow(dead_code, reason = "each test program uses a part of it")]
mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Received, Server, bulk, simple};

fn zdb(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_zdb")).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn wrong_flags_are_named_with_their_rule() {
    let (code, _, stderr) = zdb(&["--datasize", "1K"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("--datasize 1K: 512K to 4G"), "{stderr}");
    let (code, stdout, _) = zdb(&["--port", "77", "--print-config"]);
    assert_eq!(code, 0);
    assert!(stdout.contains("port = 77"), "{stdout}");
}

#[test]
fn a_second_server_leaves_the_first_alone() {
    let server = Server::start(&[]);
    let data = server.folder().join("data");
    let index = server.folder().join("index");
    let (code, _, stderr) = zdb(&[
        "--data",
        data.to_str().unwrap(),
        "--index",
        index.to_str().unwrap(),
        "--port",
        "0",
        "--listen",
        "127.0.0.1",
    ]);
    assert_eq!(code, 75, "{stderr}");
    assert!(stderr.contains("in use"), "{stderr}");
    assert_eq!(server.connect().ask(&[b"PING"]), simple("PONG"));
}

#[test]
fn what_was_acknowledged_survives_kill_and_term() {
    let mut server = Server::start(&[]);
    let mut client = server.connect();
    assert_eq!(client.ask(&[b"SET", b"a", b"1"]), bulk(b"a"));
    server.restart(true);
    let mut client = server.connect();
    assert_eq!(client.ask(&[b"GET", b"a"]), bulk(b"1"));
    assert_eq!(client.ask(&[b"SET", b"b", b"2"]), bulk(b"b"));
    server.restart(false);
    assert_eq!(server.connect().ask(&[b"GET", b"b"]), bulk(b"2"));
}

#[test]
fn at_level_interval_a_sync_comes_in_time_though_nobody_writes_on() {
    let server = Server::start(&["--durability", "interval:200"]);
    let mut client = server.connect();
    assert_eq!(client.ask(&[b"SET", b"a", b"1"]), bulk(b"a"));
    let begin = Instant::now();
    loop {
        let Received::Bulk(text) = client.ask(&[b"INFO"]) else { panic!("no text") };
        if !String::from_utf8(text).unwrap().contains("\nsyncs: 0\n") {
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(30), "no sync");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn hooks_hear_of_rotation_and_may_forbid_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let hook = folder.path().join("hook");
    std::fs::write(&hook, "#!/bin/sh\necho \"$@\" >> \"$0.log\"\n").unwrap();
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut server = Server::start(&["--hook", hook.to_str().unwrap()]);
    let mut client = server.connect();
    client.ask(&[b"SET", b"a", b"1"]);
    client.ask(&[b"NSJUMP"]);
    client.ask(&[b"NSNEW", b"n"]);
    let log = folder.path().join("hook.log");
    let begin = Instant::now();
    loop {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let instance = format!("tcp://127.0.0.1:{}", server.port);
        let index = server.folder().join("index/default");
        let jump = format!("jump-index {instance} {0}/i0 {0}/i1 0\n", index.display());
        let all = ["namespaces-init ", "ready ", &jump, "jump-data ", "namespace-created "];
        if all.iter().all(|line| text.contains(line)) {
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(30), "{text}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let Received::Array(records) = client.ask(&[b"HOOKS"]) else { panic!("no list") };
    assert!(records.len() >= 5);
    server.stop(false);
    assert!(std::fs::read_to_string(&log).unwrap().contains("close "));
    std::fs::write(&hook, "#!/bin/sh\n[ \"$1\" != ready ]\n").unwrap();
    let (code, _, stderr) = zdb(&[
        "--data",
        folder.path().join("d").to_str().unwrap(),
        "--index",
        folder.path().join("i").to_str().unwrap(),
        "--hook",
        hook.to_str().unwrap(),
        "--listen",
        "127.0.0.1",
        "--port",
        "0",
    ]);
    assert_eq!(code, 1);
    assert!(stderr.contains("hook ready ended with"), "{stderr}");
}

#[test]
fn figures_are_served_and_bounded() {
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let server = Server::start(&["--metrics-listen", &format!("127.0.0.1:{port}")]);
    server.connect().ask(&[b"SET", b"a", b"1"]);
    let ask = |request: &[u8]| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.write_all(request).unwrap();
        let mut text = Vec::new();
        // A request that is refused may end in a reset.
        let _ = stream.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    };
    let text = ask(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(text.starts_with("HTTP/1.0 200 OK\r\n"), "{text}");
    for line in [
        "zdb_command_duration_seconds_count{command=\"SET\"} 1",
        "zdb_namespace_entries{namespace=\"default\"} 1",
        "zdb_sync_duration_seconds_count",
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
    assert!(ask(b"GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.0 404"));
    assert!(ask(b"POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.0 405"));
    ask(&[b'x'; 20_000]);
    assert_eq!(server.connect().ask(&[b"PING"]), simple("PONG"));
}

#[test]
fn a_backup_restores_what_was_there() {
    let mut server = Server::start(&[]);
    let mut client = server.connect();
    for number in 0..100 {
        let key = format!("key{number}");
        client.ask(&[b"SET", key.as_bytes(), key.as_bytes()]);
    }
    client.ask(&[b"DEL", b"key7"]);
    server.stop(false);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("default.zdb");
    let path = |name: &str| server.folder().join(name).to_str().unwrap().to_owned();
    let (data, index, file) = (path("data"), path("index"), file.to_str().unwrap());
    let folders = ["--data", &data, "--index", &index];
    let run = |command: &str, words: &[&str]| {
        let words = [&[command], &folders[..], words].concat();
        let (code, stdout, stderr) = zdb(&words);
        assert_eq!(code, 0, "{command}: {stderr}");
        stdout
    };
    assert!(run("backup", &["default", file]).starts_with("default: "));
    run("verify", &[file]);
    run("restore", &["copy", file]);
    let verified = run("verify", &[]);
    assert!(verified.contains("copy: 99 entries, 0 damaged"), "{verified}");
    let (code, ..) = zdb(&[&["restore"], &folders[..], &["copy", file]].concat());
    assert_eq!(code, 4, "a namespace of that name exists");
}

/// A server with a unix socket, what its folders are, and where the socket is.
fn server_with_socket(extra: &[&str]) -> (Server, tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("zdb.sock").to_str().unwrap().to_owned();
    let server = Server::start(&[&["--socket", &socket, "--dualnet"], extra].concat());
    (server, folder, socket)
}

fn file(folder: &tempfile::TempDir, name: &str, text: &str) -> String {
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_running_server_is_backed_up_by_one_command() {
    let folder = tempfile::tempdir().unwrap();
    let secrets = [file(&folder, "words", "correct horse\n"), file(&folder, "admin", "secret\n")];
    let [words, admin] = secrets.each_ref().map(String::as_str);
    let (server, _sockets, socket) =
        server_with_socket(&["--admin", "secret", "--passphrase-file", words]);
    let mut client = server.connect();
    for number in 0..50 {
        let key = format!("key{number}");
        client.ask(&[b"SET", key.as_bytes(), b"before"]);
    }
    let backup = folder.path().join("default.zdb").to_str().unwrap().to_owned();
    let words_given = ["backup", "--socket", &socket, "--passphrase-file", words];
    let (code, _, stderr) = zdb(&[&words_given[..], &["default", &backup]].concat());
    assert_eq!(code, 1, "without the administrator's password: {stderr}");
    let admin_given = ["--admin-file", admin, "default", &backup];
    let (code, stdout, stderr) = zdb(&[&words_given[..], &admin_given[..]].concat());
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.starts_with("default: 50 records"), "{stdout}");
    // It serves on, and nothing is left of the snapshot.
    assert_eq!(client.ask(&[b"SET", b"key1", b"after"]), bulk(b"key1"));
    for root in ["data", "index"] {
        let entries = std::fs::read_dir(server.folder().join(root)).unwrap();
        let names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        let is_left = |name: &std::ffi::OsString| name.to_str().unwrap().starts_with(".backup");
        assert!(!names.iter().any(is_left), "{names:?}");
    }
    let (data, index) = (folder.path().join("d"), folder.path().join("i"));
    let folders = ["--data", data.to_str().unwrap(), "--index", index.to_str().unwrap()];
    let (code, stdout, stderr) = zdb(&[&["restore"], &folders[..], &["copy", &backup]].concat());
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.starts_with("copy: 50 records, the newest is number 50"), "{stdout}");
}

#[test]
fn a_passphrase_opens_what_it_made_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let [words, wrong] =
        ["correct horse", "battery staple"].map(|text| file(&folder, &text[..5], text));
    let (mut server, _sockets, socket) = server_with_socket(&[]);
    let hand_over =
        |words: &str| zdb(&["key", "--socket", &socket, "--passphrase-file", words, "private"]);
    let (code, stdout, stderr) = hand_over(&words);
    assert_eq!((code, stdout.as_str()), (0, "private: taken\n"), "{stderr}");
    let mut client = server.connect();
    client.ask(&[b"SELECT", b"private"]);
    assert_eq!(client.ask(&[b"SET", b"k", b"v"]), bulk(b"k"));
    server.restart(true);
    let mut client = server.connect();
    client.ask(&[b"SELECT", b"private"]);
    let locked = common::error("Namespace is encrypted, its key is needed");
    assert_eq!(client.ask(&[b"GET", b"k"]), locked);
    let (code, _, stderr) = hand_over(&wrong);
    assert_eq!(code, 4, "{stderr}");
    assert!(stderr.contains("This key does not open the namespace"), "{stderr}");
    assert_eq!(hand_over(&words).0, 0);
    assert_eq!(client.ask(&[b"GET", b"k"]), bulk(b"v"));
}

#[test]
fn a_hook_brings_missing_files_back() {
    let folder = tempfile::tempdir().unwrap();
    let hook = file(&folder, "hook", "#!/bin/sh\n[ $1 != missing-data ] || mv $0.d0 $3\n");
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut server = Server::start(&["--hook", &hook]);
    let mut client = server.connect();
    client.ask(&[b"SET", b"a", b"1"]);
    client.ask(&[b"NSJUMP"]);
    client.ask(&[b"SET", b"b", b"2"]);
    server.stop(false);
    let taken = format!("{hook}.d0");
    std::fs::rename(server.folder().join("data/default/d0"), &taken).unwrap();
    server.resume();
    let mut client = server.connect();
    assert_eq!(client.ask(&[b"GET", b"a"]), bulk(b"1"));
    assert_eq!(client.ask(&[b"GET", b"b"]), bulk(b"2"));
    assert!(!std::path::Path::new(&taken).exists());
}

#[test]
fn the_client_asks_and_shows() {
    let server = Server::start(&[]);
    let port = server.port.to_string();
    let ask = |words: &[&str]| {
        zdb(&[&["client", "--host", "127.0.0.1", "--port", &port], words].concat())
    };
    assert_eq!(ask(&["SET", "k", "v"]).1, "\"k\"\n");
    assert_eq!(ask(&["GET", "k"]).1, "\"v\"\n");
    assert_eq!(ask(&["--raw", "GET", "k"]).1, "v\n");
    let (code, _, stderr) = ask(&["NOPE"]);
    assert_eq!(code, 4);
    assert!(stderr.contains("Command not supported"), "{stderr}");
}

#[test]
fn a_copy_follows_and_is_read_only() {
    let (source, copy) = (Server::start(&[]), Server::start(&[]));
    let mut client = source.connect();
    for number in 0..200 {
        let key = format!("key{number}");
        client.tell(&[b"SET", key.as_bytes(), key.as_bytes()]);
    }
    for _ in 0..200 {
        assert!(matches!(client.receive(), Received::Bulk(_)));
    }
    client.ask(&[b"DEL", b"key7"]);
    let (code, stdout, stderr) = zdb(&[
        "follow",
        "--host",
        "127.0.0.1",
        "--port",
        &source.port.to_string(),
        "--to",
        &format!("127.0.0.1:{}", copy.port),
        "--once",
        "default",
    ]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("the copy has 201 of 201"), "{stdout}");
    let mut client = copy.connect();
    assert_eq!(client.ask(&[b"DBSIZE"]), Received::Integer(199));
    assert_eq!(client.ask(&[b"GET", b"key8"]), bulk(b"key8"));
    assert_eq!(client.ask(&[b"GET", b"key7"]), Received::Nil);
    let locked = common::error("Namespace is temporarily locked (read-only)");
    assert_eq!(client.ask(&[b"SET", b"mine", b"v"]), locked);
}
