//! What the kernel offers and no safe crate wraps: a network namespace of one's own, taps, and programs
//! that don't outlive who asked them.
//!
//! The one module of networks with `unsafe`. Numbers and layouts are those of `linux/if_tun.h` and
//! `linux/if.h`.

#![allow(unsafe_code, reason = "system calls that have no safe wrapper")]

use std::ffi::c_int;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{IntegerSetter, Opcode, Updater, ioctl, opcode};
use rustix::process::Signal;
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Longest name of an interface (`IFNAMSIZ` less its NUL).
const INTERFACE_NAME_SIZE_MAX: usize = 15;

/// Gives the calling thread a network namespace of its own, which no other thread is in.
pub(super) fn unshare_network() -> io::Result<()> {
    // SAFETY: only `UnshareFlags::FILES` could take descriptors from other threads, and this is not it.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.map_err(io::Error::from)
}

/// Has a program killed when the thread that starts it ends, as when this process is killed.
pub(super) fn end_with_this_thread(command: &mut Command) {
    let bind = || -> io::Result<()> {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        Ok(())
    };
    // SAFETY: between fork and exec it does one system call, which takes no lock and no memory.
    unsafe { command.pre_exec(bind) };
}

/// Makes a tap in the calling thread's namespace that stays when nobody holds it, for one queue or many,
/// with a `virtio_net_hdr` before each frame.
pub(super) fn make_tap(name: &str) -> io::Result<()> {
    let mut request = InterfaceFlags {
        name: [0; 16],
        flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE,
        padding: [0; 22],
    };
    if name.is_empty() || name.len() > INTERFACE_NAME_SIZE_MAX || name.contains(['/', '\0', '%']) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    request.name.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let tap = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
    // SAFETY: `TUNSETIFF` reads and writes a `struct ifreq` of 40 bytes, which `InterfaceFlags` is.
    unsafe { ioctl(&tap, Updater::<TUNSETIFF, InterfaceFlags>::new(&mut request)) }?;
    // SAFETY: `TUNSETPERSIST` takes its value as the argument itself and follows no pointer.
    unsafe { ioctl(&tap, IntegerSetter::<TUNSETPERSIST>::new_usize(1)) }?;
    Ok(())
}

/// A `struct ifreq` whose union holds flags.
#[repr(C)]
struct InterfaceFlags {
    name: [u8; 16],
    flags: u16,
    padding: [u8; 22],
}

const _: () = assert!(size_of::<InterfaceFlags>() == 40);

const TUNSETIFF: Opcode = opcode::write::<c_int>(b'T', 202);
const TUNSETPERSIST: Opcode = opcode::write::<c_int>(b'T', 203);

const IFF_TAP: u16 = 0x0002;
const IFF_MULTI_QUEUE: u16 = 0x0100;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_interface_can_have_are_refused() {
        // With a `%`, the kernel would choose a name.
        for bad in ["", "sixteen--letters", "a/b", "a\0b", "tap%d"] {
            assert_eq!(make_tap(bad).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }
}
