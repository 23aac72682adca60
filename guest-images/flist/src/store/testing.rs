//! Small servers on loopback for the tests of stores: a web server and a ZDB. They stop, and wait
//! for their threads, when dropped.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use zdb_resp::buffer::Buffer;
use zdb_resp::request::RequestParser;
use zdb_resp::{Limits, UNREAD_SIZE_MAX, write};

/// Bounds every test in time.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A web server with any behaviour; one request a connection.
pub(crate) struct FakeWeb {
    listener: Listener,
    paths: Arc<Mutex<Vec<String>>>,
}

/// A request that [`FakeWeb`] received.
pub(crate) struct Request {
    pub(crate) method: String,
    /// With its query.
    pub(crate) path: String,
    headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

/// What [`FakeWeb`] sends.
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) location: Option<String>,
    pub(crate) body: Vec<u8>,
    /// What `content-length` says if not the truth.
    pub(crate) announced_size: Option<usize>,
}

/// A ZDB with the namespaces `default` and `ns`, the latter with the password `secret`, sharing
/// their values.
pub(crate) struct FakeZdb {
    listener: Listener,
    state: Arc<Mutex<ZdbState>>,
}

#[derive(Default)]
struct ZdbState {
    values: HashMap<Vec<u8>, Vec<u8>>,
    commands: HashMap<String, usize>,
}

impl FakeWeb {
    pub(crate) fn start(answer: impl Fn(&Request) -> Response + Send + Sync + 'static) -> Self {
        Self::start_on("127.0.0.1", answer)
    }

    /// On another of this machine's addresses.
    pub(crate) fn start_on(
        host: &str,
        answer: impl Fn(&Request) -> Response + Send + Sync + 'static,
    ) -> Self {
        let paths: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&paths);
        let listener = Listener::start(host, move |stream| {
            let Some(request) = Request::read(&stream) else {
                return Response::status(400).write(&stream, false);
            };
            seen.lock().unwrap().push(request.path.clone());
            answer(&request).write(&stream, request.method == "HEAD");
        });
        Self { listener, paths }
    }

    pub(crate) fn port(&self) -> u16 {
        self.listener.address.port()
    }

    /// Paths that were requested, with their queries.
    pub(crate) fn paths(&self) -> Vec<String> {
        self.paths.lock().unwrap().clone()
    }
}

impl Request {
    fn read(stream: &TcpStream) -> Option<Self> {
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let mut words = line.split(' ');
        let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
        let mut headers = BTreeMap::new();
        loop {
            line.clear();
            reader.read_line(&mut line).ok()?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            headers.insert(name.to_ascii_lowercase(), value.to_owned());
        }
        let size = headers.get("content-length").map_or(0, |size| size.parse().unwrap());
        let mut body = vec![0; size];
        reader.read_exact(&mut body).ok()?;
        Some(Self { method, path, headers, body })
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

impl Response {
    pub(crate) fn ok(body: &[u8]) -> Self {
        Self { status: 200, location: None, body: body.to_vec(), announced_size: None }
    }

    pub(crate) fn status(status: u16) -> Self {
        Self { status, ..Self::ok(b"") }
    }

    pub(crate) fn redirect(location: &str) -> Self {
        Self { location: Some(location.to_owned()), ..Self::status(302) }
    }

    fn write(self, mut stream: &TcpStream, is_head: bool) {
        let size = self.announced_size.unwrap_or(self.body.len());
        let location = self.location.map_or(String::new(), |to| format!("location: {to}\r\n"));
        let head = format!(
            "HTTP/1.1 {} Text\r\nconnection: close\r\ncontent-length: {size}\r\n{location}\r\n",
            self.status
        );
        // The client may have hung up already; its test knows.
        let _ = stream.write_all(head.as_bytes());
        if !is_head {
            let _ = stream.write_all(&self.body);
        }
    }
}

impl FakeZdb {
    pub(crate) fn start() -> Self {
        let state: Arc<Mutex<ZdbState>> = Arc::default();
        let shared = Arc::clone(&state);
        let listener = Listener::start("127.0.0.1", move |stream| serve_zdb(&stream, &shared));
        Self { listener, state }
    }

    pub(crate) fn port(&self) -> u16 {
        self.listener.address.port()
    }

    pub(crate) fn insert(&self, key: &[u8], value: &[u8]) {
        self.state.lock().unwrap().values.insert(key.to_vec(), value.to_vec());
    }

    pub(crate) fn value(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.state.lock().unwrap().values.get(key).cloned()
    }

    /// How often a command came.
    pub(crate) fn commands(&self, name: &str) -> usize {
        self.state.lock().unwrap().commands.get(name).copied().unwrap_or_default()
    }
}

fn serve_zdb(mut stream: &TcpStream, state: &Mutex<ZdbState>) {
    let mut input = Buffer::new(UNREAD_SIZE_MAX);
    let mut parser = RequestParser::new(Limits::default());
    loop {
        let size = match parser.parse(input.unread()).unwrap() {
            Some(request) => {
                let arguments: Vec<&[u8]> = request.arguments().collect();
                let reply = state.lock().unwrap().answer(&arguments);
                if stream.write_all(&reply).is_err() {
                    return;
                }
                request.size()
            }
            None => match stream.read(input.space().unwrap()) {
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

impl ZdbState {
    fn answer(&mut self, arguments: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        let name = String::from_utf8_lossy(arguments[0]).into_owned();
        *self.commands.entry(name).or_default() += 1;
        match arguments {
            [b"SELECT", b"ns", b"secret"] => write::simple(&mut out, b"OK"),
            [b"SELECT", ..] => write::error(&mut out, b"Access denied"),
            [b"GET", key] => match self.values.get(*key) {
                Some(value) => write::bulk(&mut out, value),
                None => write::nil(&mut out),
            },
            [b"EXISTS", key] => write::integer(&mut out, self.values.contains_key(*key).into()),
            [b"SET", key, value] => {
                self.values.insert(key.to_vec(), value.to_vec());
                write::bulk(&mut out, key);
            }
            _ => write::error(&mut out, b"Command not supported"),
        }
        out
    }
}

/// Accepts connections, one thread each, until dropped.
struct Listener {
    address: SocketAddr,
    is_stopping: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

impl Listener {
    fn start(host: &str, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((host, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let is_stopping = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&is_stopping);
        let serve = Arc::new(serve);
        let acceptor = std::thread::spawn(move || {
            let mut threads = Vec::new();
            loop {
                let (stream, _) = listener.accept().unwrap();
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                stream.set_read_timeout(Some(TIMEOUT)).unwrap();
                stream.set_write_timeout(Some(TIMEOUT)).unwrap();
                let serve = Arc::clone(&serve);
                threads.push(std::thread::spawn(move || serve(stream)));
            }
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
        Self { address, is_stopping, acceptor: Some(acceptor) }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.is_stopping.store(true, Ordering::SeqCst);
        // Wakes the acceptor. Clients of the test must be gone by now, or time out.
        drop(TcpStream::connect(self.address));
        let result = self.acceptor.take().unwrap().join();
        if !std::thread::panicking() {
            result.unwrap();
        }
    }
}
