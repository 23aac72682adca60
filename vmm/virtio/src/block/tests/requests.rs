//! Each kind of request, in every shape, good and bad.

use super::*;
use crate::QueueError;

const SIZE: usize = 64 << 10;

fn each_engine(test: impl Fn(&mut Rig, &tempfile::NamedTempFile)) {
    for engine in engines() {
        let file = file(&pattern(SIZE, 0));
        test(&mut Rig::new(open(&file, engine)), &file);
    }
}

#[test]
fn reads_and_writes_reach_the_file() {
    each_engine(|rig, file| {
        let answer = rig.request(READ, 3, Payload::In(1024));
        assert_eq!((answer.status, answer.used), (OK, 1025));
        assert_eq!(answer.data, pattern(SIZE, 0)[1536..2560]);
        let answer = rig.request(WRITE, 126, Payload::Out(pattern(1024, 5)));
        assert_eq!(answer, Answer { status: OK, data: Vec::new(), used: 1 });
        assert_eq!(rig.status(FLUSH, 0, Payload::None), OK);
        let content = std::fs::read(file.path()).unwrap();
        assert_eq!(content[..SIZE - 1024], pattern(SIZE, 0)[..SIZE - 1024]);
        assert_eq!(content[SIZE - 1024..], pattern(1024, 5));
        assert_eq!((rig.count("reads"), rig.count("read_bytes")), (1, 1024));
        assert_eq!((rig.count("writes"), rig.count("written_bytes")), (1, 1024));
        assert_eq!((rig.count("flushes"), rig.count("errors")), (1, 0));
    });
}

#[test]
fn nothing_to_transfer_is_no_error() {
    each_engine(|rig, _| {
        assert_eq!(rig.request(READ, 3, Payload::None).status, OK);
        assert_eq!(rig.request(WRITE, 128, Payload::None).status, OK);
    });
}

