//! A machine's disks: files that outlive it.
//!
//! A power cut loses nothing that QEMU has handed to this host's page cache, so it proves
//! little about durability. [`Disk::logged`] adds QEMU's `blklogwrites`: each write and each
//! flush goes to a log as well, from which [`crate::WriteLog`] rebuilds the disk as it was at any
//! moment that a real power cut could have left behind.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use crate::error::LabError;
use crate::folder::Folder;

/// A disk: a raw image, and how a machine sees it.
///
/// A clone is the same disk. QEMU locks the image, so two machines can't have it at once,
/// unless both only read.
#[derive(Debug, Clone)]
pub struct Disk {
    name: String,
    path: PathBuf,
    log: Option<PathBuf>,
    is_read_only: bool,
    /// Keeps the folder until the last disk in it is dropped.
    _folder: Option<Arc<Folder>>,
}

impl Disk {
    pub(crate) fn create(folder: Arc<Folder>, name: &str, size_mib: u64) -> Result<Self, LabError> {
        let path = folder.work().join(format!("disk-{}.raw", folder.next_serial()));
        File::create_new(&path)
            .and_then(|file| file.set_len(size_mib << 20))
            .map_err(LabError::io("create", &path))?;
        Ok(Self { _folder: Some(folder), ..Self::file(name, &path) })
    }

    /// An image that exists already.
    #[must_use]
    pub fn file(name: &str, path: &Path) -> Self {
        let path = path.to_path_buf();
        Self { name: name.to_owned(), path, log: None, is_read_only: false, _folder: None }
    }

    /// The machine can't write to it.
    #[must_use]
    pub fn read_only(self) -> Self {
        Self { is_read_only: true, ..self }
    }

    /// Logs each write and flush to [`Self::log_path`], beginning anew at each boot. Read it by
    /// [`crate::WriteLog`].
    #[must_use]
    pub fn logged(self) -> Self {
        let log = self.path.with_extension("log");
        Self { log: Some(log), ..self }
    }

    /// Its name, which is the serial number that the machine sees (at most 20 characters).
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The image.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The write log, if it has one.
    #[must_use]
    pub fn log_path(&self) -> Option<&Path> {
        self.log.as_deref()
    }

    /// Makes an empty log, for QEMU to open.
    pub(crate) fn prepare(&self) -> Result<(), LabError> {
        let Some(log) = &self.log else { return Ok(()) };
        File::create(log).map(drop).map_err(LabError::io("create", log))
    }

    /// The block nodes to create, in order; the last one, called `node`, is the disk.
    pub(crate) fn block_nodes(&self, node: &str) -> Vec<Value> {
        let file = |name: String, path: &Path| {
            json!({
                "driver": "file", "node-name": name, "filename": path,
                "discard": "unmap", "read-only": self.is_read_only,
            })
        };
        let raw = |name: &str, below: String| {
            json!({
                "driver": "raw", "node-name": name, "file": below, "discard": "unmap",
                "read-only": self.is_read_only,
            })
        };
        let image = file(format!("{node}-file"), &self.path);
        let Some(log) = &self.log else { return vec![image, raw(node, format!("{node}-file"))] };
        vec![
            image,
            raw(&format!("{node}-raw"), format!("{node}-file")),
            file(format!("{node}-log"), log),
            json!({
                "driver": "blklogwrites", "node-name": node,
                "file": format!("{node}-raw"), "log": format!("{node}-log"),
                "log-sector-size": 512, "log-append": false,
            }),
        ]
    }

    /// The device on top of the block nodes.
    pub(crate) fn device(&self, node: &str, id: &str, bus: &str) -> Value {
        json!({
            "driver": "virtio-blk-pci", "id": id, "bus": bus, "drive": node, "serial": self.name,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logged_disk_is_a_filter_over_the_plain_one() {
        let disk = Disk::file("data", Path::new("/d/disk.raw"));
        let nodes = disk.block_nodes("b0");
        assert_eq!(nodes[0]["filename"], "/d/disk.raw");
        assert_eq!((&nodes[1]["node-name"], &nodes[1]["file"]), (&json!("b0"), &json!("b0-file")));
        let logged = disk.logged();
        assert_eq!(logged.log_path(), Some(Path::new("/d/disk.log")));
        let nodes = logged.block_nodes("b0");
        assert_eq!(nodes.len(), 4);
        assert_eq!(nodes[3]["driver"], "blklogwrites");
        assert_eq!(nodes[3]["file"], nodes[1]["node-name"]);
        assert_eq!(logged.device("b0", "disk0", "pcie.0")["serial"], "data");
    }
}
