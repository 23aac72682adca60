//! RESP2 parser and writer: bytes in, frames out, no I/O.
//!
//! ZDB speaks the Redis serialization protocol, version 2 (`reference: zdb 2.1`): a request is an
//! array of bulk strings, a reply one of five types.
//!
//! ```text
//!  server: bytes ─> [buffer] ─> [request] ─> arguments      reply ─> [write] ─> bytes
//!  client: bytes ─> [buffer] ─> [reply]   ─> a reply      request ─> [write] ─> bytes
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`buffer`] | unread bytes of one peer, bounded |
//! | [`request`] | the server's side: one request at a time, resumed where the last bytes ended |
//! | [`reply`] | the client's side: one reply at a time |
//! | [`write`](mod@write) | both sides' output, appended to a `Vec` |
//!
//! Parsers borrow from the buffer and copy nothing. All of a peer's input is hostile: every size it
//! announces is checked against [`Limits`] before anything is allocated, and memory grows with the
//! bytes that came, not with the bytes that were promised. Who owns sockets, timeouts and the
//! decision to hang up is `zdb/client` and `zdb/server`.

#![forbid(unsafe_code)]
#![warn(clippy::indexing_slicing)]

pub mod buffer;
mod line;
pub mod reply;
pub mod request;
pub mod write;

/// Most arguments of a request, the command's name included (`reference: zdb 2.1`).
pub const ARGUMENT_COUNT_MAX: usize = 1024;
/// Largest bulk string, in bytes; one of exactly this size is accepted.
pub const BULK_SIZE_MAX: usize = 8 * 1024 * 1024;
/// Most bytes of one peer that wait to be parsed: the largest bulk string with its neighbours.
pub const UNREAD_SIZE_MAX: usize = 2 * BULK_SIZE_MAX;
/// Most elements of a reply, nested ones included.
pub const ELEMENT_COUNT_MAX: usize = 1024 * 1024;
/// Deepest array in a reply; ZDB itself needs 3 (`SCAN`).
pub const DEPTH_MAX: usize = 8;
/// Longest simple string or error, in bytes.
pub const LINE_SIZE_MAX: usize = 64 * 1024;
/// Longest line that announces a number, in bytes, without its end.
pub const HEADER_SIZE_MAX: usize = 32;

/// What a peer may send. The defaults are this crate's constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most arguments of a request.
    pub argument_count_max: usize,
    /// Largest bulk string, in bytes.
    pub bulk_size_max: usize,
    /// Most elements of a reply, nested ones included.
    pub element_count_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            argument_count_max: ARGUMENT_COUNT_MAX,
            bulk_size_max: BULK_SIZE_MAX,
            element_count_max: ELEMENT_COUNT_MAX,
        }
    }
}
