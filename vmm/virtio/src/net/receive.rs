//! From the back end to the guest: packets are read straight into the buffers that the driver
//! posted.
//!
//! ```text
//!            read                         push, with num_buffers
//!   tap ───────────► posted buffers ──────────────────────────────► driver
//!                  │                 ▲
//!                  └──► overflow ────┘   what did not fit the buffers at hand
//! ```
//!
//! Nobody knows how long a packet is before it is read, and most are either short or as long as
//! can be. So a read offers the kernel a short window, a few buffers with the overflow area behind
//! them; after a packet that did not fit it offers all that the longest packet needs, until short
//! ones have come for a while. A short list is cheaper for the kernel to take in, and a wrong
//! guess costs one copy, not a packet.
//!
//! A packet that has been read may have to wait: for the rate limiter, or for more buffers, which
//! a driver that holds few is given [`BUFFERS_WAIT`] to post. Then nothing else is read, and the
//! back end drops what exceeds its own queue, as a real cable's end would.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use vm_memory::{GuestMemoryBackend, MmapRegion, VolatileMemory, VolatileSlice};

use super::shared::{Direction, Failure, Shared, classify};
use super::unit::BATCH;
use super::vectored::{PIECES_MAX, Room};
use super::wire::{HEADER_SIZE, NUM_BUFFERS_AT, PACKET_SIZE_MAX};
use super::{SharedThrottle, take_from};
use crate::{Chain, DeviceError, Queue, QueueError, Segment, UnitError};

/// Bytes offered to a read while packets are short.
const WINDOW_SHORT: u32 = 2048;
/// Packets in a row that fit the short window, before the long one is given up.
const SHORT_RUN: u32 = 32;
/// How long a packet waits for buffers to hold it.
const BUFFERS_WAIT: Duration = Duration::from_millis(500);

/// The receive queue of one pair.
pub(super) struct Receiver {
    queue: Queue,
    is_mergeable: bool,
    throttle: Option<SharedThrottle>,
    /// Buffers taken from the queue and not yet given back, in order.
    posted: VecDeque<Posted>,
    /// Their pieces.
    segments: VecDeque<Segment>,
    /// Bytes in them.
    capacity: u32,
    held: Option<Held>,
    /// There are no buffers, and the driver was asked to say when there are.
    is_starved: bool,
    /// The driver kicks for each buffer it posts.
    is_armed: bool,
    window: Window,
    appetite: Appetite,
    overflow: MmapRegion,
    // Kept for their allocations.
    chain: Chain,
    room: Room,
    used: Vec<(u16, u32)>,
}

#[derive(Clone, Copy, Debug)]
struct Posted {
    head: u16,
    size: u32,
    segment_count: usize,
}

/// A packet that was read and not yet delivered.
#[derive(Clone, Copy, Debug)]
struct Held {
    /// With its header.
    size: u32,
    /// So much of it is in posted buffers, the rest in the overflow area.
    in_place: u32,
    wait: Wait,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    /// For nothing: it has just been read.
    Nothing,
    /// For the rate limiter.
    Throttle(Instant),
    /// For buffers, until it is dropped.
    Buffers(Instant),
}

impl Receiver {
    pub(super) fn new(
        queue: Queue,
        is_mergeable: bool,
        throttle: Option<SharedThrottle>,
    ) -> Result<Self, DeviceError> {
        let overflow = MmapRegion::new(PACKET_SIZE_MAX as usize).map_err(|error| {
            let what = "map an area for long packets".to_owned();
            DeviceError::Host { what, source: io::Error::other(error) }
        })?;
        Ok(Self {
            queue,
            is_mergeable,
            throttle,
            posted: VecDeque::new(),
            segments: VecDeque::new(),
            capacity: 0,
            held: None,
            is_starved: false,
            is_armed: true,
            window: Window::default(),
            appetite: Appetite::default(),
            overflow,
            chain: Chain::new(),
            room: Room::default(),
            used: Vec::new(),
        })
    }

    pub(super) const fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Whether it is of use to hear that a packet can be read.
    pub(super) const fn wants_packets(&self) -> bool {
        self.held.is_none() && !self.is_starved
    }

