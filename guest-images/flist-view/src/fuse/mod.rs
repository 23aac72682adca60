//! A FUSE server without a transport: one request in, one reply out.
//!
//! [`Server::handle`] takes a request's bytes, asks a [`FileSystem`](crate::filesystem::FileSystem)
//! and fills a [`Reply`]. It owns no descriptor, no thread and no queue, so the same server stands
//! behind `/dev/fuse` (`flist mount`) and behind a virtio-fs queue (the VMM), and tests need neither.
//!
//! The peer may be hostile: a guest sends whatever it likes. Requests are parsed with bounds checks,
//! sizes that a request asks for are capped by what its reply can hold, and a request that makes no
//! sense gets an error, or no reply when there is nobody to reply to. The server keeps no table of
//! inodes or handles, so there is nothing to exhaust.
//!
//! What makes it fast is what the kernel is told it need not ask again: entries, negative entries and
//! attributes are valid for a year, `OPEN` and `OPENDIR` are answered `ENOSYS` once so that they are
//! never sent again (the kernel then keeps page and directory caches), listings carry attributes
//! (`READDIRPLUS`).
//!
//! Source: `include/uapi/linux/fuse.h`, protocol 7.38, little-endian; `virtio 1.3 §5.11`.

#![deny(clippy::indexing_slicing)]

mod reply;
mod server;
#[cfg(test)]
mod tests;
mod wire;

pub use reply::{BufferReply, Reply};
pub use server::{Outcome, Server};

/// Most bytes of contents or entries in one reply: 256 pages.
pub const REPLY_BODY_SIZE_MAX: usize = 1 << 20;

/// Most bytes of one request that this server looks at: it takes no contents, so names are the longest
/// thing in a request that it can serve. A transport need not keep more; `/dev/fuse` wants to see room
/// for this much.
pub const REQUEST_SIZE_MAX: usize = 8 << 10;

/// Bytes in front of every reply.
pub const REPLY_HEADER_SIZE: usize = 16;
