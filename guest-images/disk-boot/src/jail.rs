//! The jail around the reader of a stranger's disk.
//!
//! Everything that it needs is open before: the disk, and the files for kernel and initial file system.
//! Then it gives up the rest for good, in a process with one thread:
//!
//! | wall | what is left |
//! |---|---|
//! | limits | [`MEMORY_SIZE_MAX`], [`CPU_TIME_MAX_S`], no new descriptor, no process, no core |
//! | Landlock | no file, no socket, no signal; where the kernel has it |
//! | seccomp | reading and writing what is open, memory that can't be executed, ending |
//!
//! A call that is not in the list ends the process.

use std::collections::BTreeMap;
use std::io;

use landlock::{ABI, Access as _, AccessFs, AccessNet, Ruleset, RulesetAttr as _, Scope};
use rustix::process::{Resource, Rlimit, Signal, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// Bytes of address space: the program, and what reading takes, which is a few MiB.
pub(crate) const MEMORY_SIZE_MAX: u64 = 512 << 20;
/// Seconds of a processor: copying the largest files takes a few.
pub(crate) const CPU_TIME_MAX_S: u64 = 60;
/// The newest Landlock that this was written for; older kernels enforce what they know.
const NEWEST: ABI = ABI::V10;

/// Calls that are allowed, and why.
const ALLOWED: [(i64, &str); 22] = [
    (libc::SYS_read, "what is open"),
    (libc::SYS_pread64, "the disk"),
    (libc::SYS_write, "the kernel's file, output, an error"),
    (libc::SYS_writev, "output, an error"),
    (libc::SYS_lseek, "the disk's size"),
    (libc::SYS_close, "what was written"),
    (libc::SYS_fcntl, "a check of debug builds, before it is closed"),
    (libc::SYS_munmap, "the allocator"),
    (libc::SYS_mremap, "the allocator"),
    (libc::SYS_madvise, "the allocator"),
    (libc::SYS_brk, "the allocator"),
    (libc::SYS_futex, "locks of the library"),
    (libc::SYS_getrandom, "the allocator, hash tables"),
    (libc::SYS_clock_gettime, "time, where the vDSO can't read it"),
    (libc::SYS_sigaltstack, "the end of the thread"),
    (libc::SYS_rt_sigprocmask, "abort"),
    (libc::SYS_rt_sigaction, "abort"),
    (libc::SYS_rt_sigreturn, "a signal's end"),
    (libc::SYS_gettid, "abort"),
    (libc::SYS_getpid, "abort"),
    (libc::SYS_exit, "the end"),
    (libc::SYS_exit_group, "the end"),
];
/// Calls that are allowed for memory that can't be executed: the allocator's.
const NOT_EXECUTABLE: [i64; 2] = [libc::SYS_mmap, libc::SYS_mprotect];

/// Has this process end with the one that started it.
pub(crate) fn end_with_parent() -> io::Result<()> {
    Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// Closes the jail. `file_size_max` is the size of the largest file that is written.
pub(crate) fn close(file_size_max: u64) -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    // What the kernel can't do is done by the filter alone.
    Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(NEWEST)))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(NEWEST)))
        .and_then(Ruleset::create)
        .and_then(landlock::RulesetCreated::restrict_self)
        .map_err(io::Error::other)?;
    let program = program()?;
    for (resource, limit) in [
        (Resource::As, MEMORY_SIZE_MAX),
        (Resource::Cpu, CPU_TIME_MAX_S),
        (Resource::Fsize, file_size_max),
        (Resource::Core, 0),
        (Resource::Nproc, 0),
        (Resource::Nofile, 0),
    ] {
        limit_to(resource, limit)?;
    }
    seccompiler::apply_filter(&program).map_err(io::Error::other)
}

/// Limits a resource; a lower limit that somebody else has set is as good.
fn limit_to(resource: Resource, limit: u64) -> io::Result<()> {
    let there = rustix::process::getrlimit(resource);
    let limit = limit.min(there.maximum.unwrap_or(u64::MAX));
    Ok(setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(limit) })?)
}

fn program() -> io::Result<BpfProgram> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().map(|(call, _)| (*call, Vec::new())).collect();
    for call in NOT_EXECUTABLE {
        let executable = u64::from(libc::PROT_EXEC.unsigned_abs());
        let operation = SeccompCmpOp::MaskedEq(executable);
        let condition = SeccompCondition::new(2, SeccompCmpArgLen::Dword, operation, 0);
        let rule = condition.and_then(|condition| SeccompRule::new(vec![condition]));
        rules.insert(call, vec![rule.map_err(io::Error::other)?]);
    }
    let (forbidden, allowed) = (SeccompAction::KillProcess, SeccompAction::Allow);
    let filter = SeccompFilter::new(rules, forbidden, allowed, TargetArch::x86_64);
    filter.and_then(TryInto::try_into).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_is_a_program_and_lets_nobody_out() {
        assert!(!program().unwrap().is_empty());
        let never = [
            libc::SYS_open,
            libc::SYS_openat,
            libc::SYS_socket,
            libc::SYS_execve,
            libc::SYS_clone,
            libc::SYS_clone3,
            libc::SYS_ioctl,
            libc::SYS_ptrace,
            libc::SYS_kill,
            libc::SYS_prctl,
        ];
        let allowed = |call| ALLOWED.iter().any(|(allowed, _)| *allowed == call);
        assert!(!never.into_iter().any(allowed));
    }
}
