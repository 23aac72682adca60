//! A virtqueue as a device uses it: chains come out checked, used buffers go back in batches.
//!
//! The ring itself is rust-vmm's `virtio-queue`. What is added here is strictness and economy:
//!
//! - a [`Chain`] is read from the descriptor table once, into memory that the guest cannot change,
//!   and every rule is checked on the way: loops, indexes outside the table, indirect tables in
//!   indirect tables, device-writable before device-readable, buffers outside guest memory;
//! - a batch of used buffers costs at most one interrupt, none if the driver does not want it
//!   (`VIRTIO_F_EVENT_IDX`, virtio 1.3 §2.7.10).
//!
//! How a unit serves a kick: [`Queue::pop`] until there is nothing, [`Queue::push`] for what is
//! done, [`Queue::notify`] once, and [`Queue::rearm`] before it goes back to waiting; if that says
//! there is more, it goes round again.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, VolatileSlice};
use vmm_sys_util::eventfd::EventFd;

use crate::memory::{Memory, SharedMemory};
use crate::{Interrupt, UnitError};

/// `VIRTQ_AVAIL_F_NO_INTERRUPT` (virtio 1.3 §2.7.6).
const NO_INTERRUPT: u16 = 1;
/// `struct virtq_used_elem` (virtio 1.3 §2.7.8).
const USED_ELEMENT_SIZE: usize = 8;

/// One virtqueue, set up by a driver.
pub struct Queue {
    index: u16,
    ring: virtio_queue::Queue,
    memory: SharedMemory,
    kick: Arc<EventFd>,
    interrupt: Arc<dyn Interrupt>,
    /// The used index when the driver was last told, or found not to care.
    announced: u16,
}

/// One buffer of a chain, or several that lie in a row, within guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins.
    pub address: GuestAddress,
    /// Its size in bytes; never 0.
    pub size: u32,
}

/// A request of the driver: what the device may read, then what it may write.
///
/// Kept from one [`Queue::pop`] to the next, so that a busy queue allocates nothing.
#[derive(Debug, Default)]
pub struct Chain {
    head: u16,
    segments: Vec<Segment>,
    readable_count: usize,
    readable_size: u32,
    writable_size: u32,
}

/// Which rule of the ring a guest broke (virtio 1.3 §2.7).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// The ring itself cannot be used.
    #[error("{0}")]
    Ring(String),
    /// A chain does not end within the queue's size, or leads out of its table.
    #[error("descriptor chain {head} does not end")]
    Endless {
        /// Its first descriptor.
        head: u16,
    },
    /// A chain has no buffer, or an indirect table that makes no sense.
    #[error("descriptor chain {head} is empty or its indirect table is invalid")]
    Empty {
        /// Its first descriptor.
        head: u16,
    },
    /// A buffer that the device may read follows one that it may write.
    #[error("descriptor chain {head} has a readable buffer after a writable one")]
    Order {
        /// Its first descriptor.
        head: u16,
    },
    /// A buffer does not lie in guest memory.
    #[error("descriptor chain {head}: {size} bytes at {address:#x} are outside guest memory")]
    Outside {
        /// Its first descriptor.
        head: u16,
        /// Where the buffer begins.
        address: u64,
        /// How long it claims to be.
        size: u32,
    },
    /// The chain is shorter than what it must carry.
    #[error("descriptor chain {head}: {what} needs {wanted} bytes, it has {found}")]
    Short {
        /// Its first descriptor.
        head: u16,
        /// What should have been there.
        what: &'static str,
        /// Its size.
        wanted: u32,
        /// What is there.
        found: u32,
    },
}

impl Queue {
    /// Puts together a queue whose ring has been set up and checked by the transport.
    #[must_use]
    pub fn new(
        index: u16,
        ring: virtio_queue::Queue,
        memory: SharedMemory,
        kick: impl Into<Arc<EventFd>>,
        interrupt: Arc<dyn Interrupt>,
    ) -> Self {
        let announced = ring.next_used();
        Self { index, ring, memory, kick: kick.into(), interrupt, announced }
    }

