//! Connections to servers that take logs: Redis and websockets.
//!
//! Each call has a time, and what a server says is read to a bound and then forgotten: that a reply came is
//! what counts. After an error a connection is of no more use.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tungstenite::protocol::WebSocketConfig;
use tungstenite::{Message, WebSocket};

use super::names::resolve;
use super::target::{Host, Kind, Target, check_address};

/// How long a connection, a piece or a reply may take.
const CALL_TIME_MAX: Duration = Duration::from_secs(10);
/// Bytes of a reply's line.
const REPLY_SIZE_MAX: usize = 512;
/// Bytes of a websocket's message that a server sends us.
const MESSAGE_SIZE_MAX: usize = 4096;
/// Bytes that wait to be sent: more than a compressed piece has.
const OUTPUT_SIZE_MAX: usize = 128 << 10;
/// Messages of a server that are passed over at a time.
const MESSAGE_COUNT_MAX: usize = 64;

/// Why a server did not take something.
#[derive(Debug, thiserror::Error)]
pub(super) enum SinkError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the server has no address")]
    NoAddress,
    #[error("the server's address {0} {1}")]
    Forbidden(IpAddr, &'static str),
    #[error("the server says no to {0}")]
    Refused(&'static str),
    #[error("the server says something that is no reply")]
    Nonsense,
    #[error("the server's certificate, or its name: {0}")]
    Tls(rustls::Error),
    #[error("the server's websocket: {0}")]
    Websocket(&'static str),
}

/// A connection.
pub(super) enum Sink {
    Redis { stream: TcpStream, channel: String },
    Websocket(Box<WebSocket<Stream>>),
}

/// With or without TLS.
pub(super) enum Stream {
    Plain(TcpStream),
    Secure(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// What secure connections are checked with: the authorities that browsers know.
pub(super) fn tls() -> anyhow::Result<Arc<ClientConfig>> {
    let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    trusting(roots)
}

fn trusting(roots: RootCertStore) -> anyhow::Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions()?;
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}

impl Sink {
    /// Connects, and logs in.
    pub(super) fn connect(
        target: &Target,
        name_servers: &[IpAddr],
        tls: &Arc<ClientConfig>,
    ) -> Result<Self, SinkError> {
        let addresses = match &target.host {
            Host::Address(address) => vec![*address],
            Host::Name(name) => resolve(name, name_servers)?,
        };
        let mut last = SinkError::NoAddress;
        for address in addresses {
            let connected = match check_address(address) {
                Ok(()) => dial(SocketAddr::new(address, target.port)).map_err(SinkError::Io),
                Err(why) => Err(SinkError::Forbidden(address, why)),
            };
            match connected {
                Ok(stream) => return Self::begin(stream, target, tls),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Makes of a connection what the target is.
    fn begin(
        stream: TcpStream,
        target: &Target,
        tls: &Arc<ClientConfig>,
    ) -> Result<Self, SinkError> {
        match &target.kind {
            Kind::Redis { login, channel } => {
                let mut sink = Self::Redis { stream, channel: channel.clone() };
                if !login.is_empty() {
                    let words = login.iter().map(String::as_bytes);
                    sink.call(
                        "AUTH",
                        &[&b"AUTH"[..]].into_iter().chain(words).collect::<Vec<_>>(),
                    )?;
                }
                Ok(sink)
            }
            Kind::Websocket { is_secure, url } => {
                let stream = if *is_secure {
                    Stream::Secure(Box::new(secured(stream, &target.host, tls)?))
                } else {
                    Stream::Plain(stream)
                };
                let config = WebSocketConfig::default()
                    .read_buffer_size(MESSAGE_SIZE_MAX)
                    .write_buffer_size(0)
                    .max_write_buffer_size(OUTPUT_SIZE_MAX)
                    .max_message_size(Some(MESSAGE_SIZE_MAX))
                    .max_frame_size(Some(MESSAGE_SIZE_MAX));
                // An error of the handshake could show the URL, which may be secret.
                let shaken = tungstenite::client::client_with_config(url, stream, Some(config));
                let (socket, _) = shaken.map_err(|_| SinkError::Websocket("no handshake"))?;
                Ok(Self::Websocket(Box::new(socket)))
            }
        }
    }

    /// Sends a piece. It has arrived at a Redis server then, and is on its way to another.
    pub(super) fn send(&mut self, piece: &[u8]) -> Result<(), SinkError> {
        match self {
            Self::Redis { channel, .. } => {
                let channel = channel.clone();
                self.call("PUBLISH", &[b"PUBLISH", channel.as_bytes(), piece])
            }
            Self::Websocket(socket) => {
                pass_over(socket)?;
                sent(socket.send(Message::binary(piece.to_vec())))
            }
        }
    }

    /// Finds out whether the server is still there.
    pub(super) fn ask(&mut self) -> Result<(), SinkError> {
        match self {
            Self::Redis { .. } => self.call("PING", &[b"PING"]),
            Self::Websocket(socket) => {
                pass_over(socket)?;
                sent(socket.send(Message::Ping(tungstenite::Bytes::new())))
            }
        }
    }

    /// A command of Redis and its reply (RESP2).
    fn call(&mut self, what: &'static str, words: &[&[u8]]) -> Result<(), SinkError> {
        let Self::Redis { stream, .. } = self else { return Ok(()) };
        let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            bytes.extend_from_slice(word);
            bytes.extend_from_slice(b"\r\n");
        }
        stream.write_all(&bytes)?;
        match reply(stream)?.as_slice() {
            [b'+' | b':', ..] => Ok(()),
            // What it says may repeat what it was told.
            [b'-', ..] => Err(SinkError::Refused(what)),
            _ => Err(SinkError::Nonsense),
        }
    }
}

/// One line of a reply; those to our commands have no more.
fn reply(stream: &mut TcpStream) -> Result<Vec<u8>, SinkError> {
    let deadline = Instant::now() + CALL_TIME_MAX;
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte)? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        line.extend_from_slice(&byte);
        if line.len() > REPLY_SIZE_MAX || Instant::now() > deadline {
            return Err(SinkError::Nonsense);
        }
    }
    Ok(line)
}

/// Reads what a server of logs says, which nobody wanted, and answers its pings.
fn pass_over(socket: &mut WebSocket<Stream>) -> Result<(), SinkError> {
    socket.get_ref().tcp().set_nonblocking(true)?;
    let mut result = Ok(());
    for count in 0.. {
        match socket.read() {
            Ok(_) if count < MESSAGE_COUNT_MAX => {}
            Ok(_) => {
                result = Err(SinkError::Websocket("it says too much"));
                break;
            }
            Err(tungstenite::Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                break;
            }
            Err(error) => {
                result = sent(Err(error));
                break;
            }
        }
    }
    socket.get_ref().tcp().set_nonblocking(false)?;
    result
}

fn sent(result: tungstenite::Result<()>) -> Result<(), SinkError> {
    result.map_err(|error| match error {
        tungstenite::Error::Io(error) => SinkError::Io(error),
        tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed => {
            SinkError::Websocket("it is closed")
        }
        _ => SinkError::Websocket("it breaks the protocol"),
    })
}

/// Connects within a time, by a socket that nothing has to be told about afterwards.
fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    match connect(&socket, &address) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    let time = Timespec::try_from(CALL_TIME_MAX).map_err(io::Error::other)?;
    if poll(&mut [PollFd::new(&socket, PollFlags::OUT)], Some(&time))? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    rustix::net::sockopt::socket_error(&socket)??;
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(CALL_TIME_MAX))?;
    stream.set_write_timeout(Some(CALL_TIME_MAX))?;
    Ok(stream)
}

fn secured(
    mut stream: TcpStream,
    host: &Host,
    tls: &Arc<ClientConfig>,
) -> Result<StreamOwned<ClientConnection, TcpStream>, SinkError> {
    let nonsense = |_| SinkError::Websocket("its name is in no certificate");
    let name = match host {
        Host::Name(name) => ServerName::try_from(name.clone()).map_err(nonsense)?,
        Host::Address(address) => ServerName::IpAddress((*address).into()),
    };
    let mut connection = ClientConnection::new(Arc::clone(tls), name).map_err(SinkError::Tls)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream).map_err(|error| {
            let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            inner.cloned().map_or(SinkError::Io(error), SinkError::Tls)
        })?;
    }
    Ok(StreamOwned::new(connection, stream))
}

