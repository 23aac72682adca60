//! What is kept of a machine: a folder with its id as its name.
//!
//! | file | what |
//! |---|---|
//! | `machine.json` | what was decided when it was made: its image, its result, whether its owner stopped it |
//! | `vm.json` | the description that its VMM reads |
//! | `cidata.img` | what the guest is told; secret |
//! | `log/console.log`, `log/console.log.1` | what it says |
//! | `guestio.log` | what the process of its console says |
//!
//! The folder is made before anything else of the machine and goes after everything else, so whoever
//! finds none has nothing to clean up. It and its files are the node's alone.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use hostd_grid::derived::WorkloadId;
use serde::{Deserialize, Serialize};

use crate::kept::{read_json, write_whole};
use crate::storage::parse;

/// Bytes of a record's file.
const RECORD_SIZE_MAX: u64 = 256 << 10;

/// What was decided when a machine was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The hash of its image, which stays what it is when the address leads to another one by now.
    pub image: String,
    /// Which image the owner named.
    pub url: String,
    /// The result's data, as JSON.
    pub result: String,
    /// Its owner has stopped it.
    #[serde(default)]
    pub is_stopped: bool,
    /// It stands still until it is paid for.
    #[serde(default)]
    pub is_paused: bool,
}

/// The folders of all machines.
#[derive(Debug, Clone)]
pub struct Records {
    folder: PathBuf,
}

impl Records {
    /// Opens the folder, or makes it.
    ///
    /// # Errors
    /// The system says no.
    pub fn open(folder: PathBuf) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        Ok(Self { folder })
    }

    /// The folder of a machine.
    pub fn folder(&self, id: &WorkloadId) -> PathBuf {
        self.folder.join(id.to_string())
    }

    /// What is known of a machine; none if there is none.
    ///
    /// # Errors
    /// The file is there and can't be read.
    pub fn read(&self, id: &WorkloadId) -> io::Result<Option<Record>> {
        read_json(&self.folder(id).join("machine.json"), RECORD_SIZE_MAX)
    }

    /// Whether there is anything of a machine, known or not.
    pub fn exists(&self, id: &WorkloadId) -> bool {
        self.folder(id).symlink_metadata().is_ok()
    }

    /// Keeps what is known of a machine, and makes its folder if there is none.
    ///
    /// # Errors
    /// The system says no.
    pub fn write(&self, id: &WorkloadId, record: &Record) -> io::Result<()> {
        let folder = self.folder(id);
        if !folder.exists() {
            DirBuilder::new().mode(0o700).create(&folder)?;
            File::open(&self.folder)?.sync_all()?;
        }
        write_whole(&folder.join("machine.json"), &serde_json::to_vec(record)?)
    }

    /// Forgets a machine.
    ///
    /// # Errors
    /// The system says no.
    pub fn remove(&self, id: &WorkloadId) -> io::Result<()> {
        match fs::remove_dir_all(self.folder(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => File::open(&self.folder)?.sync_all(),
        }
    }

    /// All machines that something is kept of.
    ///
    /// # Errors
    /// The folder can't be read.
    pub fn ids(&self) -> io::Result<Vec<WorkloadId>> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            ids.extend(entry?.file_name().to_str().and_then(parse));
        }
        ids.sort();
        Ok(ids)
    }
}

/// The last `size_max` bytes of a log as text that nothing in a terminal or a message obeys; empty if
/// there is none.
pub fn tail(path: &Path, size_max: u64) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(size.saturating_sub(size_max)))?;
        let mut bytes = Vec::new();
        file.take(size_max).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    text.chars().filter(|letter| *letter == '\n' || !letter.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn record() -> Record {
        Record {
            image: "ab".repeat(32),
            url: "https://hub/x.flist".into(),
            result: "{}".into(),
            is_stopped: false,
            is_paused: false,
        }
    }

    #[test]
    fn machines_are_found_again_and_leave_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::open(folder.path().join("vms")).unwrap();
        let id = parse("1-2-vm").unwrap();
        assert_eq!(records.read(&id).unwrap(), None);
        assert!(!records.exists(&id));
        records.write(&id, &record()).unwrap();
        assert!(records.exists(&id));
        let stopped = Record { is_stopped: true, ..record() };
        records.write(&id, &stopped).unwrap();
        assert_eq!(records.read(&id).unwrap(), Some(stopped));
        assert_eq!(records.ids().unwrap(), std::slice::from_ref(&id));
        let file = records.folder(&id).join("machine.json");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        fs::write(&file, "{").unwrap();
        assert!(records.read(&id).is_err());
        records.remove(&id).unwrap();
        records.remove(&id).unwrap();
        assert_eq!(fs::read_dir(folder.path().join("vms")).unwrap().count(), 0);
    }

    #[test]
    fn the_end_of_a_log_holds_nothing_that_a_terminal_obeys() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        fs::write(&path, b"long ago\nno \x1b[31mKVM\xff\n").unwrap();
        assert_eq!(tail(&path, 13), "no [31mKVM\u{fffd}\n");
        assert_eq!(tail(&folder.path().join("none"), 10), "");
    }
}
