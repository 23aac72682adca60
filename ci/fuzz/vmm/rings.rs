//! A device behind rings in guest memory, and a driver that does with them what a script says.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_virtio::memory::{Bytes, GuestAddress, SharedMemory};
use vmm_virtio::testing::{self, DRIVER_SIZE, Driver, INDIRECT, Interrupts, NEXT, WRITE};
use vmm_virtio::{Activation, Device, Interrupt, Queue, Unit, UnitError};

use super::script::Script;

/// Operations of one script.
const OPERATION_COUNT_MAX: u32 = 300;
/// Where buffers begin in a driver's memory, behind the rings.
const BUFFERS: u64 = 0x4_0000;
const EVENT_IDX: u64 = 1 << 29;
/// The operations of [`Rings::step`]; a device's own come after them.
const COMMON_COUNT: u8 = 12;

/// The device, at work.
pub(crate) struct Rings {
    pub(crate) memory: SharedMemory,
    device: Box<dyn Device>,
    features: u64,
    drivers: Vec<Driver>,
    units: Vec<Entry>,
    interrupt: Arc<dyn Interrupt>,
}

struct Entry {
    unit: Box<dyn Unit>,
    has_failed: bool,
}

impl Rings {
    /// Negotiates and activates as `script` has it.
    pub(crate) fn new(device: impl Device + 'static, script: &mut Script<'_>) -> Self {
        let device = Box::new(device);
        let offered = device.features();
        let features = match script.byte() {
            0 => offered,
            1 => 0,
            _ => offered & script.u64(),
        };
        let sizes = device.queue_sizes().to_vec();
        let total = DRIVER_SIZE * sizes.len() as u64;
        let memory = testing::memory(usize::try_from(total).expect("small"));
        let interrupt: Arc<dyn Interrupt> = Arc::new(Interrupts::default());
        let (mut drivers, mut queues) = (Vec::new(), Vec::new());
        for (index, size_max) in (0_u16..).zip(sizes) {
            let size = size_max >> u32::from(script.byte() % 5).min(size_max.ilog2());
            let has_event_idx = features & EVENT_IDX != 0;
            let interrupt = Arc::clone(&interrupt);
            let base = DRIVER_SIZE * u64::from(index);
            let (driver, queue) = Driver::new(&memory, base, index, size, has_event_idx, interrupt);
            drivers.push(driver);
            queues.push(Some(queue));
        }
        let mut rings = Self { memory, device, features, drivers, units: Vec::new(), interrupt };
        rings.activate(queues);
        rings
    }

