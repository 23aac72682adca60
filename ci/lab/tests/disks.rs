//! Disks of a node: real ones in a real kernel, as far as a machine of the lab has any.
//!
//! What becomes of a disk when the plug is pulled at each of its sectors is proven in memory
//! (`hostd/exec/src/storage/disks/tests.rs`). Here the kernel reads the partitions, `mkfs.ext4` makes the
//! file systems, ext4 holds volumes to their quotas, and disks get commands.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use lab::{Disk, Flavour, Lab, Machine, MachineBuilder};
use serde_json::Value;

/// How long a machine may live, and take to boot, on a host with other things to do.
const LIFE: Duration = Duration::from_secs(900);
const BOOT_MAX: Duration = Duration::from_secs(300);
/// How long one thing may take.
const TIME_MAX: Duration = Duration::from_secs(180);
const PROGRAM: &str = "/pools";
const MKFS: &str = "/sbin/mkfs.ext4";
/// Sizes of the SCSI disks, by which they are told apart.
const FAST_MIB: u64 = 2304;
const SLOW_MIB: u64 = 2560;
const MIB: u64 = 1 << 20;

/// Disks whose names their machine gives them in this order: `vda` …
struct World {
    lab: Lab,
    disks: Vec<Disk>,
    /// More of QEMU's command line.
    arguments: Vec<String>,
}

impl World {
    fn new(name: &str) -> Self {
        Self { lab: Lab::new(name).unwrap(), disks: Vec::new(), arguments: Vec::new() }
    }

    fn disk(&mut self, name: &str, size_mib: u64) -> PathBuf {
        let disk = self.lab.disk(name, size_mib).unwrap();
        let path = disk.path().to_owned();
        self.disks.push(disk);
        path
    }

    /// A SCSI disk of `sd…`, with words for QEMU about the device and its speed.
    fn scsi(&mut self, name: &str, size_mib: u64, words: &str, operations: Option<u32>) -> Disk {
        self.throttled(name, size_mib, operations, &format!("scsi-hd,bus=scsi0.0{words}"))
    }

    /// An ATA disk of `sd…`, and its speed.
    fn ata(&mut self, name: &str, size_mib: u64, operations: Option<u32>) -> Disk {
        self.throttled(name, size_mib, operations, "ide-hd,bus=ide.0,rotation_rate=7200")
    }

    fn throttled(
        &mut self,
        name: &str,
        size_mib: u64,
        operations: Option<u32>,
        device: &str,
    ) -> Disk {
        let disk = self.lab.disk(name, size_mib).unwrap();
        let file = format!(
            "driver=raw,node-name={name}-raw,file.driver=file,file.filename={}",
            disk.path().display()
        );
        let mut node = format!("{name}-raw");
        self.arguments.extend(["-blockdev".to_owned(), file]);
        if let Some(operations) = operations {
            let group = format!("throttle-group,id={name}-slow,x-iops-read={operations}");
            let slow = format!(
                "driver=throttle,node-name={name}-node,throttle-group={name}-slow,file={node}"
            );
            self.arguments.extend(["-object".to_owned(), group, "-blockdev".to_owned(), slow]);
            node = format!("{name}-node");
        }
        let device = format!("{device},drive={node},serial={name}");
        self.arguments.extend(["-device".to_owned(), device]);
        disk
    }

    fn builder(&self) -> MachineBuilder {
        let modules = ["ext4", "quota_v2", "virtio_scsi", "sd_mod"];
        let builder = self.lab.machine("node").cpus(1).memory_mib(512).modules(&modules);
        let builder = builder.life(LIFE).boot_timeout(BOOT_MAX);
        let mut builder = builder.program(MKFS).program("/sbin/e2fsck").program(pools());
        for disk in &self.disks {
            builder = builder.disk(disk);
        }
        let arguments = ["-device", "virtio-scsi-pci,id=scsi0"].into_iter();
        let arguments: Vec<_> =
            arguments.chain(self.arguments.iter().map(String::as_str)).collect();
        builder.qemu_arguments(&arguments).host_file(PROGRAM, 0o755, pools())
    }

    fn boot(&self) -> Machine {
        self.builder().boot().unwrap()
    }
}

/// The program, built once, without what nobody debugs there.
fn pools() -> &'static Path {
    static PROGRAM: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = PROGRAM.get_or_init(|| {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        let words = ["build", "--quiet", "--message-format", "json", "--workspace"];
        build.args(words).args(["--example", "pools"]).stderr(Stdio::inherit());
        let output = build.output().unwrap();
        assert!(output.status.success(), "the program is not built");
        let messages = String::from_utf8(output.stdout).unwrap();
        let messages = messages.lines().filter_map(|line| serde_json::from_str(line).ok());
        let built = messages
            .filter_map(|message: Value| message["executable"].as_str().map(str::to_owned))
            .next_back()
            .unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pools");
        let strip = Command::new("strip").arg("-o").arg(&path).arg(built).status().unwrap();
        assert!(strip.success());
        (folder, path)
    });
    path
}

