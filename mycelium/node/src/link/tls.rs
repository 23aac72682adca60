//! TLS on a socket that does not block, for links of a private network, and under WebSockets.
//!
//! OpenSSL's session reads and writes one record at a time and may be used by one thread at a time, so it
//! is behind a lock; senders and the reader of a link take turns.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use openssl::ssl::{Error, ErrorCode, Ssl, SslStream};
use rustix::net::{RecvFlags, SendFlags};

use crate::sys;

/// A socket of OpenSSL's: never blocks, never raises a signal.
#[derive(Debug)]
pub(crate) struct RawSocket(pub(crate) OwnedFd);

impl Read for RawSocket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::net::recv(&self.0, buffer, RecvFlags::DONTWAIT)?.1)
    }
}

impl Write for RawSocket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::net::send(&self.0, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A session whose handshake is done.
pub(crate) struct TlsSession(Mutex<Session>);

struct Session {
    stream: SslStream<RawSocket>,
    /// What OpenSSL has sealed but the socket did not take: it must be given again as it was.
    held: Vec<u8>,
}

/// Largest record of TLS (RFC 8446 §5.1).
const RECORD_SIZE_MAX: usize = 16 << 10;

/// Which side of a handshake.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Side {
    Client,
    Server,
}

impl TlsSession {
    /// Shakes hands over a connection. Must be called inside a runtime; to be bounded in time by the
    /// caller.
    pub(crate) async fn establish(ssl: Ssl, socket: &OwnedFd, side: Side) -> io::Result<Self> {
        let stream = handshake(ssl, socket, side).await?;
        Ok(Self(Mutex::new(Session { stream, held: Vec::new() })))
    }

    /// Reads what is there; nothing at the end.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.session().stream.ssl_read(buffer) {
            Ok(size) => Ok(size),
            Err(error) if error.code() == ErrorCode::ZERO_RETURN => Ok(0),
            Err(error) => Err(into_io(error)),
        }
    }

    /// Writes a record's worth. What the socket did not take is held, and counts as written.
    pub(crate) fn transmit(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut session = self.session();
        if !session.flush()? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let record = bytes.get(..RECORD_SIZE_MAX).unwrap_or(bytes);
        match session.stream.ssl_write(record).map_err(into_io) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                session.held.extend_from_slice(record);
                Ok(record.len())
            }
            written => written,
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

/// Shakes hands over a connection. Must be called inside a runtime; to be bounded in time by the caller.
pub(crate) async fn handshake(
    ssl: Ssl,
    socket: &OwnedFd,
    side: Side,
) -> io::Result<SslStream<RawSocket>> {
    let wait = sys::watch(socket.try_clone()?)?;
    let mut stream = SslStream::new(ssl, RawSocket(socket.try_clone()?))?;
    loop {
        let done = match side {
            Side::Client => stream.connect(),
            Side::Server => stream.accept(),
        };
        match done {
            Ok(()) => return Ok(stream),
            Err(error) if error.code() == ErrorCode::WANT_READ => {
                wait.readable().await?.clear_ready();
            }
            Err(error) if error.code() == ErrorCode::WANT_WRITE => {
                wait.writable().await?.clear_ready();
            }
            Err(error) => return Err(into_io(error)),
        }
    }
}

impl Session {
    fn flush(&mut self) -> io::Result<bool> {
        while !self.held.is_empty() {
            match self.stream.ssl_write(&self.held).map_err(into_io) {
                Ok(size) => drop(self.held.drain(..size)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

fn into_io(error: Error) -> io::Error {
    match error.code() {
        ErrorCode::WANT_READ | ErrorCode::WANT_WRITE => io::ErrorKind::WouldBlock.into(),
        _ => error.into_io_error().unwrap_or_else(io::Error::other),
    }
}
