//! `flist cached` as its clients meet it: the real binary, a real socket, hostile and dying peers.

#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use flist_view::block::{BlockData, BlockError, BlockKey, BlockRef, BlockSource};
use flist_view::cache_client::socket::{self, Received};
use flist_view::cache_client::wire::{
    FailureKind, IN_FLIGHT_MAX, REPLY_SIZE_MAX, REQUEST_SIZE_MAX, Reply, Request,
};
use flist_view::cache_client::{CacheClient, ConnectError, status};
use flist_view::index::Index;
use serde_json::Value;
use tempfile::TempDir;

const FLIST: &str = env!("CARGO_BIN_EXE_flist");
const PATIENCE: Duration = Duration::from_secs(30);
const SMALL_FILES: u32 = 200;

/// A packed tree, its store, and room for a daemon.
struct Node {
    directory: TempDir,
}

/// A daemon process; killed when the test ends.
struct Daemon {
    process: Child,
    socket: PathBuf,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn run(arguments: &[&str]) -> Output {
    Command::new(FLIST).args(arguments).output().unwrap()
}

/// Contents that differ from file to file and do not compress to nothing.
fn contents(number: u32, size: usize) -> Vec<u8> {
    let mut state = u64::from(number) + 1;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        u8::try_from(state >> 56).unwrap()
    };
    (0..size).map(next).collect()
}

impl Node {
    /// A tree of small files, `large` files of 1.2 MB, and the files that a boot begins with.
    fn new(large: u32) -> Self {
        let node = Self { directory: tempfile::tempdir().unwrap() };
        let tree = node.path("tree");
        fs::create_dir_all(tree.join("usr/sbin")).unwrap();
        fs::create_dir_all(tree.join("boot")).unwrap();
        std::os::unix::fs::symlink("usr/sbin", tree.join("sbin")).unwrap();
        fs::write(tree.join("usr/sbin/init"), contents(9000, 5000)).unwrap();
        fs::write(tree.join("boot/vmlinuz"), contents(9001, 700_000)).unwrap();
        for number in 0..SMALL_FILES {
            let size = 100 + number as usize * 50;
            fs::write(tree.join(format!("small-{number}")), contents(number, size)).unwrap();
        }
        for number in 0..large {
            let name = format!("large-{number}");
            fs::write(tree.join(name), contents(1000 + number, 1_200_000)).unwrap();
        }
        let store = format!("dir://{}", node.path("store").display());
        let (image, tree) = (node.image(), tree.display().to_string());
        let output = run(&["pack", &tree, "-o", image.to_str().unwrap(), "--store", &store]);
        assert!(output.status.success(), "{output:?}");
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn image(&self) -> PathBuf {
        self.path("image.fl")
    }

    fn start(&self, extra: &[&str]) -> Daemon {
        self.start_on("cache", extra)
    }

    /// A daemon that may follow the route to our store, which is a folder.
    fn start_on(&self, cache: &str, extra: &[&str]) -> Daemon {
        self.start_restricted(cache, &[&["--allow-route", "local"], extra].concat())
    }

    fn start_restricted(&self, cache: &str, extra: &[&str]) -> Daemon {
        let socket = self.path("socket");
        let _ = fs::remove_file(&socket);
        let mut process = Command::new(FLIST)
            .args(["cached", "--free-min", "0", "--socket"])
            .arg(&socket)
            .arg("--cache")
            .arg(self.path(cache))
            .arg("--index")
            .arg(self.path("images"))
            .args(extra)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + PATIENCE;
        while socket::connect(&socket).is_err() {
            if process.try_wait().unwrap().is_some() || Instant::now() > deadline {
                let mut text = String::new();
                let _ = process.kill();
                process.stderr.take().unwrap().read_to_string(&mut text).unwrap();
                panic!("the daemon did not start: {text}");
            }
            thread::sleep(Duration::from_millis(5));
        }
        Daemon { process, socket }
    }

    fn connect(&self, daemon: &Daemon) -> (CacheClient, Index) {
        CacheClient::connect(&daemon.socket, &self.image(), &[]).unwrap()
    }

    /// The stored block of a position, in its store.
    fn stored(&self, index: &Index, position: u32) -> PathBuf {
        let hex = index.block(position).unwrap().id.to_string();
        self.path("store").join(&hex[..2]).join(hex)
    }
}

impl Daemon {
    fn status(&self) -> Value {
        serde_json::from_str(&status(&self.socket).unwrap()).unwrap()
    }

