//! What requests cost, to be looked at by hand: times on a busy machine prove nothing.
//!
//! `cargo test --release -p vmm-virtio cost -- --ignored --nocapture`, or with `strace -f -c` in
//! front of the test binary and one engine at a time for the number of system calls.

use rustix::time::{ClockId, clock_gettime};
use vm_memory::{Bytes, GuestAddress};

use super::*;

const FILE_SIZE: u64 = 64 << 20;
const REQUESTS: u64 = 40_000;
const ARENA: u64 = 0x4_0000;

#[test]
#[ignore = "measures: run it by hand"]
fn cost_of_the_ring() {
    measure(Engine::Ring);
}

#[test]
#[ignore = "measures: run it by hand"]
fn cost_of_blocking_calls() {
    measure(Engine::Blocking);
}

fn measure(engine: Engine) {
    let file = file(&pattern(usize::try_from(FILE_SIZE).unwrap(), 0));
    for (name, kind, size) in [("read 4k", READ, 4096), ("write 4k", WRITE, 4096)] {
        for depth in [1, 16] {
            report(&file, engine, name, kind, depth, size);
        }
    }
    report(&file, engine, "read 128k", READ, 4, 128 << 10);
}

fn report(
    file: &tempfile::NamedTempFile,
    engine: Engine,
    name: &str,
    kind: u32,
    depth: u16,
    size: u64,
) {
    let mut rig = Rig::new(open(file, engine));
    let requests = REQUESTS * 4096 / size;
    let (start, cpu) = (Instant::now(), cpu_time());
    let mut sector = 0;
    for _ in 0..requests / u64::from(depth) {
        for slot in 0..depth {
            sector = (sector + 7919 * size / 512) % (FILE_SIZE / 512 - size / 512);
            offer(&mut rig, slot, kind, sector, size);
        }
        rig.kick(0).unwrap();
        (0..depth).for_each(|_| {
            rig.wait_for_used(0);
        });
    }
    let (wall, cpu) = (start.elapsed(), cpu_time().checked_sub(cpu).unwrap());
    assert_eq!(rig.count("errors"), 0);
    let each =
        |time: Duration| time.as_secs_f64() * 1e6 / f64::from(u32::try_from(requests).unwrap());
    println!("{engine:?} {name} at depth {depth}: {:.2} µs CPU, {:.2} µs", each(cpu), each(wall));
}

/// One header, one buffer of pages that do not follow one another, one status.
fn offer(rig: &mut Rig, slot: u16, kind: u32, sector: u64, size: u64) {
    let base = ARENA + u64::from(slot) * 0x1000;
    rig.memory.write_slice(&header(kind, sector), GuestAddress(base)).unwrap();
    let pages = u16::try_from(size / 4096).unwrap();
    let first = slot * (pages + 2);
    let data = ARENA + 0x2_0000;
    let flags = if kind == READ { testing::WRITE } else { 0 };
    rig.drivers[0].descriptor(first, base, 16, testing::NEXT, first + 1);
    for page in 0..pages {
        let address = data + u64::from(pages - page) * 4096;
        let next = first + page + 2;
        rig.drivers[0].descriptor(first + 1 + page, address, 4096, flags | testing::NEXT, next);
    }
    rig.drivers[0].descriptor(first + 1 + pages, base + 16, 1, testing::WRITE, 0);
    rig.drivers[0].offer(first);
}

/// Of all threads, those of the kernel's that work for us included.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).unwrap())
}
