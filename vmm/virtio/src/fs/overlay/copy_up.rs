//! Bringing an inode to the upper layer before its first change.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use flist_view::filesystem::{
    Attributes, Changes, Creation, Errno, FileSystem, Ino, NewTime, ReadSink, Rename, SetAttribute,
};

use super::find::{is_whiteout, link_name};
use super::tree::Place;
use super::{Overlay, host};
use crate::fs::host::is_directory;

/// How much is copied at once.
const COPY_SIZE: u32 = 1 << 20;
/// The same, where the kernel cannot copy by itself.
const BUFFER_SIZE: usize = 64 << 10;
/// Deepest directory that can be copied up.
const DEPTH_MAX: usize = 4096;

impl Overlay {
    /// Copies `ino` up, its directories first. Of a file's contents, the first `size_max` bytes.
    pub(super) fn copy_up(&self, ino: Ino, size_max: u64) -> Result<Ino, Errno> {
        let mut missing = Vec::new();
        let mut above = ino;
        let mut upper = loop {
            let node = self.tree().get(above)?.clone();
            if let Some(upper) = node.place.upper {
                break upper;
            }
            if missing.len() >= DEPTH_MAX {
                return Err(Errno::NAMETOOLONG);
            }
            missing.push((above, node.name));
            above = node.parent;
        };
        while let Some((ino, name)) = missing.pop() {
            upper = self.copy_up_one(ino, upper, &name, size_max)?;
        }
        Ok(upper)
    }

    /// Copies `ino` up to become `name` in the upper directory `parent`, or nothing if it has no name.
    fn copy_up_one(&self, ino: Ino, parent: Ino, name: &[u8], size_max: u64) -> Result<Ino, Errno> {
        let lower = self.place(ino)?.lower.ok_or(Errno::STALE)?;
        let below = self.lower.attributes(lower)?;
        if is_whiteout(&below) {
            return Err(Errno::PERM);
        }
        let (temporary, upper) = self.make_copy(lower, &below)?;
        let result = self.fill_copy(upper, lower, &below, size_max).and_then(|()| {
            let has_links = below.nlink > 1 && !is_directory(below.mode);
            if has_links && self.can_be_marked(&below) {
                let lost_links = self.lost_links(lower)?;
                let lower_links = below.nlink.saturating_sub(1).saturating_sub(lost_links);
                self.marker.set_lower_links(&self.upper, upper, lower_links)?;
                self.upper.link(upper, self.links, &link_name(lower))?;
                self.upper.forget(upper, 1);
            }
            if name.is_empty() {
                self.remove_temporary(&temporary, is_directory(below.mode))
            } else {
                self.put_in_place(&temporary, parent, name)
            }
        });
        if let Err(error) = result {
            self.discard(&temporary, is_directory(below.mode));
            self.upper.forget(upper, 1);
            return Err(error);
        }
        let lower = is_directory(below.mode).then_some(lower);
        if !self.tree().copied_up(ino, Place { upper: Some(upper), lower }) {
            // The guest has forgotten it meanwhile.
            self.upper.forget(upper, 1);
            return Err(Errno::STALE);
        }
        Ok(upper)
    }

    /// Makes an empty copy under a temporary name. Returns the name, and the number above.
    fn make_copy(&self, lower: Ino, below: &Attributes) -> Result<(Vec<u8>, Ino), Errno> {
        let name = self.temporary_name();
        let new = Creation { mode: below.mode, rdev: below.rdev, uid: below.uid, gid: below.gid };
        let made = if below.mode & host::TYPE_MASK == host::SYMLINK {
            let target = self.lower.read_link(lower)?;
            self.upper.create_symlink(self.temporary, &name, &target, &new)?
        } else {
            self.upper.create(self.temporary, &name, &new)?
        };
        Ok((name, made.ino))
    }

    /// Contents, attributes, marks and times, in an order in which none undoes another.
    fn fill_copy(
        &self,
        upper: Ino,
        lower: Ino,
        below: &Attributes,
        size_max: u64,
    ) -> Result<(), Errno> {
        let is_file = below.mode & host::TYPE_MASK == host::REGULAR;
        let size = below.size.min(size_max);
        if is_file && size > 0 {
            self.copy_contents(upper, lower, size)?;
        }
        if self.can_be_marked(below) {
            self.copy_extended_attributes(upper, lower)?;
        }
        if is_file {
            self.marker.set_origin(&self.upper, upper, lower)?;
        }
        let mut changes = Changes {
            atime: Some(NewTime::At(below.atime)),
            mtime: Some(NewTime::At(below.mtime)),
            ..Changes::default()
        };
        if is_file && below.mode & host::SET_ID != 0 {
            // Writing may have dropped them.
            changes.mode = Some(below.mode & host::PERMISSIONS);
        }
        self.upper.set_attributes(upper, &changes)?;
        if is_file && size > 0 {
            // The name must not be there before the contents are.
            self.upper.sync(upper, false)?;
        }
        Ok(())
    }

