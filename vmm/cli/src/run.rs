//! `vmm run`: start a VM, and be it.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use vmm_spec::{Flags, VmSpec};

use crate::{check, exit::Usage, output, start};

/// Largest description that is read.
const CONFIG_SIZE_MAX: u64 = 1 << 20;

/// Start a VM; the process ends with it
///
/// Everything can come from flags, from a JSON description (--config), or both: a flag overrides what it
/// names in the file. Options of a device are written key=value,key=value; a comma in a value is written
/// twice.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct RunArguments {
    /// Read a description from this file, or from standard input if it is `-`
    #[arg(long, value_name = "FILE", help_heading = "Description")]
    config: Option<PathBuf>,
    /// Print the description that the file and the flags make, and don't start it
    #[arg(long, help_heading = "Description")]
    print_config: bool,
    /// The guest's kernel: an ELF vmlinux, a bzImage, or an ELF with a PVH entry
    #[arg(long, value_name = "FILE", help_heading = "Boot")]
    kernel: Option<PathBuf>,
    /// The initial file system
    #[arg(long, value_name = "FILE", help_heading = "Boot")]
    initramfs: Option<PathBuf>,
    /// The kernel's command line [default: one that boots fast and quietly]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, help_heading = "Boot")]
    cmdline: Option<String>,
    /// Processors, 1 to 255; template=host|baseline-v2|baseline-v3 says what they can
    /// [default: 1,template=host]
    #[arg(long, value_name = "N[,template=]", help_heading = "Machine")]
    cpus: Option<String>,
    /// Memory, such as 512M or 2G; hugepages=off|2M|1G, shared, thp=off [default: 256M]
    #[arg(long, value_name = "SIZE[,OPTIONS]", help_heading = "Machine")]
    memory: Option<String>,
    /// A disk: readonly, serial=, rate=100M/s+1000ops/s, burst=200M+5000ops, direct, queues=, id=; may
    /// be repeated
    #[arg(long, value_name = "PATH[,OPTIONS]", help_heading = "Devices")]
    disk: Vec<String>,
    /// A network card on a tap interface (or fd=, open already): mac=, queues=, mtu=, rate=, burst=, id=;
    /// may be repeated
    #[arg(long, value_name = "TAP[,OPTIONS]", help_heading = "Devices")]
    net: Vec<String>,
    /// A file system: `tag=,flist=FILE,cache=SOCKET[,upper=DIR[,quota=SIZE]]` or
    /// `tag=,dir=DIR[,readonly][,quota=SIZE]`; may be repeated
    #[arg(long, value_name = "OPTIONS", help_heading = "Devices")]
    fs: Vec<String>,
    /// A socket device: the guest's address, and where the host connects
    #[arg(long, value_name = "cid=,socket=", help_heading = "Devices")]
    vsock: Option<String>,
    /// An entropy source [default: off]
    #[arg(long, value_name = "on|off", num_args = 0..=1, default_missing_value = "on", help_heading = "Devices")]
    rng: Option<String>,
    /// A memory balloon: target=SIZE, deflate_on_oom=off, free_page_reporting=off
    #[arg(long, value_name = "OPTIONS", num_args = 0..=1, default_missing_value = "", help_heading = "Devices")]
    balloon: Option<String>,
    /// Where the console (hvc0) goes: off, stdio, pty, file=PATH [default: off]
    #[arg(long, value_name = "WHERE", help_heading = "Devices")]
    console: Option<String>,
    /// Where the serial port (ttyS0) goes, the same; slower than the console [default: off]
    #[arg(long, value_name = "WHERE", help_heading = "Devices")]
    serial: Option<String>,
    /// A device through which the guest's kernel says that it panicked [default: on]
    #[arg(long, value_name = "on|off", help_heading = "Devices")]
    pvpanic: Option<String>,
    /// End the guest when its heartbeat over vsock stops for so long
    #[arg(long, value_name = "SECONDS", help_heading = "Behaviour")]
    watchdog: Option<String>,
    /// What a reset that the guest asks for does: reboot, exit [default: reboot]
    #[arg(long, value_name = "WHAT", help_heading = "Behaviour")]
    on_reset: Option<String>,
    /// Listen for commands here
    #[arg(long, value_name = "PATH", help_heading = "Behaviour")]
    api_socket: Option<PathBuf>,
    /// The VMM's jail: uid=, gid= (whom it becomes, if root starts it); cgroup=DIR, memory_max=SIZE,
    /// cpu_max_percent=, pids_max=, io_max=RATE (what it may take)
    #[arg(long, value_name = "OPTIONS", help_heading = "Behaviour")]
    jail: Option<String>,
    /// Don't lock the VMM up: for debugging, since a guest that breaks out is then you
    #[arg(long, help_heading = "Behaviour", conflicts_with = "jail")]
    no_jail: bool,
}

