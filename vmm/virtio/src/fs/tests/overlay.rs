//! A directory above an image: what is copied, covered and moved.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

use flist_view::filesystem::Errno;

use super::client::{op, u32_at, u32s};
use super::image::{Image, TIME};
use super::*;
use crate::fs::overlay::{MarkPrefix, Overlay, OverlayOptions};

/// `trusted.` attributes are root's.
pub(in crate::fs) fn prefix() -> MarkPrefix {
    if rustix::process::geteuid().is_root() { MarkPrefix::Trusted } else { MarkPrefix::User }
}

pub(super) fn overlay(image: &Image, volume: &Path) -> Client {
    let options = OverlayOptions { marks: prefix(), quota: None };
    Client::new(Overlay::open(image.view(), volume, options).unwrap())
}

fn image() -> Image {
    Image::default()
        .directory("bin")
        .file_with_mode("bin/su", 0o4755, "#!/bin/sh")
        .file("bin/cat", "meow")
        .link("bin/lion", "bin/cat")
        .link("tiger", "bin/cat")
        .directory("etc")
        .directory("etc/empty")
        .directory("etc/ssl")
        .file("etc/ssl/cert", vec![7; 700_000])
        .file("etc/passwd", "root:x:0:0")
        .symlink("link", "etc/passwd")
        .pipe("pipe")
}

struct Rig {
    client: Client,
    image: Image,
    volume: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        let volume = tempfile::tempdir().unwrap();
        Self { client: overlay(&image(), volume.path()), image: image(), volume }
    }

    /// Another process serves the same volume.
    fn reopen(&mut self) {
        self.client = overlay(&self.image, self.volume.path());
    }

    fn above(&self, path: &str) -> PathBuf {
        self.volume.path().join("rw").join(path)
    }

    fn is_whiteout(&self, path: &str) -> bool {
        let metadata = fs::symlink_metadata(self.above(path));
        metadata.is_ok_and(|m| m.file_type().is_char_device() && m.rdev() == 0)
    }

    fn upper_count(&self) -> usize {
        fs::read_dir(self.above("")).unwrap().count()
    }
}

#[test]
fn what_was_not_changed_is_the_image() {
    let mut rig = Rig::new();
    let client = &mut rig.client;
    let cert = client.walk("etc/ssl/cert").unwrap();
    assert_eq!((cert.size, cert.mode, cert.mtime), (700_000, 0o100_644, (1_000_000, 7)));
    assert!(client.read(cert.ino, 0, 1 << 20).unwrap() == vec![7; 700_000]);
    let link = client.walk("link").unwrap().ino;
    assert_eq!(client.readlink(link).unwrap(), "etc/passwd");
    assert_eq!(client.getxattr(cert.ino, "user.image").unwrap(), b"yes");
    assert_eq!(client.names(1).unwrap(), ["bin", "etc", "link", "pipe", "tiger"]);
    assert_eq!(client.walk("bin/lion").unwrap().nlink, 3);
    assert_eq!(client.lookup(1, "missing"), Err(Errno::NOENT));
    client.call(op::FSYNC, cert.ino, &[0; 16]).unwrap();
    assert_eq!(rig.upper_count(), 0, "looking copies nothing");
}

#[test]
fn writing_copies_up_with_everything_and_keeps_the_number() {
    let mut rig = Rig::new();
    let before = rig.client.walk("bin/su").unwrap();
    let directory = rig.client.walk("bin").unwrap();
    rig.client.write(before.ino, 2, b"/usr").unwrap();
    let after = rig.client.getattr(before.ino).unwrap();
    // Whoever writes without `CAP_FSETID` drops the set-id bit.
    let mode = if rustix::process::geteuid().is_root() { before.mode } else { 0o100_755 };
    assert_eq!((after.mode, after.uid, after.gid), (mode, before.uid, before.gid));
    assert_eq!(rig.client.walk("bin/su").unwrap().ino, before.ino);
    assert_eq!(rig.client.read(before.ino, 0, 100).unwrap(), b"#!/usr/sh");
    assert_eq!(rig.client.getxattr(before.ino, "user.image").unwrap(), b"yes");
    assert_eq!(rig.client.walk("bin").unwrap().mtime, directory.mtime, "nothing happened to it");
    let metadata = fs::metadata(rig.above("bin/su")).unwrap();
    assert_eq!((metadata.mode(), metadata.len()), (mode, 9));
    assert_eq!(fs::metadata(rig.above("bin")).unwrap().mode(), 0o040_755);
    let names = rig.client.listxattr(before.ino).unwrap();
    assert_eq!(names, b"user.image\0", "marks are not shown");
    rig.reopen();
    assert_eq!(rig.client.walk("bin/su").unwrap().ino, before.ino);
    assert_eq!(rig.client.walk("bin").unwrap().ino, directory.ino);
    assert_eq!(fs::read_dir(rig.volume.path().join("wd/temporary")).unwrap().count(), 0);
}

