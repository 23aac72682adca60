//! From the guest to the back end: each packet is written straight out of the driver's buffers.
//!
//! A batch ends with one interrupt at most. When it was a single short packet the interrupt waits
//! a little: what the driver does with it is free the buffer, and if an answer arrives meanwhile
//! Linux frees sent buffers on the way, as other drivers do that look at both queues at once, and
//! moves `used_event` on. Then no interrupt is due any more, and a request with its answer has cost
//! the guest one instead of two. [`Patience`] notices drivers for which that does not come true.

use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::shared::{Failure, Shared, classify};
use super::unit::BATCH;
use super::vectored::{PIECES_MAX, Room};
use super::wire::{HEADER_SIZE, PACKET_SIZE_MAX};
use super::{SharedThrottle, take_from};
use crate::{Chain, Queue, QueueError, UnitError};

/// How long an interrupt for one short packet may wait.
const INTERRUPT_WAIT: Duration = Duration::from_micros(200);
/// What a short packet is, with its header.
const SHORT: u32 = 1536;

/// The transmit queue of one pair.
pub(super) struct Transmitter {
    queue: Queue,
    throttle: Option<SharedThrottle>,
    /// The back end's own queue is full.
    is_blocked: bool,
    /// The rate limiter said when to go on, or the batch was full.
    resume: Option<Instant>,
    /// When to interrupt for what has been sent already.
    interrupt: Option<Instant>,
    /// Only with `VIRTIO_F_EVENT_IDX` can a driver say that it has seen what was sent.
    patience: Option<Patience>,
    /// The rate limiter has let the next packet pass already.
    is_paid: bool,
    // Kept for their allocations.
    chain: Chain,
    room: Room,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Sent or dropped.
    Done,
    /// Back in the queue; something will say when to go on.
    Wait,
}

impl Transmitter {
    pub(super) fn new(queue: Queue, throttle: Option<SharedThrottle>, has_event_idx: bool) -> Self {
        Self {
            queue,
            throttle,
            is_blocked: false,
            resume: None,
            interrupt: None,
            patience: has_event_idx.then(Patience::new),
            is_paid: false,
            chain: Chain::new(),
            room: Room::default(),
        }
    }

    pub(super) const fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Whether it waits for the back end to take packets again.
    pub(super) const fn is_blocked(&self) -> bool {
        self.is_blocked
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.resume.into_iter().chain(self.interrupt).min()
    }

    /// The deadline may have passed.
    pub(super) fn expired(
        &mut self,
        now: Instant,
        shared: &Shared,
        pair: u16,
    ) -> Result<(), UnitError> {
        if self.interrupt.is_some_and(|at| at <= now) {
            self.settle()?;
        }
        if self.resume.is_some_and(|at| at <= now) {
            self.serve(shared, pair)?;
        }
        Ok(())
    }

    /// Sends what the driver has queued, a batch at most.
    pub(super) fn serve(&mut self, shared: &Shared, pair: u16) -> Result<(), UnitError> {
        self.settle()?;
        (self.is_blocked, self.resume) = (false, None);
        let (mut count, mut bytes) = (0, 0_u32);
        while count < BATCH {
            if !self.queue.pop(&mut self.chain)? {
                if self.queue.rearm()? {
                    continue;
                }
                break;
            }
            if self.send(shared, pair)? == Outcome::Wait {
                break;
            }
            count += 1;
            bytes = bytes.saturating_add(self.chain.readable_size());
        }
        if count == BATCH {
            // There may be more, for which no kick will come: at once, but after the others.
            self.resume = Some(Instant::now());
        }
        if count == 1 && bytes <= SHORT && self.patience.as_mut().is_some_and(Patience::may_wait) {
            self.interrupt = Some(Instant::now() + INTERRUPT_WAIT);
            return Ok(());
        }
        self.queue.notify()
    }

    /// Gives the queue back, with nothing in flight.
    pub(super) fn stop(mut self) -> Queue {
        // A ring that cannot be read is no concern of a unit that stops.
        let _ = self.queue.notify();
        self.queue
    }