    fn image_counter(&self, name: &str) -> u64 {
        self.status()["images"].as_array().unwrap().iter().map(|i| i[name].as_u64().unwrap()).sum()
    }

    fn terminate(&mut self) -> std::process::ExitStatus {
        let id = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
        self.process.wait().unwrap()
    }
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn bytes(data: &BlockData) -> Vec<u8> {
    let mut bytes = vec![0; data.size as usize];
    data.file.read_exact_at(&mut bytes, data.offset).unwrap();
    bytes
}

/// Reads a file of the root directory through the client.
fn read(client: &CacheClient, index: &Index, name: &str) -> Vec<u8> {
    let root = index.inode(flist_view::filesystem::ROOT).unwrap();
    let ino = index.entries(&root).unwrap().find(name.as_bytes()).unwrap().unwrap();
    let blocks = index.blocks(&index.inode(ino).unwrap()).unwrap();
    let block = |position| bytes(&client.block(position, &index.block(position).unwrap()).unwrap());
    blocks.flat_map(block).collect()
}

fn check_small_files(client: &CacheClient, index: &Index) {
    for number in 0..SMALL_FILES {
        let expected = contents(number, 100 + number as usize * 50);
        assert!(read(client, index, &format!("small-{number}")) == expected, "file {number}");
    }
}

fn is_alive(node: &Node, daemon: &Daemon) {
    let (client, index) = node.connect(daemon);
    assert_eq!(read(&client, &index, "small-7"), contents(7, 450));
}

#[test]
fn an_image_is_served_whole_and_fetched_once_for_many_clients() {
    let node = Node::new(2);
    let daemon = node.start(&[]);
    let clients: Vec<_> = (0..3).map(|_| node.connect(&daemon)).collect();
    thread::scope(|scope| {
        for (client, index) in &clients {
            for _ in 0..4 {
                scope.spawn(|| {
                    check_small_files(client, index);
                    assert!(read(client, index, "large-1") == contents(1001, 1_200_000));
                    assert!(read(client, index, "large-0") == contents(1000, 1_200_000));
                });
            }
        }
    });
    let blocks = u64::from(clients[0].1.block_count());
    assert_eq!(daemon.image_counter("fetched"), blocks, "each block once");
    // Each client asks for a position once, but for threads that ask for it at the same time.
    assert!(daemon.image_counter("requests") <= blocks * 3 * 4);
    let before = daemon.image_counter("requests");
    clients.iter().for_each(|(client, index)| check_small_files(client, index));
    assert_eq!(daemon.image_counter("requests"), before, "known places cost no round trip");
    assert_eq!(daemon.status()["cache"]["inserted_blocks"], blocks);
}

#[test]
fn a_warm_cache_needs_no_stores_even_after_a_restart() {
    let node = Node::new(0);
    let mut daemon = node.start(&[]);
    let (client, index) = node.connect(&daemon);
    check_small_files(&client, &index);
    drop(client);
    assert!(daemon.terminate().success());
    fs::remove_dir_all(node.path("store")).unwrap();
    let daemon = node.start(&[]);
    let (client, index) = node.connect(&daemon);
    check_small_files(&client, &index);
    assert_eq!(daemon.image_counter("fetched"), 0);
    assert_eq!(daemon.status()["cache"]["bad_blocks"], 0);
}

#[test]
fn clients_find_a_daemon_that_was_killed_and_started_again() {
    let node = Node::new(0);
    let mut daemon = node.start(&[]);
    let (client, index) = node.connect(&daemon);
    assert_eq!(read(&client, &index, "small-3"), contents(3, 250));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut rounds = 0;
                    while !stop.load(Ordering::Relaxed) || rounds == 0 {
                        check_small_files(&client, &index);
                        rounds += 1;
                    }
                })
            })
            .collect();
        for _ in 0..4 {
            thread::sleep(Duration::from_millis(30));
            daemon.process.kill().unwrap();
            daemon.process.wait().unwrap();
            daemon = node.start(&[]);
        }
        stop.store(true, Ordering::Relaxed);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
    assert_eq!(read(&client, &index, "small-3"), contents(3, 250));
}

