//! Both servers, and what asks them.

use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use zdb_client::{Client, Endpoint, Timeouts, Value};

use crate::process::Daemon;

/// Random keys of a benchmark.
const KEY_SPACE: u64 = 100_000;
/// What `redis-benchmark` replaces by a random number of twelve digits.
const RANDOM: &str = "__rand_int__";
const RANDOM_SIZE: usize = 12;

/// A server with folders of its own.
pub(super) struct Peer {
    daemon: Option<Daemon>,
    folder: tempfile::TempDir,
    arguments: Vec<String>,
    port: u16,
    metrics_port: u16,
}

impl Peer {
    /// Ours.
    pub(super) fn zdb(extra: &[&str]) -> anyhow::Result<Self> {
        let (port, metrics_port) = (free_port()?, free_port()?);
        let folder = tempfile::tempdir()?;
        let path = |name: &str| folder.path().join(name).display().to_string();
        let metrics = format!("127.0.0.1:{metrics_port}");
        let mut arguments: Vec<String> = vec!["zdb".into(), "--data".into(), path("data")];
        arguments.extend(["--index".into(), path("index"), "--port".into(), port.to_string()]);
        arguments.extend(["--listen".into(), "127.0.0.1".into()]);
        arguments.extend(["--metrics-listen".into(), metrics, "--reserve".into(), "1M".into()]);
        arguments.extend(["--logfile".into(), path("log")]);
        arguments.extend(extra.iter().map(|word| (*word).to_owned()));
        Self { daemon: None, folder, arguments, port, metrics_port }.start()
    }

    /// Debian's Redis.
    pub(super) fn redis(extra: &[&str]) -> anyhow::Result<Self> {
        let port = free_port()?;
        let folder = tempfile::tempdir()?;
        let path = folder.path().display().to_string();
        let mut arguments: Vec<String> = vec!["redis-server".into(), "--save".into(), "".into()];
        arguments.extend(["--port".into(), port.to_string(), "--bind".into(), "127.0.0.1".into()]);
        arguments.extend(["--dir".into(), path, "--daemonize".into(), "no".into()]);
        arguments.extend(extra.iter().map(|word| (*word).to_owned()));
        Self { daemon: None, folder, arguments, port, metrics_port: 0 }.start()
    }

    fn start(mut self) -> anyhow::Result<Self> {
        let port = self.port;
        let ready = move || connect(port).and_then(|mut client| Ok(client.ping()?)).is_ok();
        self.daemon = Some(Daemon::start(&self.arguments, ready)?);
        Ok(self)
    }

    /// Ends it well and starts it again, with its index files or without.
    pub(super) fn restart(&mut self, without_index: bool) -> anyhow::Result<()> {
        self.daemon = None;
        if without_index {
            std::fs::remove_dir_all(self.folder.path().join("index"))?;
        }
        let port = self.port;
        let ready = move || connect(port).and_then(|mut client| Ok(client.ping()?)).is_ok();
        self.daemon = Some(Daemon::start(&self.arguments, ready)?);
        Ok(())
    }

    /// Ends it well.
    pub(super) fn stop(&mut self) {
        self.daemon = None;
    }

    pub(super) fn client(&self) -> anyhow::Result<Client> {
        connect(self.port)
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn processor_seconds(&self) -> anyhow::Result<f64> {
        self.daemon.as_ref().context("not running")?.processor_seconds()
    }

    pub(super) fn memory_mib(&self) -> anyhow::Result<f64> {
        self.daemon.as_ref().context("not running")?.memory_mib()
    }

    /// A number in the text of `INFO`.
    pub(super) fn info(&self, field: &str) -> anyhow::Result<f64> {
        let Value::Bulk(text) = self.client()?.call(&[b"INFO"])? else { bail!("INFO is no text") };
        let text = String::from_utf8(text)?;
        let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(": "));
        Ok(line.with_context(|| format!("INFO has no {field}"))?.trim().parse()?)
    }

    /// The first figure of that name on the page for Prometheus.
    pub(super) fn metric(&self, name: &str) -> anyhow::Result<f64> {
        use std::io::{Read, Write};
        let mut stream = TcpStream::connect(("127.0.0.1", self.metrics_port))?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let line = text.lines().find(|line| line.starts_with(name));
        let line = line.with_context(|| format!("no figure {name}"))?;
        Ok(line.rsplit(' ').next().unwrap_or_default().parse()?)
    }

