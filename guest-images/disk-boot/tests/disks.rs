//! Disks made by the tools that everybody makes them with, read by the command: what comes out is
//! compared byte by byte. And disks that somebody has changed, which end in an error and in nothing
//! else.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use disk_boot::source::Source;
use disk_boot::volumes::Volumes;
use disk_boot::{choose, extract};
use proptest::prelude::*;
use serde_json::Value;
use tempfile::TempDir;

const UUID: &str = "6f1dbb0e-5f1a-4a4e-8d5c-52a0f4dcb1a2";
const MIB: usize = 1 << 20;

/// Bytes that look like nothing else, in which a shift by a block is seen.
fn noise(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// Noise that begins as a kernel does.
fn kernel(size: usize) -> Vec<u8> {
    let mut bytes = noise(size, 7);
    bytes[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    bytes[0x202..0x206].copy_from_slice(b"HdrS");
    bytes
}

fn succeed(command: &mut Command) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
}

/// A folder, and the disks and file systems in it.
struct Bench(TempDir);

impl Bench {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A folder with these files.
    fn tree(&self, name: &str, files: &[(&str, &[u8])]) -> PathBuf {
        let tree = self.path(name);
        for (path, bytes) in files {
            let path = tree.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match bytes.strip_prefix(b"-> ") {
                Some(target) => {
                    let target = std::str::from_utf8(target).unwrap();
                    std::os::unix::fs::symlink(target, path).unwrap();
                }
                None => fs::write(path, bytes).unwrap(),
            }
        }
        tree
    }

    fn ext(&self, name: &str, tree: &Path, mib: usize, options: &[&str]) -> Vec<u8> {
        let image = self.path(name);
        let mut make = Command::new("/sbin/mke2fs");
        make.args(["-q", "-F", "-U", UUID]).args(options).arg("-d").arg(tree).arg(&image);
        succeed(make.arg(format!("{mib}M")));
        fs::read(image).unwrap()
    }

    fn fat(&self, name: &str, tree: &Path, mib: usize, bits: &str) -> Vec<u8> {
        let image = self.path(name);
        fs::File::create(&image).unwrap().set_len((mib * MIB) as u64).unwrap();
        succeed(Command::new("/usr/sbin/mkfs.vfat").args(["-F", bits, "-s", "1"]).arg(&image));
        for entry in fs::read_dir(tree).unwrap() {
            let mut copy = Command::new("/usr/bin/mcopy");
            succeed(copy.args(["-s", "-i"]).arg(&image).arg(entry.unwrap().path()).arg("::"));
        }
        fs::read(image).unwrap()
    }

    /// A disk with a table by `sfdisk`, and these bytes at so many MiB.
    fn disk(&self, mib: usize, table: &str, parts: &[(usize, &[u8])]) -> PathBuf {
        let disk = self.path("disk");
        let file = fs::File::create(&disk).unwrap();
        file.set_len((mib * MIB) as u64).unwrap();
        if !table.is_empty() {
            let mut command = Command::new("/usr/sbin/sfdisk");
            let command = command.arg("-q").arg(&disk).stdin(Stdio::piped());
            let mut child = command.spawn().unwrap();
            child.stdin.take().unwrap().write_all(table.as_bytes()).unwrap();
            assert!(child.wait().unwrap().success());
        }
        for (at, bytes) in parts {
            file.write_all_at(bytes, (at * MIB) as u64).unwrap();
        }
        disk
    }

    fn run(&self, disk: &Path) -> Output {
        let mut command = Command::new("timeout");
        command.args(["60", env!("CARGO_BIN_EXE_disk-boot"), "extract"]).arg(disk);
        command.arg("--kernel").arg(self.path("kernel"));
        command.arg("--initramfs").arg(self.path("initramfs")).output().unwrap()
    }

    /// What the command makes of a disk: its kernel, initial file system and words.
    fn extracted(&self, disk: &Path) -> (Vec<u8>, Vec<u8>, Value) {
        let output = self.run(disk);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}", output.status);
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        let read = |name| fs::read(self.path(name)).unwrap();
        (read("kernel"), read("initramfs"), said)
    }

    fn refused(&self, disk: &Path) -> String {
        let output = self.run(disk);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}

fn grub(prefix: &str) -> String {
    format!(
        "set root='hd0,gpt7'\nif [ x$feature_platform_search_hint = xy ]; then\n  \
         search --no-floppy --fs-uuid --set=root --hint-bios=hd0,gpt1 {UUID}\nfi\n\
         menuentry 'Linux' --id simple {{\n\techo 'Loading'\n\
         \tlinux\t{prefix}/vmlinuz root=UUID={UUID} ro  console=tty0\n\
         \tinitrd\t{prefix}/ucode.img {prefix}/initrd.img\n}}\n"
    )
}

#[test]
fn ext_file_systems_of_all_ages_give_their_files() {
    let (kernel, initrd) = (kernel(3 * MIB + 123), noise(2 * MIB + 5, 3));
    let config = grub("/boot");
    let many: Vec<(String, Vec<u8>)> =
        (0..300).map(|number| (format!("boot/other-{number}"), vec![b'x'; number])).collect();
    let mut files: Vec<(&str, &[u8])> = vec![
        ("boot/grub/grub.cfg", config.as_bytes()),
        ("boot/vmlinuz", b"-> vmlinuz-6.1"),
        ("boot/vmlinuz-6.1", &kernel),
        ("boot/ucode.img", b"ucode"),
        ("initrd.img", &initrd),
        ("boot/initrd.img", b"-> ../initrd.img"),
    ];
    files.extend(many.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())));
    let options: [&[&str]; 6] = [
        &["-t", "ext4"],
        &["-t", "ext4", "-O", "metadata_csum_seed,orphan_file"],
        &["-t", "ext4", "-b", "1024"],
        &["-t", "ext4", "-O", "^metadata_csum,^64bit"],
        &["-t", "ext3"],
        &["-t", "ext2", "-b", "2048"],
    ];
    for options in options {
        let bench = Bench::new();
        let tree = bench.tree("tree", &files);
        let root = bench.ext("root", &tree, 16, options);
        let table = "label: gpt\n2: start=2048, size=2048\n1: start=8192, size=32768\n";
        let disk = bench.disk(21, table, &[(4, &root)]);
        let (got_kernel, got_initramfs, said) = bench.extracted(&disk);
        assert!(got_kernel == kernel, "{options:?}: another kernel");
        let expected = [b"ucode\0\0\0".as_slice(), &initrd].concat();
        assert!(got_initramfs == expected, "{options:?}: another initial file system");
        assert_eq!(said["cmdline"], format!("root=UUID={UUID} ro console=tty0"));
        assert_eq!(said["config"], "(hd0,gpt1)/boot/grub/grub.cfg");
        assert_eq!(said["title"], "Linux");
    }
}

