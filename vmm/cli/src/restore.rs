//! `vmm restore`: start from a snapshot.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use vmm_spec::restore::{OwnFlags, RestoreClock, RestoreMemory, RestoreSpec};

use crate::{check, start};

/// Start a VM from a snapshot; the process ends with it
///
/// The guest goes on where it was when the snapshot was taken. What the host must not share with other
/// VMs from the same snapshot is named here; all else is as in the snapshot. Not in it are its kernel and
/// initramfs, which must be where they were, and its disks, which must too unless others are named here.
///
/// The guest is told that it is another one now: its connections over the socket device are gone, and
/// it gets new randomness and the time of day, if something in it listens.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct RestoreArguments {
    /// The directory that `vmm snapshot` made
    snapshot: PathBuf,
    /// Memory is read when the guest touches it and shared with its clones until it is written to (the
    /// snapshot must stay as it is), or copied at once
    #[arg(long, value_enum, value_name = "HOW", default_value = "lazy")]
    memory: Memory,
    /// The guest's clocks have moved on by the time that passed since, or continue as if none had
    #[arg(long, value_enum, value_name = "HOW", default_value = "advance")]
    clock: Clock,
    /// Read all of the snapshot first, and refuse it if its memory is damaged
    #[arg(long)]
    verify: bool,
    /// Wait for `vmm resume` before the guest goes on
    #[arg(long, requires = "api_socket")]
    paused: bool,
    /// Another file for the disk with this id; may be repeated
    #[arg(long, value_name = "id=,path=")]
    disk: Vec<String>,
    /// Another tap for the network card with this id; may be repeated
    #[arg(long, value_name = "id=,tap=")]
    net: Vec<String>,
    /// Another source for the file system with this tag; may be repeated
    #[arg(long, value_name = "tag=,OPTIONS")]
    fs: Vec<String>,
    /// Another socket for the socket device
    #[arg(long, value_name = "socket=")]
    vsock: Option<String>,
    /// Where the console goes: stdio, pty, file=PATH
    #[arg(long, value_name = "WHERE")]
    console: Option<String>,
    /// Where the serial port goes, the same
    #[arg(long, value_name = "WHERE")]
    serial: Option<String>,
    /// Listen for commands here; the snapshot's own socket is not used
    #[arg(long, value_name = "PATH")]
    api_socket: Option<PathBuf>,
    /// The VMM's jail, as for `vmm run`: uid=, gid=, cgroup=DIR, memory_max=, cpu_max_percent=,
    /// pids_max=, io_max=
    #[arg(long, value_name = "OPTIONS")]
    jail: Option<String>,
    /// Don't lock the VMM up: for debugging
    #[arg(long, conflicts_with = "jail")]
    no_jail: bool,
}

const AFTER_HELP: &str = "\
Examples:
  vmm restore /srv/snapshots/web --api-socket /run/vm/a.sock
  vmm restore /srv/snapshots/web --net id=net0,tap=tap7 --disk id=disk0,path=clone7.img
  vmm restore /srv/snapshots/web --vsock socket=/run/vm/b.vsock --paused --api-socket /run/vm/b.sock

Disks go on from what is on them now: give each clone a copy from the time of the snapshot, which
`vmm snapshot --then pause` leaves time to make.

Exit codes are those of `vmm run`.";

#[derive(Clone, Copy, ValueEnum)]
enum Memory {
    Lazy,
    Copy,
}

#[derive(Clone, Copy, ValueEnum)]
enum Clock {
    Advance,
    Continue,
}

/// Runs the command: returns when the VM has ended.
pub(crate) fn run(arguments: &RestoreArguments) -> anyhow::Result<u8> {
    let spec = RestoreSpec {
        snapshot: arguments.snapshot.clone(),
        memory: match arguments.memory {
            Memory::Lazy => RestoreMemory::Lazy,
            Memory::Copy => RestoreMemory::Copy,
        },
        clock: match arguments.clock {
            Clock::Advance => RestoreClock::Advance,
            Clock::Continue => RestoreClock::Continue,
        },
        verify: arguments.verify,
        paused: arguments.paused,
        own: OwnFlags {
            disk: arguments.disk.clone(),
            net: arguments.net.clone(),
            fs: arguments.fs.clone(),
            vsock: arguments.vsock.clone(),
            console: arguments.console.clone(),
            serial: arguments.serial.clone(),
            api_socket: arguments.api_socket.clone(),
            jail: arguments.jail.clone(),
            no_jail: arguments.no_jail,
        },
    };
    check::require_kvm()?;
    Ok(start::restore(&spec)?.code())
}
