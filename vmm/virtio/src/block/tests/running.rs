//! What happens over time: order, limits, several queues, failures, the end.

use std::io;
use std::sync::Mutex;

use serde_json::json;

use super::fake::{FAKE_SIZE, FakeDisk};
use super::*;
use crate::block::BlockError;
use crate::block::storage::{Done, Lane, Operation, Traits};
use crate::rate_limiter::{Bucket, RateLimits};
use crate::{DeviceError, Interest};

fn fake(options: &BlockOptions, features: u64) -> (Rig, FakeDisk) {
    let disk = FakeDisk::new();
    (Rig::with(Arc::new(disk.clone()), options, features), disk)
}

fn out() -> Payload {
    Payload::Out(vec![1; 512])
}

/// Ends an operation well, and lets the unit know.
fn end(rig: &mut Rig, disk: &FakeDisk, index: usize) {
    disk.end(index, Ok(()));
    rig.units[0].ready(0).unwrap();
}

#[test]
fn a_flush_waits_for_the_writes_before_it() {
    let (mut rig, disk) = fake(&BlockOptions::default(), u64::MAX);
    rig.add(WRITE, 0, out());
    rig.add(DISCARD, 0, Payload::Out(range(8, 8, 0)));
    rig.add(READ, 1, Payload::In(512));
    let flush = rig.add(FLUSH, 0, Payload::None);
    rig.add(WRITE, 2, out());
    rig.kick(0).unwrap();
    assert_eq!(disk.started(), ["write 0", "discard 4096 4096", "read 512", "write 1024"]);
    end(&mut rig, &disk, 1);
    assert_eq!(disk.started(), ["write 0", "read 512", "write 1024"]);
    end(&mut rig, &disk, 0);
    assert_eq!(disk.started(), ["read 512", "write 1024", "flush"]);
    end(&mut rig, &disk, 2);
    let used: Vec<u16> =
        std::iter::from_fn(|| rig.drivers[0].take_used()).map(|(head, _)| head).collect();
    assert_eq!(used.last(), Some(&flush.head));
    assert_eq!(used.len(), 3);
}

/// virtio 1.3 §5.2.6.2: without a way to flush, what is answered is durable.
#[test]
fn writes_are_written_through_for_drivers_that_cannot_flush() {
    let without = !(1 << abi::VIRTIO_BLK_F_FLUSH);
    let (mut rig, disk) = fake(&BlockOptions::default(), without);
    // It has no switch either.
    rig.device.write_config(32, &[1]);
    let pending = rig.add(WRITE, 0, out());
    rig.kick(0).unwrap();
    end(&mut rig, &disk, 0);
    assert_eq!((disk.started(), rig.drivers[0].take_used()), (vec!["flush".into()], None));
    end(&mut rig, &disk, 0);
    assert_eq!(rig.answer(&pending).status, OK);
    let zeroes = rig.add(WRITE_ZEROES, 0, Payload::Out([range(0, 1, 0), range(1, 1, 1)].concat()));
    rig.kick(0).unwrap();
    for _ in 0..3 {
        end(&mut rig, &disk, 0);
    }
    assert_eq!(rig.answer(&zeroes).status, OK);
    assert_eq!(rig.count("flushes"), 0);
}

/// virtio 1.3 §5.2.5.2: the driver sees what is in force, and changes it.
#[test]
fn the_driver_may_turn_the_write_cache_off_and_on() {
    let (mut rig, disk) = fake(&BlockOptions::default(), u64::MAX);
    for (value, operations) in [(0, 2), (1, 1), (2, 1), (0, 2)] {
        rig.device.write_config(32, &[value]);
        rig.device.write_config(0, &[9; 8]);
        let pending = rig.add(WRITE, 0, out());
        rig.kick(0).unwrap();
        for _ in 0..operations {
            assert_eq!(rig.drivers[0].take_used(), None);
            end(&mut rig, &disk, 0);
        }
        assert_eq!(rig.answer(&pending).status, OK);
        let mut config = [0; 33];
        rig.device.config().read(0, &mut config);
        assert_eq!((config[32], config[1]), (u8::from(value != 0), 8));
    }
    rig.device.reset();
    let mut writeback = [0];
    rig.device.config().read(32, &mut writeback);
    assert_eq!(writeback, [1]);
}

