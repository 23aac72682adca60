//! FAT12, FAT16 and FAT32, by the reader that guests of ours find their `cidata` with.
//!
//! Upper and lower case are the same, and there are no links.

use std::borrow::Cow;
use std::io;

use guest_init::fat::{Entry, Error, Image, Volume};

use super::{FileError, FileSystem, Kind, LIST_COUNT_MAX, Node, Sink};
use crate::source::Window;

/// A FAT file system.
pub(super) struct Fat {
    volume: Volume<Partition>,
    uuid: String,
    label: String,
}

/// A partition, as the reader takes it.
#[derive(Clone)]
struct Partition(Window);

impl Image for Partition {
    fn size(&self) -> usize {
        usize::try_from(self.0.size()).unwrap_or(usize::MAX)
    }

    fn bytes(&self, at: usize, count: usize, what: &'static str) -> Result<Cow<'_, [u8]>, Error> {
        let is_inside = at.checked_add(count).is_some_and(|end| end <= self.size());
        if !is_inside {
            return Err(Error::Outside(what));
        }
        let read = self.0.bytes(at as u64, count);
        read.map(Cow::Owned).map_err(|error| Error::Unreadable { what, error: error.to_string() })
    }
}

impl Fat {
    /// The file system of a partition, if it is one of these.
    pub(super) fn open(partition: &Window) -> Result<Option<Self>, FileError> {
        let volume = match Volume::open(Partition(partition.clone())) {
            Err(Error::NotFat(_) | Error::Outside(_)) => return Ok(None),
            other => other.map_err(damaged)?,
        };
        let serial = volume.serial().map_err(damaged)?;
        let uuid = format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff);
        let label = volume.label().map_err(damaged)?;
        Ok(Some(Self { volume, uuid, label }))
    }

    /// The entry at a path that is not the root.
    fn entry(&self, path: &[String]) -> Result<Option<Entry>, FileError> {
        let mut here: Option<Entry> = None;
        for name in path {
            if here.as_ref().is_some_and(|entry| !entry.is_folder) {
                return Ok(None);
            }
            let entries = self.volume.list(here.as_ref()).map_err(damaged)?;
            here = entries.into_iter().find(|entry| entry.name.eq_ignore_ascii_case(name));
            if here.is_none() {
                return Ok(None);
            }
        }
        Ok(here)
    }
}

impl FileSystem for Fat {
    fn uuid(&self) -> &str {
        &self.uuid
    }

    fn label(&self) -> &str {
        &self.label
    }

    fn look(&self, path: &[String]) -> Result<Option<Node>, FileError> {
        let found = self.entry(path)?;
        Ok(found.map(|entry| {
            let kind = if entry.is_folder { Kind::Folder } else { Kind::File };
            Node { kind, size: entry.size.into() }
        }))
    }

    fn read_link(&self, path: &[String]) -> Result<String, FileError> {
        Err(FileError::Damaged { kind: "FAT", reason: format!("/{} is no link", path.join("/")) })
    }

    fn list(&self, path: &[String]) -> Result<Vec<String>, FileError> {
        let folder = self.entry(path)?;
        let entries = self.volume.list(folder.as_ref()).map_err(damaged)?;
        Ok(entries.into_iter().map(|entry| entry.name).take(LIST_COUNT_MAX).collect())
    }

    fn copy(&self, path: &[String], sink: &mut Sink<'_>) -> Result<(), FileError> {
        let file = self.entry(path)?.filter(|entry| !entry.is_folder);
        let Some(file) = file else { return Ok(()) };
        self.volume.copy(&file, |bytes| sink(bytes).map_err(Stopped::Write)).map_err(|stopped| {
            match stopped {
                Stopped::Read(error) => damaged(error),
                Stopped::Write(error) => FileError::Write(error),
            }
        })
    }
}

/// What a copy ended by.
enum Stopped {
    Read(Error),
    Write(io::Error),
}

impl From<Error> for Stopped {
    fn from(error: Error) -> Self {
        Self::Read(error)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` gives")]
fn damaged(error: Error) -> FileError {
    FileError::Damaged { kind: "FAT", reason: error.to_string() }
}
