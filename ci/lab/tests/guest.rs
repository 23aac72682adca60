//! A guest's boot, from the recipe's kernel and initramfs to its own init.
//!
//! QEMU gives the guest what a VMM of ours will: a virtio-fs share as its root, disks with
//! serials, a `cidata` disk, a network card. The share is served by QEMU's virtiofsd. The guest's
//! own init is `guest-images/probe`, which says what it was given and powers off.
//!
//! Behind the feature `boot`: `cargo test -p lab --features boot --test guest`. That virtiofsd
//! needs root: whoever is not, needs `sudo` that doesn't ask. On the host `qemu-system-x86_64`, `virtiofsd`, `mke2fs`,
//! `mkfs.vfat`, `mcopy`, `setpriv`.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail by panicking")]

mod guest_files;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use guest_files::{Console, built, probe, write_cidata};
use lab::Accelerator;

const MIB: u64 = 1 << 20;

#[test]
fn a_guest_gets_what_it_was_promised_and_keeps_its_data() {
    let mut guest = Guest::new();
    guest.user_data = "#cloud-config\nusers:\n- name: root\n  ssh_authorized_keys: [ssh-ed25519 A \
                       me]\nmounts:\n- [/dev/vda, /data, auto, defaults, 0, 0]\n"
        .to_owned();
    guest.zosrc = "export GREETING='it'\\''s\ntwo lines'\nexport PROBE_APPEND='/data/log'\n\
                   export PROBE_SIZE='/:/data'\nexport PROBE_READ='/etc/hosts:/etc/resolv.conf:\
                   /root/.ssh/authorized_keys:/data/log:/etc/ssh/ssh_host_rsa_key'\n\
                   init='probe'\nset -- 'a b' ''\n"
        .to_owned();
    guest.write("etc/ssh/ssh_host_rsa_key", "known to everybody");
    guest.disk("dezoev3vcf3zk", 3000 * MIB);
    guest.disk("rootfs", 600 * MIB);

    let first = guest.boot();
    assert_eq!(first.get("arg0"), "probe");
    assert_eq!((first.get("arg1"), first.get("arg2")), ("a b".into(), String::new()));
    assert_eq!(first.get("pid"), "1");
    assert_eq!(first.get("env GREETING"), "it's\ntwo lines");
    assert_eq!(first.get("file /proc/sys/kernel/hostname"), "my-vm\n");
    let hosts = first.get("file /etc/hosts");
    assert!(hosts.contains("127.0.0.1\tlocalhost\n") && hosts.contains("127.0.1.1\tmy-vm\n"));
    assert_eq!(
        first.get("file /etc/resolv.conf"),
        "nameserver 8.8.8.8\nnameserver 2001:4860:4860::8888\n"
    );
    assert_eq!(first.get("file /root/.ssh/authorized_keys"), "ssh-ed25519 A me\n");
    assert_eq!(first.get("access /root/.ssh/authorized_keys"), "600 0 0");
    assert!(first.get("file /etc/ssh/ssh_host_rsa_key").starts_with("error"), "the image's key");
    check_network(&first);
    let mounts = first.get("file /proc/self/mounts");
    for mount in [
        "overlay / overlay rw",
        "/dev/vda /data ext4 rw",
        "cgroup2 /sys/fs/cgroup ",
        "devpts /dev/pts ",
        "tmpfs /dev/shm ",
        "tmpfs /run ",
        "proc /proc ",
        "devtmpfs /dev ",
    ] {
        assert!(mounts.contains(mount), "{mount} in {mounts}");
    }
    assert!(first.size("/data") > 2900 * MIB, "{}", first.size("/data"));
    assert!(first.size("/") > 550 * MIB, "{}", first.size("/"));
    assert!(guest.allocated("dezoev3vcf3zk") < 2 * MIB, "a new disk stays sparse");
    assert!(!guest.root().join("data").exists(), "the image was written to");

    // The volume grows between two boots; what was written is there, once.
    guest.grow("dezoev3vcf3zk", 5000 * MIB);
    let second = guest.boot();
    assert_eq!(second.get("file /data/log"), "one boot\none boot\n");
    assert_eq!(second.get("file /root/.ssh/authorized_keys"), "ssh-ed25519 A me\n");
    assert_eq!(second.get("file /etc/hosts"), hosts);
    assert!(second.size("/data") > 4900 * MIB, "{}", second.size("/data"));
    for serial in ["dezoev3vcf3zk", "rootfs"] {
        guest.check_file_system(serial);
    }
}

