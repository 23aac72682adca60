//! Networks of namespaces with a node in each, for tests that run as root.
//!
//! Namespaces are named after the test's process and end with their [`Lab`], as do nodes. Where there are
//! no namespaces or no `/dev/net/tun`, [`Lab::new`] says so and gives none.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Some namespaces.
pub(crate) struct Lab {
    names: Vec<String>,
    folder: tempfile::TempDir,
    link_count: u32,
}

/// A node that runs in a namespace.
pub(crate) struct Node {
    process: Child,
    pub(crate) address: Ipv6Addr,
    log: PathBuf,
}

impl Lab {
    /// `count` namespaces; none where that is impossible.
    pub(crate) fn new(count: usize) -> Option<Self> {
        if !std::path::Path::new("/dev/net/tun").exists() {
            eprintln!("skipped: no /dev/net/tun");
            return None;
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = |at: usize| format!("myc{}-{number}-{at}", std::process::id());
        let names: Vec<String> = (0..count).map(name).collect();
        let folder = tempfile::tempdir().unwrap();
        let lab = Self { names, folder, link_count: 0 };
        for name in &lab.names {
            let added = Command::new("ip").args(["netns", "add", name]).output();
            if !added.is_ok_and(|output| output.status.success()) {
                eprintln!("skipped: no namespaces (needs root and iproute2)");
                return None;
            }
            ip(&format!("-n {name} link set lo up"));
        }
        Some(lab)
    }

    /// Joins two namespaces by a pair of interfaces; gives the addresses `10.N.0.1` and `10.N.0.2`.
    pub(crate) fn join(&mut self, a: usize, b: usize) -> (String, String) {
        self.link_count += 1;
        let number = self.link_count;
        let (a, b) = (&self.names[a], &self.names[b]);
        let device = format!("v{number}");
        ip(&format!("link add {device} netns {a} type veth peer name {device} netns {b}"));
        for (name, at) in [(a, 1), (b, 2)] {
            ip(&format!("-n {name} addr add 10.{number}.0.{at}/24 dev {device}"));
            ip(&format!("-n {name} link set {device} up"));
        }
        (format!("10.{number}.0.1"), format!("10.{number}.0.2"))
    }

    /// Loses all packets between two namespaces, without a word: both send to a wrong hardware address.
    pub(crate) fn lose(&self, number: u32, a: usize, b: usize) {
        for (name, other) in [(&self.names[a], 2), (&self.names[b], 1)] {
            ip(&format!(
                "-n {name} neigh replace 10.{number}.0.{other} lladdr 02:00:00:00:00:99 \
                 nud permanent dev v{number}"
            ));
        }
    }

    /// Name of a namespace.
    pub(crate) fn name(&self, at: usize) -> &str {
        &self.names[at]
    }

    /// Runs `ip` on a namespace.
    pub(crate) fn ip(&self, at: usize, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.names[at]));
    }

    /// Path of a key of this name, made if missing, and its address.
    pub(crate) fn key(&self, name: &str) -> (PathBuf, Ipv6Addr) {
        let path = self.folder.path().join(format!("{name}.key"));
        let key_file = path.to_str().unwrap();
        if !path.exists() {
            let made = mycelium(&["generate-keys", "--key-file", key_file]);
            assert!(made.status.success(), "{made:?}");
        }
        let shown = mycelium(&["inspect", "--json", "--key-file", key_file]);
        let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
        let address = shown["address"].as_str().unwrap().parse().unwrap();
        (path, address)
    }

    /// Starts a process with the instances of a file, outside of all namespaces.
    pub(crate) fn start_instances(&self, file: &Path, socket: &Path) -> Node {
        let log = self.folder.path().join("instances.log");
        let process = Command::new(env!("CARGO_BIN_EXE_mycelium"))
            .args(["--debug", "--instances"])
            .arg(file)
            .arg("--control-socket")
            .arg(socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Node { process, address: Ipv6Addr::UNSPECIFIED, log }
    }

    /// Starts a node in a namespace, with `arguments` besides its key and device.
    pub(crate) fn start(&self, at: usize, arguments: &[&str]) -> Node {
        let (key_file, address) = self.key(&at.to_string());
        let key_file = key_file.to_str().unwrap();
        let log = self.folder.path().join(format!("{at}.log"));
        let process = Command::new("ip")
            .args(["netns", "exec", &self.names[at], env!("CARGO_BIN_EXE_mycelium")])
            .args(["--debug", "--key-file", key_file, "--tun-name", "my0"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Node { process, address, log }
    }

    /// Runs the program in a namespace, as a user beside the node there.
    pub(crate) fn run(&self, at: usize, arguments: &[&str]) -> std::process::Output {
        Command::new("ip")
            .args(["netns", "exec", &self.names[at], env!("CARGO_BIN_EXE_mycelium")])
            .args(arguments)
            .output()
            .unwrap()
    }

    /// Runs it until it succeeds, and gives the JSON that it prints.
    pub(crate) fn json(&self, at: usize, arguments: &[&str]) -> serde_json::Value {
        let start = Instant::now();
        loop {
            let output = self.run(at, arguments);
            if output.status.success() {
                return serde_json::from_slice(&output.stdout).unwrap();
            }
            assert!(start.elapsed() < Duration::from_secs(20), "{arguments:?}: {output:?}");
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// A path for a file of the test's own.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs `work` on a thread inside a namespace.
    pub(crate) fn inside<T: Send + 'static>(
        &self,
        at: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        let path = format!("/run/netns/{}", self.names[at]);
        thread::spawn(move || {
            let namespace = std::fs::File::open(path).unwrap();
            let kind = LinkNameSpaceType::Network;
            move_into_link_name_space(namespace.as_fd(), Some(kind)).unwrap();
            work()
        })
    }

    /// Answers datagrams in a namespace, on port 7 of its node, until the test's process ends.
    pub(crate) fn echo(&self, at: usize, address: Ipv6Addr) {
        self.inside(at, move || {
            let socket = bind(SocketAddr::from((address, 7)));
            let mut buffer = [0; 2000];
            while let Ok((size, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&buffer[..size], from);
            }
        });
    }

    /// Sends a datagram of `size` bytes to an [`Self::echo`] each 20 ms until one comes back, and gives
    /// how long that took.
    pub(crate) fn reach(
        &self,
        from: usize,
        to: Ipv6Addr,
        size: usize,
        patience: Duration,
    ) -> Option<Duration> {
        let (from, start) =
            (self.inside(from, move || pings(to, size, patience, true)), Instant::now());
        let lost = from.join().unwrap();
        (lost.answered > 0).then(|| start.elapsed())
    }

    /// Sends datagrams for `time`, ten a second.
    pub(crate) fn ping(
        &self,
        from: usize,
        to: Ipv6Addr,
        time: Duration,
    ) -> thread::JoinHandle<Pings> {
        self.inside(from, move || pings(to, 64, time, false))
    }

    /// Sends `size` bytes over TCP from one node to another, and checks that they are those that arrive.
    pub(crate) fn transfer(
        &self,
        from: usize,
        to: usize,
        address: Ipv6Addr,
        size: usize,
    ) -> Duration {
        let target = SocketAddr::from((address, 4000));
        let receiver = self.inside(to, move || {
            let start = Instant::now();
            let listener = loop {
                match TcpListener::bind(target) {
                    Ok(listener) => break listener,
                    Err(error) => assert!(start.elapsed().as_secs() < 10, "{error}"),
                }
                thread::sleep(Duration::from_millis(50));
            };
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let mut received = Vec::with_capacity(size);
            stream.read_to_end(&mut received).unwrap();
            received
        });
        let sender = self.inside(from, move || {
            let start = Instant::now();
            let mut stream = loop {
                match TcpStream::connect_timeout(&target, Duration::from_secs(2)) {
                    Ok(stream) => break stream,
                    Err(error) => assert!(start.elapsed().as_secs() < 10, "{error}"),
                }
                thread::sleep(Duration::from_millis(50));
            };
            stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
            let start = Instant::now();
            stream.write_all(&pattern(size)).unwrap();
            drop(stream);
            start
        });
        let start = sender.join().unwrap();
        let received = receiver.join().unwrap();
        assert!(received == pattern(size), "{} of {size} bytes, or other ones", received.len());
        start.elapsed()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

impl Node {
    /// Ends it as a supervisor would, and says whether it ended well.
    pub(crate) fn stop(mut self) -> bool {
        self.signal("TERM");
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(10) {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status.success();
            }
            thread::sleep(Duration::from_millis(20));
        }
        false
    }

    /// Memory of its own, in KiB: what would be free without it.
    pub(crate) fn private_kib(&self) -> u64 {
        let path = format!("/proc/{}/smaps_rollup", self.process.id());
        let rollup = std::fs::read_to_string(path).unwrap();
        let private = rollup.lines().filter(|line| line.starts_with("Private_"));
        private.map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()).sum()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.process.id().to_string();
        let sent = Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap();
        assert!(sent.success());
    }

    /// What it said.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if thread::panicking() {
            eprintln!("--- node {}:\n{}", self.address, self.log());
        }
    }
}

/// What became of datagrams.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pings {
    pub(crate) sent: u32,
    pub(crate) answered: u32,
    /// Longest run that nobody answered.
    pub(crate) lost_in_a_row: u32,
}