#[test]
fn only_the_bound_images_blocks_are_served_and_only_with_their_keys() {
    let node = Node::new(0);
    let daemon = node.start(&[]);
    let (client, index) = node.connect(&daemon);
    let block = index.block(0).unwrap();
    client.block(0, &block).unwrap();
    let refused = [
        (1, BlockRef { key: BlockKey([0; 32]), ..index.block(1).unwrap() }),
        (1, block),
        (index.block_count(), block),
        (u32::MAX, block),
    ];
    for (position, block) in refused {
        let error = client.block(position, &block).unwrap_err();
        assert!(matches!(&error, BlockError::Cache(text) if text.contains("not the image's")));
    }
    assert_eq!(daemon.image_counter("refused"), refused.len() as u64);
    is_alive(&node, &daemon);
}

#[test]
fn a_bad_path_is_an_error_reply_that_names_it() {
    let node = Node::new(0);
    let daemon = node.start(&[]);
    let text = node.path("text");
    fs::write(&text, "no image").unwrap();
    let pipe = node.path("pipe");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, mode).unwrap();
    for path in [node.path("missing"), node.path("tree"), text, pipe, PathBuf::from("/dev/tty")] {
        match CacheClient::connect(&daemon.socket, &path, &[]).err().unwrap() {
            ConnectError::Refused(failure) => {
                assert_eq!(failure.kind, FailureKind::Image);
                assert!(failure.text.contains(path.to_str().unwrap()), "{failure}");
            }
            error => panic!("{error}"),
        }
    }
    let stores = ["gopher://user:secret@host/".to_owned()];
    let error = CacheClient::connect(&daemon.socket, &node.image(), &stores).err().unwrap();
    assert!(!error.to_string().contains("secret"), "{error}");
    is_alive(&node, &daemon);
}

#[test]
fn stores_of_the_binding_replace_the_images_own() {
    let node = Node::new(0);
    fs::rename(node.path("store"), node.path("moved")).unwrap();
    let daemon = node.start(&[]);
    let (client, index) = node.connect(&daemon);
    let error = client.block(0, &index.block(0).unwrap()).unwrap_err();
    assert!(matches!(error, BlockError::Unavailable { .. }), "{error}");
    let stores = [format!("dir://{}", node.path("moved").display())];
    let (moved, index) = CacheClient::connect(&daemon.socket, &node.image(), &stores).unwrap();
    check_small_files(&moved, &index);
    check_small_files(&client, &index);
}

