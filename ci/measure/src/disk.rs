//! A file system of the benchmark's own.
//!
//! ext4 avoids inodes that were deleted within the last minutes, and searches past each of them one by
//! one. On a file system where anybody just removed some ten thousand files, creating one costs a
//! hundred times more; so benchmarks that create many work on a fresh one in a sparse file.

use std::fs::File;
use std::path::PathBuf;

use rustix::mount::{UnmountFlags, unmount};

use crate::process;

/// Bytes of the sparse file; far more than most benchmarks write.
const SIZE: u64 = 8 << 30;

/// A fresh ext4 in a temporary file, mounted by a loop device; gone when dropped.
pub(crate) struct Disk {
    folder: tempfile::TempDir,
}

impl Disk {
    /// Makes and mounts it, which needs root.
    pub(crate) fn new() -> anyhow::Result<Self> {
        Self::of(SIZE)
    }

    /// The same, with so many bytes. What is allocated there and never written takes nothing of the host.
    pub(crate) fn of(size: u64) -> anyhow::Result<Self> {
        anyhow::ensure!(
            rustix::process::geteuid().is_root(),
            "mounting by loop devices needs root"
        );
        let folder = tempfile::Builder::new().prefix("bench-").tempdir()?;
        let image = folder.path().join("disk");
        File::create_new(&image)?.set_len(size)?;
        let disk = Self { folder };
        std::fs::create_dir(disk.path())?;
        // Everything initialised now rather than in the background, while something is measured.
        let options =
            ["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", "-N", "500000"];
        let make = ["mkfs.ext4".as_ref(), image.as_os_str()];
        process::run(&[make.as_slice(), &options.map(AsRef::as_ref)].concat())?;
        let mount = ["mount", "-o", "loop"].map(AsRef::as_ref);
        process::run(&[mount.as_slice(), &[image.as_os_str(), disk.path().as_os_str()]].concat())?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("mounted")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Whoever still holds a file keeps the loop device until then, and nothing else.
        let _ = unmount(self.path(), UnmountFlags::DETACH);
    }
}
