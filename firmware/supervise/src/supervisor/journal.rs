//! From pipes to log files, without anybody waiting for a disk.
//!
//! The supervisor's loop reads what programs say and puts it into buffers; a thread writes buffers to
//! files. A disk that is slow or full costs what does not fit the buffers, and the log says how many
//! bytes that were.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::log_file::LogFile;
use crate::program::Log;

/// Bytes that a program may log in a second, over time.
pub const RATE_MAX: u64 = 1 << 20;
/// Bytes that a program may log at once.
const BURST_SIZE_MAX: u64 = 4 << 20;
/// Bytes of one program that may wait for the disk.
const BUFFER_SIZE_MAX: usize = 256 << 10;
/// Bytes of all programs that may wait for the disk.
const BUFFERS_SIZE_MAX: usize = 16 << 20;
/// Longest wait for the disk at the end.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// Which log.
pub(super) type LogId = u64;

/// The thread that writes, and what waits for it.
#[derive(Debug)]
pub(super) struct Journal {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// There is work.
    work: Condvar,
    /// The thread has ended.
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    buffers: HashMap<LogId, Buffer>,
    /// Logs with something to write, or to close, in turn.
    turns: VecDeque<LogId>,
    waiting_size: usize,
    is_ending: bool,
    has_ended: bool,
}

#[derive(Debug)]
struct Buffer {
    log: Log,
    bytes: Vec<u8>,
    /// Bytes left out that the log does not speak of yet.
    lost: u64,
    /// All bytes that were left out.
    lost_total: u64,
    allowance: Allowance,
    is_closed: bool,
}

/// What a program may still log now.
#[derive(Debug)]
struct Allowance {
    left: u64,
    since: Instant,
}

impl Journal {
    /// Starts the thread.
    pub(super) fn start() -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let writer = Writer { shared: Arc::clone(&shared), files: HashMap::new() };
        let thread = std::thread::Builder::new()
            .name("supervise-log".to_owned())
            .spawn(move || writer.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Opens a log.
    pub(super) fn open(&self, id: LogId, log: &Log) {
        let allowance = Allowance { left: BURST_SIZE_MAX, since: Instant::now() };
        let buffer = Buffer {
            log: log.clone(),
            bytes: Vec::new(),
            lost: 0,
            lost_total: 0,
            allowance,
            is_closed: false,
        };
        self.shared.lock().buffers.insert(id, buffer);
    }

    /// Takes what a program said.
    pub(super) fn append(&self, id: LogId, bytes: &[u8]) {
        let mut state = self.shared.lock();
        let room = BUFFERS_SIZE_MAX.saturating_sub(state.waiting_size);
        let Some(buffer) = state.buffers.get_mut(&id) else { return };
        let was_empty = buffer.is_empty();
        let taken = buffer.take(bytes, room, Instant::now());
        state.waiting_size += taken;
        if was_empty {
            state.turns.push_back(id);
            self.shared.work.notify_one();
        }
    }

    /// Bytes that a log had to leave out.
    pub(super) fn lost(&self, id: LogId) -> u64 {
        self.shared.lock().buffers.get(&id).map_or(0, |buffer| buffer.lost_total)
    }

    /// Closes a log when all that waits is written.
    pub(super) fn close(&self, id: LogId) {
        let mut state = self.shared.lock();
        let Some(buffer) = state.buffers.get_mut(&id) else { return };
        buffer.is_closed = true;
        if buffer.is_empty() {
            state.turns.push_back(id);
            self.shared.work.notify_one();
        }
    }
}

impl Drop for Journal {
    /// Writes what waits, if the disk takes it in time.
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.is_ending = true;
        self.shared.work.notify_one();
        let deadline = Instant::now() + END_TIMEOUT;
        while !state.has_ended {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.shared.ended.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        if let Some(thread) = self.thread.take() {
            // A writer that panicked has written what it could.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buffer {
    fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.lost == 0
    }

    /// Keeps as many bytes as it may; how many.
    fn take(&mut self, bytes: &[u8], room: usize, now: Instant) -> usize {
        let room = room.min(BUFFER_SIZE_MAX.saturating_sub(self.bytes.len()));
        // Behind a gap that the log does not speak of yet, nothing is taken: it would stand before it.
        let room = if self.lost > 0 { 0 } else { room };
        let wanted = bytes.len().min(room);
        let count = usize::try_from(self.allowance.take(wanted as u64, now)).unwrap_or(wanted);
        self.bytes.extend_from_slice(bytes.get(..count).unwrap_or_default());
        let lost = (bytes.len() - count) as u64;
        self.lost += lost;
        self.lost_total += lost;
        count
    }

    /// All that is to be written now.
    fn drain(&mut self) -> Vec<u8> {
        let mut bytes = std::mem::take(&mut self.bytes);
        let lost = std::mem::take(&mut self.lost);
        if lost > 0 {
            bytes.extend_from_slice(
                format!("\n[supervise: {lost} bytes are left out]\n").as_bytes(),
            );
        }
        bytes
    }
}

impl Allowance {
    fn take(&mut self, wanted: u64, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.since);
        let grown =
            u64::try_from(passed.as_millis()).unwrap_or(u64::MAX).saturating_mul(RATE_MAX) / 1000;
        if grown > 0 {
            self.left = self.left.saturating_add(grown).min(BURST_SIZE_MAX);
            self.since = now;
        }
        let taken = wanted.min(self.left);
        self.left -= taken;
        taken
    }
}

/// What is to be written to one log.
struct Work {
    id: LogId,
    log: Log,
    /// What the program said, and what the supervisor says of what it left out.
    bytes: Vec<u8>,
    /// Bytes of the program's among them.
    said: usize,
    is_closed: bool,
}

/// What the thread has.
struct Writer {
    shared: Arc<Shared>,
    files: HashMap<LogId, LogFile>,
}

impl Writer {
    fn run(mut self) {
        while let Some(work) = self.next() {
            if !work.bytes.is_empty()
                && let Err(error) = self.write(work.id, &work.log, &work.bytes)
            {
                // To be tried anew with the next bytes: the disk may have room again.
                self.files.remove(&work.id);
                let log = work.log.path.display();
                tracing::warn!(%log, %error, "a program's log is not written");
                self.count_lost(work.id, work.said);
            }
            if work.is_closed {
                self.files.remove(&work.id);
            }
        }
        self.shared.lock().has_ended = true;
        self.shared.ended.notify_all();
    }