#[test]
fn routes_to_the_node_itself_are_followed_only_where_an_operator_allows_it() {
    let node = Node::new(0);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let fails = |daemon: &Daemon, stores: &[String], rule: &str| {
        let (client, index) = CacheClient::connect(&daemon.socket, &node.image(), stores).unwrap();
        let error = client.block(0, &index.block(0).unwrap()).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, BlockError::Unavailable { .. }), "{text}");
        assert!(text.contains(rule) && text.contains("--allow-route"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    };
    let daemon = node.start_restricted("cache", &[]);
    fails(&daemon, &[], "a folder of this node");
    for (store, rule) in [
        (format!("zdb://u:hunter2@127.0.0.1:{port}/ns"), "127.0.0.1 is a loopback address"),
        (format!("zdb://localhost:{port}"), "is a loopback address"),
        (format!("http://u:hunter2@127.0.0.1:{port}/b"), "127.0.0.1 is a loopback address"),
        (format!("http://[::ffff:127.0.0.1]:{port}/"), "127.0.0.1 is a loopback address"),
        (format!("https://localhost:{port}/"), "is a loopback address"),
        (format!("s3://K:hunter2@127.0.0.1:{port}/b"), "127.0.0.1 is a loopback address"),
        ("http://169.254.169.254/latest".to_owned(), "a link-local address"),
        ("zdb://10.0.0.1".to_owned(), "a private address"),
        ("zdb:///run/zdb.sock".to_owned(), "a unix socket of this node"),
        ("dir:///etc".to_owned(), "a folder of this node"),
    ] {
        fails(&daemon, &[store], rule);
    }
    assert!(listener.accept().is_err(), "nobody connected");
    drop(daemon);
    let rule = format!("dir://{}", node.path("store").canonicalize().unwrap().display());
    let daemon = node.start_restricted("cache", &["--allow-route", &rule]);
    fails(&daemon, &["dir:///etc".to_owned()], "a folder of this node");
    let (client, index) = node.connect(&daemon);
    check_small_files(&client, &index);
}

#[test]
fn a_damaged_block_is_an_error_by_name_and_is_asked_for_again() {
    let node = Node::new(0);
    let daemon = node.start(&[]);
    let (client, index) = node.connect(&daemon);
    let stored = node.stored(&index, 150);
    let whole = fs::read(&stored).unwrap();
    let mut bad = whole.clone();
    bad[9] ^= 1;
    fs::write(&stored, bad).unwrap();
    let block = index.block(150).unwrap();
    let error = client.block(150, &block).unwrap_err().to_string();
    assert_eq!(error.matches(&block.id.to_string()).count(), 1, "{error}");
    assert!(error.contains(&block.id.to_string()), "{error}");
    assert!(daemon.image_counter("bad") > 0);
    fs::write(&stored, whole).unwrap();
    assert!(client.block(150, &block).is_ok(), "errors are not cached");
}

/// Sends one message as is.
fn send(connection: &OwnedFd, message: &[u8]) {
    assert!(socket::send(connection.as_fd(), message, None).unwrap());
}

/// The next reply, with its descriptor; none if the daemon closed the connection.
fn receive(connection: &OwnedFd) -> Option<(Reply, Option<OwnedFd>)> {
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = [0; REPLY_SIZE_MAX];
    loop {
        match socket::receive(connection.as_fd(), &mut buffer).unwrap() {
            Received::Message(size, descriptor) => {
                return Some((Reply::decode(&buffer[..size]).unwrap(), descriptor));
            }
            Received::Closed => return None,
            Received::TooLong => panic!("a reply too long"),
            Received::Nothing => {
                assert!(Instant::now() < deadline, "no reply");
                socket::wait_readable(connection.as_fd(), PATIENCE).unwrap();
            }
        }
    }
}

fn bind_message(image: &Path) -> Vec<u8> {
    let path = image.as_os_str().as_encoded_bytes().to_vec();
    Request::Bind { path, stores: Vec::new() }.encode()
}

fn bound(node: &Node, daemon: &Daemon) -> (OwnedFd, Index) {
    let connection = socket::connect(&daemon.socket).unwrap();
    send(&connection, &bind_message(&node.image()));
    let (reply, index) = receive(&connection).unwrap();
    assert!(matches!(reply, Reply::Bound(Ok(_))), "{reply:?}");
    (connection, Index::open(&File::from(index.unwrap())).unwrap())
}

fn request(index: &Index, tag: u64, position: u32) -> Vec<u8> {
    Request::Block { tag, position, block: index.block(position).unwrap() }.encode()
}

