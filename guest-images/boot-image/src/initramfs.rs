//! The archive that the kernel unpacks as its first root file system.
//!
//! The format is cpio's `newc` (Linux `Documentation/driver-api/early-userspace/
//! buffer-format.rst`): per entry a header of 110 characters, the name with a NUL, padding to 4,
//! the data, padding to 4; an entry named `TRAILER!!!` ends it. The same entries give the same
//! bytes: sorted by path, times 0, owner root, inodes counted from 1.
//!
//! A tiny init has no `modprobe`. [`Initramfs::modules`] therefore stores modules flat in
//! `lib/modules/` together with [`MODULE_ORDER_PATH`]: a text file of one module a line, in the
//! order to load them, the absolute path first and its parameters, if any, after a space.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::modules::{ModuleError, ModuleTree, without_signature};

/// Where [`Initramfs::modules`] writes the load order, relative to the root.
pub const MODULE_ORDER_PATH: &str = "lib/modules/load-order";

/// The longest path of an entry, in bytes (Linux' `PATH_MAX` with its NUL).
pub const PATH_SIZE_MAX: usize = 4095;

/// An initramfs under construction.
///
/// Paths are relative to the root (a leading `/` is accepted). Parent folders appear by
/// themselves, with mode 0755. An entry can be added once.
#[derive(Debug, Default)]
pub struct Initramfs {
    entries: BTreeMap<String, Entry>,
    module_order: String,
}

#[derive(Debug)]
struct Entry {
    mode: u32,
    device: (u32, u32),
    data: Vec<u8>,
}

impl Initramfs {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a folder with permission bits `mode`. One that exists gets the new mode.
    ///
    /// # Errors
    ///
    /// [`InitramfsError::BadPath`], or [`InitramfsError::Duplicate`] when it isn't a folder.
    pub fn dir(&mut self, path: &str, mode: u32) -> Result<&mut Self, InitramfsError> {
        let path = self.checked(path)?;
        self.parents(&path)?;
        let entry = Entry::new(S_IFDIR | mode & MODE_BITS, Vec::new());
        if let Some(old) = self.entries.insert(path.clone(), entry)
            && old.mode & S_IFMT != S_IFDIR
        {
            self.entries.insert(path.clone(), old);
            return Err(InitramfsError::Duplicate { path });
        }
        Ok(self)
    }

    /// Adds a regular file.
    ///
    /// # Errors
    ///
    /// [`InitramfsError::BadPath`], [`InitramfsError::Duplicate`], or
    /// [`InitramfsError::FileSize`] from 4 GiB on.
    pub fn file(
        &mut self,
        path: &str,
        mode: u32,
        data: impl Into<Vec<u8>>,
    ) -> Result<&mut Self, InitramfsError> {
        let data = data.into();
        if u32::try_from(data.len()).is_err() {
            return Err(InitramfsError::FileSize { path: path.to_owned(), size: data.len() });
        }
        self.add(path, Entry::new(S_IFREG | mode & MODE_BITS, data))
    }

    /// Adds a copy of the file `source` of this machine.
    ///
    /// # Errors
    ///
    /// As [`Self::file`], and [`InitramfsError::Read`].
    pub fn host_file(
        &mut self,
        path: &str,
        mode: u32,
        source: &Path,
    ) -> Result<&mut Self, InitramfsError> {
        let data = fs::read(source)
            .map_err(|error| InitramfsError::Read { path: source.to_path_buf(), source: error })?;
        self.file(path, mode, data)
    }

    /// Adds a symbolic link to `target`, which may be anything.
    ///
    /// # Errors
    ///
    /// As [`Self::file`].
    pub fn symlink(&mut self, path: &str, target: &str) -> Result<&mut Self, InitramfsError> {
        if target.is_empty() || target.len() > PATH_SIZE_MAX {
            return Err(InitramfsError::BadPath { path: target.to_owned() });
        }
        self.add(path, Entry::new(S_IFLNK | 0o777, target.as_bytes().to_vec()))
    }

    /// Adds a character device. The kernel opens `dev/console` for init, if it is there.
    ///
    /// # Errors
    ///
    /// As [`Self::file`].
    pub fn char_device(
        &mut self,
        path: &str,
        mode: u32,
        major: u32,
        minor: u32,
    ) -> Result<&mut Self, InitramfsError> {
        let mut entry = Entry::new(S_IFCHR | mode & MODE_BITS, Vec::new());
        entry.device = (major, minor);
        self.add(path, entry)
    }