#[test]
fn a_boot_partition_in_an_older_table_is_found() {
    let bench = Bench::new();
    let kernel = kernel(MIB);
    let config = grub("");
    let files: [(&str, &[u8]); 4] = [
        ("grub2/grub.cfg", config.as_bytes()),
        ("vmlinuz", &kernel),
        ("ucode.img", b"1234"),
        ("initrd.img", b"56"),
    ];
    let boot = bench.ext("boot", &bench.tree("boot-tree", &files), 8, &["-t", "ext4"]);
    let table = "label: dos\n1: start=2048, size=2048, type=82\n2: start=4096, size=30000, type=5\n\
                 5: start=8192, size=16384\n";
    // The root is of a kind that is not read here; the boot partition is enough.
    let disk = bench.disk(20, table, &[(1, b"XFSB"), (4, &boot)]);
    let (got, initramfs, said) = bench.extracted(&disk);
    assert!(got == kernel);
    assert_eq!(initramfs, b"123456");
    assert_eq!(said["config"], "(hd0,msdos5)/grub2/grub.cfg");
}

#[test]
fn entries_on_fat_of_each_width_are_found() {
    let kernel = kernel(MIB + 77);
    let initrd = noise(300_001, 9);
    for (mib, bits) in [(2, "12"), (8, "16"), (40, "32")] {
        let bench = Bench::new();
        let entry = b"title Arch\nversion 6.1\nlinux /A-Long-Folder-Name/Linux.efi\n\
                      initrd /A-Long-Folder-Name/initrd.img\noptions root=LABEL=x rw\n";
        let files: [(&str, &[u8]); 4] = [
            ("loader/entries/arch.conf", entry),
            ("loader/loader.conf", b"default arch.conf\n"),
            ("A-Long-Folder-Name/Linux.efi", &kernel),
            ("A-Long-Folder-Name/initrd.img", &initrd),
        ];
        let esp = bench.fat("esp", &bench.tree("tree", &files), mib, bits);
        let table = format!("label: gpt\n1: start=2048, size={}, type=uefi\n", mib * 2048);
        let disk = bench.disk(mib + 2, &table, &[(1, &esp)]);
        let (got_kernel, got_initramfs, said) = bench.extracted(&disk);
        assert!(got_kernel == kernel && got_initramfs == initrd, "FAT{bits}");
        assert_eq!(said["cmdline"], "root=LABEL=x rw");
    }
}

