//! A WebSocket (RFC 6455) under a link: the link's stream of packets, cut into binary messages.
//!
//! Where a message ends means nothing, so a proxy may cut and join them. The WebSocket may lie in TLS
//! (`wss`), whose certificate nobody looks at: as on every link, TLS here hides what passes and proves no
//! identity. Like OpenSSL's session ([`super::tls`]), the socket is behind a lock; senders and the
//! reader of a link take turns.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use openssl::ssl::{
    Ssl, SslContext, SslMethod, SslMode, SslOptions, SslStream, SslVerifyMode, SslVersion,
};
use tungstenite::handshake::server::{Callback, ErrorResponse, Request, Response};
use tungstenite::handshake::{HandshakeError, HandshakeRole, MidHandshake};
use tungstenite::http::StatusCode;
use tungstenite::protocol::WebSocketConfig;
use tungstenite::{Bytes, Error, Message, WebSocket};

use crate::link::tls::{self, RawSocket, Side};
use crate::sys;

/// Path that a node's WebSocket has, so that a web server can tell it from the rest of a site.
pub(crate) const PATH: &str = "/mycelium";
/// Largest message that is sent.
const MESSAGE_SIZE: usize = 64 << 10;
/// Largest message that is taken: a proxy may have joined some.
const MESSAGE_SIZE_MAX: usize = 1 << 20;
/// What is read from the connection at once.
const READ_SIZE: usize = 64 << 10;
/// What waits below the link's own queue: a message, what is around it, and an answer to a ping.
const WRITE_SIZE_MAX: usize = 2 * MESSAGE_SIZE;

/// A WebSocket whose handshake is done.
pub(crate) struct WebSocketSession(Mutex<Session>);

struct Session {
    socket: WebSocket<Lower>,
    /// Of a message that was larger than the buffer it was read into.
    left: Bytes,
}

/// What a WebSocket lies on. Never blocks.
pub(crate) enum Lower {
    Plain(RawSocket),
    Tls(SslStream<RawSocket>),
}

impl WebSocketSession {
    /// Asks a server at `host` (a name or address, and a port) for a WebSocket. Must be called inside a
    /// runtime; to be bounded in time by the caller.
    pub(crate) async fn connect(host: &str, lower: Lower, socket: &OwnedFd) -> io::Result<Self> {
        let url = format!("ws://{host}{PATH}");
        let step = tungstenite::client::client_with_config(url, lower, Some(config()));
        let (socket, _response) = finish(step, socket).await?;
        Ok(Self::new(socket))
    }

    /// Takes a client's request for a WebSocket. To be bounded in time by the caller.
    pub(crate) async fn accept(socket: &OwnedFd) -> io::Result<Self> {
        Self::accept_on(Lower::plain(socket)?, socket).await
    }

    async fn accept_on(lower: Lower, socket: &OwnedFd) -> io::Result<Self> {
        let step = tungstenite::accept_hdr_with_config(lower, OwnPath, Some(config()));
        Ok(Self::new(finish(step, socket).await?))
    }

    fn new(socket: WebSocket<Lower>) -> Self {
        Self(Mutex::new(Session { socket, left: Bytes::new() }))
    }

