//! An image with a kernel of its own, on a real node: Debian's root with `/boot/vmlinuz` and
//! `/boot/initrd.img` boots what it brings, and does so again when it is restarted.
//!
//! The kernel is a compressed one, as distributions ship it; the initial file system is that of our guests,
//! which keeps in memory what is written to the root if nobody tells it otherwise. What the machine starts
//! is in the image: it reports what it sees on the serial port, and answers whoever connects.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use boot_image::{Cache, KernelPackage};
use lab::Flavour;

use crate::guest_files::{succeed, workspace};
use crate::parts::{initramfs, packed};
use crate::world::{Options, Packed, World, is_soon};

/// What of a Debian root no guest here reads.
const LEFT_OUT: [&str; 6] = [
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/zoneinfo",
    "var/cache/apt",
    "var/lib/apt/lists",
];
/// What it starts.
const ENTRY: &str = r#"#!/bin/bash
say() { echo "report: $*"; }
say cmdline $(cat /proc/cmdline)
say kernel $(uname -r)
say greeting $GREETING
say arguments "$*"
say disk $(df -B1 --output=source,fstype,size /data | tail -1)
mkdir -p /run/root; mount -t virtiofs vroot /run/root
say root $(df -B1 --output=size /run/root | tail -1)
say end
exec perl -MIO::Socket::INET -e '
    $server = IO::Socket::INET->new(LocalPort => 8080, Listen => 5) or die $!;
    while ($client = $server->accept) { print $client "hello from the guest\n"; close $client }'
"#;
const GIB: u64 = 1 << 30;
/// What a machine of that size has for its root.
const ROOT_SIZE: &str = "524288000";

#[test]
fn an_image_with_its_own_kernel_boots_that() {
    // Not below /tmp: the machine has its own there.
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let kernel = KernelPackage::fetch(Flavour::Cloud, &Cache::from_env().unwrap()).unwrap();
    let image = pack(folder.path(), &kernel);
    let image = Some(image);
    let world = World::new(Options { name: "own-kernel", image, ..Options::default() });
    let before = world.holdings();
    let plan = format!(
        "project: test\n\
         networks: [{{name: lan, nodes: [1], range: 10.7.0.0/16}}]\n\
         vms:\n  - {{name: own, node: 1, network: lan, flist: '{}/hub/lab/packed.fl', memory: 512M,\n     \
         entrypoint: '/entry \"one word\" two', env: {{GREETING: its own}},\n     \
         disks: [{{name: data, size: 1G, mount: /data}}]}}\n",
        world.services(),
    );
    let start = Instant::now();
    world.grid(&["deploy", "-f", &world.plan(&plan)]);
    eprintln!("deployed after {:?}", start.elapsed());
    let ip = world.ip_of("own");
    world.answers(&ip);
    eprintln!("answered after {:?}", start.elapsed());
    let console = || {
        let text = world.shell("/bin/cat /data/machine/vms/*/log/console.log");
        text.replace('\r', "")
    };
    assert!(is_soon(|| console().contains("report: end")), "{}", console());
    is_its_own(&console(), kernel.release());

    world.grid(&["restart", "own"]);
    let is_up_again = || console().matches("report: end").count() == 2;
    assert!(is_soon(is_up_again), "row 58: restarted, {}", console());
    world.answers(&ip);
    world.cancel_all();
    world.holds_again(&before);
}

/// What it reported of its first boot.
fn is_its_own(console: &str, release: &str) {
    eprintln!("{console}");
    let said = |key: &str| {
        let prefix = format!("report: {key} ");
        let mut lines = console.lines().filter_map(|line| line.split_once(&prefix));
        lines.next().map(|(_, rest)| rest.trim()).unwrap_or_default()
    };
    assert_eq!(said("kernel"), release, "row 58");
    let words: Vec<_> = said("cmdline").split(' ').collect();
    let promised =
        ["rw", "console=ttyS0", "reboot=k", "panic=1", "root=vroot", "rootfstype=virtiofs"];
    for word in promised.into_iter().chain(["rootdelay=30", "init=/entry"]) {
        assert!(words.contains(&word), "row 66: {word} is not in {words:?}");
    }
    assert_eq!(said("greeting"), "its own");
    assert_eq!(said("arguments"), "one word two");
    let disk: Vec<_> = said("disk").split_whitespace().collect();
    assert_eq!(disk[..2], ["/dev/vda", "ext4"], "row 73");
    let size: u64 = disk[2].parse().unwrap();
    assert!((GIB / 10 * 8..=GIB).contains(&size), "row 73: {size}");
    assert_eq!(said("root"), ROOT_SIZE, "row 62: what may be written below its root");
}

/// Packs Debian's root with a kernel.
fn pack(folder: &Path, kernel: &KernelPackage) -> Packed {
    let mut make = Command::new(workspace().join("ci/debian-root"));
    let made = make.stderr(Stdio::inherit()).output().unwrap();
    assert!(made.status.success(), "ci/debian-root: {}", made.status);
    let root = String::from_utf8(made.stdout).unwrap();
    let tree = folder.join("tree");
    succeed(Command::new("cp").arg("-a").arg(root.trim()).arg(&tree));
    for path in LEFT_OUT {
        let _ = fs::remove_dir_all(tree.join(path));
    }
    fs::copy(kernel.vmlinuz(), tree.join("boot/vmlinuz")).unwrap();
    fs::copy(initramfs(), tree.join("boot/initrd.img")).unwrap();
    fs::write(tree.join("entry"), ENTRY).unwrap();
    fs::set_permissions(tree.join("entry"), fs::Permissions::from_mode(0o755)).unwrap();
    packed(folder, &tree)
}
