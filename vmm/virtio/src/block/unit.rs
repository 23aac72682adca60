//! One queue of a block device at work.
//!
//! ```text
//!   pop ─► parse ─► refused? ─────────────────────────────────────► answer
//!            │                                                        ▲
//!            ▼   no token: put back, come again at the deadline       │
//!          slot ─► lane ─► done ─► more ranges? write through? ───────┘
//!                   ▲                 │ yes: next operation
//!                   └─────────────────┘
//! ```
//!
//! A request occupies a slot from the time it is started until it is answered. Without a free slot
//! nothing is popped, and the driver is not asked for kicks: an answer will free one. A flush that
//! has to wait for writes sits in its slot and joins the lane when the last of them is over.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Shared;
use super::flush_order::FlushOrder;
use super::request::{self, Parts, Range, Request, Rules, Span, Status};
use super::storage::{Done, Lane, Operation};
use crate::memory::{Bytes, GuestAddress, Memory};
use crate::{Chain, Interest, Queue, Source, Unit, UnitError};

pub(super) struct BlockUnit {
    queue: Queue,
    lane: Box<dyn Lane>,
    rules: Rules,
    shared: Arc<Shared>,
    slots: Vec<Slot>,
    /// Indexes of slots that nobody uses, the one to use next at the end.
    free: Vec<u16>,
    order: FlushOrder,
    /// When the rate limiter is to be asked again; nothing is popped until then.
    retry_at: Option<Instant>,
    chain: Chain,
    parts: Parts,
    done: Vec<Done>,
}

/// A request in flight.
#[derive(Debug, Default)]
struct Slot {
    head: u16,
    status: GuestAddress,
    kind: Kind,
    /// Bytes of data.
    size: u32,
    /// For what a flush waits for: when it came.
    epoch: Option<u64>,
    /// Ranges that are still to be started.
    ranges: Vec<Range>,
    /// A sync is to follow before it is answered.
    is_write_through: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes,
}

/// A unit serves so many times its queue's size before others on its thread have their turn.
const ROUNDS_MAX: u32 = 4;

/// How often a lane that was cancelled is looked at, though it says nothing.
const CANCEL_INTERVAL: Duration = Duration::from_secs(1);

/// The token of the lane's descriptor.
const LANE: u32 = 0;

impl BlockUnit {
    pub(super) fn new(
        queue: Queue,
        lane: Box<dyn Lane>,
        rules: Rules,
        shared: Arc<Shared>,
    ) -> Self {
        let size = queue.size();
        Self {
            queue,
            lane,
            rules,
            shared,
            slots: (0..size).map(|_| Slot::default()).collect(),
            free: (0..size).rev().collect(),
            order: FlushOrder::default(),
            retry_at: None,
            chain: Chain::new(),
            parts: Parts::default(),
            done: Vec::with_capacity(usize::from(size)),
        }
    }

    /// Serves what there is, and asks for a kick unless something else will call.
    fn serve(&mut self) -> Result<(), UnitError> {
        let mut budget = u32::from(self.queue.size()) * ROUNDS_MAX;
        loop {
            let answered = self.take(&mut budget)?;
            self.settle(answered)?;
            let is_throttled = self.retry_at.is_some();
            if is_throttled || self.free.is_empty() {
                return Ok(());
            }
            if budget == 0 {
                // As if the driver had kicked again.
                return self.queue.kick().write(1).map_err(|source| host("kick itself", source));
            }
            if !self.queue.rearm()? {
                return Ok(());
            }
        }
    }

    /// Starts what is in the available ring, as far as slots, limits and `budget` go. Returns
    /// whether some of it was answered right away.
    fn take(&mut self, budget: &mut u32) -> Result<bool, UnitError> {
        let mut has_answered = false;
        if self.retry_at.is_some_and(|at| Instant::now() < at) {
            return Ok(has_answered);
        }
        self.retry_at = None;
        self.rules.capacity = self.shared.capacity.load(Ordering::Relaxed);
        while *budget > 0 && !self.free.is_empty() && self.queue.pop(&mut self.chain)? {
            *budget -= 1;
            let (request, status) = self.parse()?;
            if !self.admit(&request) {
                self.queue.unpop();
                break;
            }
            has_answered |= self.begin(request, status)?;
        }
        Ok(has_answered)
    }

    fn parse(&mut self) -> Result<(Request, GuestAddress), UnitError> {
        let memory: &Memory = self.queue.memory();
        request::parse(&self.chain, memory, &self.rules, &mut self.parts)
            .map_err(|source| UnitError::Queue { index: self.queue.index(), source })
    }