    /// Reads what is there; nothing at the end.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut session = self.session();
        while session.left.is_empty() {
            match session.socket.read() {
                Ok(Message::Binary(bytes)) => session.left = bytes,
                // Pings are answered below.
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => {}
                Ok(Message::Text(_)) => {
                    return Err(io::Error::other("a text message: no node of ours sends one"));
                }
                Ok(Message::Close(_)) | Err(Error::ConnectionClosed | Error::AlreadyClosed) => {
                    return Ok(0);
                }
                Err(Error::Protocol(
                    tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
                )) => return Ok(0),
                Err(error) => return Err(into_io(error)),
            }
        }
        let size = session.left.len().min(buffer.len());
        buffer[..size].copy_from_slice(&session.left.split_to(size));
        Ok(size)
    }

    /// Writes a message's worth. What the connection did not take is held, and counts as written.
    pub(crate) fn transmit(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut session = self.session();
        if !session.flush()? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let part = bytes.get(..MESSAGE_SIZE).unwrap_or(bytes);
        let message = Message::Binary(Bytes::copy_from_slice(part));
        match session.socket.write(message).map_err(into_io) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(part.len()),
        }
    }

    /// Writes what is held. Whether nothing is any more.
    pub(crate) fn flush(&self) -> io::Result<bool> {
        self.session().flush()
    }

    fn session(&self) -> MutexGuard<'_, Session> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    fn flush(&mut self) -> io::Result<bool> {
        match self.socket.flush().map_err(into_io) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Lower {
    /// The connection itself.
    pub(crate) fn plain(socket: &OwnedFd) -> io::Result<Self> {
        Ok(Self::Plain(RawSocket(socket.try_clone()?)))
    }

    /// TLS on the connection, to a server of this name (or address). Must be called inside a runtime; to
    /// be bounded in time by the caller.
    pub(crate) async fn tls(socket: &OwnedFd, name: &str) -> io::Result<Self> {
        let context = client_context()?;
        let mut ssl = Ssl::new(&context)?;
        if name.parse::<std::net::IpAddr>().is_err() {
            ssl.set_hostname(name)?;
        }
        Ok(Self::Tls(tls::handshake(ssl, socket, Side::Client).await?))
    }
}

impl Read for Lower {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Lower {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

/// Refuses what asks for another path.
struct OwnPath;

impl Callback for OwnPath {
    fn on_request(self, request: &Request, response: Response) -> Result<Response, ErrorResponse> {
        if request.uri().path() == PATH {
            return Ok(response);
        }
        let mut refusal = ErrorResponse::new(Some(format!("the path is {PATH}\n")));
        *refusal.status_mut() = StatusCode::NOT_FOUND;
        Err(refusal)
    }
}

/// Takes a handshake to its end.
async fn finish<R: HandshakeRole>(
    mut step: Result<R::FinalResult, HandshakeError<R>>,
    socket: &OwnedFd,
) -> io::Result<R::FinalResult> {
    let wait = sys::watch(socket.try_clone()?)?;
    loop {
        let middle: MidHandshake<R> = match step {
            Ok(done) => return Ok(done),
            Err(HandshakeError::Failure(error)) => return Err(into_io(error)),
            Err(HandshakeError::Interrupted(middle)) => middle,
        };
        // What a handshake writes is small and fits: it waits for the other side.
        wait.readable().await?.clear_ready();
        step = middle.handshake();
    }
}

fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_SIZE)
        .write_buffer_size(0)
        .max_write_buffer_size(WRITE_SIZE_MAX)
        .max_message_size(Some(MESSAGE_SIZE_MAX))
        .max_frame_size(Some(MESSAGE_SIZE_MAX))
}

/// TLS as browsers speak it, but for the certificate, which proves nothing that matters here.
fn client_context() -> io::Result<SslContext> {
    let mut builder = SslContext::builder(SslMethod::tls_client())?;
    builder.set_mode(
        SslMode::AUTO_RETRY | SslMode::ACCEPT_MOVING_WRITE_BUFFER | SslMode::ENABLE_PARTIAL_WRITE,
    );
    builder.set_options(SslOptions::NO_COMPRESSION);
    builder.set_verify(SslVerifyMode::NONE);
    builder.set_min_proto_version(Some(SslVersion::TLS1_2))?;
    builder.set_alpn_protos(b"\x08http/1.1")?;
    Ok(builder.build())
}

