//! The image of a whole Debian disk boots without firmware, and what the guest changes is booted next.
//!
//! ```text
//!   ci/disk-image ──flist pack──► image with /image.raw
//!   L1: supervise ─┬─ flist cached                                   (rooms of a node, by an example)
//!                  └─ disk-boot ──► vmm ── L2: Debian, systemd, cloud-init, which sees `cidata`
//! ```
//!
//! The disk is partitioned, has the boot configuration that Debian's own program writes, and a report of
//! what the machine was told. At its first boot the guest changes its command line and asks for a
//! reset: the second boot must have it.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lab::{Disk, Lab, Machine, Outcome};

use crate::guest_files::{succeed, workspace};
use crate::parts::{Packed, disk_of, packed, program};

/// What the machine has to run.
const PROGRAMS: [&str; 4] = ["supervise", "flist", "vmm", "disk-boot"];
/// How long all of it may take, on a host with other things to do: Debian boots twice, in a translator's
/// virtual machine.
const TIME_MAX: Duration = Duration::from_secs(1500);
const HASH: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

#[test]
fn a_cloud_image_boots_sees_its_cidata_and_boots_what_it_changed() {
    // Not below /tmp: the machine has its own there.
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let Packed { disk, place } = pack(folder.path());
    let lab = Lab::new("whole-disk").unwrap();
    let builder = lab.machine("node").nested_kvm().memory_mib(2048).life(TIME_MAX * 2);
    let builder = builder.modules(&["ext4"]).boot_timeout(Duration::from_secs(600));
    let data = disk_of(folder.path(), "data", 8192, |folder| {
        fs::create_dir(folder.join("images")).unwrap();
        fs::copy(place.join("image.fl"), folder.join("images").join(HASH)).unwrap();
    });
    let builder = builder.disk(&Disk::file("packed", &disk).read_only());
    let mut builder = builder.disk(&Disk::file("data", &data));
    let programs = folder.path().join("programs");
    fs::create_dir(&programs).unwrap();
    let own = PROGRAMS.iter().map(|name| (*name, program(name)));
    for (name, path) in own.chain([("whole_disk", program("examples/whole_disk"))]) {
        let stripped = programs.join(name);
        succeed(Command::new("strip").arg("-o").arg(&stripped).arg(path));
        builder = builder.program(stripped);
    }
    let machine = builder.program("/bin/cat").program("/usr/bin/test").boot().unwrap();
    for mount in [&["/dev/vda", place.to_str().unwrap(), "ro"][..], &["/dev/vdb", "/data"]] {
        let mount = [&["/init", "mount", "ext4"], mount].concat();
        machine.run(&mount).unwrap().success().unwrap();
    }
    let at = |name: &str| programs.join(name).to_str().unwrap().to_owned();
    let supervise = [&at("supervise"), "--socket", "/run/supervise.sock"];
    let supervise = machine.command(&supervise).timeout(TIME_MAX * 2).spawn().unwrap();
    let start = Instant::now();
    let listens = ["/usr/bin/test", "-S", "/run/supervise.sock"];
    while machine.run(&listens).unwrap().outcome != Outcome::Exited(0) {
        assert!(start.elapsed() < Duration::from_secs(60), "no supervisor");
    }
    let programs = programs.to_str().unwrap();
    let run = [&at("whole_disk"), "/data", programs, "/run/supervise.sock", HASH];
    let output = machine.command(&run).timeout(TIME_MAX).run().unwrap();
    let log = output.success().unwrap().text().trim().to_owned();
    eprintln!("runs after {:?}", start.elapsed());

    let text = until_said(&machine, &log, "report: end of the second boot").replace('\r', "");
    eprintln!("booted twice after {:?}", start.elapsed());
    let _ = supervise.signal(15);
    let said = |key: &str| -> Vec<&str> {
        let prefix = format!("report: {key} ");
        text.lines().filter_map(|line| line.split_once(&prefix)).map(|(_, rest)| rest).collect()
    };
    let (first, second) = (said("cmdline")[0], said("cmdline")[1]);
    let ours = "console=ttyS0 reboot=k panic=1 cryptomgr.notests no_timer_check";
    let own = "root=UUID=6f1dbb0e-5f1a-4a4e-8d5c-52a0f4dcb1a2 ro console=tty0 \
               console=ttyS0,115200 consoleblank=0";
    assert_eq!(first, format!("{ours} {own}"), "{text}");
    assert_eq!(second, format!("{ours} {own} updated=by-the-guest"), "{text}");
    assert_eq!(said("boots"), ["", "1"], "the disk was written again: {text}");
    assert_eq!(said("hostname"), ["cloudy", "cloudy"]);
    assert!(said("cloud-init")[0].contains("done"), "{text}");
    let environment = "GREETING=\"it's \\\"hello\\\" for \\$5\"";
    assert_eq!(said("environment"), [environment, environment]);
    assert_eq!(said("login")[0], "it's \"hello\" for $5");
    assert!(said("keys")[0].contains("ssh-ed25519 AAAAC3Nz owner"), "{text}");
}

/// Waits until the guest has said something; all that it has said by then. It is shown as it comes: who stops
/// a test that takes long wants to know where it was.
fn until_said(machine: &Machine, log: &str, wanted: &str) -> String {
    let end = Instant::now() + TIME_MAX;
    let mut shown = 0;
    loop {
        let text = machine.run(&["/bin/cat", log]).unwrap().text();
        eprint!("{}", text.get(shown..).unwrap_or_default());
        shown = text.len();
        if text.contains(wanted) {
            return text;
        }
        assert!(Instant::now() < end, "not said within {TIME_MAX:?}: {wanted}");
        std::thread::sleep(Duration::from_secs(2));
    }
}

/// An image with a whole disk.
fn pack(folder: &Path) -> Packed {
    let mut make = Command::new(workspace().join("ci/disk-image"));
    let made = make.stderr(Stdio::inherit()).output().unwrap();
    assert!(made.status.success(), "ci/disk-image: {}", made.status);
    let image = String::from_utf8(made.stdout).unwrap();
    let tree = folder.join("tree");
    fs::create_dir(&tree).unwrap();
    succeed(
        Command::new("cp").arg("--sparse=always").arg(image.trim()).arg(tree.join("image.raw")),
    );
    packed(folder, &tree)
}
