//! The jail: what a process gives up before it hears the first stranger.
//!
//! It stays root of nothing: its root is one folder, it has no capabilities and no way to any, its memory,
//! descriptors and threads are few, and it may make the system calls of a loop over sockets and files
//! alone. Whoever takes it over has the one folder, and the network that its owner has anyway.
//!
//! A forbidden call fails with `EPERM` rather than ending the process: nothing is gained by trying, and
//! a C library that tries another call first goes on.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use anyhow::Context as _;
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, chdir, chroot, set_dumpable_behavior, setrlimit,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

/// Descriptors: listeners, connections, and a few files.
const DESCRIPTOR_COUNT_MAX: u64 = 128;
/// Bytes of addresses. What is really used is a hundredth.
const ADDRESS_SPACE_MAX: u64 = 512 << 20;

/// What the loops need: sockets, files of the one folder, memory, time.
const ALLOWED: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_connect,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_futex,
    libc::SYS_getpeername,
    libc::SYS_getrandom,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_ioctl,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_yield,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_sigaltstack,
    libc::SYS_socket,
    libc::SYS_statx,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Closes it: from here on, `folder` is the root.
///
/// # Errors
/// The system does not let us; nothing strange must be heard then.
pub(crate) fn close(folder: &Path) -> anyhow::Result<()> {
    let shown = || format!("{} as root", folder.display());
    chroot(folder).map_err(io::Error::from).with_context(shown)?;
    chdir("/").context("the new root")?;
    limit(Resource::Nofile, DESCRIPTOR_COUNT_MAX)?;
    limit(Resource::As, ADDRESS_SPACE_MAX)?;
    limit(Resource::Core, 0)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("keep others from looking in")?;
    for capability in CapabilitySet::all().iter() {
        match remove_capability_from_bounding_set(capability) {
            // One that this kernel does not know.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(error).context("the bounding set"),
        }
    }
    clear_ambient_capability_set().context("ambient capabilities")?;
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    set_capabilities(None, sets).context("capabilities")?;
    set_no_new_privs(true).context("no_new_privs")?;
    seccompiler::apply_filter(&filter()?).context("the filter of system calls")
}

fn limit(resource: Resource, most: u64) -> anyhow::Result<()> {
    let rule = Rlimit { current: Some(most), maximum: Some(most) };
    setrlimit(resource, rule).with_context(|| format!("limit of {resource:?}"))
}

fn filter() -> anyhow::Result<BpfProgram> {
    let rules: BTreeMap<_, _> = ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(rules, refused, SeccompAction::Allow, TargetArch::x86_64)?;
    Ok(filter.try_into()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_reaches_other_processes_is_allowed() {
        for call in [
            libc::SYS_ptrace,
            libc::SYS_kill,
            libc::SYS_execve,
            libc::SYS_clone,
            libc::SYS_mount,
            libc::SYS_setns,
            libc::SYS_unlinkat,
            libc::SYS_renameat,
            libc::SYS_bind,
        ] {
            assert!(!ALLOWED.contains(&call), "{call}");
        }
        assert!(!filter().unwrap().is_empty());
    }
}