fn check_network(console: &Console) {
    // Little-endian: 10.20.2.1 as gateway of everything and of 100.64.0.0/16.
    let v4 = console.get("file /proc/net/route");
    for route in ["eth0\t00000000\t0102140A", "eth0\t00004064\t0102140A"] {
        assert!(v4.contains(route), "{route} in {v4}");
    }
    assert!(console.get("file /proc/net/fib_trie").contains("10.20.2.5"));
    let addresses = console.get("file /proc/net/if_inet6");
    assert!(addresses.contains("fd636f63000000000000000000000005"), "{addresses}");
    let v6 = console.get("file /proc/net/ipv6_route");
    let gateway = "fe800000000000000000000000000001";
    let default = v6.lines().find(|l| l.starts_with("00000000000000000000000000000000 00"));
    assert!(default.is_some() && v6.contains(gateway), "{v6}");
    assert!(v6.contains("04000000000000000000000000000000 07"), "{v6}");
}

#[test]
fn without_a_root_disk_the_root_is_in_memory_and_the_image_names_the_entrypoint() {
    let mut guest = Guest::new();
    guest.zosrc =
        "export PROBE_APPEND='/log'\nexport PROBE_READ='/log'\nexport B='workload'\n".to_owned();
    guest.write(
        ".startup.toml",
        "[startup.entry]\nname = \"core.system\"\n[startup.entry.args]\nname = \"probe\"\n\
         args = [\"-x\"]\ndir = \"/srv\"\nenv = { A = \"image\", B = \"image\" }\n",
    );
    fs::create_dir(guest.root().join("srv")).unwrap();
    // A hostile image: its links must not lead out of it.
    fs::remove_dir_all(guest.root().join("etc")).unwrap();
    symlink("../../../real", guest.root().join("etc")).unwrap();
    fs::create_dir(guest.root().join("real")).unwrap();
    for device in ["ttyS0", "hvc0"] {
        guest.console = device;
        let console = guest.boot();
        assert_eq!((console.get("arg0"), console.get("arg1")), ("probe".into(), "-x".into()));
        assert_eq!(console.get("dir"), "/srv");
        assert_eq!(
            (console.get("env A"), console.get("env B")),
            ("image".into(), "workload".into())
        );
        assert_eq!(console.get("file /log"), "one boot\n", "the root was kept");
    }
}

#[test]
fn shares_are_mounted_and_the_root_may_be_one() {
    let mut guest = Guest::new();
    let shared = guest.folder.path().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("file"), "from the host").unwrap();
    guest.share = Some(shared.clone());
    guest.user_data =
        "mounts: [[shared, /mnt/deep, virtiofs, ro], [none, /x, virtiofs, nofail]]".to_owned();
    guest.words += " guest.upper=none guest.modules=shared";
    guest.zosrc = "export PROBE_APPEND='/log'\nexport PROBE_READ='/mnt/deep/file'\n".to_owned();
    let console = guest.run();
    assert_eq!(console.get("file /mnt/deep/file"), "from the host");
    let mounts = console.get("file /proc/self/mounts");
    let modules = mounts.lines().find(|line| line.contains(" /lib/modules/")).unwrap();
    assert!(modules.starts_with("shared ") && modules.contains(" virtiofs ro,"), "{modules}");
    assert!(mounts.contains("vroot / virtiofs rw"), "{mounts}");
    assert!(console.text.contains("warning: mounting share none on /x"), "{}", console.text);
    assert_eq!(fs::read_to_string(guest.root().join("log")).unwrap(), "one boot\n");
}

#[test]
fn a_disk_with_foreign_data_is_left_alone() {
    let mut guest = Guest::new();
    guest.user_data = "mounts: [[/dev/vda, /data]]".to_owned();
    let disk = guest.disk("dezoev3vcf3zk", 600 * MIB);
    let device = File::options().write(true).open(&disk).unwrap();
    device.write_all_at(b"XFSB", 0).unwrap();
    let before = fs::read(&disk).unwrap();
    let line = guest.boot_in_vain();
    assert!(
        line.contains("/dev/vda (serial \"dezoev3vcf3zk\") holds an XFS file system"),
        "{line}"
    );
    assert!(line.contains("left untouched"), "{line}");
    assert!(fs::read(&disk).unwrap() == before, "the disk was written to");
}

