//! The machine that VMMs run in, and guests in it.
//!
//! **Some runs hang, and are repeated.** When KVM injects an interrupt, QEMU's emulation of `VMRUN`
//! (`helper_vmrun`, as of 7.2) leaves the vector behind as if it were a pending exception. If the
//! machine's next timer is due before anything else has taken that away, which is a matter of a few
//! thousand instructions, the guest gets the interrupt once more, in the middle of its handler and with
//! interrupts off: it waits for ever for a lock that it holds. Seen in a guest's stack, with the timer's
//! interrupt twice in a row. It happens where the clock's phase and the guest's meet, so another run is
//! well; machines with several CPUs meet no timers there. Such a guest's `PAUSE` leaves the emulator each
//! time, so that the machine's clock all but stands still: what bounds an attempt is the emulator's
//! processor time, whose meaning does not depend on what else this host does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use boot_image::guest::{Built, Recipe, build, build_dynamic, build_init, build_static};
use boot_image::{Cache, Flavour, Initramfs, KernelPackage};
use lab::{Lab, LabError, Machine, Outcome, Output, Running};
use tempfile::TempDir;

use super::trace::Tracer;
use super::{clones, null_guest, share};
use crate::process::processor_seconds;

/// What a guest may take, in the machine's time.
pub(super) const GUEST_LIMIT: Duration = Duration::from_secs(240);
/// What a guest may take of the emulator's processor time: several times what any takes.
const ATTEMPT_SECONDS: f64 = 40.0;
/// Between two looks at that.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Until a guest that is killed has ended.
const KILL_LIMIT: Duration = Duration::from_secs(300);
const SIGKILL: u32 = 9;
/// How often a guest is begun that does not come to its end.
const ATTEMPTS: u32 = 6;
/// What the machine may take to boot, and how long it may live, on the slowest host.
const BOOT_LIMIT: Duration = Duration::from_secs(900);
const LIFE: Duration = Duration::from_secs(2 * 3600);
/// Memory of a guest, as in the published figures.
pub(super) const MEMORY_MIB: &str = "256";
/// The programs that scripts use.
const PROGRAMS: [&str; 6] = ["/bin/sh", "/bin/cat", "/bin/dd", "/sbin/ip", "/bin/cp", "/bin/rm"];
const QEMU: &str = "/usr/bin/qemu-system-x86_64";
/// What QEMU loads besides.
const QEMU_FILES: [&str; 2] = ["/usr/share/qemu/qboot.rom", "/usr/share/qemu/pvh.bin"];

/// The machine.
pub(super) struct Host {
    pub(super) machine: Machine,
    pub(super) vmm_size: u64,
    pub(super) has_qemu: bool,
    tracer: Tracer,
    _files: TempDir,
    _lab: Lab,
}

/// What a guest did.
pub(super) struct Run {
    pub(super) output: Output,
    /// Instructions from the start of the VMM to the guest's mark, if it made one.
    pub(super) to_mark: Option<u64>,
}

