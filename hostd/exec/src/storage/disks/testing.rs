//! Disks in memory whose plug can be pulled, and a tree that looks like the kernel's.

use std::cell::{Cell, RefCell};
use std::fs;
use std::io;
use std::path::PathBuf;

use super::Block;
use super::found::Roots;

/// Bytes of what is written at once, or not at all.
const SECTOR_SIZE: usize = 512;

/// A disk of which only the sectors that were written take memory.
pub(super) struct Memory {
    size: u64,
    sectors: RefCell<std::collections::BTreeMap<u64, [u8; SECTOR_SIZE]>>,
    /// Sectors that were written before the last sync may be torn from those after it.
    log: RefCell<Vec<Logged>>,
    /// How many more sectors can be written.
    pub(super) write_count: Cell<usize>,
}

/// What was done to it.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Logged {
    Write(u64, Box<[u8; SECTOR_SIZE]>),
    Sync,
}

impl Memory {
    pub(super) fn new(size: u64) -> Self {
        let (sectors, log) = (RefCell::default(), RefCell::default());
        Self { size, sectors, log, write_count: Cell::new(usize::MAX) }
    }

    /// What it was told, in order.
    pub(super) fn log(&self) -> Vec<Logged> {
        self.log.borrow().clone()
    }

    /// Does to it what another was told.
    pub(super) fn replay(&self, log: &[Logged]) {
        for logged in log {
            if let Logged::Write(lba, bytes) = logged {
                self.sectors.borrow_mut().insert(*lba, **bytes);
            }
        }
    }

    /// The same disk after a night without power.
    pub(super) fn after(&self) -> Self {
        let sectors = self.sectors.clone();
        Self { sectors, ..Self::new(self.size) }
    }
}

impl Block for Memory {
    fn read_at(&self, bytes: &mut [u8], place: u64) -> io::Result<()> {
        assert!(place + bytes.len() as u64 <= self.size, "read behind the end");
        bytes.fill(0);
        let end = place + bytes.len() as u64;
        let sectors = self.sectors.borrow();
        let first = place / SECTOR_SIZE as u64;
        for (lba, sector) in sectors.range(first..end.div_ceil(SECTOR_SIZE as u64)) {
            let begin = lba * SECTOR_SIZE as u64;
            let (from, to) = (begin.max(place), (begin + SECTOR_SIZE as u64).min(end));
            let at = |from: u64, to: u64| usize::try_from(to - from).unwrap();
            bytes[at(place, from)..at(place, to)]
                .copy_from_slice(&sector[at(begin, from)..at(begin, to)]);
        }
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], place: u64) -> io::Result<()> {
        assert!(place + bytes.len() as u64 <= self.size, "written behind the end");
        let mut bytes = bytes;
        let mut place = place;
        while !bytes.is_empty() {
            let lba = place / SECTOR_SIZE as u64;
            let at = usize::try_from(place % SECTOR_SIZE as u64).unwrap();
            let count = bytes.len().min(SECTOR_SIZE - at);
            let mut sectors = self.sectors.borrow_mut();
            let old = sectors.get(&lba).copied().unwrap_or([0; SECTOR_SIZE]);
            let mut new = old;
            new[at..at + count].copy_from_slice(&bytes[..count]);
            if new != old {
                let left = self.write_count.get();
                let left = left.checked_sub(1).ok_or_else(|| io::Error::other("no power"))?;
                self.write_count.set(left);
                sectors.insert(lba, new);
                self.log.borrow_mut().push(Logged::Write(lba, Box::new(new)));
            }
            bytes = &bytes[count..];
            place += count as u64;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.log.borrow_mut().push(Logged::Sync);
        Ok(())
    }
}

impl<T: Block> Block for std::rc::Rc<T> {
    fn read_at(&self, bytes: &mut [u8], place: u64) -> io::Result<()> {
        T::read_at(self, bytes, place)
    }

    fn write_at(&self, bytes: &[u8], place: u64) -> io::Result<()> {
        T::write_at(self, bytes, place)
    }

    fn sync(&self) -> io::Result<()> {
        T::sync(self)
    }
}

/// `/sys`, `/proc` and `/dev` of a machine that is none.
pub(super) struct Tree(tempfile::TempDir);

impl Tree {
    pub(super) fn new() -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        for folder in ["sys/block", "sys/class/block", "proc/self", "dev"] {
            fs::create_dir_all(tree.0.path().join(folder)).unwrap();
        }
        tree.mounts(&[]);
        tree
    }

    pub(super) fn roots(&self) -> Roots {
        let at = |name: &str| self.0.path().join(name);
        Roots { sys: at("sys"), proc: at("proc"), dev: at("dev") }
    }

    pub(super) fn disk(&self, name: &str, bus: &str, size: u64) {
        let folder = self.0.path().join("sys/devices").join(bus).join("block").join(name);
        // What the kernel makes itself is not behind a bus.
        let folder = match bus {
            "virtual/block" => self.0.path().join("sys/devices/virtual/block").join(name),
            _ => folder,
        };
        fs::create_dir_all(folder.join("holders")).unwrap();
        for link in ["sys/block", "sys/class/block"] {
            std::os::unix::fs::symlink(&folder, self.0.path().join(link).join(name)).unwrap();
        }
        for (file, text) in [("size", &*(size / 512).to_string()), ("removable", "0"), ("ro", "0")]
        {
            self.set(name, file, text);
        }
        self.set(name, "queue/rotational", "1");
        self.set(name, "queue/logical_block_size", "512");
        self.set(name, "dev", "9:9");
        fs::write(self.0.path().join("dev").join(name), "").unwrap();
    }

    pub(super) fn partition(&self, disk: &str, number: usize, start: u64, size: u64) {
        let name = format!("{disk}{number}");
        let folder = fs::canonicalize(self.0.path().join("sys/block").join(disk)).unwrap();
        let folder = folder.join(&name);
        fs::create_dir_all(folder.join("holders")).unwrap();
        let link = self.0.path().join("sys/class/block").join(&name);
        std::os::unix::fs::symlink(&folder, link).unwrap();
        for (file, value) in
            [("partition", number as u64), ("start", start / 512), ("size", size / 512)]
        {
            fs::write(folder.join(file), value.to_string()).unwrap();
        }
        fs::write(folder.join("dev"), "9:10").unwrap();
    }

    pub(super) fn set(&self, disk: &str, file: &str, text: &str) {
        self.set_bytes(disk, file, text.as_bytes());
    }

    pub(super) fn set_bytes(&self, disk: &str, file: &str, bytes: &[u8]) {
        let path: PathBuf = self.0.path().join("sys/block").join(disk).join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    pub(super) fn set_number(&self, name: &str, number: &str) {
        let path = self.0.path().join("sys/class/block").join(name).join("dev");
        fs::write(path, number).unwrap();
    }

    /// Shows a disk or partition under its number, as the kernel does.
    pub(super) fn number(&self, name: &str, number: &str) {
        self.set_number(name, number);
        let folder = fs::canonicalize(self.0.path().join("sys/class/block").join(name)).unwrap();
        let numbers = self.0.path().join("sys/dev/block");
        fs::create_dir_all(&numbers).unwrap();
        std::os::unix::fs::symlink(folder, numbers.join(number)).unwrap();
    }

    pub(super) fn mounts(&self, lines: &[&str]) {
        let text = lines.join("\n") + "\n";
        fs::write(self.0.path().join("proc/self/mountinfo"), text).unwrap();
    }

    pub(super) fn swaps(&self, text: &str) {
        fs::write(self.0.path().join("proc/swaps"), text).unwrap();
    }
}