#[test]
fn whoever_breaks_the_protocol_is_told_and_cut_off() {
    let node = Node::new(0);
    let daemon = node.start(&[]);
    let (_, index) = node.connect(&daemon);
    let bind = bind_message(&node.image());
    let first = request(&index, 1, 0);
    let cases: [(&str, Vec<&[u8]>); 6] = [
        ("no message", vec![b"\xff\xff\xff\xff\xff"]),
        ("half a message", vec![&bind[..10]]),
        ("a block before binding", vec![&first]),
        ("bound twice", vec![&bind, &bind]),
        ("too long", vec![&[1; REQUEST_SIZE_MAX + 1]]),
        ("half a request", vec![&bind, &first[..79]]),
    ];
    for (case, messages) in cases {
        let connection = socket::connect(&daemon.socket).unwrap();
        messages.iter().for_each(|message| send(&connection, message));
        let mut last = None;
        while let Some((reply, _)) = receive(&connection) {
            last = Some(reply);
        }
        let Some(Reply::Bound(Err(failure))) = last else { panic!("{case}: {last:?}") };
        assert_eq!(failure.kind, FailureKind::Protocol, "{case}");
    }
    is_alive(&node, &daemon);
    wait_until("connections end", || daemon.status()["connections"] == 1);
}

#[test]
fn descriptors_are_read_only_sent_once_and_again_after_being_forgotten() {
    let node = Node::new(0);
    let daemon = node.start(&[]);
    let (connection, index) = bound(&node, &daemon);
    let mut segments = Vec::new();
    let mut ask = |tag: u64| {
        send(&connection, &request(&index, tag, u32::try_from(tag).unwrap()));
        let (reply, descriptor) = receive(&connection).unwrap();
        let Reply::Block { tag: answered, result: Ok(located), .. } = reply else {
            panic!("{reply:?}")
        };
        assert_eq!(answered, tag);
        segments.push(located.segment);
        descriptor.map(File::from)
    };
    let file = ask(0).expect("the first of its segment");
    assert!(file.write_at(b"x", 0).is_err());
    assert!(file.set_len(0).is_err());
    assert!(ask(1).is_none());
    let segment = segments[0];
    send(&connection, &Request::Forget { segment }.encode());
    let ask = |tag: u64| {
        send(&connection, &request(&index, tag, u32::try_from(tag).unwrap()));
        receive(&connection).unwrap().1
    };
    assert!(ask(2).is_some());
    assert!(ask(3).is_none());
}

#[test]
fn a_client_that_takes_no_replies_or_dies_harms_nobody() {
    let node = Node::new(0);
    let daemon = node.start(&[]);
    let mut stuck = Vec::new();
    for _ in 0..3 {
        let (connection, index) = bound(&node, &daemon);
        let mut tag = 0;
        let room = |tag: u64| {
            let position = u32::try_from(tag).unwrap() % index.block_count();
            socket::send(connection.as_fd(), &request(&index, tag, position), None).unwrap()
        };
        // Until the daemon stops reading and the socket is full.
        while tag < 100_000 && room(tag) {
            tag += 1;
        }
        assert!(tag > IN_FLIGHT_MAX as u64);
        stuck.push(connection);
    }
    is_alive(&node, &daemon);
    stuck.truncate(1);
    wait_until("dead clients are noticed", || daemon.status()["connections"] == 2);
    let answered = std::iter::from_fn(|| {
        let mut buffer = [0; REPLY_SIZE_MAX];
        socket::wait_readable(stuck[0].as_fd(), Duration::from_millis(500)).unwrap();
        let received = socket::receive(stuck[0].as_fd(), &mut buffer).unwrap();
        matches!(received, Received::Message(..)).then_some(())
    });
    assert!(answered.count() > IN_FLIGHT_MAX, "the slow client is served when it reads");
}