    /// Its index among the device's queues.
    #[must_use]
    pub const fn index(&self) -> u16 {
        self.index
    }

    /// Becomes readable when the driver kicks.
    #[must_use]
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// The same, for whoever waits on it while the unit has the queue.
    #[must_use]
    pub fn shared_kick(&self) -> Arc<EventFd> {
        Arc::clone(&self.kick)
    }

    /// Guest memory.
    #[must_use]
    pub const fn memory(&self) -> &SharedMemory {
        &self.memory
    }

    /// The size that the driver chose.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// Gives the ring back, with its place in both directions.
    #[must_use]
    pub fn into_ring(self) -> virtio_queue::Queue {
        self.ring
    }

    /// Takes the next chain into `chain`; false if there is none.
    ///
    /// # Errors
    /// [`UnitError::Queue`] when the driver broke a rule. The queue cannot be used any more.
    pub fn pop(&mut self, chain: &mut Chain) -> Result<bool, UnitError> {
        let index = self.index;
        self.try_pop(chain).map_err(|source| UnitError::Queue { index, source })
    }

    /// Puts back the chain that was popped last, for which there is no room or budget now.
    pub fn unpop(&mut self) {
        self.ring.go_to_previous_position();
    }

    /// Gives the chain that begins at `head` back, with `written` bytes written into it.
    ///
    /// # Errors
    /// [`UnitError::Queue`] when the used ring cannot be written.
    pub fn push(&mut self, head: u16, written: u32) -> Result<(), UnitError> {
        let result = self.ring.add_used(&*self.memory, head, written);
        result.map_err(|error| self.ring_error(&error))
    }

    /// Gives several chains back at once, each with how much was written into it: the driver sees
    /// either none of them or all.
    ///
    /// # Errors
    /// [`UnitError::Queue`] when the used ring cannot be written.
    pub fn push_together(&mut self, chains: &[(u16, u32)]) -> Result<(), UnitError> {
        let Some(((head, written), earlier)) = chains.split_last() else { return Ok(()) };
        let (ring, size) = (self.ring.used_ring(), self.ring.size());
        let mut used = self.ring.next_used();
        for (head, written) in earlier {
            let slot = u64::from(used % size);
            let mut element = [0; USED_ELEMENT_SIZE];
            element[..4].copy_from_slice(&u32::from(*head).to_le_bytes());
            element[4..].copy_from_slice(&written.to_le_bytes());
            let place = ring.saturating_add(4 + slot * USED_ELEMENT_SIZE as u64);
            let result = self.memory.write_slice(&element, GuestAddress(place));
            result.map_err(|error| self.memory_error(&error))?;
            used = used.wrapping_add(1);
        }
        // The last one moves the index past all of them.
        self.ring.set_next_used(used);
        self.push(*head, *written)
    }

    /// Interrupts the driver if it wants to know about what was pushed since the last call.
    ///
    /// # Errors
    /// [`UnitError::Queue`] when the ring cannot be read.
    pub fn notify(&mut self) -> Result<(), UnitError> {
        self.notify_if_wanted().map(|_| ())
    }

    /// The same as [`notify`](Self::notify); true if the driver was interrupted.
    ///
    /// # Errors
    /// As for [`notify`](Self::notify).
    pub fn notify_if_wanted(&mut self) -> Result<bool, UnitError> {
        let wanted = self.wants_interrupt().map_err(|error| self.memory_error(&error))?;
        if wanted {
            self.interrupt.queue(self.index);
        }
        Ok(wanted)
    }

