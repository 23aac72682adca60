//! The full check of an index: what `open` leaves out because it would cost time per inode.

use crate::filesystem::{Ino, ROOT};

use super::layout::HEADER_SIZE;
use super::{FileType, Index, IndexError, Inode, corrupt};

/// What the entries say of an inode.
#[derive(Clone, Copy, Default)]
struct Seen {
    /// Entries that name it.
    names: u32,
    /// Subdirectories, if it is a directory.
    subdirectories: u32,
}

impl Index {
    /// Checks everything: checksum, every record, every range, order and validity of names, that
    /// directories form a tree which reaches every inode, link counts and totals.
    ///
    /// # Errors
    /// [`IndexError`] tells the first rule that is broken and where.
    pub fn verify(&self) -> Result<(), IndexError> {
        let payload = self.bytes.as_slice().get(HEADER_SIZE..).unwrap_or_default();
        if crc32c::crc32c(payload) != self.header.payload_checksum {
            return Err(IndexError::Header("checksum of the sections"));
        }
        let seen = self.verify_tree()?;
        let mut contents_size = 0u64;
        for (ino, seen) in (ROOT..).zip(&seen) {
            let inode = self.inode(ino)?;
            self.verify_inode(ino, &inode, *seen)?;
            if inode.file_type() == Some(FileType::File) {
                contents_size = contents_size.saturating_add(inode.size);
            }
        }
        if contents_size != self.header.contents_size {
            return Err(IndexError::Header("sum of file sizes"));
        }
        Ok(())
    }

    /// Walks from the root. A directory is entered when its first name is seen and a second name is
    /// an error, so the walk ends.
    fn verify_tree(&self) -> Result<Vec<Seen>, IndexError> {
        let mut seen = vec![Seen::default(); self.inode_count() as usize];
        let mut pending = vec![ROOT];
        while let Some(directory) = pending.pop() {
            let inode = self.inode(directory)?;
            let entries = self.entries(&inode)?;
            let mut previous: &[u8] = &[];
            for number in 0..entries.count() {
                let Some((name, child)) = entries.get(number)? else { break };
                if name <= previous || !is_valid_name(name) {
                    return Err(at("name of a directory entry", directory));
                }
                previous = name;
                let is_directory = self.verify_child(directory, child, &mut seen)?;
                if is_directory {
                    pending.push(child);
                }
            }
        }
        Ok(seen)
    }

    /// Counts one name of `child`; returns whether it is a directory.
    fn verify_child(
        &self,
        directory: Ino,
        child: Ino,
        seen: &mut [Seen],
    ) -> Result<bool, IndexError> {
        let inode = self.inode(child)?;
        let is_directory = inode.file_type() == Some(FileType::Directory);
        let count = seen_of(seen, child).ok_or(IndexError::NoInode(child))?;
        count.names = count.names.saturating_add(1);
        if is_directory && (count.names > 1 || child == ROOT) {
            return Err(at("directory with two names", child));
        }
        if is_directory {
            if self.parent(&inode)? != directory {
                return Err(at("directory's parent", child));
            }
            let parent = seen_of(seen, directory).ok_or(IndexError::NoInode(directory))?;
            parent.subdirectories = parent.subdirectories.saturating_add(1);
        }
        Ok(is_directory)
    }

    fn verify_inode(&self, ino: Ino, inode: &Inode, seen: Seen) -> Result<(), IndexError> {
        let file_type = inode.file_type().ok_or_else(|| at("file type", ino))?;
        let nlink = match file_type {
            FileType::Directory => seen.subdirectories.saturating_add(2),
            _ => seen.names,
        };
        if seen.names == 0 && ino != ROOT {
            return Err(at("inode without a name", ino));
        }
        if inode.nlink != nlink {
            return Err(at("link count of inode", ino));
        }
        match file_type {
            FileType::File => {
                self.blocks(inode)?;
            }
            FileType::Symlink => {
                let target = self.target(inode)?;
                if target.is_empty() || target.len() as u64 != inode.size {
                    return Err(at("link target of inode", ino));
                }
            }
            FileType::Directory | FileType::Device | FileType::Other => {}
        }
        let mut previous: &[u8] = &[];
        for xattr in self.xattrs(inode) {
            let name = xattr?.name;
            if name <= previous {
                return Err(corrupt("order of extended attributes", inode.xattr_first));
            }
            previous = name;
        }
        Ok(())
    }
}

fn seen_of(seen: &mut [Seen], ino: Ino) -> Option<&mut Seen> {
    seen.get_mut(usize::try_from(ino.checked_sub(1)?).ok()?)
}

fn is_valid_name(name: &[u8]) -> bool {
    name != b"." && name != b".." && !name.contains(&b'/') && !name.contains(&0)
}

fn at(what: &'static str, ino: Ino) -> IndexError {
    IndexError::Corrupt { what, position: ino }
}
