//! The real disk: Linux's files through `rustix`, one call for one method.
//!
//! Interrupted calls are tried again; everything else, short reads and writes included, is the
//! caller's matter, so that a simulated disk exercises the same code.

use std::ffi::{OsStr, OsString};
use std::fmt::Debug;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{self, AtFlags, CWD, Dir, FallocateFlags, FlockOperation, Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};

use super::{File, Open, Space, Storage};

/// Owner only: what is stored is nobody else's business.
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
const FOLDER_MODE: Mode = Mode::RWXU;

/// Linux's files.
#[derive(Clone, Copy, Debug, Default)]
pub struct Disk;

impl Storage for Disk {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let flags = match how {
            Open::Existing => flags,
            Open::New => flags | OFlags::CREATE | OFlags::EXCL,
            Open::Empty => flags | OFlags::CREATE | OFlags::TRUNC,
        };
        let fd = retry_on_intr(|| fs::open(path, flags, FILE_MODE))?;
        Ok(Arc::new(DiskFile { fd }))
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        Ok(fs::mkdir(path, FOLDER_MODE)?)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(open_folder(folder)?)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsStr::from_bytes(name).to_owned());
            }
        }
        Ok(names)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Ok(fs::rename(from, to)?)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        Ok(fs::link(from, to)?)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        Ok(fs::unlink(path)?)
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        Ok(fs::unlinkat(CWD, path, AtFlags::REMOVEDIR)?)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        let folder = open_folder(path)?;
        Ok(retry_on_intr(|| fs::fsync(&folder))?)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Debug + Send + Sync>> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::CREATE;
        let fd = retry_on_intr(|| fs::open(path, flags, FILE_MODE))?;
        retry_on_intr(|| fs::flock(&fd, FlockOperation::NonBlockingLockExclusive))?;
        Ok(Box::new(fd))
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        let numbers = fs::statvfs(path)?;
        let bytes = |blocks: u64| blocks.saturating_mul(numbers.f_frsize);
        Ok(Space { total: bytes(numbers.f_blocks), free: bytes(numbers.f_bavail) })
    }

    fn random(&self, buffer: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            let rest = &mut buffer[filled..];
            filled += retry_on_intr(|| {
                rustix::rand::getrandom(&mut *rest, rustix::rand::GetRandomFlags::empty())
            })?;
        }
        Ok(())
    }
}

fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(retry_on_intr(|| fs::open(path, flags, Mode::empty()))?)
}

#[derive(Debug)]
struct DiskFile {
    fd: OwnedFd,
}

impl File for DiskFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        Ok(retry_on_intr(|| rustix::io::pread(&self.fd, &mut *buffer, offset))?)
    }

    fn read_two_at(&self, first: &mut [u8], second: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut buffers = [IoSliceMut::new(first), IoSliceMut::new(second)];
        Ok(retry_on_intr(|| rustix::io::preadv(&self.fd, &mut buffers, offset))?)
    }

    fn write_at(&self, buffer: &[u8], offset: u64) -> io::Result<usize> {
        Ok(retry_on_intr(|| rustix::io::pwrite(&self.fd, buffer, offset))?)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(retry_on_intr(|| fs::fdatasync(&self.fd))?)
    }

    fn size(&self) -> io::Result<u64> {
        let size = fs::fstat(&self.fd)?.st_size;
        u64::try_from(size).map_err(|_| Errno::OVERFLOW.into())
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        Ok(retry_on_intr(|| fs::ftruncate(&self.fd, size))?)
    }

    fn allocate(&self, size: u64) -> io::Result<()> {
        Ok(retry_on_intr(|| fs::fallocate(&self.fd, FallocateFlags::empty(), 0, size))?)
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_do_what_the_contract_says() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        assert_eq!(Disk.open(&path, Open::Existing).unwrap_err().kind(), io::ErrorKind::NotFound);
        let file = Disk.open(&path, Open::New).unwrap();
        assert_eq!(Disk.open(&path, Open::New).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(file.write_at(b"hello", 3).unwrap(), 5);
        assert_eq!(file.size().unwrap(), 8);
        let (mut first, mut second) = ([1; 4], [1; 9]);
        assert_eq!(file.read_two_at(&mut first, &mut second, 0).unwrap(), 8);
        assert_eq!((&first, &second[..4]), (b"\0\0\0h", &b"ello"[..]));
        file.set_size(4).unwrap();
        assert_eq!(file.read_at(&mut second, 3).unwrap(), 1);
        file.sync().unwrap();
        Disk.sync_folder(folder.path()).unwrap();
        let other = folder.path().join("b");
        Disk.link(&path, &other).unwrap();
        Disk.remove(&path).unwrap();
        Disk.rename(&other, &path).unwrap();
        assert_eq!(Disk.list(folder.path()).unwrap(), ["a"]);
        assert_eq!(Disk.open(&path, Open::Empty).unwrap().size().unwrap(), 0);
    }

    #[test]
    fn a_lock_is_taken_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".lockfile");
        let lock = Disk.lock(&path).unwrap();
        assert_eq!(Disk.lock(&path).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(lock);
        Disk.lock(&path).unwrap();
    }

    #[test]
    fn random_bytes_differ() {
        let (mut first, mut second) = ([0; 32], [0; 32]);
        Disk.random(&mut first).unwrap();
        Disk.random(&mut second).unwrap();
        assert_ne!(first, second);
    }
}
