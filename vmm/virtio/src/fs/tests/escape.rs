//! Attempts to leave the directory that is served, or to make the host open what it should not.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use flist_view::filesystem::Errno;

use super::client::{c, op, u32s};
use super::*;

#[test]
fn names_that_are_no_names_are_refused() {
    let outer = tempfile::tempdir().unwrap();
    fs::write(outer.path().join("secret"), "secret").unwrap();
    let inner = outer.path().join("inner");
    fs::create_dir(&inner).unwrap();
    let mut client = host(&inner);
    let file = client.touch(1, "file").unwrap().ino;
    for name in ["..", ".", "../secret", "/etc/passwd", "a/b", "", "file/"] {
        assert_eq!(client.call(op::LOOKUP, 1, &c(name)), Err(Errno::INVAL), "{name:?}");
        assert_eq!(client.mkdir(1, name), Err(Errno::INVAL), "{name:?}");
        assert_eq!(client.touch(1, name), Err(Errno::INVAL), "{name:?}");
        assert_eq!(client.unlink(1, name), Err(Errno::INVAL), "{name:?}");
        assert_eq!(client.rmdir(1, name), Err(Errno::INVAL), "{name:?}");
        assert_eq!(client.symlink(1, name, "x"), Err(Errno::INVAL), "{name:?}");
        assert_eq!(client.link(file, 1, name), Err(Errno::INVAL), "{name:?}");
        assert_eq!(client.rename((1, name), (1, "x"), 0), Err(Errno::INVAL), "{name:?}");
        assert_eq!(client.rename((1, "file"), (1, name), 0), Err(Errno::INVAL), "{name:?}");
    }
    for name in [&b"fi\0le\0"[..], b"file", b"file\0\0", b""] {
        assert_eq!(client.call(op::LOOKUP, 1, name), Err(Errno::INVAL), "{name:?}");
    }
    assert_eq!(client.names(1).unwrap(), ["file"]);
}

#[test]
fn links_are_never_followed() {
    let outer = tempfile::tempdir().unwrap();
    fs::create_dir(outer.path().join("other")).unwrap();
    fs::write(outer.path().join("secret"), "secret").unwrap();
    let inner = outer.path().join("inner");
    fs::create_dir(&inner).unwrap();
    let mut client = host(&inner);
    let link =
        client.symlink(1, "link", outer.path().join("secret").to_str().unwrap()).unwrap().ino;
    assert_eq!(client.read(link, 0, 100), Err(Errno::INVAL));
    assert_eq!(client.write(link, 0, b"x"), Err(Errno::INVAL));
    assert_eq!(client.truncate(link, 0), Err(Errno::INVAL));
    let folder = client.symlink(1, "folder", "../other").unwrap().ino;
    assert_eq!(client.lookup(folder, "x"), Err(Errno::NOTDIR));
    assert_eq!(client.touch(folder, "x"), Err(Errno::NOTDIR));
    assert_eq!(client.list(folder, false, 4096), Err(Errno::NOTDIR));
    assert_eq!(fs::read(outer.path().join("secret")).unwrap(), b"secret");
    assert_eq!(fs::read_dir(outer.path().join("other")).unwrap().count(), 0);
}

/// A directory that the guest knows is exchanged for a link to the outside, and back, while it works
/// in it; and the descriptors that stand for it are closed all the time.
#[test]
fn a_directory_that_turns_into_a_link_leads_nowhere() {
    let outer = tempfile::tempdir().unwrap();
    let path = |name: &str| outer.path().join(name);
    fs::create_dir_all(path("inner/sub")).unwrap();
    fs::create_dir(path("outside")).unwrap();
    fs::write(path("outside/file"), "secret").unwrap();
    fs::write(path("inner/sub/file"), "inside").unwrap();
    symlink(path("outside"), path("inner/link")).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let exchange = rustix::fs::RenameFlags::EXCHANGE;
            let (a, b) = (path("inner/sub"), path("inner/link"));
            while !stop.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(rustix::fs::CWD, &a, rustix::fs::CWD, &b, exchange)
                    .unwrap();
            }
        });
        let begun = Instant::now();
        let (mut tries, mut reads) = (0u32, 0u32);
        while begun.elapsed() < Duration::from_millis(600) {
            tries += 1;
            // A new one each time, so that nothing is open.
            let options = HostOptions { is_shared: true, ..HostOptions::default() };
            let mut client = host_with(&path("inner"), options);
            let Ok(sub) = client.lookup(1, "sub") else { continue };
            let _ = client.touch(sub.ino, "made");
            let _ = client.unlink(sub.ino, "made");
            let Ok(file) = client.lookup(sub.ino, "file") else { continue };
            if let Ok(contents) = client.read(file.ino, 0, 100) {
                assert_eq!(contents, b"inside");
                reads += 1;
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(tries > 0, "{reads} of {tries} read");
    });
    assert_eq!(fs::read(path("outside/file")).unwrap(), b"secret");
    assert_eq!(fs::read_dir(path("outside")).unwrap().count(), 1);
}

/// A name that was a file becomes a pipe, which would block whoever opens it.
#[test]
fn a_file_that_turns_into_a_pipe_is_not_opened() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    fs::write(&path, "contents").unwrap();
    let mut client =
        host_with(directory.path(), HostOptions { is_shared: true, ..HostOptions::default() });
    let file = client.lookup(1, "file").unwrap().ino;
    fs::remove_file(&path).unwrap();
    let kind = rustix::fs::FileType::Fifo;
    let mode = rustix::fs::Mode::RWXU;
    rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0).unwrap();
    assert!(matches!(client.read(file, 0, 10), Err(Errno::STALE | Errno::INVAL)));
    let pipe = client.lookup(1, "file").unwrap();
    assert_eq!(pipe.mode & 0o170_000, 0o010_000);
    let hard = client.link(pipe.ino, 1, "hard").unwrap().ino;
    assert_eq!(client.read(hard, 0, 10), Err(Errno::INVAL));
    assert_eq!(client.write(hard, 0, b"x"), Err(Errno::INVAL));
}

#[test]
fn mounts_below_are_not_there() {
    if !is_root("mounts_below_are_not_there") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("mounted")).unwrap();
    // This process sees a mount that is always there: the root of a directory which holds it.
    let mut client = host(Path::new("/"));
    assert_eq!(client.lookup(1, "proc"), Err(Errno::XDEV));
    let names: Vec<String> =
        client.list(1, true, 1 << 16).unwrap().into_iter().map(|(name, ..)| name).collect();
    assert!(!names.contains(&"proc".to_owned()) && !names.is_empty());
    assert_eq!(client.rename((1, "proc"), (1, "x"), 0), Err(Errno::XDEV));
    let made = client.call(op::MKDIR, 1, &[&u32s(&[0, 0]), &b"proc\0"[..]].concat());
    assert_eq!(made, Err(Errno::EXIST));
}
