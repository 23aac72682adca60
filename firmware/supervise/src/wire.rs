//! The lines that go over the socket: one object of JSON each, a reply to each request, in order.
//!
//! Descriptors travel beside a `start`'s first byte (`SCM_RIGHTS`). After `watch` a connection carries
//! news and nothing else; `stop` and `wait` answer when what they ask for has happened, and other
//! requests need another connection until then.

use serde::{Deserialize, Serialize};

use crate::program::Program;
use crate::status::Status;

/// Longest request, in bytes, its line's end included.
pub const REQUEST_SIZE_MAX: usize = 128 << 10;
/// Longest reply, in bytes, its line's end included.
pub const REPLY_SIZE_MAX: usize = 8 << 20;

/// What a client asks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Start a program, or find it running. The reply is [`Reply::Status`].
    Start {
        /// What to start.
        program: Box<Program>,
        /// How many descriptors came with this request.
        #[serde(default)]
        descriptors: usize,
    },
    /// Ask a program to end (SIGTERM), make it after a time (SIGKILL), and forget it.
    /// The reply is [`Reply::Stopped`], when nothing of it runs any more.
    Stop {
        /// Which.
        name: String,
        /// How long it may take to end, in milliseconds; 0 kills at once.
        grace_ms: u64,
    },
    /// All programs. The reply is [`Reply::Statuses`].
    List {},
    /// Wait until a program is over. The reply is [`Reply::Status`].
    Wait {
        /// Which.
        name: String,
    },
    /// Be told what changes. The reply is [`Reply::Statuses`] as of now, and then news.
    Watch {},
}

/// What the supervisor answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// A program, now.
    Status(Box<Status>),
    /// All programs, by name.
    Statuses(Vec<Status>),
    /// Nothing of that name runs any more. How it was last, if there was one.
    Stopped(Option<Box<Status>>),
    /// News: a program's state is another.
    Changed(Box<Status>),
    /// News: a program is forgotten.
    Removed(String),
    /// It was not done.
    Error(Refusal),
}

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// What kind of a reason.
    pub kind: RefusalKind,
    /// The reason, for people.
    pub text: String,
}

/// Kinds of reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalKind {
    /// The request breaks a rule.
    Invalid,
    /// Another program runs under that name: stop it first.
    Conflict,
    /// There is no such program.
    Absent,
    /// There are too many programs, or the supervisor is about to end.
    Full,
    /// The system does not allow it.
    System,
}