    /// Asks the rate limiter, and notes when to come again if it refuses.
    fn admit(&mut self, request: &Request) -> bool {
        let limiter = &self.shared.limiter;
        if !limiter.is_limited() {
            return true;
        }
        let size = match request {
            Request::Read(span) | Request::Write(span) => span.size,
            _ => 0,
        };
        match limiter.admit(Instant::now(), u64::from(size)) {
            Ok(()) => true,
            Err(at) => {
                self.shared.counts.throttled.increment();
                self.retry_at = Some(at);
                false
            }
        }
    }

    /// Starts `request`, or answers it. Returns whether it was answered.
    fn begin(&mut self, request: Request, status: GuestAddress) -> Result<bool, UnitError> {
        let head = self.chain.head();
        let (kind, size) = match request {
            Request::Refused(answer, why) => {
                self.fail(why);
                return self.answer(head, status, answer, 0).map(|()| true);
            }
            Request::Identify => {
                let size = self.identify();
                return self.answer(head, status, Status::Ok, size).map(|()| true);
            }
            Request::Read(span) => (Kind::Read, span.size),
            Request::Write(span) => (Kind::Write, span.size),
            Request::Flush => (Kind::Flush, 0),
            Request::Discard => (Kind::Discard, 0),
            Request::WriteZeroes => (Kind::WriteZeroes, 0),
        };
        let Some(tag) = self.free.pop() else { return Ok(false) };
        let is_write = matches!(kind, Kind::Write | Kind::Discard | Kind::WriteZeroes);
        let slot = &mut self.slots[usize::from(tag)];
        slot.head = head;
        slot.status = status;
        slot.kind = kind;
        slot.size = size;
        slot.epoch = is_write.then(|| self.order.write_started());
        slot.ranges.clear();
        slot.ranges.extend_from_slice(&self.parts.ranges);
        slot.is_write_through = is_write && !self.shared.is_writeback.load(Ordering::Relaxed);
        self.start(tag, request);
        Ok(false)
    }

    fn start(&mut self, tag: u16, request: Request) {
        let (lane, segments) = (&mut self.lane, self.parts.data.as_slice());
        match request {
            Request::Read(Span { offset, .. }) => {
                lane.start(tag, Operation::Read { offset, into: segments });
            }
            Request::Write(Span { offset, .. }) => {
                lane.start(tag, Operation::Write { offset, from: segments });
            }
            Request::Flush if !self.order.flush(tag) => {}
            Request::Flush => lane.start(tag, Operation::Flush),
            Request::Discard | Request::WriteZeroes => self.start_next_range(tag),
            Request::Identify | Request::Refused(..) => {}
        }
    }

    /// Starts the next range of a discard or write-zeroes request.
    fn start_next_range(&mut self, tag: u16) {
        let slot = &mut self.slots[usize::from(tag)];
        // One without any is over as soon as the lane says so.
        let range = slot.ranges.pop().unwrap_or(Range { offset: 0, size: 0, may_unmap: false });
        let Range { offset, size, may_unmap } = range;
        let operation = match slot.kind {
            Kind::Discard => Operation::Discard { offset, size },
            _ => Operation::WriteZeroes { offset, size, may_unmap },
        };
        self.lane.start(tag, operation);
    }

    /// Lets the lane work until it has nothing to report, answers what is over, and interrupts the
    /// driver once.
    fn settle(&mut self, mut has_answered: bool) -> Result<(), UnitError> {
        // All slots are free: the lane has nothing to do.
        while self.free.len() < self.slots.len() {
            let mut done = std::mem::take(&mut self.done);
            let turned = self.lane.turn(&mut done);
            let is_idle = done.is_empty();
            for Done { tag, result } in done.drain(..) {
                has_answered |= self.finish(tag, result.map_err(|error| error.to_string()))?;
            }
            self.done = done;
            turned.map_err(|source| host("use the disk", source))?;
            if is_idle {
                break;
            }
        }
        if has_answered { self.queue.notify() } else { Ok(()) }
    }

    /// An operation of slot `tag` is over. Returns whether its request was answered.
    fn finish(&mut self, tag: u16, result: Result<(), String>) -> Result<bool, UnitError> {
        let slot = &mut self.slots[usize::from(tag)];
        if result.is_ok() && !slot.ranges.is_empty() {
            self.start_next_range(tag);
            return Ok(false);
        }
        if result.is_ok() && slot.is_write_through {
            slot.is_write_through = false;
            self.lane.start(tag, Operation::Flush);
            return Ok(false);
        }
        let (head, status, kind, size) = (slot.head, slot.status, slot.kind, slot.size);
        if let Some(epoch) = slot.epoch.take() {
            self.order.write_done(epoch);
        }
        self.free.push(tag);
        while let Some(flush) = self.order.next_flush() {
            self.lane.start(flush, Operation::Flush);
        }
        match result {
            Ok(()) => {
                self.count(kind, size);
                let written = if kind == Kind::Read { size } else { 0 };
                self.answer(head, status, Status::Ok, written)?;
            }
            Err(why) => {
                self.fail(&why);
                self.answer(head, status, Status::IoError, 0)?;
            }
        }
        Ok(true)
    }

