//! The VMM against QEMU's microvm: the same kernel, initramfs and command line, in one machine of the
//! lab that counts instructions.
//!
//! A guest here is Debian's cloud kernel and our initramfs. Its init finds no `cidata` and switches the
//! machine off, so a boot is everything from the start of the VMM's process to its end: loading, the
//! kernel, the first program, power-off, teardown. Instructions are those of host and guest together,
//! repeatable to a fraction of a percent whatever else this machine does. [`clones`] measures guests that
//! go on from a snapshot.

mod clones;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use boot_image::guest::{Built, Recipe, build, build_init, build_static};
use boot_image::{Cache, Flavour, KernelPackage};
use lab::{Lab, Machine, Output};

use crate::table::{Goal, Row, Table};

/// What a boot may take, on the slowest machine.
const BOOT_LIMIT: Duration = Duration::from_secs(240);
/// Memory of a guest, as in the published figures.
const MEMORY_MIB: &str = "256";
/// Both VMMs' guests get these, and the words of a row.
const WORDS: &str = "quiet reboot=k panic=1 rootdelay=0 8250.nr_uarts=0 pci=noearly";
/// Without the kernel's tests of its own ciphers, half of a boot.
const NO_TESTS: &str = "cryptomgr.notests";
const QEMU: &str = "/usr/bin/qemu-system-x86_64";
/// What QEMU loads besides.
const QEMU_FILES: [&str; 2] = ["/usr/share/qemu/qboot.rom", "/usr/share/qemu/pvh.bin"];
const MIB: f64 = 1048576.0;

/// Our boots beside QEMU's.
pub(crate) fn compared() -> anyhow::Result<Table> {
    let bench = Bench::new(true)?;
    let mut table = Table::default();
    bench.binary(&mut table)?;
    for (what, words) in [("as it comes", ""), ("without self-tests", NO_TESTS)] {
        let ours = bench.ours(words)?;
        let peer = bench.qemu(words)?;
        table.push(Row {
            what: format!("boot {what}, Mi"),
            ours: ours.mega_instructions,
            peer: Some(("QEMU microvm", peer)),
            goal: Goal::RatioAtMost(1.0),
        });
        table.push(ours.exits_row(what));
    }
    clones::rows(&bench.machine, &mut table)?;
    Ok(table)
}

/// What has hard limits: a twentieth above what was measured when they were set.
pub(crate) fn counted() -> anyhow::Result<Table> {
    let bench = Bench::new(false)?;
    let mut table = Table::default();
    bench.binary(&mut table)?;
    let ours = bench.ours(NO_TESTS)?;
    table.push(Row {
        what: "boot without self-tests, Mi".into(),
        ours: ours.mega_instructions,
        peer: None,
        goal: Goal::AtMost(BOOT_MI_MAX),
    });
    table.push(ours.exits_row("without self-tests"));
    let free = bench.run(&["--no-jail"], NO_TESTS)?;
    table.push(Row {
        what: "of which the jail, Mi".into(),
        ours: ours.mega_instructions - free.mega_instructions,
        peer: None,
        goal: Goal::AtMost(JAIL_MI_MAX),
    });
    clones::rows(&bench.machine, &mut table)?;
    Ok(table)
}

/// Limit of a boot without self-tests, process start to process end.
const BOOT_MI_MAX: f64 = 900.0;
/// Limit of what a boot in a jail costs above one without: two processes more, namespaces, mounts,
/// filters.
const JAIL_MI_MAX: f64 = 40.0;
/// Firecracker's figure for a boot without devices; ours has a PCI bus with pvpanic on it.
const EXITS_MAX: f64 = 82.0;
/// The binary, static and stripped.
const BINARY_MIB_MAX: f64 = 5.0;

/// One of our boots.
struct Boot {
    mega_instructions: f64,
    /// Times that a vCPU came back to our process.
    exits: f64,
}

impl Boot {
    fn exits_row(&self, what: &str) -> Row {
        let what = format!("boot {what}: exits to the VMM");
        Row { what, ours: self.exits, peer: None, goal: Goal::AtMost(EXITS_MAX) }
    }
}

/// The files, and a machine that has them.
struct Bench {
    vmm: PathBuf,
    machine: Machine,
    _lab: Lab,
}

