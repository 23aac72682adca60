//! What a client asks first, and the answers that are not a terminal: HTTP/1.1, as much of it as that
//! takes.
//!
//! | request | answer |
//! |---|---|
//! | `GET /` | the page, which is a terminal |
//! | `GET /terminal.js` | its program |
//! | `GET /ws` with `Upgrade: websocket` | the terminal's bytes, both ways |
//!
//! Paths, and that output comes in binary messages while keys may come in either kind, are as existing
//! clients know them. A query may have `ticket=…`.

use tungstenite::handshake::derive_accept_key;

use super::door::check_origin;

/// Bytes of a request's head.
pub(super) const HEAD_SIZE_MAX: usize = 8 << 10;
/// Headers of a request.
const HEADER_COUNT_MAX: usize = 64;
/// The page, and what it runs.
const PAGE: &str = include_str!("page.html");
const SCRIPT: &str = include_str!("terminal.js");
/// Nothing from elsewhere is loaded, nothing is kept, and no address with a ticket is told to others.
const SAFELY: &str = "Content-Security-Policy: default-src 'none'; script-src 'self'; style-src \
                      'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'\r\n\
                      X-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n\
                      Cache-Control: no-store\r\n";

/// What to do about a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The head is not whole yet.
    More,
    /// Send this, and no more.
    Answer(Vec<u8>),
    /// A terminal, if the door agrees.
    Terminal(Upgrade),
}

/// A request for a terminal.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Upgrade {
    /// The ticket, if one is shown.
    pub(super) ticket: Option<String>,
    /// What to answer when it is granted.
    pub(super) answer: Vec<u8>,
    /// Bytes of the head; what follows is the terminal's.
    pub(super) head_size: usize,
}

/// Reads what came so far.
pub(super) fn read(bytes: &[u8]) -> Wanted {
    let mut headers = [httparse::EMPTY_HEADER; HEADER_COUNT_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let head_size = match request.parse(bytes) {
        Ok(httparse::Status::Complete(size)) if size <= HEAD_SIZE_MAX => size,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_SIZE_MAX => return Wanted::More,
        Ok(_) => return refused("431 Request Header Fields Too Large", "the request is too long"),
        Err(error) => return refused("400 Bad Request", &error.to_string()),
    };
    if request.method != Some("GET") {
        return refused("405 Method Not Allowed", "only GET is understood");
    }
    let target = request.path.unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    match path {
        "/" | "/index.html" => Wanted::Answer(answer("200 OK", "text/html; charset=utf-8", PAGE)),
        "/terminal.js" => {
            Wanted::Answer(answer("200 OK", "text/javascript; charset=utf-8", SCRIPT))
        }
        "/ws" => upgrade(&request, query, head_size),
        _ => refused("404 Not Found", "there is a terminal at / and nothing else"),
    }
}

fn upgrade(request: &httparse::Request<'_, '_>, query: &str, head_size: usize) -> Wanted {
    let header = |name: &str| {
        let found = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        found.and_then(|header| std::str::from_utf8(header.value).ok()).map(str::trim)
    };
    let has = |name: &str, word: &str| {
        let mut words = header(name).into_iter().flat_map(|value| value.split(','));
        words.any(|found| found.trim().eq_ignore_ascii_case(word))
    };
    if !has("Upgrade", "websocket") || !has("Connection", "upgrade") {
        return refused("426 Upgrade Required", "the terminal is a websocket");
    }
    // RFC 6455 section 4.2.1: 16 bytes in base64, and version 13.
    let key = header("Sec-WebSocket-Key").filter(|key| key.len() == 24);
    let (Some(key), Some("13")) = (key, header("Sec-WebSocket-Version")) else {
        return refused("400 Bad Request", "Sec-WebSocket-Key or -Version: expected 13's");
    };
    if let Err(reason) = check_origin(header("Host"), header("Origin")) {
        return refused("403 Forbidden", reason);
    }
    let ticket = { query.split('&') }.find_map(|pair| pair.strip_prefix("ticket="));
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {}\r\n\r\n",
        derive_accept_key(key.as_bytes())
    );
    let (ticket, answer) = (ticket.map(str::to_owned), answer.into_bytes());
    Wanted::Terminal(Upgrade { ticket, answer, head_size })
}

/// An answer that says no.
pub(super) fn refusal(status: &str, reason: &str) -> Vec<u8> {
    answer(status, "text/plain; charset=utf-8", &format!("{reason}\n"))
}

fn refused(status: &str, reason: &str) -> Wanted {
    Wanted::Answer(refusal(status, reason))
}

fn answer(status: &str, kind: &str, body: &str) -> Vec<u8> {
    let size = body.len();
    format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Type: {kind}\r\n\
         Content-Length: {size}\r\n{SAFELY}\r\n{body}"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HANDSHAKE: &str = "GET /ws?ticket=abc HTTP/1.1\r\nHost: 10.20.2.1:20005\r\n\
        Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

    fn status(request: &str) -> String {
        match read(request.as_bytes()) {
            Wanted::Answer(answer) => {
                let text = String::from_utf8(answer).unwrap();
                text.split(' ').nth(1).unwrap().to_owned()
            }
            other => format!("{other:?}"),
        }
    }

    /// RFC 6455 section 1.3.
    #[test]
    fn a_terminal_is_asked_for_as_the_standard_says() {
        let Wanted::Terminal(upgrade) = read(format!("{HANDSHAKE}xyz").as_bytes()) else {
            panic!("no terminal")
        };
        assert_eq!((upgrade.ticket.as_deref(), upgrade.head_size), (Some("abc"), HANDSHAKE.len()));
        let answer = String::from_utf8(upgrade.answer).unwrap();
        assert!(answer.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"));
        for (from, to, expected) in [
            ("Upgrade: WebSocket", "Upgrade: h2c", "426"),
            ("Version: 13", "Version: 8", "400"),
            ("Host: 10.20.2.1:20005", "Host: evil.example", "403"),
            ("\r\n\r\n", "\r\nOrigin: https://evil.example\r\n\r\n", "403"),
        ] {
            assert_eq!(status(&HANDSHAKE.replace(from, to)), expected, "{to}");
        }
    }

    #[test]
    fn there_is_a_page_and_nothing_else() {
        assert_eq!(status("GET / HTTP/1.1\r\n\r\n"), "200");
        assert_eq!(status("GET /terminal.js HTTP/1.1\r\nHost: x\r\n\r\n"), "200");
        assert_eq!(status("GET /../etc/passwd HTTP/1.1\r\n\r\n"), "404");
        assert_eq!(status("POST / HTTP/1.1\r\n\r\n"), "405");
        assert_eq!(status("SSH-2.0-x\r\n\r\n"), "400");
        assert_eq!(status(&format!("GET / HTTP/1.1\r\nx: {}", "y".repeat(9000))), "431");
        let long = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(9000));
        assert_eq!(status(&long), "431");
        assert_eq!(read(b"GET / HT"), Wanted::More);
    }

    proptest! {
        #[test]
        fn whatever_comes_is_answered_or_waited_for(bytes: Vec<u8>) {
            match read(&bytes) {
                Wanted::More => prop_assert!(bytes.len() < HEAD_SIZE_MAX),
                Wanted::Answer(answer) => prop_assert!(answer.starts_with(b"HTTP/1.1 ")),
                Wanted::Terminal(upgrade) => prop_assert!(upgrade.head_size <= bytes.len()),
            }
        }
    }
}
