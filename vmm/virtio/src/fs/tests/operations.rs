//! Every operation, on a directory of the host.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use flist_view::filesystem::Errno;

use super::client::{op, u32_at, u32s, u64_at};
use super::*;

const YEAR_S: u64 = 365 * 24 * 3600;

#[test]
fn lookup_and_getattr_show_what_the_host_has() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    fs::write(&path, "contents").unwrap();
    let mut client = host(directory.path());
    let attr = client.lookup(1, "file").unwrap();
    let host = fs::metadata(&path).unwrap();
    assert_eq!((attr.ino, attr.size, attr.valid), (host.ino(), 8, YEAR_S));
    assert_eq!((attr.mode, attr.nlink, attr.sectors), (host.mode(), 1, host.blocks()));
    assert_eq!((attr.uid, attr.gid), (host.uid(), host.gid()));
    assert_eq!(attr.mtime, (host.mtime(), u32::try_from(host.mtime_nsec()).unwrap()));
    assert_eq!(client.getattr(attr.ino).unwrap(), attr);
    assert_eq!(client.lookup(1, "missing"), Err(Errno::NOENT));
    assert_eq!(client.lookup(attr.ino, "x"), Err(Errno::NOTDIR));
    assert_eq!(client.getattr(1).unwrap().ino, 1);
    assert_eq!(client.getattr(77), Err(Errno::STALE));
}

#[test]
fn files_are_made_written_read_cut_and_removed() {
    let directory = tempfile::tempdir().unwrap();
    let mut client = host(directory.path());
    let file = client.touch(1, "file").unwrap().ino;
    assert_eq!(client.touch(1, "file"), Err(Errno::EXIST));
    let contents: Vec<u8> = (0..300_000u32).map(|i| (i % 253) as u8).collect();
    assert_eq!(client.write(file, 5, &contents).unwrap(), 300_000);
    let read = client.read(file, 0, 1 << 20).unwrap();
    assert!(read[..5] == [0; 5] && read[5..] == contents);
    assert_eq!(client.read(file, 300_000, 100).unwrap(), contents[299_995..]);
    assert_eq!(client.read(file, 300_005, 100).unwrap(), b"");
    assert_eq!(client.read(file, u64::MAX, 100).unwrap(), b"");
    assert_eq!(client.write(file, u64::MAX, b"x"), Err(Errno::INVAL));
    assert_eq!(client.truncate(file, 7).unwrap().size, 7);
    assert_eq!(fs::read(directory.path().join("file")).unwrap(), [0, 0, 0, 0, 0, 0, 1]);
    client.unlink(1, "file").unwrap();
    assert_eq!(client.unlink(1, "file"), Err(Errno::NOENT));
    // Still open in the guest.
    assert_eq!(client.write(file, 0, b"x").unwrap(), 1);
    assert_eq!(
        (client.read(file, 0, 1).unwrap(), client.getattr(file).unwrap().nlink),
        (b"x".into(), 0)
    );
    client.forget(file, 1);
    assert_eq!(client.getattr(file), Err(Errno::STALE));
}

#[test]
fn directories_are_made_listed_and_removed() {
    let directory = tempfile::tempdir().unwrap();
    let mut client = host(directory.path());
    let sub = client.mkdir(1, "sub").unwrap();
    assert_eq!(sub.mode, 0o040_755);
    for i in 0..300 {
        client.touch(sub.ino, &format!("{i:03}")).unwrap();
    }
    assert_eq!(client.rmdir(1, "sub"), Err(Errno::NOTEMPTY));
    assert_eq!(client.unlink(1, "sub"), Err(Errno::ISDIR));
    let expected: Vec<String> = (0..300).map(|i| format!("{i:03}")).collect();
    assert_eq!(client.names(sub.ino).unwrap(), expected);
    for is_plus in [false, true] {
        let list = client.list(sub.ino, is_plus, 1000).unwrap();
        assert_eq!(list.len(), 302);
        for (name, node, ino) in list {
            match &*name {
                "." => assert_eq!((node, ino), (0, sub.ino)),
                ".." => assert_eq!((node, ino), (0, 1)),
                _ if is_plus => assert_eq!(node, ino),
                _ => assert_eq!(node, 0),
            }
        }
    }
    for name in expected {
        client.unlink(sub.ino, &name).unwrap();
    }
    assert_eq!(client.names(sub.ino).unwrap(), [""; 0]);
    client.rmdir(1, "sub").unwrap();
    assert_eq!(client.rmdir(1, "sub"), Err(Errno::NOENT));
}

