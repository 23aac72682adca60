//! Hearing of a VMM's socket when it appears, instead of looking for it again and again (inotify(7)).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

/// Bytes of what happened that are read at a time, of which nothing but that it happened is of interest.
const EVENTS_SIZE: usize = 4096;

/// What appears in a folder.
#[derive(Debug)]
pub(super) struct Arrivals(OwnedFd);

impl Arrivals {
    /// From now on.
    ///
    /// # Errors
    /// The system says no: a user has a few of these at most, 128 as a rule.
    pub(super) fn of(folder: &Path) -> io::Result<Self> {
        let queue = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&queue, folder, WatchFlags::CREATE | WatchFlags::MOVED_TO)?;
        Ok(Self(queue))
    }

    /// Waits until something appeared since this was asked last, or `other` can be read, or the time is
    /// over. Which of them it was, the caller finds out.
    pub(super) fn wait(&self, other: BorrowedFd<'_>, limit: Duration) {
        let limit = Timespec::try_from(limit).ok();
        let queue = self.0.as_fd();
        let mut waited =
            [queue, other].map(|waited| PollFd::from_borrowed_fd(waited, PollFlags::IN));
        // A signal is as good a reason to look as any.
        let _ = poll(&mut waited, limit.as_ref());
        // It has no end: a full queue says so in one event, and then there is room again.
        let mut events = [0; EVENTS_SIZE];
        while rustix::io::read(queue, &mut events).is_ok_and(|size| size > 0) {}
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_file_that_appears_ends_the_wait() {
        let folder = tempfile::tempdir().unwrap();
        let (quiet, _other) = rustix::pipe::pipe().unwrap();
        let arrivals = Arrivals::of(folder.path()).unwrap();
        std::fs::write(folder.path().join("a.sock"), "").unwrap();
        let begin = Instant::now();
        arrivals.wait(quiet.as_fd(), Duration::from_secs(60));
        assert!(begin.elapsed() < Duration::from_secs(30), "it was not heard of");
        // It is told once.
        arrivals.wait(quiet.as_fd(), Duration::from_millis(30));
        assert!(begin.elapsed() >= Duration::from_millis(30));
        assert!(Arrivals::of(&folder.path().join("none")).is_err());
    }

    #[test]
    fn so_does_what_can_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        rustix::io::write(&write, b"news").unwrap();
        let begin = Instant::now();
        Arrivals::of(folder.path()).unwrap().wait(read.as_fd(), Duration::from_secs(60));
        assert!(begin.elapsed() < Duration::from_secs(30));
    }
}
