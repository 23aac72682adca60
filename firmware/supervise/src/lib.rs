//! Who starts a node's programs, waits for them, and outlives who asked.
//!
//! A node's programs (one VMM a machine, ZDB, Mycelium, the block cache) must not end when what planned
//! them does. So `hostd` starts nothing itself: it asks this process, over a unix socket, in lines of
//! JSON; and finds everything again by its name when it comes back. On a node the process is PID 1, in
//! tests and on other machines the `supervise` command.
//!
//! ```text
//!   hostd ── Client ──> socket ──> Supervisor (one thread, epoll) ──> programs, a session each
//!                                    │    ▲ exits, orphans                │ stdout and stderr: a pipe
//!                                    │    └────────────────────────────── ┤
//!                                    └──> Journal (one thread) ──> log files, rotated
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`program`] | what to start, and what to do when it ends; its rules |
//! | [`status`] | what became of it |
//! | [`wire`] | the lines, for who speaks to the socket without this library |
//! | [`client`] | asking |
//! | [`supervisor`] | answering |
//!
//! What it does not do: it keeps nothing on disk and knows no order among programs. When it dies, its
//! programs die with it, and whoever planned them asks again.

#![deny(unsafe_code)]

pub mod client;
pub mod program;
mod socket;
pub mod status;
pub mod supervisor;
pub mod wire;

pub use client::{Client, ClientError, Watch};
pub use program::{Limits, Log, Policy, Program};
pub use status::{Exit, Outcome, State, Status};
pub use supervisor::{Config, Supervisor, SupervisorError};
