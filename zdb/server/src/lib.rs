//! The ZDB server: many clients, one event loop, the storage engine below.
//!
//! ```text
//!   sockets ──> event_loop ──> connection ──> commands ──> core ──> zdb_engine
//!                  │  ▲          (no I/O)      (no I/O)      │        (files)
//!                  │  └── syncs done ── threads ◄── syncs ───┘
//!                  └────> replies, when their writes are durable
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`event_loop`] | sockets, signals, threads that sync: everything that waits |
//! | [`connection`] | one client: bytes in, replies out |
//! | [`session`] | its rights |
//! | [`core`] | namespaces, clock, batches, upkeep, followers |
//! | `commands` | the table of commands, a file for each family |
//! | [`output`], [`input`] | buffers, bounded |
//! | `hooks`, `metrics`, `prometheus` | what others are told |
//! | [`seal`] | keys handed over |
//! | [`config`] | flags and file |
//!
//! One thread serves all clients. Requests of a batch share one write and one `fdatasync` for each
//! namespace, and a reply to a write is held back until then; see [`core`] and [`output`]. What takes
//! longer, such as making a namespace, is a [`Task`](core::Task) beside the loop.
//!
//! # Where it differs from the existing server
//!
//! Replies are the existing server's, byte for byte (`ci/vectors/zdb.json`, class `spec`), except where
//! that would be wrong. Each recorded quirk that is not kept is a decision:
//!
//! | vector | there | here, and why |
//! |---|---|---|
//! | `prefix-match` | any prefix of a command's name is that command | names match whole: `D` must not be `DATA` today and `DEL` tomorrow |
//! | `kscan` | disabled | the same; `--test-commands` has it |
//! | `wait-error-triggers` | `WAIT` ends even by a command that fails | the same |
//! | `mirror`, `mirror-second`, `master` | a stream of commands to some connections, with an owner read from stray memory | not spoken: `REPL` loses nothing and says from where |
//! | `raw-too-many` | the error for ever | the error, then the end of the connection |
//! | `raw-garbage-argc` | the error, the connection waits | the error, then the end: nothing can be in step any more |
//! | `raw-bulk-bad-crlf` | two bytes after an argument are skipped unseen | they must be a line's end |
//! | `raw-lf-only` | a lone `\n` ends a header | the same |
//! | `raw-long-line` | the end of the connection | an error first |
//! | `data-raw` (class `format`) | offsets of its own layout | offsets of ours; 0 is the first record. Who read the log so reads it with `REPL` |
//!
//! What was recorded as a bug is not repeated: `SELECT SECURE` uses its challenge up; `FLUSH` removes
//! the keys and honours worm, lock, freeze and rights; `RSCAN` crosses empty files; `DATA RAW` shows
//! deletions and empty values; null and negative sizes are errors.
//!
//! And by decision: a freeze outlives a restart, since it stands for an unpaid contract. A lock does not
//! (vector `restart`): it guards an operator's work, and ends with the process. The administrator's
//! password of `--protect` is never written to the default namespace's descriptor. Hooks do not block
//! serving, except before the first and after the last client. `HELLO` is known, because client libraries
//! begin with it and give up if it is not: at protocol 3 nil is `_`, all else is as it was.

mod commands;
pub mod config;
pub mod connection;
pub mod core;
pub mod event_loop;
mod hooks;
pub mod input;
mod metrics;
pub mod output;
mod prometheus;
mod refusal;
pub mod seal;
pub mod session;

pub use hooks::{HookError, announce_crashes};
