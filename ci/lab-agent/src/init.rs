//! The first process: makes the machine habitable, starts the server, reaps.
//!
//! ```text
//!   mount ── load modules ── start `serve` ── wait for any child ──┐
//!                                                 ▲                │ an orphan
//!                                                 └────────────────┤
//!                                                                  │ the server
//!                                              power off ◄─────────┘
//! ```
//!
//! It never returns and never lets a failure leave the machine running with nobody in it.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::process::{WaitOptions, wait};
use rustix::system::{RebootCommand, finit_module, reboot};

use crate::{guest, mark, net};

/// Where the lab's initramfs lists its modules: one a line, path, then parameters.
const MODULE_ORDER_PATH: &str = "/lib/modules/load-order";

/// What is mounted where; the last field says whether the machine is of use without it.
const MOUNTS: &[(&str, &str, &str, bool)] = &[
    ("proc", "/proc", "", true),
    ("sysfs", "/sys", "", true),
    ("devtmpfs", "/dev", "mode=0755", true),
    ("devpts", "/dev/pts", "mode=0620,ptmxmode=0666", false),
    ("tmpfs", "/dev/shm", "mode=1777", false),
    ("tmpfs", "/run", "mode=0755", true),
    ("tmpfs", "/tmp", "mode=1777", true),
    ("cgroup2", "/sys/fs/cgroup", "", false),
    ("debugfs", "/sys/kernel/debug", "", false),
];

/// Is PID 1, from the first moment to the last.
pub(crate) fn run() -> ! {
    mark::mark();
    let served = prepare().and_then(|()| match guest::commands() {
        Some(commands) => guest::run(&commands),
        None => serve_and_reap(),
    });
    match served {
        Ok(status) => eprintln!("lab-agent: the server ended ({status}), switching off"),
        Err(error) => eprintln!("lab-agent: {error:#}, switching off"),
    }
    rustix::fs::sync();
    net::set_all_down();
    loop {
        // It returns only on failure, which leaves nothing better to do than to try again.
        let _ = reboot(RebootCommand::PowerOff);
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}

fn prepare() -> Result<()> {
    for (kind, path, options, is_needed) in MOUNTS {
        match mount_with(kind, kind, path, MountFlags::empty(), options) {
            Err(error) if *is_needed => return Err(error),
            Err(error) => eprintln!("lab-agent: {error:#}"),
            Ok(()) => {}
        }
    }
    let order = fs::read_to_string(MODULE_ORDER_PATH).unwrap_or_default();
    for line in order.lines() {
        // A module that this machine has no hardware for says so; the test decides what it
        // needs, and the log says why it isn't there.
        if let Err(error) = load_module(line) {
            eprintln!("lab-agent: {error:#}");
        }
    }
    net_up();
    Ok(())
}

/// Mounts `source` on `path`, which is made if it isn't there.
pub(crate) fn mount_at(kind: &str, source: &str, path: &str, is_read_only: bool) -> Result<()> {
    let flags = if is_read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    mount_with(kind, source, path, flags, "")
}

fn mount_with(
    kind: &str,
    source: &str,
    path: &str,
    flags: MountFlags,
    options: &str,
) -> Result<()> {
    let context = || format!("cannot mount {kind} on {path}");
    fs::create_dir_all(path).with_context(context)?;
    let options = CString::new(options)?;
    match mount(source, path, kind, flags, &*options) {
        // A guest's first init may have mounted it.
        Ok(()) | Err(Errno::BUSY) => Ok(()),
        Err(error) => Err(error).with_context(context),
    }
}

fn load_module(line: &str) -> Result<()> {
    let (path, params) = line.split_once(' ').unwrap_or((line, ""));
    let params = CString::new(params)?;
    let file = File::open(path).with_context(|| format!("cannot open module {path}"))?;
    match finit_module(&file, &params, 0) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot load module {path}")),
    }
}

/// Sets the loopback interface up; without it, 127.0.0.1 isn't reachable.
fn net_up() {
    if let Err(error) = crate::net::set_up("lo") {
        eprintln!("lab-agent: {error:#}");
    }
}

/// Runs the server until it ends; returns how it ended.
fn serve_and_reap() -> Result<String> {
    let server = Command::new("/proc/self/exe")
        .arg("serve")
        .arg0("lab-agent")
        .stdin(Stdio::null())
        .spawn()
        .context("cannot start the server")?;
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid.as_raw_nonzero().get().unsigned_abs() == server.id() => {
                return Ok(format!("{status:?}"));
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for the server"),
        }
    }
}
