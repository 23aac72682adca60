//! Disks of this machine, as the kernel shows them in `/sys/block` and `/proc`.
//!
//! Only disks of the machine itself are seen: what is made of other things (loops, RAM, device mapper,
//! RAID) is no disk, what comes by USB is somebody's who plugged it in, and what has media that can be
//! taken out is not there tomorrow.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where the kernel has what is made of other things.
const MADE_BY_KERNEL: &str = "/virtual/block/";
/// Bytes of the unit in which the kernel tells sizes, whatever sectors a disk has.
const SIZE_UNIT: u64 = 512;
/// Disks that are looked at: more than any machine has.
const DISK_COUNT_MAX: usize = 1024;
/// Bytes of a file of the kernel's that are read.
const TEXT_SIZE_MAX: u64 = 4 << 20;
/// Bytes of what a disk says of itself that are read.
const PAGE_SIZE_MAX: u64 = 4096;
/// Bytes of a number by which a disk is told from others. ATA has 20 (ACS-3 §7.12.7.10), NVMe 20, and the
/// kernel's names of SCSI disks, which hold maker, kind and number, some more than 64.
const NUMBER_SIZE_MAX: usize = 128;
/// The code of the page.
const UNIT_SERIAL_NUMBER: u8 = 0x80;

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Device {
    /// The kernel's name, `sda`: another one after the next boot.
    pub(super) name: String,
    /// Bytes.
    pub(super) size: u64,
    /// Bytes of a sector.
    pub(super) sector: u64,
    /// Whether the kernel takes it for a disk that turns; also if nobody has said anything.
    pub(super) is_rotational: bool,
    /// Why it can be no disk of a node, in words.
    pub(super) refusal: Option<&'static str>,
    /// Who uses it or a part of it, in words.
    pub(super) user: Option<String>,
    /// Its maker's number for it, if it has one: what is printed on it.
    pub(super) serial: Option<String>,
    /// What no other disk in the world has, if it says so itself: two ways to one disk have the same.
    pub(super) identity: Option<String>,
    /// Its partitions.
    pub(super) partitions: Vec<Partition>,
}

/// A partition, as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Partition {
    /// The kernel's name, `sda1`.
    pub(super) name: String,
    /// Its number in the table, from 1.
    pub(super) number: usize,
    /// Where it begins, in bytes.
    pub(super) start: u64,
    /// Bytes.
    pub(super) size: u64,
}

/// Where the kernel tells about itself.
#[derive(Debug, Clone)]
pub(super) struct Roots {
    pub(super) sys: PathBuf,
    pub(super) proc: PathBuf,
    pub(super) dev: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self { sys: "/sys".into(), proc: "/proc".into(), dev: "/dev".into() }
    }
}