#[test]
fn changing_times_alone_keeps_contents() {
    let mut rig = Rig::new();
    for path in ["etc/ssl/cert", "link", "pipe", "etc/ssl"] {
        let before = rig.client.walk(path).unwrap();
        let set = rig.client.setattr(before.ino, 1 << 5, &[(40, &5i64.to_le_bytes())]).unwrap();
        assert_eq!((set.mtime.0, set.mode, set.ino), (5, before.mode, before.ino), "{path}");
        assert_eq!(rig.client.walk(path).unwrap().ino, before.ino, "{path}");
    }
    let cert = rig.client.walk("etc/ssl/cert").unwrap().ino;
    assert!(rig.client.read(cert, 0, 1 << 20).unwrap() == vec![7; 700_000]);
    let link = rig.client.walk("link").unwrap().ino;
    assert_eq!(rig.client.readlink(link).unwrap(), "etc/passwd");
    let metadata = fs::metadata(rig.above("etc/passwd"));
    assert!(metadata.is_err(), "the link was changed, not its target");
}

#[test]
fn truncating_copies_only_what_stays() {
    let mut rig = Rig::new();
    let cert = rig.client.walk("etc/ssl/cert").unwrap().ino;
    assert_eq!(rig.client.truncate(cert, 3).unwrap().size, 3);
    assert_eq!(rig.client.read(cert, 0, 100).unwrap(), [7, 7, 7]);
    assert_eq!(rig.client.truncate(cert, 5).unwrap().size, 5);
    assert_eq!(rig.client.read(cert, 0, 100).unwrap(), [7, 7, 7, 0, 0]);
}

/// There are no handles: whoever read the lower file goes on in the upper one.
#[test]
fn open_files_follow_a_copy_up() {
    let mut rig = Rig::new();
    let passwd = rig.client.walk("etc/passwd").unwrap().ino;
    assert_eq!(rig.client.read(passwd, 0, 4).unwrap(), b"root");
    rig.client.write(passwd, 0, b"user").unwrap();
    assert_eq!(rig.client.read(passwd, 0, 100).unwrap(), b"user:x:0:0");
    let etc = rig.client.walk("etc").unwrap().ino;
    rig.client.unlink(etc, "passwd").unwrap();
    assert_eq!(rig.client.read(passwd, 0, 4).unwrap(), b"user");
    rig.client.write(passwd, 0, b"gone").unwrap();
    assert_eq!(rig.client.getattr(passwd).unwrap().nlink, 0);
}

/// A lower file that was removed while open can still be written.
#[test]
fn a_removed_lower_file_can_be_written() {
    let mut rig = Rig::new();
    let etc = rig.client.walk("etc").unwrap().ino;
    let passwd = rig.client.lookup(etc, "passwd").unwrap().ino;
    rig.client.unlink(etc, "passwd").unwrap();
    assert_eq!(rig.client.getattr(passwd).unwrap().nlink, 0);
    rig.client.write(passwd, 0, b"user").unwrap();
    assert_eq!(rig.client.read(passwd, 0, 100).unwrap(), b"user:x:0:0");
    assert_eq!(rig.client.lookup(etc, "passwd"), Err(Errno::NOENT));
}

