//! HTTP/1.1, as much as an API needs: bytes to requests, responses to bytes. No I/O.
//!
//! Bodies have a `Content-Length`; there are no chunks, no upgrades but the console's, and no
//! header that changes what a route does. What is outside of that is refused with the status that
//! says so, and the connection is closed, since where the next request begins is then unknown.

use std::ops::Range;

use vmm_spec::api::{CONSOLE_PROTOCOL, ErrorBody};

/// Largest head of a request (request line and headers), in bytes.
pub(super) const HEAD_SIZE_MAX: usize = 8 << 10;
/// Most headers of a request.
pub(super) const HEADER_COUNT_MAX: usize = 32;
/// Largest body of a request, in bytes.
pub(super) const BODY_SIZE_MAX: usize = 64 << 10;

/// A request whose bytes are all there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) target: String,
    /// Where its body lies in the bytes that were parsed.
    pub(super) body: Range<usize>,
    /// Whether the connection stays open for another.
    pub(super) keep_alive: bool,
    /// Whether it asks for a console's raw stream.
    pub(super) upgrade: bool,
}

/// A request that can't be read: the status and the words of the answer, after which the connection
/// is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadRequest {
    pub(super) status: u16,
    pub(super) error: &'static str,
}

const fn bad(status: u16, error: &'static str) -> BadRequest {
    BadRequest { status, error }
}

/// Reads the request at the beginning of `input`. `None` when there is more to come.
pub(super) fn parse(input: &[u8]) -> Result<Option<Request>, BadRequest> {
    let mut headers = [httparse::EMPTY_HEADER; HEADER_COUNT_MAX];
    let mut head = httparse::Request::new(&mut headers);
    let size = match head.parse(&input[..input.len().min(HEAD_SIZE_MAX)]) {
        Ok(httparse::Status::Complete(size)) => size,
        Ok(httparse::Status::Partial) if input.len() < HEAD_SIZE_MAX => return Ok(None),
        Ok(httparse::Status::Partial) => return Err(bad(431, "the headers have more than 8 KiB")),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(bad(431, "there are more than 32 headers"));
        }
        Err(httparse::Error::Version) => return Err(bad(505, "this is an HTTP/1.1 server")),
        Err(_) => return Err(bad(400, "this is no HTTP request")),
    };
    let mut read = Head::new(head.version.unwrap_or_default());
    for header in head.headers.iter() {
        read.header(header.name, header.value)?;
    }
    let body_size = read.finish()?;
    let end = size + body_size;
    if input.len() < end {
        return Ok(None);
    }
    Ok(Some(Request {
        method: head.method.unwrap_or_default().to_owned(),
        target: head.path.unwrap_or_default().to_owned(),
        body: size..end,
        keep_alive: read.keep_alive,
        upgrade: read.connection_upgrade && read.upgrade,
    }))
}

/// What the headers said so far.
struct Head {
    is_1_1: bool,
    keep_alive: bool,
    content_length: Option<usize>,
    host_count: usize,
    connection_upgrade: bool,
    upgrade: bool,
}

impl Head {
    const fn new(minor_version: u8) -> Self {
        let is_1_1 = minor_version == 1;
        Self {
            is_1_1,
            keep_alive: is_1_1,
            content_length: None,
            host_count: 0,
            connection_upgrade: false,
            upgrade: false,
        }
    }

    fn header(&mut self, name: &str, value: &[u8]) -> Result<(), BadRequest> {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        if is("content-length") {
            let size = parse_size(value)?;
            // RFC 9110 §8.6: two that differ are an attack or a fault.
            if self.content_length.is_some_and(|earlier| earlier != size) {
                return Err(bad(400, "there are two lengths of the body"));
            }
            self.content_length = Some(size);
        } else if is("transfer-encoding") {
            return Err(bad(501, "bodies need a Content-Length; chunks are not understood"));
        } else if is("expect") {
            return Err(bad(417, "expectations are not met here; send the body along"));
        } else if is("host") {
            self.host_count += 1;
        } else if is("upgrade") {
            self.upgrade = value.eq_ignore_ascii_case(CONSOLE_PROTOCOL.as_bytes());
        } else if is("connection") {
            for token in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                self.connection_upgrade |= token.eq_ignore_ascii_case(b"upgrade");
                if token.eq_ignore_ascii_case(b"close") {
                    self.keep_alive = false;
                }
            }
        }
        Ok(())
    }

    /// The size of the body.
    fn finish(&self) -> Result<usize, BadRequest> {
        // RFC 9112 §3.2.
        if self.host_count > 1 || (self.is_1_1 && self.host_count == 0) {
            return Err(bad(400, "a request has one Host header"));
        }
        Ok(self.content_length.unwrap_or(0))
    }
}

fn parse_size(value: &[u8]) -> Result<usize, BadRequest> {
    let is_number = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(value).ok().filter(|_| is_number);
    let text = text.ok_or(bad(400, "the Content-Length is no number"))?;
    // A number that doesn't fit is too large all the more.
    let size = text.parse::<usize>().unwrap_or(usize::MAX);
    if size > BODY_SIZE_MAX {
        return Err(bad(413, "the body has more than 64 KiB"));
    }
    Ok(size)
}

/// What a request is answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Response {
    pub(super) status: u16,
    /// Headers besides those that every response has.
    pub(super) headers: Vec<(&'static str, &'static str)>,
    pub(super) body: Vec<u8>,
}