impl Bench {
    fn new(with_qemu: bool) -> anyhow::Result<Self> {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let cache = Cache::from_env()?;
        let kernel = KernelPackage::fetch(Flavour::Cloud, &cache)?;
        let (init, out) = (build_init(&workspace)?, cache.folder("guest-bench")?);
        let recipe = Recipe { kernel: &kernel, init: &init, out: &out, zstd_level: 3 };
        let Built { vmlinux, initramfs, .. } = build(&recipe)?;
        let vmm = build_static(&workspace, &["--package", "vmm", "--bin", "vmm"])?;
        let lab = Lab::new("bench-vmm")?;
        let mut builder = lab.machine("host").count_instructions().nested_kvm().memory_mib(1536);
        builder = builder.host_file("/vmm", 0o755, &vmm).host_file("/vmlinux", 0o644, &vmlinux);
        builder = builder.host_file("/initramfs.img", 0o644, &initramfs);
        let probe = build_static(&workspace, &["--package", "guest-init", "--example", "probe"])?;
        builder = builder.host_file("/tree/sbin/probe", 0o755, &probe);
        builder = builder.file("/tree/etc/passwd", 0o644, "root:x:0:0::/root:/bin/sh\n");
        for (name, variable) in [("spin", "PROBE_TEMPLATE"), ("idle", "PROBE_IDLE")] {
            let image = out.join(format!("{name}.img"));
            clones::cidata(&image, variable)?;
            builder = builder.host_file(&format!("/{name}.img"), 0o644, &image);
        }
        builder = builder.program("/bin/sleep").program("/bin/rm");
        if with_qemu {
            builder = builder.program(QEMU);
            for file in QEMU_FILES {
                builder = builder.host_file(file, 0o644, file.as_ref());
            }
        }
        let machine = builder.life(clones::LIFE).boot()?;
        Ok(Self { vmm, machine, _lab: lab })
    }

    fn binary(&self, table: &mut Table) -> anyhow::Result<()> {
        let bytes = std::fs::metadata(&self.vmm)?.len();
        table.push(Row {
            what: "binary, static and stripped, MiB".into(),
            ours: bytes as f64 / MIB,
            peer: None,
            goal: Goal::AtMost(BINARY_MIB_MAX),
        });
        Ok(())
    }

    fn ours(&self, words: &str) -> anyhow::Result<Boot> {
        self.run(&[], words)
    }

    /// One of our boots, with `options` of the VMM and `words` for the kernel.
    fn run(&self, options: &[&str], words: &str) -> anyhow::Result<Boot> {
        let words = format!("{WORDS} {words}");
        let memory = format!("{MEMORY_MIB}M");
        let run = ["/vmm", "run", "--kernel", "/vmlinux", "--initramfs"];
        let run =
            [&run[..], &["/initramfs.img", "--memory", &memory, "--cmdline", &words], options];
        let command =
            self.machine.command(&run.concat()).env("VMM_LOG", "info").timeout(BOOT_LIMIT);
        let output = command.run()?.success()?;
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        let exits = log.split("exits=").nth(1).and_then(|text| text.split_whitespace().next());
        let exits = exits.and_then(|text| text.parse().ok());
        let exits = exits.with_context(|| format!("no count of exits in: {log}"))?;
        Ok(Boot { mega_instructions: mega_instructions(&output), exits })
    }

    /// Mi of the same boot under QEMU.
    fn qemu(&self, words: &str) -> anyhow::Result<f64> {
        let words = format!("{WORDS} {words}");
        let machine = "microvm,accel=kvm,pit=off,pic=off,rtc=on,isa-serial=off,acpi=on";
        let run = [QEMU, "-M", machine, "-cpu", "host", "-smp", "1", "-m", MEMORY_MIB];
        let options = ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"];
        let files = ["-kernel", "/vmlinux", "-initrd", "/initramfs.img", "-append", &words];
        let run = [&run[..], &options, &["-L", "/usr/share/qemu", "-bios", "qboot.rom"], &files];
        let output = self.machine.command(&run.concat()).timeout(BOOT_LIMIT).run()?.success()?;
        Ok(mega_instructions(&output))
    }
}

fn mega_instructions(output: &Output) -> f64 {
    output.instructions() as f64 / MIB
}