#[test]
fn removing_leaves_whiteouts_and_making_replaces_them() {
    let mut rig = Rig::new();
    let etc = rig.client.walk("etc").unwrap().ino;
    rig.client.unlink(etc, "passwd").unwrap();
    assert!(rig.is_whiteout("etc/passwd"));
    assert_eq!(rig.client.unlink(etc, "passwd"), Err(Errno::NOENT));
    assert_eq!(rig.client.names(etc).unwrap(), ["empty", "ssl"]);
    assert_eq!(rig.client.rmdir(etc, "ssl"), Err(Errno::NOTEMPTY));
    assert_eq!(rig.client.rmdir(etc, "empty"), Ok(()));
    let ssl = rig.client.lookup(etc, "ssl").unwrap().ino;
    rig.client.unlink(ssl, "cert").unwrap();
    rig.client.rmdir(etc, "ssl").unwrap();
    assert!(rig.is_whiteout("etc/ssl") && rig.is_whiteout("etc/empty"));
    assert_eq!(rig.client.names(etc).unwrap(), [""; 0]);
    // A directory over the whiteout of another one: nothing shows through.
    let ssl = rig.client.mkdir(etc, "ssl").unwrap().ino;
    assert_eq!(rig.client.names(ssl).unwrap(), [""; 0]);
    let passwd = rig.client.touch(etc, "passwd").unwrap();
    assert_eq!((passwd.size, passwd.mode), (0, 0o100_644));
    rig.client.unlink(etc, "passwd").unwrap();
    rig.client.symlink(etc, "passwd", "x").unwrap();
    for _ in 0..2 {
        assert_eq!(rig.client.walk("etc/passwd").unwrap().mode, 0o120_777);
        let ssl = rig.client.walk("etc/ssl").unwrap().ino;
        assert_eq!(rig.client.names(ssl).unwrap(), [""; 0]);
        rig.reopen();
    }
    rig.client.rmdir(1, "etc").unwrap_err();
    let null = rig.client.mknod_device(1, "whiteout", 0o020_600, 0);
    assert_eq!(null, Err(Errno::PERM), "a guest cannot make what covers");
}

#[test]
fn files_are_renamed_over_anything() {
    let mut rig = Rig::new();
    let etc = rig.client.walk("etc").unwrap().ino;
    let bin = rig.client.walk("bin").unwrap().ino;
    let passwd = rig.client.lookup(etc, "passwd").unwrap().ino;
    assert_eq!(rig.client.rename((etc, "passwd"), (bin, "su"), 1), Err(Errno::EXIST));
    rig.client.rename((etc, "passwd"), (bin, "su"), 0).unwrap();
    assert!(rig.is_whiteout("etc/passwd"));
    assert_eq!(rig.client.lookup(bin, "su").unwrap().ino, passwd);
    assert_eq!(rig.client.lookup(etc, "passwd"), Err(Errno::NOENT));
    // As dpkg does: a new file is made beside, and takes the old one's place.
    let new = rig.client.touch(etc, "passwd.new").unwrap().ino;
    rig.client.write(new, 0, b"new").unwrap();
    rig.client.rename((etc, "passwd.new"), (etc, "passwd"), 0).unwrap();
    rig.client.rename((bin, "su"), (etc, "passwd"), 2).unwrap();
    rig.reopen();
    let su = rig.client.walk("bin/su").unwrap().ino;
    assert_eq!(rig.client.read(su, 0, 100).unwrap(), b"new");
    assert_eq!(rig.client.walk("etc/passwd").unwrap().ino, passwd);
    let etc = rig.client.walk("etc").unwrap().ino;
    assert_eq!(rig.client.rename((etc, "passwd"), (etc, "ssl"), 0), Err(Errno::ISDIR));
    assert_eq!(rig.client.rename((etc, "ssl"), (etc, "passwd"), 0), Err(Errno::NOTDIR));
    assert_eq!(rig.client.rename((1, "bin"), (etc, "ssl"), 0), Err(Errno::NOTEMPTY));
    assert_eq!(rig.client.rename((1, "etc"), (etc, "below"), 0), Err(Errno::INVAL));
}

