//! What leaves nothing behind when it fails, and counts as much as there is.

use std::os::fd::AsFd;
use std::path::Path;

use flist_view::filesystem::{Attributes, Creation, Errno, FileSystem, ROOT, Rename};
use rustix::process::{Resource, getrlimit};

use super::nodes::Limits;
use super::{DIRECTORY, HostDirectory, HostOptions, REGULAR, SYMLINK, quota, sys};

const LIMIT: u64 = 1 << 20;

fn limited(path: &Path) -> HostDirectory {
    let options = HostOptions { quota: Some(LIMIT), ..HostOptions::default() };
    HostDirectory::open(path, options).unwrap()
}

fn creation(kind: u32) -> Creation {
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    Creation { mode: kind | 0o755, uid, gid, rdev: (0, 0) }
}

fn file(directory: &HostDirectory, name: &[u8]) -> Attributes {
    directory.create(ROOT, name, &creation(REGULAR)).unwrap()
}

/// What is counted, which must be what a new count finds.
fn used(directory: &HostDirectory) -> u64 {
    let used = *directory.quota.as_ref().unwrap().used();
    assert_eq!(used, quota::scan(&directory.root).unwrap());
    used
}

fn names(path: &Path) -> usize {
    std::fs::read_dir(path).unwrap().count()
}

#[test]
fn what_cannot_be_remembered_is_not_made() {
    let path = tempfile::tempdir().unwrap();
    let directory = limited(path.path());
    directory.nodes().limits.node_count = 1;
    for kind in [REGULAR, DIRECTORY, SYMLINK] {
        let target = (kind == SYMLINK).then_some(&b"target"[..]);
        let made = directory.make(ROOT, b"name", &creation(kind), target);
        assert_eq!(made, Err(Errno::NFILE), "{kind:o}");
        assert_eq!((names(path.path()), used(&directory)), (0, 0), "{kind:o}");
    }
}

#[test]
fn a_file_without_a_name_that_cannot_be_remembered_costs_nothing() {
    let path = tempfile::tempdir().unwrap();
    let directory = limited(path.path());
    directory.nodes().limits.pinned_count = 0;
    assert_eq!(directory.create_unnamed(ROOT, &creation(REGULAR)), Err(Errno::NFILE));
    assert_eq!(used(&directory), 0);
}

/// The guest forgets a file while another thread links it.
#[test]
fn a_link_that_cannot_be_remembered_is_not_made() {
    let path = tempfile::tempdir().unwrap();
    std::fs::write(path.path().join("file"), "").unwrap();
    let directory = limited(path.path());
    directory.nodes().limits.node_count = 1;
    let root = directory.path(ROOT).unwrap();
    let found = sys::open_path(root.as_fd(), b"file").unwrap();
    let linked = directory.link_in(found.as_fd(), root.as_fd(), (ROOT, b"link"));
    assert_eq!((linked, names(path.path())), (Err(Errno::NFILE), 1));
}

#[test]
fn names_count() {
    let path = tempfile::tempdir().unwrap();
    let directory = limited(path.path());
    let ino = file(&directory, b"file").ino;
    let first = used(&directory);
    let mut count = 0u32;
    while directory.link(ino, ROOT, format!("{count}").as_bytes()).is_ok() {
        count += 1;
        assert!(count < 8192, "names have no end");
    }
    assert_eq!(directory.link(ino, ROOT, b"more"), Err(Errno::NOSPC));
    assert!(used(&directory) > LIMIT - first);
    assert_eq!(directory.link(ino, ROOT, b"0"), Err(Errno::NOSPC));
    for name in 0..count {
        directory.unlink(ROOT, format!("{name}").as_bytes()).unwrap();
    }
    assert_eq!(used(&directory), first);
    assert_eq!(directory.link(ino, ROOT, b"file"), Err(Errno::EXIST));
    directory.link(ino, ROOT, b"other").unwrap();
    // The guest knows it as `other`.
    directory.rename((ROOT, b"other"), (ROOT, b"moved"), Rename::Replace).unwrap();
    let replacing = file(&directory, b"replacing").ino;
    directory.rename((ROOT, b"replacing"), (ROOT, b"moved"), Rename::Replace).unwrap();
    assert_eq!(used(&directory), 2 * first);
    directory.forget_all();
    directory.unlink(ROOT, b"file").unwrap();
    directory.unlink(ROOT, b"moved").unwrap();
    assert_ne!(replacing, ino);
    assert_eq!(used(&directory), 0);
}

/// The second name goes while the guest has the file open without the first.
#[test]
fn a_file_is_given_back_once() {
    let path = tempfile::tempdir().unwrap();
    let directory = limited(path.path());
    file(&directory, b"kept");
    let before = used(&directory);
    let ino = file(&directory, b"a").ino;
    directory.link(ino, ROOT, b"b").unwrap();
    directory.unlink(ROOT, b"b").unwrap();
    directory.unlink(ROOT, b"a").unwrap();
    directory.forget(ino, 2);
    assert_eq!(used(&directory), before);
}

#[test]
fn the_first_name_of_a_file_is_counted_with_it() {
    let path = tempfile::tempdir().unwrap();
    let directory = limited(path.path());
    let ino = directory.create_unnamed(ROOT, &creation(REGULAR)).unwrap().ino;
    directory.link(ino, ROOT, b"name").unwrap();
    assert!(used(&directory) > 0);
}

#[test]
fn a_whiteout_counts() {
    let path = tempfile::tempdir().unwrap();
    let directory = limited(path.path());
    file(&directory, b"a");
    let before = used(&directory);
    directory.move_name((ROOT, b"a"), (ROOT, b"b"), Rename::Replace, true).unwrap();
    assert!(used(&directory) > before);
    directory.unlink(ROOT, b"a").unwrap();
    assert_eq!(used(&directory), before);
}

#[test]
fn descriptors_are_a_share_of_what_the_process_may_have() {
    let counts = |count| {
        let limits = Limits::new(count);
        (limits.open_count, limits.pinned_count)
    };
    assert_eq!(counts(Some(1024)), (128, 128));
    assert_eq!(counts(Some(16_384)), (512, 2048));
    assert_eq!(counts(None), (512, 4096));
    assert_eq!(counts(Some(u64::MAX)), (512, 4096));
    assert_eq!(counts(Some(8)), (16, 16));
    let path = tempfile::tempdir().unwrap();
    let directory = HostDirectory::open(path.path(), HostOptions::default()).unwrap();
    let limits = directory.nodes().limits;
    assert_eq!(limits, Limits::new(getrlimit(Resource::Nofile).current));
    directory.nodes().limits.pinned_count = 1;
    file(&directory, b"a");
    file(&directory, b"b");
    directory.unlink(ROOT, b"a").unwrap();
    assert_eq!(directory.unlink(ROOT, b"b"), Err(Errno::NFILE));
}
