//! The block device through real rings in real memory, over files and over a disk that does what a
//! test tells it.

mod fake;
mod model;
mod requests;
mod running;

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use virtio_bindings::virtio_blk as abi;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::file::{Engine, FileDisk, FileOptions};
use super::storage::Storage;
use super::{Block, BlockHandle, BlockOptions};
use crate::memory::SharedMemory;
use crate::testing::{self, Buffer, DRIVER_SIZE, Driver, Interrupts};
use crate::{Activation, Device, Interrupt, Unit, UnitError};

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

const READ: u32 = abi::VIRTIO_BLK_T_IN;
const WRITE: u32 = abi::VIRTIO_BLK_T_OUT;
const FLUSH: u32 = abi::VIRTIO_BLK_T_FLUSH;
const GET_ID: u32 = abi::VIRTIO_BLK_T_GET_ID;
const DISCARD: u32 = abi::VIRTIO_BLK_T_DISCARD;
const WRITE_ZEROES: u32 = abi::VIRTIO_BLK_T_WRITE_ZEROES;

/// No test waits longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A device whose driver accepted everything, at work.
struct Rig {
    memory: SharedMemory,
    device: Block,
    handle: BlockHandle,
    drivers: Vec<Driver>,
    units: Vec<Box<dyn Unit>>,
    interrupts: Arc<Interrupts>,
}

impl Rig {
    fn new(storage: Arc<dyn Storage>) -> Self {
        Self::with(storage, &BlockOptions::default(), u64::MAX)
    }

    /// `features` are those that the driver knows.
    fn with(storage: Arc<dyn Storage>, options: &BlockOptions, features: u64) -> Self {
        let mut device = Block::new(storage, options).unwrap();
        let count = u64::from(options.queues);
        let memory = testing::memory(usize::try_from(count * DRIVER_SIZE).unwrap());
        let interrupts = Arc::new(Interrupts::default());
        let features = device.features() & features;
        let has_event_idx = features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let (mut drivers, mut queues) = (Vec::new(), Vec::new());
        for index in 0..options.queues {
            let (base, size) = (u64::from(index) * DRIVER_SIZE, options.queue_size);
            let interrupt = Arc::clone(&interrupts) as Arc<dyn Interrupt>;
            let (driver, queue) = Driver::new(&memory, base, index, size, has_event_idx, interrupt);
            drivers.push(driver);
            queues.push(Some(queue));
        }
        device.config().announce_to(Some(Arc::clone(&interrupts) as Arc<dyn Interrupt>));
        let activation = Activation { memory: Arc::clone(&memory), features, queues };
        let units = device.activate(activation).unwrap();
        let handle = device.handle();
        Self { memory, device, handle, drivers, units, interrupts }
    }

    /// Makes a request of the usual shape, and kicks.
    fn add(&mut self, kind: u32, sector: u64, payload: Payload) -> Pending {
        let mut buffers = vec![Buffer::Readable(header(kind, sector))];
        match payload {
            Payload::None => {}
            Payload::Out(bytes) => buffers.push(Buffer::Readable(bytes)),
            Payload::In(size) => buffers.push(Buffer::Writable(size)),
        }
        buffers.push(Buffer::Writable(1));
        self.add_chain(&buffers)
    }

    fn add_chain(&mut self, buffers: &[Buffer]) -> Pending {
        let (head, addresses) = self.drivers[0].add(buffers);
        let size = |buffer: &Buffer| match buffer {
            Buffer::Readable(_) => 0,
            Buffer::Writable(size) => *size,
        };
        let places = addresses.into_iter().zip(buffers.iter().map(size));
        Pending { head, places: places.filter(|place| place.1 > 0).collect() }
    }

    /// Serves queue 0 until `pending` is answered, and takes the answer; others must wait.
    fn answer(&mut self, pending: &Pending) -> Answer {
        let (head, used) = self.wait_for_used(0);
        assert_eq!(head, pending.head);
        self.read(pending, used)
    }