    /// The next work; none at the end.
    fn next(&self) -> Option<Work> {
        let mut state = self.shared.lock();
        loop {
            if let Some(id) = state.turns.pop_front() {
                let Some(buffer) = state.buffers.get_mut(&id) else { continue };
                let (log, said, is_closed) =
                    (buffer.log.clone(), buffer.bytes.len(), buffer.is_closed);
                let work = Work { id, log, said, bytes: buffer.drain(), is_closed };
                if is_closed {
                    state.buffers.remove(&id);
                }
                state.waiting_size = state.waiting_size.saturating_sub(said);
                return Some(work);
            }
            if state.is_ending {
                return None;
            }
            state = self.shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn write(&mut self, id: LogId, log: &Log, bytes: &[u8]) -> io::Result<()> {
        let file = match self.files.remove(&id) {
            Some(file) => file,
            None => LogFile::open(log)?,
        };
        self.files.entry(id).or_insert(file).append(bytes)
    }

    fn count_lost(&self, id: LogId, size: usize) {
        if let Some(buffer) = self.shared.lock().buffers.get_mut(&id) {
            buffer.lost_total += size as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(folder: &tempfile::TempDir) -> Log {
        Log { path: folder.path().join("log"), size_max: 64 << 20, kept: 1 }
    }

    #[test]
    fn what_was_said_is_written_before_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::start().unwrap();
        journal.open(1, &log(&folder));
        for number in 0..1000 {
            journal.append(1, format!("{number}\n").as_bytes());
        }
        journal.close(1);
        journal.append(2, b"nobody's");
        drop(journal);
        let text = std::fs::read_to_string(folder.path().join("log")).unwrap();
        let numbers: Vec<u32> = text.lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!(numbers, Vec::from_iter(0..1000));
    }

    #[test]
    fn a_flood_is_cut_and_the_log_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::start().unwrap();
        journal.open(1, &log(&folder));
        let chunk = [b'x'; 64 << 10];
        let began = Instant::now();
        (0..1024).for_each(|_| journal.append(1, &chunk));
        let allowed = BURST_SIZE_MAX + RATE_MAX * (began.elapsed().as_secs() + 1);
        let lost = journal.lost(1);
        assert!(lost >= (64 << 20) - allowed, "{lost}");
        drop(journal);
        let text = std::fs::read_to_string(folder.path().join("log")).unwrap();
        assert!(text.contains("bytes are left out]"));
        assert!(text.len() as u64 <= allowed + 4096);
    }

    #[test]
    fn a_log_that_cannot_be_written_is_counted_as_lost() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::start().unwrap();
        let missing = Log { path: folder.path().join("no/log"), ..log(&folder) };
        journal.open(1, &missing);
        journal.append(1, b"five\n");
        let deadline = Instant::now() + Duration::from_secs(10);
        while journal.lost(1) != 5 {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
