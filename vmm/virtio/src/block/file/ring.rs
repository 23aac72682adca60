//! A lane over io_uring: what a kick brings is one batch, and one system call.
//!
//! ```text
//!   start ──► batch ──► turn: alone, and a read? ──► preadv2(RWF_NOWAIT) ──► done
//!                         │ no                          │ not in the page cache
//!                         ▼                             ▼
//!                      ring entries ──► io_uring_enter, once ──► completions: done, or next step
//!                                                                   ▲
//!                      the ring's descriptor is readable ───────────┘
//! ```
//!
//! What it costs, in system calls for each request:
//!
//! | | page cache | disk |
//! |---|---|---|
//! | one at a time | 1 (`preadv2`) | 2 (`preadv2` that gives up, `io_uring_enter`) |
//! | n at a time | 1/n | 1/n |
//!
//! Pages that are in the cache are copied by `io_uring_enter` itself, so that their completions are
//! there when it returns, and there is no waiting for the descriptor. For a single read even the
//! ring is too much: its bookkeeping costs more than the call that a hit needs, and a miss is
//! so much dearer than a failed call that this does not show. With `O_DIRECT` nothing is in the
//! cache and all goes to the ring.
//!
//! Writes go the same way. File systems that can promise not to wait (XFS, Btrfs, anything with
//! `O_DIRECT` into blocks that exist) take them within `io_uring_enter`; ext4's page cache cannot,
//! and the kernel hands them to a worker thread. That costs a switch of threads, and buys that a
//! queue goes on while the host throttles writers.
//!
//! The descriptor that announces completions is the ring's own rather than an eventfd: it is
//! readable as long as the completion queue is not empty, so that taking completions out, which is
//! a read of shared memory, is all there is to do; an eventfd would have to be read as well.

use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::io::Errno;

use super::blocking::perform;
use super::job::{Job, Means, Step};
use super::rings::Lease;
use super::{Alignment, begin};
use crate::block::storage::{Done, Lane, Operation};
use crate::memory::SharedMemory;

pub(super) struct RingLane {
    file: Arc<File>,
    alignment: Option<Alignment>,
    means: Means,
    memory: SharedMemory,
    ring: Lease,
    /// By tag: what is going on.
    jobs: Vec<Option<(Job, Step)>>,
    /// Tags whose next step is to be pushed.
    batch: Vec<u16>,
    done: Vec<Done>,
    /// Whether the file can be read without waiting, as far as is known.
    can_try: bool,
    /// Nothing begins any more, and what is in flight is to end.
    is_cancelled: bool,
}

impl RingLane {
    pub(super) fn new(
        file: Arc<File>,
        alignment: Option<Alignment>,
        means: Means,
        memory: &SharedMemory,
        ring: Lease,
        depth: u16,
    ) -> Self {
        Self {
            file,
            alignment,
            means,
            memory: Arc::clone(memory),
            ring,
            jobs: (0..depth).map(|_| None).collect(),
            batch: Vec::with_capacity(usize::from(depth)),
            done: Vec::new(),
            can_try: alignment.is_none(),
            is_cancelled: false,
        }
    }

    /// Goes on with `job`: its next step joins the batch, or it is over.
    fn proceed(&mut self, tag: u16, job: Job) {
        let Some(step) = job.step(self.means) else {
            self.done.push(Done { tag, result: Ok(()) });
            return;
        };
        if self.is_cancelled {
            self.done.push(Done { tag, result: Err(Errno::CANCELED.into()) });
            return;
        }
        self.jobs[usize::from(tag)] = Some((job, step));
        self.batch.push(tag);
    }

    /// The step of `tag` is over.
    fn step_done(&mut self, tag: u16, result: io::Result<u32>) {
        let Some((mut job, step)) = self.jobs[usize::from(tag)].take() else { return };
        if let Ok(count) = result {
            self.ring.scatter(tag).skip(count);
        }
        match job.advance(step, result, &mut self.means) {
            Some(result) => self.done.push(Done { tag, result }),
            None => self.proceed(tag, job),
        }
    }

    /// Serves a read that is alone from the page cache, if it is there.
    fn try_inline(&mut self) {
        let &[tag] = self.batch.as_slice() else { return };
        if !self.can_try || self.ring.in_flight() > 0 {
            return;
        }
        let Some((_, Step::Read { offset })) = self.jobs[usize::from(tag)] else { return };
        match self.ring.scatter(tag).read(&self.file, offset, true) {
            Ok(count) => {
                self.batch.clear();
                self.step_done(tag, Ok(count));
            }
            Err(error) => {
                self.can_try = Errno::from_io_error(&error) != Some(Errno::OPNOTSUPP);
            }
        }
    }

    /// Hands the batch to the kernel.
    fn submit(&mut self) -> io::Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let mut batch = mem::take(&mut self.batch);
        for tag in batch.drain(..) {
            let Some((_, step)) = self.jobs[usize::from(tag)] else { continue };
            if matches!(step, Step::Trim { .. }) {
                // The ring has no such operation before Linux 6.12.
                let result = perform(&self.file, step, self.ring.scatter(tag));
                self.step_done(tag, result);
            } else {
                self.ring.push(tag, step)?;
            }
        }
        // Trims that failed may have brought new steps.
        batch.append(&mut self.batch);
        self.batch = batch;
        self.ring.enter()
    }

    fn collect(&mut self) {
        while let Some((tag, result)) = self.ring.next() {
            self.step_done(tag, result);
        }
    }
}

impl Lane for RingLane {
    fn start(&mut self, tag: u16, operation: Operation<'_>) {
        let (file, memory) = (&self.file, &self.memory);
        let scatter = self.ring.scatter(tag);
        match begin(file, memory, self.alignment, operation, scatter) {
            Ok(Some(job)) => self.proceed(tag, job),
            Ok(None) => self.done.push(Done { tag, result: Ok(()) }),
            Err(error) => self.done.push(Done { tag, result: Err(error) }),
        }
    }

    /// Two rounds at most: what is over after the second is announced by the descriptor.
    fn turn(&mut self, done: &mut Vec<Done>) -> io::Result<()> {
        if self.is_cancelled {
            // Each time: the kernel may not have taken all of it the last time.
            self.ring.cancel();
        }
        self.collect();
        self.try_inline();
        if !self.batch.is_empty() {
            self.submit()?;
            self.collect();
            self.submit()?;
        }
        done.append(&mut self.done);
        Ok(())
    }

    fn cancel(&mut self) {
        self.is_cancelled = true;
        self.batch.clear();
        for tag in (0..).take(self.jobs.len()).filter(|&tag| !self.ring.is_busy(tag)) {
            if self.jobs[usize::from(tag)].take().is_some() {
                self.done.push(Done { tag, result: Err(Errno::CANCELED.into()) });
            }
        }
    }

    fn is_busy(&self) -> bool {
        self.ring.in_flight() > 0
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ring.as_fd())
    }
}
