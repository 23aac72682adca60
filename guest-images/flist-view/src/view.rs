//! An flist image as a file system: names and attributes from the index, contents from blocks.
//!
//! Metadata calls touch the mapped index and nothing else. `read` turns a range of a file into ranges
//! of blocks, asks the [`BlockSource`] for each, and hands the sink ranges of local files; that is
//! the only call that may wait. Nothing is cached here: the kernel caches pages and entries, the
//! source caches blocks.

use std::borrow::Cow;
use std::fmt;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use crate::block::{BLOCK_SIZE, BlockData, BlockSource};
use crate::filesystem::{
    Attributes, DirectoryEntry, Errno, FileSystem, Ino, Listing, ReadSink, Statistics,
};
use crate::index::{FileType, Index, IndexError, Inode};
use crate::log_limit::LogLimit;

/// Unit of `statfs`, in bytes.
const STATISTICS_BLOCK_SIZE: u32 = 4096;
/// [`crate::index::NAME_SIZE_MAX`] as `statfs` wants it.
const NAME_SIZE_MAX: u32 = 255;

/// A read-only file system made of an index and a source of blocks.
pub struct FlistView {
    index: Arc<Index>,
    source: Arc<dyn BlockSource>,
    log_limit: LogLimit,
}

impl FlistView {
    /// The image that `index` describes, with contents from `source`.
    #[must_use]
    pub fn new(index: Arc<Index>, source: Arc<dyn BlockSource>) -> Self {
        Self { index, source, log_limit: LogLimit::default() }
    }

    /// The image's index.
    #[must_use]
    pub const fn index(&self) -> &Arc<Index> {
        &self.index
    }

    fn inode(&self, ino: Ino) -> Result<Inode, Errno> {
        self.index.inode(ino).map_err(|error| self.errno(&error))
    }

    /// Attributes of an inode that an entry names: if there is none, the index is damaged.
    fn child(&self, ino: Ino) -> Result<Attributes, Errno> {
        self.attributes(ino).map_err(|error| if error == Errno::NOENT { Errno::IO } else { error })
    }

    /// The block at `position` of the index, the `number`-th of file `ino`, if it is as long as the
    /// file's size says.
    fn block(
        &self,
        ino: Ino,
        inode: &Inode,
        position: u32,
        number: u64,
    ) -> Result<BlockData, Errno> {
        let block = self.index.block(position).map_err(|error| self.errno(&error))?;
        let place = Some((ino, number));
        let data = self
            .source
            .block(position, &block)
            .map_err(|error| self.failed("read failed", place, &error))?;
        let expected = block_size_of(inode.size, number);
        if u64::from(data.size) != expected {
            let error = format!("block {}: {} bytes, not {expected}", block.id, data.size);
            return Err(self.failed(
                "a block of another size than the image promises",
                place,
                &error,
            ));
        }
        Ok(data)
    }

    /// What the guest sees of an index that can't answer; damage is logged.
    fn errno(&self, error: &IndexError) -> Errno {
        match error {
            IndexError::NoInode(_) => Errno::NOENT,
            IndexError::Type(FileType::Directory) => Errno::ISDIR,
            IndexError::Type(FileType::File | FileType::Symlink) => Errno::NOTDIR,
            IndexError::Type(FileType::Device | FileType::Other) => Errno::INVAL,
            error => self.failed("the index is damaged", None, error),
        }
    }

    /// Logs, within bounds, why contents or metadata can't be had. The guest learns only `EIO`.
    fn failed(&self, what: &str, place: Option<(Ino, u64)>, error: &dyn fmt::Display) -> Errno {
        if let Some(dropped) = self.log_limit.admit(Instant::now()) {
            let file = place.map(|(ino, _)| self.path(ino));
            let number = place.map(|(_, number)| number);
            tracing::error!(file, number, %error, dropped, "{what}");
        }
        Errno::IO
    }

