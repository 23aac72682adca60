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
//! attributes are valid for as long as the file system says (a year, unless others change it), `OPEN`
//! and `OPENDIR` are answered `ENOSYS` once so that they are never sent again (the kernel then keeps
//! page and directory caches), listings carry attributes (`READDIRPLUS`).
//!
//! Whether it may be written to is the file system's affair ([`Policy`](crate::filesystem::Policy)).
//! If so:
//!
//! - there are still no opens and no handles. `CREATE` is answered `ENOSYS` too: the kernel then sends
//!   `MKNOD`, which costs as much and wants no `RELEASE` later;
//! - writes go through (no `WRITEBACK_CACHE`): a full disk or quota is known when `write` returns, and
//!   sizes and times are the file system's;
//! - the server drops set-id bits where the client has no right to keep them (`HANDLE_KILLPRIV_V2`),
//!   which spares a `GETXATTR` for each write;
//! - locks are the client's own, since no other client knows of them; there are no ACLs, so that
//!   permissions are what the mode says, and the umask is applied by the client.
//!
//! Source: `include/uapi/linux/fuse.h`, protocol 7.38, little-endian; `virtio 1.3 §5.11`.

#![deny(clippy::indexing_slicing)]

mod changes;
mod reply;
mod server;
#[cfg(test)]
mod tests;
mod wire;
mod wire_changes;

pub use reply::{BufferReply, Reply};
pub use server::{Outcome, Server};

/// Most bytes of contents or entries in one reply: 256 pages.
pub const REPLY_BODY_SIZE_MAX: usize = 1 << 20;

/// Most bytes of one request that a server of a read-only file system looks at: it takes no contents,
/// so names are the longest thing in a request that it can serve. A transport need not keep more; `/dev/fuse` wants to see room
/// for this much.
pub const REQUEST_SIZE_MAX: usize = 8 << 10;

/// The same, of a server whose file system may be written to: the value of an extended attribute may
/// come along. A longer request, but for the contents of a `WRITE`, makes no sense.
pub const WRITABLE_REQUEST_SIZE_MAX: usize = REQUEST_SIZE_MAX + (64 << 10);

/// Bytes of a `WRITE` in front of the contents.
pub const WRITE_HEAD_SIZE: usize = 80;

/// Whether these are the first bytes of a `WRITE`, whose contents begin at [`WRITE_HEAD_SIZE`] and may
/// stay where they are ([`Server::handle_with`]).
#[must_use]
pub fn is_write(request: &[u8]) -> bool {
    opcode_of(request) == Some(wire::opcode::WRITE)
}

/// Whether these are the first bytes of a `READ`, the one request that may take long.
#[must_use]
pub fn is_read(request: &[u8]) -> bool {
    opcode_of(request) == Some(wire::opcode::READ)
}

/// Whether these are the first bytes of a request that wants no reply.
#[must_use]
pub fn is_forget(request: &[u8]) -> bool {
    matches!(opcode_of(request), Some(wire::opcode::FORGET | wire::opcode::BATCH_FORGET))
}

fn opcode_of(request: &[u8]) -> Option<u32> {
    request.get(4..8)?.try_into().ok().map(u32::from_le_bytes)
}

/// Bytes in front of every reply.
pub const REPLY_HEADER_SIZE: usize = 16;