    /// When the packet it holds can or must go.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.held?.wait {
            Wait::Nothing => None,
            Wait::Throttle(until) | Wait::Buffers(until) => Some(until),
        }
    }

    /// The driver may have posted buffers: true if some were waited for.
    pub(super) fn refilled(&mut self) -> bool {
        let waits = matches!(self.held, Some(Held { wait: Wait::Buffers(_), .. }));
        std::mem::take(&mut self.is_starved) || waits
    }

    /// Delivers packets until there are none, or no buffers, or it is enough for now; the back end
    /// then still says that it can be read.
    pub(super) fn serve(&mut self, shared: &Shared, pair: u16) -> Result<(), UnitError> {
        let limit = self.appetite.limit();
        let (mut reads, mut was_drained) = (0, false);
        loop {
            if self.held.is_none() {
                if reads == limit || !self.post()? {
                    break;
                }
                self.held = self.read(shared, pair)?;
                if self.held.is_none() {
                    was_drained = true;
                    break;
                }
                reads += 1;
            }
            if !self.deliver(shared)? {
                break;
            }
        }
        self.appetite.learn(reads, was_drained, self.window.is_long);
        self.queue.notify()
    }

    /// Gives the queue back as if the posted buffers had never been taken.
    pub(super) fn stop(mut self, shared: &Shared) -> Queue {
        if self.held.is_some() {
            self.drop_held(&shared.received);
        }
        for _ in 0..self.posted.len() {
            self.queue.unpop();
        }
        self.queue
    }

    /// Takes buffers from the queue until the window is full. False if there are none at all, and
    /// the driver has been asked to say when there are.
    fn post(&mut self) -> Result<bool, UnitError> {
        let wanted = self.window.size();
        loop {
            while self.posted.is_empty() || (self.is_mergeable && self.capacity < wanted) {
                if !self.post_one()? {
                    break;
                }
            }
            if !self.posted.is_empty() {
                if std::mem::take(&mut self.is_armed) {
                    self.queue.disarm()?;
                }
                return Ok(true);
            }
            self.is_armed = true;
            if !self.queue.rearm()? {
                self.is_starved = true;
                return Ok(false);
            }
        }
    }

    fn post_one(&mut self) -> Result<bool, UnitError> {
        if !self.queue.pop(&mut self.chain)? {
            return Ok(false);
        }
        let (head, size) = (self.chain.head(), self.chain.writable_size());
        // §5.1.6.3.1: each buffer holds at least the header.
        if size < HEADER_SIZE {
            let what = "a receive buffer with its header";
            let source = QueueError::Short { head, what, wanted: HEADER_SIZE, found: size };
            return Err(UnitError::Queue { index: self.queue.index(), source });
        }
        let segments = self.chain.writable(self.queue.memory()).segments();
        self.posted.push_back(Posted { head, size, segment_count: segments.len() });
        self.segments.extend(segments);
        // The memory of a guest may be offered many times over.
        self.capacity = self.capacity.saturating_add(size);
        Ok(true)
    }

    /// Reads a packet into posted buffers, with the overflow area behind them.
    fn read(&mut self, shared: &Shared, pair: u16) -> Result<Option<Held>, UnitError> {
        let memory = self.queue.memory();
        let wanted = if self.is_mergeable { self.window.size() } else { PACKET_SIZE_MAX };
        let mut in_place = 0;
        // A hostile driver's buffers may be in more pieces than a read can have.
        let pieces = self.segments.iter().take(PIECES_MAX - 1);
        let pieces = pieces.map_while(|segment| {
            let size = segment.size.min(wanted.checked_sub(in_place)?);
            in_place += size;
            memory.get_slice(segment.address, usize::try_from(size).ok()?).ok()
        });
        let pieces = pieces.take_while(|slice| !slice.is_empty());
        let descriptor: BorrowedFd<'_> = shared.backend(pair).descriptor();
        let slices = pieces.chain(std::iter::once(self.overflow.as_volatile_slice()));
        match self.room.read(descriptor, slices) {
            // A tap never says so; a socket's other end has closed.
            Ok(0) => Err(shared.lost("read a packet", Errno::PIPE.into())),
            Ok(size) => {
                let size = u32::try_from(size).unwrap_or(u32::MAX);
                Ok(Some(Held { size, in_place, wait: Wait::Nothing }))
            }
            Err(Errno::AGAIN) => Ok(None),
            Err(errno) => match classify(errno) {
                // It has been put out of use meanwhile.
                Failure::Gone if !shared.is_active(pair) => Ok(None),
                _ => Err(shared.lost("read a packet", errno.into())),
            },
        }
    }

    /// Gives the packet that is held to the driver. False if it has to wait.
    fn deliver(&mut self, shared: &Shared) -> Result<bool, UnitError> {
        let Some(mut held) = self.held else { return Ok(true) };
        let is_sane = (HEADER_SIZE + 1..=PACKET_SIZE_MAX).contains(&held.size);
        if !is_sane || !shared.is_link_up() {
            return Ok(self.drop_held(&shared.received));
        }
        if !matches!(held.wait, Wait::Buffers(_))
            && let Err(until) = take_from(self.throttle.as_ref(), held.size - HEADER_SIZE)
        {
            shared.received.throttled.increment();
            held.wait = Wait::Throttle(until);
            self.held = Some(held);
            return Ok(false);
        }
        if !self.has_room_for(held.size)? {
            return self.lacks_room(held, shared);
        }
        if held.size > held.in_place {
            self.copy_overflow(held);
        }
        self.window.learn(held.size);
        self.give(held.size)?;
        self.held = None;
        shared.received.count(held.size - HEADER_SIZE);
        Ok(true)
    }

    /// Whether the posted buffers hold so much, once those that wait in the queue are added.
    fn has_room_for(&mut self, size: u32) -> Result<bool, UnitError> {
        while self.capacity < size && self.is_mergeable {
            if !self.post_one()? {
                break;
            }
        }
        Ok(self.capacity >= size)
    }

    /// The driver's buffers do not hold the packet: waits for more, or drops it if it has waited
    /// or there is no use in it.
    fn lacks_room(&mut self, mut held: Held, shared: &Shared) -> Result<bool, UnitError> {
        let has_all = self.posted.len() >= usize::from(self.queue.size());
        let has_waited = matches!(held.wait, Wait::Buffers(until) if until <= Instant::now());
        if !self.is_mergeable || has_all || has_waited {
            return Ok(self.drop_held(&shared.received));
        }
        self.is_armed = true;
        if self.queue.rearm()? {
            // More came meanwhile: the caller comes back to it, for each buffer at most once.
            self.held = Some(Held { wait: Wait::Buffers(deadline_of(held.wait)), ..held });
            return Ok(true);
        }
        held.wait = Wait::Buffers(deadline_of(held.wait));
        self.held = Some(held);
        Ok(false)
    }

    fn drop_held(&mut self, direction: &Direction) -> bool {
        self.held = None;
        direction.drops.increment();
        true
    }

    /// Moves what lies in the overflow area to where it belongs.
    fn copy_overflow(&self, held: Held) {
        let mut done = 0;
        for target in self.slices(held.in_place, held.size - held.in_place) {
            if let Ok(from) = self.overflow.as_volatile_slice().subslice(done, target.len()) {
                from.copy_to_volatile_slice(target);
                done += target.len();
            }
        }
    }

    /// Marks `size` bytes of posted buffers as used, after their count is in the header.
    fn give(&mut self, size: u32) -> Result<(), UnitError> {
        self.used.clear();
        let mut left = size;
        let buffers = self.posted.iter().map_while(|posted| {
            let written = posted.size.min(left);
            left -= written;
            (written > 0).then_some((posted.head, written))
        });
        self.used.extend(buffers);
        let count = u16::try_from(self.used.len()).unwrap_or(u16::MAX).to_le_bytes();
        let mut done = 0;
        for slice in self.slices(NUM_BUFFERS_AT, HEADER_SIZE - NUM_BUFFERS_AT) {
            slice.copy_from(&count[done..done + slice.len()]);
            done += slice.len();
        }
        for posted in self.posted.drain(..self.used.len()) {
            self.segments.drain(..posted.segment_count);
            self.capacity = self.capacity.saturating_sub(posted.size);
        }
        self.queue.push_together(&self.used)
    }

    /// `size` bytes of the posted buffers from `skip` on.
    fn slices(&self, skip: u32, size: u32) -> impl Iterator<Item = VolatileSlice<'_>> {
        let memory = self.queue.memory();
        let (mut skip, mut left) = (skip, size);
        self.segments.iter().filter_map(move |segment| {
            let skipped = skip.min(segment.size);
            skip -= skipped;
            let size = (segment.size - skipped).min(left);
            left -= size;
            // One that is skipped whole may end where memory does: nothing lies behind it.
            if size == 0 {
                return None;
            }
            let address = segment.address.0 + u64::from(skipped);
            let size = usize::try_from(size).ok()?;
            memory.get_slice(vm_memory::GuestAddress(address), size).ok()
        })
    }
}

