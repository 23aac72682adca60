//! The console, and the end of a boot that failed: one line, then power-off.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, open};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

use super::power;

/// Makes `/dev/console` stdin, stdout and stderr, if there is one; says whether there is. The
/// kernel has done so if its console was ready when it started us; one whose driver is a module was
/// not.
pub(crate) fn take() -> bool {
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let Ok(console) = open("/dev/console", flags, Mode::empty()) else { return false };
    let _ = dup2_stdin(&console);
    let _ = dup2_stdout(&console);
    let _ = dup2_stderr(&console);
    TAKEN.store(true, Ordering::Relaxed);
    true
}

/// Takes the console when its driver, just loaded, has brought it up: that goes on in the
/// background. A machine without console loses [`CONSOLE_LIMIT`].
pub(crate) fn await_and_take() {
    let started = Instant::now();
    while !take() && started.elapsed() < CONSOLE_LIMIT {
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Says one line, on the console or else in the kernel's log.
pub(crate) fn say(message: &str) {
    let line: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let line = format!("guest-init: {line}\n");
    let said =
        TAKEN.load(Ordering::Relaxed) && std::io::stderr().write_all(line.as_bytes()).is_ok();
    if !said && let Ok(mut log) = std::fs::OpenOptions::new().write(true).open("/dev/kmsg") {
        // <2>: critical, so that `quiet` doesn't hide it.
        let _ = log.write_all(format!("<2>{line}").as_bytes());
    }
}

/// Says why the boot can't go on and powers the machine off. What was written is synced first, if
/// that takes no longer than [`SYNC_LIMIT`].
pub(crate) fn give_up(why: &str) -> ! {
    say(&format!("{why}; powering off"));
    let (done, synced) = mpsc::channel();
    std::thread::spawn(move || {
        rustix::fs::sync();
        let _ = done.send(());
    });
    let _ = synced.recv_timeout(SYNC_LIMIT);
    power::off();
    // Not allowed to, so this is no machine of ours to power off.
    std::process::exit(1)
}

/// Whether stderr is the console.
static TAKEN: AtomicBool = AtomicBool::new(false);
/// Longest wait for a console.
const CONSOLE_LIMIT: Duration = Duration::from_millis(500);
/// Longest wait for writes to reach their disks before the power goes.
const SYNC_LIMIT: Duration = Duration::from_secs(5);
