//! What leaves nothing behind when it fails, and counts as much as there is.

use std::os::fd::AsFd;
use std::path::Path;

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use flist_view::filesystem::{
    Attributes, Changes, Creation, Errno, FileSystem, Ino, ROOT, Rename, SetAttribute,
};

use super::budget::Budget;
use super::scan::scan;
use super::{DIRECTORY, HostDirectory, HostOptions, REGULAR, SYMLINK, extents, sys};

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
fn total(directory: &HostDirectory) -> u64 {
    let quota = directory.quota.as_ref().unwrap();
    let used = quota.used().bytes;
    assert_eq!(used, scan(&directory.root, &quota.measure).unwrap());
    used
}

/// The same without the served directory's own blocks, which stay when names go.
fn used(directory: &HostDirectory) -> u64 {
    let root = sys::stat(directory.root.as_fd()).unwrap().attributes;
    total(directory) - sys::size_of_blocks(&root)
}

/// As if all was used, by a count of just now.
fn use_up(directory: &HostDirectory) {
    let mut used = directory.quota.as_ref().unwrap().used();
    (used.bytes, used.counted_at) = (LIMIT, Instant::now());
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
    assert!(total(&directory) > LIMIT - first);
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
fn directories_share_what_the_process_may_have_open() {
    let paths = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let budget = Arc::new(Budget::new(Some(3 * 8), 0));
    let [one, other] = paths.each_ref().map(|path| {
        let root = std::fs::File::open(path.path()).unwrap();
        HostDirectory::within(root.into(), HostOptions::default(), &budget).unwrap()
    });
    for name in [b"a", b"b", b"c"] {
        file(&one, name);
        one.unlink(ROOT, name).unwrap();
    }
    let ino = file(&other, b"d").ino;
    assert_eq!(other.unlink(ROOT, b"d"), Err(Errno::NFILE));
    drop(one);
    other.unlink(ROOT, b"d").unwrap();
    assert_eq!(other.attributes(ino).unwrap().nlink, 0);
}

/// It may be closed at any time while it has a name, by other threads too.
#[test]
fn what_loses_its_name_stays_open_though_it_was_closed_before() {
    let path = tempfile::tempdir().unwrap();
    let directory = HostDirectory::open(path.path(), HostOptions::default()).unwrap();
    directory.nodes().limits.open_count = 0;
    let ino = file(&directory, b"a").ino;
    directory.unlink(ROOT, b"a").unwrap();
    assert_eq!(directory.attributes(ino).unwrap().nlink, 0);
    let target = file(&directory, b"b").ino;
    file(&directory, b"c");
    directory.rename((ROOT, b"c"), (ROOT, b"b"), Rename::Replace).unwrap();
    assert_eq!(directory.attributes(target).unwrap().nlink, 0);
}

/// The guest forgets a file while another thread takes its name away.
#[test]
fn what_is_forgotten_meanwhile_is_given_back() {
    let path = tempfile::tempdir().unwrap();
    let directory = limited(path.path());
    let ino = file(&directory, b"a").ino;
    let root = directory.path(ROOT).unwrap();
    let held = directory.hold(ROOT, root.as_fd(), b"a").unwrap().unwrap();
    directory.forget(ino, 1);
    std::fs::remove_file(path.path().join("a")).unwrap();
    directory.let_go(&held, ROOT, b"a");
    assert_eq!(used(&directory), 0);
}

#[test]
fn directories_count_as_large_as_they_are() {
    let path = tempfile::tempdir().unwrap();
    let directory = limited(path.path());
    let sub = directory.create(ROOT, b"sub", &creation(DIRECTORY)).unwrap().ino;
    let other = directory.create(ROOT, b"other", &creation(DIRECTORY)).unwrap().ino;
    let before = used(&directory);
    let name = |number: usize| format!("{number}{}", "x".repeat(200)).into_bytes();
    for number in 0..100 {
        let made = directory.create(sub, &name(number), &creation(REGULAR)).unwrap();
        directory.forget(made.ino, 1);
    }
    used(&directory);
    for number in 0..100 {
        directory.rename((sub, &name(number)), (other, &name(number)), Rename::Replace).unwrap();
    }
    used(&directory);
    for number in 0..100 {
        directory.unlink(other, &name(number)).unwrap();
    }
    assert!(used(&directory) >= before);
    for (ino, name) in [(sub, &b"sub"[..]), (other, b"other")] {
        directory.remove_directory(ROOT, name).unwrap();
        directory.forget(ino, 1);
    }
    assert_eq!(used(&directory), 0);
}

#[test]
fn no_more_names_go_to_another_directory_when_all_is_used() {
    let path = tempfile::tempdir().unwrap();
    let directory = limited(path.path());
    let sub = directory.create(ROOT, b"sub", &creation(DIRECTORY)).unwrap().ino;
    file(&directory, b"a");
    file(&directory, b"b");
    use_up(&directory);
    let to = |parent: Ino, name: &'static [u8]| (parent, name);
    assert_eq!(directory.rename((ROOT, b"a"), to(sub, b"a"), Rename::Replace), Err(Errno::NOSPC));
    directory.rename((ROOT, b"a"), to(ROOT, b"c"), Rename::Replace).unwrap();
    directory.rename((ROOT, b"c"), to(ROOT, b"b"), Rename::Replace).unwrap();
}

fn set(directory: &HostDirectory, ino: Ino, name: &[u8], size: usize) -> Result<(), Errno> {
    directory.set_extended_attribute(ino, name, &vec![1; size], SetAttribute::Any)
}

#[test]
fn extended_attributes_count_once_and_are_given_back() {
    let path = tempfile::tempdir().unwrap();
    let directory = limited(path.path());
    let made = directory.create(ROOT, b"sub", &creation(DIRECTORY)).unwrap().ino;
    let inos = [file(&directory, b"file").ino, made];
    let before = used(&directory);
    for ino in inos {
        for _ in 0..50 {
            set(&directory, ino, b"user.large", 3000).unwrap();
            used(&directory);
        }
        set(&directory, ino, b"user.small", 10).unwrap();
    }
    // The kernel keeps capabilities that it does not give back; the right to set them is root's.
    let nonsense = b"security.capability";
    let _ = directory.set_extended_attribute(made, nonsense, b"", SetAttribute::Any);
    let with_them = used(&directory);
    assert!((before + 6000..before + 20_000).contains(&with_them), "{with_them}");
    directory.remove_extended_attribute(inos[0], b"user.large").unwrap();
    assert!(used(&directory) < with_them);
    directory.unlink(ROOT, b"file").unwrap();
    directory.forget(inos[0], 1);
    directory.forget(inos[1], 1);
    directory.remove_directory(ROOT, b"sub").unwrap();
    assert_eq!(used(&directory), 0);
}

#[test]
fn extended_attributes_have_an_end() {
    let path = tempfile::tempdir().unwrap();
    let directory = limited(path.path());
    let mut count = 0_u64;
    let error = loop {
        let ino = file(&directory, format!("{count}").as_bytes()).ino;
        if let Err(error) = set(&directory, ino, b"user.large", 3000) {
            break error;
        }
        count += 1;
        assert!(count < 1000, "attributes have no end");
    };
    assert_eq!(error, Errno::NOSPC);
    assert!(total(&directory) <= LIMIT && total(&directory) >= count * 3000);
}

/// What the host did on its own does not move the limit for long.
#[test]
fn all_is_counted_anew_before_a_refusal_and_after_much_was_given_back() {
    let path = tempfile::tempdir().unwrap();
    let directory = limited(path.path());
    let quota = directory.quota.as_ref().unwrap();
    file(&directory, b"a");
    use_up(&directory);
    let refused = directory.create(ROOT, b"b", &creation(REGULAR));
    assert_eq!(refused, Err(Errno::NOSPC), "it was counted just now");
    let long_ago = Instant::now().checked_sub(Duration::from_secs(60)).unwrap();
    quota.used().counted_at = long_ago;
    file(&directory, b"b");
    total(&directory);
    quota.used().bytes = 0;
    let open = file(&directory, b"open").ino;
    directory.write_all(open, &[1; 8192]);
    directory.unlink(ROOT, b"open").unwrap();
    for _ in 0..4 {
        let ino = file(&directory, b"large").ino;
        directory.write_all(ino, &vec![1; 64 << 10]);
        let changes = Changes { size: Some(0), ..Changes::default() };
        directory.set_attributes(ino, &changes).unwrap();
        directory.unlink(ROOT, b"large").unwrap();
        directory.forget(ino, 1);
    }
    directory.forget(open, 1);
    total(&directory);
}

impl HostDirectory {
    /// Writes without a quota's say beyond counting.
    fn write_all(&self, ino: Ino, bytes: &[u8]) {
        let file = self.file(ino).unwrap();
        let size = bytes.len() as u64;
        self.charged((ino, file.as_fd()), size, size, || {
            rustix::io::pwrite(&*file, bytes, 0).map(drop)
        })
        .unwrap();
    }
}

/// A copy into a new file may wait for the network.
#[test]
fn others_go_on_while_a_new_file_is_filled() {
    let path = tempfile::tempdir().unwrap();
    let directory = limited(path.path());
    let (copy, other) = (file(&directory, b"copy").ino, file(&directory, b"other").ino);
    let before = used(&directory);
    let (done, is_done) = mpsc::channel();
    let filling = std::thread::spawn(move || {
        let target = directory.file(copy).unwrap();
        let fill = || {
            let left = LIMIT - directory.quota.as_ref().unwrap().used().bytes;
            assert!(left < LIMIT / 2, "room for it is set aside");
            directory.write_all(other, &[1; 4096]);
            file(&directory, b"third");
            rustix::io::pwrite(&*target, &[2; 4096], 0).map(drop)
        };
        directory.charged_alone(target.as_fd(), LIMIT / 2, LIMIT / 2, fill).unwrap();
        done.send(used(&directory)).unwrap();
    });
    let after = is_done.recv_timeout(Duration::from_secs(20)).expect("nobody waits for the other");
    filling.join().unwrap();
    assert!((before + 8192..before + 20_000).contains(&after), "{after}");
}

/// Near the limit, too: it was counted when it was allocated.
#[test]
fn what_was_allocated_can_be_written() {
    let path = tempfile::tempdir().unwrap();
    let directory = limited(path.path());
    let ino = file(&directory, b"a").ino;
    directory.allocate(ino, 0, 0, LIMIT / 2).unwrap();
    let opened = directory.file(ino).unwrap();
    if extents::are_allocated(opened.as_fd(), 0, 4096).is_err() {
        eprintln!("skipped: this file system does not tell what is allocated");
        return;
    }
    use_up(&directory);
    let write = |end: u64| {
        directory.charged((ino, opened.as_fd()), end, 8192, || {
            rustix::io::pwrite(&*opened, &[1; 8192], end - 8192).map(drop)
        })
    };
    for end in (8192..=LIMIT / 2).step_by(8192) {
        write(end).unwrap();
    }
    assert_eq!(write(LIMIT / 2 + 4096), Err(Errno::NOSPC));
    directory.allocate(ino, 3, 4096, 4096).unwrap();
    use_up(&directory);
    assert_eq!(write(8192), Err(Errno::NOSPC), "a hole");
}

/// Deeper than the process may have files open.
#[test]
fn a_deep_tree_is_counted_with_few_descriptors() {
    const DEPTH: u64 = 3000;
    let path = tempfile::tempdir().unwrap();
    let directory = limited(path.path());
    let mut place = sys::open_directory(directory.root.as_fd()).unwrap();
    let mode = rustix::fs::Mode::RWXU;
    for _ in 0..DEPTH {
        rustix::fs::mkdirat(&place, "d", mode).unwrap();
        rustix::fs::mkdirat(&place, "e", mode).unwrap();
        place = sys::open_to_list(place.as_fd(), b"d").unwrap();
    }
    let measure = directory.quota.as_ref().unwrap().measure;
    let sum = scan(&directory.root, &measure).unwrap();
    assert!(sum >= 2 * DEPTH * 256, "{sum}");
    for _ in 0..2000 {
        rustix::fs::mkdirat(&place, "d", mode).unwrap();
        place = sys::open_to_list(place.as_fd(), b"d").unwrap();
    }
    assert_eq!(scan(&directory.root, &measure), Err(Errno::NAMETOOLONG));
}