    /// virtio 1.3 §2.7.7.2: whether the driver wants to be interrupted for what was used since it
    /// was last asked.
    fn wants_interrupt(&mut self) -> Result<bool, GuestMemoryError> {
        let used = self.ring.next_used();
        let old = std::mem::replace(&mut self.announced, used);
        // What was used must be visible before the driver's wish is read.
        fence(Ordering::SeqCst);
        let available = self.ring.avail_ring();
        if !self.ring.event_idx_enabled() {
            let flags: u16 = self.memory.load(GuestAddress(available), Ordering::Relaxed)?;
            return Ok(used != old && u16::from_le(flags) & NO_INTERRUPT == 0);
        }
        let place = available.saturating_add(4 + 2 * u64::from(self.ring.size()));
        let event: u16 = self.memory.load(GuestAddress(place), Ordering::Relaxed)?;
        let since_event = used.wrapping_sub(u16::from_le(event)).wrapping_sub(1);
        Ok(since_event < used.wrapping_sub(old))
    }

    /// Asks the driver to kick for its next chain. True if one came meanwhile, for which no kick
    /// will come: the caller goes round again.
    ///
    /// # Errors
    /// [`UnitError::Queue`] when the ring cannot be read.
    pub fn rearm(&mut self) -> Result<bool, UnitError> {
        let more = self.ring.enable_notification(&*self.memory);
        more.map_err(|error| self.ring_error(&error))
    }

    /// Tells the driver that kicks are a waste for now.
    ///
    /// # Errors
    /// [`UnitError::Queue`] when the ring cannot be written.
    pub fn disarm(&mut self) -> Result<(), UnitError> {
        let result = self.ring.disable_notification(&*self.memory);
        result.map_err(|error| self.ring_error(&error))
    }

    fn try_pop(&mut self, chain: &mut Chain) -> Result<bool, QueueError> {
        let memory: &Memory = &self.memory;
        let size_max = usize::from(self.ring.size());
        let mut available = self.ring.iter(memory).map_err(|e| QueueError::Ring(e.to_string()))?;
        let Some(descriptors) = available.next() else { return Ok(false) };
        chain.clear(descriptors.head_index());
        let head = chain.head;
        let mut has_next = true;
        for (i, descriptor) in descriptors.enumerate() {
            // An indirect table may be longer than the queue, but no chain may (§2.7.5.3.1).
            if i == size_max {
                return Err(QueueError::Endless { head });
            }
            has_next = descriptor.has_next();
            chain.add(memory, descriptor.addr(), descriptor.len(), descriptor.is_write_only())?;
        }
        if chain.segments.is_empty() {
            return Err(QueueError::Empty { head });
        }
        // The iterator ends early, and in silence, where a chain breaks off.
        if has_next {
            return Err(QueueError::Endless { head });
        }
        Ok(true)
    }

    fn memory_error(&self, error: &GuestMemoryError) -> UnitError {
        let source = QueueError::Ring(error.to_string());
        UnitError::Queue { index: self.index, source }
    }

    fn ring_error(&self, error: &virtio_queue::Error) -> UnitError {
        let source = QueueError::Ring(error.to_string());
        UnitError::Queue { index: self.index, source }
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue")
            .field("index", &self.index)
            .field("ring", &self.ring)
            .finish_non_exhaustive()
    }
}

impl Chain {
    /// A chain with nothing in it, to be filled by [`Queue::pop`].
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Its first descriptor: how the driver knows it.
    #[must_use]
    pub const fn head(&self) -> u16 {
        self.head
    }

    /// What the device may read.
    #[must_use]
    pub fn readable<'a>(&'a self, memory: &'a Memory) -> Buffers<'a> {
        Buffers { head: self.head, segments: &self.segments[..self.readable_count], memory }
    }

    /// What the device may write.
    #[must_use]
    pub fn writable<'a>(&'a self, memory: &'a Memory) -> Buffers<'a> {
        Buffers { head: self.head, segments: &self.segments[self.readable_count..], memory }
    }

