//! Bounds the boot in time, whatever system call it may be stuck in.
//!
//! A thread of its own sleeps until the limit; `exec` of the guest's init ends it. If the boot is
//! still going on by then, the thread says what it was doing and powers the machine off.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::console;

static STEP: Mutex<String> = Mutex::new(String::new());
static TRACE: AtomicBool = AtomicBool::new(false);

/// Starts the clock; with `trace` every step is said as it begins.
pub(crate) fn start(limit: Duration, trace: bool) {
    TRACE.store(trace, Ordering::Relaxed);
    std::thread::spawn(move || {
        std::thread::sleep(limit);
        let step = STEP.lock().unwrap_or_else(PoisonError::into_inner).clone();
        console::give_up(&format!("not done after {} s, still {step}", limit.as_secs()));
    });
}

/// Notes what is being done now, for the message.
pub(crate) fn note(step: impl Into<String>) {
    let step = step.into();
    if TRACE.load(Ordering::Relaxed) {
        let up = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        console::say(&format!("{}.{:06} {step}", up.tv_sec, up.tv_nsec / 1000));
    }
    *STEP.lock().unwrap_or_else(PoisonError::into_inner) = step;
}
