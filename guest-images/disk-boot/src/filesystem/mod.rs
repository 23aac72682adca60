//! File systems by one trait: what a path leads to, what is in a folder, and what is in a file.
//!
//! Paths are lists of names from the file system's root. [`resolve`] alone follows links, inside the
//! file system as if it were all there is: a link that leads out of it, or in circles, leads nowhere.

mod ext;
mod fat;
mod signature;

use std::collections::VecDeque;
use std::io;

use crate::source::Window;

pub use signature::name_of;

/// Links that are followed on the way to a file, as in Linux.
const LINK_COUNT_MAX: usize = 40;
/// Names on the way to a file, those in links included.
const NAME_COUNT_MAX: usize = 256;
/// Bytes of a link, as in Linux.
const LINK_SIZE_MAX: u64 = 4096;
/// Bytes of a folder, in which names are looked for one after the other.
const FOLDER_SIZE_MAX: u64 = 16 << 20;
/// Names of a folder that are listed.
pub const LIST_COUNT_MAX: usize = 4096;

/// Names from the root to a file or folder.
pub type Path = Vec<String>;

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// A device, a pipe or a socket.
    Special,
}

/// A file or folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Its bytes; 0 for folders of file systems that don't say.
    pub size: u64,
}

/// Why a file can't be had.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file system is damaged, or has what its reader does not know.
    #[error("its {kind} file system: {reason}")]
    Damaged {
        /// Which kind it is.
        kind: &'static str,
        /// What is wrong, in its reader's words.
        reason: String,
    },
    /// A folder or link is larger than any that is meant.
    #[error("/{path} has {size} bytes, at most {size_max} are read")]
    Large {
        /// What.
        path: String,
        /// Its size.
        size: u64,
        /// The limit.
        size_max: u64,
    },
    /// What was read can't be written.
    #[error("writing: {0}")]
    Write(#[from] io::Error),
}

/// Takes what is read.
pub type Sink<'a> = dyn FnMut(&[u8]) -> io::Result<()> + 'a;

/// A file system that can be read.
pub trait FileSystem {
    /// What its identity is in `/dev/disk/by-uuid`.
    fn uuid(&self) -> &str;

    /// Its label; empty if it has none.
    fn label(&self) -> &str;

    /// What is at a path that has no links before its last name; none if there is nothing.
    ///
    /// # Errors
    /// [`FileError`].
    fn look(&self, path: &[String]) -> Result<Option<Node>, FileError>;

    /// Where a link leads, which [`Self::look`] has seen.
    ///
    /// # Errors
    /// [`FileError`].
    fn read_link(&self, path: &[String]) -> Result<String, FileError>;

    /// Names in a folder that are text, at most [`LIST_COUNT_MAX`].
    ///
    /// # Errors
    /// [`FileError`].
    fn list(&self, path: &[String]) -> Result<Vec<String>, FileError>;

    /// Gives the contents of a regular file to `sink`: as many bytes as [`Self::look`] said.
    ///
    /// # Errors
    /// [`FileError`].
    fn copy(&self, path: &[String], sink: &mut Sink<'_>) -> Result<(), FileError>;
}

/// The file system of a partition; none if it has one that is not read here, or none.
///
/// # Errors
/// It has one that is damaged.
pub fn open(partition: &Window) -> Result<Option<Box<dyn FileSystem>>, FileError> {
    if let Some(found) = ext::Ext::open(partition)? {
        return Ok(Some(Box::new(found)));
    }
    let found = fat::Fat::open(partition)?;
    Ok(found.map(|found| Box::new(found) as Box<dyn FileSystem>))
}

/// What a path in text leads to, links followed; none if there is nothing, or nothing but a circle.
///
/// # Errors
/// [`FileError`].
pub fn resolve(system: &dyn FileSystem, path: &str) -> Result<Option<(Path, Node)>, FileError> {
    let names = |path: &str| -> Vec<String> {
        path.split('/').filter(|name| !name.is_empty() && *name != ".").map(str::to_owned).collect()
    };
    let mut left: VecDeque<String> = names(path).into();
    let mut here = Path::new();
    let mut node = Node { kind: Kind::Folder, size: 0 };
    let (mut link_count, mut name_count) = (0, 0);
    while let Some(name) = left.pop_front() {
        name_count += 1;
        if name_count > NAME_COUNT_MAX || node.kind != Kind::Folder {
            return Ok(None);
        }
        if name == ".." {
            // Above the root is the root.
            here.pop();
            continue;
        }
        check_size(&here, node.size, FOLDER_SIZE_MAX)?;
        here.push(name);
        let Some(found) = system.look(&here)? else { return Ok(None) };
        if found.kind != Kind::Link {
            node = found;
            continue;
        }
        link_count += 1;
        if link_count > LINK_COUNT_MAX {
            return Ok(None);
        }
        check_size(&here, found.size, LINK_SIZE_MAX)?;
        let target = system.read_link(&here)?;
        here.pop();
        if target.starts_with('/') {
            here.clear();
        }
        names(&target).into_iter().rev().for_each(|name| left.push_front(name));
    }
    if here.is_empty() {
        node = Node { kind: Kind::Folder, size: 0 };
    }
    Ok(Some((here, node)))
}

fn check_size(path: &[String], size: u64, size_max: u64) -> Result<(), FileError> {
    if size > size_max {
        return Err(FileError::Large { path: path.join("/"), size, size_max });
    }
    Ok(())
}

/// A file system in memory, for tests of what is built on the trait.
#[cfg(test)]
pub(crate) mod testing {
    use std::collections::BTreeMap;

