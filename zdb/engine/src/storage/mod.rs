//! What the engine asks of a disk, and nothing more, so that a simulated one can stand in.
//!
//! The contract is that of Linux file systems, no stronger: what was written is durable after
//! [`File::sync`] of that file; what was created, renamed or removed is durable after
//! [`Storage::sync_folder`] of its folder. Until then any part of it may be lost, in any order.

use std::ffi::OsString;
use std::fmt::Debug;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

mod disk;
#[cfg(any(test, feature = "sim"))]
pub mod sim;

pub use disk::Disk;

/// A tree of folders and files.
pub trait Storage: Debug + Send + Sync {
    /// Opens a file for reading and writing.
    ///
    /// # Errors
    ///
    /// What the system says; `NotFound`, and `AlreadyExists` for [`Open::New`], are told apart.
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>>;

    /// Creates a folder, whose parent exists.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn create_folder(&self, path: &Path) -> io::Result<()>;

    /// Names in a folder, in any order.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn list(&self, folder: &Path) -> io::Result<Vec<OsString>>;

    /// Renames a file or folder; a file that stands there is replaced in one step.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Gives a file a second name.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Removes an empty folder.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn remove_folder(&self, path: &Path) -> io::Result<()>;

    /// Makes names in a folder durable.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;

    /// Takes the lock that a file stands for, until what is returned is dropped; `WouldBlock` if
    /// somebody has it.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Debug + Send + Sync>>;

    /// Size of the disk that holds this path, and bytes free for us.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn space(&self, path: &Path) -> io::Result<Space>;

    /// Fills a buffer with bytes that nobody can guess.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn random(&self, buffer: &mut [u8]) -> io::Result<()>;
}

/// An open file. All methods may be called from several threads at once.
pub trait File: Debug + Send + Sync {
    /// Reads at an offset: as many bytes as the system gives, 0 at the end.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Reads at an offset into two buffers, one after the other.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn read_two_at(&self, first: &mut [u8], second: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes at an offset: as many bytes as the system takes.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn write_at(&self, buffer: &[u8], offset: u64) -> io::Result<usize>;

    /// Makes what was written, and the size, durable.
    ///
    /// # Errors
    ///
    /// What the system says. After an error nothing is known about unsynced bytes.
    fn sync(&self) -> io::Result<()>;

    /// Bytes of the file.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn size(&self) -> io::Result<u64>;

    /// Cuts the file, or lengthens it with zeroes.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn set_size(&self, size: u64) -> io::Result<()>;

    /// Reserves space for the first `size` bytes, and makes the file that long.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn allocate(&self, size: u64) -> io::Result<()>;

    /// The descriptor, for those who send files without reading them; a simulated file has none.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;
}

/// How to open a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// It exists.
    Existing,
    /// It doesn't exist.
    New,
    /// It is made if it doesn't exist, and emptied if it does.
    Empty,
}

/// Room on a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// All of it, in bytes.
    pub total: u64,
    /// What is free for us, in bytes.
    pub free: u64,
}

/// Reads until the buffer is full or the file ends; gives the bytes read.
pub(crate) fn read_full(file: &dyn File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

/// Reads until both buffers are full or the file ends; gives the bytes read.
pub(crate) fn read_two_full(
    file: &dyn File,
    first: &mut [u8],
    second: &mut [u8],
    offset: u64,
) -> io::Result<usize> {
    let (first_size, size) = (first.len(), first.len() + second.len());
    let filled = file.read_two_at(first, second, offset)?;
    if filled == size || filled == 0 {
        return Ok(filled);
    }
    // The system gave less than asked for, which is rare: the rest piece by piece.
    let mut filled = filled;
    if filled < first_size {
        let read = read_full(file, &mut first[filled..], offset + filled as u64)?;
        filled += read;
        if filled < first_size {
            return Ok(filled);
        }
    }
    let read = read_full(file, &mut second[filled - first_size..], offset + filled as u64)?;
    Ok(filled + read)
}

/// Writes all of the buffer.
pub(crate) fn write_full(file: &dyn File, mut buffer: &[u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match file.write_at(buffer, offset)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            count => {
                buffer = buffer.get(count..).unwrap_or_default();
                offset += count as u64;
            }
        }
    }
    Ok(())
}

/// Whether an error says that there is no room.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
