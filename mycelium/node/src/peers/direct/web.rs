//! Requests to a router's own web server, of which nothing is believed: one request a connection, to the
//! router's address and nowhere else, an answer of bounded size within a bounded time.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Largest answer, headers included. Descriptions have 2 to 20 KiB.
const ANSWER_SIZE_MAX: u64 = 64 << 10;
/// How long a request may take, from the connection to the last byte.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest path.
const PATH_SIZE_MAX: usize = 256;

/// Something at a router: `http://ADDRESS:PORT/PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    address: SocketAddrV4,
    path: String,
}

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum WebError {
    /// It can't be had.
    #[error("the router's web server does not answer")]
    Silent(#[from] io::Error),
    /// It is no answer.
    #[error("the router's web server answers what makes no sense")]
    Nonsense,
    /// It is too long.
    #[error("the router's web server answers more than {ANSWER_SIZE_MAX} bytes")]
    Large,
}

impl Place {
    /// The place that a URL names, if it is at the router itself and safe to repeat.
    pub(super) fn parse(url: &str, router: Ipv4Addr) -> Option<Self> {
        let (scheme, rest) = url.split_at_checked(7)?;
        if !scheme.eq_ignore_ascii_case("http://") {
            return None;
        }
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = authority.split_once(':').unwrap_or((authority, "80"));
        let is_number = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        let port = port.parse().ok().filter(|port: &u16| is_number && *port != 0)?;
        let ip: Ipv4Addr = host.parse().ok()?;
        let path = if path.is_empty() { "/" } else { path };
        (ip == router && is_fit(path))
            .then(|| Self { address: SocketAddrV4::new(ip, port), path: path.to_owned() })
    }

    /// What a description at this place means by a URL, which may be a path alone.
    pub(super) fn join(&self, url: &str) -> Option<Self> {
        if url.contains("://") {
            return Self::parse(url, *self.address.ip());
        }
        let path = match url.strip_prefix('/') {
            Some(_) => url.to_owned(),
            None => {
                let folder = self.path.rfind('/').map_or("", |end| &self.path[..end]);
                format!("{folder}/{url}")
            }
        };
        is_fit(&path).then(|| Self { path, ..self.clone() })
    }

    pub(super) async fn get(&self) -> Result<Answer, WebError> {
        self.ask("GET", "", "").await
    }

    /// Sends `body`, with more headers, each of which ends with a line.
    pub(super) async fn post(&self, headers: &str, body: &str) -> Result<Answer, WebError> {
        self.ask("POST", headers, body).await
    }

    async fn ask(&self, method: &str, headers: &str, body: &str) -> Result<Answer, WebError> {
        let (path, host, size) = (&self.path, self.address, body.len());
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\
             Content-Length: {size}\r\n{headers}\r\n{body}"
        );
        let exchange = async {
            let mut stream = TcpStream::connect(self.address).await?;
            stream.write_all(request.as_bytes()).await?;
            let mut answer = Vec::new();
            let mut answers = stream.take(ANSWER_SIZE_MAX + 1);
            // Who keeps the connection open although it said all has the request's time, no more.
            while !is_complete(&answer) && answers.read_buf(&mut answer).await? > 0 {}
            Ok::<_, io::Error>(answer)
        };
        let late = || io::Error::from(io::ErrorKind::TimedOut);
        let answer = timeout(PATIENCE, exchange).await.map_err(|_| late())??;
        if answer.len() as u64 > ANSWER_SIZE_MAX {
            return Err(WebError::Large);
        }
        parse(&answer).ok_or(WebError::Nonsense)
    }
}

/// Whether a path can be part of a request's first line.
fn is_fit(path: &str) -> bool {
    path.len() <= PATH_SIZE_MAX && path.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Headers and body of an answer whose headers are complete.
fn split(answer: &[u8]) -> Option<(&str, &[u8])> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    Some((std::str::from_utf8(&answer[..end]).ok()?, &answer[end + 4..]))
}

/// The value of a header; names are taken in any case.
pub(super) fn header<'a>(headers: &'a str, name: &str) -> Option<&'a str> {
    headers.lines().skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.trim().eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// Whether an answer says of itself that it is all there.
