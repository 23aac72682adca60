//! What is particular to files: how they are opened, locked, and used past the page cache.

use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;

use vm_memory::Bytes;

use super::*;
use crate::block::storage::Done;
use crate::memory::GuestAddress;
use crate::testing;

fn file(size: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(size).unwrap();
    file
}

const WRITER: FileOptions =
    FileOptions { is_read_only: false, is_direct: false, engine: Engine::Auto };
const READER: FileOptions = FileOptions { is_read_only: true, ..WRITER };

#[test]
fn a_disk_has_one_writer_or_many_readers() {
    let file = file(4096);
    let open = |options| FileDisk::open(file.path(), options);
    let writer = open(WRITER).unwrap();
    assert!(matches!(open(WRITER), Err(FileError::InUse)));
    assert!(matches!(open(READER), Err(FileError::InUse)));
    drop(writer);
    let readers = (open(READER).unwrap(), open(READER).unwrap());
    assert!(matches!(open(WRITER), Err(FileError::InUse)));
    drop(readers);
    open(WRITER).unwrap();
}

/// Rings outlive their descriptor; the lock of a disk must not.
#[test]
fn the_lock_ends_with_the_disk() {
    let (file, memory) = (file(1 << 20), testing::memory(1 << 20));
    for _ in 0..20 {
        let disk = FileDisk::open(file.path(), WRITER).unwrap();
        let mut lane = disk.open_lane(&memory, 8).unwrap();
        let segment = [Segment { address: GuestAddress(0), size: 4096 }];
        run(&mut *lane, Operation::Write { offset: 0, from: &segment }).unwrap();
        drop((lane, disk));
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        rustix::fs::flock(&file, FlockOperation::Unlock).unwrap();
    }
}

#[test]
fn only_files_and_block_devices_are_disks() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(FileDisk::open(folder.path(), READER), Err(FileError::Kind)));
    assert!(matches!(FileDisk::open(folder.path(), WRITER), Err(FileError::Open(_))));
    let null = folder.path().join("null");
    symlink("/dev/null", &null).unwrap();
    assert!(matches!(FileDisk::open(&null, WRITER), Err(FileError::Kind)));
    let missing = folder.path().join("missing");
    assert!(matches!(FileDisk::open(&missing, WRITER), Err(FileError::Open(_))));
}

#[test]
fn the_size_is_what_it_is_now() {
    let file = file(5000);
    let disk = FileDisk::open(file.path(), WRITER).unwrap();
    assert_eq!(disk.size().unwrap(), 5000);
    file.as_file().set_len(9000).unwrap();
    assert_eq!(disk.size().unwrap(), 9000);
}