fn run(machine: &Machine, words: &[&str]) -> String {
    let words = [&[PROGRAM], words].concat();
    let output = machine.command(&words).timeout(TIME_MAX).run().unwrap();
    output.success().unwrap().text().trim().to_owned()
}

fn prepare(machine: &Machine, mkfs: &str) -> Vec<Value> {
    serde_json::from_str(&run(machine, &["prepare", "/mnt", mkfs])).unwrap()
}

fn of<'a>(disks: &'a [Value], name: &str) -> &'a Value {
    let found = disks.iter().find(|disk| disk["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {disks:?}"))
}

/// A disk by its size, where its name is not known.
fn of_mib(disks: &[Value], size_mib: u64) -> &Value {
    let found = disks.iter().find(|disk| disk["size"] == size_mib * MIB);
    found.unwrap_or_else(|| panic!("no disk of {size_mib} MiB in {disks:?}"))
}

/// The first bytes of a disk, and its last.
fn ends(path: &Path) -> Vec<u8> {
    use std::os::unix::fs::FileExt as _;

    let file = std::fs::File::open(path).unwrap();
    let size = file.metadata().unwrap().len();
    let mut bytes = vec![0; 2 << 20];
    let (head, tail) = bytes.split_at_mut(1 << 20);
    file.read_exact_at(head, 0).unwrap();
    file.read_exact_at(tail, size - MIB).unwrap();
    bytes
}

#[test]
fn blank_disks_become_pools_and_others_are_left_alone() {
    let mut world = World::new("disks");
    world.disk("blank", 2048);
    let foreign = world.disk("foreign", 1024);
    let status = Command::new(MKFS).args(["-q", "-F"]).arg(&foreign).status().unwrap();
    assert!(status.success());
    let unknown = world.disk("unknown", 1024);
    std::fs::write(&unknown, b"what is this?").unwrap();
    std::fs::File::options().write(true).open(&unknown).unwrap().set_len(1 << 30).unwrap();
    let _fast = world.scsi("fast", FAST_MIB, ",rotation_rate=1", None);
    let _slow = world.scsi("slow", SLOW_MIB, ",rotation_rate=7200", Some(40));
    let before = [ends(&foreign), ends(&unknown)];

    let machine = world.boot();
    // Half made: its table is there, and its file system is not.
    let half = prepare(&machine, PROGRAM);
    for name in ["vda", "sda", "sdb"] {
        let what = of(&half, name)["what"].as_str().unwrap();
        assert!(what.starts_with("not usable: mkfs.ext4 failed"), "{what}");
    }
    let made = prepare(&machine, MKFS);
    for name in ["vda", "sda", "sdb"] {
        assert_eq!(of(&made, name)["what"], "a pool", "{made:?}");
    }
    assert_eq!(of(&made, "vdb")["what"], "left alone: it holds ext4");
    assert!(
        of(&made, "vdc")["what"].as_str().unwrap().starts_with("left alone: it holds something")
    );
    // The kernel looks at SCSI disks all at once, and calls first what answers first.
    let types = [FAST_MIB, SLOW_MIB].map(|size| &of_mib(&made, size)["type"]);
    assert_eq!(types, ["ssd", "hdd"]);
    assert_eq!(prepare(&machine, "/absent"), made, "what is made was made again");
    assert!(made.iter().all(|disk| disk["name"] != "sr0"));
    machine.power_cut();

    // The same pools, whatever the kernel calls their disks; nothing is measured twice.
    world.disks.reverse();
    let machine = world.boot();
    let again = prepare(&machine, "/absent");
    let same = |old: &Value, new: &Value| {
        assert_eq!((&old["pool"], &old["type"]), (&new["pool"], &new["type"]));
    };
    same(of(&made, "vda"), of(&again, "vdc"));
    for size in [FAST_MIB, SLOW_MIB] {
        same(of_mib(&made, size), of_mib(&again, size));
    }
    assert_eq!([ends(&foreign), ends(&unknown)], before, "a disk of others was touched");
}

/// Commands as QEMU tells them: "stand by" of ATA, and "start or stop" of SCSI.
const STAND_BY_ATA: &str = "cmd 0xe0";
const STAND_BY_SCSI: &str = "command 27 ";

