//! The end of a machine.

use rustix::io::Errno;
use rustix::system::{RebootCommand, reboot};

use super::links;

/// Switches the network off, then the machine. What must be kept has been synced before. Returns
/// only why it may not.
pub fn off() -> Errno {
    links::all_off();
    reboot(RebootCommand::PowerOff).err().unwrap_or(Errno::PERM)
}
