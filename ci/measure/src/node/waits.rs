//! Waits that ended because a clock said so, as strace saw them.
//!
//! Who waits for an event is woken by it; who sleeps, or looks again and again, is woken by a clock. So a
//! path without fixed sleeps has no system call that ran into its time. Long waits are left out: threads
//! that rest look around every second or so. Timers of duties that happen to be due meanwhile are
//! counted as well, so a limit is a few, not none.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;
use tempfile::NamedTempFile;

use crate::process::{Daemon, is_traced};

/// Calls that wait.
const CALLS: &str = "trace=nanosleep,clock_nanosleep,epoll_wait,epoll_pwait,epoll_pwait2,poll,ppoll,select,\
                     pselect6,futex,recvfrom";
/// Longer waits are nobody's way of looking again and again.
const SHORT_S: f64 = 0.1;
/// Until strace has written all that it saw.
const PATIENCE: Duration = Duration::from_secs(10);

/// strace, attached to processes and to all that they start.
pub(super) struct Watched {
    daemon: Daemon,
    report: NamedTempFile,
}

/// What was counted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Waits {
    /// Plain sleeps.
    pub(super) sleeps: u32,
    /// Short waits for events that did not come in time.
    pub(super) timeouts: u32,
}

impl Watched {
    /// From now on.
    pub(super) fn start(pids: &[u32]) -> anyhow::Result<Self> {
        let report = NamedTempFile::new()?;
        let mut words: Vec<String> =
            ["strace", "-q", "-f", "-T", "-e", CALLS, "-e", "signal=none", "-o"]
                .map(str::to_owned)
                .into();
        words.push(report.path().to_string_lossy().into_owned());
        for pid in pids {
            words.extend(["-p".to_owned(), pid.to_string()]);
        }
        let ready = || pids.iter().all(|pid| is_traced(&pid.to_string()));
        let daemon = Daemon::start(&words, ready)?;
        Ok(Self { daemon, report })
    }

    /// Lets them go.
    pub(super) fn stop(mut self) -> anyhow::Result<Waits> {
        self.daemon.stop();
        let begin = Instant::now();
        loop {
            let text = String::from_utf8_lossy(&fs::read(self.report.path())?).into_owned();
            if text.ends_with('\n') {
                return Ok(count(&text));
            }
            if begin.elapsed() > PATIENCE {
                bail!("strace saw nothing");
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What lines of strace tell, which end with the time that a call took. One that others interrupt has two
/// lines, the second with its end.
fn count(text: &str) -> Waits {
    let mut waits = Waits::default();
    for line in text.lines() {
        let Some((call, time)) = line.rsplit_once(" <") else { continue };
        let Some(Ok(time)) = time.strip_suffix('>').map(str::parse::<f64>) else { continue };
        if call.contains("nanosleep") {
            waits.sleeps += 1;
        } else if time < SHORT_S && ran_out(call) {
            waits.timeouts += 1;
        }
    }
    waits
}

fn ran_out(line: &str) -> bool {
    if line.contains("ETIMEDOUT") {
        return true;
    }
    // As in `ppoll([{fd=9, events=POLLIN}], 1, {tv_sec=0, tv_nsec=5000}, NULL, 8) = 0 (Timeout)`
    if line.ends_with("= 0 (Timeout)") {
        return !line.contains("tv_sec=0, tv_nsec=0}");
    }
    // As in `epoll_wait(3, [], 1024, 51) = 0` and `<... epoll_wait resumed>[], 1024, 51) = 0`
    let Some((call, result)) = line.rsplit_once('=') else { return false };
    let Some(call) = call.trim_end().strip_suffix(')').filter(|_| result.trim() == "0") else {
        return false;
    };
    let limit = call.rsplit(", ").next().unwrap_or_default();
    line.contains("epoll_") && limit != "0"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_clock_ended_counts() {
        let text = "\
7 epoll_wait(3, [{events=EPOLLIN, data=0x1}], 1024, 4951) = 1 <0.000100>
7 epoll_wait(3, [], 1024, 0)            = 0 <0.000010>
7 futex(0x7f, FUTEX_WAKE_PRIVATE, 1)    = 1 <0.000010>
8 ppoll([{fd=9, events=POLLIN}], 1, {tv_sec=0, tv_nsec=0}, NULL, 0) = 0 (Timeout) <0.000010>
8 ppoll([{fd=9, events=POLLIN}], 1, {tv_sec=5, tv_nsec=0}, NULL, 0) = 1 ([{fd=9}]) <0.010000>
8 clock_nanosleep(CLOCK_REALTIME, 0, {tv_sec=0, tv_nsec=2000000}, <unfinished ...>
9 futex(0x7f, FUTEX_WAIT_PRIVATE, 0, {tv_sec=1}) = -1 ETIMEDOUT (Connection timed out) <1.000100>
7 epoll_wait(3, <unfinished ...>
";
        assert_eq!(count(text), Waits::default());
        let text = "\
8 <... clock_nanosleep resumed>NULL)    = 0 <0.002100>
8 clock_nanosleep(CLOCK_REALTIME, 0, {tv_sec=0, tv_nsec=2000000}, NULL) = 0 <0.002100>
7 <... epoll_wait resumed>[], 1024, 51) = 0 <0.051100>
7 epoll_wait(3, [], 1024, 12)           = 0 <0.012100>
9 <... futex resumed>)                  = -1 ETIMEDOUT (Connection timed out) <0.005000>
8 ppoll([{fd=9, events=POLLIN}], 1, {tv_sec=0, tv_nsec=5000}, NULL, 0) = 0 (Timeout) <0.000060>
";
        assert_eq!(count(text), Waits { sleeps: 2, timeouts: 4 });
    }
}