#[test]
fn a_file_system_without_a_table_is_a_disk() {
    let bench = Bench::new();
    let kernel = kernel(70_000);
    let config = b"DEFAULT menu.c32\nLABEL virt\n MENU DEFAULT\n LINUX vmlinuz-virt\n INITRD initramfs\n APPEND quiet\n";
    let files: [(&str, &[u8]); 3] = [
        ("boot/extlinux.conf", config),
        ("boot/vmlinuz-virt", &kernel),
        ("boot/initramfs", b"init"),
    ];
    let root = bench.ext("root", &bench.tree("tree", &files), 4, &["-t", "ext4"]);
    let disk = bench.disk(4, "", &[(0, &root)]);
    let (got, _, said) = bench.extracted(&disk);
    assert!(got == kernel);
    assert_eq!(
        (&said["config"], &said["cmdline"]),
        (&"(hd0)/boot/extlinux.conf".into(), &"quiet".into())
    );

    // The command becomes a program that is told what there is.
    let run = Command::new(env!("CARGO_BIN_EXE_disk-boot"))
        .arg("run")
        .arg(&disk)
        .arg("--into")
        .arg(bench.path("made/into"))
        .args(["--words", "console=ttyS0 panic=1", "--", "/bin/echo", "run"])
        .output()
        .unwrap();
    assert!(run.status.success(), "{run:?}");
    let into = bench.path("made/into");
    let expected = format!(
        "run --kernel {0}/kernel --initramfs {0}/initramfs --cmdline=console=ttyS0 panic=1 quiet\n",
        into.display()
    );
    assert_eq!(String::from_utf8(run.stdout).unwrap(), expected);
    assert!(fs::read(into.join("kernel")).unwrap() == kernel);
    assert_eq!(fs::read_dir(into).unwrap().count(), 2);
}

#[test]
fn what_cannot_be_booted_is_told_in_words() {
    let bench = Bench::new();
    let table = "label: gpt\n1: start=2048, size=2048\n2: start=4096, size=2048\n";
    let btrfs = [vec![0; 0x1_0040], b"_BHRfS_M".to_vec()].concat();
    let disk = bench.disk(4, table, &[(1, b"XFSB"), (2, &btrfs)]);
    let said = bench.refused(&disk);
    assert!(said.contains("partition 1: XFS, which is not read; partition 2: btrfs"), "{said}");
    let said = bench.refused(&bench.disk(1, "", &[]));
    assert!(said.contains("no file system that can be read"), "{said}");
    let said = bench.refused(&bench.path("none"));
    assert!(said.contains("No such file"), "{said}");
    // A journal that a crash left is replayed or refused, and a file that is larger than any is told.
    let big = bench.path("big");
    let tree = bench.tree("tree", &[("boot/grub/grub.cfg", b"menuentry x { linux /k }")]);
    fs::File::create(tree.join("k")).unwrap().set_len(129 << 20).unwrap();
    let root = bench.ext("root", &tree, 8, &["-t", "ext4"]);
    fs::write(&big, root).unwrap();
    let said = bench.refused(&big);
    assert!(said.contains("/k has 135266304 bytes, at most 134217728"), "{said}");
}

/// A small disk of everything, without checksums that would hide what a change does.
fn small(bench: &Bench, options: &[&str]) -> Vec<u8> {
    let kernel = kernel(40_000);
    let config = grub("/boot");
    let files: [(&str, &[u8]); 6] = [
        ("boot/grub/grub.cfg", config.as_bytes()),
        ("boot/vmlinuz", b"-> ../vmlinuz-6.1"),
        ("vmlinuz-6.1", &kernel),
        ("boot/ucode.img", b"ucode"),
        ("boot/initrd.img", b"initrd"),
        ("loader/entries/a.conf", b"linux /vmlinuz-6.1\n"),
    ];
    bench.ext("root", &bench.tree("tree", &files), 1, options)
}

fn try_all(bytes: &[u8]) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    let Ok(volumes) = Volumes::open(&Source::new(file).unwrap().window()) else { return };
    let Ok(choice) = choose(&volumes) else { return };
    let _ = extract(&volumes, &choice, &mut std::io::sink(), &mut std::io::sink());
}

/// Bytes that are something: not those of empty blocks, which nobody reads.
fn places(bytes: &[u8]) -> Vec<usize> {
    (0..bytes.len()).filter(|at| bytes[*at] != 0 && bytes[*at] != b'x').take(60_000).collect()
}

#[test]
fn changed_file_systems_end_in_an_error_and_nothing_else() {
    let (bench, other) = (Bench::new(), Bench::new());
    let ext4 = ["-t", "ext4", "-O", "^metadata_csum,^has_journal", "-N", "64"];
    let ext2 = ["-t", "ext2", "-N", "64"];
    let tree =
        bench.tree("fat-tree", &[("loader/entries/a.conf", b"linux /k\n"), ("k", &kernel(20_000))]);
    let images = [small(&bench, &ext4), small(&other, &ext2), bench.fat("fat", &tree, 1, "12")];
    for image in images {
        try_all(&image);
        let places = places(&image);
        let changes = proptest::collection::vec((0..places.len(), any::<u8>()), 1..6);
        let config =
            ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) };
        proptest!(config, |(changes in changes)| {
            let mut image = image.clone();
            for (place, byte) in changes {
                image[places[place]] = byte;
            }
            try_all(&image);
        });
    }
}

#[test]
fn the_command_never_ends_by_a_signal() {
    let bench = Bench::new();
    let image = small(&bench, &["-t", "ext4", "-O", "^metadata_csum", "-N", "64"]);
    let places = places(&image);
    let disk = bench.path("changed");
    for (round, place) in places.iter().step_by(places.len() / 24).enumerate() {
        let mut image = image.clone();
        image[*place] ^= 1 << (round % 8);
        fs::write(&disk, image).unwrap();
        let output = bench.run(&disk);
        assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
    }
}