impl Roots {
    /// The disks there are, by their names; those that are no disks of a node among them, with the reason.
    pub(super) fn disks(&self) -> io::Result<Vec<Device>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.sys.join("block"))?.take(DISK_COUNT_MAX) {
            names.extend(entry?.file_name().into_string().ok());
        }
        names.sort();
        let busy = self.busy()?;
        Ok(names.iter().filter_map(|name| self.disk(name, &busy)).collect())
    }

    /// One disk anew; none if it is gone.
    pub(super) fn again(&self, name: &str) -> io::Result<Option<Device>> {
        Ok(self.disk(name, &self.busy()?))
    }

    /// The file of a disk or partition.
    pub(super) fn node(&self, name: &str) -> PathBuf {
        self.dev.join(name)
    }

    /// Where the file system of a disk or partition is mounted as a whole.
    pub(super) fn mount_points(&self, name: &str) -> io::Result<Vec<PathBuf>> {
        let number = read(&self.sys.join("class/block").join(name).join("dev")).unwrap_or_default();
        let mounts = fs::read_to_string(self.proc.join("self/mountinfo"))?;
        let points = mounts.lines().filter_map(|line| {
            let mut words = line.split(' ').skip(2);
            let is_it = words.next()? == number && words.next()? == "/";
            is_it.then(|| words.next().map(unescaped))?
        });
        Ok(points.map(PathBuf::from).collect())
    }

    /// The disk that has this number, or a partition that has.
    pub(super) fn disk_numbered(&self, number: &str) -> io::Result<String> {
        let folder = fs::canonicalize(self.sys.join("dev/block").join(number))?;
        let is_partition = folder.join("partition").exists();
        let disk = if is_partition { folder.parent() } else { Some(&*folder) };
        let disk = disk.filter(|disk| !disk.to_string_lossy().contains(MADE_BY_KERNEL));
        let name = disk.and_then(|disk| disk.file_name()).and_then(|name| name.to_str());
        name.map(str::to_owned).ok_or_else(|| io::Error::other("it is no disk of the machine"))
    }

    fn disk(&self, name: &str, busy: &Busy) -> Option<Device> {
        let folder = self.sys.join("block").join(name);
        let place = fs::canonicalize(&folder).ok()?;
        let place = place.to_str()?;
        let is_disk = !place.contains(MADE_BY_KERNEL)
            && !name.starts_with("sr")
            && !name.starts_with("fd")
            && !(name.starts_with("mmcblk") && (name.contains("boot") || name.contains("rpmb")))
            && flag(&folder.join("hidden")) != Some(true);
        let size = read(&folder.join("size"))?.parse::<u64>().ok()?.checked_mul(SIZE_UNIT)?;
        if !is_disk || size == 0 {
            return None;
        }
        let mut partitions = partitions(&folder, name);
        partitions.sort_by_key(|partition| partition.number);
        let refusal = if place.contains("/usb") {
            Some("it is on USB")
        } else if flag(&folder.join("removable")) == Some(true) {
            Some("its media can be taken out")
        } else if flag(&folder.join("ro")) == Some(true) {
            Some("it can't be written")
        } else {
            None
        };
        let parts = partitions.iter().map(|partition| partition.name.as_str());
        let user = [name].into_iter().chain(parts).find_map(|name| self.used(name, busy));
        let serial = serial(&folder);
        Some(Device {
            name: name.to_owned(),
            size,
            sector: read(&folder.join("queue/logical_block_size"))?.parse().ok()?,
            is_rotational: flag(&folder.join("queue/rotational")) != Some(false),
            refusal,
            user,
            identity: ["device/wwid", "wwid"]
                .into_iter()
                .find_map(|file| printable(&read_bytes(&folder.join(file))?))
                .or_else(|| serial.clone()),
            serial,
            partitions,
        })
    }

    /// Who uses a disk or partition.
    fn used(&self, name: &str, busy: &Busy) -> Option<String> {
        let folder = self.sys.join("class/block").join(name);
        let mut holders = fs::read_dir(folder.join("holders")).into_iter().flatten();
        if let Some(Ok(holder)) = holders.next() {
            return Some(format!("{name} is part of {}", holder.file_name().display()));
        }
        let number = read(&folder.join("dev")).unwrap_or_default();
        let is_busy =
            busy.numbers.contains(&number) || busy.nodes.contains(&format!("/dev/{name}"));
        is_busy.then(|| format!("{name} is in use"))
    }

    /// What is mounted or swapped to.
    fn busy(&self) -> io::Result<Busy> {
        let mut busy = Busy::default();
        let mounts = fs::read_to_string(self.proc.join("self/mountinfo"))?;
        for line in mounts.lines() {
            let mut words = line.split(' ');
            busy.numbers.extend(words.nth(2).map(str::to_owned));
            // Some file systems have numbers of their own, and name their disks.
            let source = line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').nth(1));
            busy.nodes.extend(source.map(unescaped));
        }
        let swaps = fs::read_to_string(self.proc.join("swaps")).unwrap_or_default();
        busy.nodes.extend(
            swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()).map(unescaped),
        );
        Ok(busy)
    }
}

/// What is in use, by numbers of devices and by their files.
#[derive(Default)]
struct Busy {
    numbers: BTreeSet<String>,
    nodes: BTreeSet<String>,
}

fn partitions(folder: &Path, disk: &str) -> Vec<Partition> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let found = entries.filter_map(|entry| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        let number = |file| read(&folder.join(&name).join(file))?.parse::<u64>().ok();
        let bytes = |file| number(file)?.checked_mul(SIZE_UNIT);
        let (number, start, size) = (number("partition")?, bytes("start")?, bytes("size")?);
        let number = usize::try_from(number).ok()?;
        name.starts_with(disk).then_some(Partition { name, number, start, size })
    });
    found.collect()
}

/// The number that a disk's maker gave it. ATA disks of today's kernels are SCSI disks, too.
fn serial(disk: &Path) -> Option<String> {
    // NVMe's is its controller's, and virtio's the disk's own.
    let texts = ["device/serial", "serial"];
    let text = || texts.into_iter().find_map(|file| printable(&read_bytes(&disk.join(file))?));
    let page = || unit_serial_number(&read_bytes(&disk.join("device/vpd_pg80"))?);
    page().or_else(text)
}

