//! The block devices of the host that a VM's files are on, as a cgroup's `io.max` names them.
//!
//! A disk may be a device itself or a file on one; a shared directory is on one. A file system without
//! a device (tmpfs) or with several (btrfs) has none that `io.max` could name. Partitions count as the
//! whole device, which is all that the kernel limits (Linux `Documentation/admin-guide/cgroup-v2.rst`).

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{FileType, Stat, fstat, major, minor, stat};

/// A whole block device, by its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockDevice {
    major: u32,
    minor: u32,
}

impl BlockDevice {
    /// The one that an open file is, or is on.
    ///
    /// # Errors
    /// When the host does not tell.
    pub fn under(file: impl AsFd) -> io::Result<Option<Self>> {
        Self::of(&fstat(file)?)
    }

    /// The one that the file or directory at `path` is, or is on.
    ///
    /// # Errors
    /// When the host does not tell.
    pub fn at(path: &Path) -> io::Result<Option<Self>> {
        Self::of(&stat(path)?)
    }

    fn of(found: &Stat) -> io::Result<Option<Self>> {
        let is_device = FileType::from_raw_mode(found.st_mode) == FileType::BlockDevice;
        let number = if is_device { found.st_rdev } else { found.st_dev };
        let device = Self { major: major(number), minor: minor(number) };
        // Numbers of file systems that have no device of their own.
        if device.major == 0 {
            Ok(None)
        } else {
            device.whole(Path::new("/sys/dev/block")).map(Some)
        }
    }

    /// The device that this is a partition of, or itself. `devices` has a link for each number.
    fn whole(self, devices: &Path) -> io::Result<Self> {
        let own = devices.join(self.to_string());
        if !own.join("partition").exists() {
            return Ok(self);
        }
        let number = fs::read_to_string(own.join("../dev"))?;
        Self::parse(&number).ok_or_else(|| {
            let text = format!("the device of partition {self} is called {:?}", number.trim());
            io::Error::new(io::ErrorKind::InvalidData, text)
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.trim().split_once(':')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

impl fmt::Display for BlockDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_partition_is_its_whole_device() {
        let folder = tempfile::tempdir().unwrap();
        let (sys, links) = (folder.path().join("sys/vda/vda1"), folder.path().join("block"));
        fs::create_dir_all(&sys).unwrap();
        fs::create_dir(&links).unwrap();
        fs::write(sys.join("partition"), "1\n").unwrap();
        fs::write(sys.join("../dev"), "254:16\n").unwrap();
        symlink(&sys, links.join("254:17")).unwrap();
        symlink(sys.join(".."), links.join("254:16")).unwrap();
        let device = |minor| BlockDevice { major: 254, minor };
        assert_eq!(device(17).whole(&links).unwrap(), device(16));
        assert_eq!(device(16).whole(&links).unwrap(), device(16));
        // What the host knows nothing of is what it is.
        assert_eq!(device(99).whole(&links).unwrap(), device(99));
        fs::write(sys.join("../dev"), "nonsense").unwrap();
        let error = device(17).whole(&links).unwrap_err().to_string();
        assert!(error.contains("254:17") && error.contains("nonsense"), "{error}");
    }

    #[test]
    fn file_systems_without_a_device_have_none() {
        assert_eq!(BlockDevice::at(Path::new("/proc")).unwrap(), None);
        let file = tempfile::tempfile().unwrap();
        let on = |device: Option<BlockDevice>| device.is_none_or(|device| device.major != 0);
        assert!(on(BlockDevice::under(&file).unwrap()));
        assert!(BlockDevice::at(Path::new("/none")).is_err());
    }
}
