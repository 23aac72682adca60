//! A machine's serial console: every line with the time it arrived, in a file and at hand.
//!
//! QEMU writes the console to a file, which a thread follows. A socket would tell us sooner, but
//! a socket that is full for a moment makes the guest wait, and then two runs of a machine that
//! counts instructions differ by half a per cent; with a file they don't differ at all.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How much of the console is kept at hand, in bytes; the file has all of it.
const TEXT_SIZE_MAX: usize = 4 << 20;
/// A line that is longer is cut into several, in bytes.
const LINE_SIZE_MAX: usize = 4096;
/// How many lines an error shows.
const TAIL_LINE_COUNT: usize = 15;
/// How often the file is looked at: how exact the times are.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(10);

/// What the machine has written so far.
#[derive(Debug, Clone)]
pub(crate) struct Console {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Nothing more will be written.
    is_complete: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    text: String,
    is_closed: bool,
}

impl Console {
    /// Follows the file that QEMU writes, in a thread of its own, until [`Self::complete`].
    pub(crate) fn start(file: File, log: File, epoch: Instant) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let console = Self { shared: Arc::clone(&shared) };
        thread::Builder::new().name("lab-console".to_owned()).spawn(move || {
            follow(file, log, epoch, &shared);
            shared.state.lock().unwrap_or_else(PoisonError::into_inner).is_closed = true;
            shared.changed.notify_all();
        })?;
        Ok(console)
    }

    /// QEMU has ended: what is in the file now is all.
    pub(crate) fn complete(&self) {
        self.shared.is_complete.store(true, Ordering::Release);
    }

    /// All that is at hand.
    pub(crate) fn text(&self) -> String {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).text.clone()
    }

    /// What an error shows: the last lines, or, after a panic, those from it on; under a
    /// heading of its own, or nothing.
    pub(crate) fn tail(&self) -> String {
        let text = self.text();
        let lines: Vec<&str> = text.lines().collect();
        let panic = lines.iter().position(|line| line.contains("Kernel panic"));
        let last = lines.len().saturating_sub(TAIL_LINE_COUNT);
        let from = panic.unwrap_or(last);
        let tail: Vec<&str> = lines.into_iter().skip(from).take(TAIL_LINE_COUNT).collect();
        if tail.is_empty() { String::new() } else { format!("\nconsole:\n{}", tail.join("\n")) }
    }

    /// Waits until the console has shown `needle`; `false` if it didn't in time, or has ended.
    pub(crate) fn wait_for(&self, needle: &str, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if state.text.contains(needle) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || state.is_closed {
                return false;
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn follow(mut file: File, mut log: File, epoch: Instant, shared: &Shared) {
    let mut line = Vec::new();
    let mut buffer = [0; 4096];
    let mut put = |line: &mut Vec<u8>| {
        let text = String::from_utf8_lossy(line);
        let text = text.trim_end_matches('\r');
        // A full disk costs the log, not the test.
        let _ = writeln!(log, "[{:9.3}] {text}", epoch.elapsed().as_secs_f64());
        let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.text.len() + text.len() > TEXT_SIZE_MAX {
            state.text.clear();
        }
        state.text.push_str(text);
        state.text.push('\n');
        shared.changed.notify_all();
        line.clear();
    };
    loop {
        // Asked for before the file is read, so that a last line isn't missed.
        let is_complete = shared.is_complete.load(Ordering::Acquire);
        match file.read(&mut buffer) {
            Ok(0) if is_complete => break,
            Ok(0) => thread::sleep(FOLLOW_INTERVAL),
            Err(_) => break,
            Ok(size) => {
                for byte in buffer.iter().take(size) {
                    if *byte == b'\n' || line.len() >= LINE_SIZE_MAX {
                        put(&mut line);
                    }
                    if *byte != b'\n' {
                        line.push(*byte);
                    }
                }
            }
        }
    }
    if !line.is_empty() {
        put(&mut line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_stamped_found_and_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut machine = file.reopen().unwrap();
        let ours = file.reopen().unwrap();
        let log = tempfile::NamedTempFile::new().unwrap();
        let console = Console::start(ours, log.reopen().unwrap(), Instant::now()).unwrap();
        machine.write_all(b"Linux version 6\r\nlogin: ").unwrap();
        assert!(console.wait_for("version 6", Duration::from_secs(5)));
        assert!(!console.wait_for("login", Duration::from_millis(10)));
        console.complete();
        assert!(console.wait_for("login", Duration::from_secs(5)));
        assert!(!console.wait_for("absent", Duration::from_secs(5)));
        assert_eq!(console.tail(), "\nconsole:\nLinux version 6\nlogin: ");
        let lines: Vec<String> = (0..20).map(|n| format!("line {n}")).collect();
        let shown = |text: &str| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), text).unwrap();
            let log = tempfile::tempfile().unwrap();
            let console = Console::start(file.reopen().unwrap(), log, Instant::now()).unwrap();
            console.complete();
            assert!(!console.wait_for("absent", Duration::from_secs(5)));
            console.tail()
        };
        assert!(shown(&lines.join("\n")).starts_with("\nconsole:\nline 5\nline 6\n"));
        let panic = format!("Kernel panic - not syncing\n{}", lines.join("\n"));
        assert!(shown(&panic).starts_with("\nconsole:\nKernel panic - not syncing\nline 0\n"));
        let logged = std::fs::read_to_string(log.path()).unwrap();
        assert!(logged.lines().next().unwrap().ends_with("] Linux version 6"), "{logged}");
        assert!(logged.starts_with("[    0.0"), "{logged}");
    }
}