    fn path(&self, ino: Ino) -> String {
        let path = self.index.path(ino).unwrap_or_else(|| format!("inode {ino}").into_bytes());
        String::from_utf8_lossy(&path).into_owned()
    }
}

impl FileSystem for FlistView {
    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attributes, Errno> {
        let directory = self.inode(parent)?;
        let entries = self.index.entries(&directory).map_err(|error| self.errno(&error))?;
        let found = match name {
            b"." => Some(parent),
            b".." => Some(self.index.parent(&directory).map_err(|error| self.errno(&error))?),
            _ => entries.find(name).map_err(|error| self.errno(&error))?,
        };
        self.child(found.ok_or(Errno::NOENT)?)
    }

    fn attributes(&self, ino: Ino) -> Result<Attributes, Errno> {
        Ok(Index::attributes(ino, &self.inode(ino)?))
    }

    fn read_directory(
        &self,
        ino: Ino,
        offset: u64,
        _listing: Listing,
        each: &mut dyn FnMut(DirectoryEntry<'_>) -> bool,
    ) -> Result<(), Errno> {
        let directory = self.inode(ino)?;
        let entries = self.index.entries(&directory).map_err(|error| self.errno(&error))?;
        // Offsets: 0 is ".", 1 is "..", 2 is the first entry.
        let end = u64::from(entries.count()) + 2;
        for position in offset..end {
            let (name, child): (&[u8], Ino) = match position {
                0 => (b".", ino),
                1 => (b"..", self.index.parent(&directory).map_err(|error| self.errno(&error))?),
                _ => {
                    // Below `count`, which fits.
                    let number = u32::try_from(position - 2).map_err(|_| Errno::INVAL)?;
                    let Some(entry) = entries.get(number).map_err(|error| self.errno(&error))?
                    else {
                        break;
                    };
                    entry
                }
            };
            let attributes = self.child(child)?;
            if !each(DirectoryEntry { next_offset: position + 1, name, attributes }) {
                break;
            }
        }
        Ok(())
    }

    fn read(&self, ino: Ino, offset: u64, size: u32, sink: &mut dyn ReadSink) -> Result<(), Errno> {
        let inode = self.inode(ino)?;
        let positions = self.index.blocks(&inode).map_err(|error| self.errno(&error))?;
        let end = offset.saturating_add(u64::from(size)).min(inode.size);
        let mut offset = offset;
        while offset < end {
            let number = offset / u64::from(BLOCK_SIZE);
            let within = offset % u64::from(BLOCK_SIZE);
            // `blocks` checked that the range has as many positions as the size needs.
            let position = u32::try_from(number).map_err(|_| Errno::IO)?;
            let position = positions.start.checked_add(position).ok_or(Errno::IO)?;
            let data = self.block(ino, &inode, position, number)?;
            let size = (end - offset).min(u64::from(data.size).saturating_sub(within));
            let start = data.offset.checked_add(within).ok_or(Errno::IO)?;
            let count = usize::try_from(size).map_err(|_| Errno::IO)?;
            let place = Some((ino, number));
            sink.file(data.file.as_fd(), start, count)
                .map_err(|error| self.failed("a cached block can't be read", place, &error))?;
            offset += size;
        }
        Ok(())
    }

    fn read_link(&self, ino: Ino) -> Result<Cow<'_, [u8]>, Errno> {
        let inode = self.inode(ino)?;
        self.index.target(&inode).map(Cow::Borrowed).map_err(|error| match error {
            IndexError::Type(_) => Errno::INVAL,
            error => self.errno(&error),
        })
    }