    fn read(&self, pending: &Pending, used: u32) -> Answer {
        let bytes = |&(address, size): &(u64, u32)| {
            self.drivers[0].read(address, usize::try_from(size).unwrap())
        };
        let mut data: Vec<u8> = pending.places.iter().flat_map(bytes).collect();
        let status = data.pop().expect("a status");
        Answer { status, data, used }
    }

    /// Makes a request and waits for its answer.
    fn request(&mut self, kind: u32, sector: u64, payload: Payload) -> Answer {
        let pending = self.add(kind, sector, payload);
        self.kick(0).unwrap();
        self.answer(&pending)
    }

    fn status(&mut self, kind: u32, sector: u64, payload: Payload) -> u8 {
        self.request(kind, sector, payload).status
    }

    fn kick(&mut self, index: u16) -> Result<(), UnitError> {
        let _ = self.units[usize::from(index)].queues()[0].kick().read();
        self.units[usize::from(index)].kicked(index)
    }

    /// Plays the event loop until queue `index` has something used.
    fn wait_for_used(&mut self, index: usize) -> (u16, u32) {
        let give_up = Instant::now() + PATIENCE;
        loop {
            if let Some(used) = self.drivers[index].take_used() {
                return used;
            }
            assert!(Instant::now() < give_up, "nothing used in {PATIENCE:?}");
            self.turn(index).unwrap();
        }
    }

    /// One turn of an event loop: waits for what the unit waits for, and calls it.
    fn turn(&mut self, index: usize) -> Result<(), UnitError> {
        let unit = &mut self.units[index];
        let now = Instant::now();
        if let Some(deadline) = unit.deadline() {
            std::thread::sleep(deadline.saturating_duration_since(now));
            return unit.expired(Instant::now());
        }
        for source in unit.sources() {
            // SAFETY: the unit keeps it open, and is not called meanwhile.
            let descriptor = unsafe { BorrowedFd::borrow_raw(source.descriptor) };
            let mut polled = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
            let wait = rustix::event::Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
            if poll(&mut polled, Some(&wait)).unwrap_or(0) > 0 {
                unit.ready(source.token)?;
            }
        }
        Ok(())
    }

    fn count(&self, name: &str) -> u64 {
        let counters = self.device.counters();
        counters.iter().find(|counter| counter.0 == name).expect("a counter").1.value()
    }
}

/// What goes with a request.
enum Payload {
    None,
    /// For the device.
    Out(Vec<u8>),
    /// From the device: so much.
    In(u32),
}

/// A request that was made: its head, and where the device writes.
struct Pending {
    head: u16,
    places: Vec<(u64, u32)>,
}

#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u8,
    data: Vec<u8>,
    used: u32,
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut bytes = vec![0; 16];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    bytes
}

fn range(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(count.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

/// A file of `content`, on a disk rather than in memory where there is one.
fn file(content: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), content).unwrap();
    file
}

fn open(file: &tempfile::NamedTempFile, engine: Engine) -> Arc<FileDisk> {
    let options = FileOptions { engine, ..FileOptions::default() };
    Arc::new(FileDisk::open(file.path(), options).unwrap())
}

/// Whether this host has io_uring; a container may forbid it.
fn has_ring() -> bool {
    let (file, memory) = (file(&[0; 512]), testing::memory(1 << 20));
    let has_ring = open(&file, Engine::Ring).open_lane(&memory, 4).is_ok();
    if !has_ring {
        println!("no io_uring here: only the blocking engine is tested");
    }
    has_ring
}

fn engines() -> Vec<Engine> {
    if has_ring() { vec![Engine::Blocking, Engine::Ring] } else { vec![Engine::Blocking] }
}

/// Bytes that differ from sector to sector and within one.
fn pattern(size: usize, seed: usize) -> Vec<u8> {
    (0..size).map(|i| u8::try_from((i * 7 + i / 512 * 13 + seed) % 251).unwrap()).collect()
}
