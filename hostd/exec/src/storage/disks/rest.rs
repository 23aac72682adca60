//! Hard disks that nobody uses rest: they stand still, and take a tenth of the power.
//!
//! ```text
//!   looked at: nothing on it is anybody's,
//!   and nothing was read or written since the last look ──► "stand by" ──► rests
//!                                                                            │ read or written
//!   looked at again, from the begin <────────────────────────────────────────┘
//! ```
//!
//! A pool stays mounted meanwhile: a disk that is read or written turns by itself, and whoever does that
//! waits some seconds for the first byte. So nothing is ever lost by a disk that rests, and one on which
//! somebody has anything does not (`reference: zero-os 4.4`). Whether a disk is used the kernel counts, for
//! whomever it may be: a partition of others on it keeps it awake.
//!
//! A disk that refuses goes on turning, and is asked again when it was used since.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::found::Roots;
use crate::storage::sys;

/// How long a disk may take to stand still.
const STAND_TIME_MAX: Duration = Duration::from_secs(60);
/// What the kernel calls the maker of disks that speak ATA, whoever made them.
const ATA: &str = "ATA";
/// "Stand by immediately" of ATA (ACS-3 §7.53), in a SCSI command that takes it there: ATA PASS-THROUGH
/// (16), of a kind that moves no data (SAT-4 §12.2.2).
const STAND_BY_ATA: [u8; 16] = [0x85, 3 << 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xe0, 0];
/// START STOP UNIT with the power condition "stand by" (SBC-4 §5.31). A disk that is stopped instead would
/// have to be started before it is read.
const STAND_BY_SCSI: [u8; 6] = [0x1b, 0, 0, 0, 3 << 4, 0];
/// Of the figures that the kernel has of a disk, those that count reads and writes
/// (`Documentation/admin-guide/iostats.rst`).
const READS_AND_WRITES: [usize; 2] = [0, 4];

/// Hard disks, and which of them rest.
#[derive(Debug, Default)]
pub struct Rest<D = Drives> {
    drives: D,
    /// Disks of pools that nobody has anything on, by the kernel's names.
    seen: BTreeMap<String, Seen>,
}

/// A disk when it was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    /// Reads and writes that it had done.
    transfers: u64,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Turns,
    Rests,
    Refuses,
}

/// What can be asked of disks.
pub trait Asked {
    /// The disk that a folder's file system is on, by the kernel's name.
    ///
    /// # Errors
    /// It is on none, or on more than a disk.
    fn disk_of(&self, folder: &Path) -> io::Result<String>;
    /// Reads and writes that a disk has done.
    ///
    /// # Errors
    /// It is gone.
    fn transfers(&self, disk: &str) -> io::Result<u64>;
    /// Has it stand still until it is read or written.
    ///
    /// # Errors
    /// It refuses.
    fn stand_by(&self, disk: &str) -> io::Result<()>;
}

/// Disks of this machine.
#[derive(Debug, Default)]
pub struct Drives {
    roots: Roots,
}

impl<D: Asked> Rest<D> {
    /// Looks after the disks of pools that nobody has anything on, which are all that may rest: those that
    /// were not used since the last look stand still from now on.
    pub fn look(&mut self, empty: &[PathBuf]) {
        let before = std::mem::take(&mut self.seen);
        for pool in empty {
            // What is on several disks, or on none, is nobody's to stop.
            let Ok(disk) = self.drives.disk_of(pool) else { continue };
            if let Ok(seen) = self.look_at(&disk, before.get(&disk).copied()) {
                self.seen.insert(disk, seen);
            }
        }
    }

    /// Whether a disk rests.
    pub fn rests(&self, disk: &str) -> bool {
        let Some(Seen { transfers, state: State::Rests }) = self.seen.get(disk) else {
            return false;
        };
        self.drives.transfers(disk).is_ok_and(|now| now == *transfers)
    }