    /// `ENOSYS` if the whole image has no extended attributes: the kernel then stops asking, which
    /// spares a call for each program that is started.
    fn extended_attribute(&self, ino: Ino, name: &[u8]) -> Result<Cow<'_, [u8]>, Errno> {
        if self.index.xattr_count() == 0 {
            return Err(Errno::NOSYS);
        }
        let inode = self.inode(ino)?;
        let value = self.index.xattr(&inode, name).map_err(|error| self.errno(&error))?;
        value.map(Cow::Borrowed).ok_or(Errno::NODATA)
    }

    fn extended_attribute_names(&self, ino: Ino) -> Result<Vec<u8>, Errno> {
        if self.index.xattr_count() == 0 {
            return Err(Errno::NOSYS);
        }
        let inode = self.inode(ino)?;
        let mut names = Vec::new();
        for xattr in self.index.xattrs(&inode) {
            names.extend_from_slice(xattr.map_err(|error| self.errno(&error))?.name);
            names.push(0);
        }
        Ok(names)
    }

    fn statistics(&self) -> Result<Statistics, Errno> {
        Ok(Statistics {
            block_size: STATISTICS_BLOCK_SIZE,
            block_count: self.index.contents_size().div_ceil(u64::from(STATISTICS_BLOCK_SIZE)),
            block_count_free: 0,
            inode_count: u64::from(self.index.inode_count()),
            inode_count_free: 0,
            name_size_max: NAME_SIZE_MAX,
        })
    }
}

