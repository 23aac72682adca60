//! Several request queues are several threads: nothing may be lost between them, nor wait for ever.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use flist_view::filesystem::{
    Attributes, Changes, Creation, Errno, FileSystem, Ino, Listing, ROOT, Rename,
};

use super::image::Image;
use super::overlay::prefix;
use super::*;
use crate::fs::overlay::{Overlay, OverlayOptions};

const THREAD_COUNT: u32 = 4;
const ROUND_COUNT: u32 = 60;
/// Far longer than it takes.
const PATIENCE: Duration = Duration::from_secs(60);

fn new_file() -> Creation {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    Creation { mode: 0o100_644, rdev: (0, 0), uid: uid.as_raw(), gid: gid.as_raw() }
}

/// Errors of whoever came too late; all others are wrong.
fn late<T>(result: Result<T, Errno>) -> Option<T> {
    let errors = [Errno::NOENT, Errno::EXIST, Errno::STALE, Errno::NOTEMPTY];
    match result {
        Ok(value) => Some(value),
        Err(error) if errors.contains(&error) => None,
        Err(error) => panic!("{error}"),
    }
}

/// Looks up, changes, moves and removes what the others do, too.
fn work(file_system: &impl FileSystem, seed: u32) {
    for round in 0..ROUND_COUNT {
        let name = format!("f{}", (seed + round) % 5);
        let other = format!("f{}", (seed * 3 + round) % 5);
        let directory = late(file_system.lookup(ROOT, b"d")).map(|found| found.ino);
        let parent = if round % 3 == 0 { directory.unwrap_or(ROOT) } else { ROOT };
        if let Some(found) = late(file_system.lookup(parent, name.as_bytes())) {
            let changes = Changes { size: Some(u64::from(round)), ..Changes::default() };
            late(file_system.set_attributes(found.ino, &changes));
            late(file_system.attributes(found.ino));
            file_system.forget(found.ino, 1);
        }
        let forget = |made: Attributes| file_system.forget(made.ino, 1);
        let (name, other) = (name.as_bytes(), other.as_bytes());
        match (seed + round) % 4 {
            0 => late(file_system.create(parent, name, &new_file())).map_or((), forget),
            1 => late(file_system.unlink(parent, name)).unwrap_or_default(),
            2 => late(file_system.rename((ROOT, name), (parent, other), Rename::Replace))
                .unwrap_or_default(),
            _ => list(file_system, parent),
        }
        if let Some(directory) = directory {
            file_system.forget(directory, 1);
        }
    }
}

fn list(file_system: &impl FileSystem, directory: Ino) {
    let mut found = Vec::new();
    late(file_system.read_directory(directory, 0, Listing::Counted, &mut |entry| {
        if !matches!(entry.name, b"." | b"..") {
            found.push(entry.attributes.ino);
        }
        true
    }));
    found.into_iter().for_each(|ino| file_system.forget(ino, 1));
}

fn run(file_system: impl FileSystem + 'static) {
    let file_system = Arc::new(file_system);
    let (done, all) = mpsc::channel();
    for seed in 0..THREAD_COUNT {
        let (file_system, done) = (Arc::clone(&file_system), done.clone());
        thread::spawn(move || {
            work(&*file_system, seed);
            done.send(()).unwrap();
        });
    }
    drop(done);
    for _ in 0..THREAD_COUNT {
        all.recv_timeout(PATIENCE).expect("every thread ends, and none panics");
    }
    list(&*file_system, ROOT);
}

#[test]
fn an_overlay_serves_several_threads() {
    let mut image = Image::default().directory("d");
    for i in 0..5 {
        image = image.file(&format!("f{i}"), vec![1; 10_000]).file(&format!("d/f{i}"), "below");
    }
    let volume = tempfile::tempdir().unwrap();
    let options = OverlayOptions { marks: prefix(), quota: None };
    run(Overlay::open(image.view(), volume.path(), options).unwrap());
}

#[test]
fn a_host_directory_serves_several_threads() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("d")).unwrap();
    run(HostDirectory::open(directory.path(), HostOptions::default()).unwrap());
}
