//! How a guest ends, who decides it, and who learns of it.
//!
//! Many can end a guest: itself by a register, a CPU that crashes, a device that hears a panic, a
//! watchdog. The first of them counts, until the machine is reset. Ending parks the CPUs; what
//! happens next is for whoever waits to decide.

use std::fmt;
use std::sync::{Arc, Weak};

use crate::control::Control;
use crate::cpu::run::CrashReport;

/// Why a guest ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Exit {
    /// It switched itself off.
    Off,
    /// It wants to start over.
    Reset,
    /// One of its CPUs can't go on.
    Crash(CrashReport),
    /// It said that its kernel panicked.
    Panic,
    /// It was silent for too long.
    Watchdog,
    /// The host failed it.
    Failed {
        /// What happened.
        reason: String,
    },
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => write!(f, "switched off"),
            Self::Reset => write!(f, "reset"),
            Self::Crash(report) => write!(f, "crashed: {report}"),
            Self::Panic => write!(f, "its kernel panicked"),
            Self::Watchdog => write!(f, "its watchdog expired"),
            Self::Failed { reason } => write!(f, "the host failed: {reason}"),
        }
    }
}

/// The right to end a guest.
#[derive(Clone)]
pub struct Ender(Target);

#[derive(Clone)]
enum Target {
    /// Weak, since the machine's control must not live as long as a device that may end it.
    Control(Weak<Control>),
    #[cfg(test)]
    Record(Arc<std::sync::Mutex<Vec<Exit>>>),
}

impl Ender {
    pub(crate) fn new(control: &Arc<Control>) -> Self {
        Self(Target::Control(Arc::downgrade(control)))
    }

    /// One that only takes notes.
    #[cfg(test)]
    pub(crate) fn recording() -> (Self, Arc<std::sync::Mutex<Vec<Exit>>>) {
        let record = Arc::default();
        (Self(Target::Record(Arc::clone(&record))), record)
    }

    /// Ends the guest, unless it has already ended.
    pub fn end(&self, exit: Exit) {
        match &self.0 {
            Target::Control(control) => {
                if let Some(control) = control.upgrade() {
                    control.end(exit);
                }
            }
            #[cfg(test)]
            Target::Record(record) => {
                record.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(exit);
            }
        }
    }
}

impl fmt::Debug for Ender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ender")
    }
}
