//! A machine that runs guests: L1, with the image of their root and the cache that serves it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use lab::{Disk, Lab, Machine, MachineBuilder, Output, Running};

use crate::guest_files::{agent, built, flist, vmm, workspace};

/// How long a node may live: longer than any test here.
const LIFE: Duration = Duration::from_secs(1800);
/// What its boot may take, on a host with other things to do.
const BOOT_LIMIT: Duration = Duration::from_secs(600);
/// What a node has to run scripts with, and to look after file systems.
const PROGRAMS: [&str; 6] =
    ["/bin/sh", "/bin/cat", "/bin/dd", "/bin/mkdir", "/sbin/ip", "/sbin/e2fsck"];

/// L1.
pub(crate) struct Node {
    pub(crate) machine: Machine,
    pub(crate) image: String,
    pub(crate) guests: AtomicU32,
    _cached: Running,
    _lab: Lab,
}

impl Node {
    /// Boots it. Disks that `prepare` adds are `/dev/vdb` and so on.
    pub(crate) fn boot(
        name: &str,
        prepare: impl FnOnce(&Lab, MachineBuilder) -> MachineBuilder,
    ) -> Self {
        let lab = Lab::new(name).unwrap();
        let (disk, folder) = image_disk();
        let builder = lab.machine("node").nested_kvm().memory_mib(2560);
        let builder =
            builder.modules(&["tun"]).life(LIFE).disk(&Disk::file("guest", disk).read_only());
        let builder = builder.host_file("/vmm", 0o755, vmm()).program(flist());
        let builder = builder.host_file("/flist", 0o755, flist());
        let builder = builder.host_file("/vmlinux", 0o644, &built().vmlinux);
        let builder = builder.host_file("/initramfs.img", 0o644, &built().initramfs);
        let builder = builder.boot_timeout(BOOT_LIMIT);
        let mut builder = builder.host_file("/tools/agent", 0o755, agent());
        for program in PROGRAMS {
            builder = builder.program(program);
        }
        let machine = prepare(&lab, builder).boot().unwrap();
        let mount = ["/init", "mount", "ext4", "/dev/vda", folder.as_str(), "ro"];
        machine.run(&mount).unwrap().success().unwrap();
        let serve = ["/flist", "cached", "--socket", "/run/cache.sock", "--cache", "/cache"];
        let serve = [&serve[..], &["--free-min", "0", "--allow-route", "local"]].concat();
        let cached = machine.command(&serve).timeout(LIFE).spawn().unwrap();
        let image = format!("{folder}/image.fl");
        Self { machine, image, guests: AtomicU32::new(0), _cached: cached, _lab: lab }
    }

    /// A number for each guest.
    pub(crate) fn next(&self) -> u32 {
        self.guests.fetch_add(1, Ordering::Relaxed)
    }

    /// Runs a shell script that must succeed.
    pub(crate) fn shell(&self, script: &str) -> String {
        let run = ["/bin/sh", "-ec", script];
        let output = self.machine.command(&run).timeout(Duration::from_secs(300)).run();
        output.unwrap().success().unwrap().text()
    }

    /// Asks the running VMM something by its own command.
    pub(crate) fn ask(&self, words: &[&str]) -> String {
        let asked: Output = self.machine.run(&[&["/vmm"], words].concat()).unwrap();
        asked.success().unwrap().text()
    }

    /// The file of that name in `/proc` of each VMM's processes: those that run VMs, and their wardens.
    pub(crate) fn of_vmms(&self, file: &str) -> String {
        self.shell(&format!(
            "for p in /proc/[0-9]*; do case $(cat $p/comm 2>/dev/null) in \
             vmm) cat $p/{file} 2>/dev/null || true;; esac; done"
        ))
    }

    /// What the VMM that runs has in memory, in MiB.
    pub(crate) fn resident_mib(&self) -> u64 {
        // Its warden has little.
        kib(&self.of_vmms("status"), "VmRSS:").max().expect("a vmm runs") / 1024
    }

    /// Waits until no VMM has anything open any more.
    pub(crate) fn await_no_vmm(&self) {
        // What has ended, but nobody has asked for yet, has no memory.
        let limit = Duration::from_secs(60);
        self.wait(limit, "end of all VMMs", || !self.of_vmms("status").contains("VmRSS:"));
    }

    /// Waits until something is so.
    pub(crate) fn wait(&self, limit: Duration, what: &str, is_so: impl Fn() -> bool) {
        let deadline = Instant::now() + limit;
        while !is_so() {
            assert!(Instant::now() < deadline, "no {what} within {limit:?}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// The figures of all lines with that name, as the kernel writes them.
pub(crate) fn kib(text: &str, name: &str) -> impl Iterator<Item = u64> {
    let figures = text.lines().filter_map(move |line| line.strip_prefix(name)?.strip_suffix(" kB"));
    figures.map(|figure| figure.trim().parse().unwrap())
}

/// The disk with the guests' image, and where it is to be mounted.
fn image_disk() -> (&'static Path, &'static String) {
    image_disk_by(flist())
}

/// The same, where that `flist` makes the image if it has to be made.
pub(crate) fn image_disk_by(flist: &Path) -> (&'static Path, &'static String) {
    static DISK: OnceLock<(PathBuf, String)> = OnceLock::new();
    let (disk, folder) = DISK.get_or_init(|| {
        let mut make = Command::new(workspace().join("ci/guest-root"));
        let made = make.env("FLIST", flist).stderr(Stdio::inherit()).output().unwrap();
        assert!(made.status.success(), "ci/guest-root: {}", made.status);
        let disk = PathBuf::from(String::from_utf8(made.stdout).unwrap().trim());
        let folder = std::fs::read_to_string(disk.with_extension("ext4.folder")).unwrap();
        (disk, folder.trim().to_owned())
    });
    (disk, folder)
}