    /// Connections that do nothing.
    pub(super) fn crowd(&self, count: usize) -> anyhow::Result<Vec<TcpStream>> {
        let connect = |_| TcpStream::connect(("127.0.0.1", self.port)).context("an idle client");
        (0..count).map(connect).collect()
    }

    /// Where its files are.
    pub(super) fn arguments(&self) -> (&[String], PathBuf) {
        (&self.arguments, self.folder.path().to_owned())
    }
}

/// What `redis-benchmark` is to do.
pub(super) struct Benchmark {
    words: Vec<String>,
    size: usize,
    clients: u32,
    pipeline: u32,
    count: u32,
    keys: u64,
}

impl Benchmark {
    /// Fresh values for random keys.
    pub(super) fn set(size: usize, clients: u32, pipeline: u32, count: u32) -> Self {
        let value = format!("{RANDOM}{}", "x".repeat(size.saturating_sub(RANDOM_SIZE)));
        let words = vec!["SET".to_owned(), format!("key:{RANDOM}"), value];
        Self { words, size, clients, pipeline, count, keys: KEY_SPACE }
    }

    /// Random keys, all of which exist.
    pub(super) fn get(size: usize, clients: u32, pipeline: u32, count: u32) -> Self {
        let words = vec!["GET".to_owned(), format!("key:{RANDOM}")];
        // About 400 MB of values at most.
        let keys =
            KEY_SPACE.min(400_000_000 / size as u64).min(if size > 65536 { 64 } else { KEY_SPACE });
        Self { words, size, clients, pipeline, count, keys }
    }

    /// Makes the keys that will be asked for.
    pub(super) fn prepare(&self, peer: &Peer) -> anyhow::Result<()> {
        if self.words.len() > 2 {
            return Ok(());
        }
        let mut client = peer.client()?;
        let mut batch = Vec::new();
        for key in 0..self.keys {
            let key = format!("key:{key:012}").into_bytes();
            batch.push(vec![b"SET".to_vec(), key, vec![b'v'; self.size]]);
            if batch.len() >= 64 {
                client.call_batch(&std::mem::take(&mut batch))?;
            }
        }
        client.call_batch(&batch)?;
        Ok(())
    }

    /// Requests a second, and the server's processor time of one in microseconds.
    pub(super) fn run(&self, peer: &Peer) -> anyhow::Result<(f64, f64)> {
        let before = peer.processor_seconds()?;
        let output = Command::new("redis-benchmark")
            .args(["-h", "127.0.0.1", "-p", &peer.port().to_string(), "--csv"])
            .args(["-c", &self.clients.to_string(), "-P", &self.pipeline.to_string()])
            .args(["-n", &self.count.to_string(), "-r", &self.keys.to_string()])
            .args(&self.words)
            .output()
            .context("redis-benchmark")?;
        let text = String::from_utf8(output.stdout)?;
        if !output.status.success() {
            bail!("redis-benchmark: {text}{}", String::from_utf8_lossy(&output.stderr));
        }
        // "name","requests a second","latency"...
        let rate = text.lines().last().and_then(|line| line.split("\",\"").nth(1));
        let rate = rate.with_context(|| format!("redis-benchmark printed {text}"))?;
        let spent = peer.processor_seconds()? - before;
        Ok((rate.parse()?, spent * 1e6 / f64::from(self.count)))
    }
}

/// Sets keys of 16 bytes to values of `size` bytes, in order; how long it took.
pub(super) fn load(peer: &Peer, count: u64, size: u64) -> anyhow::Result<f64> {
    let mut client = peer.client()?;
    let begin = Instant::now();
    let mut batch = Vec::new();
    for key in 0..count {
        let name = format!("key:{key:012}").into_bytes();
        batch.push(vec![b"SET".to_vec(), name, vec![b'v'; usize::try_from(size)?]]);
        if batch.len() >= 64 || key + 1 == count {
            client.call_batch(&std::mem::take(&mut batch))?;
        }
    }
    Ok(begin.elapsed().as_secs_f64())
}

fn connect(port: u16) -> anyhow::Result<Client> {
    let endpoint = Endpoint::Tcp("127.0.0.1".to_owned(), port);
    let timeouts = Timeouts { request: Duration::from_secs(120), ..Timeouts::default() };
    Ok(Client::connect(&endpoint, &timeouts)?)
}

fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