/// The number in a page of Vital Product Data "Unit Serial Number" (SPC-4 §7.8.18): its kind, its code,
/// the count of bytes, and so many.
fn unit_serial_number(page: &[u8]) -> Option<String> {
    let [_, UNIT_SERIAL_NUMBER, high, low, rest @ ..] = page else { return None };
    printable(rest.get(..usize::from(u16::from_be_bytes([*high, *low])))?)
}

/// What a disk says of itself, if that can be shown to people: disks say what they like.
fn printable(bytes: &[u8]) -> Option<String> {
    let is_end = |byte: &u8| *byte == 0 || byte.is_ascii_whitespace();
    let first = bytes.iter().position(|byte| !is_end(byte))?;
    let last = bytes.iter().rposition(|byte| !is_end(byte))?;
    let bytes = bytes.get(first..=last).filter(|bytes| bytes.len() <= NUMBER_SIZE_MAX)?;
    let is_shown = bytes.iter().all(|byte| *byte == b' ' || byte.is_ascii_graphic());
    is_shown.then(|| String::from_utf8_lossy(bytes).into_owned())
}

fn flag(path: &Path) -> Option<bool> {
    read(path).map(|text| text != "0")
}

fn read(path: &Path) -> Option<String> {
    use std::io::Read as _;

    let mut text = String::new();
    fs::File::open(path).ok()?.take(TEXT_SIZE_MAX).read_to_string(&mut text).ok()?;
    Some(text.trim().to_owned())
}

