//! What a [`World`](crate::world::World) is made of: programs, disks, and a description of the node's machine.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lab::{Disk, HOLDINGS_PROGRAMS, Lab, MachineBuilder, WriteLog};

use crate::guest_files::{built, succeed};
use crate::world::{TIME_MAX, is_soon};

/// What a node consists of.
const PROGRAMS: [&str; 7] = ["hostd", "supervise", "vmm", "guestio", "flist", "mycelium", "zdb"];
/// What a test has in the machine to look around, beside what the leak checker needs.
const TOOLS: [&str; 4] = ["/bin/sh", "/bin/cat", "/bin/ls", "/bin/sync"];
/// What networks of users take of the kernel.
const MODULES: [&str; 16] = [
    "tun",
    "bridge",
    "veth",
    "ext4",
    "nf_tables",
    "nft_chain_nat",
    "nft_ct",
    "nft_limit",
    "nft_masq",
    "nft_nat",
    "nft_meta_bridge",
    "nft_reject",
    "nft_reject_inet",
    "nft_reject_bridge",
    "nft_connlimit",
    "nft_objref",
];
/// How long a node may live.
pub(crate) const LIFE: Duration = Duration::from_secs(1800);
/// What a disk of today writes whole or not at all. In smaller pieces, ext4's own superblock may be torn.
const SECTOR_SIZE: usize = 4096;

/// What kind of grid, and who has the node.
pub(crate) struct Options {
    /// What its logs are called.
    pub(crate) name: &'static str,
    /// What the farm is called.
    pub(crate) farm: &'static str,
    /// What `devgrid` is told beside where it is.
    pub(crate) devgrid: &'static [&'static str],
    /// The node's memory and disk. It keeps 2 GiB of memory for itself, and some for its cache of images.
    pub(crate) memory_mib: u32,
    pub(crate) disk_mib: u64,
    /// The plug will be pulled.
    pub(crate) loses_power: bool,
    /// What the user has when it begins; what the grid gives to each if nothing is said.
    pub(crate) funds: Option<&'static str>,
    /// What the node's machine has beside the node: programs of ours, and of this host.
    pub(crate) programs: &'static [&'static str],
    pub(crate) tools: &'static [&'static str],
    /// What the node's configuration says at its end.
    pub(crate) config: &'static str,
    /// An image beside that of all tests, on a disk of its own.
    pub(crate) image: Option<Packed>,
    /// Blank disks that are the node's, beside its other one. All that it has is on them then.
    pub(crate) blank: &'static [Blank],
}

/// A blank SCSI disk.
pub(crate) struct Blank {
    /// Its serial number.
    pub(crate) name: &'static str,
    pub(crate) size_mib: u64,
    /// Whether it turns. It is as slow as if it did.
    pub(crate) is_rotational: bool,
}

/// An image that a test has made.
pub(crate) struct Packed {
    /// The disk with its blocks, and where that is to be mounted: where they were made.
    pub(crate) disk: PathBuf,
    pub(crate) place: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            name: "grid",
            farm: "testers",
            devgrid: &[],
            memory_mib: 3584,
            disk_mib: 6144,
            loses_power: false,
            funds: None,
            programs: &[],
            tools: &[],
            config: "",
            image: None,
            blank: &[],
        }
    }
}

