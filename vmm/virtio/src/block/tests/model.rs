//! Random requests, many at a time, against a disk that is a `Vec`.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;

const SECTORS: u64 = 64;
/// Requests in one batch. Their sectors are apart, since their order is not defined.
const BATCH: u64 = 8;
const LANE_SECTORS: u64 = SECTORS / BATCH;

#[derive(Clone, Debug)]
struct Action {
    kind: u32,
    first: u64,
    count: u64,
    seed: usize,
    cuts: Vec<u64>,
}

fn action() -> impl Strategy<Value = Action> {
    let kind = prop_oneof![
        3 => Just(READ),
        3 => Just(WRITE),
        1 => Just(FLUSH),
        1 => Just(WRITE_ZEROES),
        1 => Just(WRITE_ZEROES | 1 << 16),
    ];
    let cuts = prop::collection::vec(1_u64..1500, 0..4);
    (kind, 0..LANE_SECTORS, 1..=LANE_SECTORS, 0_usize..251, cuts)
        .prop_map(|(kind, first, count, seed, cuts)| Action { kind, first, count, seed, cuts })
}

/// Where a request's buffers lie: reused by each batch, apart within it.
const ARENA: u64 = 0x4_0000;
const ARENA_SIZE: u64 = 0x1000 + LANE_SECTORS * 512;
const HEADER: u64 = 0;
const RANGE: u64 = 16;
const STATUS: u64 = 64;
const DATA: u64 = 0x1000;
const DESCRIPTORS: u16 = 8;

/// Puts `action` into the ring as request `lane` of its batch.
fn offer(rig: &mut Rig, lane: u64, action: &Action) {
    let base = ARENA + lane * ARENA_SIZE;
    let sector = lane * LANE_SECTORS + action.first;
    let count = action.count.min(LANE_SECTORS - action.first);
    let (kind, is_unmap) = (action.kind & 0xffff, action.kind >> 16);
    let write = |at: u64, bytes: &[u8]| {
        rig.memory.write_slice(bytes, GuestAddress(base + at)).unwrap();
    };
    write(HEADER, &header(kind, sector));
    write(STATUS, &[0xff]);
    let size = count * 512;
    let mut buffers = vec![(base + HEADER, 16, 0)];
    match kind {
        READ | WRITE => {
            let flags = if kind == READ { testing::WRITE } else { 0 };
            let data = if kind == READ { vec![0xee; 4096] } else { data(action, size) };
            write(DATA, &data);
            let mut at = 0;
            for cut in action.cuts.iter().chain([&size]) {
                let piece = (*cut).min(size - at);
                if piece > 0 {
                    buffers.push((base + DATA + at, piece, flags));
                }
                at += piece;
            }
        }
        WRITE_ZEROES => {
            write(RANGE, &range(sector, u32::try_from(count).unwrap(), is_unmap));
            buffers.push((base + RANGE, 16, 0));
        }
        _ => {}
    }
    buffers.push((base + STATUS, 1, testing::WRITE));
    let first = u16::try_from(lane).unwrap() * DESCRIPTORS;
    let last = buffers.len() - 1;
    for (i, (address, size, flags)) in buffers.into_iter().enumerate() {
        let index = first + u16::try_from(i).unwrap();
        let next = if i < last { testing::NEXT } else { 0 };
        let size = u32::try_from(size).unwrap();
        rig.drivers[0].descriptor(index, address, size, flags | next, index + 1);
    }
    rig.drivers[0].offer(first);
}

fn data(action: &Action, size: u64) -> Vec<u8> {
    pattern(usize::try_from(size).unwrap(), action.seed)
}

/// Does the same to the model, and checks what the guest got.
fn check(rig: &Rig, lane: u64, action: &Action, model: &mut [u8]) {
    let base = ARENA + lane * ARENA_SIZE;
    assert_eq!(rig.drivers[0].read(base + STATUS, 1), [OK]);
    let count = action.count.min(LANE_SECTORS - action.first);
    let first = usize::try_from((lane * LANE_SECTORS + action.first) * 512).unwrap();
    let size = usize::try_from(count * 512).unwrap();
    let place = &mut model[first..first + size];
    match action.kind & 0xffff {
        READ => assert!(rig.drivers[0].read(base + DATA, size) == *place, "{action:?}"),
        WRITE => place.copy_from_slice(&data(action, count * 512)),
        WRITE_ZEROES => place.fill(0),
        _ => {}
    }
}

fn run(engine: Engine, is_direct: bool, batches: &[Vec<Action>]) {
    let mut model = pattern(usize::try_from(SECTORS * 512).unwrap(), 77);
    let file = file(&model);
    run_on(file.path(), engine, is_direct, &mut model, batches);
}

fn run_on(path: &Path, engine: Engine, is_direct: bool, model: &mut [u8], batches: &[Vec<Action>]) {
    let options = FileOptions { engine, is_direct, is_read_only: false };
    let Ok(disk) = FileDisk::open(path, options) else {
        assert!(is_direct, "only O_DIRECT may be missing");
        return;
    };
    if disk.traits().block_size != 512 {
        return;
    }
    let mut rig = Rig::new(Arc::new(disk));
    for batch in batches {
        for (lane, action) in (0..).zip(batch) {
            offer(&mut rig, lane, action);
        }
        rig.kick(0).unwrap();
        for _ in batch {
            rig.wait_for_used(0);
        }
        for (lane, action) in (0..).zip(batch) {
            check(&rig, lane, action, model);
        }
    }
    let mut content = vec![0; model.len()];
    File::open(path).unwrap().read_exact(&mut content).unwrap();
    assert!(content == model, "the file differs from the model");
    assert_eq!(rig.count("errors"), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_requests_do_to_a_file_what_they_do_to_a_model(
        batches in prop::collection::vec(
            prop::collection::vec(action(), 1..=usize::try_from(BATCH).unwrap()), 1..12)
    ) {
        for engine in engines() {
            run(engine, false, &batches);
        }
    }

    /// `BLOCK_TEST_DEVICE` names a device that may be overwritten, such as a loop device.
    #[test]
    fn any_requests_do_to_a_block_device_what_they_do_to_a_model(
        batches in prop::collection::vec(
            prop::collection::vec(action(), 1..=usize::try_from(BATCH).unwrap()), 1..6)
    ) {
        let Some(path) = std::env::var_os("BLOCK_TEST_DEVICE") else {
            eprintln!("skipped: BLOCK_TEST_DEVICE names no block device to overwrite");
            return Ok(());
        };
        let path = Path::new(&path);
        for (engine, is_direct) in [
            (Engine::Ring, false), (Engine::Ring, true),
            (Engine::Blocking, false), (Engine::Blocking, true),
        ] {
            let mut model = pattern(usize::try_from(SECTORS * 512).unwrap(), 77);
            std::fs::OpenOptions::new().write(true).open(path).unwrap()
                .write_all(&model).unwrap();
            run_on(path, engine, is_direct, &mut model, &batches);
        }
    }

    /// With buffers cut anywhere, most of these are copied.
    #[test]
    fn the_same_past_the_page_cache(
        batches in prop::collection::vec(
            prop::collection::vec(action(), 1..=usize::try_from(BATCH).unwrap()), 1..6)
    ) {
        for engine in engines() {
            run(engine, true, &batches);
        }
    }
}
