//! A quota where the host's file system has none.

use flist_view::filesystem::Errno;

use super::client::{Client, op, u32_at, u32s, u64_at};
use super::image::Image;
use super::overlay::prefix;
use super::*;
use crate::fs::overlay::{Overlay, OverlayOptions};

const LIMIT: u64 = 1 << 20;

fn limited(path: &Path) -> Client {
    host_with(path, HostOptions { quota: Some(LIMIT), ..HostOptions::default() })
}

/// Bytes free, as `statfs` has it.
fn free(client: &mut Client) -> u64 {
    let body = client.call(op::STATFS, 1, b"").unwrap();
    assert_eq!(u64_at(&body, 0) * u64::from(u32_at(&body, 40)), LIMIT);
    u64_at(&body, 8) * u64::from(u32_at(&body, 40))
}

#[test]
fn writing_ends_with_the_quota_and_removing_gives_back() {
    let directory = tempfile::tempdir().unwrap();
    let mut client = limited(directory.path());
    let all = free(&mut client);
    let file = client.touch(1, "file").unwrap().ino;
    let mut offset = 0;
    let error = loop {
        match client.write(file, offset, &[1; 65_536]) {
            Ok(size) => offset += u64::from(size),
            Err(error) => break error,
        }
    };
    assert_eq!(error, Errno::NOSPC);
    assert!((LIMIT - 131_072..=LIMIT).contains(&offset), "{offset}");
    assert_eq!(client.write(file, 0, b"what is there can be written again").unwrap(), 34);
    let other = client.touch(1, "other").unwrap().ino;
    let more = LIMIT - offset + 65_536;
    let allocate = [&[0; 16][..], &more.to_le_bytes(), &u32s(&[0, 0])].concat();
    assert_eq!(client.call(op::FALLOCATE, other, &allocate), Err(Errno::NOSPC));
    client.truncate(file, 4096).unwrap();
    client.call(op::FALLOCATE, other, &allocate).unwrap();
    // Removed, but the guest has it open.
    client.unlink(1, "other").unwrap();
    let used = all - free(&mut client);
    assert!(used > more, "{used}");
    client.forget(other, 1);
    assert!(all - free(&mut client) <= 8192);
    client.unlink(1, "file").unwrap();
    client.forget(file, 1);
    assert_eq!(free(&mut client), all);
}

#[test]
fn what_is_there_counts_and_holes_do_not() {
    let directory = tempfile::tempdir().unwrap();
    let mut client = limited(directory.path());
    let sub = client.mkdir(1, "sub").unwrap().ino;
    let file = client.touch(sub, "file").unwrap().ino;
    client.write(file, 0, &[1; 500_000]).unwrap();
    client.link(file, 1, "again").unwrap();
    let sparse = client.touch(sub, "sparse").unwrap().ino;
    client.truncate(sparse, 1 << 30).unwrap();
    client.write(sparse, 1 << 29, &[1; 4096]).unwrap();
    let mut client = limited(directory.path());
    let free = free(&mut client);
    assert!((LIMIT - 540_000..LIMIT - 500_000).contains(&free), "{free}");
    // A hole is no way around.
    let sparse = client.walk("sub/sparse").unwrap().ino;
    let mut written = 0;
    while let Ok(size) = client.write(sparse, written, &[1; 65_536]) {
        written += u64::from(size);
    }
    assert!(written < free, "{written}");
}

#[test]
fn empty_files_are_not_free() {
    let directory = tempfile::tempdir().unwrap();
    let options = HostOptions { quota: Some(64 << 10), ..HostOptions::default() };
    let mut client = host_with(directory.path(), options);
    let mut count = 0;
    while client.touch(1, &format!("{count}")).is_ok() {
        count += 1;
    }
    assert!((200..=256).contains(&count), "{count}");
    assert_eq!(client.mkdir(1, "directory"), Err(Errno::NOSPC));
    // Known once, and then no more.
    let first = client.lookup(1, "0").unwrap().ino;
    client.unlink(1, "0").unwrap();
    assert!(client.touch(1, "0").is_err(), "the guest still has it");
    client.forget(first, 2);
    assert!(client.touch(1, "0").is_ok());
}

