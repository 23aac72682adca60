//! What the device itself promises (virtio 1.3 §5.11).

use std::fs;

use super::client::{Client, op, u32_at};
use super::*;
use crate::fs::{Fs, FsError};
use crate::{Device, DeviceId};

fn device(directory: &Path, tag: &str, count: u16) -> Result<Fs, FsError> {
    Fs::new(tag, count, HostDirectory::open(directory, HostOptions::default()).unwrap())
}

/// virtio 1.3 §5.11.4.
#[test]
fn configuration_has_tag_and_queue_count() {
    let directory = tempfile::tempdir().unwrap();
    let device = device(directory.path(), "vroot", 3).unwrap();
    assert_eq!(device.id(), DeviceId::Fs);
    let mut bytes = [0xff; 40];
    device.config().read(0, &mut bytes);
    assert_eq!(&bytes[..6], b"vroot\0");
    assert_eq!(bytes[36..], [3, 0, 0, 0]);
    assert_eq!(device.queue_sizes(), [128, 1024, 1024, 1024]);
}

#[test]
fn tags_and_queue_counts_have_limits() {
    let directory = tempfile::tempdir().unwrap();
    for tag in ["", "a\0b", &"x".repeat(37)] {
        assert!(matches!(device(directory.path(), tag, 1), Err(FsError::Tag { .. })), "{tag:?}");
    }
    assert!(device(directory.path(), &"x".repeat(36), 64).is_ok());
    for count in [0, 65] {
        assert!(matches!(device(directory.path(), "x", count), Err(FsError::QueueCount { .. })));
    }
}

#[test]
fn a_session_begins_with_init() {
    let directory = tempfile::tempdir().unwrap();
    let body = host(directory.path()).init();
    let flags = u32_at(&body, 12);
    // ASYNC_READ, BIG_WRITES, DO_READDIRPLUS, READDIRPLUS_AUTO, NO_OPEN, PARALLEL_DIROPS, MAX_PAGES,
    // CACHE_SYMLINKS, NO_OPENDIR, EXPLICIT_INVAL_DATA, HANDLE_KILLPRIV_V2; above all no WRITEBACK.
    let expected = [0, 5, 13, 14, 17, 18, 22, 23, 24, 25, 28];
    assert_eq!(flags, expected.iter().fold(0, |flags, bit| flags | 1 << bit));
    assert_eq!((u32_at(&body, 20), u32_at(&body, 28) & 0xffff), (1 << 20, 256));
    let options = HostOptions { is_shared: true, ..HostOptions::default() };
    let flags = u32_at(&host_with(directory.path(), options).init(), 12);
    assert_eq!((flags & 1 << 12, flags & 1 << 25), (1 << 12, 0), "shared: AUTO_INVAL_DATA");
}

#[test]
fn a_batch_is_served_with_one_kick_and_one_interrupt() {
    let directory = tempfile::tempdir().unwrap();
    let mut client = host(directory.path());
    for i in 0..100u16 {
        let header = client.header(op::STATFS, 1, 0);
        let request = crate::testing::Buffer::Readable(header);
        let (head, _) = client.requests.add(&[request, crate::testing::Buffer::Writable(96)]);
        assert_eq!(head, i * 2);
    }
    client.unit.kicked(1).unwrap();
    for i in 0..100u16 {
        assert_eq!(client.requests.take_used(), Some((i * 2, 96)));
    }
    assert_eq!(client.interrupts.take(), [1]);
}

#[test]
fn replies_do_not_wait_behind_a_read() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("file"), "contents").unwrap();
    let mut client = host(directory.path());
    let file = client.walk("file").unwrap().ino;
    client.interrupts.take();
    let arguments = super::client::read_arguments(0, 100);
    for opcode in [op::STATFS, op::READ] {
        let mut request = client.header(opcode, file, arguments.len());
        request.extend(&arguments);
        client.requests.add(&[
            crate::testing::Buffer::Readable(request),
            crate::testing::Buffer::Writable(116),
        ]);
    }
    client.unit.kicked(1).unwrap();
    assert_eq!(client.interrupts.take(), [1, 1]);
}

#[test]
fn a_reset_forgets_and_counters_count() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("file"), "contents").unwrap();
    let mut client = host(directory.path());
    let file = client.walk("file").unwrap().ino;
    assert_eq!(client.read(file, 0, 100).unwrap(), b"contents");
    assert_eq!(client.write(file, 0, b"C").unwrap(), 1);
    let counts: Vec<u64> =
        client.device.counters().iter().map(|(_, count)| count.value()).collect();
    assert_eq!(counts, [3, 24, 1]);
    client.device.reset();
    assert_eq!(client.getattr(file), Err(flist_view::filesystem::Errno::STALE));
}

#[test]
fn stopping_gives_the_queues_back() {
    let directory = tempfile::tempdir().unwrap();
    let Client { unit, .. } = host(directory.path());
    let indexes: Vec<u16> = unit.stop().iter().map(crate::Queue::index).collect();
    assert_eq!(indexes, [0, 1]);
}
