//! What may lie between a connection and a link's packets: TLS of a private network, or a WebSocket.
//!
//! Both take and give the bytes of the link's stream, and may hold back what the socket did not take.

use std::io;

use crate::link::tls::TlsSession;
use crate::link::websocket::WebSocketSession;

/// A session on top of a connection, whose handshake is done.
pub(crate) enum Layer {
    /// Of a private network.
    Tls(TlsSession),
    /// Of a WebSocket.
    WebSocket(Box<WebSocketSession>),
}

impl Layer {
    /// Reads what is there; nothing at the end.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tls(tls) => tls.receive(buffer),
            Self::WebSocket(socket) => socket.receive(buffer),
        }
    }

    /// Writes a part of `bytes`. What the socket did not take is held, and counts as written.
    pub(crate) fn transmit(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tls(tls) => tls.transmit(bytes),
            Self::WebSocket(socket) => socket.transmit(bytes),
        }
    }

    /// Writes what is held. Whether nothing is any more.
    pub(crate) fn flush(&self) -> io::Result<bool> {
        match self {
            Self::Tls(tls) => tls.flush(),
            Self::WebSocket(socket) => socket.flush(),
        }
    }
}