    /// How many bytes the device may read.
    #[must_use]
    pub const fn readable_size(&self) -> u32 {
        self.readable_size
    }

    /// How many bytes the device may write.
    #[must_use]
    pub const fn writable_size(&self) -> u32 {
        self.writable_size
    }

    fn clear(&mut self, head: u16) {
        self.head = head;
        self.segments.clear();
        self.readable_count = 0;
        self.readable_size = 0;
        self.writable_size = 0;
    }

    fn add(
        &mut self,
        memory: &Memory,
        address: GuestAddress,
        size: u32,
        is_writable: bool,
    ) -> Result<(), QueueError> {
        let head = self.head;
        if size == 0 {
            // Of no use to anybody; a chain of nothing else is an empty one.
            return Ok(());
        }
        let total = if is_writable { &mut self.writable_size } else { &mut self.readable_size };
        *total = total.checked_add(size).ok_or(QueueError::Endless { head })?;
        if !is_writable && self.segments.len() > self.readable_count {
            return Err(QueueError::Order { head });
        }
        // Within one region, memory that is contiguous for the guest is for us.
        let is_within = |address, size: u32| {
            usize::try_from(size).is_ok_and(|length| memory.get_slice(address, length).is_ok())
        };
        // A guest describes what it reads ahead page by page, though the pages mostly lie in a row.
        let last_is_writable = self.segments.len() > self.readable_count;
        if let Some(last) = self.segments.last_mut()
            && last_is_writable == is_writable
            && last.address.0.checked_add(last.size.into()) == Some(address.0)
            // No overflow: the sum of all was checked above.
            && is_within(last.address, last.size + size)
        {
            last.size += size;
            return Ok(());
        }
        if !is_within(address, size) {
            return Err(QueueError::Outside { head, address: address.0, size });
        }
        self.segments.push(Segment { address, size });
        self.readable_count += usize::from(!is_writable);
        Ok(())
    }
}

/// One direction of a chain: a sequence of bytes in guest memory.
#[derive(Clone, Copy, Debug)]
pub struct Buffers<'a> {
    head: u16,
    segments: &'a [Segment],
    memory: &'a Memory,
}