fn into_io(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    fn sockets() -> (OwnedFd, OwnedFd) {
        let (a, b) = UnixStream::pair().unwrap();
        for end in [&a, &b] {
            end.set_nonblocking(true).unwrap();
        }
        (a.into(), b.into())
    }

    async fn joined() -> (WebSocketSession, WebSocketSession, (OwnedFd, OwnedFd)) {
        let (client, server) = sockets();
        let lower = Lower::plain(&client).unwrap();
        let (near, far) = tokio::join!(
            WebSocketSession::connect("node.example.org:80", lower, &client),
            WebSocketSession::accept(&server),
        );
        (near.unwrap(), far.unwrap(), (client, server))
    }

    fn read_all(from: &WebSocketSession, into: &mut Vec<u8>) {
        let mut buffer = vec![0; 1000];
        while let Ok(size @ 1..) = from.receive(&mut buffer) {
            into.extend_from_slice(&buffer[..size]);
        }
    }

    #[tokio::test]
    async fn bytes_arrive_in_order_though_the_socket_takes_few_at_once() {
        let (near, far, _sockets) = joined().await;
        for (from, to) in [(&near, &far), (&far, &near)] {
            let sent: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
            let (mut received, mut at, mut has_waited) = (Vec::new(), 0, false);
            while at < sent.len() {
                match from.transmit(&sent[at..]) {
                    Ok(size) => at += size,
                    Err(error) => {
                        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                        has_waited = true;
                        read_all(to, &mut received);
                    }
                }
            }
            while !from.flush().unwrap() {
                read_all(to, &mut received);
            }
            read_all(to, &mut received);
            assert!(has_waited && received == sent, "{} of {}", received.len(), sent.len());
        }
    }

    /// What stands in front of a node for `wss`, with a certificate that nobody vouches for.
    fn server_context() -> SslContext {
        let certified =
            rcgen::generate_simple_self_signed(["node.example.org".to_owned()]).unwrap();
        let certificate = openssl::x509::X509::from_der(certified.cert.der()).unwrap();
        let key = certified.signing_key.serialize_der();
        let key = openssl::pkey::PKey::private_key_from_der(&key).unwrap();
        let mut builder = SslContext::builder(SslMethod::tls_server()).unwrap();
        builder.set_certificate(&certificate).unwrap();
        builder.set_private_key(&key).unwrap();
        builder.build()
    }

    #[tokio::test]
    async fn tls_may_lie_below() {
        let (client, server) = sockets();
        let near = async {
            let lower = Lower::tls(&client, "node.example.org").await.unwrap();
            WebSocketSession::connect("node.example.org:443", lower, &client).await.unwrap()
        };
        let far = async {
            let context = server_context();
            let ssl = Ssl::new(&context).unwrap();
            let stream = tls::handshake(ssl, &server, Side::Server).await.unwrap();
            WebSocketSession::accept_on(Lower::Tls(stream), &server).await.unwrap()
        };
        let (near, far) = tokio::join!(near, far);
        for (from, to) in [(&near, &far), (&far, &near)] {
            assert_eq!(from.transmit(&[7; 5000]).unwrap(), 5000);
            assert!(from.flush().unwrap());
            let mut received = Vec::new();
            read_all(to, &mut received);
            assert_eq!(received, [7; 5000]);
        }
    }

    #[tokio::test]
    async fn a_ping_is_answered_and_an_end_is_an_end() {
        let (near, far, _sockets) = joined().await;
        near.session().socket.send(Message::Ping(Bytes::from_static(b"?"))).unwrap();
        let mut buffer = [0; 10];
        assert_eq!(far.receive(&mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(near.session().socket.read().unwrap(), Message::Pong(Bytes::from_static(b"?")));
        near.session().socket.close(None).unwrap();
        assert_eq!(far.receive(&mut buffer).unwrap(), 0);
        let (near, far, _sockets) = joined().await;
        near.session().socket.send(Message::text("hello")).unwrap();
        assert!(far.receive(&mut buffer).is_err());
    }

    #[tokio::test]
    async fn other_paths_and_other_protocols_are_refused() {
        for request in [
            "GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            "GET /mycelium HTTP/1.1\r\nhost: x\r\n\r\n",
            "\x01\x01\0\0",
        ] {
            let (client, server) = sockets();
            rustix::io::write(&client, request.as_bytes()).unwrap();
            rustix::net::shutdown(&client, rustix::net::Shutdown::Write).unwrap();
            let accepted = timeout(Duration::from_secs(5), WebSocketSession::accept(&server)).await;
            assert!(accepted.unwrap().is_err(), "{request:?}");
        }
    }
}
