//! The driver's side of a ring, for tests: writes descriptors, kicks, and reads what was used.
//!
//! Hostile as well as well-behaved: [`Driver`] can write any descriptor and any index.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::memory::{Memory, SharedMemory};
use crate::{Interrupt, Queue};

/// `VIRTQ_DESC_F_NEXT`.
pub const NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`.
pub const WRITE: u16 = 2;
/// `VIRTQ_DESC_F_INDIRECT`.
pub const INDIRECT: u16 = 4;

/// Guest memory of `size` bytes from address 0.
///
/// # Panics
/// When the host has none.
#[must_use]
pub fn memory(size: usize) -> SharedMemory {
    let region = (GuestAddress(0), size);
    Arc::new(Memory::from_ranges(&[region]).expect("memory for a test"))
}

/// Counts interrupts instead of raising them.
#[derive(Debug, Default)]
pub struct Interrupts {
    queues: Mutex<Vec<u16>>,
    config: AtomicU32,
}

impl Interrupts {
    /// The queues that interrupted since the last call, in order.
    ///
    /// # Panics
    /// When a test panicked while it was asked.
    pub fn take(&self) -> Vec<u16> {
        std::mem::take(&mut *self.queues.lock().expect("no panic"))
    }

    /// Configuration changes so far.
    pub fn config_count(&self) -> u32 {
        self.config.load(Ordering::Relaxed)
    }
}

impl Interrupt for Interrupts {
    fn queue(&self, index: u16) {
        self.queues.lock().expect("no panic").push(index);
    }

    fn config(&self) {
        self.config.fetch_add(1, Ordering::Relaxed);
    }
}

/// A driver of one queue, whose rings and buffers lie in 1 MiB of guest memory from `base`.
#[derive(Debug)]
pub struct Driver {
    memory: SharedMemory,
    kick: EventFd,
    base: u64,
    size: u16,
    next_descriptor: u16,
    available: u16,
    used: u16,
    next_buffer: u64,
}

/// A buffer that a driver offers.
#[derive(Clone, Debug)]
pub enum Buffer {
    /// For the device to read.
    Readable(Vec<u8>),
    /// For the device to write: so many bytes.
    Writable(u32),
}

const AVAILABLE_RING: u64 = 0x1_0000;
const USED_RING: u64 = 0x2_0000;
const BUFFERS: u64 = 0x4_0000;
/// Guest memory that a [`Driver`] takes.
pub const DRIVER_SIZE: u64 = 0x10_0000;

impl Driver {
    /// Sets up queue `index` of `size` descriptors, and returns the device's side of it too.
    ///
    /// # Panics
    /// When the memory does not hold it, or the host has no descriptors left.
    pub fn new(
        memory: &SharedMemory,
        base: u64,
        index: u16,
        size: u16,
        has_event_idx: bool,
        interrupt: Arc<dyn Interrupt>,
    ) -> (Self, Queue) {
        let mut ring = virtio_queue::Queue::new(size).expect("a power of two");
        ring.try_set_desc_table_address(GuestAddress(base)).expect("aligned");
        ring.try_set_avail_ring_address(GuestAddress(base + AVAILABLE_RING)).expect("aligned");
        ring.try_set_used_ring_address(GuestAddress(base + USED_RING)).expect("aligned");
        ring.set_event_idx(has_event_idx);
        ring.set_ready(true);
        assert!(ring.is_valid(&**memory), "rings within memory");
        let driver = Self::alone(memory, base, size);
        let kick = driver.kick.try_clone().expect("a descriptor");
        let queue = Queue::new(index, ring, Arc::clone(memory), kick, interrupt);
        (driver, queue)
    }

    /// The driver's side alone, for a queue that is set up through a transport: its kicks go
    /// nowhere.
    ///
    /// # Panics
    /// When the host has no descriptors left.
    #[must_use]
    pub fn alone(memory: &SharedMemory, base: u64, size: u16) -> Self {
        Self {
            memory: Arc::clone(memory),
            kick: EventFd::new(EFD_NONBLOCK).expect("an eventfd"),
            base,
            size,
            next_descriptor: 0,
            available: 0,
            used: 0,
            next_buffer: base + BUFFERS,
        }
    }

    /// Writes descriptor `index` of the table as it is told.
    ///
    /// # Panics
    /// When the table does not lie in guest memory.
    pub fn descriptor(&self, index: u16, address: u64, size: u32, flags: u16, next: u16) {
        self.descriptor_at(self.base + u64::from(index) * 16, address, size, flags, next);
    }

    /// Writes a descriptor to `place`, for indirect tables.
    ///
    /// # Panics
    /// When that is not guest memory.
    pub fn descriptor_at(&self, place: u64, address: u64, size: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&size.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.memory.write_slice(&bytes, GuestAddress(place)).expect("guest memory");
    }

    /// Makes the chain that begins at `head` available, and kicks.
    ///
    /// # Panics
    /// When the ring does not lie in guest memory.
    pub fn offer(&mut self, head: u16) {
        let ring = self.base + AVAILABLE_RING;
        let slot = ring + 4 + u64::from(self.available % self.size) * 2;
        self.memory.write_slice(&head.to_le_bytes(), GuestAddress(slot)).expect("guest memory");
        self.set_available(self.available.wrapping_add(1));
    }

    /// Moves the available index, true or not, and kicks.
    ///
    /// # Panics
    /// When the ring does not lie in guest memory.
    pub fn set_available(&mut self, index: u16) {
        self.available = index;
        let place = GuestAddress(self.base + AVAILABLE_RING + 2);
        self.memory.store(index.to_le(), place, Ordering::Release).expect("guest memory");
        self.kick.write(1).expect("an eventfd");
    }

    /// Sets `used_event`: the device interrupts once it has used buffer `index`.
    ///
    /// # Panics
    /// When the ring does not lie in guest memory.
    pub fn set_used_event(&self, index: u16) {
        let place = self.base + AVAILABLE_RING + 4 + u64::from(self.size) * 2;
        self.memory.store(index.to_le(), GuestAddress(place), Ordering::Release).expect("memory");
    }

    /// Room for `size` bytes in guest memory, never used before.
    ///
    /// # Panics
    /// When there is none left.
    pub fn allocate(&mut self, size: u64) -> u64 {
        let address = self.next_buffer;
        self.next_buffer = (address + size).next_multiple_of(16);
        assert!(self.next_buffer <= self.base + DRIVER_SIZE, "the driver's memory is used up");
        address
    }

    /// Offers `buffers` as one chain, and returns its head and where its buffers are.
    ///
    /// # Panics
    /// When the driver's memory is used up.
    pub fn add(&mut self, buffers: &[Buffer]) -> (u16, Vec<u64>) {
        let head = self.next_descriptor % self.size;
        let mut addresses = Vec::new();
        for (i, buffer) in buffers.iter().enumerate() {
            let index = self.next_descriptor % self.size;
            self.next_descriptor = self.next_descriptor.wrapping_add(1);
            let (bytes, size, mut flags) = match buffer {
                Buffer::Readable(bytes) => {
                    (bytes.as_slice(), u32::try_from(bytes.len()).expect("small"), 0)
                }
                Buffer::Writable(size) => (&[][..], *size, WRITE),
            };
            let address = self.allocate(u64::from(size));
            self.memory.write_slice(bytes, GuestAddress(address)).expect("guest memory");
            if i + 1 < buffers.len() {
                flags |= NEXT;
            }
            self.descriptor(index, address, size, flags, (index + 1) % self.size);
            addresses.push(address);
        }
        self.offer(head);
        (head, addresses)
    }

    /// The next used chain: its head, and how many bytes were written.
    ///
    /// # Panics
    /// When the ring does not lie in guest memory.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        let ring = self.base + USED_RING;
        let index: u16 =
            self.memory.load(GuestAddress(ring + 2), Ordering::Acquire).expect("guest memory");
        if u16::from_le(index) == self.used {
            return None;
        }
        let slot = ring + 4 + u64::from(self.used % self.size) * 8;
        self.used = self.used.wrapping_add(1);
        let head: u32 = self.memory.read_obj(GuestAddress(slot)).expect("guest memory");
        let size: u32 = self.memory.read_obj(GuestAddress(slot + 4)).expect("guest memory");
        Some((u16::try_from(u32::from_le(head)).expect("a head"), u32::from_le(size)))
    }

    /// Reads guest memory.
    ///
    /// # Panics
    /// When it is not guest memory.
    #[must_use]
    pub fn read(&self, address: u64, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).expect("guest memory");
        bytes
    }
}