#[test]
fn files_in_memory_need_no_ring() {
    let name = format!("block-test-{}", std::process::id());
    let memory = rustix::fs::memfd_create(&name, rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let file = File::from(memory);
    file.set_len(1 << 20).unwrap();
    let disk = FileDisk::new(file, WRITER).unwrap();
    let lane = disk.open_lane(&testing::memory(1 << 20), 8).unwrap();
    assert!(lane.descriptor().is_none());
}

/// Runs one operation to its end.
fn run(lane: &mut dyn Lane, operation: Operation<'_>) -> io::Result<()> {
    lane.start(0, operation);
    let mut done = Vec::new();
    for _ in 0..1000 {
        lane.turn(&mut done).unwrap();
        if let Some(Done { tag, result }) = done.pop() {
            assert_eq!(tag, 0);
            return result;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("not done in five seconds");
}

/// tmpfs cannot zero a range: zeroes are written, piece by piece.
#[test]
fn zeroes_are_written_where_the_file_system_has_nothing_better() {
    let memory = testing::memory(1 << 20);
    for engine in [Engine::Blocking, Engine::Ring] {
        let name = rustix::fs::memfd_create("zeroes", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(name);
        let size = 3 * raw::ZEROES_MAX as u64 + 512;
        std::os::unix::fs::FileExt::write_all_at(&file, &vec![7; 4 << 20], 0).unwrap();
        let check = file.try_clone().unwrap();
        let disk = FileDisk::new(file, FileOptions { engine, ..WRITER }).unwrap();
        let Ok(mut lane) = disk.open_lane(&memory, 2) else { continue };
        let zeroes = Operation::WriteZeroes { offset: 512, size, may_unmap: false };
        run(&mut *lane, zeroes).unwrap();
        let mut content = vec![1; 4 << 20];
        std::os::unix::fs::FileExt::read_exact_at(&check, &mut content, 0).unwrap();
        let end = 512 + usize::try_from(size).unwrap();
        assert!(content[..512].iter().chain(&content[end..]).all(|byte| *byte == 7));
        assert!(content[512..end].iter().all(|byte| *byte == 0));
        let hole = Operation::WriteZeroes { offset: 0, size: 512, may_unmap: true };
        run(&mut *lane, hole).unwrap();
        run(&mut *lane, Operation::Discard { offset: 0, size: 4 << 20 }).unwrap();
        run(&mut *lane, Operation::Flush).unwrap();
    }
}

#[test]
fn buffers_outside_memory_are_refused() {
    let (file, memory) = (file(1 << 20), testing::memory(1 << 20));
    for engine in [Engine::Blocking, Engine::Ring] {
        let disk = FileDisk::open(file.path(), FileOptions { engine, ..WRITER }).unwrap();
        let Ok(mut lane) = disk.open_lane(&memory, 2) else { continue };
        let outside = [Segment { address: GuestAddress(1 << 20), size: 512 }];
        let error = run(&mut *lane, Operation::Read { offset: 0, into: &outside }).unwrap_err();
        assert_eq!(Errno::from_io_error(&error), Some(Errno::FAULT));
    }
}

/// What the kernel moves in one call is limited; the rest follows.
#[test]
fn transfers_with_more_pieces_than_the_kernel_takes_are_whole() {
    let (file, memory) = (file(1 << 20), testing::memory(4 << 20));
    let segments: Vec<Segment> =
        (0..1500).map(|i| Segment { address: GuestAddress(i * 1024), size: 512 }).collect();
    for engine in [Engine::Blocking, Engine::Ring] {
        let disk = FileDisk::open(file.path(), FileOptions { engine, ..WRITER }).unwrap();
        let Ok(mut lane) = disk.open_lane(&memory, 2) else { continue };
        for (i, segment) in (0_u16..).zip(&segments) {
            memory.write_slice(&i.to_le_bytes().repeat(256), segment.address).unwrap();
        }
        run(&mut *lane, Operation::Write { offset: 0, from: &segments }).unwrap();
        for segment in &segments {
            memory.write_slice(&[0xff; 512], segment.address).unwrap();
        }
        run(&mut *lane, Operation::Read { offset: 0, into: &segments }).unwrap();
        for (i, segment) in (0_u16..).zip(&segments) {
            let mut bytes = vec![0; 512];
            memory.read_slice(&mut bytes, segment.address).unwrap();
            assert_eq!(bytes, i.to_le_bytes().repeat(256), "{i}");
        }
    }
}

#[test]
fn direct_transfers_say_what_they_need() {
    let file = file(1 << 20);
    let options = FileOptions { is_direct: true, ..WRITER };
    let disk = match FileDisk::open(file.path(), options) {
        Ok(disk) => disk,
        Err(FileError::Direct) => {
            println!("skipped: no O_DIRECT in {}", file.path().display());
            return;
        }
        Err(error) => panic!("{error}"),
    };
    assert!(disk.traits().block_size >= 512);
    assert!(disk.traits().physical_block_size >= disk.traits().block_size);
    let flags = rustix::fs::fcntl_getfl(&*disk.file).unwrap();
    assert!(flags.contains(OFlags::DIRECT), "descriptor {}", disk.file.as_raw_fd());
}

/// Pieces of the copy and pieces of the guest's end in different places.
#[test]
fn buffers_that_direct_transfers_cannot_use_are_copied_whole() {
    let (file, memory) = (file(1 << 20), testing::memory(1 << 20));
    let options = FileOptions { is_direct: true, ..WRITER };
    let Ok(disk) = FileDisk::open(file.path(), options) else {
        println!("skipped: no O_DIRECT in {}", file.path().display());
        return;
    };
    let mut lane = disk.open_lane(&memory, 2).unwrap();
    let segment = |address, size| Segment { address: GuestAddress(address), size };
    // 300 KiB in all, and none of it aligned.
    let segments = [segment(1, 100_001), segment(200_001, 7), segment(300_001, 207_192)];
    let content: Vec<u8> =
        (0..300 << 10).map(|i: u32| i.wrapping_mul(0x9e37_79b1).to_le_bytes()[3]).collect();
    let mut at = 0;
    for segment in &segments {
        let size = usize::try_from(segment.size).unwrap();
        memory.write_slice(&content[at..at + size], segment.address).unwrap();
        at += size;
    }
    assert_eq!(at, content.len());
    run(&mut *lane, Operation::Write { offset: 8192, from: &segments }).unwrap();
    let written = std::fs::read(file.path()).unwrap();
    assert!(written[8192..8192 + at] == content && written[..8192].iter().all(|byte| *byte == 0));
    memory.write_slice(&vec![0xff; 1 << 20], GuestAddress(0)).unwrap();
    run(&mut *lane, Operation::Read { offset: 8192, into: &segments }).unwrap();
    let mut read = vec![0; at];
    let mut at = 0;
    for segment in &segments {
        let size = usize::try_from(segment.size).unwrap();
        memory.read_slice(&mut read[at..at + size], segment.address).unwrap();
        at += size;
    }
    assert!(read == content);
}