    fn look_at(&self, disk: &str, before: Option<Seen>) -> io::Result<Seen> {
        let transfers = self.drives.transfers(disk)?;
        let state = match before {
            Some(before) if before.transfers != transfers => State::Turns,
            None => State::Turns,
            Some(Seen { state: State::Turns, .. }) => self.stand(disk),
            Some(Seen { state, .. }) => state,
        };
        Ok(Seen { transfers, state })
    }

    fn stand(&self, disk: &str) -> State {
        match self.drives.stand_by(disk) {
            Ok(()) => {
                tracing::info!(disk, "a disk that nobody uses rests");
                State::Rests
            }
            Err(error) => {
                tracing::info!(disk, %error, "a disk that nobody uses goes on turning");
                State::Refuses
            }
        }
    }
}

impl Asked for Drives {
    fn disk_of(&self, folder: &Path) -> io::Result<String> {
        let device = fs::metadata(folder)?.dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        self.roots.disk_numbered(&format!("{major}:{minor}"))
    }

    fn transfers(&self, disk: &str) -> io::Result<u64> {
        let figures = fs::read_to_string(self.roots.sys.join("block").join(disk).join("stat"))?;
        let figures: Vec<&str> = figures.split_whitespace().collect();
        let figure = |index: &usize| figures.get(*index)?.parse::<u64>().ok();
        let sum = READS_AND_WRITES.iter().map(figure).sum::<Option<u64>>();
        sum.ok_or_else(|| io::Error::other("its figures are not known"))
    }