#[test]
fn an_operation_that_fails_is_an_error_and_ends_its_request() {
    let (mut rig, disk) = fake(&BlockOptions::default(), 0);
    for kind in [READ, WRITE] {
        let payload = if kind == READ { Payload::In(512) } else { out() };
        let pending = rig.add(kind, 0, payload);
        rig.kick(0).unwrap();
        disk.end(0, Err(io::Error::other("scratched")));
        let answer = rig.answer(&pending);
        assert_eq!((answer.status, answer.used), (IO_ERROR, 1));
    }
    assert!(disk.started().is_empty(), "nothing is synced that was not written");
    assert_eq!((rig.count("errors"), rig.count("reads"), rig.count("writes")), (2, 0, 0));
    let (mut rig, disk) = fake(&BlockOptions::default(), u64::MAX);
    let ranges = Payload::Out([range(0, 1, 0), range(1, 1, 0)].concat());
    let pending = rig.add(DISCARD, 0, ranges);
    rig.kick(0).unwrap();
    disk.end(0, Err(io::Error::other("scratched")));
    assert_eq!(rig.answer(&pending).status, IO_ERROR);
    assert!(disk.started().is_empty());
}

#[test]
fn a_lane_that_breaks_stops_the_device() {
    let (mut rig, disk) = fake(&BlockOptions::default(), u64::MAX);
    rig.add(READ, 0, Payload::In(512));
    disk.break_lanes();
    assert!(matches!(rig.kick(0), Err(UnitError::Host { .. })));
    assert_eq!(rig.units.remove(0).stop().len(), 1);
}

#[test]
fn no_more_is_in_flight_than_the_queue_has_descriptors() {
    let options = BlockOptions { queue_size: 4, ..BlockOptions::default() };
    let (mut rig, disk) = fake(&options, u64::MAX);
    // A hostile driver offers one chain over and over.
    rig.add(READ, 0, Payload::In(512));
    for round in 0..20 {
        rig.drivers[0].offer(0);
        rig.kick(0).unwrap();
        assert_eq!(disk.started().len(), (round + 2).min(4));
        if round >= 2 {
            end(&mut rig, &disk, 0);
        }
    }
}

/// A disk whose every request makes the driver offer another.
struct Greedy(Arc<Mutex<Option<Driver>>>);

impl Storage for Greedy {
    fn size(&self) -> io::Result<u64> {
        Ok(FAKE_SIZE)
    }

    fn traits(&self) -> Traits {
        FakeDisk::new().traits()
    }

    fn open_lane(&self, _: &SharedMemory, _: u16) -> io::Result<Box<dyn Lane>> {
        Ok(Box::new(GreedyLane(Arc::clone(&self.0), Vec::new())))
    }
}

struct GreedyLane(Arc<Mutex<Option<Driver>>>, Vec<Done>);

impl Lane for GreedyLane {
    fn start(&mut self, tag: u16, _: Operation<'_>) {
        self.0.lock().unwrap().as_mut().expect("a driver").offer(0);
        self.1.push(Done { tag, result: Ok(()) });
    }

    fn turn(&mut self, done: &mut Vec<Done>) -> io::Result<()> {
        done.append(&mut self.1);
        Ok(())
    }

    fn cancel(&mut self) {}