    /// Interrupts for what was sent earlier, if the driver still wants to hear of it.
    fn settle(&mut self) -> Result<(), UnitError> {
        if self.interrupt.take().is_some() {
            let was_needed = self.queue.notify_if_wanted()?;
            if let Some(patience) = &mut self.patience {
                patience.learn(was_needed);
            }
        }
        Ok(())
    }

    fn send(&mut self, shared: &Shared, pair: u16) -> Result<Outcome, UnitError> {
        let (head, size) = (self.chain.head(), self.chain.readable_size());
        if size < HEADER_SIZE {
            let what = "a packet with its header";
            let source = QueueError::Short { head, what, wanted: HEADER_SIZE, found: size };
            return Err(UnitError::Queue { index: self.queue.index(), source });
        }
        let readable = self.chain.readable(self.queue.memory());
        let fits = size <= PACKET_SIZE_MAX && readable.segments().len() <= PIECES_MAX;
        if !fits || !shared.is_link_up() {
            shared.sent.drops.increment();
            self.queue.push(head, 0)?;
            return Ok(Outcome::Done);
        }
        if !self.is_paid
            && let Err(until) = take_from(self.throttle.as_ref(), size - HEADER_SIZE)
        {
            shared.sent.throttled.increment();
            self.resume = Some(until);
            self.queue.unpop();
            return Ok(Outcome::Wait);
        }
        let descriptor = shared.backend(pair).descriptor();
        match self.room.write(descriptor, readable.slices(0, size)) {
            Ok(_) => shared.sent.count(size - HEADER_SIZE),
            Err(Errno::AGAIN) => {
                (self.is_blocked, self.is_paid) = (true, true);
                self.queue.unpop();
                return Ok(Outcome::Wait);
            }
            Err(errno) => match classify(errno) {
                // It is about to be put in use, or has just been put out of it.
                Failure::Gone if !shared.is_active(pair) => {
                    self.queue.unpop();
                    return Ok(Outcome::Wait);
                }
                Failure::Gone => return Err(shared.lost("send a packet", errno.into())),
                // A header that makes no sense, an interface that is down, no memory.
                Failure::Packet => shared.sent.drops.increment(),
            },
        }
        self.is_paid = false;
        self.queue.push(head, 0)?;
        Ok(Outcome::Done)
    }
}

/// Whether it pays to let an interrupt wait.
#[derive(Debug)]
struct Patience {
    /// Grows when the wait made an interrupt needless, shrinks when it only made it late.
    credit: u8,
    /// Interrupts that do not wait, before it is tried again.
    pause: u8,
}

impl Patience {
    const CREDIT_MAX: u8 = 8;
    const PAUSE: u8 = 64;

    const fn new() -> Self {
        Self { credit: 2, pause: 0 }
    }

    const fn may_wait(&mut self) -> bool {
        if self.credit > 0 {
            return true;
        }
        self.pause -= 1;
        if self.pause == 0 {
            self.credit = 1;
        }
        false
    }

    const fn learn(&mut self, was_needed: bool) {
        if !was_needed {
            if self.credit < Self::CREDIT_MAX {
                self.credit += 1;
            }
        } else if self.credit > 0 {
            self.credit -= 1;
            if self.credit == 0 {
                self.pause = Self::PAUSE;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_ends_with_drivers_that_need_each_interrupt_and_tries_again_later() {
        let mut patience = Patience::new();
        for _ in 0..2 {
            assert!(patience.may_wait());
            patience.learn(true);
        }
        let refused = (0..200).take_while(|_| !patience.may_wait()).count();
        assert_eq!(refused, usize::from(Patience::PAUSE));
        patience.learn(true);
        assert!(!patience.may_wait());
    }

    #[test]
    fn patience_that_paid_off_survives_a_few_late_interrupts() {
        let mut patience = Patience::new();
        for _ in 0..100 {
            patience.learn(false);
        }
        for _ in 1..Patience::CREDIT_MAX {
            patience.learn(true);
            assert!(patience.may_wait());
        }
        patience.learn(true);
        assert!(!patience.may_wait());
    }
}
