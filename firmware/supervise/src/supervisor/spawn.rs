//! The step from this process to a program: the one place of this crate with `unsafe`.
//!
//! Between fork and exec a child gets a session of its own, asks to be killed when this process dies,
//! moves into its namespace and its cgroup, and says how soon it may end when memory runs out. All of that are plain system calls on values that were made
//! before the fork.

#![expect(unsafe_code, reason = "code between fork and exec, and descriptors by number")]

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal, setsid};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::program::Program;

/// What a program gets besides its description.
#[derive(Debug)]
pub(super) struct Surroundings {
    /// Where its output and errors go; nowhere if there is none.
    pub(super) output: Option<OwnedFd>,
    /// Its network namespace.
    pub(super) network: Option<File>,
    /// `cgroup.procs` of its cgroup.
    pub(super) cgroup: Option<File>,
}

/// Starts a program as a child of the calling thread, which must be the one that lives longest: when it
/// ends, the program is killed.
pub(super) fn spawn(program: &Program, surroundings: Surroundings) -> io::Result<Pid> {
    let (path, arguments) = program.argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = Command::new(path);
    command.args(arguments).env_clear().envs(&program.env).stdin(Stdio::null());
    command.current_dir(program.directory.as_deref().unwrap_or_else(|| "/".as_ref()));
    let (output, errors) = match surroundings.output {
        Some(pipe) => (pipe.try_clone()?.into(), pipe.into()),
        None => (Stdio::null(), Stdio::null()),
    };
    command.stdout(output).stderr(errors);
    let (network, cgroup) = (surroundings.network, surroundings.cgroup);
    let score = (program.oom_score_adj != 0).then(|| program.oom_score_adj.to_string());
    let parent = getpid();
    let enter = move || -> io::Result<()> {
        setsid()?;
        set_parent_process_death_signal(Some(Signal::KILL))?;
        if getppid() != Some(parent) {
            // It died before the line above.
            return Err(Errno::SRCH.into());
        }
        if let Some(cgroup) = &cgroup {
            // 0 is whoever writes it.
            rustix::io::write(cgroup, b"0")?;
        }
        if let Some(score) = &score {
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            let file = rustix::fs::open(c"/proc/self/oom_score_adj", flags, Mode::empty())?;
            // To be spared takes a right that not every machine gives; it runs all the same.
            match rustix::io::write(&file, score.as_bytes()) {
                Ok(_) | Err(Errno::ACCESS | Errno::PERM) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if let Some(network) = &network {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec only functions that are safe after a fork of a process with several
    // threads may be called. `enter` makes system calls through rustix, on descriptors and numbers that
    // it owns; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(enter) };
    let child = command.spawn()?;
    // Whoever reaps all children reaps this one too.
    i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or_else(|| io::Error::other("no pid"))
}

/// Closes all descriptors but the standard streams: what was inherited is nobody's here, and must not
/// reach a program.
///
/// # Errors
/// `/proc` is not there.
///
/// # Safety
/// Nothing in this process may own a descriptor: call it first in `main`, while there is one thread.
pub unsafe fn close_inherited() -> io::Result<()> {
    let numbers: Vec<RawFd> = fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|number| *number > 2)
        .collect();
    // The folder's own one is closed by now.
    let is_open = |number: &RawFd| fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_ok();
    for number in numbers.into_iter().filter(is_open) {
        // SAFETY: it is open, and nothing owns it, as this function asks of its callers.
        unsafe { rustix::io::close(number) };
    }
    Ok(())
}