    fn is_busy(&self) -> bool {
        false
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

#[test]
fn a_driver_that_never_stops_does_not_keep_the_thread() {
    let (shared, memory) = (Arc::new(Mutex::new(None)), testing::memory(1 << 20));
    let mut device =
        Block::new(Arc::new(Greedy(Arc::clone(&shared))), &BlockOptions::default()).unwrap();
    let interrupt = Arc::new(Interrupts::default());
    let (mut driver, queue) = Driver::new(&memory, 0, 0, 4, true, interrupt);
    driver.add(&[Buffer::Readable(header(READ, 0)), Buffer::Writable(513)]);
    *shared.lock().unwrap() = Some(driver);
    let queues = vec![Some(queue)];
    let mut units = device.activate(Activation { memory, features: 0, queues }).unwrap();
    let kicks = units[0].queues()[0].kick().try_clone().unwrap();
    for round in 1..4 {
        let _ = kicks.read();
        units[0].kicked(0).unwrap();
        assert_eq!(device.shared.counts.reads.value(), 16 * round);
        assert_eq!(kicks.read().unwrap(), 16 + 1, "the driver's, and the unit's own");
    }
}

#[test]
fn queues_work_side_by_side() {
    for engine in engines() {
        let file = file(&pattern(16 * 4096, 0));
        let options = BlockOptions { queues: 4, ..BlockOptions::default() };
        let mut rig = Rig::with(open(&file, engine), &options, u64::MAX);
        assert_eq!(rig.units.len(), 4);
        for round in 0..4_usize {
            for queue in 0..4_u16 {
                let place = round * 4 + usize::from(queue);
                let sector = u64::try_from(place * 8).unwrap();
                rig.drivers[usize::from(queue)].add(&[
                    Buffer::Readable(header(WRITE, sector)),
                    Buffer::Readable(pattern(4096, place + 100)),
                    Buffer::Writable(1),
                ]);
                rig.kick(queue).unwrap();
            }
        }
        for queue in 0..4 {
            for _ in 0..4 {
                rig.wait_for_used(queue);
            }
        }
        let content = std::fs::read(file.path()).unwrap();
        for place in 0..16 {
            assert_eq!(content[place * 4096..][..4096], pattern(4096, place + 100), "{place}");
        }
        assert_eq!(rig.count("written_bytes"), 16 * 4096);
    }
}

#[test]
fn a_disk_that_shrinks_gives_errors_and_not_zeroes() {
    for engine in engines() {
        let file = file(&pattern(64 << 10, 0));
        let mut rig = Rig::new(open(&file, engine));
        file.as_file().set_len(10_000).unwrap();
        assert_eq!(rig.status(READ, 0, Payload::In(4096)), OK);
        assert_eq!(rig.status(READ, 16, Payload::In(4096)), IO_ERROR);
        assert_eq!(rig.status(READ, 120, Payload::In(4096)), IO_ERROR);
        assert_eq!(rig.count("errors"), 2);
        assert_eq!(rig.handle.resize().unwrap(), 19 * 512);
        assert_eq!(rig.status(READ, 18, Payload::In(512)), OK);
    }
}

#[test]
fn the_driver_learns_of_a_new_size() {
    let (mut rig, disk) = fake(&BlockOptions::default(), u64::MAX);
    let beyond = FAKE_SIZE / 512;
    assert_eq!(rig.status(WRITE, beyond, out()), IO_ERROR);
    assert_eq!(rig.handle.resize().unwrap(), FAKE_SIZE);
    assert_eq!(rig.interrupts.config_count(), 0);
    disk.set_size(2 * FAKE_SIZE + 511);
    assert_eq!(rig.handle.resize().unwrap(), 2 * FAKE_SIZE);
    assert_eq!((rig.interrupts.config_count(), rig.handle.capacity()), (1, 2 * FAKE_SIZE));
    let mut capacity = [0; 8];
    rig.device.config().read(0, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), 2 * beyond);
    rig.add(WRITE, beyond, out());
    rig.kick(0).unwrap();
    assert_eq!(disk.started(), [format!("write {FAKE_SIZE}")]);
}

#[test]
fn limits_delay_requests_and_lose_none() {
    for engine in engines() {
        let file = file(&pattern(64 << 10, 0));
        let bucket = Bucket::new(3, Duration::from_millis(60), 0).unwrap();
        let limits = RateLimits { operations: Some(bucket), bytes: None };
        let options = BlockOptions { limits, ..BlockOptions::default() };
        let start = Instant::now();
        let mut rig = Rig::with(open(&file, engine), &options, u64::MAX);
        let pending: Vec<Pending> = (0..7).map(|i| rig.add(READ, i, Payload::In(512))).collect();
        rig.kick(0).unwrap();
        assert!(rig.units[0].deadline().is_some());
        let mut heads: Vec<u16> = pending.iter().map(|pending| pending.head).collect();
        while !heads.is_empty() {
            let (head, _) = rig.wait_for_used(0);
            heads.retain(|other| *other != head);
        }
        assert!(start.elapsed() >= Duration::from_millis(80), "{:?}", start.elapsed());
        assert!(rig.count("throttled") >= 1);
        rig.handle.set_limits(&RateLimits::default());
        assert_eq!(rig.status(READ, 9, Payload::In(512)), OK);
        assert_eq!(rig.units[0].deadline(), None);
    }
}

#[test]
fn a_queue_that_stops_finishes_what_is_in_flight() {
    let (mut rig, disk) = fake(&BlockOptions::default(), u64::MAX);
    let write = rig.add(WRITE, 0, out());
    let flush = rig.add(FLUSH, 0, Payload::None);
    rig.kick(0).unwrap();
    let late = std::thread::spawn(move || {
        for _ in 0..2 {
            while disk.started().is_empty() {
                std::thread::sleep(Duration::from_millis(5));
            }
            std::thread::sleep(Duration::from_millis(20));
            disk.end(0, Ok(()));
        }
    });
    let mut queues = rig.units.remove(0).stop();
    late.join().unwrap();
    assert_eq!(queues.remove(0).into_ring().state_of_ring(), (2, 2));
    for pending in [write, flush] {
        let (head, used) = rig.drivers[0].take_used().unwrap();
        assert_eq!((head, rig.read(&pending, used).status), (pending.head, OK));
    }
    assert!(!rig.interrupts.take().is_empty());
}

/// Where a ring stands in both directions.
trait RingState {
    fn state_of_ring(&self) -> (u16, u16);
}

impl RingState for virtio_queue::Queue {
    fn state_of_ring(&self) -> (u16, u16) {
        use virtio_queue::QueueT;
        (self.next_avail(), self.next_used())
    }
}

#[test]
fn a_queue_that_stops_while_limited_leaves_the_rest_in_the_ring() {
    let bucket = Bucket::new(1, Duration::from_secs(3600), 0).unwrap();
    let limits = RateLimits { operations: Some(bucket), bytes: None };
    let file = file(&pattern(4096, 0));
    let options = BlockOptions { limits, ..BlockOptions::default() };
    let mut rig = Rig::with(open(&file, Engine::Blocking), &options, u64::MAX);
    for sector in 0..3 {
        rig.add(READ, sector, Payload::In(512));
    }
    rig.kick(0).unwrap();
    let queue = rig.units.remove(0).stop().remove(0);
    assert_eq!(queue.into_ring().state_of_ring(), (1, 1));
}

/// A disk with one read in flight that does not end, in a unit that is patient for 50 ms.
fn hanging() -> (FakeDisk, Driver, Box<dyn Unit>) {
    let disk = FakeDisk::new();
    let mut device = Block::new(Arc::new(disk.clone()), &BlockOptions::default()).unwrap();
    Arc::get_mut(&mut device.shared).unwrap().stop_limit = Duration::from_millis(50);
    let memory = testing::memory(1 << 20);
    let interrupt = Arc::new(Interrupts::default());
    let (mut driver, queue) = Driver::new(&memory, 0, 0, 8, true, interrupt);
    driver.add(&[Buffer::Readable(header(READ, 0)), Buffer::Writable(513)]);
    let queues = vec![Some(queue)];
    let mut units = device.activate(Activation { memory, features: 0, queues }).unwrap();
    units[0].kicked(0).unwrap();
    (disk, driver, units.remove(0))
}

#[test]
fn a_queue_that_stops_cancels_what_does_not_end() {
    let (disk, mut driver, unit) = hanging();
    let start = Instant::now();
    assert_eq!(unit.stop().len(), 1);
    assert!(start.elapsed() >= Duration::from_millis(50) && start.elapsed() < PATIENCE);
    assert_eq!((disk.started().len(), driver.take_used()), (0, Some((0, 1))));
}

/// Whoever gets a queue back lets the guest use its buffers for something else.
#[test]
fn no_queue_comes_back_while_the_host_may_write_guest_memory() {
    for breaks in [false, true] {
        let (disk, mut driver, unit) = hanging();
        disk.ignore_cancels();
        if breaks {
            disk.break_lanes();
        }
        let stopping = std::thread::spawn(move || unit.stop().len());
        std::thread::sleep(Duration::from_millis(300));
        assert!(!stopping.is_finished(), "a read may still land");
        disk.end(0, Ok(()));
        assert_eq!(stopping.join().unwrap(), 1);
        let answer = if breaks { None } else { Some((0, 513)) };
        assert_eq!(driver.take_used(), answer);
    }
}

#[test]
fn real_requests_are_finished_when_a_queue_stops() {
    for engine in engines() {
        let file = file(&vec![0; 1 << 20]);
        let mut rig = Rig::new(open(&file, engine));
        let writes: Vec<Pending> =
            (0..40).map(|i| rig.add(WRITE, i * 8, Payload::Out(pattern(4096, 1)))).collect();
        rig.add(FLUSH, 0, Payload::None);
        rig.kick(0).unwrap();
        rig.units.remove(0).stop();
        let used = std::iter::from_fn(|| rig.drivers[0].take_used()).count();
        assert_eq!(used, 41);
        assert_eq!(rig.count("errors"), 0);
        let content = std::fs::read(file.path()).unwrap();
        for i in 0..writes.len() {
            assert_eq!(content[i * 4096..][..4096], pattern(4096, 1));
        }
    }
}

#[test]
fn a_batch_interrupts_once() {
    for engine in engines() {
        let file = file(&pattern(64 << 10, 0));
        std::fs::read(file.path()).unwrap();
        let mut rig = Rig::with(open(&file, engine), &BlockOptions::default(), 0);
        for sector in 0..16 {
            rig.add(READ, sector, Payload::In(512));
        }
        rig.kick(0).unwrap();
        for _ in 0..16 {
            rig.wait_for_used(0);
        }
        // All of it was in the page cache.
        assert_eq!(rig.interrupts.take(), [0], "{engine:?}");
    }
}

#[test]
fn a_snapshot_knows_its_disk() {
    let (rig, disk) = fake(&BlockOptions::default(), u64::MAX);
    let state = rig.device.save().unwrap();
    assert_eq!(state, json!({ "capacity": FAKE_SIZE, "is_writeback": true }));
    let new = |size| {
        disk.set_size(size);
        Block::new(Arc::new(disk.clone()), &BlockOptions::default()).unwrap()
    };
    new(FAKE_SIZE).restore(state.clone()).unwrap();
    let mut grown = new(2 * FAKE_SIZE);
    grown.config.update(|bytes| bytes[..8].fill(0));
    let off = json!({ "capacity": FAKE_SIZE, "is_writeback": false });
    grown.restore(off.clone()).unwrap();
    assert_eq!(grown.save().unwrap()["is_writeback"], json!(false));
    let mut capacity = [0; 8];
    grown.config.read(0, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), 2 * FAKE_SIZE / 512);
    let error = new(FAKE_SIZE - 512).restore(state).unwrap_err();
    assert_eq!(error.to_string(), "the disk has 1048064 bytes, where the guest knows 1048576");
    for nonsense in [json!(null), json!({ "capacity": -1 }), json!([0]), json!("x")] {
        assert!(new(FAKE_SIZE).restore(nonsense).is_err());
    }
    // Of what the guest knows, the size and the medium may differ, the geometry may not.
    let seen = rig.device.config.save();
    let mut grown = new(2 * FAKE_SIZE);
    grown.restore_config(&seen).unwrap();
    let capacity = grown.config.save()[..8].to_vec();
    assert_eq!(capacity, (2 * FAKE_SIZE / 512).to_le_bytes());
    let mut other = seen.clone();
    other[20..24].copy_from_slice(&4096_u32.to_le_bytes());
    let error = grown.restore_config(&other).unwrap_err().to_string();
    assert_eq!(error, "the guest knows a block size of 4096, this device has 512");
    grown.restore_config(&seen[..8]).unwrap_err();
}

