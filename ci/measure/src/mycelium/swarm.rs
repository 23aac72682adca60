//! Many nodes of ours that do nothing: what each holds and says.
//!
//! They run in one namespace without devices, each with three links that it made and as many that others
//! made to it, and speak over the loopback interface, where every byte is counted once.

use std::thread;
use std::time::{Duration, Instant};

use super::lab::Lab;
use super::overlay::Key;
use crate::process::{Daemon, Memory};

/// Links that each node makes.
const LINK_COUNT: usize = 3;
/// First port of links, of the HTTP API and of the JSON-RPC API.
const PORTS: [usize; 3] = [10_000, 20_000, 30_000];
/// A new link's first Hellos are frequent: the last of them comes after 15 s.
const SETTLED_AFTER: Duration = Duration::from_secs(20);
/// Hellos of a settled link are 20 s apart.
const WINDOW_MIN: Duration = Duration::from_secs(20);

/// Idle nodes.
pub(super) struct Swarm {
    nodes: Vec<Daemon>,
    started: Instant,
    /// Ends after its nodes.
    lab: Lab,
}

/// What was spent up to a moment.
pub(super) struct Sample {
    at: Instant,
    bytes: f64,
    processor_seconds: f64,
}

/// What one node costs while it is idle.
pub(super) struct Idle {
    pub(super) bytes_per_second: f64,
    pub(super) processor_ms_per_second: f64,
    /// Of the node in the middle, by each of its figures.
    pub(super) memory: Memory,
}

impl Swarm {
    /// Starts them.
    pub(super) fn start(count: usize) -> anyhow::Result<Self> {
        let lab = Lab::new(1)?;
        let nodes = (0..count).map(|number| start(&lab, number, count));
        let nodes = nodes.collect::<anyhow::Result<_>>()?;
        Ok(Self { nodes, started: Instant::now(), lab })
    }

    /// Waits until their first talk is over, and begins to count.
    pub(super) fn settled(&self) -> anyhow::Result<Sample> {
        thread::sleep(SETTLED_AFTER.saturating_sub(self.started.elapsed()));
        self.sample()
    }

    /// What a node cost since the sample, which is waited for if it was taken just now.
    pub(super) fn since(&self, before: &Sample) -> anyhow::Result<Idle> {
        thread::sleep(WINDOW_MIN.saturating_sub(before.at.elapsed()));
        let after = self.sample()?;
        let node_seconds =
            after.at.duration_since(before.at).as_secs_f64() * figure(self.nodes.len());
        let spent = after.processor_seconds - before.processor_seconds;
        let all: Vec<Memory> = self.nodes.iter().map(Daemon::memory).collect::<Result<_, _>>()?;
        let middle = |of: fn(&Memory) -> f64| {
            let mut figures: Vec<f64> = all.iter().map(of).collect();
            figures.sort_unstable_by(f64::total_cmp);
            figures[figures.len() / 2]
        };
        Ok(Idle {
            bytes_per_second: (after.bytes - before.bytes) / node_seconds,
            processor_ms_per_second: spent * 1e3 / node_seconds,
            memory: Memory {
                resident_mib: middle(|memory| memory.resident_mib),
                share_mib: middle(|memory| memory.share_mib),
                private_mib: middle(|memory| memory.private_mib),
            },
        })
    }

    fn sample(&self) -> anyhow::Result<Sample> {
        let bytes = self.lab.sent_bytes(0, "lo")?;
        let mut processor_seconds = 0.0;
        for node in &self.nodes {
            processor_seconds += node.processor_seconds()?;
        }
        Ok(Sample { at: Instant::now(), bytes, processor_seconds })
    }
}

/// Starts one of `count`.
fn start(lab: &Lab, number: usize, count: usize) -> anyhow::Result<Daemon> {
    let key = Key::make(lab, number)?;
    let [link, http, rpc] = PORTS.map(|first| (first + number).to_string());
    let local = |port: &str| format!("127.0.0.1:{port}");
    let peers = others(number, count).map(|other| format!("tcp://{}", local(&port(other))));
    let (http, rpc) = (local(&http), local(&rpc));
    let mut words = vec!["mycelium", "--silent", "--disable-peer-discovery", "--no-tun"];
    words.extend(["--key-file", key.path(), "--tcp-listen-port", &link]);
    words.extend(["--quic-listen-port", &link, "--api-addr", &http, "--jsonrpc-addr", &rpc]);
    words.push("--peers");
    words.extend(peers.iter().map(String::as_str));
    Daemon::start(&lab.inside(0, &words), || true)
}

fn port(number: usize) -> String {
    (PORTS[0] + number).to_string()
}

/// Whom a node dials: its neighbour, and two that are far, so that all are connected.
fn others(number: usize, count: usize) -> [usize; LINK_COUNT] {
    [1, count / 3, count / 2].map(|step| (number + step) % count)
}

fn figure(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}