/// The node's machine.
pub(crate) fn describe(
    lab: &Lab,
    folder: &Path,
    image: &Path,
    data: &Disk,
    options: &Options,
) -> MachineBuilder {
    let builder = lab.machine("node").nested_kvm().memory_mib(options.memory_mib);
    let builder = builder.host_network();
    let builder = builder.modules(&MODULES).life(LIFE).boot_timeout(TIME_MAX * 2);
    let builder = builder.disk(&Disk::file("guest", image).read_only());
    let programs = disk_of(folder, "programs", 1024, |folder| {
        for name in PROGRAMS.iter().chain(options.programs) {
            let to = folder.join(name);
            succeed(Command::new("strip").arg("-o").arg(&to).arg(program(name)));
        }
        let kernel = named("vmlinux").unwrap_or_else(|| built().vmlinux.clone());
        fs::copy(kernel, folder.join("vmlinux")).unwrap();
        fs::copy(initramfs(), folder.join("initramfs.img")).unwrap();
    });
    let builder = builder.disk(&Disk::file("programs", &programs).read_only());
    let mut builder = builder.disk(data);
    if let Some(image) = &options.image {
        builder = builder.disk(&Disk::file("packed", &image.disk).read_only());
    }
    let tools = TOOLS.iter().chain(&HOLDINGS_PROGRAMS).chain(options.tools).map(PathBuf::from);
    for tool in tools {
        builder = builder.program(tool);
    }
    for name in PROGRAMS.iter().chain(options.programs) {
        builder = builder.libraries_of(program(name));
    }
    for name in ["network.json", "ca.pem"] {
        if let Ok(text) = fs::read(folder.join("grid").join(name)) {
            builder = builder.file(&format!("/{name}"), 0o644, text);
        }
    }
    let config = if options.blank.is_empty() {
        CONFIG.to_owned()
    } else {
        builder = builder.modules(&DISK_MODULES).qemu_arguments(&SCSI);
        builder = builder.program("/sbin/mkfs.ext4").program("/sbin/e2fsck");
        let config = CONFIG.replace(POOLS, DISKS).replace(STATE, STATE_ON_DISKS);
        config.replace("[machine.programs]", MAKERS)
    };
    builder.file("/hostd.toml", 0o644, config + options.config)
}

/// What disks take of the kernel, and where they are plugged in.
const DISK_MODULES: [&str; 3] = ["virtio_scsi", "sd_mod", "quota_v2"];
const SCSI: [&str; 2] = ["-device", "virtio-scsi-pci,id=scsi0"];
/// Where a node has what must survive, and its pools: in folders, or on disks that it finds.
const STATE: &str = "\"/data/";
const STATE_ON_DISKS: &str = "\"/var/cache/";
const POOLS: &str = r#"pools = [
    { name = "ssd", path = "/data/ssd", kind = "ssd" },
    { name = "hdd", path = "/data/hdd", kind = "hdd" },
]"#;
const DISKS: &str = "disks = \"auto\"\ncache = \"/var/cache\"";
const MAKERS: &str = "[machine.programs]\nmkfs = \"/sbin/mkfs.ext4\"\nfsck = \"/sbin/e2fsck\"";

const CONFIG: &str = r#"
state = "/data/hostd"
network = "/network.json"
farm = 1
status = "/run/hostd-status.sock"

[place]
country_name = "Belgium"
city_name = "Ghent"
latitude = 51.05
longitude = 3.72

[machine]
state = "/data/machine"
runtime = "/run/hostd"
supervisor = "/run/supervise.sock"
pools = [
    { name = "ssd", path = "/data/ssd", kind = "ssd" },
    { name = "hdd", path = "/data/hdd", kind = "hdd" },
]

[machine.programs]
vmm = "/opt/vmm"
flist = "/opt/flist"
mycelium = "/opt/mycelium"
zdb = "/opt/zdb"
guestio = "/opt/guestio"
nft = "/usr/sbin/nft"

[machine.guest]
kernel = "/opt/vmlinux"
initramfs = "/opt/initramfs.img"

[machine.images]
allow_routes = ["local"]
"#;

/// A program of ours: in one of the folders that `ZERO_OS_PROGRAMS` names, or beside the test's own.
pub(crate) fn program(name: &str) -> PathBuf {
    let beside = std::env::current_exe().unwrap();
    let beside = beside.parent().and_then(Path::parent).unwrap().join(name);
    let path = named(name).or_else(|| Some(beside).filter(|path| path.is_file()));
    path.unwrap_or_else(|| panic!("no program {name}: `ci/test lab-full` makes it"))
}

/// The initial file system of guests.
pub(crate) fn initramfs() -> PathBuf {
    named("initramfs.img").unwrap_or_else(|| built().initramfs.clone())
}