#[test]
fn a_device_needs_a_queue_and_a_lane() {
    let disk = FakeDisk::new();
    let mut device = Block::new(Arc::new(disk.clone()), &BlockOptions::default()).unwrap();
    let memory = testing::memory(1 << 20);
    let activation =
        Activation { memory: Arc::clone(&memory), features: 0, queues: vec![None, None] };
    let error = device.activate(activation).err().unwrap();
    assert!(matches!(error, DeviceError::QueueMissing { index: 0 }));
    disk.refuse_lanes();
    let interrupt = Arc::new(Interrupts::default());
    let (_driver, queue) = Driver::new(&memory, 0, 0, 8, true, interrupt);
    let activation = Activation { memory, features: 0, queues: vec![Some(queue)] };
    let error = device.activate(activation).err().unwrap();
    assert!(matches!(error, DeviceError::Host { .. }));
}

#[test]
fn options_out_of_range_are_refused() {
    let new = |options: BlockOptions| Block::new(Arc::new(FakeDisk::new()), &options).err();
    let options = BlockOptions::default;
    for queues in [0, 17, u16::MAX] {
        let error = new(BlockOptions { queues, ..options() });
        assert!(matches!(error, Some(BlockError::Queues(_))), "{queues}");
    }
    for queue_size in [0, 2, 3, 100, 2048] {
        let error = new(BlockOptions { queue_size, ..options() });
        assert!(matches!(error, Some(BlockError::QueueSize(_))), "{queue_size}");
    }
    let error = new(BlockOptions { serial: "123456789012345678901".into(), ..options() });
    assert!(matches!(error, Some(BlockError::Serial(_))));
    assert!(new(BlockOptions { serial: "12345678901234567890".into(), ..options() }).is_none());
}

#[test]
fn the_ring_is_watched_as_long_as_it_lives() {
    if !has_ring() {
        return;
    }
    let file = file(&[0; 4096]);
    let rig = Rig::new(open(&file, Engine::Ring));
    let sources = rig.units[0].sources();
    assert_eq!(sources.len(), 1);
    assert_eq!(sources[0].interest, Interest::Read);
}
