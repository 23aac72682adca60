//! Paths, for messages to people. The index leads from names to inodes; here is the way back.

use crate::filesystem::{Ino, ROOT};

use super::layout::{EntryRecord, Section};
use super::{FileType, Index, record};

/// Most directories above a file before its path is given up.
const DEPTH_MAX: usize = 1024;

impl Index {
    /// A path of an inode from the root, such as `/bin/sh`; `None` if there is none.
    ///
    /// Scans every entry: for error messages only.
    #[must_use]
    pub fn path(&self, ino: Ino) -> Option<Vec<u8>> {
        let mut names: Vec<&[u8]> = Vec::new();
        let mut child = ino;
        while child != ROOT {
            if names.len() >= DEPTH_MAX {
                return None;
            }
            let position = self.entry_of(child)?;
            names.push(self.entry_at(position)?.0);
            child = self.directory_of(position)?;
        }
        let mut path = Vec::new();
        for name in names.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        if path.is_empty() {
            path.push(b'/');
        }
        Some(path)
    }

    /// Position of the first entry that names `ino`.
    fn entry_of(&self, ino: Ino) -> Option<u32> {
        let entries = self.section(Section::Entries);
        (0..self.header.entry_count).find(|position| {
            record(entries, *position)
                .and_then(EntryRecord::decode)
                .is_some_and(|entry| u64::from(entry.inode) + 1 == ino)
        })
    }

    /// The directory that the entry at `position` stands in.
    fn directory_of(&self, position: u32) -> Option<Ino> {
        (ROOT..=u64::from(self.inode_count())).find(|ino| {
            self.inode(*ino).is_ok_and(|inode| {
                inode.file_type() == Some(FileType::Directory)
                    && position.checked_sub(inode.first).is_some_and(|i| i < inode.second)
            })
        })
    }
}