fn deadline_of(wait: Wait) -> Instant {
    match wait {
        Wait::Buffers(until) => until,
        _ => Instant::now() + BUFFERS_WAIT,
    }
}

/// How much room a read offers.
#[derive(Debug, Default)]
struct Window {
    is_long: bool,
    short_run: u32,
}

impl Window {
    const fn size(&self) -> u32 {
        if self.is_long { PACKET_SIZE_MAX } else { WINDOW_SHORT }
    }

    const fn learn(&mut self, packet_size: u32) {
        if packet_size > WINDOW_SHORT {
            (self.is_long, self.short_run) = (true, 0);
        } else if self.is_long {
            self.short_run += 1;
            self.is_long = self.short_run < SHORT_RUN;
        }
    }
}

/// Whether to look for a second packet after the first.
///
/// Looking in vain costs a system call, and so does going back to wait while there is more. What
/// was right lately is likely to be right again; in doubt a look is taken now and then.
#[derive(Debug, Default)]
struct Appetite {
    wants_more: bool,
    /// Times in a row that one packet was all there was.
    vain: u8,
    /// Wake-ups since the last look.
    since_look: u8,
}

impl Appetite {
    /// Looks in vain before they stop.
    const VAIN_MAX: u8 = 2;
    /// One wake-up of so many takes a look.
    const LOOK_EVERY: u8 = 8;