/// Nothing in a directory is copied when it moves: it says where its contents are.
#[test]
fn lower_directories_are_renamed() {
    let mut rig = Rig::new();
    let ssl = rig.client.walk("etc/ssl").unwrap().ino;
    let cert = rig.client.walk("etc/ssl/cert").unwrap().ino;
    let etc = rig.client.walk("etc").unwrap().ino;
    rig.client.rename((etc, "ssl"), (1, "moved"), 0).unwrap();
    assert!(rig.is_whiteout("etc/ssl"));
    assert_eq!(fs::read_dir(rig.above("moved")).unwrap().count(), 0);
    assert!(rig.client.read(cert, 0, 10).unwrap() == [7; 10]);
    rig.client.rename((1, "moved"), (1, "again"), 0).unwrap();
    rig.client.rename((1, "etc"), (1, "conf"), 0).unwrap();
    // Over the place of the one that was moved away.
    rig.client.mkdir(1, "etc").unwrap();
    for _ in 0..2 {
        assert_eq!(rig.client.walk("again").unwrap().ino, ssl);
        assert_eq!(rig.client.walk("again/cert").unwrap().ino, cert);
        assert_eq!(rig.client.walk("conf/ssl"), Err(Errno::NOENT));
        assert!(rig.client.walk("conf/passwd").is_ok());
        let etc = rig.client.walk("etc").unwrap().ino;
        assert_eq!(rig.client.names(etc).unwrap(), [""; 0]);
        assert_eq!(
            rig.client.names(1).unwrap(),
            ["again", "bin", "conf", "etc", "link", "pipe", "tiger"]
        );
        rig.reopen();
    }
    // And back, over the empty directory that took its place.
    let cert = rig.client.walk("conf/passwd").unwrap().ino;
    rig.client.rename((1, "conf"), (1, "etc"), 0).unwrap();
    rig.client.write(cert, 0, b"R").unwrap();
    rig.reopen();
    let passwd = rig.client.walk("etc/passwd").unwrap().ino;
    assert_eq!(rig.client.read(passwd, 0, 4).unwrap(), b"Root");
    assert_eq!(rig.client.walk("etc/ssl"), Err(Errno::NOENT));
}

/// A directory that shows nothing but has whiteouts in it can be replaced.
#[test]
fn a_directory_replaces_one_full_of_whiteouts() {
    let mut rig = Rig::new();
    let ssl = rig.client.walk("etc/ssl").unwrap().ino;
    rig.client.unlink(ssl, "cert").unwrap();
    let new = rig.client.mkdir(1, "new").unwrap().ino;
    rig.client.touch(new, "file").unwrap();
    let etc = rig.client.walk("etc").unwrap().ino;
    rig.client.rename((1, "new"), (etc, "ssl"), 0).unwrap();
    for _ in 0..2 {
        let ssl = rig.client.walk("etc/ssl").unwrap().ino;
        assert_eq!(rig.client.names(ssl).unwrap(), ["file"]);
        assert_eq!(rig.client.lookup(1, "new"), Err(Errno::NOENT));
        rig.reopen();
    }
}

#[test]
fn hard_links_of_the_image_stay_one_file() {
    let mut rig = Rig::new();
    let bin = rig.client.walk("bin").unwrap().ino;
    let cat = rig.client.walk("bin/cat").unwrap().ino;
    rig.client.write(cat, 0, b"purr").unwrap();
    for _ in 0..2 {
        for path in ["bin/cat", "bin/lion", "tiger"] {
            let attr = rig.client.walk(path).unwrap();
            assert_eq!((attr.ino, attr.nlink), (cat, 3), "{path}");
            assert_eq!(rig.client.read(attr.ino, 0, 100).unwrap(), b"purr", "{path}");
        }
        rig.reopen();
    }
    let bin_again = rig.client.walk("bin").unwrap().ino;
    assert_eq!(bin_again, bin);
    rig.client.walk("bin/cat").unwrap();
    rig.client.rename((bin, "lion"), (1, "lion"), 0).unwrap();
    assert_eq!(rig.client.walk("lion").unwrap().nlink, 3);
    assert_eq!(rig.client.link(cat, 1, "fourth").unwrap().nlink, 4);
    for (left, name) in [(3, "tiger"), (2, "fourth"), (1, "lion")] {
        rig.client.unlink(1, name).unwrap();
        assert_eq!(rig.client.getattr(cat).unwrap().nlink, left);
    }
    assert!(rig.is_whiteout("tiger") && rig.is_whiteout("bin/lion"));
    let links = || fs::read_dir(rig.volume.path().join("wd/links")).unwrap().count();
    assert_eq!(links(), 1);
    rig.client.unlink(bin, "cat").unwrap();
    assert_eq!((links(), rig.client.getattr(cat).unwrap().nlink), (0, 0));
}

