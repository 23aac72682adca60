//! A small server on loopback for tests: one thread per connection, any behaviour.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use zdb_resp::buffer::Buffer;
use zdb_resp::request::RequestParser;
use zdb_resp::{Limits, UNREAD_SIZE_MAX, write};

use crate::{Endpoint, Timeouts};

/// What a fake server does with a request.
pub(crate) enum Action {
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Closes the connection.
    Close,
}

/// Answers the requests of one connection.
pub(crate) type Session = Box<dyn FnMut(&[Vec<u8>]) -> Action + Send>;

/// A server that stops, and waits for its threads, when dropped.
pub(crate) struct FakeServer {
    pub(crate) endpoint: Endpoint,
    address: Address,
    is_stopping: Arc<AtomicBool>,
    connection_count: Arc<AtomicUsize>,
    acceptor: Option<JoinHandle<()>>,
}

enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

trait Connection: Read + Write + Send {}
impl<C: Read + Write + Send> Connection for C {}

/// Bounds every test in time.
pub(crate) const TIMEOUTS: Timeouts =
    Timeouts { connect: Duration::from_secs(5), request: Duration::from_secs(5) };

impl FakeServer {
    /// Listens on a TCP port of loopback.
    pub(crate) fn tcp(session: impl Fn() -> Session + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let endpoint = Endpoint::Tcp("127.0.0.1".to_owned(), address.port());
        Self::start(endpoint, Address::Tcp(address), session, move || {
            let (stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(TIMEOUTS.request)).unwrap();
            Box::new(stream)
        })
    }

    /// Listens on a unix socket.
    pub(crate) fn unix(path: &Path, session: impl Fn() -> Session + Send + Sync + 'static) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let (endpoint, address) = (Endpoint::Unix(path.into()), Address::Unix(path.into()));
        Self::start(endpoint, address, session, move || {
            let (stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(TIMEOUTS.request)).unwrap();
            Box::new(stream)
        })
    }

    /// Connections that were made.
    pub(crate) fn connection_count(&self) -> usize {
        self.connection_count.load(Ordering::SeqCst)
    }

    fn start(
        endpoint: Endpoint,
        address: Address,
        session: impl Fn() -> Session + Send + Sync + 'static,
        accept: impl Fn() -> Box<dyn Connection> + Send + 'static,
    ) -> Self {
        let is_stopping = Arc::new(AtomicBool::new(false));
        let connection_count = Arc::new(AtomicUsize::new(0));
        let (stop, count) = (Arc::clone(&is_stopping), Arc::clone(&connection_count));
        let acceptor = std::thread::spawn(move || {
            let mut threads = Vec::new();
            loop {
                let connection = accept();
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                count.fetch_add(1, Ordering::SeqCst);
                let session = session();
                threads.push(std::thread::spawn(move || serve(connection, session)));
            }
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
        Self { endpoint, address, is_stopping, connection_count, acceptor: Some(acceptor) }
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.is_stopping.store(true, Ordering::SeqCst);
        // Wakes the acceptor. Clients of the test must be gone by now, or time out.
        match &self.address {
            Address::Tcp(address) => drop(TcpStream::connect(address)),
            Address::Unix(path) => drop(UnixStream::connect(path)),
        }
        let result = self.acceptor.take().unwrap().join();
        if !std::thread::panicking() {
            result.unwrap();
        }
    }
}

/// Answers until the client hangs up or breaks the protocol.
fn serve(mut connection: Box<dyn Connection>, mut session: Session) {
    let mut input = Buffer::new(UNREAD_SIZE_MAX);
    let mut parser = RequestParser::new(Limits::default());
    loop {
        let parsed = match parser.parse(input.unread()) {
            Ok(parsed) => parsed,
            Err(error) => {
                let mut out = Vec::new();
                write::error(&mut out, error.to_string().as_bytes());
                let _ = connection.write_all(&out);
                return;
            }
        };
        let size = match parsed {
            Some(request) => {
                let arguments: Vec<Vec<u8>> = request.arguments().map(<[u8]>::to_vec).collect();
                match session(&arguments) {
                    Action::Send(bytes) => {
                        if connection.write_all(&bytes).is_err() {
                            return;
                        }
                    }
                    Action::Close => return,
                }
                request.size()
            }
            None => match connection.read(input.space().unwrap()) {
                Ok(0) | Err(_) => return,
                Ok(count) => {
                    input.received(count);
                    0
                }
            },
        };
        input.consume(size);
    }
}
