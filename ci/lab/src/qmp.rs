//! QEMU's control protocol (docs/interop/qmp-spec.txt): a JSON object a line.
//!
//! Commands carry an id and wait for their answer; events are remembered in order, so that one
//! can be waited for after the command that causes it, without missing it.

use std::collections::{HashMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use thiserror::Error;

/// How long QEMU may take to answer; it does so between two of its events.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How many events are remembered.
const EVENT_COUNT_MAX: usize = 1024;

/// A connection to QEMU's monitor.
#[derive(Debug)]
pub(crate) struct Qmp {
    writer: Mutex<UnixStream>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    next_id: u64,
    answers: HashMap<u64, Result<Value, String>>,
    events: VecDeque<Value>,
    /// How many events have been forgotten.
    forgotten: u64,
    is_closed: bool,
}

impl Qmp {
    /// Takes over the connection. In the reader's thread, `on_event` sees each event as it
    /// comes, and at last `None`, when QEMU has ended.
    pub(crate) fn start(
        stream: UnixStream,
        on_event: impl Fn(Option<&Value>) + Send + 'static,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let reader = BufReader::new(stream.try_clone()?);
        let seen = Arc::clone(&shared);
        thread::Builder::new().name("lab-qmp".to_owned()).spawn(move || {
            for line in reader.lines().map_while(Result::ok) {
                let Ok(message) = serde_json::from_str::<Value>(&line) else { break };
                if message.get("event").is_some() {
                    on_event(Some(&message));
                }
                seen.take(message);
            }
            on_event(None);
            seen.lock().is_closed = true;
            seen.changed.notify_all();
        })?;
        Ok(Self { writer: Mutex::new(stream), shared })
    }

    /// Runs a command and returns its answer.
    pub(crate) fn execute(&self, command: &str, arguments: &Value) -> Result<Value, QmpError> {
        let id = {
            let mut state = self.shared.lock();
            state.next_id += 1;
            state.next_id
        };
        let mut line = json!({ "execute": command, "arguments": arguments, "id": id }).to_string();
        line.push('\n');
        let written = {
            let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
            writer.write_all(line.as_bytes())
        };
        written.map_err(|_| QmpError::Closed)?;
        let answer = self.shared.wait(ANSWER_TIMEOUT, |state| state.answers.remove(&id))?;
        answer.map_err(QmpError::Refused)
    }

    /// The present moment, to wait for events after it.
    pub(crate) fn cursor(&self) -> u64 {
        let state = self.shared.lock();
        state.forgotten + state.events.len() as u64
    }

    /// Waits for an event after `cursor` that `is_wanted`.
    pub(crate) fn wait_event(
        &self,
        cursor: u64,
        timeout: Duration,
        is_wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value, QmpError> {
        self.shared.wait(timeout, |state| {
            let skip = usize::try_from(cursor.saturating_sub(state.forgotten)).unwrap_or(0);
            state.events.iter().skip(skip).find(|event| is_wanted(event)).cloned()
        })
    }

    /// Waits until QEMU has closed the connection: it has ended. `false` if it hasn't in time.
    pub(crate) fn wait_closed(&self, timeout: Duration) -> bool {
        matches!(self.shared.wait::<()>(timeout, |_| None), Err(QmpError::Closed))
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, message: Value) {
        let mut state = self.lock();
        if message.get("event").is_some() {
            if state.events.len() >= EVENT_COUNT_MAX {
                state.events.pop_front();
                state.forgotten += 1;
            }
            state.events.push_back(message);
        } else if let Some(id) = message.get("id").and_then(Value::as_u64) {
            let refused = message.pointer("/error/desc").and_then(Value::as_str);
            let value = message.get("return").cloned().unwrap_or_default();
            state.answers.insert(id, refused.map_or(Ok(value), |reason| Err(reason.to_owned())));
        }
        self.changed.notify_all();
    }

    fn wait<T>(
        &self,
        timeout: Duration,
        mut find: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<T, QmpError> {
        let deadline = Instant::now() + timeout;
        let mut state = self.lock();
        loop {
            if let Some(found) = find(&mut state) {
                return Ok(found);
            }
            if state.is_closed {
                return Err(QmpError::Closed);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(QmpError::Timeout(timeout));
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A monitor command failed.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum QmpError {
    /// QEMU has ended.
    #[error("QEMU has ended")]
    Closed,
    /// QEMU refused it.
    #[error("{0}")]
    Refused(String),
    /// No answer, or not the event.
    #[error("nothing within {} ms", .0.as_millis())]
    Timeout(Duration),
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A QEMU that answers each line by what `answer` makes of it.
    fn monitor(answer: fn(&Value) -> Vec<Value>) -> Qmp {
        let (ours, theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            let mut writer = theirs.try_clone().unwrap();
            writeln!(writer, "{}", json!({ "QMP": {} })).unwrap();
            for line in BufReader::new(theirs).lines() {
                let Ok(line) = line else { return };
                let request: Value = serde_json::from_str(&line).unwrap();
                if request["execute"] == "quit" {
                    return;
                }
                for message in answer(&request) {
                    writeln!(writer, "{message}").unwrap();
                }
            }
        });
        Qmp::start(ours, |_| {}).unwrap()
    }

    #[test]
    fn answers_errors_and_events_find_their_way() {
        let qmp = monitor(|request| {
            let id = &request["id"];
            if request["execute"] == "bad" {
                return vec![json!({ "id": id, "error": { "class": "x", "desc": "no such" } })];
            }
            vec![
                json!({ "event": "RESET", "data": { "guest": true } }),
                json!({ "id": id, "return": request["arguments"]["value"] }),
            ]
        });
        let cursor = qmp.cursor();
        assert_eq!(qmp.execute("echo", &json!({ "value": 7 })), Ok(json!(7)));
        assert_eq!(qmp.execute("bad", &json!({})), Err(QmpError::Refused("no such".to_owned())));
        let second = Duration::from_secs(5);
        assert!(qmp.wait_event(cursor, second, |event| event["event"] == "RESET").is_ok());
        let short = Duration::from_millis(10);
        let missed = qmp.wait_event(qmp.cursor(), short, |_| true);
        assert_eq!(missed, Err(QmpError::Timeout(short)));
        assert!(!qmp.wait_closed(short));
        assert_eq!(qmp.execute("quit", &json!({})), Err(QmpError::Closed));
        assert!(qmp.wait_closed(second));
    }
}