#[test]
fn removed_links_of_the_image_are_counted() {
    let mut rig = Rig::new();
    let cat = rig.client.walk("bin/cat").unwrap().ino;
    rig.client.unlink(1, "tiger").unwrap();
    assert_eq!(rig.client.getattr(cat).unwrap().nlink, 2);
    rig.client.write(cat, 0, b"purr").unwrap();
    assert_eq!(rig.client.walk("bin/lion").unwrap().nlink, 2);
}

#[test]
fn listings_merge_and_resume_anywhere() {
    let mut rig = Rig::new();
    let etc = rig.client.walk("etc").unwrap().ino;
    rig.client.unlink(etc, "passwd").unwrap();
    let ssl = rig.client.lookup(etc, "ssl").unwrap().ino;
    for i in 0..400 {
        rig.client.touch(etc, &format!("{i:03}")).unwrap();
    }
    let mut expected: Vec<String> = (0..400).map(|i| format!("{i:03}")).collect();
    expected.extend(["empty".into(), "ssl".into()]);
    for (is_plus, size) in [(false, 200), (true, 400), (false, 4096), (true, 4096)] {
        let list = rig.client.list(etc, is_plus, size).unwrap();
        let mut names: Vec<&str> = list.iter().map(|(name, ..)| name.as_str()).collect();
        names.retain(|name| !name.starts_with('.'));
        names.sort_unstable();
        assert_eq!(names, expected);
        let found = list.iter().find(|(name, ..)| name == "ssl").unwrap();
        assert_eq!(found.2, ssl);
    }
    // Copied up in the middle of being listed.
    let bin = rig.client.walk("bin").unwrap().ino;
    let first = rig
        .client
        .call_with(op::READDIR, bin, &super::client::read_arguments(0, 100), &[], 100)
        .unwrap();
    let (name, offset) = last(&first);
    rig.client.touch(bin, "aaa").unwrap();
    let rest =
        rig.client.call(op::READDIR, bin, &super::client::read_arguments(offset, 4096)).unwrap();
    let mut names: Vec<String> =
        all(&first).into_iter().chain(all(&rest)).map(|(n, _)| n).collect();
    names.sort();
    names.dedup();
    assert_eq!(names, [".", "..", "aaa", "cat", "lion", "su"], "after {name}");
}

fn all(mut body: &[u8]) -> Vec<(String, u64)> {
    let mut entries = Vec::new();
    while !body.is_empty() {
        let size = u32_at(body, 16) as usize;
        let name = String::from_utf8(body[24..24 + size].to_vec()).unwrap();
        entries.push((name, super::client::u64_at(body, 8)));
        body = &body[(24 + size).next_multiple_of(8)..];
    }
    entries
}

fn last(body: &[u8]) -> (String, u64) {
    all(body).pop().unwrap()
}

#[test]
fn marks_are_neither_seen_nor_set() {
    let mut rig = Rig::new();
    let etc = rig.client.walk("etc").unwrap().ino;
    rig.client.rename((1, "etc"), (1, "conf"), 0).unwrap();
    let prefix = if prefix() == MarkPrefix::Trusted { "trusted" } else { "user" };
    for mark in ["opaque", "redirect", "vmm.origin", "anything"] {
        let name = format!("{prefix}.overlay.{mark}");
        assert_eq!(rig.client.setxattr(etc, &name, b"y"), Err(Errno::OPNOTSUPP));
        assert_eq!(rig.client.getxattr(etc, &name), Err(Errno::OPNOTSUPP));
    }
    assert_eq!(rig.client.listxattr(etc).unwrap(), b"");
    let passwd = rig.client.walk("conf/passwd").unwrap().ino;
    rig.client.call(op::REMOVEXATTR, passwd, b"user.image\0").unwrap();
    assert_eq!(rig.client.getxattr(passwd, "user.image"), Err(Errno::NODATA));
    assert_eq!(rig.client.call(op::REMOVEXATTR, passwd, b"user.no\0"), Err(Errno::NODATA));
}