impl Stream {
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Secure(stream) => &stream.sock,
        }
    }
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(bytes),
            Self::Secure(stream) => stream.read(bytes),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(bytes),
            Self::Secure(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Secure(stream) => stream.flush(),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A connection as [`Sink::connect`] makes it, to a server on this machine, which is out of reach for
    /// real ones.
    pub(in super::super) fn begun(url: &str, tls: &Arc<ClientConfig>) -> Result<Sink, SinkError> {
        let target = Target::parse(url).unwrap();
        let Host::Address(address) = target.host else { panic!("an address") };
        Sink::begin(dial(SocketAddr::new(address, target.port))?, &target, tls)
    }

    #[test]
    fn the_node_itself_is_not_connected_to() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("redis://{}/x", listener.local_addr().unwrap());
        let result = Sink::connect(&Target::parse(&url).unwrap(), &[], &tls().unwrap());
        assert!(matches!(result, Err(SinkError::Forbidden(..))));
        let named = Target::parse("redis://nobody.example/x").unwrap();
        assert!(matches!(Sink::connect(&named, &[], &tls().unwrap()), Err(SinkError::Io(_))));
    }

    /// Only errors of these kinds are ever logged: none has a place for what was sent.
    #[test]
    fn a_refusal_shows_no_password() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("redis://me:hunter2@{}/x", listener.local_addr().unwrap());
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut bytes = [0; 64];
            let size = stream.read(&mut bytes).unwrap();
            stream.write_all(b"-ERR hunter2 is wrong\r\n").unwrap();
            bytes[..size].to_vec()
        });
        let Err(error) = begun(&url, &tls().unwrap()) else { panic!("it is taken") };
        assert_eq!(error.to_string(), "the server says no to AUTH");
        let sent = serving.join().unwrap();
        assert_eq!(sent, b"*3\r\n$4\r\nAUTH\r\n$2\r\nme\r\n$7\r\nhunter2\r\n");
    }

    #[test]
    fn a_certificate_of_nobody_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("wss://{}/", listener.local_addr().unwrap());
        let key = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let certificate = key.cert.der().clone();
        let serving = std::thread::spawn(move || serve_tls(&listener, &key));
        let result = begun(&url, &tls().unwrap());
        assert!(matches!(result, Err(SinkError::Tls(_))));
        assert!(serving.join().unwrap().is_none());

        // One whose authority is trusted is taken, and bytes pass both ways.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("wss://{}/in", listener.local_addr().unwrap());
        let key = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(key.cert.der().clone()).unwrap();
        assert_ne!(certificate, *key.cert.der());
        let serving = std::thread::spawn(move || serve_tls(&listener, &key));
        let mut sink = begun(&url, &trusting(roots).unwrap()).unwrap();
        sink.send(b"piece").unwrap();
        sink.ask().unwrap();
        assert_eq!(serving.join().unwrap().as_deref(), Some(&b"piece"[..]));
    }

    /// The first message of a client that trusts this certificate.
    fn serve_tls(
        listener: &TcpListener,
        key: &rcgen::CertifiedKey<rcgen::KeyPair>,
    ) -> Option<Vec<u8>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let secret = rustls::pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der());
        let chain = vec![key.cert.der().clone()];
        let config = builder.with_no_client_auth().with_single_cert(chain, secret.unwrap());
        let connection = rustls::ServerConnection::new(Arc::new(config.unwrap())).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let mut socket = tungstenite::accept(StreamOwned::new(connection, stream)).ok()?;
        let first = socket.read().unwrap();
        assert!(socket.read().unwrap().is_ping());
        Some(first.into_data().to_vec())
    }
}
