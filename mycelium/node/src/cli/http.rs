//! A small HTTP client for the node's own API, and for the control socket of a process with instances: one
//! request, one connection.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use mycelium_node::instances::settings::CONTROL_SOCKET;
use serde_json::Value;

/// Largest answer: the largest message in base64, and something around it.
const ANSWER_SIZE_MAX: u64 = 32 << 20;
/// How long a connection and an answer may take, on top of what the request itself waits for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whom to ask, in a process with instances
#[derive(Args)]
pub(crate) struct Target {
    /// Ask this instance of a process with --instances, by its control socket
    #[arg(long, value_name = "NAME", global = true, conflicts_with = "api_addr")]
    instance: Option<String>,
    /// Control socket of a process with --instances [default: /run/mycelium/control.sock]
    #[arg(long, value_name = "PATH", global = true)]
    pub(crate) control_socket: Option<PathBuf>,
}

/// Asks a node, or a process with instances.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    place: Place,
    /// What stands before each path.
    front: String,
}

/// Where an API is.
#[derive(Clone, Debug)]
enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// A connection.
trait Connection: Read + Write {}

impl Connection for TcpStream {}
impl Connection for UnixStream {}

/// Where the API is when nobody says.
fn default_address() -> SocketAddr {
    (std::net::Ipv4Addr::LOCALHOST, mycelium_node::api::HTTP_PORT).into()
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

/// Nobody answers there.
#[derive(Debug, thiserror::Error)]
#[error("no node answers at {place}")]
pub(crate) struct NoNode {
    place: String,
    /// At a control socket.
    is_socket: bool,
    #[source]
    source: io::Error,
}

/// The node says no.
#[derive(Debug, thiserror::Error)]
#[error("the node answers {status}{}{text}", if text.is_empty() { "" } else { ": " })]
pub(crate) struct Refused {
    pub(crate) status: u16,
    text: String,
}

impl Client {
    /// Of a node by its address, or of an instance by its name.
    pub(crate) fn of_node(target: &Target, address: Option<SocketAddr>) -> Self {
        match &target.instance {
            Some(name) => {
                let front = format!("/api/v1/instances/{}", encode(name));
                Self { place: target.socket(), front }
            }
            None => {
                let place = Place::Tcp(address.unwrap_or_else(default_address));
                Self { place, front: "/api/v1".to_owned() }
            }
        }
    }

    /// Of a process with instances.
    pub(crate) fn of_process(target: &Target) -> Self {
        Self { place: target.socket(), front: "/api/v1".to_owned() }
    }

    /// Gets JSON.
    pub(crate) fn get(&self, path: &str) -> anyhow::Result<Value> {
        let answer = self.ask("GET", path, None, Duration::ZERO)?.check()?;
        serde_json::from_slice(&answer.body).context("the node's answer is no JSON")
    }

    /// Sends a request, which the node itself may take `wait` to answer.
    pub(crate) fn ask(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        wait: Duration,
    ) -> anyhow::Result<Answer> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let host = match &self.place {
            Place::Tcp(address) => address.to_string(),
            Place::Unix(_) => "localhost".to_owned(),
        };
        let request = format!(
            "{method} {}{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.front,
            body.len(),
        );
        let is_socket = matches!(self.place, Place::Unix(_));
        let failed = |source| NoNode { place: self.place.to_string(), is_socket, source };
        let bytes = self.place.exchange(request.as_bytes(), wait).map_err(failed)?;
        parse(&bytes)
    }
}

impl NoNode {
    /// What a person can do about it.
    pub(crate) fn hint(&self) -> &'static str {
        if self.is_socket {
            "does a process with --instances run here? --control-socket says where its socket is"
        } else {
            "does a node run here? --api-addr says where its API is"
        }
    }
}

impl Target {
    fn socket(&self) -> Place {
        let socket = self.control_socket.clone();
        Place::Unix(socket.unwrap_or_else(|| PathBuf::from(CONTROL_SOCKET)))
    }
}

impl Place {
    fn connect(&self, wait: Duration) -> io::Result<Box<dyn Connection>> {
        let (read, write) = (Some(PATIENCE + wait), Some(PATIENCE));
        Ok(match self {
            Self::Tcp(address) => {
                let stream = TcpStream::connect_timeout(address, PATIENCE)?;
                stream.set_read_timeout(read)?;
                stream.set_write_timeout(write)?;
                Box::new(stream)
            }
            Self::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(read)?;
                stream.set_write_timeout(write)?;
                Box::new(stream)
            }
        })
    }

    fn exchange(&self, request: &[u8], wait: Duration) -> io::Result<Vec<u8>> {
        let mut stream = self.connect(wait)?;
        stream.write_all(request)?;
        let mut bytes = Vec::new();
        stream.take(ANSWER_SIZE_MAX).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

impl Answer {
    /// Itself, when the node did what it was asked.
    pub(crate) fn check(self) -> Result<Self, Refused> {
        if (200..300).contains(&self.status) {
            return Ok(self);
        }
        let text = String::from_utf8_lossy(&self.body).trim().to_owned();
        Err(Refused { status: self.status, text })
    }
}

fn parse(bytes: &[u8]) -> anyhow::Result<Answer> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
    let end = end.context("the node's answer has no end of headers")?;
    let head = std::str::from_utf8(&bytes[..end]).context("the node's headers are no text")?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
    let status = status.parse().with_context(|| format!("the node's status is {status:?}"))?;
    let is_chunked = lines.any(|line| line.to_ascii_lowercase().starts_with("transfer-encoding:"));
    if is_chunked {
        bail!("the answer comes in chunks: no node of ours is there");
    }
    Ok(Answer { status, body: bytes[end + 4..].to_vec() })
}

/// Text as a part of a path or a query (RFC 3986 §2.1).
pub(crate) fn encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_and_what_is_none_is_refused() {
        let answer = parse(b"HTTP/1.1 409 Conflict\r\nContent-Length: 2\r\n\r\nno").unwrap();
        assert_eq!((answer.status, &answer.body[..]), (409, &b"no"[..]));
        assert_eq!(answer.check().unwrap_err().to_string(), "the node answers 409: no");
        for bad in [
            "",
            "HTTP/1.1 200 OK\r\n",
            "junk\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn endpoints_become_parts_of_a_path() {
        assert_eq!(encode("tcp://[::1]:1"), "tcp%3A%2F%2F%5B%3A%3A1%5D%3A1");
    }
}
