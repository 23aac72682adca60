//! Which extended attributes a guest may see and set, and the calls underneath.

use std::os::fd::{AsFd, BorrowedFd};

use flist_view::filesystem::{Errno, Ino, SetAttribute};
use rustix::fs::XattrFlags;

use super::{HostDirectory, sys};

/// Space that the first attribute of a file may take.
const ATTRIBUTE_BLOCK_SIZE: u64 = 4096;
/// Beginnings of names that pass through; all of the last.
const PREFIXES: [&[u8]; 2] = [b"user.", b"trusted."];
const CAPABILITY: &[u8] = b"security.capability";

/// Refuses what a guest has no business with.
pub(in crate::fs) fn check(name: &[u8]) -> Result<(), Errno> {
    if is_visible(name) { Ok(()) } else { Err(Errno::OPNOTSUPP) }
}

/// What the attributes that a guest may see take, of an open file or directory: their names and values.
pub(super) fn size_of_all(file: BorrowedFd<'_>) -> Result<u64, Errno> {
    let names = match sys::extended_attribute_names(file) {
        Err(Errno::OPNOTSUPP) => return Ok(0),
        names => visible(&names?),
    };
    let mut size = names.len() as u64;
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        // One that makes no sense cannot be read, such as empty capabilities; the others still count.
        let value = sys::extended_attribute(file, name);
        size = size.saturating_add(value.map_or(0, |value| value.len() as u64));
    }
    Ok(size)
}

/// The names among `names`, each ended by NUL, that a guest may see.
pub(super) fn visible(names: &[u8]) -> Vec<u8> {
    let names = names.split_inclusive(|byte| *byte == 0);
    names
        .filter(|name| is_visible(name.strip_suffix(b"\0").unwrap_or(name)))
        .flatten()
        .copied()
        .collect()
}

fn is_visible(name: &[u8]) -> bool {
    name == CAPABILITY || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

impl HostDirectory {
    /// Names of all attributes of a file or directory, each ended by NUL.
    pub(in crate::fs) fn raw_attribute_names(&self, ino: Ino) -> Result<Vec<u8>, Errno> {
        sys::extended_attribute_names(self.open_any(ino)?.as_fd())
    }

    /// Value of any attribute of a file or directory.
    pub(in crate::fs) fn raw_attribute(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, Errno> {
        sys::extended_attribute(self.open_any(ino)?.as_fd(), name)
    }

    pub(in crate::fs) fn set_raw_attribute(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        how: SetAttribute,
    ) -> Result<(), Errno> {
        let flags = match how {
            SetAttribute::Any => XattrFlags::empty(),
            SetAttribute::Create => XattrFlags::CREATE,
            SetAttribute::Replace => XattrFlags::REPLACE,
        };
        let file = self.open_any(ino)?;
        let size = ATTRIBUTE_BLOCK_SIZE.saturating_add(value.len() as u64);
        self.charged_attributes((ino, file.as_fd()), size, || {
            rustix::fs::fsetxattr(&*file, name, value, flags)
        })
    }

    pub(in crate::fs) fn remove_raw_attribute(&self, ino: Ino, name: &[u8]) -> Result<(), Errno> {
        let file = self.open_any(ino)?;
        self.charged_attributes((ino, file.as_fd()), 0, || rustix::fs::fremovexattr(&*file, name))
    }
}