    fn stand_by(&self, disk: &str) -> io::Result<()> {
        let folder = self.roots.sys.join("block").join(disk);
        let maker = fs::read_to_string(folder.join("device/vendor")).unwrap_or_default();
        let command: &[u8] = if maker.trim() == ATA { &STAND_BY_ATA } else { &STAND_BY_SCSI };
        // Who may write may give commands; nothing is written.
        let file = File::options().read(true).write(true).open(self.roots.node(disk))?;
        let status = sys::command(&file, command, STAND_TIME_MAX)?;
        if (status.disk, status.host, status.driver) == (0, 0, 0) {
            return Ok(());
        }
        let sys::CommandStatus { disk, host, driver } = status;
        Err(io::Error::other(format!("it refuses: status {disk}, {host}, {driver}")))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::super::testing::Tree;
    use super::*;

    /// Disks of which each has one pool, `/mnt/NAME`.
    #[derive(Default)]
    struct Pretended {
        transfers: RefCell<BTreeMap<String, u64>>,
        refusing: Vec<&'static str>,
        told: RefCell<Vec<String>>,
    }

    impl Asked for Pretended {
        fn disk_of(&self, folder: &Path) -> io::Result<String> {
            let name = folder.file_name().unwrap().to_str().unwrap();
            self.transfers(name).map(|_| name.to_owned())
        }

        fn transfers(&self, disk: &str) -> io::Result<u64> {
            self.transfers.borrow().get(disk).copied().ok_or_else(|| io::Error::other("gone"))
        }

        fn stand_by(&self, disk: &str) -> io::Result<()> {
            self.told.borrow_mut().push(disk.to_owned());
            match self.refusing.contains(&disk) {
                true => Err(io::Error::other("it refuses")),
                false => Ok(()),
            }
        }
    }

    fn rest(disks: &[&str], refusing: Vec<&'static str>) -> Rest<Pretended> {
        let transfers = disks.iter().map(|disk| ((*disk).to_owned(), 100)).collect();
        let transfers = RefCell::new(transfers);
        let drives = Pretended { transfers, refusing, told: RefCell::default() };
        Rest { drives, seen: BTreeMap::new() }
    }

    fn used(rest: &Rest<Pretended>, disk: &str) {
        *rest.drives.transfers.borrow_mut().get_mut(disk).unwrap() += 1;
    }

    fn told(rest: &Rest<Pretended>) -> Vec<String> {
        std::mem::take(&mut rest.drives.told.borrow_mut())
    }

    fn pools(names: &[&str]) -> Vec<PathBuf> {
        names.iter().map(|name| Path::new("/mnt").join(name)).collect()
    }

    #[test]
    fn disks_rest_that_nobody_has_anything_on_and_nobody_uses() {
        let mut rest = rest(&["sda", "sdb", "sdc"], Vec::new());
        let empty = pools(&["sda", "sdb"]);
        // Nobody knows yet what was before.
        rest.look(&empty);
        assert!(told(&rest).is_empty() && !rest.rests("sda"));
        used(&rest, "sdb");
        rest.look(&empty);
        assert_eq!(told(&rest), ["sda"]);
        assert!(rest.rests("sda") && !rest.rests("sdb") && !rest.rests("sdc"));
        // One that rests is left in peace.
        rest.look(&empty);
        assert_eq!(told(&rest), ["sdb"]);
        rest.look(&empty);
        assert!(told(&rest).is_empty() && rest.rests("sda") && rest.rests("sdb"));
        // One that was used turns, and rests when it was not used any more.
        used(&rest, "sda");
        assert!(!rest.rests("sda") && rest.rests("sdb"));
        rest.look(&empty);
        assert!(told(&rest).is_empty());
        rest.look(&empty);
        assert_eq!(told(&rest), ["sda"]);
    }

    #[test]
    fn a_disk_that_somebody_has_something_on_is_not_stopped() {
        let mut rest = rest(&["sda"], Vec::new());
        rest.look(&pools(&["sda"]));
        for _ in 0..3 {
            rest.look(&[]);
        }
        assert!(told(&rest).is_empty());
        // When it is nobody's any more, it is looked at from the begin.
        rest.look(&pools(&["sda"]));
        assert!(told(&rest).is_empty());
        rest.look(&pools(&["sda"]));
        assert_eq!(told(&rest), ["sda"]);
        rest.look(&[]);
        assert!(!rest.rests("sda"));
    }

    #[test]
    fn a_disk_that_refuses_or_is_gone_is_no_error() {
        let mut rest = rest(&["sda", "sdb"], vec!["sda"]);
        let empty = pools(&["sda", "sdb", "absent"]);
        for _ in 0..4 {
            rest.look(&empty);
        }
        assert_eq!(told(&rest), ["sda", "sdb"], "it was asked more than once");
        assert!(!rest.rests("sda") && rest.rests("sdb"));
        rest.drives.transfers.borrow_mut().remove("sdb");
        assert!(!rest.rests("sdb"));
        rest.look(&empty);
        assert!(!rest.seen.contains_key("sdb"));
    }

    #[test]
    fn commands_are_those_of_the_standards() {
        let mut ata = [0; 16];
        // Its operation, "no data" as its protocol, and the command of ATA where SAT-4 has it.
        (ata[0], ata[1], ata[14]) = (0x85, 0x06, 0xe0);
        assert_eq!(STAND_BY_ATA, ata);
        assert_eq!(STAND_BY_SCSI, [0x1b, 0, 0, 0, 0x30, 0]);
    }

    #[test]
    fn the_kernel_knows_which_disk_a_pool_is_on_and_what_it_did() {
        let tree = Tree::new();
        tree.disk("sda", "pci0/ata1", 8 << 30);
        tree.partition("sda", 1, 1 << 20, 1 << 30);
        tree.number("sda", "8:0");
        tree.number("sda1", "8:1");
        let drives = Drives { roots: tree.roots() };
        for number in ["8:0", "8:1"] {
            assert_eq!(drives.roots.disk_numbered(number).unwrap(), "sda");
        }
        assert!(drives.roots.disk_numbered("0:40").is_err());
        // What the kernel makes of other things is no disk that could stand still.
        tree.disk("dm-0", "virtual/block", 8 << 30);
        tree.number("dm-0", "253:0");
        assert!(drives.roots.disk_numbered("253:0").is_err());

        let stat = "   12   0   34   5   6   0   78   9   0   1   2   0 0 0 0 3 1\n";
        tree.set("sda", "stat", stat);
        assert_eq!(drives.transfers("sda").unwrap(), 18);
        tree.set("sda", "stat", "12 x\n");
        assert!(drives.transfers("sda").is_err());
        assert!(drives.transfers("sdz").is_err());
        // A file is no disk.
        assert!(drives.stand_by("sda").is_err());
    }
}
