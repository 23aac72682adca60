//! Namespaces of the VM's own: what of the host there is to be named at all.

use std::io;

use rustix::thread::UnshareFlags;

use super::sys;

/// What a namespace keeps away, and its name for people.
pub(super) const USER: (UnshareFlags, &str, &str) =
    (UnshareFlags::NEWUSER, "user namespace", "capabilities mean nothing on the host");
pub(super) const MOUNT: (UnshareFlags, &str, &str) =
    (UnshareFlags::NEWNS, "mount namespace", "mounts of its own");
pub(super) const PROCESS: (UnshareFlags, &str, &str) =
    (UnshareFlags::NEWPID, "process namespace", "no other process to be seen");

/// The others, which nothing else depends on.
pub(super) const OTHERS: [(UnshareFlags, &str, &str); 4] = [
    (UnshareFlags::NEWNET, "network namespace", "no network interface"),
    (UnshareFlags::NEWIPC, "ipc namespace", "no shared memory or queues of others"),
    (UnshareFlags::NEWUTS, "uts namespace", "not the host's name"),
    (UnshareFlags::NEWCGROUP, "cgroup namespace", "not the host's cgroups"),
];

/// What a host calls itself in there.
pub(super) const HOST_NAME: &[u8] = b"vmm";

/// Moves into a new one; the reason if the host does not give it.
pub(super) fn enter(namespace: UnshareFlags) -> Result<(), String> {
    sys::unshare(namespace).map_err(|error: io::Error| sys::why(&error))
}
