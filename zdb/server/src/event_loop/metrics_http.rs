//! `GET /metrics`: figures for Prometheus, over HTTP/1.0.
//!
//! A thread takes one connection at a time, reads a bounded request in bounded time, asks the loop for
//! the text and sends it. Whoever holds a connection open keeps others waiting for
//! [`TIMEOUT`], and the loop never.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::poll::Waker;
use crate::core::Core;
use crate::prometheus;

/// For each read and write.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Longest request, in bytes.
const REQUEST_SIZE_MAX: usize = 8 * 1024;
/// Reads of one request.
const READ_COUNT_MAX: usize = 16;

/// Somebody who waits for the text.
type Asked = Arc<Mutex<Option<SyncSender<String>>>>;

/// The thread's other end.
#[derive(Debug)]
pub struct MetricsServer {
    asked: Asked,
}

impl MetricsServer {
    /// Starts the thread, which ends with the process.
    pub(super) fn start(listener: TcpListener, waker: Arc<Waker>) -> io::Result<Self> {
        let asked = Asked::default();
        let ours = Arc::clone(&asked);
        let work = move || {
            for stream in listener.incoming() {
                match stream.map(|stream| serve(stream, &asked, &waker)) {
                    // Without descriptors an accept fails at once, again and again.
                    Err(_) => std::thread::sleep(TIMEOUT),
                    Ok(Err(error)) => tracing::debug!(%error, "a reader of metrics"),
                    Ok(Ok(())) => {}
                }
            }
        };
        std::thread::Builder::new().name("zdb-metrics".to_owned()).spawn(work)?;
        Ok(Self { asked: ours })
    }

    /// Answers whoever asks.
    pub(super) fn answer(&self, core: &Core) {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(asked) = asked {
            // It may have given up.
            let _ = asked.try_send(prometheus::render(core));
        }
    }
}

fn serve(mut stream: TcpStream, asked: &Asked, waker: &Waker) -> io::Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let request = read_request(&mut stream)?;
    let mut words = request.split(|byte| *byte == b' ');
    let (status, body) = match (words.next(), words.next()) {
        (Some(b"GET"), Some(b"/metrics")) => match ask(asked, waker).recv_timeout(TIMEOUT * 5) {
            Ok(text) => ("200 OK", text),
            Err(_) => ("503 Service Unavailable", "busy\n".to_owned()),
        },
        (Some(b"GET"), _) => ("404 Not Found", "only /metrics is here\n".to_owned()),
        _ => ("405 Method Not Allowed", "only GET is understood\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.0 {status}\r\nContent-Type: text/plain; version=0.0.4\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())
}

fn ask(asked: &Asked, waker: &Waker) -> Receiver<String> {
    let (sender, receiver) = sync_channel(1);
    *asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
    waker.wake();
    receiver
}

/// What comes before the empty line.
fn read_request(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    for _ in 0..READ_COUNT_MAX {
        let count = stream.read(&mut buffer)?;
        request.extend_from_slice(buffer.get(..count).unwrap_or_default());
        if count == 0 || request.windows(4).any(|end| end == b"\r\n\r\n") {
            return Ok(request);
        }
        if request.len() > REQUEST_SIZE_MAX {
            break;
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "a request too long"))
}