    /// How many packets to read at most.
    const fn limit(&self) -> u32 {
        if self.wants_more || self.since_look + 1 >= Self::LOOK_EVERY { BATCH } else { 1 }
    }

    const fn learn(&mut self, reads: u32, was_drained: bool, is_bulk: bool) {
        let has_looked = was_drained || reads > 1;
        self.since_look = if has_looked { 0 } else { self.since_look.saturating_add(1) };
        if reads > 1 || is_bulk {
            (self.wants_more, self.vain) = (true, 0);
        } else if was_drained {
            self.vain = self.vain.saturating_add(1);
            self.wants_more = self.wants_more && self.vain < Self::VAIN_MAX;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vm_memory::GuestAddress;

    use super::*;
    use crate::testing::{self, Driver, Interrupts};

    /// What lies behind the last byte of a region is no memory, not even for a slice of nothing.
    #[test]
    fn a_segment_that_ends_where_memory_does_is_skipped() {
        const MEMORY_SIZE: usize = 2 << 20;
        let memory = testing::memory(MEMORY_SIZE);
        let (_driver, queue) = Driver::new(&memory, 0, 0, 8, true, Arc::new(Interrupts::default()));
        let mut receiver = Receiver::new(queue, true, None).unwrap();
        let last = Segment { address: GuestAddress(MEMORY_SIZE as u64 - 16), size: 16 };
        let other = Segment { address: GuestAddress(0x5_0000), size: 16 };
        receiver.segments = [last, other].into();
        let sizes = |skip| receiver.slices(skip, 12).map(|slice| slice.len()).collect::<Vec<_>>();
        assert_eq!(sizes(16), [12]);
        assert_eq!(sizes(8), [8, 4]);
    }

    #[test]
    fn one_packet_at_a_time_costs_one_look_in_eight() {
        let mut appetite = Appetite::default();
        let mut looks = 0;
        for _ in 0..80 {
            let drained = appetite.limit() > 1;
            looks += u32::from(drained);
            appetite.learn(1, drained, false);
        }
        assert_eq!(looks, 10);
    }

    #[test]
    fn a_stream_is_noticed_and_its_end_too() {
        let mut appetite = Appetite::default();
        let before = (0..20).position(|_| {
            let limit = appetite.limit();
            appetite.learn(limit, false, false);
            limit > 1
        });
        assert_eq!(before, Some(7));
        assert_eq!(appetite.limit(), BATCH);
        appetite.learn(1, true, false);
        assert_eq!(appetite.limit(), BATCH, "one look in vain is no end");
        appetite.learn(1, true, false);
        assert_eq!(appetite.limit(), 1);
    }

    #[test]
    fn the_window_is_long_until_packets_have_been_short_for_a_while() {
        let mut window = Window::default();
        window.learn(WINDOW_SHORT);
        assert_eq!(window.size(), WINDOW_SHORT);
        window.learn(WINDOW_SHORT + 1);
        for _ in 0..SHORT_RUN {
            assert_eq!(window.size(), PACKET_SIZE_MAX);
            window.learn(60);
        }
        assert_eq!(window.size(), WINDOW_SHORT);
    }
}
