//! The programs that are measured: a node of ours, and userspace WireGuard.
//!
//! Both use X25519 keys, so `mycelium` makes those of the other too.

use std::io::{Read, Write};
use std::net::Ipv6Addr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::lab::{self, Joint, Lab, joined};
use super::traffic::{Echo, first_answer};
use crate::process::Daemon;

/// The program of userspace WireGuard.
pub(super) const BORINGTUN: &str = "boringtun-cli";
/// Port on which nodes of either kind listen.
const PORT: u16 = 9651;
/// Port on which ours listen for our own protocol.
const UDP_PORT: u16 = 9652;

/// What makes an overlay.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Make {
    /// Ours, whose nodes are linked by this protocol.
    Mycelium(&'static str),
    /// WireGuard in userspace.
    BoringTun,
}

/// A node that runs in a namespace.
pub(super) struct Node {
    pub(super) daemon: Daemon,
    pub(super) address: Ipv6Addr,
}

/// Nodes of which each is linked with the next, one in each namespace of a lab.
pub(super) struct Line {
    pub(super) nodes: Vec<Node>,
    pub(super) joints: Vec<Joint>,
    /// Ends after its nodes.
    pub(super) lab: Lab,
}

/// A node's key.
pub(super) struct Key {
    path: String,
    public: String,
    pub(super) address: Ipv6Addr,
}

impl Line {
    /// Starts `count` nodes and waits until the ends reach each other.
    pub(super) fn new(make: Make, count: usize) -> anyhow::Result<Self> {
        let mut lab = Lab::new(count)?;
        let joints: Vec<Joint> =
            (1..count).map(|at| lab.join(at - 1, at)).collect::<anyhow::Result<_>>()?;
        let nodes = match make {
            Make::Mycelium(protocol) => {
                // The last one first, so that whoever dials is heard.
                let start = |at: usize| {
                    let next = joints.get(at).map(|joint| endpoint(protocol, &joint.address(1)));
                    mycelium(&lab, at, &Key::make(&lab, at)?, next.as_slice())
                };
                let mut nodes: Vec<Node> =
                    (0..count).rev().map(start).collect::<anyhow::Result<_>>()?;
                nodes.reverse();
                nodes
            }
            Make::BoringTun => wireguard(&lab, joints[0])?,
        };
        let line = Self { nodes, joints, lab };
        line.settle()?;
        Ok(line)
    }

    /// Waits until the ends reach each other.
    fn settle(&self) -> anyhow::Result<()> {
        let last = self.last();
        let echo = Echo::start(&self.lab, last, self.nodes[last].address);
        joined(first_answer(&self.lab, 0, self.nodes[last].address))?;
        echo.stop()
    }

    /// The far end.
    pub(super) fn last(&self) -> usize {
        self.nodes.len() - 1
    }

    /// Processor seconds of each node so far.
    pub(super) fn processor_seconds(&self) -> anyhow::Result<Vec<f64>> {
        self.nodes.iter().map(|node| node.daemon.processor_seconds()).collect()
    }
}

/// Whether our nodes understand a protocol.
pub(super) fn understands(protocol: &str) -> bool {
    let peer = endpoint(protocol, "127.0.0.1");
    let shown = Command::new("mycelium").args(["--print-config", "--peers", &peer]).output();
    shown.is_ok_and(|output| output.status.success())
}

/// Where a node is found.
pub(super) fn endpoint(protocol: &str, address: &str) -> String {
    let port = if protocol == "udp" { UDP_PORT } else { PORT };
    format!("{protocol}://{address}:{port}")
}

/// Starts a node of ours in a namespace, and waits for its device.
pub(super) fn mycelium(lab: &Lab, at: usize, key: &Key, peers: &[String]) -> anyhow::Result<Node> {
    let mut words = vec!["mycelium", "--silent", "--disable-peer-discovery"];
    words.extend(["--key-file", &key.path, "--tun-name", "my0"]);
    if !peers.is_empty() {
        words.push("--peers");
        words.extend(peers.iter().map(String::as_str));
    }
    let address = key.address;
    let shown = address.to_string();
    let daemon = Daemon::start(&lab.inside(at, &words), || lab.has_address(at, &shown))?;
    Ok(Node { daemon, address })
}

/// Starts WireGuard in the two namespaces of a joint.
fn wireguard(lab: &Lab, joint: Joint) -> anyhow::Result<Vec<Node>> {
    let keys = [Key::make(lab, 0)?, Key::make(lab, 1)?];
    let mut nodes = Vec::new();
    for (at, key) in keys.iter().enumerate() {
        // Its sockets are in one folder for all namespaces, so names must differ.
        let device = format!("bt{}{at}", std::process::id() % 1_000_000);
        let socket = format!("/var/run/wireguard/{device}.sock");
        let words = [BORINGTUN, "--foreground", "--disable-drop-privileges", &device];
        let ready = || Path::new(&socket).exists();
        let daemon = Daemon::start(&lab.inside(at, &words), ready)?;
        let other = &keys[1 - at];
        let secret = std::fs::read(&key.path)?;
        let peer = format!(
            "public_key={}\nendpoint={}:{PORT}\nallowed_ip={}/128\n",
            other.public,
            joint.address(1 - at),
            other.address
        );
        let own = format!("private_key={}\nlisten_port={PORT}\n", hex(&secret));
        configure(&socket, &format!("set=1\n{own}{peer}\n"))?;
        lab.run(at, &["ip", "addr", "add", &format!("{}/7", key.address), "dev", &device])?;
        lab.run(at, &["ip", "link", "set", &device, "mtu", "1420", "up"])?;
        nodes.push(Node { daemon, address: key.address });
    }
    Ok(nodes)
}

/// Talks to WireGuard's socket ("Cross-platform Userspace Implementation", Configuration Protocol).
fn configure(socket: &str, request: &str) -> anyhow::Result<()> {
    let mut stream = UnixStream::connect(socket).with_context(|| socket.to_owned())?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = [0; 64];
    let size = stream.read(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer[..size]).into_owned();
    ensure!(answer.starts_with("errno=0\n"), "{socket}: {answer}");
    Ok(())
}

impl Key {
    /// Makes the key of the node in a namespace.
    pub(super) fn make(lab: &Lab, at: usize) -> anyhow::Result<Self> {
        let path = lab.path(&format!("{at}.key")).display().to_string();
        lab::output(Command::new("mycelium").args(["generate-keys", "--key-file", &path]))?;
        let shown =
            lab::output(Command::new("mycelium").args(["inspect", "--json", "--key-file", &path]))?;
        let shown: Value = serde_json::from_slice(&shown)?;
        let field = |name: &str| shown[name].as_str().with_context(|| format!("no {name}"));
        let (public, address) = (field("publicKey")?.to_owned(), field("address")?.parse()?);
        Ok(Self { path, public, address })
    }

    /// Its file.
    pub(super) fn path(&self) -> &str {
        &self.path
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