#[test]
fn an_interrupted_format_is_done_again() {
    let mut guest = Guest::new();
    guest.user_data = "mounts: [[/dev/disk/by-id/virtio-dezoev3vcf3zk, /data]]".to_owned();
    guest.zosrc = "export PROBE_SIZE='/data'\n".to_owned();
    let disk = guest.disk("dezoev3vcf3zk", 300 * MIB);
    let device = File::options().write(true).open(&disk).unwrap();
    device.write_all_at(b"guest-init: being formatted\n", 0).unwrap();
    device.write_all_at(&[0x55; 9000], 4096).unwrap();
    assert!(guest.boot().size("/data") > 250 * MIB);
    guest.check_file_system("dezoev3vcf3zk");
}

#[test]
fn a_btrfs_volume_of_an_older_node_is_mounted_and_grown() {
    let mut guest = Guest::new();
    guest.user_data = "mounts: [[/dev/vda, /data]]".to_owned();
    guest.zosrc = "export PROBE_SIZE='/data'\nexport PROBE_APPEND='/data/log'\n\
                   export PROBE_READ='/data/log'\n"
        .to_owned();
    let disk = guest.disk("dezoev3vcf3zk", 300 * MIB);
    let Ok(made) = Command::new("mkfs.btrfs").arg("-q").arg(&disk).output() else {
        eprintln!("skipped: no mkfs.btrfs here");
        return;
    };
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let line = guest.boot_in_vain();
    assert!(line.contains("the kernel has no file system \"btrfs\""), "{line}");
    guest.with_btrfs = true;
    assert_eq!(guest.boot().size("/data"), 300 * MIB);
    guest.grow("dezoev3vcf3zk", 500 * MIB);
    let second = guest.boot();
    assert_eq!(second.size("/data"), 500 * MIB);
    assert_eq!(second.get("file /data/log"), "one boot\none boot\n");
}

#[test]
fn what_is_missing_is_named_and_the_power_goes_off() {
    let mut guest = Guest::new();
    guest.zosrc = "init='/sbin/none'\n".to_owned();
    let line = guest.boot_in_vain();
    let want =
        "cannot start \"/sbin/none\" (the workload's entrypoint): the image has no /sbin/none";
    assert!(line.contains(want), "{line}");

    guest.zosrc = "init='/script'\n".to_owned();
    guest.write("script", "#!/bin/nosh -e\n");
    let line = guest.boot_in_vain();
    assert!(line.contains("not executable") || line.contains("Permission denied"), "{line}");
    let script = guest.root().join("script");
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let line = guest.boot_in_vain();
    assert!(line.contains("its interpreter \"/bin/nosh\" is not in the image"), "{line}");

    guest.zosrc = String::new();
    guest.user_data = "mounts: [[/dev/vdq, /data]]".to_owned();
    let line = guest.boot_in_vain();
    assert!(line.contains("no disk /dev/vdq for /data; there are: /dev/vda"), "{line}");

    guest.user_data = "mounts: [[tag, data, virtiofs]]".to_owned();
    let line = guest.boot_in_vain();
    assert!(line.contains("user-data: mounts[0]: mount point \"data\" is not absolute"), "{line}");

    guest.user_data = "mounts: [[tag, /data, virtiofs]]".to_owned();
    let line = guest.boot_in_vain();
    assert!(line.contains("mounting share tag on /data"), "{line}");
}

#[test]
fn only_a_disk_that_the_guest_cannot_write_is_cidata() {
    let mut guest = Guest::new();
    guest.cidata = Cidata::Writable;
    let line = guest.boot_in_vain();
    assert!(line.contains("no read-only disk labelled cidata after 1 s"), "{line}");
    guest.cidata = Cidata::Absent;
    guest.words = "rootdelay=600 guest.limit=2".to_owned();
    let line = guest.boot_in_vain();
    assert!(line.contains("not done after 2 s, still waiting for disks"), "{line}");
}

/// A guest that can be booted any number of times.
struct Guest {
    folder: tempfile::TempDir,
    disks: Vec<String>,
    user_data: String,
    zosrc: String,
    cidata: Cidata,
    words: String,
    /// The modules for btrfs are appended to the initramfs.
    with_btrfs: bool,
    /// The kernel's console: a serial port or a virtio one.
    console: &'static str,
    /// A folder shared under the tag `shared`.
    share: Option<PathBuf>,
}

