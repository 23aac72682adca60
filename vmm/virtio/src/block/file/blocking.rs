//! A lane that makes system calls and waits for them.
//!
//! For files whose pages are memory anyway, where a ring would only add to the price; and for hosts
//! without io_uring. Everything is over when [`Lane::turn`] returns. A host that hangs, hangs the
//! thread of the queue with it, as system calls do.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, fallocate, fdatasync};

use super::job::{Job, Means, Step};
use super::raw::{self, Scatter};
use super::{Alignment, begin};
use crate::block::storage::{Done, Lane, Operation};
use crate::memory::SharedMemory;

pub(super) struct BlockingLane {
    file: Arc<File>,
    alignment: Option<Alignment>,
    means: Means,
    memory: SharedMemory,
    scatter: Scatter,
    done: Vec<Done>,
}

impl BlockingLane {
    pub(super) fn new(
        file: Arc<File>,
        alignment: Option<Alignment>,
        means: Means,
        memory: &SharedMemory,
    ) -> Self {
        let (memory, scatter) = (Arc::clone(memory), Scatter::new(Arc::clone(memory)));
        Self { file, alignment, means, memory, scatter, done: Vec::new() }
    }

    fn run(&mut self, mut job: Job) -> io::Result<()> {
        while let Some(step) = job.step(self.means) {
            let result = perform(&self.file, step, &mut self.scatter);
            if let Ok(count) = result {
                self.scatter.skip(count);
            }
            if let Some(outcome) = job.advance(step, result, &mut self.means) {
                return outcome;
            }
        }
        Ok(())
    }
}

impl Lane for BlockingLane {
    fn start(&mut self, tag: u16, operation: Operation<'_>) {
        let (file, memory) = (&self.file, &self.memory);
        let begun = begin(file, memory, self.alignment, operation, &mut self.scatter);
        let result = match begun {
            Ok(Some(job)) => self.run(job),
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        self.done.push(Done { tag, result });
    }

    fn turn(&mut self, done: &mut Vec<Done>) -> io::Result<()> {
        done.append(&mut self.done);
        Ok(())
    }

    /// Nothing is under way between two calls.
    fn cancel(&mut self) {}

    fn is_busy(&self) -> bool {
        false
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Carries out `step` by a system call, which may wait.
pub(super) fn perform(file: &File, step: Step, scatter: &mut Scatter) -> io::Result<u32> {
    let keep = FallocateFlags::KEEP_SIZE;
    match step {
        Step::Read { offset } => return scatter.read(file, offset, false),
        Step::Write { offset } => return scatter.write(file, offset),
        Step::Zeroes { offset, size } => {
            scatter.fill_zeroes(size);
            return scatter.write(file, offset);
        }
        Step::Sync => fdatasync(file)?,
        Step::PunchHole { offset, size } => {
            fallocate(file, FallocateFlags::PUNCH_HOLE | keep, offset, size)?;
        }
        Step::ZeroRange { offset, size } => {
            fallocate(file, FallocateFlags::ZERO_RANGE | keep, offset, size)?;
        }
        Step::Trim { offset, size } => raw::trim(file, offset, size)?,
    }
    Ok(0)
}