/// What a listing with attributes told counts as looked up, entry by entry.
#[test]
fn a_listing_counts_what_was_taken_and_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let mut client = host(directory.path());
    for i in 0..50 {
        fs::write(directory.path().join(format!("{i:02}")), "").unwrap();
    }
    let list = client.list(1, true, 4096).unwrap();
    for (_, node, _) in list.into_iter().filter(|(name, ..)| !name.starts_with('.')) {
        assert!(client.getattr(node).is_ok());
        client.forget(node, 1);
        assert_eq!(client.getattr(node), Err(Errno::STALE));
    }
}

#[test]
fn a_shrinking_directory_is_listed_whole() {
    let directory = tempfile::tempdir().unwrap();
    let mut client = host(directory.path());
    for i in 0..500 {
        fs::write(directory.path().join(format!("{i:03}")), "").unwrap();
    }
    // As `rm -r` does it: list some, remove them, go on from there.
    let (mut offset, mut count) = (0, 0);
    loop {
        let arguments = super::client::read_arguments(offset, 1000);
        let body = client.call_with(op::READDIR, 1, &arguments, &[40], 1000).unwrap();
        if body.is_empty() {
            break;
        }
        let mut rest = &body[..];
        while !rest.is_empty() {
            let size = u32_at(rest, 16) as usize;
            let name = String::from_utf8(rest[24..24 + size].to_vec()).unwrap();
            offset = u64_at(rest, 8);
            rest = &rest[(24 + size).next_multiple_of(8)..];
            if !name.starts_with('.') {
                client.unlink(1, &name).unwrap();
                count += 1;
            }
        }
    }
    assert_eq!((count, client.names(1).unwrap().len()), (500, 0));
}

#[test]
fn links_of_both_kinds() {
    let directory = tempfile::tempdir().unwrap();
    let mut client = host(directory.path());
    let file = client.touch(1, "file").unwrap().ino;
    let linked = client.link(file, 1, "hard").unwrap();
    assert_eq!((linked.ino, linked.nlink), (file, 2));
    assert_eq!(client.link(file, 1, "hard"), Err(Errno::EXIST));
    let soft = client.symlink(1, "soft", "/etc/../passwd").unwrap();
    assert_eq!(
        (soft.mode, client.readlink(soft.ino).unwrap()),
        (0o120_777, "/etc/../passwd".into())
    );
    assert_eq!(client.readlink(file), Err(Errno::INVAL));
    assert_eq!(client.link(soft.ino, 1, "soft too").unwrap().ino, soft.ino);
    assert!(directory.path().join("soft too").is_symlink());
    client.unlink(1, "file").unwrap();
    // Found by the other name from now on.
    assert_eq!(client.lookup(1, "hard").unwrap().nlink, 1);
    assert_eq!(client.write(file, 0, b"x").unwrap(), 1);
    let long = "x".repeat(4096);
    assert_eq!(client.symlink(1, "long", &long), Err(Errno::NAMETOOLONG));
    assert!(client.symlink(1, "long", &long[1..]).is_ok());
}

#[test]
fn renames_replace_refuse_or_exchange() {
    let directory = tempfile::tempdir().unwrap();
    let mut client = host(directory.path());
    let sub = client.mkdir(1, "sub").unwrap().ino;
    let (a, b) = (client.touch(1, "a").unwrap().ino, client.touch(sub, "b").unwrap().ino);
    assert_eq!(client.rename((1, "a"), (sub, "b"), 1), Err(Errno::EXIST));
    client.rename((1, "a"), (sub, "b"), 2).unwrap();
    assert_eq!((client.lookup(1, "a").unwrap().ino, client.lookup(sub, "b").unwrap().ino), (b, a));
    client.rename((1, "a"), (sub, "b"), 0).unwrap();
    assert_eq!(client.lookup(1, "a"), Err(Errno::NOENT));
    assert_eq!(client.lookup(sub, "b").unwrap().ino, b);
    assert_eq!(client.getattr(a).unwrap().nlink, 0, "replaced, but known");
    client.rename((1, "sub"), (1, "moved"), 1).unwrap();
    client.write(b, 0, b"found again").unwrap();
    assert_eq!(fs::read(directory.path().join("moved/b")).unwrap(), b"found again");
    assert_eq!(client.rename((1, "moved"), (sub, "below itself"), 0), Err(Errno::INVAL));
    assert_eq!(client.rename((1, "moved"), (1, "x"), 4), Err(Errno::INVAL), "whiteouts are ours");
    let old = [&1u64.to_le_bytes()[..], b"moved\0x\0"].concat();
    client.call(op::RENAME, 1, &old).unwrap();
    assert_eq!(client.names(1).unwrap(), ["x"]);
}

