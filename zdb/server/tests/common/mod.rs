//! The `zdb` program with folders of its own, and clients that speak in bytes.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use zdb_resp::reply::{self, Parsed, Reply};
use zdb_resp::{Limits, write};

/// How long a start, an end or a reply may take. Long, because the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running server.
pub(crate) struct Server {
    child: Child,
    folder: tempfile::TempDir,
    arguments: Vec<String>,
    pub(crate) port: u16,
}

/// Ports that the system gives to no client by itself: one of those could be in use, as the near end of
/// some test's connection, when the server comes to bind it.
const PORTS: std::ops::Range<u16> = 16_384..32_768;

/// A free port, another one each time. Another process may take it before the server does; then the
/// start fails.
fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let spread = std::process::id().wrapping_mul(97);
    loop {
        let number = spread.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port =
            PORTS.start + u16::try_from(number % u32::try_from(PORTS.len()).unwrap()).unwrap();
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

impl Server {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let arguments: Vec<String> = arguments.iter().map(|word| (*word).to_owned()).collect();
        let port = free_port();
        let child = spawn(folder.path(), port, &arguments);
        let mut server = Self { child, folder, arguments, port };
        server.wait_ready();
        server
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn connect(&self) -> Client {
        Client::connect(self.port)
    }

    /// Ends it by SIGTERM (well) or SIGKILL, and starts it again on the same folders.
    pub(crate) fn restart(&mut self, kill: bool) {
        self.stop(kill);
        self.resume();
    }

    /// Starts it again, when it has ended.
    pub(crate) fn resume(&mut self) {
        self.child = spawn(self.folder.path(), self.port, &self.arguments);
        self.wait_ready();
    }

    pub(crate) fn stop(&mut self, kill: bool) {
        let signal =
            if kill { rustix::process::Signal::KILL } else { rustix::process::Signal::TERM };
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(begin.elapsed() < PATIENCE, "the server does not end");
            std::thread::sleep(Duration::from_millis(2));
        };
        assert!(kill || status.success(), "the server ended with {status}");
    }

    /// Whether it still runs.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Resident memory, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
    }

    fn wait_ready(&mut self) {
        let begin = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(self.is_alive(), "the server ended instead of starting");
            assert!(begin.elapsed() < PATIENCE, "the server does not start");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(folder: &Path, port: u16, arguments: &[String]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_zdb"))
        .arg("--data")
        .arg(folder.join("data"))
        .arg("--index")
        .arg(folder.join("index"))
        .args(["--listen", "127.0.0.1", "--port", &port.to_string(), "--reserve", "1M"])
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// A client.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    input: Vec<u8>,
}

/// What a client receives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    Simple(String),
    Error(String),
    Integer(i64),
    Bulk(Vec<u8>),
    Nil,
    Array(Vec<Self>),
    /// The server hung up.
    Closed,
    /// Nothing came in time.
    Nothing,
}

impl From<Reply<'_>> for Received {
    fn from(reply: Reply<'_>) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match reply {
            Reply::Simple(bytes) => Self::Simple(text(bytes)),
            Reply::Error(bytes) => Self::Error(text(bytes)),
            Reply::Integer(number) => Self::Integer(number),
            Reply::Bulk(bytes) => Self::Bulk(bytes.to_vec()),
            Reply::Nil => Self::Nil,
            Reply::Array(elements) => Self::Array(elements.into_iter().map(Self::from).collect()),
        }
    }
}

impl Client {
    pub(crate) fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream, input: Vec::new() }
    }

    /// Sends bytes as they are. A server that hung up is noticed when reading.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    pub(crate) fn tell(&mut self, arguments: &[&[u8]]) {
        let mut bytes = Vec::new();
        write::request(&mut bytes, arguments);
        self.send(&bytes);
    }

    pub(crate) fn ask(&mut self, arguments: &[&[u8]]) -> Received {
        self.tell(arguments);
        self.receive()
    }

    /// The next reply.
    pub(crate) fn receive(&mut self) -> Received {
        let limits = Limits::default();
        loop {
            let parsed = reply::parse(&self.input, &limits).expect("the server speaks RESP");
            let wanted = match parsed {
                Parsed::Complete(reply, size) => {
                    let received = reply.into();
                    self.input.drain(..size);
                    return received;
                }
                Parsed::Incomplete(wanted) => wanted,
            };
            while self.input.len() < wanted {
                let mut buffer = vec![0; 256 * 1024];
                match self.stream.read(&mut buffer) {
                    Ok(0) => return Received::Closed,
                    Ok(count) => self.input.extend_from_slice(&buffer[..count]),
                    Err(error)
                        if matches!(
                            error.kind(),
                            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                        ) =>
                    {
                        return Received::Nothing;
                    }
                    Err(_) => return Received::Closed,
                }
            }
        }
    }
}

pub(crate) fn error(text: &str) -> Received {
    Received::Error(text.to_owned())
}

pub(crate) fn simple(text: &str) -> Received {
    Received::Simple(text.to_owned())
}

pub(crate) fn bulk(bytes: &[u8]) -> Received {
    Received::Bulk(bytes.to_vec())
}
