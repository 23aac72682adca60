//! `flist cached`: the one process of a node that fetches, verifies and writes blocks.
//!
//! A jailed VMM can't fetch. It holds a socket to this process, tied to one image by its first
//! message, and asks where blocks are; it is answered with ranges of read-only segment files
//! ([`crate::cache`]) and reads those itself. `FORMAT-cache.md` describes the messages.
//!
//! ```text
//!                  ┌────────── the loop (one thread, epoll) ─────────────┐
//!   client ──────> │ known, checked block: answered at once              │
//!   client ──────> │ else: joined to whoever waits for the same block ──>│──> Pool: check, fetch,
//!   client <────── │ <── results, time limits, retired segments ─────────│<── insert
//!                  └─────────────────────────────────────────────────────┘
//! ```
//!
//! The loop never waits for a disk's data, a store or a client. What it reads from clients is
//! hostile: a message that does not parse ends its connection, a path that is no image is an error
//! reply, a block that is not the bound image's is refused, and a slow client costs a bounded queue.
//! Routes lead only where the [`RoutePolicy`] allows, whoever names them: image or client.
//! A client that dies takes nothing with it; if this process dies, clients connect again.

mod connection;
mod image;
mod indexer;
mod pool;
mod prefetch;
mod server;
mod shelf;
mod status;
mod trace;

use std::io;
use std::path::PathBuf;

pub use self::server::Server;
use crate::cache::{self, CacheError};
use crate::store::policy::RoutePolicy;

/// Where the daemon listens and keeps things, and how much.
#[derive(Clone, Debug)]
pub struct Config {
    /// The socket's path. Its folder must exist.
    pub socket: PathBuf,
    /// The cache's directory.
    pub cache: PathBuf,
    /// Where indexes and traces of images are kept; a directory that clients cannot write to.
    pub index: PathBuf,
    /// The program that builds an index, run as `PROGRAM index --index DIRECTORY IMAGE`: `flist`.
    pub indexer: PathBuf,
    /// Bounds of the cache.
    pub bounds: cache::Config,
    /// Which routes may be followed, those of images and those that clients name.
    pub policy: RoutePolicy,
}

/// Why the daemon can't start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum CachedError {
    /// The cache can't be opened.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// Another daemon serves this socket.
    #[error("{}: another process listens here", .0.display())]
    Running(PathBuf),
    /// The socket can't be made.
    #[error("{}: {source}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The loop can't go on.
    #[error("{what}: {source}")]
    System {
        /// Which call.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}
