//! Waits for devices as they appear: the kernel's own announcements, by netlink.
//!
//! Drivers probe their devices beside the boot, so a disk may be there a moment after its driver was
//! loaded. Asking again and again would cost half an interval each time, or keep a processor busy.

use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

/// The group to which the kernel itself speaks.
const KERNEL_GROUP: u32 = 1;

/// Announcements since it was opened.
pub(crate) struct Uevents(OwnedFd);

impl Uevents {
    pub(crate) fn open() -> Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
        let socket =
            socket_with(family, kind, flags, Some(KOBJECT_UEVENT)).context("no uevents")?;
        bind(&socket, &SocketAddrNetlink::new(0, KERNEL_GROUP)).context("uevents")?;
        Ok(Self(socket))
    }

    /// Waits until something was announced, but not longer than `limit`.
    pub(crate) fn wait(&self, limit: Duration) {
        let limit = Timespec::try_from(limit).ok();
        // A signal or an error is a reason to look, too.
        let _ = poll(&mut [PollFd::new(&self.0, PollFlags::IN)], limit.as_ref());
        // What it was does not matter, nor whether some of it was lost: disks are looked up.
        let mut buffer = [0; 4096];
        while recv(&self.0, &mut buffer[..], RecvFlags::empty()).is_ok() {}
    }
}