impl Host {
    /// Builds what is needed and boots it. For the whole table it has QEMU and an image, too.
    pub(super) fn boot(is_whole: bool) -> Result<Self> {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let cache = Cache::from_env()?;
        // The image names its store by its path, and the machine has a `/tmp` of its own.
        let files = tempfile::tempdir_in(cache.folder("guest-bench")?)?;
        let vmm = build_static(&workspace, &["--package", "vmm", "--bin", "vmm"])?;
        let agent = build_static(&workspace, &["--package", "lab-agent", "--bin", "lab-agent"])?;
        let null = files.path().join("null");
        fs::write(&null, null_guest::elf())?;
        let (vmlinux, image) = agent_image(&cache, &agent, files.path())?;
        let lab = Lab::new("bench-vmm")?;
        let mut builder = lab.machine("host").count_instructions().nested_kvm().memory_mib(1536);
        builder = builder.modules(&["tun"]).host_file("/vmm", 0o755, &vmm);
        builder = builder.host_file("/vmlinux", 0o644, &vmlinux);
        builder = builder.host_file("/agent.img", 0o644, &image).host_file("/null", 0o644, &null);
        for program in PROGRAMS {
            builder = builder.program(program);
        }
        if is_whole {
            let target = ["--package", "vmm-machine", "--example", "boot"];
            builder = builder.host_file("/boot", 0o755, &build_static(&workspace, &target)?);
            builder = builder.program(QEMU);
            for file in QEMU_FILES {
                builder = builder.host_file(file, 0o644, file.as_ref());
            }
            let out = cache.folder("guest-bench")?;
            let kernel = KernelPackage::fetch(Flavour::Cloud, &cache)?;
            let init = build_init(&workspace)?;
            let recipe = Recipe { kernel: &kernel, init: &init, out: &out, zstd_level: 3 };
            builder = builder.host_file("/initramfs.img", 0o644, &build(&recipe)?.initramfs);
            builder = clones::add_guests(builder, &agent);
            let flist = build_dynamic(&workspace, &["--package", "flist", "--bin", "flist"])?;
            builder = builder.program(&flist).host_file("/flist", 0o755, &flist);
            builder = share::add_image(builder, &agent, &flist, files.path())?;
        }
        let machine = builder.boot_timeout(BOOT_LIMIT).life(LIFE).boot()?;
        let tracer = Tracer::start(&machine)?;
        let vmm_size = fs::metadata(&vmm)?.len();
        Ok(Self { machine, vmm_size, has_qemu: is_whole, tracer, _files: files, _lab: lab })
    }

    /// Runs a VMM to its end, which is to be `outcome`.
    pub(super) fn run(&self, argv: &[&str], outcome: &Outcome) -> Result<Run> {
        self.repeat(|| self.attempt(self.command(argv), outcome))
    }

    fn command(&self, argv: &[&str]) -> lab::Command<'_> {
        self.machine.command(argv).env("VMM_LOG", "info").timeout(GUEST_LIMIT)
    }

    /// Does something with guests until they do not hang (see above), a few times at most.
    pub(super) fn repeat<T>(&self, attempt: impl Fn() -> Result<T>) -> Result<T> {
        let mut failures = 0;
        loop {
            match attempt() {
                Err(error) if failures + 1 < ATTEMPTS => {
                    failures += 1;
                    eprintln!("a guest did not come to its end, and begins again: {error:#}");
                    self.end_guests()?;
                }
                result => return result,
            }
        }
    }

    /// Kills the VMMs that an attempt has left behind, and removes what they have made.
    fn end_guests(&self) -> Result<()> {
        let script = "for process in /proc/[0-9]*; do case $(cat $process/comm 2>/dev/null) in \
                      vmm|qemu-system*) kill -9 ${process#/proc/};; esac; done; \
                      ip link delete tap0 2>/dev/null; rm -rf /template /run/template.* /run/clone*";
        self.machine.run(&["/bin/sh", "-c", script])?.success()?;
        Ok(())
    }

    /// Runs a VMM to its end, unless its guest hangs.
    pub(super) fn attempt(&self, command: lab::Command<'_>, outcome: &Outcome) -> Result<Run> {
        self.tracer.clear(&self.machine)?;
        let output = self.wait(command.spawn()?)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(&output.outcome == outcome, "{:?}: {}{errors}", output.outcome, output.text());
        let mark = self.tracer.mark_after(&self.machine, output.tsc_start)?;
        let to_mark = mark.map(|mark| mark - output.tsc_start);
        Ok(Run { output, to_mark })
    }

    /// Waits for a guest's end, unless it hangs.
    pub(super) fn wait(&self, running: Running) -> Result<Output> {
        self.watch(&running, || running.has_ended(LOOK_INTERVAL))?;
        Ok(running.wait()?)
    }

    /// Waits until a guest's console says `needle`, unless it hangs.
    pub(super) fn wait_for(&self, running: &Running, needle: &str) -> Result<()> {
        self.watch(running, || running.has_said(needle, LOOK_INTERVAL))
    }

    /// Looks again and again, until what is waited for is there or the guest hangs and is killed.
    fn watch(&self, running: &Running, look: impl Fn() -> Result<bool, LabError>) -> Result<()> {
        let process = self.machine.process_id();
        let begun = processor_seconds(process)?;
        while !look()? {
            if processor_seconds(process)? >= begun + ATTEMPT_SECONDS {
                running.signal(SIGKILL)?;
                running.has_ended(KILL_LIMIT)?;
                bail!("it hangs after {ATTEMPT_SECONDS} s of processor time");
            }
        }
        Ok(())
    }

    /// Runs `ours` in a shell, with `before` and `after` around it.
    pub(super) fn script(&self, before: &str, command: &str, after: &str) -> Result<Run> {
        let script = format!("{before}\n{command}\nstatus=$?\n{after}\nexit $status\n");
        self.run(&["/bin/sh", "-c", &script], &Outcome::Exited(0))
    }

    /// Exits of all virtual CPUs while `argv` ran.
    pub(super) fn exits_of(&self, argv: &[&str]) -> Result<u64> {
        self.repeat(|| {
            self.tracer.count_exits(&self.machine)?;
            let run = self.attempt(self.command(argv), &Outcome::Exited(0));
            let exits = self.tracer.exits(&self.machine)?;
            run.map(|_| exits)
        })
    }
}