fn is_complete(answer: &[u8]) -> bool {
    let Some((headers, body)) = split(answer) else { return false };
    let length = header(headers, "content-length").and_then(|text| text.parse().ok());
    match length {
        Some(length) => body.len() >= length,
        None => is_chunked(headers) && unchunked(body).is_some(),
    }
}

fn is_chunked(headers: &str) -> bool {
    let coding = header(headers, "transfer-encoding");
    coding.is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"))
}

fn parse(answer: &[u8]) -> Option<Answer> {
    let (headers, body) = split(answer)?;
    let (version, rest) = headers.lines().next()?.split_once(' ')?;
    let status = rest.get(..3)?.parse().ok()?;
    if !version.starts_with("HTTP/1.") {
        return None;
    }
    let body = if is_chunked(headers) { unchunked(body)? } else { body.to_vec() };
    Some(Answer { status, body: String::from_utf8(body).ok()? })
}

/// A body that came in chunks (RFC 9112 section 7.1), if all of it is there.
fn unchunked(mut body: &[u8]) -> Option<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        let end = body.windows(2).position(|window| window == b"\r\n")?;
        let line = std::str::from_utf8(&body[..end]).ok()?;
        let digits = line.split(';').next().unwrap_or_default().trim();
        if digits.starts_with('+') {
            return None;
        }
        let size = usize::from_str_radix(digits, 16).ok()?;
        let rest = &body[end + 2..];
        if size == 0 {
            return Some(whole);
        }
        whole.extend(rest.get(..size)?);
        body = rest.get(size..)?.strip_prefix(b"\r\n")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 1);

    #[test]
    fn places_are_at_the_router_alone() {
        let place = |url| Place::parse(url, ROUTER);
        let good = place("http://192.168.0.1:5000/a/desc.xml").unwrap();
        assert_eq!(good.address, SocketAddrV4::new(ROUTER, 5000));
        assert_eq!(place("HTTP://192.168.0.1").unwrap().path, "/");
        let joined = |url| good.join(url).map(|place| (place.address.port(), place.path));
        assert_eq!(joined("/ctl"), Some((5000, "/ctl".to_owned())));
        assert_eq!(joined("ctl?x"), Some((5000, "/a/ctl?x".to_owned())));
        assert_eq!(joined("http://192.168.0.1:80/c"), Some((80, "/c".to_owned())));
        let long = format!("http://192.168.0.1/{}", "a".repeat(PATH_SIZE_MAX));
        for bad in [
            "http://192.168.0.2/",
            "http://192.168.0.1@192.168.0.2/",
            "http://router/",
            "https://192.168.0.1/",
            "http://192.168.0.1:0/",
            "http://192.168.0.1:+80/",
            "http://192.168.0.1:/",
            "http://192.168.0.1/a b",
            "http://192.168.0.1/a\r\nX: y",
            "http://",
            "é",
            &long,
        ] {
            assert_eq!(place(bad), None, "{bad}");
            assert!(!bad.contains("://") || good.join(bad).is_none(), "{bad}");
        }
        assert_eq!(good.join("a b"), None);
    }

    #[test]
    fn answers_are_read_by_length_by_chunks_or_to_the_end() {
        let body = |answer: &str| parse(answer.as_bytes()).map(|answer| answer.body);
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n3;x\r\nabc\r\n1\r\nd\r\n0\r\n\r\n";
        assert_eq!(body(chunked).as_deref(), Some("abcd"));
        assert!(is_complete(chunked.as_bytes()) && !is_complete(&chunked.as_bytes()[..60]));
        let long = "HTTP/1.1 500 Error\r\ncontent-length:2\r\n\r\nab";
        assert_eq!(parse(long.as_bytes()).map(|answer| answer.status), Some(500));
        assert!(is_complete(long.as_bytes()) && !is_complete(&long.as_bytes()[..long.len() - 1]));
        assert_eq!(body("HTTP/1.0 200 OK\r\n\r\nall").as_deref(), Some("all"));
        for bad in [
            "",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/2 200 OK\r\n\r\n",
            "HTTP/1.1 OK\r\n\r\n",
            "HTTP/1.1 2é0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nabc",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n+1\r\na\r\n0\r\n\r\n",
        ] {
            assert!(body(bad).is_none(), "{bad}");
        }
    }
}
