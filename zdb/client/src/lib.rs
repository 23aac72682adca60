//! A synchronous ZDB client: one connection, or a bounded pool of them.
//!
//! Used by the flist stores and, later, by `hostd` and the `zdb client` command. It speaks through
//! [`zdb_resp`], over TCP or a unix socket. Every operation is bounded in time; what a server sends
//! is bounded in size. Nothing here runs in the background and nothing retries, except that a
//! [`Pool`] repeats an operation whose idle connection had been closed by the server.
//!
//! A peer that speaks the same protocol (Redis) works as far as it knows the commands.

#![forbid(unsafe_code)]

mod commands;
mod connection;
mod error;
mod pool;
#[cfg(test)]
mod recorded;
mod stream;
#[cfg(test)]
mod testing;
mod value;

pub use connection::{BATCH_COUNT_MAX, Client};
pub use error::ClientError;
pub use pool::{Namespace, Pool, PoolOptions};
pub use stream::{AddressCheck, Endpoint, Timeouts};
pub use value::Value;

use std::fmt;

use zeroize::Zeroizing;

/// A password, which `Debug` does not show and which is wiped from memory when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(Zeroizing<String>);

impl Password {
    /// Wraps a password.
    #[must_use]
    pub fn new(password: impl Into<String>) -> Self {
        Self(Zeroizing::new(password.into()))
    }

    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}
