//! Sending: bytes from memory, large values straight from their files.
//!
//! Around a value that comes from its file the socket is corked (tcp(7)), so that its last bytes leave
//! with the end of the line that follows them: a client that has all but two bytes of a reply would wake
//! up for nothing.

use rustix::io::Errno;
use rustix::net::{self, SendFlags, sockopt};

use super::clients::Client;
use super::is_transient;
use crate::output::Piece;

/// Bytes sent to one client before others have their turn.
const TURN_SIZE_MAX: u64 = 4 * 1024 * 1024;
/// Bytes read at once from a file that the system can't send by itself.
const COPY_SIZE: usize = 256 * 1024;

impl Client {
    /// Sends what may be sent until the socket takes no more; how many bytes it took. An error is the
    /// end of the connection.
    pub(super) fn send(&mut self) -> Result<u64, Errno> {
        let sent = self.send_pieces();
        if self.is_corked && self.connection.output().next().is_none() {
            self.cork(false);
        }
        sent
    }

    fn send_pieces(&mut self) -> Result<u64, Errno> {
        let mut sent = 0;
        while self.is_writable && sent < TURN_SIZE_MAX {
            let Some(piece) = self.connection.output().next() else { break };
            if matches!(piece, Piece::File { .. }) && !self.is_corked {
                self.cork(true);
                continue;
            }
            let result = match piece {
                Piece::Bytes { bytes, more } => {
                    let mut flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
                    // A value's header leaves with its value.
                    flags.set(SendFlags::MORE, more);
                    net::send(&self.socket, bytes, flags)
                }
                Piece::File { extent, offset, size } => {
                    send_file(&self.socket, extent.file.as_ref(), offset, size)
                }
            };
            match result {
                // A file that is shorter than its value is not what was verified.
                Ok(0) => return Err(Errno::IO),
                Ok(count) => {
                    self.connection.output_mut().advance(count as u64);
                    sent += count as u64;
                }
                Err(Errno::INTR) => {}
                Err(error) if is_transient(error) => self.is_writable = false,
                Err(error) => return Err(error),
            }
        }
        Ok(sent)
    }

    fn cork(&mut self, is_corked: bool) {
        self.is_corked = is_corked;
        // A unix socket has no segments to fill.
        let _ = sockopt::set_tcp_cork(&self.socket, is_corked);
    }
}

fn send_file(
    socket: &super::Socket,
    file: &dyn zdb_engine::storage::File,
    offset: u64,
    size: u64,
) -> Result<usize, Errno> {
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    if let Some(descriptor) = file.descriptor() {
        let mut offset = offset;
        return rustix::fs::sendfile(socket, descriptor, Some(&mut offset), size);
    }
    let mut buffer = vec![0; size.min(COPY_SIZE)];
    let count = file.read_at(&mut buffer, offset).map_err(|_| Errno::IO)?;
    let bytes = buffer.get(..count).unwrap_or_default();
    if bytes.is_empty() {
        return Ok(0);
    }
    net::send(socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
}
