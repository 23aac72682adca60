//! Disks that machines' roots are written to: raw files, all of their blocks taken at once.
//!
//! A guest that finds its disk full has used what it was promised; one that found the node's disk full
//! would lose data that it believes written. So a file appears under its machine's id when all of its
//! blocks are its own, or not at all.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use hostd_grid::derived::WorkloadId;
use rustix::fs::{FallocateFlags, fallocate};

/// The folder of roots.
#[derive(Debug)]
pub(super) struct Roots {
    folder: PathBuf,
}

impl Roots {
    /// Opens the folder, or makes it, and removes what is half made.
    pub(super) fn open(folder: PathBuf) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "new") {
                fs::remove_file(path)?;
            }
        }
        Ok(Self { folder })
    }

    /// The disk of a machine, with so many bytes; one that is there stays as it is.
    pub(super) fn make(&self, id: &WorkloadId, size: u64) -> io::Result<PathBuf> {
        let path = self.path(id);
        if path.is_file() {
            return Ok(path);
        }
        let new = self.folder.join(format!("{id}.new"));
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        let made = fallocate(&file, FallocateFlags::empty(), 0, size)
            .map_err(io::Error::from)
            .and_then(|()| file.sync_all())
            .and_then(|()| fs::rename(&new, &path))
            .and_then(|()| File::open(&self.folder)?.sync_all());
        if let Err(error) = made {
            fs::remove_file(&new)?;
            return Err(match error.kind() {
                io::ErrorKind::StorageFull => {
                    io::Error::other("not enough space left in pools of this type ssd")
                }
                _ => error,
            });
        }
        Ok(path)
    }

    /// Removes the disk of a machine, if there is one.
    pub(super) fn remove(&self, id: &WorkloadId) -> io::Result<()> {
        match fs::remove_file(self.path(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => File::open(&self.folder)?.sync_all(),
        }
    }

    /// Bytes that are promised, if the folder is in that pool.
    pub(super) fn used_in(&self, pool: &Path) -> u64 {
        if !self.folder.starts_with(pool) {
            return 0;
        }
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.metadata().ok()).map(|found| found.size()).sum()
    }

    fn path(&self, id: &WorkloadId) -> PathBuf {
        self.folder.join(id.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::record::parse_id;

    #[test]
    fn disks_have_all_their_blocks_or_are_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let roots = Roots::open(folder.path().join("roots")).unwrap();
        let id = parse_id("1-2-vm").unwrap();
        let path = roots.make(&id, 4 << 20).unwrap();
        let found = fs::metadata(&path).unwrap();
        assert!(found.blocks() * 512 >= 4 << 20, "{} blocks", found.blocks());
        fs::write(&path, "data").unwrap();
        assert_eq!(roots.make(&id, 4 << 20).unwrap(), path);
        assert_eq!(fs::read(&path).unwrap(), b"data");
        assert_eq!((roots.used_in(folder.path()), roots.used_in(Path::new("/none"))), (4, 0));
        roots.remove(&id).unwrap();
        roots.remove(&id).unwrap();
        roots.make(&id, 1 << 60).unwrap_err();
        fs::write(folder.path().join("roots/1-2-vm.new"), "half").unwrap();
        Roots::open(folder.path().join("roots")).unwrap();
        assert_eq!(fs::read_dir(folder.path().join("roots")).unwrap().count(), 0);
    }
}