    /// Adds `wanted` modules with everything they need, and appends them to the load order.
    /// May be called again with more; what is there already is not loaded twice.
    ///
    /// Their signatures are left out, which makes loading them cheap; see
    /// [`without_signature`].
    ///
    /// # Errors
    ///
    /// [`InitramfsError::Module`] for an unknown module, [`InitramfsError::Read`] for one that
    /// can't be read.
    pub fn modules(
        &mut self,
        tree: &ModuleTree,
        wanted: &[&str],
    ) -> Result<&mut Self, InitramfsError> {
        for step in tree.load_order(wanted)? {
            let name = step.path.file_name().unwrap_or_default().to_string_lossy();
            let path = format!("lib/modules/{name}");
            if self.entries.contains_key(&path) {
                continue;
            }
            let module = read(&step.path)?;
            self.file(&path, 0o644, without_signature(&module))?;
            self.module_order += format!("/{path} {}", step.params).trim_end();
            self.module_order += "\n";
        }
        Ok(self)
    }

    /// Whether there is an entry of that path.
    #[must_use]
    pub fn contains(&self, path: &str) -> bool {
        self.entries.contains_key(path.trim_start_matches('/'))
    }

    /// The uncompressed archive, padded to a multiple of 512 bytes.
    ///
    /// # Errors
    ///
    /// [`InitramfsError::Duplicate`] when the caller has put something at
    /// [`MODULE_ORDER_PATH`] and modules were added.
    pub fn build(mut self) -> Result<Vec<u8>, InitramfsError> {
        if !self.module_order.is_empty() {
            let order = std::mem::take(&mut self.module_order);
            self.file(MODULE_ORDER_PATH, 0o644, order)?;
        }
        let size: usize = self.entries.values().map(|entry| entry.data.len() + 256).sum();
        let mut out = Vec::with_capacity(size + 512);
        for (index, (path, entry)) in (1u32..).zip(&self.entries) {
            put_entry(&mut out, index, path, entry);
        }
        put_entry(&mut out, 0, "TRAILER!!!", &Entry::new(0, Vec::new()));
        out.resize(out.len().next_multiple_of(512), 0);
        Ok(out)
    }

    /// The archive compressed by zstd: what goes over a network. `level` is 1 to 19; the
    /// kernel's decompression costs the same at every level.
    ///
    /// # Errors
    ///
    /// As [`Self::build`], and [`InitramfsError::Compress`].
    pub fn build_zstd(self, level: i32) -> Result<Vec<u8>, InitramfsError> {
        let archive = self.build()?;
        zstd::bulk::compress(&archive, level.clamp(1, 19)).map_err(InitramfsError::Compress)
    }

    fn add(&mut self, path: &str, entry: Entry) -> Result<&mut Self, InitramfsError> {
        let path = self.checked(path)?;
        self.parents(&path)?;
        if self.entries.contains_key(&path) {
            return Err(InitramfsError::Duplicate { path });
        }
        self.entries.insert(path, entry);
        Ok(self)
    }

    fn checked(&self, path: &str) -> Result<String, InitramfsError> {
        let relative = path.strip_prefix('/').unwrap_or(path);
        let is_plain = |part: &str| !matches!(part, "" | "." | "..");
        let is_good = relative.split('/').all(is_plain)
            && !relative.contains('\0')
            && relative.len() <= PATH_SIZE_MAX
            && relative != "TRAILER!!!";
        if is_good {
            Ok(relative.to_owned())
        } else {
            Err(InitramfsError::BadPath { path: path.to_owned() })
        }
    }

