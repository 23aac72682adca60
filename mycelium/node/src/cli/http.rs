//! A small HTTP client for the node's own API: one request, one connection.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::Value;

/// Largest answer: the largest message in base64, and something around it.
const ANSWER_SIZE_MAX: u64 = 32 << 20;
/// How long a connection and an answer may take, on top of what the request itself waits for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks the node at one address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client(pub(crate) SocketAddr);

/// Where the API is when nobody says.
pub(crate) fn default_address() -> SocketAddr {
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
#[error("no node answers at {address}")]
pub(crate) struct NoNode {
    address: SocketAddr,
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
    /// Gets JSON.
    pub(crate) fn get(self, path: &str) -> anyhow::Result<Value> {
        let answer = self.ask("GET", path, None, Duration::ZERO)?.check()?;
        serde_json::from_slice(&answer.body).context("the node's answer is no JSON")
    }

    /// Sends a request to `/api/v1`, which the node itself may take `wait` to answer.
    pub(crate) fn ask(
        self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        wait: Duration,
    ) -> anyhow::Result<Answer> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let failed = |source| NoNode { address: self.0, source };
        let mut stream = TcpStream::connect_timeout(&self.0, PATIENCE).map_err(failed)?;
        stream.set_read_timeout(Some(PATIENCE + wait))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let request = format!(
            "{method} /api/v1{path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.0,
            body.len(),
        );
        stream.write_all(request.as_bytes()).map_err(failed)?;
        let mut bytes = Vec::new();
        stream.take(ANSWER_SIZE_MAX).read_to_end(&mut bytes).map_err(failed)?;
        parse(&bytes)
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
