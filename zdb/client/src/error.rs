//! What can go wrong between a client and a server.

use std::io;

use zdb_resp::reply::ReplyError;

/// Why an operation did not succeed. `endpoint` names the server.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection could be made.
    #[error("{endpoint}: can't connect")]
    Connect {
        /// The server.
        endpoint: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The pool's [`AddressCheck`](crate::AddressCheck) lets none of the server's addresses pass.
    #[error("{endpoint}: {reason}")]
    Forbidden {
        /// The server.
        endpoint: String,
        /// What the check said.
        reason: String,
    },
    /// The connection broke.
    #[error("{endpoint}: the connection broke")]
    Io {
        /// The server.
        endpoint: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The server closed the connection.
    #[error("{endpoint}: the server closed the connection")]
    Closed {
        /// The server.
        endpoint: String,
    },
    /// No whole reply within the time allowed.
    #[error("{endpoint}: no reply within {limit_ms} ms")]
    Timeout {
        /// The server.
        endpoint: String,
        /// The limit.
        limit_ms: u128,
    },
    /// What came is no reply.
    #[error("{endpoint}: the server broke the protocol")]
    Protocol {
        /// The server.
        endpoint: String,
        /// The rule that was broken.
        #[source]
        source: ReplyError,
    },
    /// A reply larger than this client accepts.
    #[error("{endpoint}: a reply larger than {size_max} bytes")]
    ReplySize {
        /// The server.
        endpoint: String,
        /// What is accepted.
        size_max: usize,
    },
    /// A reply of a type that the command does not have.
    #[error("{endpoint}: {command}: unexpected reply")]
    Unexpected {
        /// The server.
        endpoint: String,
        /// The command.
        command: &'static str,
    },
    /// The server answered with an error. The connection is still good.
    #[error("{endpoint}: {command}: {text}")]
    Refused {
        /// The server.
        endpoint: String,
        /// The command.
        command: &'static str,
        /// The server's words, printable and shortened.
        text: String,
    },
    /// The connection failed before, and what it would return can't be trusted.
    #[error("{endpoint}: the connection failed before")]
    Broken {
        /// The server.
        endpoint: String,
    },
    /// All connections of a pool were busy for the time allowed.
    #[error("{endpoint}: all {connection_count_max} connections are busy")]
    Busy {
        /// The server.
        endpoint: String,
        /// The pool's limit.
        connection_count_max: usize,
    },
}

impl ClientError {
    /// Whether the server understood and said no: trying again will not help.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }

    /// Whether the connection ended in a way that an idle connection does when its server restarts
    /// or tires of it.
    pub(crate) fn is_hang_up(&self) -> bool {
        match self {
            Self::Closed { .. } => true,
            Self::Io { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::BrokenPipe
                    | io::ErrorKind::ConnectionReset
                    | io::ErrorKind::ConnectionAborted
            ),
            _ => false,
        }
    }
}