/// Runs the program.
pub(crate) fn mycelium(arguments: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_mycelium")).args(arguments).output().unwrap()
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Binds as soon as the address is there.
fn bind(address: SocketAddr) -> UdpSocket {
    let start = Instant::now();
    loop {
        match UdpSocket::bind(address) {
            Ok(socket) => return socket,
            Err(error) => assert!(start.elapsed() < Duration::from_secs(20), "{error}"),
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn pings(to: Ipv6Addr, size: usize, time: Duration, until_first: bool) -> Pings {
    let socket = bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)));
    let interval = Duration::from_millis(if until_first { 20 } else { 100 });
    socket.set_read_timeout(Some(interval)).unwrap();
    let (start, mut pings, mut in_a_row) = (Instant::now(), Pings::default(), 0);
    let mut buffer = vec![0; 2000];
    while start.elapsed() < time {
        let begin = Instant::now();
        pings.sent += 1;
        let mut datagram = vec![0; size];
        datagram[..4].copy_from_slice(&pings.sent.to_be_bytes());
        // There is no route before the device has its address.
        let _ = socket.send_to(&datagram, (to, 7));
        let is_answered = loop {
            match socket.recv(&mut buffer) {
                Ok(got) if got == size && buffer[..4] == pings.sent.to_be_bytes() => break true,
                // One that came late, which is as good when any will do.
                Ok(got) if got == size && until_first => break true,
                Ok(_) => {}
                Err(_) => break false,
            }
        };
        if is_answered {
            pings.answered += 1;
            in_a_row = 0;
            if until_first {
                break;
            }
        } else {
            in_a_row += 1;
            pings.lost_in_a_row = pings.lost_in_a_row.max(in_a_row);
        }
        thread::sleep(interval.saturating_sub(begin.elapsed()));
    }
    pings
}

fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()[2]).collect()
}
