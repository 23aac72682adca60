//! What is written down of a network: whose it is, its subnet, its mycelium address and its key.
//!
//! One file of JSON a network, and one with the key, both for root alone, both written beside and
//! renamed. The record is the first thing that is made of a network and the last that is removed: what has
//! none has left nothing behind. All else is found on the machine itself.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::Ipv6Addr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hostd_grid::address::Cidr;
use hostd_grid::derived::{NetworkId, WorkloadId};
use hostd_grid::{ContractId, Name, TwinId};
use serde::{Deserialize, Serialize};

use super::NetworkError;
use super::address::Subnet;

/// Largest record, in bytes.
const RECORD_SIZE_MAX: u64 = 4096;
/// The version of records.
const VERSION: u32 = 1;

/// What a network is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) workload: WorkloadId,
    pub(super) subnet: Subnet,
    /// The address of its mycelium node.
    pub(super) mycelium: Ipv6Addr,
}

impl Record {
    /// The network's id.
    pub(super) fn network(&self) -> NetworkId {
        NetworkId::of(self.workload.twin_id, &self.workload.name)
    }
}

/// A record as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    version: u32,
    twin: u32,
    contract: u64,
    name: String,
    subnet: String,
    mycelium: Ipv6Addr,
}

/// The folder that records are in.
#[derive(Debug)]
pub(super) struct Records {
    folder: PathBuf,
}