/// What a disk says of itself.
fn read_bytes(path: &Path) -> Option<Vec<u8>> {
    use std::io::Read as _;

    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(PAGE_SIZE_MAX).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// A path as it is, without the kernel's octal escapes of spaces.
fn unescaped(text: &str) -> String {
    let mut plain = text.to_owned();
    for (escape, char) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        plain = plain.replace(escape, char);
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::super::testing::Tree;
    use super::*;

    #[test]
    fn disks_are_found_and_what_is_none_is_not() {
        let tree = Tree::new();
        tree.disk("vda", "pci0/virtio0", 100 << 30);
        tree.disk("nvme0n1", "pci0/nvme/nvme0", 200 << 30);
        tree.set("nvme0n1", "queue/rotational", "0");
        tree.set("nvme0n1", "wwid", "eui.0025\n");
        tree.disk("sda", "pci0/usb1/1-1", 8 << 30);
        tree.disk("sdb", "pci0/ata1", 8 << 30);
        tree.set("sdb", "removable", "1");
        tree.disk("sdc", "pci0/ata2", 8 << 30);
        tree.set("sdc", "ro", "1");
        tree.disk("loop0", "virtual/block", 8 << 30);
        tree.disk("zram0", "virtual/block", 8 << 30);
        tree.disk("md0", "virtual/block", 8 << 30);
        tree.disk("sr0", "pci0/ata3", 8 << 30);
        tree.disk("mmcblk0boot0", "pci0/mmc0", 4 << 20);
        tree.disk("sdd", "pci0/ata4", 0);
        tree.disk("nvme1c0n1", "pci0/nvme/nvme1", 8 << 30);
        tree.set("nvme1c0n1", "hidden", "1");
        let disks = tree.roots().disks().unwrap();
        let seen: Vec<_> = disks.iter().map(|disk| (&*disk.name, disk.refusal)).collect();
        assert_eq!(
            seen,
            [
                ("nvme0n1", None),
                ("sda", Some("it is on USB")),
                ("sdb", Some("its media can be taken out")),
                ("sdc", Some("it can't be written")),
                ("vda", None),
            ]
        );
        assert_eq!((disks[0].size, disks[0].sector), (200 << 30, 512));
        assert_eq!((disks[0].is_rotational, disks[4].is_rotational), (false, true));
        assert_eq!(disks[0].identity.as_deref(), Some("eui.0025"));
        assert_eq!(disks[0].serial, None);
        assert_eq!(tree.roots().again("vda").unwrap().unwrap(), disks[4]);
        assert_eq!(tree.roots().again("vdz").unwrap(), None);
    }

    /// A page as a disk gives it.
    fn page(number: &[u8]) -> Vec<u8> {
        let size = u8::try_from(number.len()).unwrap();
        [&[0, UNIT_SERIAL_NUMBER, 0, size], number].concat()
    }

    #[test]
    fn disks_are_known_by_the_number_that_is_printed_on_them() {
        let tree = Tree::new();
        for (name, bus) in [("sda", "ata1"), ("nvme0n1", "nvme/nvme0"), ("vda", "virtio0")] {
            tree.disk(name, &format!("pci0/{bus}"), 8 << 30);
        }
        tree.set_bytes("sda", "device/vpd_pg80", &page(b"        WD-WX12D5 0"));
        tree.set("sda", "device/wwid", "naa.50014ee2b5f6a4c1\n");
        tree.set("nvme0n1", "device/serial", "S4EWNX0R123456      \n");
        tree.set("nvme0n1", "wwid", "eui.0025385b01234567\n");
        tree.set("vda", "serial", "data");
        let disks = tree.roots().disks().unwrap();
        let seen: Vec<_> = disks
            .iter()
            .map(|disk| (disk.serial.as_deref().unwrap(), disk.identity.as_deref().unwrap()))
            .collect();
        assert_eq!(
            seen,
            [
                ("S4EWNX0R123456", "eui.0025385b01234567"),
                ("WD-WX12D5 0", "naa.50014ee2b5f6a4c1"),
                ("data", "data"),
            ]
        );
    }

    #[test]
    fn what_a_disk_says_of_itself_is_not_believed_to_be_a_number() {
        let long = [b'7'; NUMBER_SIZE_MAX + 1];
        assert_eq!(unit_serial_number(&page(&long[1..])).unwrap().len(), NUMBER_SIZE_MAX);
        for bytes in [
            page(&long),
            // Blanks are how a disk says that it has none.
            page(b"      "),
            page(b"\0\0\0\0"),
            page(b""),
            page(b"a\x1b[31mb"),
            page("caf\u{e9}".as_bytes()),
            // More than there is; less than a head; another page.
            vec![0, UNIT_SERIAL_NUMBER, 0, 9, b'7'],
            vec![0, UNIT_SERIAL_NUMBER, 0xff, 0xff],
            vec![0, UNIT_SERIAL_NUMBER, 0],
            vec![0, 0x83, 0, 1, b'7'],
            Vec::new(),
        ] {
            assert_eq!(unit_serial_number(&bytes), None, "{bytes:?}");
        }
        // What stands behind the number is none of it.
        assert_eq!(unit_serial_number(&[0, 0x80, 0, 1, b'7', b'8']).as_deref(), Some("7"));

        // A disk that lies about one of them has the other.
        let tree = Tree::new();
        tree.disk("sda", "pci0/ata1", 8 << 30);
        tree.set_bytes("sda", "device/vpd_pg80", &[0xff; 10_000]);
        tree.set_bytes("sda", "device/wwid", &[b'x'; 10_000]);
        tree.set("sda", "device/serial", "good");
        let disks = tree.roots().disks().unwrap();
        assert_eq!(disks[0].serial.as_deref(), Some("good"));
        assert_eq!(disks[0].identity.as_deref(), Some("good"));
    }

    #[test]
    fn what_is_in_use_is_seen_whichever_part_of_it_is() {
        let tree = Tree::new();
        for (name, bus) in [("sda", "ata1"), ("sdb", "ata2"), ("sdc", "ata3"), ("sdd", "ata4")] {
            tree.disk(name, &format!("pci0/{bus}"), 8 << 30);
            tree.partition(name, 1, 1 << 20, 1 << 30);
            tree.partition(name, 12, 2 << 30, 1 << 30);
        }
        tree.set("sdb", "sdb12/holders/dm-0", "");
        tree.mounts(&[
            "22 1 8:1 / / rw - ext4 /dev/root rw",
            "23 22 0:40 /sub /mnt\\040a rw - btrfs /dev/sdc12 rw",
        ]);
        tree.set_number("sda1", "8:1");
        tree.swaps("Filename Type\n/dev/sdd1 partition 1 0 -2\n");
        let disks = tree.roots().disks().unwrap();
        let seen: Vec<_> = disks.iter().map(|disk| disk.user.as_deref().unwrap()).collect();
        let expected =
            ["sda1 is in use", "sdb12 is part of dm-0", "sdc12 is in use", "sdd1 is in use"];
        assert_eq!(seen, expected);
        assert_eq!(disks[0].partitions.len(), 2);
        assert_eq!(tree.roots().mount_points("sda1").unwrap(), [PathBuf::from("/")]);
        assert!(tree.roots().mount_points("sda12").unwrap().is_empty());
    }
}