impl Run {
    /// Instructions to the mark that there must be.
    pub(super) fn mark(&self) -> Result<u64> {
        self.to_mark.with_context(|| format!("the guest made no mark: {}", self.output.text()))
    }

    /// The number that stands before ` instructions` in the line that begins with `what`.
    pub(super) fn instructions(&self, what: &str) -> Result<u64> {
        let text = self.output.text();
        let line = text.lines().find(|line| line.starts_with(what));
        let number = line.and_then(|line| line.trim_end().strip_suffix(" instructions"));
        let number = number.and_then(|line| line.rsplit(' ').next()).and_then(|n| n.parse().ok());
        number.with_context(|| format!("no line {what:?} with instructions in: {text}"))
    }
}

/// Our command line for a guest with that command line, and these options.
pub(super) fn ours<'a>(words: &'a str, options: &[&'a str]) -> Vec<&'a str> {
    let run = ["/vmm", "run", "--no-jail", "--kernel", "/vmlinux", "--initramfs", "/agent.img"];
    [&run[..], &["--cmdline", words, "--memory", "256M"], options].concat()
}

/// QEMU's for the same.
pub(super) fn qemu<'a>(words: &'a str, options: &[&'a str]) -> Vec<&'a str> {
    let has_bus = options.iter().any(|option| option.contains("-pci"));
    let machine = if has_bus {
        "microvm,accel=kvm,pit=off,pic=off,rtc=on,isa-serial=on,acpi=on,pcie=on"
    } else {
        "microvm,accel=kvm,pit=off,pic=off,rtc=on,isa-serial=off,acpi=on"
    };
    let run = [QEMU, "-M", machine, "-cpu", "host", "-smp", "1", "-m", MEMORY_MIB];
    let plain = ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"];
    let files = ["-kernel", "/vmlinux", "-initrd", "/agent.img", "-append", words];
    [&run[..], &plain, &["-L", "/usr/share/qemu", "-bios", "qboot.rom"], &files, options].concat()
}

/// The guests' kernel, and their initramfs with the agent for its init. Behind it lie the modules that
/// the agent loads itself.
fn agent_image(cache: &Cache, agent: &Path, folder: &Path) -> Result<(PathBuf, PathBuf)> {
    let kernel = KernelPackage::fetch(Flavour::Cloud, cache)?;
    let out = folder.join("agent");
    let recipe = Recipe { kernel: &kernel, init: agent, out: &out, zstd_level: 3 };
    let Built { vmlinux, initramfs, .. } = build(&recipe)?;
    let mut modules = Initramfs::new();
    modules.modules(&kernel.modules()?, &["virtio_pci", "virtio_blk", "virtio_net"])?;
    let image = folder.join("agent.img");
    fs::write(&image, [fs::read(&initramfs)?, modules.build()?].concat())?;
    Ok((vmlinux, image))
}

/// Runs a program of this host that must succeed.
pub(super) fn succeed(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}", errors.trim());
    Ok(())
}
