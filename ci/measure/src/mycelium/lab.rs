//! Network namespaces, joined by pairs of interfaces.
//!
//! They are named after this process and end with their [`Lab`]. Addresses are `10.N.0.1` and `10.N.0.2`,
//! where N counts the joints of one lab.

use std::fs::{self, File};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// How long anything may take to be ready.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// No two labs of this process share names.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// Some namespaces, and a folder for the files of what runs in them.
pub(super) struct Lab {
    names: Vec<String>,
    folder: tempfile::TempDir,
    joint_count: u8,
}

/// Two namespaces that are joined.
#[derive(Clone, Copy)]
pub(super) struct Joint {
    number: u8,
    ends: [usize; 2],
}

impl Lab {
    /// `count` namespaces, which needs root.
    pub(super) fn new(count: usize) -> anyhow::Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "network namespaces need root");
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = |at| format!("bench{}-{number}-{at}", std::process::id());
        let names = (0..count).map(name).collect();
        let lab = Self { names, folder: tempfile::tempdir()?, joint_count: 0 };
        for name in &lab.names {
            ip(&format!("netns add {name}"))?;
            ip(&format!("-n {name} link set lo up"))?;
        }
        Ok(lab)
    }

    /// Joins two namespaces.
    pub(super) fn join(&mut self, a: usize, b: usize) -> anyhow::Result<Joint> {
        self.joint_count += 1;
        let joint = Joint { number: self.joint_count, ends: [a, b] };
        let (a, b) = (&self.names[a], &self.names[b]);
        let device = joint.device();
        ip(&format!("link add {device} netns {a} type veth peer name {device} netns {b}"))?;
        for (end, name) in [a, b].into_iter().enumerate() {
            ip(&format!("-n {name} addr add {}/24 dev {device}", joint.address(end)))?;
            ip(&format!("-n {name} link set {device} up"))?;
        }
        Ok(joint)
    }

    /// Lets no more than `megabits` a second pass, either way, and 50 ms of it wait.
    pub(super) fn shape(&self, joint: Joint, megabits: u32) -> anyhow::Result<()> {
        for name in joint.ends.map(|end| &self.names[end]) {
            let device = joint.device();
            let shaper = format!("tbf rate {megabits}mbit burst 32k latency 50ms");
            tc(&format!("-n {name} qdisc replace dev {device} root {shaper}"))?;
        }
        Ok(())
    }

    /// Loses all packets of a joint without a word: both ends send to a wrong hardware address.
    pub(super) fn lose(&self, joint: Joint) -> anyhow::Result<()> {
        for (end, name) in joint.ends.map(|end| &self.names[end]).into_iter().enumerate() {
            let (other, device) = (joint.address(1 - end), joint.device());
            let nowhere = "lladdr 02:00:00:00:00:99 nud permanent";
            ip(&format!("-n {name} neigh replace {other} {nowhere} dev {device}"))?;
        }
        Ok(())
    }

    /// A command line that runs inside a namespace. The process is the program's own, not one of `ip`'s.
    pub(super) fn inside(&self, at: usize, words: &[&str]) -> Vec<String> {
        let enter = ["ip", "netns", "exec", &self.names[at]];
        enter.iter().chain(words).map(|word| (*word).to_owned()).collect()
    }

    /// Runs a command inside a namespace to its end; what it printed.
    pub(super) fn run(&self, at: usize, words: &[&str]) -> anyhow::Result<Vec<u8>> {
        let words = self.inside(at, words);
        output(Command::new(&words[0]).args(&words[1..]))
    }

    /// Whether an interface of a namespace has this address.
    pub(super) fn has_address(&self, at: usize, address: &str) -> bool {
        let shown = self.run(at, &["ip", "-o", "addr", "show"]).unwrap_or_default();
        let shown = String::from_utf8_lossy(&shown).into_owned();
        shown.split_whitespace().any(|word| word.split('/').next() == Some(address))
    }

    /// Bytes that left by an interface so far, with the headers of Ethernet.
    pub(super) fn sent_bytes(&self, at: usize, device: &str) -> anyhow::Result<f64> {
        let lines = self.run(at, &["cat", "/proc/net/dev"])?;
        let lines = String::from_utf8(lines)?;
        // proc(5): eight counters of what came in, then as many of what went out.
        let line = lines.lines().find_map(|line| line.trim().strip_prefix(&format!("{device}:")));
        let sent = line.and_then(|line| line.split_whitespace().nth(8));
        Ok(sent.with_context(|| format!("no interface {device}"))?.parse()?)
    }

    /// Runs `work` on a thread of its own inside a namespace.
    pub(super) fn within<T: Send + 'static>(
        &self,
        at: usize,
        work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
    ) -> JoinHandle<anyhow::Result<T>> {
        let path = Path::new("/run/netns").join(&self.names[at]);
        thread::spawn(move || {
            let namespace = File::open(&path).with_context(|| path.display().to_string())?;
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        })
    }

    /// A path for a file of what runs here.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in &self.names {
            // One that could not be made can't be removed.
            let _ = ip(&format!("netns del {name}"));
        }
    }
}

impl Joint {
    /// Address of one of its ends, 0 or 1.
    pub(super) fn address(&self, end: usize) -> String {
        format!("10.{}.0.{}", self.number, end + 1)
    }

    /// Name of the interface at both ends.
    fn device(&self) -> String {
        format!("v{}", self.number)
    }
}

/// Waits for the result of a thread.
pub(super) fn joined<T>(thread: JoinHandle<anyhow::Result<T>>) -> anyhow::Result<T> {
    thread.join().unwrap_or_else(|_| bail!("a thread of the measurement panicked"))
}

/// Binds a socket as soon as its address is there.
pub(super) fn bind(address: SocketAddr) -> anyhow::Result<UdpSocket> {
    let begin = Instant::now();
    loop {
        match UdpSocket::bind(address) {
            Ok(socket) => return Ok(socket),
            Err(error) if begin.elapsed() > PATIENCE => {
                return Err(error).with_context(|| address.to_string());
            }
            Err(_) => thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// Runs `ip`.
fn ip(arguments: &str) -> anyhow::Result<()> {
    output(Command::new("ip").args(arguments.split_whitespace())).map(drop)
}

fn tc(arguments: &str) -> anyhow::Result<()> {
    output(Command::new("tc").args(arguments.split_whitespace())).map(drop)
}

/// Runs a command, which must succeed; what it printed.
pub(super) fn output(command: &mut Command) -> anyhow::Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        bail!("{command:?}: {} {said}", String::from_utf8_lossy(&output.stdout));
    }
    Ok(output.stdout)
}

/// Whether a program is on the path.
pub(super) fn is_installed(program: &str) -> bool {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders).any(|folder| fs::metadata(folder.join(program)).is_ok())
}