#[test]
fn attributes_are_set() {
    let directory = tempfile::tempdir().unwrap();
    let mut client = host(directory.path());
    let file = client.touch(1, "file").unwrap().ino;
    assert_eq!(client.chmod(file, 0o106_711).unwrap().mode, 0o106_711);
    let times = [
        (32, &5i64.to_le_bytes()[..]),
        (40, &(-7i64).to_le_bytes()),
        (56, &6u32.to_le_bytes()),
        (60, &8u32.to_le_bytes()),
    ];
    assert_eq!(client.setattr(file, 1 << 4 | 1 << 5, &times).unwrap().mtime, (-7, 8));
    let metadata = fs::metadata(directory.path().join("file")).unwrap();
    assert_eq!((metadata.atime(), metadata.atime_nsec()), (5, 6));
    assert!(client.setattr(file, 1 << 8, &[]).unwrap().mtime.0 > 1_000_000_000, "now");
    assert_eq!(fs::metadata(directory.path().join("file")).unwrap().atime(), 5);
    let link = client.symlink(1, "link", "file").unwrap().ino;
    assert_eq!(client.setattr(link, 1 << 5, &times).unwrap().mtime, (-7, 8));
    assert_eq!(client.chmod(link, 0o777), Err(Errno::OPNOTSUPP));
    assert!(client.getattr(file).unwrap().mtime.0 > 1_000_000_000, "the link, not the file");
}

#[test]
fn owners_are_set_and_set_id_bits_dropped() {
    if !is_root("owners_are_set_and_set_id_bits_dropped") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut client = host(directory.path());
    client.caller = (1000, 100);
    let file = client.mknod(1, "file", 0o106_755).unwrap();
    assert_eq!((file.uid, file.gid, file.mode), (1000, 100, 0o106_755));
    let ids = [(76, &2000u32.to_le_bytes()[..]), (80, &200u32.to_le_bytes())];
    let attr = client.setattr(file.ino, 1 << 1 | 1 << 2, &ids).unwrap();
    assert_eq!((attr.uid, attr.gid, attr.mode), (2000, 200, 0o100_755), "chown drops them");
    client.chmod(file.ino, 0o6755).unwrap();
    client.write(file.ino, 0, b"root may").unwrap();
    assert_eq!(client.getattr(file.ino).unwrap().mode, 0o106_755);
    client.write_with(file.ino, 0, b"others may not", 1 << 2).unwrap();
    assert_eq!(client.getattr(file.ino).unwrap().mode, 0o100_755);
    client.chmod(file.ino, 0o6755).unwrap();
    client.setattr(file.ino, 1 << 3 | 1 << 11, &[]).unwrap();
    assert_eq!(client.getattr(file.ino).unwrap().mode, 0o100_755);
}

/// What is made in a set-group-id directory has its group, and directories pass the bit on.
#[test]
fn groups_are_inherited_where_the_directory_says_so() {
    if !is_root("groups_are_inherited_where_the_directory_says_so") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut client = host(directory.path());
    client.caller = (1000, 100);
    let sub = client.mkdir(1, "sub").unwrap();
    assert_eq!((sub.uid, sub.gid), (1000, 100));
    client.setattr(sub.ino, 1 << 2, &[(80, &300u32.to_le_bytes())]).unwrap();
    client.chmod(sub.ino, 0o2775).unwrap();
    let file = client.touch(sub.ino, "file").unwrap();
    assert_eq!((file.uid, file.gid, file.mode), (1000, 300, 0o100_644));
    let below = client.mkdir(sub.ino, "below").unwrap();
    assert_eq!((below.gid, below.mode), (300, 0o042_755));
    assert_eq!(client.symlink(sub.ino, "link", "x").unwrap().gid, 300);
}

#[test]
fn special_files_are_made() {
    let directory = tempfile::tempdir().unwrap();
    let mut client = host(directory.path());
    let fifo = client.mknod(1, "fifo", 0o010_640).unwrap();
    assert_eq!(fifo.mode, 0o010_640);
    assert_eq!(client.mknod(1, "socket", 0o140_600).unwrap().mode, 0o140_600);
    // Never opened here, where it would block.
    assert_eq!(client.read(fifo.ino, 0, 10), Err(Errno::INVAL));
    assert_eq!(client.write(fifo.ino, 0, b"x"), Err(Errno::INVAL));
    if is_root("special_files_are_made (devices)") {
        // Here they would be the host's.
        let number = 1 << 8 | 3;
        assert_eq!(client.mknod_device(1, "null", 0o020_666, number), Err(Errno::PERM));
        assert_eq!(client.mknod_device(1, "disk", 0o060_666, number), Err(Errno::PERM));
        let (path, kind) = (directory.path().join("null"), rustix::fs::FileType::CharacterDevice);
        let mode = rustix::fs::Mode::from_raw_mode(0o666);
        let device = rustix::fs::makedev(1, 3);
        rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, device).unwrap();
        let device = client.lookup(1, "null").unwrap();
        assert_eq!((device.mode & 0o170_000, device.rdev), (0o020_000, number));
        assert_eq!(client.read(device.ino, 0, 10), Err(Errno::INVAL));
        assert_eq!(client.write(device.ino, 0, b"x"), Err(Errno::INVAL));
    }
}

