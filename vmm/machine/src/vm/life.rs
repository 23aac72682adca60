//! A VM's life, from the moment that its guest may run to its end.
//!
//! ```text
//!   start ──► wait ──► ended ──► off, crashed, … ──► vmm_spec::Exit
//!               ▲         │
//!               └─ reset ─┘  in place, if the description lets it, or the API asked for it
//! ```
//!
//! The main thread waits; signals come to a thread of their own. Whoever wants the end notes it first
//! and asks for it then, so that a reset that happens to be under way does not forget it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use vmm_spec::OnReset;
use vmm_sys_util::signal::unblock_signal;

use super::console::{Consoles, Terminal};
use super::{STACK_SIZE, Shared, VmError};
use crate::{Exit, worker};

/// What ends a VM in good order.
const SIGNALS: [i32; 3] = [SIGTERM, SIGINT, SIGHUP];

impl Shared {
    /// Lets the guest run, unless it waits to be resumed. The terminal is its own as long as what is
    /// returned lives.
    pub(super) fn start(
        self: &Arc<Self>,
        consoles: Consoles,
        waits: bool,
    ) -> Result<Terminal, VmError> {
        self.end_by_signals()?;
        let terminal = consoles.start_input(&self.threads);
        let terminal = terminal.map_err(VmError::host("read the console"))?;
        let _lifecycle = self.lifecycle();
        self.machine_mut().start_threads(&self.threads)?;
        // All threads are there: this one starts no more.
        (self.threads)("main").map_err(VmError::host("set the main thread up"))?;
        if !self.is_paused.load(Ordering::SeqCst) {
            self.machine().resume();
        } else if !waits {
            self.go_on();
        }
        Ok(terminal)
    }

    /// Whoever ends the process ends the guest, without asking it, and everything else in good
    /// order: the terminal comes back, sockets go. A second signal ends the process at once.
    fn end_by_signals(self: &Arc<Self>) -> Result<(), VmError> {
        let failed = || VmError::host("listen to signals");
        let mut signals = Signals::new(SIGNALS).map_err(failed())?;
        let shared = Arc::downgrade(self);
        let work = move || {
            for signal in SIGNALS {
                // Blocked until now in a jail, so that none was lost. It was not blocked elsewhere.
                let _ = unblock_signal(signal);
            }
            for signal in &mut signals {
                let Some(shared) = shared.upgrade() else { return };
                if shared.is_ending.swap(true, Ordering::SeqCst) {
                    // As a shell tells of a process that a signal ended.
                    signal_hook::low_level::exit(128 + signal);
                }
                shared.machine().ender().end(Exit::Off);
            }
        };
        worker::spawn("signals", STACK_SIZE, &self.threads, work).map_err(failed())?;
        Ok(())
    }

    /// Waits for the guest's end, which a reset need not be.
    pub(super) fn run(&self, on_reset: OnReset) -> Result<vmm_spec::Exit, VmError> {
        loop {
            let Some(exit) = self.machine().wait(None) else { continue };
            let is_wanted = self.reboot_is_wanted.swap(false, Ordering::SeqCst);
            // A guest that wants to start over while it is being stopped is off.
            let is_ending = self.is_ending.load(Ordering::SeqCst);
            let exit = if exit == Exit::Reset && is_ending { Exit::Off } else { exit };
            if exit == Exit::Reset && (is_wanted || on_reset == OnReset::Reboot) {
                self.reset()?;
                continue;
            }
            let exits = self.machine().exits().total();
            if exit == Exit::Off {
                tracing::info!(exits, "the guest ended: {exit}");
            } else {
                tracing::error!(exits, "the guest ended: {exit}");
            }
            return Ok(match exit {
                Exit::Off => vmm_spec::Exit::Off,
                Exit::Reset => vmm_spec::Exit::ResetRefused,
                Exit::Crash(_) | Exit::Panic => vmm_spec::Exit::Crashed,
                Exit::Watchdog => vmm_spec::Exit::Watchdog,
                Exit::Failed { .. } => vmm_spec::Exit::HostFailure,
            });
        }
    }

    /// Starts the guest over, in place: the vCPUs are parked already. A paused VM stays paused.
    fn reset(&self) -> Result<(), VmError> {
        let _lifecycle = self.lifecycle();
        self.machine().pause()?;
        self.bus.reset()?;
        let mut machine = self.machine_mut();
        machine.reset()?;
        self.reboots.fetch_add(1, Ordering::Relaxed);
        // What was asked for meanwhile has been forgotten with the exit: a reboot is this one, and
        // an end still comes, since it was noted before it was asked for.
        self.reboot_is_wanted.store(false, Ordering::SeqCst);
        if self.is_ending.load(Ordering::SeqCst) {
            machine.ender().end(Exit::Off);
        }
        if !self.is_paused.load(Ordering::SeqCst) {
            machine.resume();
        }
        Ok(())
    }
}
