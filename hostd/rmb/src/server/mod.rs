//! Commands that other twins may call here.
//!
//! [`Commands`] is a table from dotted names to handlers; a handler gets who calls and the payload,
//! which is JSON, and returns JSON or an error's text. How much of it strangers may ask for,
//! [`limits`] says, and that nothing is done twice, [`replay`]. Both are tables without a clock and
//! without tasks; [`crate::peer`] gives them time and runs handlers.
//!
//! What callers see is what the nodes of the grid say (`reference: zero-os 3`): an unknown command is
//! `function is not found`, a handler that panics `handler panicked with: …`, and all errors of
//! commands have code 0. A request whose payload is not said to be JSON gets no answer.

pub mod limits;
pub mod replay;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;

use crate::envelope::limits::MESSAGE_SIZE_MAX;
use crate::twins::TwinId;

/// What a command that does not exist is answered with.
pub const NOT_FOUND: &str = "function is not found";
/// What stands for nothing, in JSON.
pub const NULL: &[u8] = b"null";
/// How long a command may take if nothing else is said.
pub const COMMAND_TIME_DEFAULT: Duration = Duration::from_secs(300);
/// Most bytes of a payload if nothing else is said.
pub const PAYLOAD_SIZE_DEFAULT: usize = 1024 * 1024;

/// A request that was verified: this twin wrote it, for us, lately, and it came for the first time.
#[derive(Debug, Clone)]
pub struct Request {
    /// Who asks.
    pub source: TwinId,
    /// For what.
    pub command: String,
    /// With what, in JSON, unless the caller lied about that.
    pub payload: Bytes,
    /// Whether nobody else could read it.
    pub is_encrypted: bool,
}

/// Why a command has no result; the text is what the caller sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandError(String);

impl CommandError {
    /// An error with that text, of which the caller sees as much as an envelope takes.
    pub fn new(text: impl ToString) -> Self {
        let mut text = text.to_string();
        let end =
            (0..=MESSAGE_SIZE_MAX.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
        Self(text)
    }
}

impl std::fmt::Display for CommandError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// JSON, or why there is none.
pub type Outcome = Result<Bytes, CommandError>;

/// A command that runs.
pub(crate) type Running = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// A command, and what it may cost.
#[derive(Clone)]
pub struct Command {
    /// Whether each request for it is written down before it is done.
    pub(crate) is_once: bool,
    /// Starts to do it.
    pub(crate) handler: Arc<dyn Fn(Request) -> Running + Send + Sync>,
    pub(crate) time_max: Duration,
    pub(crate) payload_size_max: usize,
}

impl Command {
    /// A command that `handler` does, and that may take as long and get as much as most. When its time
    /// is over, the future is dropped, wherever it is.
    pub fn new<F, Doing>(handler: F) -> Self
    where
        F: Fn(Request) -> Doing + Send + Sync + 'static,
        Doing: Future<Output = Outcome> + Send + 'static,
    {
        Self {
            is_once: false,
            handler: Arc::new(move |request| Box::pin(handler(request))),
            time_max: COMMAND_TIME_DEFAULT,
            payload_size_max: PAYLOAD_SIZE_DEFAULT,
        }
    }

    /// It changes something: no request for it is to be done twice, even if we are killed in between.
    #[must_use]
    pub fn once(self) -> Self {
        Self { is_once: true, ..self }
    }

    /// How long it may take.
    #[must_use]
    pub fn time_max(self, time_max: Duration) -> Self {
        Self { time_max, ..self }
    }

    /// How many bytes it may get.
    #[must_use]
    pub fn payload_size_max(self, payload_size_max: usize) -> Self {
        Self { payload_size_max, ..self }
    }
}

/// A request that is being written down.
pub type Recording<'a> = Pin<Box<dyn Future<Output = std::io::Result<()>> + Send + 'a>>;

/// Where requests are written down that must not be done twice, before they are done.
pub trait Journal: Send + Sync {
    /// Appends a request to the window that was written down, for good.
    fn record(&self, entry: [u8; replay::ENTRY_SIZE]) -> Recording<'_>;
}

/// All commands, by their names.
#[derive(Default)]
pub struct Commands(HashMap<String, Command>);

impl Commands {
    /// Adds a command, or puts it in the place of one of the same name.
    #[must_use]
    pub fn with(mut self, name: &str, command: Command) -> Self {
        self.0.insert(name.to_owned(), command);
        self
    }

    /// The command of that name.
    pub(crate) fn find(&self, name: &str) -> Option<&Command> {
        self.0.get(name)
    }
}

/// A value as a handler returns it.
pub fn json(value: &impl Serialize) -> Outcome {
    serde_json::to_vec(value).map(Bytes::from).map_err(CommandError::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_fit_into_an_envelope() {
        let long = "ä".repeat(MESSAGE_SIZE_MAX);
        let error = CommandError::new(format!("x{long}"));
        assert_eq!(error.0.len(), MESSAGE_SIZE_MAX - 1);
        assert_eq!(CommandError::new("short").to_string(), "short");
    }

    #[tokio::test]
    async fn commands_are_found_by_their_whole_name() {
        let command = Command::new(|request| async move { json(&request.command) });
        let commands = Commands::default().with("zos.system.version", command);
        for name in ["zos.system", "version", "zos.system.version.", ""] {
            assert!(commands.find(name).is_none(), "{name}");
        }
        let request = Request {
            source: TwinId::new(1).unwrap(),
            command: "c".into(),
            payload: Bytes::new(),
            is_encrypted: false,
        };
        let command = commands.find("zos.system.version").unwrap();
        assert_eq!((command.handler)(request).await.unwrap(), "\"c\"");
    }
}