#[test]
fn a_cache_smaller_than_the_image_still_serves_it_and_lets_old_segments_go() {
    let node = Node::new(12);
    let daemon = node.start(&["--size-max", "8M"]);
    let (client, index) = node.connect(&daemon);
    for _ in 0..2 {
        for number in 0..12 {
            let expected = contents(1000 + number, 1_200_000);
            assert!(read(&client, &index, &format!("large-{number}")) == expected);
        }
        check_small_files(&client, &index);
    }
    let cache = daemon.status()["cache"].clone();
    assert!(cache["evicted_segments"].as_u64().unwrap() > 10, "{cache}");
    assert!(cache["disk_bytes"].as_u64().unwrap() <= 8 << 20, "{cache}");
    client.drain();
    let open_segments = |process: u32| {
        let entries = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
        let targets = entries.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
        let cache = node.path("cache");
        targets
            .filter(|path| path.starts_with(&cache) && path.to_string_lossy().contains(".blocks"))
            .count()
    };
    // What is there now, and at most one that left the cache this moment.
    assert!(open_segments(std::process::id()) <= 9);
    assert!(open_segments(daemon.process.id()) <= 10);
}

#[test]
fn a_first_boot_is_recorded_and_fetched_ahead_the_next_time() {
    let node = Node::new(0);
    let mut daemon = node.start(&[]);
    let (client, index) = node.connect(&daemon);
    wait_until("init and kernel come first", || daemon.image_counter("prefetched") == 3);
    let order: Vec<u32> = (20..120).rev().collect();
    for position in &order {
        client.block(*position, &index.block(*position).unwrap()).unwrap();
    }
    drop(client);
    wait_until("the client is gone", || daemon.status()["images"][0].is_null());
    assert!(daemon.terminate().success());
    let traces = fs::read_dir(node.path("images")).unwrap().filter(|entry| {
        entry.as_ref().unwrap().path().extension().is_some_and(|extension| extension == "trace")
    });
    assert_eq!(traces.count(), 1);
    let daemon = node.start_on("another cache", &[]);
    let (client, index) = node.connect(&daemon);
    wait_until("the trace is fetched", || daemon.image_counter("prefetched") == 100);
    for position in order {
        client.block(position, &index.block(position).unwrap()).unwrap();
    }
    assert_eq!(daemon.image_counter("fetched"), 100);
    assert_eq!(daemon.image_counter("hits"), 100);
    // Whoever reads on is told of the blocks behind each that it asks for.
    let (client, _) = node.connect(&daemon);
    for position in 20..120 {
        let data = client.block(position, &index.block(position).unwrap()).unwrap();
        assert!(data.size > 0);
    }
    assert_eq!(daemon.image_counter("requests"), 100 + 7);
}

#[test]
fn the_socket_is_private_removed_at_the_end_and_served_by_one_daemon() {
    let node = Node::new(0);
    let mut daemon = node.start(&[]);
    assert_eq!(fs::metadata(&daemon.socket).unwrap().permissions().mode() & 0o777, 0o600);
    let second = run(&[
        "cached",
        "--socket",
        daemon.socket.to_str().unwrap(),
        "--cache",
        node.path("cache").to_str().unwrap(),
    ]);
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another process listens"));
    let human = run(&["cached", "--socket", daemon.socket.to_str().unwrap(), "--status"]);
    assert!(String::from_utf8_lossy(&human.stdout).contains("cache.disk_bytes"));
    assert!(daemon.terminate().success());
    assert!(!daemon.socket.exists());
    fs::write(&daemon.socket, "precious").unwrap();
    let output = run(&[
        "cached",
        "--socket",
        daemon.socket.to_str().unwrap(),
        "--cache",
        node.path("cache").to_str().unwrap(),
    ]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("not a socket"));
    assert_eq!(fs::read(&daemon.socket).unwrap(), b"precious");
}

#[test]
fn without_a_daemon_a_client_says_so_within_its_bound() {
    let directory = tempfile::tempdir().unwrap();
    let error = CacheClient::connect(&directory.path().join("none"), Path::new("/x"), &[]);
    assert!(matches!(error.err().unwrap(), ConnectError::Socket { .. }));
}