    fn copy_contents(&self, upper: Ino, lower: Ino, size: u64) -> Result<(), Errno> {
        let file = self.upper.file(upper)?;
        let mut copy = Copy { file: Arc::clone(&file), size: 0 };
        self.upper
            .charged_alone(file.as_fd(), size, size, || self.copy_into(&mut copy, lower, size))
    }

    fn copy_into(&self, copy: &mut Copy, lower: Ino, size: u64) -> Result<(), Errno> {
        while copy.size < size {
            let count = u32::try_from(size - copy.size).unwrap_or(COPY_SIZE).min(COPY_SIZE);
            let before = copy.size;
            self.lower.read(lower, before, count, copy)?;
            if copy.size == before {
                // Shorter than its own size: the image is damaged.
                return Err(Errno::IO);
            }
        }
        Ok(())
    }

    fn copy_extended_attributes(&self, upper: Ino, lower: Ino) -> Result<(), Errno> {
        let names = match self.lower.extended_attribute_names(lower) {
            Err(Errno::NOSYS) => return Ok(()),
            names => names?,
        };
        for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            if self.check_attribute(name).is_err() {
                continue;
            }
            let value = self.lower.extended_attribute(lower, name)?;
            self.upper.set_raw_attribute(upper, name, &value, SetAttribute::Any)?;
        }
        Ok(())
    }

    /// Moves a copy to its place. The directory's own times are not changed by what only the
    /// overlay does.
    fn put_in_place(&self, temporary: &[u8], parent: Ino, name: &[u8]) -> Result<(), Errno> {
        let before = self.upper.attributes(parent)?;
        let from = (self.temporary, temporary);
        self.upper.move_name(from, (parent, name), Rename::NoReplace, false)?;
        let times = Changes {
            atime: Some(NewTime::At(before.atime)),
            mtime: Some(NewTime::At(before.mtime)),
            ..Changes::default()
        };
        self.upper.set_attributes(parent, &times).map(drop)
    }

    /// A name that nothing in the temporary folder has.
    pub(super) fn temporary_name(&self) -> Vec<u8> {
        format!("#{}", self.next_temporary.fetch_add(1, Ordering::Relaxed)).into_bytes()
    }

    /// Removes something from the temporary folder; what stays is removed at the next start.
    pub(super) fn discard(&self, temporary: &[u8], is_dir: bool) {
        if let Err(error) = self.remove_temporary(temporary, is_dir)
            && error != Errno::NOENT
        {
            tracing::warn!(%error, "a temporary file of an overlay stays");
        }
    }

    fn remove_temporary(&self, name: &[u8], is_dir: bool) -> Result<(), Errno> {
        if is_dir {
            return self.upper.remove_directory(self.temporary, name);
        }
        self.upper.unlink(self.temporary, name)
    }

    const fn can_be_marked(&self, attributes: &Attributes) -> bool {
        matches!(attributes.mode & host::TYPE_MASK, host::REGULAR | host::DIRECTORY)
    }
}

/// What makes a directory look like this one.
pub(super) fn ownership(attributes: &Attributes) -> Changes {
    Changes {
        mode: Some(attributes.mode & host::PERMISSIONS),
        uid: Some(attributes.uid),
        gid: Some(attributes.gid),
        ..Changes::default()
    }
}

/// Takes contents into a file, one after the other.
struct Copy {
    file: Arc<OwnedFd>,
    size: u64,
}

impl Copy {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let count = rustix::io::pwrite(&*self.file, rest, self.size)?;
            self.size += count as u64;
            rest = rest.get(count..).unwrap_or_default();
        }
        Ok(())
    }

    /// Through memory, where the kernel will not do it alone.
    fn copy(&mut self, file: BorrowedFd<'_>, offset: u64, size: usize) -> io::Result<usize> {
        let mut buffer = vec![0; BUFFER_SIZE.min(size)];
        let mut done = 0;
        while done < size {
            let part = buffer.len().min(size - done);
            let count = rustix::io::pread(file, &mut buffer[..part], offset + done as u64)?;
            if count == 0 {
                break;
            }
            self.put(&buffer[..count])?;
            done += count;
        }
        Ok(done)
    }
}

impl ReadSink for Copy {
    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.put(bytes)
    }

    fn file(&mut self, file: BorrowedFd<'_>, offset: u64, size: usize) -> io::Result<()> {
        if self.file_up_to(file, offset, size)? < size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    fn file_up_to(&mut self, file: BorrowedFd<'_>, offset: u64, size: usize) -> io::Result<usize> {
        let (mut from, mut done) = (offset, 0);
        while done < size {
            let target = self.file.as_fd();
            let (from, to) = (Some(&mut from), Some(&mut self.size));
            match rustix::fs::copy_file_range(file, from, target, to, size - done) {
                Ok(0) => break,
                Ok(count) => done += count,
                // Other file systems or kinds of files, or an old kernel.
                Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) if done == 0 => {
                    return self.copy(file, offset, size);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(done)
    }
}