#[test]
fn leftovers_of_a_crash_are_cleared() {
    let mut rig = Rig::new();
    let temporary = rig.volume.path().join("wd/temporary");
    fs::create_dir(temporary.join("#7")).unwrap();
    fs::write(temporary.join("#7/x"), "").unwrap();
    fs::write(temporary.join("#0"), "half").unwrap();
    rig.reopen();
    assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0);
    let passwd = rig.client.walk("etc/passwd").unwrap().ino;
    rig.client.write(passwd, 0, b"user").unwrap();
}

#[test]
fn snapshots_find_everything_again() {
    let mut rig = Rig::new();
    let ids: Vec<u64> = ["etc/ssl/cert", "bin/cat", "link", "etc/ssl"]
        .map(|path| rig.client.walk(path).unwrap().ino)
        .into();
    rig.client.write(ids[1], 0, b"purr").unwrap();
    rig.client.setattr(ids[2], 1 << 5, &[]).unwrap();
    let etc = rig.client.walk("etc").unwrap().ino;
    rig.client.rename((etc, "ssl"), (1, "moved"), 0).unwrap();
    let new = rig.client.touch(ids[3], "new").unwrap().ino;
    let state = crate::Device::save(&rig.client.device).unwrap();
    rig.reopen();
    crate::Device::restore(&mut rig.client.device, state.clone()).unwrap();
    assert_eq!(rig.client.read(ids[0], 0, 3).unwrap(), [7; 3]);
    assert_eq!(rig.client.read(ids[1], 0, 9).unwrap(), b"purr");
    assert_eq!(rig.client.readlink(ids[2]).unwrap(), "etc/passwd");
    assert_eq!(rig.client.write(new, 0, b"x").unwrap(), 1);
    assert_eq!(rig.client.names(ids[3]).unwrap(), ["cert", "new"]);
    rig.client.unlink(ids[3], "new").unwrap();
    assert!(crate::Device::save(&rig.client.device).unwrap_err().to_string().contains("deleted"));
    rig.reopen();
    let refused = crate::Device::restore(&mut rig.client.device, state).unwrap_err().to_string();
    assert!(refused.contains("new"), "{refused}");
}

#[test]
fn a_file_without_a_name_and_a_seek_work_in_both_layers() {
    let mut rig = Rig::new();
    let cert = rig.client.walk("etc/ssl/cert").unwrap().ino;
    let seek = |whence: u32, offset: u64| {
        [&[0; 8][..], &offset.to_le_bytes(), &u32s(&[whence, 0])].concat()
    };
    let at = |body: Vec<u8>| super::client::u64_at(&body, 0);
    assert_eq!(rig.client.call(op::LSEEK, cert, &seek(3, 5)).map(at), Ok(5));
    assert_eq!(rig.client.call(op::LSEEK, cert, &seek(4, 5)).map(at), Ok(700_000));
    assert_eq!(rig.client.call(op::LSEEK, cert, &seek(3, 700_000)), Err(Errno::NXIO));
    let arguments = [&u32s(&[2, 0o600, 0, 0]), &b"/\0"[..]].concat();
    let etc = rig.client.walk("etc").unwrap().ino;
    match rig.client.call(op::TMPFILE, etc, &arguments) {
        Err(Errno::OPNOTSUPP) => eprintln!("skipped: no O_TMPFILE on this file system"),
        body => {
            let file = at(body.unwrap());
            rig.client.write(file, 0, b"unnamed").unwrap();
            rig.client.unlink(etc, "passwd").unwrap();
            rig.client.link(file, etc, "passwd").unwrap();
            assert_eq!(fs::read(rig.above("etc/passwd")).unwrap(), b"unnamed");
        }
    }
}

#[test]
fn the_root_looks_like_the_images() {
    let rig = Rig::new();
    let metadata = fs::metadata(rig.above("")).unwrap();
    assert_eq!(metadata.mode(), 0o040_755);
    assert_eq!(TIME.seconds, 1_000_000);
}