/// A file in the first of the folders that `ZERO_OS_PROGRAMS` names which has it: what was built elsewhere.
fn named(name: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("ZERO_OS_PROGRAMS")?;
    std::env::split_paths(&folders).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// A disk with a file system of so many MiB, with what `fill` puts into a folder.
pub(crate) fn disk_of(
    folder: &Path,
    name: &str,
    size_mib: u64,
    fill: impl FnOnce(&Path),
) -> PathBuf {
    let (source, disk) = (folder.join(name), folder.join(format!("{name}.ext4")));
    fs::create_dir(&source).unwrap();
    fill(&source);
    let mut make = Command::new("/sbin/mke2fs");
    make.args(["-q", "-t", "ext4", "-d"]).arg(&source).arg(&disk).arg(format!("{size_mib}M"));
    succeed(&mut make);
    fs::remove_dir_all(&source).unwrap();
    disk
}

/// Packs a tree, which is gone then, into an image and its blocks on a disk. The image's file is at its place.
pub(crate) fn packed(folder: &Path, tree: &Path) -> Packed {
    /// More files than the blocks of a Debian root.
    const FILE_COUNT_MAX: &str = "40000";
    let place = folder.join("packed");
    fs::create_dir_all(place.join("blocks")).unwrap();
    let mut pack = Command::new(program("flist"));
    let store = format!("dir://{}", place.join("blocks").display());
    pack.args(["pack", "--no-sync"]).arg(tree).arg("-o").arg(place.join("image.fl"));
    succeed(pack.args(["--store", &store]));
    fs::remove_dir_all(tree).unwrap();
    let disk = folder.join("packed.ext4");
    let mut make = Command::new("/sbin/mke2fs");
    make.args(["-q", "-t", "ext4", "-O", "^has_journal", "-N", FILE_COUNT_MAX, "-d"]).arg(&place);
    succeed(make.arg(&disk).arg("1G"));
    // The file goes elsewhere; the blocks are on the disk.
    fs::remove_dir_all(place.join("blocks")).unwrap();
    Packed { disk, place }
}

/// Runs a grid in a folder, at any ports, until it has described itself.
pub(crate) fn up(folder: &Path, more: &[&str]) -> Process {
    let mut command = Command::new(program("devgrid"));
    command.args(["up", "--port", "0", "--dir"]).arg(folder).args(more);
    let log = folder.join("devgrid.log");
    let output = File::create(&log).unwrap();
    let process = Process(command.stdout(Stdio::null()).stderr(output).spawn().unwrap());
    let is_up = is_soon(|| folder.join("network.json").exists());
    assert!(is_up, "{}", fs::read_to_string(log).unwrap());
    process
}

/// A program that runs beside the test, and never longer.
pub(crate) struct Process(pub(crate) Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A small generator of numbers, good enough for choices.
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Rebuilds the disk from what it was `before`: what was flushed is there, each sector written later is there
/// or not.
pub(crate) fn leave_what_was_flushed(
    disk: &Disk,
    before: &Path,
    size_mib: u64,
    chance: &mut Chance,
) {
    const PIECE: usize = 1 << 20;
    let log = WriteLog::open(disk.log_path().unwrap()).unwrap();
    let image = File::options().read(true).write(true).open(before).unwrap();
    log.replay(0, log.entries().len(), &image).unwrap();
    let disk = File::options().read(true).write(true).open(disk.path()).unwrap();
    let (mut flushed, mut written) = (vec![0; PIECE], vec![0; PIECE]);
    let mut lost_count = 0;
    for piece in 0..size_mib {
        image.read_exact_at(&mut flushed, piece << 20).unwrap();
        disk.read_exact_at(&mut written, piece << 20).unwrap();
        if flushed == written {
            continue;
        }
        let sectors = written.chunks_exact_mut(SECTOR_SIZE).zip(flushed.chunks_exact(SECTOR_SIZE));
        for (written, flushed) in sectors.filter(|(written, flushed)| written != flushed) {
            if chance.below(2) == 0 {
                written.copy_from_slice(flushed);
                lost_count += 1;
            }
        }
        disk.write_all_at(&written, piece << 20).unwrap();
    }
    eprintln!("{} requests to the disk, {lost_count} sectors lost", log.entries().len());
}
