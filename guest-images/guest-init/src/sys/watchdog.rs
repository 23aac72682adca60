//! Bounds the boot in time, whatever system call it may be stuck in.
//!
//! A thread of its own sleeps until the limit; `exec` of the guest's init ends it. If the boot is
//! still going on by then, the thread says what it was doing and powers the machine off.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::console;

static STEP: Mutex<String> = Mutex::new(String::new());

/// Starts the clock.
pub(crate) fn start(limit: Duration) {
    std::thread::spawn(move || {
        std::thread::sleep(limit);
        let step = STEP.lock().unwrap_or_else(PoisonError::into_inner).clone();
        console::give_up(&format!("not done after {} s, still {step}", limit.as_secs()));
    });
}

/// Notes what is being done now, for the message.
pub(crate) fn note(step: impl Into<String>) {
    *STEP.lock().unwrap_or_else(PoisonError::into_inner) = step.into();
}
