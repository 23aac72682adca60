//! Requests that lie, chains that make no sense: errors or the end of the device, never more.

use std::fs;

use flist_view::filesystem::Errno;
use proptest::prelude::*;

use super::client::{op, u32_at, u32s};
use super::*;
use crate::UnitError;
use crate::testing::Buffer;

#[test]
fn chains_too_short_for_a_request_or_a_reply_stop_the_device() {
    let directory = tempfile::tempdir().unwrap();
    for (request_size, reply_size) in [(1, 4096), (39, 4096), (40, 0), (40, 15)] {
        let mut client = host(directory.path());
        let request = client.header(op::STATFS, 1, 0);
        let result = client.offer(&request[..request_size], &[], reply_size);
        assert!(matches!(result, Err(UnitError::Guest(_))), "{request_size} {reply_size}");
    }
    // A reply of an error fits.
    let mut client = host(directory.path());
    let request = client.header(op::STATFS, 1, 0);
    assert_eq!(client.offer(&request, &[], 16).unwrap(), Some(16));
}

#[test]
fn lying_sizes_are_errors() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("file"), "contents").unwrap();
    let mut client = host(directory.path());
    let file = client.walk("file").unwrap().ino;
    let mut call = |opcode: u32, size_told: usize, arguments: &[u8], reply: usize| {
        let mut request = client.header(opcode, file, size_told);
        request.extend(arguments);
        let written = client.offer(&request, &[40], reply).unwrap().unwrap();
        let mut bytes = [0; 16];
        vm_memory::Bytes::read_slice(&*client.memory, &mut bytes, vm_memory::GuestAddress(8 << 20))
            .unwrap();
        (written, u32_at(&bytes, 4).wrapping_neg())
    };
    let write = |size: u32| [&[0; 16][..], &u32s(&[size, 0]), &[0; 16], b"data"].concat();
    let invalid = Errno::INVAL.raw_os_error().cast_unsigned();
    // More, less and no contents, in the header, in the arguments, in the chain.
    for (told, size) in [(44, 5), (45, 5), (43, 4), (44, 3), (44, u32::MAX), (40, 4), (0, 4)] {
        assert_eq!(call(op::WRITE, told, &write(size), 64), (16, invalid), "{told} {size}");
    }
    assert_eq!(call(op::WRITE, 44, &write(4), 64), (24, 0));
    assert_eq!(call(op::GETATTR, 10_000, &[0; 16], 200), (16, 0).max((16, invalid)));
    // No room for what was asked.
    assert_eq!(call(op::GETATTR, 16, &[0; 16], 100), (16, invalid));
    let read = super::client::read_arguments(0, 1 << 20);
    assert_eq!(call(op::READ, 40, &read, 19), (19, 0), "three bytes fit");
    assert_eq!(fs::read(directory.path().join("file")).unwrap(), b"dataents");
}

/// A lookup whose reply does not fit is not counted: the guest never learned of the inode.
#[test]
fn an_entry_that_could_not_be_told_is_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("file"), "").unwrap();
    let mut client = host(directory.path());
    let mut request = client.header(op::LOOKUP, 1, 5);
    request.extend(b"file\0");
    assert_eq!(client.offer(&request, &[40], 100).unwrap(), Some(16));
    let file = fs::metadata(directory.path().join("file")).unwrap();
    let ino = std::os::unix::fs::MetadataExt::ino(&file);
    assert_eq!(client.getattr(ino), Err(Errno::STALE));
}

#[test]
fn forgetting_needs_no_reply_and_takes_any_number() {
    let directory = tempfile::tempdir().unwrap();
    let mut client = host(directory.path());
    let file = client.touch(1, "file").unwrap().ino;
    client.forget(77, u64::MAX);
    client.forget(1, u64::MAX);
    client.forget(file, 0);
    assert!(client.getattr(file).is_ok() && client.getattr(1).is_ok());
    let batch =
        [&u32s(&[u32::MAX, 0])[..], &file.to_le_bytes(), &7u64.to_le_bytes(), &[1; 9]].concat();
    let mut request = client.header(op::BATCH_FORGET, 0, batch.len());
    request.extend(batch);
    assert_eq!(client.offer(&request, &[], 0).unwrap(), Some(0));
    assert_eq!(client.getattr(file), Err(Errno::STALE));
}

/// Thousands of files known, and few descriptors; all of them can still be used.
#[test]
fn many_known_files_are_few_descriptors() {
    let directory = tempfile::tempdir().unwrap();
    let mut client = Client::new(HostDirectory::open_limited(directory.path(), 4096));
    let sub = client.mkdir(1, "sub").unwrap().ino;
    let files: Vec<u64> = (0..3000u32)
        .map(|i| {
            let file = client.touch(sub, &i.to_string()).unwrap().ino;
            client.write(file, 0, &i.to_le_bytes()).unwrap();
            file
        })
        .collect();
    // Other tests of this process have descriptors open too.
    let open = descriptors_below(directory.path());
    for (i, file) in (0u32..).zip(&files) {
        assert_eq!(client.read(*file, 0, 4).unwrap(), i.to_le_bytes());
    }
    client.rename((1, "sub"), (1, "moved"), 0).unwrap();
    assert_eq!(client.read(files[0], 0, 4).unwrap(), [0; 4]);
    assert!(open < 2000, "{open} descriptors");
}

/// Descriptors of this process that lead into a folder.
fn descriptors_below(folder: &Path) -> usize {
    let folder = folder.canonicalize().unwrap();
    fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .filter(|target| target.starts_with(&folder))
        .count()
}

#[test]
fn a_loop_of_descriptors_stops_the_device() {
    let directory = tempfile::tempdir().unwrap();
    let mut client = host(directory.path());
    client.requests.descriptor(0, 0x10_0000, 40, crate::testing::NEXT, 0);
    client.requests.offer(0);
    assert!(matches!(client.unit.kicked(1), Err(UnitError::Queue { index: 1, .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever comes, there is a reply that fits or the device stops; and nothing outside is touched.
    #[test]
    fn random_requests_do_no_harm(
        requests in prop::collection::vec(
            (
                prop_oneof![0u32..56, any::<u32>()],
                prop_oneof![Just(1u64), 0u64..20, any::<u64>()],
                prop::collection::vec(any::<u8>(), 0..120),
                prop_oneof![Just(0usize), 0usize..300],
                prop_oneof![Just(0u32), any::<u32>()],
            ),
            1..8,
        ),
    ) {
        let outer = tempfile::tempdir().unwrap();
        fs::create_dir(outer.path().join("inner")).unwrap();
        let mut client = host(&outer.path().join("inner"));
        for (opcode, node, arguments, reply_size, lie) in requests {
            let mut request = client.header(opcode, node, arguments.len());
            let size = u32_at(&request, 0) ^ lie;
            request[..4].copy_from_slice(&size.to_le_bytes());
            request.extend(&arguments);
            let mut buffers = vec![Buffer::Readable(request)];
            if reply_size > 0 {
                buffers.push(Buffer::Writable(u32::try_from(reply_size).unwrap()));
            }
            client.requests.add(&buffers);
            if client.unit.kicked(1).is_err() {
                return Ok(());
            }
            let (_, written) = client.requests.take_used().unwrap();
            prop_assert!(written as usize <= reply_size);
        }
        prop_assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 1);
    }
}
