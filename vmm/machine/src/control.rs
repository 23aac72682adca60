//! Who runs, who is parked, and why it ended: what the threads of a machine agree on.
//!
//! ```text
//!            start                run
//!   ┌────────────────► parked ◄────────► running ──┐
//!   │                    ▲    pause, end           │ a CPU or device ends the guest
//!   │                    └─────────────────────────┘
//!   │                    │ stop
//! threads ◄──────────────┘
//! ```
//!
//! Virtual CPUs run while the wish is to run, and are parked otherwise; a change of the wish kicks
//! them. Whoever wants the guest still waits until all are parked.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::cpu::kick::Kicker;
use crate::end::Exit;

/// How long CPUs may take to leave the guest. They leave at once; what can hold one up is a sink
/// of the serial port that blocks.
pub(crate) const PARK_LIMIT: Duration = Duration::from_secs(10);

/// How often it is looked whether a thread has ended.
const STOP_POLL: Duration = Duration::from_millis(1);

/// What virtual CPUs shall do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Park,
    Run,
    Stop,
}

#[derive(Debug)]
struct State {
    wish: Wish,
    parked_count: usize,
    kickers: Vec<Kicker>,
    exit: Option<Exit>,
}

/// What the threads of a machine agree on.
#[derive(Debug)]
pub(crate) struct Control {
    state: Mutex<State>,
    changed: Condvar,
}

impl Control {
    pub(crate) const fn new() -> Self {
        let state = State { wish: Wish::Park, parked_count: 0, kickers: Vec::new(), exit: None };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Takes note of a thread that will call [`may_run`](Self::may_run).
    pub(crate) fn add(&self, kicker: Kicker) {
        self.lock().kickers.push(kicker);
    }

    /// Parks the calling virtual CPU until it shall run; `false` when it shall end.
    pub(crate) fn may_run(&self) -> bool {
        let mut state = self.lock();
        if state.wish == Wish::Park {
            state.parked_count += 1;
            self.changed.notify_all();
            while state.wish == Wish::Park {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.parked_count -= 1;
        }
        state.wish == Wish::Run
    }

    /// Lets CPUs run, unless the guest has ended.
    pub(crate) fn run(&self) {
        let mut state = self.lock();
        if state.exit.is_none() && state.wish == Wish::Park {
            state.wish = Wish::Run;
            self.changed.notify_all();
        }
    }

    /// Parks all CPUs; whether they came in time.
    pub(crate) fn park(&self) -> bool {
        let mut state = self.lock();
        if state.wish == Wish::Run {
            state.wish = Wish::Park;
            state.kickers.iter().for_each(Kicker::kick);
        }
        let deadline = Instant::now() + PARK_LIMIT;
        while state.parked_count < state.kickers.len() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.changed.wait_timeout(state, left);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        true
    }

    /// Whether CPUs are meant to run.
    pub(crate) fn is_running(&self) -> bool {
        self.lock().wish == Wish::Run
    }

    /// Ends the guest. The first reason stays.
    pub(crate) fn end(&self, exit: Exit) {
        let mut state = self.lock();
        if state.exit.is_some() || state.wish == Wish::Stop {
            return;
        }
        state.exit = Some(exit);
        if state.wish == Wish::Run {
            state.wish = Wish::Park;
            state.kickers.iter().for_each(Kicker::kick);
        }
        self.changed.notify_all();
    }

    /// Why the guest has ended, if it has.
    pub(crate) fn exit(&self) -> Option<Exit> {
        self.lock().exit.clone()
    }

    /// Waits for the guest's end, at most until the deadline.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> Option<Exit> {
        let mut state = self.lock();
        while state.exit.is_none() {
            state = match deadline {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return None;
                    }
                    let waited = self.changed.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        state.exit.clone()
    }

    /// Forgets how the guest ended, for it is about to begin anew.
    pub(crate) fn forget_exit(&self) {
        self.lock().exit = None;
    }

    /// Ends the threads, and waits for them, as long as for parking.
    pub(crate) fn stop(&self) {
        let kickers = {
            let mut state = self.lock();
            state.wish = Wish::Stop;
            state.kickers.iter().for_each(Kicker::kick);
            self.changed.notify_all();
            std::mem::take(&mut state.kickers)
        };
        let deadline = Instant::now() + PARK_LIMIT;
        for kicker in kickers {
            while !kicker.thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(STOP_POLL);
            }
            // One that does not come, held up by a sink, is left to the end of the process. One that
            // panicked has said so itself.
            if kicker.thread.is_finished() {
                let _ = kicker.thread.join();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Whoever panicked in between left a state that is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