impl<'a> Buffers<'a> {
    /// Its pieces, in order.
    #[must_use]
    pub const fn segments(&self) -> &'a [Segment] {
        self.segments
    }

    /// How many bytes it has.
    #[must_use]
    pub fn size(&self) -> u32 {
        self.segments.iter().map(|segment| segment.size).sum()
    }

    /// Its pieces as they lie in this process, from byte `skip` on, `size` bytes at most.
    pub fn slices(
        &self,
        skip: u32,
        size: u32,
    ) -> impl Iterator<Item = VolatileSlice<'a>> + use<'a> {
        let memory = self.memory;
        let (mut skip, mut left) = (skip, size);
        self.segments.iter().filter_map(move |segment| {
            let skipped = skip.min(segment.size);
            skip -= skipped;
            let size = (segment.size - skipped).min(left);
            left -= size;
            if size == 0 {
                return None;
            }
            let address = GuestAddress(segment.address.0 + u64::from(skipped));
            // Checked when the chain was popped, and guest memory never shrinks.
            memory.get_slice(address, usize::try_from(size).ok()?).ok()
        })
    }

    /// Copies out all of `into`, from byte `skip` on. `what` names it in the error.
    ///
    /// # Errors
    /// [`QueueError::Short`] when there is not as much.
    pub fn read(&self, skip: u32, into: &mut [u8], what: &'static str) -> Result<(), QueueError> {
        let wanted = u32::try_from(into.len()).unwrap_or(u32::MAX);
        self.check(skip, wanted, what)?;
        let mut done = 0;
        for slice in self.slices(skip, wanted) {
            let end = done + slice.len();
            slice.copy_to(&mut into[done..end]);
            done = end;
        }
        Ok(())
    }

    /// Copies in all of `from`, from byte `skip` on. `what` names it in the error.
    ///
    /// # Errors
    /// [`QueueError::Short`] when there is no room for it.
    pub fn write(&self, skip: u32, from: &[u8], what: &'static str) -> Result<(), QueueError> {
        let wanted = u32::try_from(from.len()).unwrap_or(u32::MAX);
        self.check(skip, wanted, what)?;
        let mut done = 0;
        for slice in self.slices(skip, wanted) {
            let end = done + slice.len();
            slice.copy_from(&from[done..end]);
            done = end;
        }
        Ok(())
    }

    fn check(&self, skip: u32, wanted: u32, what: &'static str) -> Result<(), QueueError> {
        let found = self.size().saturating_sub(skip);
        if found < wanted {
            return Err(QueueError::Short { head: self.head, what, wanted, found });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Buffer, Driver, INDIRECT, Interrupts, NEXT, WRITE};

    fn rig(size: u16, has_event_idx: bool) -> (Driver, Queue, Arc<Interrupts>) {
        let memory = testing::memory(2 << 20);
        let interrupts = Arc::new(Interrupts::default());
        let interrupt = Arc::clone(&interrupts) as Arc<dyn Interrupt>;
        let (driver, queue) = Driver::new(&memory, 0, 0, size, has_event_idx, interrupt);
        (driver, queue, interrupts)
    }

    fn refused(queue: &mut Queue) -> QueueError {
        match queue.pop(&mut Chain::new()) {
            Err(UnitError::Queue { index: 0, source }) => source,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_chain_comes_out_as_it_was_put_in() {
        let (mut driver, mut queue, interrupts) = rig(8, false);
        let mut chain = Chain::new();
        assert!(!queue.pop(&mut chain).unwrap());
        let buffers =
            [Buffer::Readable(b"head".into()), Buffer::Readable(b"er".into()), Buffer::Writable(5)];
        let (head, addresses) = driver.add(&buffers);
        assert!(queue.pop(&mut chain).unwrap());
        assert_eq!((chain.head(), chain.readable_size(), chain.writable_size()), (head, 6, 5));
        let memory = Arc::clone(queue.memory());
        let mut bytes = [0; 4];
        chain.readable(&memory).read(2, &mut bytes, "a header").unwrap();
        assert_eq!(&bytes, b"ader");
        chain.writable(&memory).write(1, b"data", "a reply").unwrap();
        assert_eq!(driver.read(addresses[2], 5), b"\0data");
        let short = chain.writable(&memory).write(2, b"data", "a reply");
        let error = QueueError::Short { head, what: "a reply", wanted: 4, found: 3 };
        assert_eq!(short, Err(error));
        queue.push(head, 5).unwrap();
        queue.notify().unwrap();
        assert_eq!(driver.take_used(), Some((head, 5)));
        assert_eq!(interrupts.take(), [0]);
    }

    /// virtio 1.3 §2.7.7.1: interrupts only when `used_event` was passed.
    #[test]
    fn a_batch_costs_one_interrupt_or_none() {
        let (mut driver, mut queue, interrupts) = rig(8, true);
        let mut chain = Chain::new();
        driver.set_used_event(2);
        for _ in 0..3 {
            driver.add(&[Buffer::Writable(4)]);
        }
        for pushed in 0..3 {
            assert!(queue.pop(&mut chain).unwrap());
            queue.push(chain.head(), 0).unwrap();
            queue.notify().unwrap();
            let expected: &[u16] = if pushed == 2 { &[0] } else { &[] };
            assert_eq!(interrupts.take(), expected, "after {pushed}");
        }
        assert!(!queue.rearm().unwrap());
        driver.add(&[Buffer::Writable(4)]);
        assert!(queue.rearm().unwrap());
    }

    /// virtio 1.3 §2.7.7.2, without `VIRTIO_F_EVENT_IDX`: the driver's flag decides.
    #[test]
    fn a_driver_that_wants_no_interrupts_gets_none() {
        let (mut driver, mut queue, interrupts) = rig(8, false);
        let mut chain = Chain::new();
        for (flags, expected) in [(NO_INTERRUPT, &[][..]), (0, &[0])] {
            driver.add(&[Buffer::Writable(4)]);
            let flags_at = GuestAddress(queue.ring.avail_ring());
            queue.memory.write_slice(&flags.to_le_bytes(), flags_at).unwrap();
            assert!(queue.pop(&mut chain).unwrap());
            queue.push(chain.head(), 0).unwrap();
            queue.notify().unwrap();
            assert_eq!(interrupts.take(), expected);
        }
        queue.notify().unwrap();
        assert!(interrupts.take().is_empty(), "nothing was used since");
    }

    #[test]
    fn chains_pushed_together_appear_together_and_in_order() {
        let (mut driver, mut queue, interrupts) = rig(4, true);
        let mut chain = Chain::new();
        let mut used = Vec::new();
        // Three at a time in a ring of four: the slots wrap around.
        for round in 0_u16..5 {
            driver.set_used_event(round * 3 + 1);
            for written in 0..3 {
                driver.add(&[Buffer::Writable(4)]);
                assert!(queue.pop(&mut chain).unwrap());
                used.push((chain.head(), written));
            }
            assert_eq!(driver.take_used(), None);
            queue.push_together(&used).unwrap();
            assert!(queue.notify_if_wanted().unwrap(), "the event lies among them");
            for pair in used.drain(..) {
                assert_eq!(driver.take_used(), Some(pair));
            }
            assert_eq!(driver.take_used(), None);
        }
        queue.push_together(&[]).unwrap();
        assert_eq!(interrupts.take(), [0; 5]);
    }

    #[test]
    fn a_chain_that_was_put_back_comes_again() {
        let (mut driver, mut queue, _) = rig(8, false);
        let mut chain = Chain::new();
        let (first, _) = driver.add(&[Buffer::Writable(4)]);
        driver.add(&[Buffer::Writable(4)]);
        assert!(queue.pop(&mut chain).unwrap());
        queue.unpop();
        assert!(queue.pop(&mut chain).unwrap());
        assert_eq!(chain.head(), first);
    }

    #[test]
    fn loops_and_chains_that_lead_nowhere_are_refused() {
        let (mut driver, mut queue, _) = rig(4, false);
        driver.descriptor(0, 0x4_0000, 16, NEXT, 1);
        driver.descriptor(1, 0x4_0000, 16, NEXT, 0);
        driver.offer(0);
        assert_eq!(refused(&mut queue), QueueError::Endless { head: 0 });
        driver.descriptor(2, 0x4_0000, 16, NEXT, 77);
        driver.offer(2);
        assert_eq!(refused(&mut queue), QueueError::Endless { head: 2 });
        driver.offer(77);
        assert_eq!(refused(&mut queue), QueueError::Empty { head: 77 });
        driver.descriptor(3, 0x4_0000, 0, 0, 0);
        driver.offer(3);
        assert_eq!(refused(&mut queue), QueueError::Empty { head: 3 });
    }

    #[test]
    fn buffers_in_a_row_are_one_but_not_across_directions_gaps_or_the_end_of_memory() {
        let (mut driver, mut queue, _) = rig(8, false);
        let buffers = [
            (0x4_0000, 16, 0),
            (0x4_0010, 16, 0),
            (0x4_0020, 8, WRITE),
            (0x4_0028, 8, WRITE),
            (0x4_0038, 8, WRITE),
            (0x4_0030, 8, WRITE),
        ];
        for (index, (address, size, flags)) in (0..).zip(buffers) {
            let flags = flags | if index < 5 { NEXT } else { 0 };
            driver.descriptor(index, address, size, flags, index + 1);
        }
        driver.offer(0);
        let mut chain = Chain::new();
        assert!(queue.pop(&mut chain).unwrap());
        assert_eq!((chain.readable_size(), chain.writable_size()), (32, 32));
        let segment = |address, size| Segment { address: GuestAddress(address), size };
        let memory = Arc::clone(queue.memory());
        assert_eq!(chain.readable(&memory).segments(), [segment(0x4_0000, 32)]);
        let writable = [segment(0x4_0020, 16), segment(0x4_0038, 8), segment(0x4_0030, 8)];
        assert_eq!(chain.writable(&memory).segments(), writable);
        driver.descriptor(0, (2 << 20) - 16, 16, NEXT, 1);
        driver.descriptor(1, 2 << 20, 16, 0, 0);
        driver.offer(0);
        let outside = QueueError::Outside { head: 0, address: 2 << 20, size: 16 };
        assert_eq!(refused(&mut queue), outside);
    }

    #[test]
    fn buffers_outside_memory_and_out_of_order_are_refused() {
        let (mut driver, mut queue, _) = rig(4, false);
        for (address, size) in [(2 << 20, 1), ((2 << 20) - 1, 2), (u64::MAX, 2), (0, u32::MAX)] {
            driver.descriptor(0, address, size, WRITE, 0);
            driver.offer(0);
            assert_eq!(refused(&mut queue), QueueError::Outside { head: 0, address, size });
        }
        driver.descriptor(0, 0x4_0000, 16, NEXT | WRITE, 1);
        driver.descriptor(1, 0x4_0000, 16, 0, 0);
        driver.offer(0);
        assert_eq!(refused(&mut queue), QueueError::Order { head: 0 });
    }

    #[test]
    fn indirect_tables_work_once() {
        let (mut driver, mut queue, _) = rig(4, false);
        let table = driver.allocate(48);
        for (i, flags) in [(0, NEXT), (1, NEXT | WRITE), (2, WRITE)] {
            let next = u16::try_from(i + 1).unwrap();
            driver.descriptor_at(table + i * 16, 0x5_0000, 8, flags, next);
        }
        driver.descriptor(0, table, 48, INDIRECT, 0);
        driver.offer(0);
        let mut chain = Chain::new();
        assert!(queue.pop(&mut chain).unwrap());
        assert_eq!((chain.readable_size(), chain.writable_size()), (8, 16));
        driver.descriptor_at(table, table, 16, INDIRECT, 0);
        driver.offer(0);
        assert_eq!(refused(&mut queue), QueueError::Empty { head: 0 });
        driver.descriptor(0, table, 47, INDIRECT, 0);
        driver.offer(0);
        assert_eq!(refused(&mut queue), QueueError::Empty { head: 0 });
    }

    /// virtio 1.3 §2.7.5.3.1: no chain is longer than the queue.
    #[test]
    fn indirect_tables_do_not_make_chains_longer_than_the_queue() {
        for (count, is_fine) in [(4, true), (5, false)] {
            let (mut driver, mut queue, _) = rig(4, false);
            let table = driver.allocate(16 * count);
            for i in 0..count {
                let next = u16::try_from(i + 1).unwrap();
                let flags = if i + 1 < count { NEXT } else { 0 };
                driver.descriptor_at(table + i * 16, 0x5_0000, 8, flags, next);
            }
            driver.descriptor(0, table, u32::try_from(16 * count).unwrap(), INDIRECT, 0);
            driver.offer(0);
            let result = queue.try_pop(&mut Chain::new());
            let expected = if is_fine { Ok(true) } else { Err(QueueError::Endless { head: 0 }) };
            assert_eq!(result, expected, "{count}");
        }
    }

    #[test]
    fn an_available_index_far_ahead_is_refused() {
        let (mut driver, mut queue, _) = rig(4, false);
        driver.set_available(5);
        assert!(matches!(refused(&mut queue), QueueError::Ring(_)));
    }
}