    /// Writes the serial number, as much as there is room for. Returns how much that is.
    fn identify(&self) -> u32 {
        let memory: &Memory = self.queue.memory();
        let room = self.chain.writable_size() - 1;
        let serial = &self.shared.serial;
        let size = serial.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        // There is room, as has just been said.
        let _ = self.chain.writable(memory).write(0, &serial[..size], "a serial number");
        u32::try_from(size).unwrap_or(room)
    }

    /// Gives the chain of `head` back, with `written` bytes of data besides its status.
    fn answer(
        &mut self,
        head: u16,
        status: GuestAddress,
        answer: Status,
        written: u32,
    ) -> Result<(), UnitError> {
        let stored = self.queue.memory().write_obj(answer as u8, status);
        stored.map_err(|error| UnitError::Guest(format!("the status of chain {head}: {error}")))?;
        self.queue.push(head, written + 1)
    }

    fn count(&self, kind: Kind, size: u32) {
        let counts = &self.shared.counts;
        match kind {
            Kind::Read => {
                counts.reads.increment();
                counts.read_bytes.add(u64::from(size));
            }
            Kind::Write => {
                counts.writes.increment();
                counts.written_bytes.add(u64::from(size));
            }
            Kind::Flush => counts.flushes.increment(),
            Kind::Discard => counts.discards.increment(),
            Kind::WriteZeroes => counts.zeroings.increment(),
        }
    }

    /// Counts an error, and logs it if the count has doubled since the last one.
    fn fail(&self, why: &str) {
        let errors = &self.shared.counts.errors;
        errors.increment();
        let count = errors.value();
        if count.is_power_of_two() {
            tracing::warn!(queue = self.queue.index(), count, "disk request failed: {why}");
        }
    }

    /// Answers all that is in flight. False if it cannot, or not until `deadline`.
    fn finish_all(&mut self, deadline: Instant) -> bool {
        loop {
            if let Err(error) = self.settle(false) {
                tracing::warn!(%error, "a disk queue stops without an answer for its requests");
                return false;
            }
            let in_flight = self.slots.len() - self.free.len();
            if in_flight == 0 {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let queue = self.queue.index();
                tracing::error!(queue, in_flight, "the host hangs: disk requests are cancelled");
                return false;
            }
            self.wait(left);
        }
    }

    /// Ends what is in flight, and waits for as long as it takes until the host has let go of guest
    /// memory: whoever gets the queue back may let the guest use that for something else. Whoever
    /// waits for us need not wait as long.
    fn cancel_all(&mut self) {
        self.lane.cancel();
        let mut can_answer = true;
        loop {
            if can_answer {
                can_answer = self.settle(false).is_ok();
            } else {
                self.done.clear();
                // There was an error before this one.
                let _ = self.lane.turn(&mut self.done);
            }
            if !self.lane.is_busy() {
                return;
            }
            self.wait(CANCEL_INTERVAL);
        }
    }

    /// Waits for the lane, and for `limit` at most.
    fn wait(&self, limit: Duration) {
        let watch = |descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN);
        let mut descriptors: Vec<_> = self.lane.descriptor().map(watch).into_iter().collect();
        // An interruption is an early end of the wait.
        let _ = poll(&mut descriptors, Some(&timespec(limit)));
    }
}

impl Unit for BlockUnit {
    fn sources(&self) -> Vec<Source> {
        let source = |descriptor: std::os::fd::BorrowedFd<'_>| Source {
            descriptor: descriptor.as_raw_fd(),
            token: LANE,
            // Always: it says nothing while nothing is in flight, and changing its mind would cost
            // a system call each time.
            interest: Interest::Read,
        };
        self.lane.descriptor().map(source).into_iter().collect()
    }

    fn queues(&self) -> Vec<&Queue> {
        vec![&self.queue]
    }

    fn kicked(&mut self, _index: u16) -> Result<(), UnitError> {
        self.serve()
    }

    fn ready(&mut self, _token: u32) -> Result<(), UnitError> {
        self.serve()
    }

    fn deadline(&self) -> Option<Instant> {
        self.retry_at
    }

    fn expired(&mut self, _now: Instant) -> Result<(), UnitError> {
        self.serve()
    }

    fn stop(mut self: Box<Self>) -> Vec<Queue> {
        if !self.finish_all(Instant::now() + self.shared.stop_limit) {
            self.cancel_all();
        }
        vec![self.queue]
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

fn host(what: &str, source: std::io::Error) -> UnitError {
    UnitError::Host { what: format!("cannot {what}"), source }
}