/// virtio 1.3 §5.2.6: the serial number is 20 bytes, without an end if it fills them.
#[test]
fn the_serial_number_is_told_as_far_as_there_is_room() {
    let disk = open(&file(&[0; 512]), Engine::Blocking);
    let options = BlockOptions { serial: "rootfs".into(), ..BlockOptions::default() };
    let mut rig = Rig::with(disk, &options, u64::MAX);
    let answer = rig.request(GET_ID, 0, Payload::In(20));
    assert_eq!((answer.status, answer.used), (OK, 21));
    assert_eq!(answer.data, b"rootfs\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    let answer = rig.request(GET_ID, 0, Payload::In(3));
    assert_eq!((answer.data.as_slice(), answer.used), (&b"roo"[..], 4));
    assert_eq!(rig.request(GET_ID, 0, Payload::In(30)).used, 21);
    assert_eq!(rig.request(GET_ID, 0, Payload::None).used, 1);
}

#[test]
fn requests_beyond_the_end_are_errors() {
    each_engine(|rig, file| {
        for (sector, size) in
            [(128, 512), (127, 1024), (u64::MAX, 512), (u64::MAX / 512 + 1, 512), (1 << 55, 512)]
        {
            assert_eq!(rig.status(READ, sector, Payload::In(size)), IO_ERROR, "{sector}");
            let data = vec![9; usize::try_from(size).unwrap()];
            assert_eq!(rig.status(WRITE, sector, Payload::Out(data)), IO_ERROR, "{sector}");
        }
        for size in [1, 511, 513] {
            assert_eq!(rig.status(READ, 0, Payload::In(size)), IO_ERROR, "{size}");
        }
        assert_eq!(std::fs::read(file.path()).unwrap(), pattern(SIZE, 0));
        assert_eq!(rig.count("errors"), 13);
    });
}

#[test]
fn a_read_only_disk_is_not_written() {
    let file = file(&pattern(SIZE, 0));
    let options = FileOptions { is_read_only: true, ..FileOptions::default() };
    let disk = Arc::new(FileDisk::open(file.path(), options).unwrap());
    let mut rig = Rig::new(disk);
    assert_ne!(rig.device.features() & 1 << abi::VIRTIO_BLK_F_RO, 0);
    assert_eq!(rig.status(WRITE, 0, Payload::Out(vec![1; 512])), IO_ERROR);
    for kind in [DISCARD, WRITE_ZEROES] {
        assert_eq!(rig.status(kind, 0, Payload::Out(range(0, 8, 0))), UNSUPPORTED);
    }
    assert_eq!(rig.status(FLUSH, 0, Payload::None), OK);
    assert_eq!(rig.status(READ, 0, Payload::In(512)), OK);
    assert_eq!(std::fs::read(file.path()).unwrap(), pattern(SIZE, 0));
}

#[test]
fn unknown_requests_are_unsupported() {
    each_engine(|rig, _| {
        for kind in [2, 10, 14, 15, 0x8000_0000, u32::MAX] {
            assert_eq!(rig.status(kind, 0, Payload::None), UNSUPPORTED, "{kind}");
        }
    });
}

#[test]
fn what_the_driver_did_not_accept_is_unsupported() {
    let (file, none) = (file(&[1; 4096]), BlockOptions::default());
    let mut rig = Rig::with(open(&file, Engine::Blocking), &none, 0);
    for kind in [DISCARD, WRITE_ZEROES] {
        assert_eq!(rig.status(kind, 0, Payload::Out(range(0, 8, 0))), UNSUPPORTED);
    }
    assert_eq!(std::fs::read(file.path()).unwrap(), [1; 4096]);
}

#[test]
fn ranges_become_zeroes() {
    each_engine(|rig, file| {
        let mut ranges = range(8, 8, 0);
        ranges.extend(range(24, 9, abi::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP));
        ranges.extend(range(128, 0, 0));
        assert_eq!(rig.status(WRITE_ZEROES, 0, Payload::Out(ranges)), OK);
        assert_eq!(rig.status(DISCARD, 0, Payload::Out(range(64, 64, 0))), OK);
        let mut expected = pattern(SIZE, 0);
        expected[8 * 512..16 * 512].fill(0);
        expected[24 * 512..33 * 512].fill(0);
        // What was discarded may be anything.
        let content = std::fs::read(file.path()).unwrap();
        assert_eq!(content[..SIZE / 2], expected[..SIZE / 2]);
        assert_eq!(content.len(), SIZE);
        assert_eq!((rig.count("zeroings"), rig.count("discards")), (1, 1));
    });
}

/// virtio 1.3 §5.2.6.2.
#[test]
fn bad_ranges_are_refused() {
    each_engine(|rig, file| {
        let cases = [
            (WRITE_ZEROES, range(0, 8, 2), UNSUPPORTED),
            (DISCARD, range(0, 8, 1), UNSUPPORTED),
            (DISCARD, range(0, 8, 2), UNSUPPORTED),
            (DISCARD, range(121, 8, 0), IO_ERROR),
            (DISCARD, range(u64::MAX, 8, 0), IO_ERROR),
            (WRITE_ZEROES, range(0, u32::MAX, 0), IO_ERROR),
            (WRITE_ZEROES, range(0, (1 << 21) + 1, 0), IO_ERROR),
            (WRITE_ZEROES, range(0, 8, 0)[..15].to_vec(), IO_ERROR),
            (WRITE_ZEROES, Vec::new(), IO_ERROR),
            (WRITE_ZEROES, range(0, 8, 0).repeat(33), IO_ERROR),
            (WRITE_ZEROES, [range(0, 8, 0), range(128, 1, 0)].concat(), IO_ERROR),
        ];
        for (kind, ranges, status) in cases {
            let what = format!("{kind} {ranges:?}");
            let payload = if ranges.is_empty() { Payload::None } else { Payload::Out(ranges) };
            assert_eq!(rig.status(kind, 0, payload), status, "{what}");
        }
        assert_eq!(std::fs::read(file.path()).unwrap(), pattern(SIZE, 0));
        assert_eq!(rig.status(WRITE_ZEROES, 0, Payload::Out(range(0, 4, 0).repeat(32))), OK);
    });
}

/// virtio 1.3 §2.7.4.1: how a request is cut into descriptors means nothing.
#[test]
fn requests_may_be_cut_anywhere() {
    each_engine(|rig, file| {
        let (header, data) = (header(WRITE, 4), pattern(1024, 3));
        let shapes: [Vec<&[u8]>; 4] = [
            vec![&header[..3], &header[3..], &data],
            vec![&header[..8], &header[8..15], &header[15..], &data[..1], &data[1..]],
            vec![&header, &data[..513], &data[513..514], &data[514..]],
            vec![],
        ];
        for mut pieces in shapes {
            std::fs::write(file.path(), pattern(SIZE, 0)).unwrap();
            let whole = [header.as_slice(), &data].concat();
            if pieces.is_empty() {
                pieces.push(&whole);
            }
            let mut buffers: Vec<Buffer> =
                pieces.iter().map(|piece| Buffer::Readable(piece.to_vec())).collect();
            buffers.push(Buffer::Writable(1));
            let pending = rig.add_chain(&buffers);
            rig.kick(0).unwrap();
            assert_eq!(rig.answer(&pending).status, OK);
            assert_eq!(std::fs::read(file.path()).unwrap()[2048..3072], data);
        }
        for sizes in [vec![1025], vec![1, 1023, 1], vec![512, 513], vec![100, 100, 824, 1]] {
            let mut buffers = vec![Buffer::Readable(super::header(READ, 4))];
            buffers.extend(sizes.into_iter().map(Buffer::Writable));
            let pending = rig.add_chain(&buffers);
            rig.kick(0).unwrap();
            let expected = Answer { status: OK, data: data.clone(), used: 1025 };
            assert_eq!(rig.answer(&pending), expected);
        }
    });
}

#[test]
fn a_chain_that_holds_no_request_stops_the_device() {
    let short = |what, wanted, found| QueueError::Short { head: 0, what, wanted, found };
    let cases = [
        (vec![Buffer::Readable(header(READ, 0))], short("a request status", 1, 0)),
        (
            vec![Buffer::Readable(vec![0; 15]), Buffer::Writable(513)],
            short("a request header", 16, 15),
        ),
        (vec![Buffer::Writable(513)], short("a request header", 16, 0)),
    ];
    for (buffers, expected) in cases {
        let file = file(&[0; 512]);
        let mut rig = Rig::new(open(&file, Engine::Blocking));
        rig.add_chain(&buffers);
        match rig.kick(0) {
            Err(UnitError::Queue { index: 0, source }) => assert_eq!(source, expected),
            other => panic!("{other:?}"),
        }
    }
}

/// virtio 1.3 §2.7.5.3.1: nor may an indirect table be longer than the queue.
#[test]
fn a_chain_longer_than_the_queue_stops_the_device() {
    let file = file(&[0; 4096]);
    let options = BlockOptions { queue_size: 4, ..BlockOptions::default() };
    let mut rig = Rig::with(open(&file, Engine::Blocking), &options, u64::MAX);
    let driver = &mut rig.drivers[0];
    let table = driver.allocate(5 * 16);
    let buffer = driver.allocate(16);
    for i in 0..5 {
        let flags = if i < 4 { testing::NEXT } else { testing::WRITE };
        let next = u16::try_from(i + 1).unwrap();
        driver.descriptor_at(table + i * 16, buffer, 16, flags, next);
    }
    driver.descriptor(0, table, 5 * 16, testing::INDIRECT, 0);
    driver.offer(0);
    let error = rig.kick(0).unwrap_err();
    assert_eq!(error.to_string(), "queue 0: descriptor chain 0 does not end");
}
