//! Waiting for the end of a short-lived program of ours, without looking again and again: the kernel tells
//! it by the process's own descriptor (pidfd_open(2)).

use std::io;
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Waits for the end of a child, which is left to be asked for its status; whether it came in time.
pub(crate) fn ends_within(child: &Child, limit: Duration) -> io::Result<bool> {
    let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // What no clock can hold is waited for without one.
        let left = Timespec::try_from(left).ok();
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], left.as_ref()) {
            Err(Errno::INTR) => {}
            ended => return Ok(ended? > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn an_end_is_told_and_its_absence_too() {
        let mut child = Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let begin = Instant::now();
        assert!(!ends_within(&child, Duration::from_millis(20)).unwrap());
        assert!(begin.elapsed() >= Duration::from_millis(20));
        child.kill().unwrap();
        assert!(ends_within(&child, Duration::from_secs(30)).unwrap());
        assert!(!child.wait().unwrap().success());
    }
}