/// What is given back was counted before: nothing that is repeated moves the limit.
#[test]
fn the_limit_stays_where_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let mut client = limited(directory.path());
    let all = free(&mut client);
    for _ in 0..50 {
        let sub = client.mkdir(1, "directory").unwrap().ino;
        for i in 0..20 {
            let name = format!("{i}{}", "x".repeat(200));
            let file = client.touch(sub, &name).unwrap().ino;
            client.setxattr(file, "user.a", &[1; 2000]).unwrap();
            client.write(file, 0, b"x").unwrap();
            client.unlink(sub, &name).unwrap();
            client.forget(file, 1);
        }
        let link = client.symlink(1, "link", &"x".repeat(3000)).unwrap().ino;
        client.forget(link, 1);
        client.unlink(1, "link").unwrap();
        client.rmdir(1, "directory").unwrap();
        client.forget(sub, 1);
    }
    assert_eq!(free(&mut client), all);
}

#[test]
fn copying_up_counts() {
    let volume = tempfile::tempdir().unwrap();
    let image = Image::default().file("big", vec![1; 2 << 20]).file("small", "x");
    let options = OverlayOptions { marks: prefix(), quota: Some(LIMIT) };
    let mut client = Client::new(Overlay::open(image.view(), volume.path(), options).unwrap());
    let big = client.walk("big").unwrap().ino;
    assert_eq!(client.write(big, 0, b"x"), Err(Errno::NOSPC));
    assert_eq!(client.read(big, 0, 1).unwrap(), [1], "as before");
    let small = client.walk("small").unwrap().ino;
    assert_eq!(client.write(small, 0, b"y").unwrap(), 1);
    assert_eq!(client.truncate(big, 4096).unwrap().size, 4096);
    assert_eq!(std::fs::read_dir(volume.path().join("wd/temporary")).unwrap().count(), 0);
}

/// Blocks beyond the end of a file are not what fills its holes.
#[test]
fn room_beyond_the_end_hides_no_hole() {
    const KEEP_SIZE: u32 = 1;
    const PUNCH_HOLE: u32 = 2;
    let directory = tempfile::tempdir().unwrap();
    let mut client = limited(directory.path());
    let allocate = |offset: u64, size: u64, mode| {
        [&[0; 8][..], &offset.to_le_bytes(), &size.to_le_bytes(), &u32s(&[mode, 0])].concat()
    };
    let file = client.touch(1, "file").unwrap().ino;
    let half = LIMIT / 2;
    // Beyond what the file will be, so that its blocks are as many as its size.
    client.call(op::FALLOCATE, file, &allocate(half, half, KEEP_SIZE)).unwrap();
    client.truncate(file, half).unwrap();
    let mut written = 0;
    while written < half && client.write(file, written, &[1; 4096]).is_ok() {
        written += 4096;
    }
    assert!((half - 65_536..half).contains(&written), "{written}");
    let blocks = std::os::unix::fs::MetadataExt::blocks(
        &std::fs::metadata(directory.path().join("file")).unwrap(),
    );
    assert!(blocks * 512 <= LIMIT, "{blocks}");
    assert_eq!(client.write(file, written - 4096, &[2; 4096]), Ok(4096), "it is there");
    assert_eq!(client.write(file, written - 2048, &[2; 4096]), Err(Errno::NOSPC));
    // What gives back is never refused.
    let punch = allocate(0, half, KEEP_SIZE | PUNCH_HOLE);
    client.call(op::FALLOCATE, file, &punch).unwrap();
    assert_eq!(client.write(file, written, &[1; 4096]), Ok(4096));
}