/// Bytes of plaintext in block `number` of a file of `size` bytes.
fn block_size_of(size: u64, number: u64) -> u64 {
    let start = number.saturating_mul(u64::from(BLOCK_SIZE));
    size.saturating_sub(start).min(u64::from(BLOCK_SIZE))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::filesystem::ROOT;
    use crate::fuse::BufferReply;
    use crate::fuse::{REPLY_HEADER_SIZE, Reply};
    use crate::testing::{
        DEVICE, DIRECTORY, DIRECTORY_COUNT, EMPTY, FILE, FILE_SIZE, LINK, contents, index, source,
        view,
    };

    fn read(view: &FlistView, ino: Ino, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
        let mut reply = BufferReply::new(1 << 20);
        view.read(ino, offset, size, &mut reply)?;
        reply.send([0; REPLY_HEADER_SIZE]).unwrap();
        Ok(reply.as_bytes().unwrap()[REPLY_HEADER_SIZE..].to_vec())
    }

    fn names(view: &FlistView, ino: Ino, offset: u64, count: usize) -> Vec<(Vec<u8>, u64)> {
        let mut names = Vec::new();
        view.read_directory(ino, offset, Listing::Names, &mut |entry| {
            names.push((entry.name.to_vec(), entry.next_offset));
            names.len() < count
        })
        .unwrap();
        names
    }

    #[test]
    fn every_range_of_a_file_reads_as_its_contents() {
        let (view, contents) = (view(), contents());
        let block = u64::from(BLOCK_SIZE);
        for offset in [0, 1, block - 1, block, block + 1, FILE_SIZE - 1, FILE_SIZE, u64::MAX] {
            for size in [0, 1, 2, 4096, BLOCK_SIZE, u32::MAX] {
                let start = offset.min(FILE_SIZE);
                let end = start.saturating_add(u64::from(size)).min(FILE_SIZE);
                let expected = &contents[start as usize..end as usize];
                assert!(read(&view, FILE, offset, size).unwrap() == expected, "{offset} {size}");
            }
        }
        assert_eq!(read(&view, EMPTY, 0, 10).unwrap(), b"");
    }

    #[test]
    fn a_read_that_failed_can_succeed_later() {
        let source = source();
        let view = FlistView::new(Arc::new(index(true)), Arc::clone(&source) as _);
        source.failures.store(1, Ordering::Relaxed);
        assert_eq!(read(&view, FILE, 0, 10).unwrap_err(), Errno::IO);
        assert_eq!(read(&view, FILE, 0, 10).unwrap(), [1; 10]);
    }

    #[test]
    fn a_block_of_another_size_than_the_file_implies_is_refused() {
        let source = source();
        let view = FlistView::new(Arc::new(index(true)), Arc::clone(&source) as _);
        for size in [1, 4, 6, BLOCK_SIZE - 1] {
            source.size_claimed.store(size, Ordering::Relaxed);
            assert_eq!(read(&view, FILE, 0, 1).unwrap_err(), Errno::IO);
            assert_eq!(read(&view, FILE, u64::from(BLOCK_SIZE), 1).unwrap_err(), Errno::IO);
        }
    }

    #[test]
    fn listings_resume_anywhere() {
        let view = view();
        let all = names(&view, DIRECTORY, 0, usize::MAX);
        assert_eq!(all.len(), DIRECTORY_COUNT + 2);
        assert_eq!((&*all[0].0, &*all[1].0, &*all[2].0), (&b"."[..], &b".."[..], &b"000"[..]));
        let mut resumed = Vec::new();
        while let Some((_, offset)) =
            names(&view, DIRECTORY, resumed.last().map_or(0, |(_, o)| *o), 7).last().cloned()
        {
            resumed.extend(names(&view, DIRECTORY, resumed.last().map_or(0, |(_, o)| *o), 7));
            assert_eq!(resumed.last().unwrap().1, offset);
        }
        assert_eq!(resumed, all);
        assert!(names(&view, DIRECTORY, u64::MAX, 1).is_empty());
    }

    #[test]
    fn lookups_find_names_dot_and_dot_dot() {
        let view = view();
        assert_eq!(view.lookup(ROOT, b"directory").unwrap().ino, DIRECTORY);
        assert_eq!(view.lookup(DIRECTORY, b".").unwrap().ino, DIRECTORY);
        assert_eq!(view.lookup(DIRECTORY, b"..").unwrap().ino, ROOT);
        assert_eq!(view.lookup(ROOT, b"..").unwrap().ino, ROOT);
        assert_eq!(view.lookup(DIRECTORY, b"299").unwrap().ino, FILE);
        assert_eq!(view.lookup(DIRECTORY, b"300").unwrap_err(), Errno::NOENT);
        assert_eq!(view.lookup(FILE, b"x").unwrap_err(), Errno::NOTDIR);
        assert_eq!(view.lookup(99, b"x").unwrap_err(), Errno::NOENT);
    }

    #[test]
    fn calls_on_the_wrong_type_say_so() {
        let view = view();
        assert_eq!(read(&view, DIRECTORY, 0, 1).unwrap_err(), Errno::ISDIR);
        assert_eq!(view.read_link(FILE).unwrap_err(), Errno::INVAL);
        assert_eq!(&*view.read_link(LINK).unwrap(), b"directory/000");
        assert_eq!(view.attributes(DEVICE).unwrap().rdev, (259, 300));
        assert_eq!(view.attributes(0).unwrap_err(), Errno::NOENT);
        assert_eq!(view.attributes(u64::MAX).unwrap_err(), Errno::NOENT);
    }

    #[test]
    fn extended_attributes_are_there_or_the_image_has_none() {
        let view = view();
        assert_eq!(&*view.extended_attribute(FILE, b"user.a").unwrap(), b"value");
        assert_eq!(&*view.extended_attribute(FILE, b"user.empty").unwrap(), b"");
        assert_eq!(view.extended_attribute(FILE, b"user.b").unwrap_err(), Errno::NODATA);
        assert_eq!(view.extended_attribute_names(FILE).unwrap(), b"user.a\0user.empty\0");
        assert_eq!(view.extended_attribute_names(ROOT).unwrap(), b"");
        let view = FlistView::new(Arc::new(index(false)), source());
        assert_eq!(view.extended_attribute(FILE, b"user.a").unwrap_err(), Errno::NOSYS);
        assert_eq!(view.extended_attribute_names(FILE).unwrap_err(), Errno::NOSYS);
    }

    #[test]
    fn paths_are_found_for_messages() {
        let view = view();
        assert_eq!(view.path(ROOT), "/");
        assert_eq!(view.path(LINK), "/link");
        assert_eq!(view.path(77), "inode 77");
    }
}