#[test]
fn extended_attributes_pass_where_they_mean_nothing_to_the_host() {
    let directory = tempfile::tempdir().unwrap();
    let mut client = host(directory.path());
    let file = client.touch(1, "file").unwrap().ino;
    client.setxattr(file, "user.a", b"value").unwrap();
    client.setxattr(1, "user.b", b"").unwrap();
    assert_eq!(client.getxattr(file, "user.a").unwrap(), b"value");
    assert_eq!(client.getxattr(1, "user.b").unwrap(), b"");
    assert_eq!(client.getxattr(file, "user.b"), Err(Errno::NODATA));
    let big = vec![7; 3000];
    client.setxattr(file, "user.big", &big).unwrap();
    assert!(client.getxattr(file, "user.big").unwrap() == big);
    assert_eq!(client.getxattr(file, "security.selinux"), Err(Errno::OPNOTSUPP));
    assert_eq!(client.setxattr(file, "security.ima", b"x"), Err(Errno::OPNOTSUPP));
    assert_eq!(client.setxattr(file, "system.posix_acl_access", b"x"), Err(Errno::OPNOTSUPP));
    assert_eq!(client.getxattr(file, "security.capability"), Err(Errno::NODATA));
    let mut names: Vec<String> = client
        .listxattr(file)
        .unwrap()
        .split(|b| *b == 0)
        .map(|name| String::from_utf8(name.to_vec()).unwrap())
        .filter(|n| !n.is_empty())
        .collect();
    names.sort();
    assert_eq!(names, ["user.a", "user.big"]);
    client.call(op::REMOVEXATTR, file, b"user.a\0").unwrap();
    assert_eq!(client.call(op::REMOVEXATTR, file, b"user.a\0"), Err(Errno::NODATA));
    let create = [&u32s(&[1, 1]), &b"user.big\0x"[..]].concat();
    assert_eq!(client.call(op::SETXATTR, file, &create), Err(Errno::EXIST));
    let link = client.symlink(1, "link", "file").unwrap().ino;
    assert_eq!(client.listxattr(link).unwrap(), b"");
    assert_eq!(client.getxattr(link, "user.big"), Err(Errno::OPNOTSUPP));
}

#[test]
fn space_is_allocated_punched_sought_and_copied() {
    let directory = tempfile::tempdir().unwrap();
    let mut client = host(directory.path());
    let file = client.touch(1, "file").unwrap().ino;
    let allocate = |offset: u64, size: u64, mode: u32| {
        [&[0; 8][..], &offset.to_le_bytes(), &size.to_le_bytes(), &u32s(&[mode, 0])].concat()
    };
    client.call(op::FALLOCATE, file, &allocate(0, 1 << 20, 0)).unwrap();
    assert_eq!(client.getattr(file).unwrap().size, 1 << 20);
    client.write(file, 0, &[1; 8192]).unwrap();
    client.write(file, 1 << 19, &[2; 4096]).unwrap();
    client.call(op::FALLOCATE, file, &allocate(4096, 4096, 3)).unwrap();
    assert_eq!(client.read(file, 4095, 3).unwrap(), [1, 0, 0]);
    let seek = |offset: u64, whence: u32| {
        [&[0; 8][..], &offset.to_le_bytes(), &u32s(&[whence, 0])].concat()
    };
    assert_eq!(u64_at(&client.call(op::LSEEK, file, &seek(0, 4)).unwrap(), 0), 4096);
    assert_eq!(client.call(op::LSEEK, file, &seek(2 << 20, 3)), Err(Errno::NXIO));
    assert_eq!(client.call(op::LSEEK, file, &seek(0, 2)), Err(Errno::NOSYS));
    let target = client.touch(1, "copy").unwrap().ino;
    let copy = [
        &[0; 8][..],
        &(1u64 << 19).to_le_bytes(),
        &target.to_le_bytes(),
        &[0; 8],
        &9u64.to_le_bytes(),
        &10u64.to_le_bytes(),
        &[0; 8],
    ]
    .concat();
    assert_eq!(u32_at(&client.call(op::COPY_FILE_RANGE, file, &copy).unwrap(), 0), 10);
    assert_eq!(client.read(target, 8, 20).unwrap(), [&[0][..], &[2; 10]].concat());
}