impl Records {
    /// Opens the folder, makes it if it is missing, and clears what a crash left half written.
    pub(super) fn open(folder: &Path) -> Result<Self, NetworkError> {
        let failed = |source| NetworkError::File { path: folder.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        let records = Self { folder: folder.to_owned() };
        for name in records.names().map_err(failed)? {
            let is_half = name.ends_with(HALF);
            let is_key = name.strip_suffix(KEY).is_some_and(|id| {
                // Keys come after records, and go before them.
                !folder.join(format!("{id}{RECORD}")).exists()
            });
            if is_half || is_key {
                fs::remove_file(folder.join(name)).map_err(failed)?;
            }
        }
        Ok(records)
    }

    /// The record of a network, if there is one.
    pub(super) fn read(&self, id: &NetworkId) -> Result<Option<Record>, NetworkError> {
        self.read_file(&self.record_path(id))
    }

    fn read_file(&self, path: &Path) -> Result<Option<Record>, NetworkError> {
        let failed = |source| NetworkError::File { path: path.to_owned(), source };
        let wrong = |reason: String| NetworkError::Record { path: path.to_owned(), reason };
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let mut text = String::new();
        file.take(RECORD_SIZE_MAX).read_to_string(&mut text).map_err(failed)?;
        let written: Written =
            serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        if written.version != VERSION {
            return Err(wrong(format!("version {}, and {VERSION} is known", written.version)));
        }
        let name = Name::new(written.name);
        name.check().map_err(|error| wrong(error.to_string()))?;
        let cidr = Cidr::parse(&written.subnet).map_err(|error| wrong(error.to_string()))?;
        let subnet = Subnet::check(Some(cidr)).map_err(|error| wrong(error.to_string()))?;
        let workload = WorkloadId {
            twin_id: TwinId(written.twin),
            contract_id: ContractId(written.contract),
            name,
        };
        let record = Record { workload, subnet, mycelium: written.mycelium };
        if self.record_path(&record.network()) != path {
            return Err(wrong("it is another network's".to_owned()));
        }
        Ok(Some(record))
    }

    /// All records. One that is damaged is named in the log, and does not hide the others.
    pub(super) fn list(&self) -> Result<Vec<Record>, NetworkError> {
        let failed = |source| NetworkError::File { path: self.folder.clone(), source };
        let mut records = Vec::new();
        for name in self.names().map_err(failed)? {
            if !name.ends_with(RECORD) {
                continue;
            }
            match self.read_file(&self.folder.join(&name)) {
                Ok(record) => records.extend(record),
                Err(error) => tracing::error!(%error, "a network's record is of no use"),
            }
        }
        records.sort_by(|a, b| a.workload.cmp(&b.workload));
        Ok(records)
    }

    /// Number of networks.
    pub(super) fn count(&self) -> Result<usize, NetworkError> {
        let failed = |source| NetworkError::File { path: self.folder.clone(), source };
        Ok(self.names().map_err(failed)?.iter().filter(|name| name.ends_with(RECORD)).count())
    }

    /// Writes a record, unless it is there.
    pub(super) fn write(&self, record: &Record) -> Result<(), NetworkError> {
        let written = Written {
            version: VERSION,
            twin: record.workload.twin_id.0,
            contract: record.workload.contract_id.0,
            name: record.workload.name.to_string(),
            subnet: record.subnet.to_string(),
            mycelium: record.mycelium,
        };
        let path = self.record_path(&record.network());
        let text = serde_json::to_vec(&written).map_err(|error| NetworkError::Record {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        self.replace(&path, &text)
    }

    /// Whether a network has this key.
    pub(super) fn has_key(&self, id: &NetworkId, key: &[u8]) -> bool {
        fs::read(self.key_path(id)).is_ok_and(|old| old == key)
    }

    /// Writes a network's key.
    pub(super) fn write_key(&self, id: &NetworkId, key: &[u8]) -> Result<(), NetworkError> {
        self.replace(&self.key_path(id), key)
    }

    /// Shows a key to somebody in a file that is gone afterwards.
    pub(super) fn with_key<T>(
        &self,
        id: &NetworkId,
        key: &[u8],
        show: impl FnOnce(&Path) -> Result<T, NetworkError>,
    ) -> Result<T, NetworkError> {
        let path = self.folder.join(format!("{id}.shown{HALF}"));
        self.write_file(&path, key)
            .map_err(|source| NetworkError::File { path: path.clone(), source })?;
        let result = show(&path);
        fs::remove_file(&path).map_err(|source| NetworkError::File { path, source })?;
        result
    }

    /// Forgets a network: its key first.
    pub(super) fn remove(&self, id: &NetworkId) -> Result<(), NetworkError> {
        for path in [self.key_path(id), self.record_path(id)] {
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(NetworkError::File { path, source });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Where a network's key is.
    pub(super) fn key_path(&self, id: &NetworkId) -> PathBuf {
        self.folder.join(format!("{id}{KEY}"))
    }

    fn record_path(&self, id: &NetworkId) -> PathBuf {
        self.folder.join(format!("{id}{RECORD}"))
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(&self.folder)?.collect::<io::Result<Vec<_>>>()?;
        Ok(entries.into_iter().filter_map(|entry| entry.file_name().into_string().ok()).collect())
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> Result<(), NetworkError> {
        let mut half = path.as_os_str().to_owned();
        half.push(HALF);
        let half = PathBuf::from(half);
        let write = || {
            self.write_file(&half, bytes)?.sync_all()?;
            fs::rename(&half, path)?;
            File::open(&self.folder)?.sync_all()
        };
        write().map_err(|source| NetworkError::File { path: path.to_owned(), source })
    }

    fn write_file(&self, path: &Path, bytes: &[u8]) -> io::Result<File> {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.write_all(bytes)?;
        Ok(file)
    }
}

const RECORD: &str = ".json";
const KEY: &str = ".key";
const HALF: &str = ".half";

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn record() -> Record {
        let workload = WorkloadId {
            twin_id: TwinId(11),
            contract_id: ContractId(4242),
            name: Name::new("net1"),
        };
        let subnet = Subnet::check(Some(Cidr::parse("10.20.2.0/24").unwrap())).unwrap();
        Record { workload, subnet, mycelium: "4a5::7".parse().unwrap() }
    }

    #[test]
    fn what_is_written_is_read_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::open(&folder.path().join("deep")).unwrap();
        let id = record().network();
        assert_eq!(records.read(&id).unwrap(), None);
        records.write(&record()).unwrap();
        records.write_key(&id, &[7; 32]).unwrap();
        assert!(records.has_key(&id, &[7; 32]) && !records.has_key(&id, &[8; 32]));
        let shown = |path: &Path| Ok(fs::read(path).unwrap());
        assert_eq!(records.with_key(&id, &[8; 32], shown).unwrap(), [8; 32]);
        let mode = fs::metadata(records.key_path(&id)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(records.read(&id).unwrap(), Some(record()));
        assert_eq!((records.list().unwrap(), records.count().unwrap()), (vec![record()], 1));
        records.remove(&id).unwrap();
        records.remove(&id).unwrap();
        assert_eq!(fs::read_dir(folder.path().join("deep")).unwrap().count(), 0);
    }

    #[test]
    fn what_a_crash_left_is_cleared() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("x.json.half"), "{").unwrap();
        fs::write(folder.path().join("x.key"), "secret").unwrap();
        Records::open(folder.path()).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_record_is_an_error_and_hides_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::open(folder.path()).unwrap();
        records.write(&record()).unwrap();
        let id = record().network();
        let good = fs::read_to_string(records.record_path(&id)).unwrap();
        for bad in [
            String::new(),
            good.replace("10.20.2.0", "127.0.0.0"),
            good.replace("net1", "../x"),
            good.replace("net1", "net2"),
            good.replace("\"version\":1", "\"version\":2"),
            " ".repeat(5000),
        ] {
            let other = folder.path().join("other.json");
            fs::write(&other, &bad).unwrap();
            assert!(records.read_file(&other).is_err(), "{bad}");
            assert_eq!(records.list().unwrap(), [record()]);
        }
    }
}