    fn parents(&mut self, path: &str) -> Result<(), InitramfsError> {
        for (at, _) in path.match_indices('/') {
            let parent = path.get(..at).unwrap_or_default();
            let new = || Entry::new(S_IFDIR | 0o755, Vec::new());
            let entry = self.entries.entry(parent.to_owned()).or_insert_with(new);
            if entry.mode & S_IFMT != S_IFDIR {
                return Err(InitramfsError::NotDir {
                    path: path.to_owned(),
                    at: parent.to_owned(),
                });
            }
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<u8>, InitramfsError> {
    fs::read(path).map_err(|source| InitramfsError::Read { path: path.to_path_buf(), source })
}

impl Entry {
    fn new(mode: u32, data: Vec<u8>) -> Self {
        Self { mode, device: (0, 0), data }
    }
}

const S_IFMT: u32 = 0o170_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFCHR: u32 = 0o020_000;
const MODE_BITS: u32 = 0o7777;

fn put_entry(out: &mut Vec<u8>, inode: u32, name: &str, entry: &Entry) {
    let links = if entry.mode & S_IFMT == S_IFDIR { 2 } else { 1 };
    // Both fit: `file` and `checked` have looked.
    let data_size = u32::try_from(entry.data.len()).unwrap_or(u32::MAX);
    let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
    let (rdev_major, rdev_minor) = entry.device;
    #[rustfmt::skip]
    let fields = [
        inode, entry.mode, 0, 0, links, 0, data_size, 0, 0, rdev_major, rdev_minor, name_size, 0,
    ];
    out.extend(b"070701");
    for field in fields {
        out.extend(format!("{field:08x}").bytes());
    }
    out.extend(name.bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend(&entry.data);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// An entry can't be added, or the archive not made.
#[derive(Debug, Error)]
pub enum InitramfsError {
    /// A path that is empty, too long, or leads elsewhere.
    #[error("bad path {path:?}: must be relative, without empty, . or .. parts")]
    BadPath {
        /// The path.
        path: String,
    },
    /// Two entries of one path.
    #[error("{path} is there already")]
    Duplicate {
        /// The path.
        path: String,
    },
    /// A parent of the path isn't a folder.
    #[error("{path}: {at} is not a folder")]
    NotDir {
        /// The path.
        path: String,
        /// The parent.
        at: String,
    },
    /// The format's sizes have 32 bits.
    #[error("{path}: {size} bytes are more than the archive format can hold")]
    FileSize {
        /// The path.
        path: String,
        /// The file's size.
        size: usize,
    },
    /// A file of this machine can't be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A module can't be had.
    #[error("modules")]
    Module(#[from] ModuleError),
    /// The compressor failed.
    #[error("cannot compress the archive")]
    Compress(#[source] io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    fn sample() -> Initramfs {
        let mut initramfs = Initramfs::new();
        initramfs.file("/init", 0o755, b"hello").unwrap();
        initramfs.dir("tmp", 0o1777).unwrap();
        initramfs.symlink("bin/sh", "../init").unwrap();
        initramfs.char_device("dev/console", 0o600, 5, 1).unwrap();
        initramfs
    }

    #[test]
    fn one_file_gives_the_golden_bytes() {
        let mut initramfs = Initramfs::new();
        initramfs.file("init", 0o755, b"hello").unwrap();
        let expected = concat!(
            "07070100000001000081ed000000000000000000000001000000000000000500000000",
            "0000000000000000000000000000000500000000init\0\0hello\0\0\0",
            "07070100000000000000000000000000000000000000010000000000000000",
            "000000000000000000000000000000000000000b00000000TRAILER!!!\0\0\0\0",
        );
        let mut expected = expected.as_bytes().to_vec();
        expected.resize(512, 0);
        assert_eq!(initramfs.build().unwrap(), expected);
    }

    #[test]
    fn cpio_lists_what_was_put_in() {
        let spawned = Command::new("cpio")
            .args(["-itv", "--quiet", "--numeric-uid-gid"])
            .env("TZ", "UTC")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut child) = spawned else {
            eprintln!("skipped: no cpio program here");
            return;
        };
        child.stdin.take().unwrap().write_all(&sample().build().unwrap()).unwrap();
        let listed = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        let listed: Vec<&str> = listed.lines().collect();
        assert_eq!(listed.len(), 6, "{listed:?}");
        assert!(listed[0].starts_with("drwxr-xr-x") && listed[0].ends_with(" bin"));
        assert!(listed[1].starts_with("lrwxrwxrwx") && listed[1].ends_with(" bin/sh -> ../init"));
        assert!(listed[3].starts_with("crw-------") && listed[3].contains("5,   1"));
        assert!(listed[4].starts_with("-rwxr-xr-x") && listed[4].ends_with(" init"));
        assert!(listed[5].starts_with("drwxrwxrwt") && listed[5].ends_with(" tmp"));
    }

    #[test]
    fn the_order_of_calls_does_not_matter() {
        let mut other = Initramfs::new();
        other.char_device("dev/console", 0o600, 5, 1).unwrap();
        other.symlink("bin/sh", "../init").unwrap();
        other.dir("tmp", 0o1777).unwrap();
        other.file("init", 0o755, b"hello").unwrap();
        assert_eq!(other.build().unwrap(), sample().build().unwrap());
    }

    #[test]
    fn zstd_holds_the_same_archive() {
        let packed = sample().build_zstd(3).unwrap();
        let plain = zstd::bulk::decompress(&packed, 1 << 20).unwrap();
        assert_eq!(plain, sample().build().unwrap());
    }

    #[test]
    fn bad_paths_and_duplicates_are_refused() {
        let mut initramfs = sample();
        for path in ["", "/", "a//b", "../a", "a/./b", "a\0b", "TRAILER!!!", &"x".repeat(5000)] {
            let result = initramfs.file(path, 0o644, b"");
            assert!(matches!(result, Err(InitramfsError::BadPath { .. })), "{path:?}");
        }
        assert!(matches!(initramfs.file("init", 0, ""), Err(InitramfsError::Duplicate { .. })));
        assert!(matches!(initramfs.dir("init", 0), Err(InitramfsError::Duplicate { .. })));
        assert!(matches!(initramfs.file("init/x", 0, ""), Err(InitramfsError::NotDir { .. })));
        assert_eq!(initramfs.build().unwrap(), sample().build().unwrap());
    }
}