    use super::*;

    /// Files by their paths; a target that begins with `-> ` is a link.
    #[derive(Default)]
    pub(crate) struct Memory {
        pub(crate) uuid: String,
        pub(crate) label: String,
        pub(crate) files: BTreeMap<String, Vec<u8>>,
    }

    impl Memory {
        pub(crate) fn new(uuid: &str, files: &[(&str, &str)]) -> Self {
            let files = files.iter().map(|(path, text)| ((*path).into(), text.as_bytes().into()));
            Self { uuid: uuid.into(), label: String::new(), files: files.collect() }
        }
    }

    impl FileSystem for Memory {
        fn uuid(&self) -> &str {
            &self.uuid
        }

        fn label(&self) -> &str {
            &self.label
        }

        fn look(&self, path: &[String]) -> Result<Option<Node>, FileError> {
            let path = path.join("/");
            if let Some(bytes) = self.files.get(&path) {
                let kind = if bytes.starts_with(b"-> ") { Kind::Link } else { Kind::File };
                return Ok(Some(Node { kind, size: bytes.len() as u64 }));
            }
            let inside = format!("{path}/");
            let is_folder = self.files.keys().any(|file| file.starts_with(&inside));
            Ok(is_folder.then_some(Node { kind: Kind::Folder, size: 0 }))
        }

        fn read_link(&self, path: &[String]) -> Result<String, FileError> {
            let bytes = &self.files[&path.join("/")];
            Ok(String::from_utf8_lossy(&bytes[3..]).into_owned())
        }

        fn list(&self, path: &[String]) -> Result<Vec<String>, FileError> {
            let inside = format!("{}/", path.join("/"));
            let names = self.files.keys().filter_map(|file| file.strip_prefix(&inside));
            let mut names: Vec<String> =
                names.filter_map(|name| name.split('/').next().map(str::to_owned)).collect();
            names.dedup();
            Ok(names)
        }

        fn copy(&self, path: &[String], sink: &mut Sink<'_>) -> Result<(), FileError> {
            Ok(sink(&self.files[&path.join("/")])?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::Memory;
    use super::*;

    fn found(files: &[(&str, &str)], path: &str) -> Option<String> {
        let system = Memory::new("u", files);
        resolve(&system, path).unwrap().map(|(path, _)| path.join("/"))
    }

    #[test]
    fn links_stay_inside_and_circles_lead_nowhere() {
        let files = [
            ("boot/vmlinuz", "kernel"),
            ("vmlinuz", "-> boot/vmlinuz"),
            ("deep/er/up", "-> ../../../../vmlinuz"),
            ("abs", "-> /boot/../vmlinuz"),
            ("round", "-> about"),
            ("about", "-> /round"),
            ("self", "-> self/self"),
        ];
        for path in ["/vmlinuz", "boot//vmlinuz", "/deep/er/up", "/abs", "/./boot/./vmlinuz"] {
            assert_eq!(found(&files, path).as_deref(), Some("boot/vmlinuz"), "{path}");
        }
        for path in ["/round", "/self", "/none", "/boot/vmlinuz/x", "/boot/vmlinuz/.."] {
            assert_eq!(found(&files, path), None, "{path}");
        }
        assert_eq!(found(&files, "/").as_deref(), Some(""));
        assert_eq!(found(&files, "/boot/..").as_deref(), Some(""));
        let long = "a/../".repeat(200);
        assert_eq!(found(&[("a/b", "x")], &long), None);
    }

    #[test]
    fn a_link_of_any_size_is_not_read() {
        let long = format!("-> {}", "x".repeat(5000));
        let system = Memory::new("u", &[("l", &long)]);
        let error = resolve(&system, "/l").unwrap_err().to_string();
        assert_eq!(error, "/l has 5003 bytes, at most 4096 are read");
    }
}
