//! Why a VM ended, as the status of its process.
//!
//! Whoever supervises VMs tells from the number alone whether to start one again. 1 and 2 are the
//! VMM's own; a guest can cause none of them. 13 says that a guest tried, and how far it came.

use std::fmt;

/// Why a VM ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Exit {
    /// The guest switched itself off, or was stopped on request.
    Off = 0,
    /// The host failed: no KVM, no memory, a file that cannot be opened.
    HostFailure = 1,
    /// The description or the command line is wrong; nothing was started.
    Usage = 2,
    /// The guest asked for a reset, and `on_reset` is `exit`.
    ResetRefused = 10,
    /// The guest crashed: a panic seen through pvpanic, or a triple fault.
    Crashed = 11,
    /// The guest's heartbeat stopped for longer than `watchdog` allows.
    Watchdog = 12,
    /// A thread of the VMM made a system call that its filter forbids, and the VMM ended at once:
    /// the guest may have broken into it.
    Forbidden = 13,
}

impl Exit {
    /// All of them, in order of their codes.
    pub const ALL: [Self; 7] = [
        Self::Off,
        Self::HostFailure,
        Self::Usage,
        Self::ResetRefused,
        Self::Crashed,
        Self::Watchdog,
        Self::Forbidden,
    ];

    /// The status of the process.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The exit that has this status; `None` when a VMM never ends with it.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|exit| exit.code() == code)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "the guest is off",
            Self::HostFailure => "the host failed",
            Self::Usage => "the description of the VM is wrong",
            Self::ResetRefused => "the guest asked for a reset, which its description forbids",
            Self::Crashed => "the guest crashed",
            Self::Watchdog => "the guest's heartbeat stopped",
            Self::Forbidden => "the VMM made a forbidden system call",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_that_supervisors_know() {
        assert_eq!(Exit::ALL.map(Exit::code), [0, 1, 2, 10, 11, 12, 13]);
        for code in 0..=u8::MAX {
            assert_eq!(Exit::from_code(code).map_or(code, Exit::code), code);
        }
        assert_eq!(Exit::from_code(3), None);
    }
}