impl Response {
    /// Nothing more to say.
    pub(super) const fn empty(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new() }
    }

    /// A body of this type.
    pub(super) fn new(status: u16, content_type: &'static str, body: Vec<u8>) -> Self {
        Self { status, headers: vec![("Content-Type", content_type)], body }
    }

    /// A body of JSON.
    pub(super) fn json(status: u16, body: &impl serde::Serialize) -> Self {
        match serde_json::to_vec(body) {
            Ok(mut body) => {
                body.push(b'\n');
                Self::new(status, "application/json", body)
            }
            // A path that isn't UTF-8, which no verified description has.
            Err(error) => {
                let error = format!("the answer can't be said in JSON: {error}");
                Self::new(500, "text/plain", error.into_bytes())
            }
        }
    }

    /// What went wrong, and what to try.
    pub(super) fn error(
        status: u16,
        error: impl Into<String>,
        hint: Option<impl Into<String>>,
    ) -> Self {
        let body = ErrorBody { error: error.into(), hint: hint.map(Into::into) };
        Self::json(status, &body)
    }

    /// The bytes that go over the connection.
    pub(super) fn render(&self, keep_alive: bool) -> Vec<u8> {
        let mut head = format!("HTTP/1.1 {} {}\r\n", self.status, reason(self.status));
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        // RFC 9110 §8.6: neither of these has a body, nor a length of one.
        if !matches!(self.status, 101 | 204) {
            head.push_str(&format!("Content-Length: {}\r\n", self.body.len()));
        }
        if !keep_alive && self.status != 101 {
            head.push_str("Connection: close\r\n");
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

impl From<BadRequest> for Response {
    fn from(bad: BadRequest) -> Self {
        Self::error(bad.status, bad.error, None::<String>)
    }
}

const fn reason(status: u16) -> &'static str {
    match status {
        101 => "Switching Protocols",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Content Too Large",
        417 => "Expectation Failed",
        426 => "Upgrade Required",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "Unknown",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn status(input: &str) -> u16 {
        parse(input.as_bytes()).unwrap_err().status
    }

    fn request(input: &str) -> Request {
        parse(input.as_bytes()).unwrap().unwrap()
    }

    #[test]
    fn a_request_ends_with_its_body() {
        let input = "PUT /balloon HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhelloGET";
        let request = request(input);
        assert_eq!((request.method.as_str(), request.target.as_str()), ("PUT", "/balloon"));
        assert_eq!(&input[request.body.clone()], "hello");
        assert!(request.keep_alive && !request.upgrade);
        for end in 0..request.body.end {
            assert_eq!(parse(&input.as_bytes()[..end]), Ok(None), "{end}");
        }
    }

    #[test]
    fn connections_stay_open_by_default() {
        assert!(!request("GET / HTTP/1.0\r\n\r\n").keep_alive);
        assert!(!request("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").keep_alive);
        let console = "GET /console HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\n\
                       Upgrade: vmm-console\r\n\r\n";
        assert!(request(console).upgrade);
        assert!(!request(&console.replace("vmm-console", "websocket")).upgrade);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let with = |header: &str| format!("PUT / HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n");
        assert_eq!(status("hello\r\n\r\n"), 400);
        assert_eq!(status("\u{1}\u{2}"), 400);
        assert_eq!(status("GET / HTTP/2.0\r\n\r\n"), 505);
        assert_eq!(status("GET / HTTP/1.1\r\n\r\n"), 400);
        assert_eq!(status(&with("Host: y")), 400);
        assert_eq!(status(&with("Transfer-Encoding: chunked")), 501);
        assert_eq!(status(&with("Expect: 100-continue")), 417);
        for bad in ["-1", "+1", "1x", "", "0x10", "1 1"] {
            assert_eq!(status(&with(&format!("Content-Length: {bad}"))), 400, "{bad}");
        }
        assert_eq!(status(&with("Content-Length: 1\r\nContent-Length: 2")), 400);
        assert_eq!(status(&with("Content-Length: 65537")), 413);
        assert_eq!(status(&with("Content-Length: 99999999999999999999999")), 413);
        assert_eq!(status(&with(&"a: b\r\n".repeat(40))), 431);
        assert_eq!(status(&with(&format!("a: {}", "x".repeat(9000)))), 431);
        assert_eq!(status(&"x".repeat(HEAD_SIZE_MAX)), 431);
    }

    #[test]
    fn responses_say_how_long_they_are() {
        let render = |response: Response, keep| String::from_utf8(response.render(keep)).unwrap();
        assert_eq!(render(Response::empty(204), true), "HTTP/1.1 204 No Content\r\n\r\n");
        assert_eq!(
            render(Response::error(404, "no", Some("yes")), false),
            "HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 28\r\n\
             Connection: close\r\n\r\n{\"error\":\"no\",\"hint\":\"yes\"}\n"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_request_or_refused(input in proptest::collection::vec(any::<u8>(), 0..512)) {
            if let Ok(Some(request)) = parse(&input) {
                prop_assert!(request.body.end <= input.len());
            }
        }

        /// Where a request is cut does not matter.
        #[test]
        fn half_a_request_is_never_refused(
            method in "[A-Z]{1,8}", target in "/[a-z0-9/]{0,20}", body in "[a-z]{0,40}", cut: prop::sample::Index,
        ) {
            let size = body.len();
            let input = format!("{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n{body}");
            let whole = parse(input.as_bytes()).unwrap().unwrap();
            prop_assert_eq!(&input[whole.body.clone()], body);
            prop_assert_eq!(parse(&input.as_bytes()[..cut.index(input.len())]), Ok(None));
        }
    }
}