    /// Plays the script: operations of rings here, all others to `own`.
    pub(crate) fn play(
        mut self,
        script: &mut Script<'_>,
        mut own: impl FnMut(&mut Self, &mut Script<'_>),
    ) {
        for _ in 0..OPERATION_COUNT_MAX {
            if script.is_over() {
                break;
            }
            match script.byte() % (COMMON_COUNT + 8) {
                operation @ 0..COMMON_COUNT => self.step(operation, script),
                _ => own(&mut self, script),
            }
        }
        let _ = self.stop();
    }

    fn step(&mut self, operation: u8, script: &mut Script<'_>) {
        match operation {
            0 | 1 => {
                let head = script.take(32).to_vec();
                self.request(&head, script);
            }
            2 => {
                let (queue, at) = (self.queue(script), script.byte());
                let (address, size) = (self.address(queue, script), script.number());
                let size = u32::try_from(size).unwrap_or(u32::MAX);
                let (flags, next) = (script.u16(), script.u16());
                self.drivers[queue].descriptor(u16::from(at), address, size, flags, next);
            }
            3 => {
                let (queue, head) = (self.queue(script), script.u16());
                self.drivers[queue].offer(head);
            }
            4 => {
                let (queue, index) = (self.queue(script), script.u16());
                self.drivers[queue].set_available(index);
            }
            5 => {
                let size = DRIVER_SIZE * self.drivers.len() as u64;
                let place = GuestAddress(u64::from(script.u32()) % size);
                let bytes = script.take(64);
                // Beyond the end there is nothing to write to.
                let _ = self.memory.write_slice(bytes, place);
            }
            6 => {
                let queue = self.queue(script);
                self.kick(queue);
            }
            7 => self.look_at_sources(),
            8 => self.expire(),
            9 => {
                let queues = self.stop();
                let saved = self.device.save();
                if script.flag() {
                    self.device.reset();
                    if let Ok(saved) = saved {
                        let _ = self.device.restore(saved);
                    }
                }
                self.activate(queues);
            }
            10 => {
                let offset = script.number();
                let size = usize::from(script.byte() % 9);
                let data = script.take(size);
                self.device.write_config(offset, data);
                let mut read = [0; 8];
                self.device.config().read(offset, &mut read);
            }
            _ => {
                let (queue, index) = (self.queue(script), script.u16());
                self.drivers[queue].set_used_event(index);
            }
        }
    }

    /// Offers a chain that begins with `head` and goes on as the script says, and kicks.
    pub(crate) fn request(&mut self, head: &[u8], script: &mut Script<'_>) {
        let queue = self.queue(script);
        self.request_on(queue, head, script);
    }

    /// The same, on one queue.
    pub(crate) fn request_on(&mut self, queue: usize, head: &[u8], script: &mut Script<'_>) {
        let Some(driver) = self.drivers.get_mut(queue) else { return };
        let base = DRIVER_SIZE * queue as u64;
        let shape = script.byte();
        let (count, is_indirect) = (u16::from(shape % 5) + 1, shape & 0x80 != 0);
        let table = base + BUFFERS + 0x8_0000;
        let first = u16::from(script.byte() % 8);
        for part in 0..count {
            let place = base + BUFFERS + u64::from(part) * 0x4000;
            let kind = script.byte();
            let (mut size, mut flags) = (u32::try_from(script.number() % 0x4000).unwrap_or(0), 0);
            let bytes = if part == 0 && !head.is_empty() {
                size = u32::try_from(head.len()).unwrap_or(0);
                head
            } else if kind & 1 == 1 {
                flags |= WRITE;
                &[]
            } else {
                script.take(size.min(128) as usize)
            };
            self.memory.write_slice(bytes, GuestAddress(place)).expect("guest memory");
            let is_last = part + 1 == count;
            flags |= if is_last { 0 } else { NEXT };
            let size = if kind & 0xf0 == 0xf0 { u32::MAX } else { size };
            if is_indirect {
                let entry = table + u64::from(part) * 16;
                driver.descriptor_at(entry, place, size, flags, part + 1);
            } else {
                driver.descriptor(first + part, place, size, flags, first + part + 1);
            }
        }
        if is_indirect {
            driver.descriptor(first, table, u32::from(count) * 16, INDIRECT, 0);
        }
        driver.offer(first);
        if shape & 0x40 == 0 {
            self.kick(queue);
        }
    }

    /// Calls each unit for those of its sources that have something to say.
    pub(crate) fn look_at_sources(&mut self) {
        for at in 0..self.units.len() {
            for source in self.units[at].unit.sources() {
                // SAFETY: the unit keeps it open until it is called again.
                let descriptor = unsafe { BorrowedFd::borrow_raw(source.descriptor) };
                let mut polled = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
                let ready = poll(&mut polled, Some(&Timespec::default())).unwrap_or(0);
                if ready > 0 || source.interest == vmm_virtio::Interest::Write {
                    self.call(at, |unit| unit.ready(source.token));
                    // What it watches may have changed.
                    break;
                }
            }
        }
    }

    /// As if all deadlines had passed.
    fn expire(&mut self) {
        for at in 0..self.units.len() {
            if self.units[at].unit.deadline().is_some() {
                let later = Instant::now() + Duration::from_secs(3600);
                self.call(at, |unit| unit.expired(later));
            }
        }
    }

    fn activate(&mut self, queues: Vec<Option<Queue>>) {
        let memory = Arc::clone(&self.memory);
        let activation = Activation { memory, features: self.features, queues };
        match self.device.activate(activation) {
            Ok(units) => {
                let entry = |unit| Entry { unit, has_failed: false };
                self.units = units.into_iter().map(entry).collect();
            }
            Err(error) => drop(error.to_string()),
        }
        for queue in 0..self.drivers.len() {
            self.kick(queue);
        }
    }

    /// Stops all units, and sets their queues up again.
    fn stop(&mut self) -> Vec<Option<Queue>> {
        let mut all: Vec<_> = self.drivers.iter().map(|_| None).collect();
        for entry in self.units.drain(..) {
            let expected = entry.unit.queues().len();
            let queues = entry.unit.stop();
            assert_eq!(queues.len(), expected, "every queue comes back");
            for queue in queues {
                let (index, kick) = (queue.index(), queue.shared_kick());
                let (ring, memory) = (queue.into_ring(), Arc::clone(&self.memory));
                let interrupt = Arc::clone(&self.interrupt);
                all[usize::from(index)] = Some(Queue::new(index, ring, memory, kick, interrupt));
            }
        }
        all
    }

    fn kick(&mut self, queue: usize) {
        let index = u16::try_from(queue).expect("few");
        let has = |entry: &Entry| entry.unit.queues().iter().any(|queue| queue.index() == index);
        if let Some(at) = self.units.iter().position(has) {
            self.call(at, |unit| unit.kicked(index));
        }
    }

    fn call(&mut self, at: usize, action: impl FnOnce(&mut dyn Unit) -> Result<(), UnitError>) {
        let entry = &mut self.units[at];
        if entry.has_failed {
            return;
        }
        if let Err(error) = action(&mut *entry.unit) {
            // Messages must be made without harm, too.
            let _ = error.to_string();
            entry.has_failed = true;
        }
        let _ = entry.unit.deadline();
    }

    fn queue(&self, script: &mut Script<'_>) -> usize {
        usize::from(script.byte()) % self.drivers.len()
    }

    /// An address among the queue's buffers, or anything.
    fn address(&self, queue: usize, script: &mut Script<'_>) -> u64 {
        match script.byte() {
            0xf0.. => script.u64(),
            0xe0.. => DRIVER_SIZE * self.drivers.len() as u64 - u64::from(script.byte()),
            _ => DRIVER_SIZE * queue as u64 + BUFFERS + u64::from(script.u16()),
        }
    }
}
