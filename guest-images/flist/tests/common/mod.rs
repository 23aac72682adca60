//! What several integration tests need: two trees compared inode by inode, and a mount that goes away.

#![allow(dead_code, reason = "each test links this on its own and uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The program under test.
pub(crate) const FLIST: &str = env!("CARGO_BIN_EXE_flist");

/// What two trees must agree on, path by path.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    mode: u32,
    owner: (u32, u32),
    rdev: u64,
    size: u64,
    mtime: (i64, i64),
    target: Option<PathBuf>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// First path, in order of names, of the same inode; tells which names are hard links.
    first_name: PathBuf,
}

/// Differences between two trees, a line each: every byte, mode, owner, time, link and attribute.
pub(crate) fn differences(expected: &Path, found: &Path) -> Vec<String> {
    let (expected_list, found_list) = (list(expected), list(found));
    let mut differences = Vec::new();
    for path in expected_list.keys().filter(|path| !found_list.contains_key(*path)) {
        differences.push(format!("{}: missing", path.display()));
    }
    for (path, found_entry) in &found_list {
        let Some(expected_entry) = expected_list.get(path) else {
            differences.push(format!("{}: should not be there", path.display()));
            continue;
        };
        if expected_entry != found_entry {
            let shown = path.display();
            differences
                .push(format!("{shown}: expected {expected_entry:?}, found {found_entry:?}"));
        } else if found_entry.mode & 0o170_000 == 0o100_000
            && fs::read(expected.join(path)).unwrap() != fs::read(found.join(path)).unwrap()
        {
            differences.push(format!("{}: contents differ", path.display()));
        }
    }
    differences
}

fn list(root: &Path) -> BTreeMap<PathBuf, Entry> {
    let mut paths = vec![PathBuf::new()];
    let mut next = 0;
    while next < paths.len() {
        let path = paths[next].clone();
        if fs::symlink_metadata(root.join(&path)).unwrap().is_dir() {
            let names = fs::read_dir(root.join(&path)).unwrap();
            paths.extend(names.map(|entry| path.join(entry.unwrap().file_name())));
        }
        next += 1;
    }
    paths.sort();
    let mut first_names = BTreeMap::new();
    let with_entry = |path: PathBuf| {
        let metadata = fs::symlink_metadata(root.join(&path)).unwrap();
        let identity = (metadata.dev(), metadata.ino());
        let first_name = first_names.entry(identity).or_insert_with(|| path.clone()).clone();
        let entry = entry(&root.join(&path), &metadata, first_name);
        (path, entry)
    };
    paths.into_iter().map(with_entry).collect()
}

fn entry(path: &Path, metadata: &fs::Metadata, first_name: PathBuf) -> Entry {
    let device = metadata.mode() & 0o170_000;
    let is_device = device == 0o020_000 || device == 0o060_000;
    Entry {
        mode: metadata.mode(),
        owner: (metadata.uid(), metadata.gid()),
        rdev: if is_device { metadata.rdev() } else { 0 },
        // Every file system counts the size of a directory in its own way.
        size: if metadata.is_dir() { 0 } else { metadata.size() },
        mtime: (metadata.mtime(), metadata.mtime_nsec()),
        target: metadata.is_symlink().then(|| fs::read_link(path).unwrap()),
        xattrs: xattrs(path),
        first_name,
    }
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 64 * 1024];
    let size = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    let mut value = vec![0; 64 * 1024];
    let names = names[..size].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let mut read = |name: &[u8]| {
        let size = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        (name.to_vec(), value[..size].to_vec())
    };
    names.map(&mut read).collect()
}

/// Runs `flist` with these arguments, which must succeed; its standard output.
pub(crate) fn flist(arguments: &[&str]) -> String {
    let output = Command::new(FLIST).args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "flist {}: {}\n{errors}", arguments.join(" "), output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// A running `flist mount`, ended and unmounted when dropped.
pub(crate) struct Mount {
    at: PathBuf,
    daemon: Child,
}

impl Mount {
    /// Mounts an image with these arguments at `at`, which is created.
    pub(crate) fn new(arguments: &[&str], at: &Path) -> Self {
        fs::create_dir_all(at).unwrap();
        let before = fs::metadata(at).unwrap().dev();
        let mut daemon = Command::new(FLIST);
        daemon.arg("mount").args(arguments).arg(at).stdin(Stdio::null());
        let mount = Self { at: at.to_owned(), daemon: daemon.spawn().unwrap() };
        let begin = Instant::now();
        while fs::metadata(at).unwrap().dev() == before {
            assert!(begin.elapsed() < Duration::from_secs(30), "not mounted after 30 s");
            std::thread::sleep(Duration::from_millis(5));
        }
        mount
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.at, rustix::mount::UnmountFlags::DETACH);
        let begin = Instant::now();
        while matches!(self.daemon.try_wait(), Ok(None)) {
            if begin.elapsed() > Duration::from_secs(10) {
                let _ = self.daemon.kill();
                panic!("flist mount does not end after an unmount");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Whether tests that mount and make devices can run here; says why not.
pub(crate) fn can_mount() -> bool {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: mounting, and files of other owners, need root");
        return false;
    }
    if fs::File::options().read(true).write(true).open("/dev/fuse").is_err() {
        eprintln!("skipped: there is no /dev/fuse here");
        return false;
    }
    true
}