const AFTER_HELP: &str = "\
Examples:
  vmm run --kernel vmlinux --initramfs init.cpio --console stdio
  vmm run --kernel vmlinux --cpus 2 --memory 1G --disk root.img,serial=rootfs --net tap0
  vmm run --kernel vmlinux --initramfs guest.cpio --console stdio \\
      --fs tag=root,flist=app.fl,cache=/run/flist/cached.sock --disk upper.img,serial=rootfs
  vmm run --config vm.json --memory 2G --print-config

Exit codes:
  0   the guest switched itself off, or was stopped on request
  1   the host failed: no KVM, no memory, a file that cannot be opened
  2   the description or the command line is wrong; nothing was started
  10  the guest asked for a reset, and --on-reset is exit
  11  the guest crashed
  12  the guest's heartbeat stopped for longer than --watchdog allows
  13  the VMM made a system call that its jail forbids: the guest may have broken into it";

/// Runs the command: returns when the VM has ended.
pub(crate) fn run(arguments: &RunArguments) -> anyhow::Result<u8> {
    let base = match &arguments.config {
        Some(path) => read_config(path)?,
        None => VmSpec::default(),
    };
    let spec = arguments.flags().apply(base)?;
    if arguments.print_config {
        // Whatever is printed can be started.
        output::print(&spec.verify()?.spec().to_json()?)?;
        return Ok(0);
    }
    let spec = spec.verify()?;
    check::require_kvm()?;
    Ok(start::start(&spec)?.code())
}

impl RunArguments {
    fn flags(&self) -> Flags {
        Flags {
            kernel: self.kernel.clone(),
            initramfs: self.initramfs.clone(),
            cmdline: self.cmdline.clone(),
            cpus: self.cpus.clone(),
            memory: self.memory.clone(),
            disk: self.disk.clone(),
            net: self.net.clone(),
            fs: self.fs.clone(),
            vsock: self.vsock.clone(),
            rng: self.rng.clone(),
            balloon: self.balloon.clone(),
            console: self.console.clone(),
            serial: self.serial.clone(),
            pvpanic: self.pvpanic.clone(),
            watchdog: self.watchdog.clone(),
            on_reset: self.on_reset.clone(),
            api_socket: self.api_socket.clone(),
            jail: self.jail.clone(),
            no_jail: self.no_jail,
        }
    }
}

fn read_config(path: &Path) -> anyhow::Result<VmSpec> {
    let name = if path == Path::new("-") { "standard input" } else { &path.to_string_lossy() };
    let mut json = Vec::new();
    let read = |mut from: Box<dyn Read>| from.read_to_end(&mut json);
    let opened: std::io::Result<Box<dyn Read>> = if path == Path::new("-") {
        Ok(Box::new(std::io::stdin().take(CONFIG_SIZE_MAX + 1)))
    } else {
        std::fs::File::open(path).map(|file| Box::new(file.take(CONFIG_SIZE_MAX + 1)) as Box<_>)
    };
    opened.and_then(read).with_context(|| name.to_owned())?;
    if json.len() as u64 > CONFIG_SIZE_MAX {
        return Err(Usage(format!("{name}: more than 1 MiB is no description")).into());
    }
    VmSpec::from_json(&json).with_context(|| name.to_owned())
}