#[test]
fn hard_disks_that_nobody_uses_are_told_to_stand_by_and_work_when_they_are_used() {
    let mut world = World::new("disks-rest");
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("commands");
    let trace = format!("events={}", folder.path().join("events").display());
    std::fs::write(folder.path().join("events"), "ide_exec_cmd\nscsi_req_parsed\n").unwrap();
    world.arguments.extend(["-trace", &trace, "-D", log.to_str().unwrap()].map(str::to_owned));
    let _scsi = world.scsi("slow", SLOW_MIB, ",rotation_rate=7200", Some(40));
    let _ata = world.ata("old", 2048, Some(40));
    // One of which nobody can be told anything.
    world.disk("blank", 1536);
    let builder = world.builder().kernel(Flavour::Full).modules(&["ahci"]);
    let machine = builder.boot().unwrap();
    let made = prepare(&machine, MKFS);
    let hard_disk = |size_mib| {
        let disk = of_mib(&made, size_mib);
        assert_eq!((&disk["what"], &disk["type"]), (&"a pool".into(), &"hdd".into()), "{made:?}");
        disk["name"].as_str().unwrap().to_owned()
    };
    let (scsi, ata) = (hard_disk(SLOW_MIB), hard_disk(2048));
    assert_eq!(of_mib(&made, SLOW_MIB)["serial"], "slow");
    assert_eq!(of_mib(&made, 2048)["serial"], "old");
    let said = || std::fs::read_to_string(&log).unwrap();
    let are_told = || [STAND_BY_ATA, STAND_BY_SCSI].map(|command| said().contains(command));
    assert_eq!(are_told(), [false, false]);

    let resting = run(&machine, &["rest", "/mnt"]);
    let mut expected = [ata, scsi];
    expected.sort();
    let mut resting: Vec<_> = resting.split(' ').collect();
    resting.sort_unstable();
    assert_eq!(resting, expected);
    assert_eq!(are_told(), [true, true]);
    // They are what they were.
    assert_eq!(prepare(&machine, "/absent"), made);
    let pool = of_mib(&made, SLOW_MIB)["pool"].as_str().unwrap();
    run(&machine, &["free", &format!("/mnt/{pool}")]);
}

#[test]
fn a_plug_pulled_while_a_disk_is_made_is_made_up_for() {
    let mut world = World::new("disks-plug");
    world.disk("blank", 2048);
    let mut times = [0_u64, 40, 200, 700].into_iter();
    let mut number = None;
    loop {
        let machine = world.boot();
        let Some(time) = times.next() else {
            let made = prepare(&machine, MKFS);
            assert_eq!(made[0]["what"], "a pool", "{made:?}");
            assert!(number.is_none_or(|number| number == made[0]["pool"]));
            return;
        };
        let running = machine.command(&[PROGRAM, "prepare", "/mnt", MKFS]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(time));
        if running.has_ended(Duration::ZERO).unwrap() {
            let text = running.wait().unwrap().text();
            let made: Vec<Value> = serde_json::from_str(&text).unwrap();
            number = Some(made[0]["pool"].clone());
        }
        machine.power_cut();
    }
}

#[test]
fn the_file_system_holds_volumes_to_their_size_and_nothing_is_left_of_them() {
    let mut world = World::new("disks-quota");
    world.disk("blank", 2048);
    let machine = world.boot();
    let pool = prepare(&machine, MKFS)[0]["pool"].as_str().unwrap().to_owned();
    let free = || run(&machine, &["free", &format!("/mnt/{pool}")]);
    let before = free();
    let size = 8 * MIB;
    let folder = run(&machine, &["create", "/mnt", "files", &size.to_string()]);
    // Whoever looks sees the promise, as far as blocks of 4 KiB tell it.
    let seen = run(&machine, &["free", &folder]);
    assert!(seen.starts_with(&format!("{size} ")), "{seen}");
    let written = |file: &str| {
        let text = run(&machine, &["fill", &format!("{folder}/{file}")]);
        let (count, reason) = text.split_once(' ').unwrap();
        assert_eq!(reason, "QuotaExceeded", "{text}");
        count.parse::<u64>().unwrap()
    };
    let first = written("a");
    assert!((size - MIB..=size).contains(&first), "{first}");
    let size = 2 * size;
    assert_eq!(run(&machine, &["grow", "/mnt", "files", &size.to_string()]), size.to_string());
    let second = written("b");
    assert!((size - MIB..=size).contains(&(first + second)), "{first} {second}");
    // Another one has its own.
    let other = run(&machine, &["create", "/mnt", "other", &(4 * MIB).to_string()]);
    assert!(run(&machine, &["free", &other]).starts_with(&format!("{} ", 4 * MIB)));
    for name in ["files", "other"] {
        run(&machine, &["remove", "/mnt", name]);
    }
    // But for the folder that volumes are in.
    let bytes = |text: &str| text.split_once(' ').unwrap().1.parse::<u64>().unwrap();
    assert!(bytes(&before) - bytes(&free()) <= 64 << 10, "{before}: {}", free());
    // A number that was free again is given again, with a limit of its own.
    let again = run(&machine, &["create", "/mnt", "again", &(4 * MIB).to_string()]);
    assert!(run(&machine, &["free", &again]).starts_with(&format!("{} ", 4 * MIB)));

    // The node's own folder shows its promise where it is mounted, too.
    let cache = run(&machine, &["cache", "/mnt", "/var/cache"]);
    assert!(cache.starts_with("Pool("), "{cache}");
    let seen = run(&machine, &["free", "/var/cache"]);
    let (all, _) = seen.split_once(' ').unwrap();
    assert!(all.parse::<u64>().unwrap() < 1 << 30, "{seen}");
    assert_eq!(run(&machine, &["cache", "/mnt", "/var/cache"]), cache);
}