#[test]
fn files_without_a_name_get_one_by_linking() {
    let directory = tempfile::tempdir().unwrap();
    let mut client = host(directory.path());
    let arguments = [&u32s(&[2, 0o640, 0, 0]), &b"/\0"[..]].concat();
    let body = match client.call(op::TMPFILE, 1, &arguments) {
        Err(Errno::OPNOTSUPP) => return eprintln!("skipped: no O_TMPFILE on this file system"),
        body => body.unwrap(),
    };
    assert_eq!(body.len(), 128 + 16);
    let file = u64_at(&body, 0);
    client.write(file, 0, b"unnamed").unwrap();
    assert_eq!(client.getattr(file).unwrap().nlink, 0);
    assert_eq!(client.link(file, 1, "named").unwrap().nlink, 1);
    assert_eq!(fs::read(directory.path().join("named")).unwrap(), b"unnamed");
    let mode = fs::metadata(directory.path().join("named")).unwrap().permissions().mode();
    assert_eq!(mode, 0o100_640);
}

#[test]
fn syncing_and_statfs_reach_the_host() {
    let directory = tempfile::tempdir().unwrap();
    let mut client = host(directory.path());
    let file = client.touch(1, "file").unwrap().ino;
    client.call(op::FSYNC, file, &[0; 16]).unwrap();
    client.call(op::FSYNC, file, &[&[0; 8][..], &u32s(&[1, 0])].concat()).unwrap();
    client.call(op::FSYNCDIR, 1, &[0; 16]).unwrap();
    client.call(op::SYNCFS, 1, &[0; 8]).unwrap();
    let body = client.call(op::STATFS, 1, b"").unwrap();
    let host = rustix::fs::statvfs(directory.path()).unwrap();
    assert_eq!(
        (u64_at(&body, 0), u32_at(&body, 48)),
        (host.f_blocks, u32::try_from(host.f_frsize).unwrap())
    );
}

/// `ENOSYS` makes the guest's kernel do without; see `flist_view::fuse`.
#[test]
fn there_are_no_opens() {
    let directory = tempfile::tempdir().unwrap();
    let mut client = host(directory.path());
    let file = client.touch(1, "file").unwrap().ino;
    assert_eq!(client.call(op::OPEN, file, &u32s(&[2, 0])), Err(Errno::NOSYS));
    let create = [&u32s(&[2, 0o644, 0, 0]), &b"x\0"[..]].concat();
    assert_eq!(client.call(op::CREATE, 1, &create), Err(Errno::NOSYS));
}

#[test]
fn a_readonly_directory_refuses_to_change() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("file"), "contents").unwrap();
    let mut client =
        host_with(directory.path(), HostOptions { is_readonly: true, ..HostOptions::default() });
    let file = client.walk("file").unwrap().ino;
    assert_eq!(client.read(file, 0, 100).unwrap(), b"contents");
    assert_eq!(client.write(file, 0, b"x"), Err(Errno::ROFS));
    assert_eq!(client.touch(1, "x"), Err(Errno::ROFS));
    assert_eq!(client.unlink(1, "file"), Err(Errno::ROFS));
    assert_eq!(client.truncate(file, 0), Err(Errno::ROFS));
}

/// Others change the directory: what they replaced is `ESTALE`, and found anew by its name.
#[test]
fn a_shared_directory_is_seen_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::create_dir(path("sub")).unwrap();
    fs::write(path("sub/file"), "old").unwrap();
    let mut client =
        host_with(directory.path(), HostOptions { is_shared: true, ..HostOptions::default() });
    let file = client.walk("sub/file").unwrap();
    assert_eq!(file.valid, 1);
    fs::write(path("sub/new"), "newer").unwrap();
    fs::rename(path("sub/new"), path("sub/file")).unwrap();
    assert_eq!(client.getattr(file.ino), Err(Errno::STALE));
    let file = client.walk("sub/file").unwrap().ino;
    assert_eq!(client.read(file, 0, 100).unwrap(), b"newer");
    fs::rename(path("sub"), path("moved")).unwrap();
    assert_eq!(client.read(file, 0, 100).unwrap(), b"newer", "open, as any process would have it");
    assert_eq!(client.walk("sub/file"), Err(Errno::NOENT));
    symlink("moved", path("sub")).unwrap();
    assert_eq!(client.lookup(1, "sub").unwrap().mode, 0o120_777);
}