#[derive(PartialEq)]
enum Cidata {
    ReadOnly,
    Writable,
    Absent,
}

impl Guest {
    /// One with a share that holds only the probe.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let guest = Self {
            folder,
            disks: Vec::new(),
            user_data: String::new(),
            zosrc: String::new(),
            cidata: Cidata::ReadOnly,
            words: "rootdelay=1".to_owned(),
            with_btrfs: false,
            console: "ttyS0",
            share: None,
        };
        guest.write("etc/passwd", "root:x:0:0::/root:/bin/sh\n");
        fs::create_dir_all(guest.root().join("sbin")).unwrap();
        fs::copy(probe(), guest.root().join("sbin/probe")).unwrap();
        symlink("/sbin/probe", guest.root().join("sbin/init")).unwrap();
        guest
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Adds a blank disk and returns its path.
    fn disk(&mut self, serial: &str, size: u64) -> PathBuf {
        self.disks.push(serial.to_owned());
        File::create(self.disk_path(serial)).unwrap();
        self.grow(serial, size);
        self.disk_path(serial)
    }

    fn disk_path(&self, serial: &str) -> PathBuf {
        self.folder.path().join(format!("{serial}.disk"))
    }

    fn grow(&self, serial: &str, size: u64) {
        File::options().write(true).open(self.disk_path(serial)).unwrap().set_len(size).unwrap();
    }

    /// Bytes that a disk takes on the host.
    fn allocated(&self, serial: &str) -> u64 {
        fs::metadata(self.disk_path(serial)).unwrap().blocks() * 512
    }

    /// Replays the journal, which also settles the superblock's counters (that is status 1), and
    /// then finds nothing to repair.
    fn check_file_system(&self, serial: &str) {
        for (flags, status_max) in [("-fp", 1), ("-fn", 0)] {
            let mut e2fsck = Command::new("/sbin/e2fsck");
            let output = e2fsck.arg(flags).arg(self.disk_path(serial)).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            let status = output.status.code().unwrap();
            assert!(status <= status_max, "{serial}: e2fsck {flags}: {status}: {text}");
            assert!(!text.contains("UNEXPECTED"), "{serial}: {text}");
        }
    }

    /// Boots to the probe's end.
    fn boot(&self) -> Console {
        let console = self.run();
        assert!(console.text.contains("probe: end"), "no end:\n{}", console.text);
        assert!(!console.text.contains("guest-init:"), "complaints:\n{}", console.text);
        console
    }

    /// Boots to the init's last line, which is returned.
    fn boot_in_vain(&self) -> String {
        let console = self.run();
        let line = console.text.lines().find(|line| line.contains("guest-init:"));
        let line = line.unwrap_or_else(|| panic!("no line:\n{}", console.text));
        assert!(line.trim_end().ends_with("; powering off"), "{line}");
        assert!(!console.text.contains("probe:"), "{}", console.text);
        line.to_owned()
    }

    fn run(&self) -> Console {
        let _root_daemon = self.serve("vroot", &self.root());
        let _share_daemon = self.share.as_deref().map(|folder| self.serve("shared", folder));
        if self.cidata != Cidata::Absent {
            let image = self.folder.path().join("cidata.img");
            write_cidata(&image, &self.user_data, &self.zosrc);
        }
        let console = self.folder.path().join("console");
        let mut qemu = Running(
            dying_with_us("qemu-system-x86_64")
                .args(self.arguments(&console))
                .stdin(Stdio::null())
                .stderr(File::create(self.folder.path().join("qemu.log")).unwrap())
                .spawn()
                .unwrap(),
        );
        let ended = qemu.wait(BOOT_LIMIT);
        let said = |path: &Path| fs::read(path).unwrap_or_default();
        let mut text = String::from_utf8_lossy(&said(&console)).into_owned();
        if text.is_empty() {
            text += &String::from_utf8_lossy(&said(&self.folder.path().join("qemu.log")));
        }
        assert!(ended, "still running after {} s:\n{text}", BOOT_LIMIT.as_secs());
        Console { text }
    }

    fn socket(&self, tag: &str) -> PathBuf {
        self.folder.path().join(format!("{tag}.sock"))
    }

    fn serve(&self, tag: &str, folder: &Path) -> Running {
        let socket = self.socket(tag);
        let _ = fs::remove_file(&socket);
        let daemon = ["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"];
        let daemon = daemon.into_iter().find(|path| Path::new(path).exists());
        let log = File::create(self.folder.path().join(format!("{tag}.log"))).unwrap();
        let daemon = daemon.expect("no virtiofsd on this host");
        let mut command = if rustix::process::geteuid().is_root() {
            dying_with_us(daemon)
        } else {
            let mut command = dying_with_us("sudo");
            command.args(["-n", daemon]);
            command
        };
        let child = command
            .arg(format!("--socket-path={}", socket.display()))
            .args(["-o", &format!("source={}", folder.display())])
            .args(["-o", "sandbox=chroot", "-o", "xattr", "-o", "cache=auto"])
            .stderr(log)
            .spawn()
            .unwrap();
        let running = Running(child);
        let started = Instant::now();
        while !socket.exists() {
            assert!(started.elapsed() < Duration::from_secs(10), "virtiofsd made no socket");
            std::thread::sleep(Duration::from_millis(10));
        }
        running
    }

    fn initramfs(&self) -> PathBuf {
        let built = built();
        if !self.with_btrfs {
            return built.initramfs.clone();
        }
        let both = [&built.initramfs, &built.btrfs].map(|path| fs::read(path).unwrap()).concat();
        let path = self.folder.path().join("initramfs-btrfs.img");
        fs::write(&path, both).unwrap();
        path
    }

    fn arguments(&self, console: &Path) -> Vec<String> {
        let built = built();
        let accel = match Accelerator::probe() {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg",
        };
        let mut arguments = words(&format!(
            "-nodefaults -no-user-config -display none -no-reboot -M q35,accel={accel} -cpu max \
             -smp 1 -m 512 -object memory-backend-memfd,id=mem,size=512M,share=on \
             -numa node,memdev=mem -device virtio-rng-pci \
             -netdev hubport,id=n0,hubid=0 \
             -device virtio-net-pci,netdev=n0,mac=02:01:a0:00:00:09,romfile="
        ));
        let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
        add("-kernel", built.vmlinux.display().to_string());
        add("-initrd", self.initramfs().display().to_string());
        add("-append", format!("{COMMAND_LINE} console={} {}", self.console, self.words));
        if self.console == "hvc0" {
            add("-device", "virtio-serial-pci".to_owned());
            add("-chardev", format!("file,id=console,path={}", console.display()));
            add("-device", "virtconsole,chardev=console".to_owned());
        } else {
            add("-serial", format!("file:{}", console.display()));
        }
        for tag in std::iter::once("vroot").chain(self.share.as_ref().map(|_| "shared")) {
            add("-chardev", format!("socket,id={tag},path={}", self.socket(tag).display()));
            add("-device", format!("vhost-user-fs-pci,chardev={tag},tag={tag}"));
        }
        for serial in &self.disks {
            let path = self.disk_path(serial);
            add("-drive", format!("file={},if=none,id={serial},format=raw", path.display()));
            add("-device", format!("virtio-blk-pci,drive={serial},serial={serial}"));
        }
        if self.cidata != Cidata::Absent {
            let path = self.folder.path().join("cidata.img");
            let read_only = if self.cidata == Cidata::ReadOnly { "on" } else { "off" };
            let options = format!("if=none,id=cidata,format=raw,readonly={read_only}");
            add("-drive", format!("file={},{options}", path.display()));
            add("-device", "virtio-blk-pci,drive=cidata".to_owned());
        }
        arguments
    }
}

/// A child that is killed when it is dropped.
struct Running(Child);

impl Running {
    /// Waits for its end; false if there is none in time.
    fn wait(&mut self, limit: Duration) -> bool {
        let started = Instant::now();
        while started.elapsed() < limit {
            if self.0.try_wait().unwrap().is_some() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A command that the kernel kills when the test is gone.
fn dying_with_us(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", program]);
    command
}

fn words(text: &str) -> Vec<String> {
    text.split_ascii_whitespace().map(str::to_owned).collect()
}

const COMMAND_LINE: &str = "rw quiet reboot=k panic=1 cryptomgr.notests \
                            no_timer_check root=vroot rootfstype=virtiofs";
/// Longest time for one boot.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
