//! One operation on a file, as a series of system calls.
//!
//! The kernel may do less than it was asked for, be interrupted, or find that the file cannot do
//! what was asked. So an operation is a job, which says what to do next and is told what came of
//! it; both lanes carry out the same jobs, one through a ring, one by calls.
//!
//! ```text
//!   discard:       punch a hole ─► BLKDISCARD (block devices) ─► nothing: it is a hint
//!   write zeroes:  punch a hole (if it may unmap) ─► zero the range ─► write zeroes, 1 MiB a time
//!                               └─ unsupported: remembered in `Means` for the next job
//! ```

use std::io;

use rustix::io::Errno;

use super::raw::ZEROES_MAX;

/// How often a step is tried again that was interrupted, or for which the kernel lacked something.
const RETRIES_MAX: u8 = 16;

/// What to do, without the buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes { may_unmap: bool },
}

/// What the file has not been found unable to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Means {
    pub(super) can_punch: bool,
    pub(super) can_zero_range: bool,
    /// `BLKDISCARD`.
    pub(super) can_trim: bool,
}

/// One system call. Sizes of reads and writes are those of the buffers that are left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Read { offset: u64 },
    Write { offset: u64 },
    Zeroes { offset: u64, size: usize },
    Sync,
    PunchHole { offset: u64, size: u64 },
    ZeroRange { offset: u64, size: u64 },
    Trim { offset: u64, size: u64 },
}

#[derive(Debug)]
pub(super) struct Job {
    work: Work,
    offset: u64,
    size: u64,
    done: u64,
    retries: u8,
}

impl Job {
    pub(super) const fn new(work: Work, offset: u64, size: u64) -> Self {
        Self { work, offset, size, done: 0, retries: 0 }
    }

    /// What to do next; nothing if the job is over, and went well.
    pub(super) fn step(&self, means: Means) -> Option<Step> {
        let (offset, size) = (self.offset + self.done, self.size - self.done);
        match self.work {
            Work::Flush => Some(Step::Sync),
            _ if size == 0 => None,
            Work::Read => Some(Step::Read { offset }),
            Work::Write => Some(Step::Write { offset }),
            Work::Discard if means.can_punch => Some(Step::PunchHole { offset, size }),
            Work::Discard if means.can_trim => Some(Step::Trim { offset, size }),
            Work::Discard => None,
            Work::WriteZeroes { may_unmap: true } if means.can_punch => {
                Some(Step::PunchHole { offset, size })
            }
            Work::WriteZeroes { .. } if means.can_zero_range => {
                Some(Step::ZeroRange { offset, size })
            }
            Work::WriteZeroes { .. } => {
                let size = usize::try_from(size).unwrap_or(ZEROES_MAX).min(ZEROES_MAX);
                Some(Step::Zeroes { offset, size })
            }
        }
    }

    /// What came of `step`: a count for reads and writes, anything for others. Returns how the job
    /// went once it is over. If it is not, the bytes that were moved have left the buffers.
    pub(super) fn advance(
        &mut self,
        step: Step,
        result: io::Result<u32>,
        means: &mut Means,
    ) -> Option<io::Result<()>> {
        match result {
            Ok(count) => self.progress(step, count),
            Err(error) if is_transient(&error) && self.retries < RETRIES_MAX => {
                self.retries += 1;
                None
            }
            Err(error) if is_unsupported(&error) && means.forget(step) => None,
            Err(error) => Some(Err(error)),
        }
    }

    fn progress(&mut self, step: Step, count: u32) -> Option<io::Result<()>> {
        let count = u64::from(count);
        match step {
            Step::Read { offset } | Step::Write { offset } | Step::Zeroes { offset, .. } => {
                if count == 0 {
                    let why = format!("the disk ends at {offset}");
                    return Some(Err(io::Error::new(io::ErrorKind::UnexpectedEof, why)));
                }
                self.done = (self.done + count).min(self.size);
                (self.done == self.size).then_some(Ok(()))
            }
            Step::Sync | Step::PunchHole { .. } | Step::ZeroRange { .. } | Step::Trim { .. } => {
                Some(Ok(()))
            }
        }
    }
}

impl Means {
    /// The file cannot do `step`. False if there is no other way.
    const fn forget(&mut self, step: Step) -> bool {
        match step {
            Step::PunchHole { .. } => self.can_punch = false,
            Step::ZeroRange { .. } => self.can_zero_range = false,
            Step::Trim { .. } => self.can_trim = false,
            Step::Read { .. } | Step::Write { .. } | Step::Zeroes { .. } | Step::Sync => {
                return false;
            }
        }
        true
    }
}

/// A step is cancelled by the kernel when the thread that began it ends; a lane that cancels begins
/// nothing anew.
fn is_transient(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::INTR | Errno::AGAIN | Errno::CANCELED))
}

fn is_unsupported(error: &io::Error) -> bool {
    let unsupported = [Errno::OPNOTSUPP, Errno::NOSYS, Errno::NOTTY];
    Errno::from_io_error(error).is_some_and(|errno| unsupported.contains(&errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Means = Means { can_punch: true, can_zero_range: true, can_trim: true };

    /// Runs a job whose steps get these results, and returns the steps and the outcome.
    fn run(
        mut job: Job,
        means: &mut Means,
        results: Vec<Result<u32, Errno>>,
    ) -> (Vec<Step>, Option<io::ErrorKind>) {
        let (mut steps, mut results) = (Vec::new(), results.into_iter());
        while let Some(step) = job.step(*means) {
            steps.push(step);
            let result = results.next().expect("a result for each step").map_err(io::Error::from);
            if let Some(outcome) = job.advance(step, result, means) {
                assert_eq!(results.next(), None);
                return (steps, outcome.err().map(|error| error.kind()));
            }
        }
        (steps, None)
    }

    #[test]
    fn short_transfers_go_on_where_they_stopped() {
        let results = vec![Ok(100), Err(Errno::CANCELED), Ok(300), Ok(624)];
        let (steps, error) = run(Job::new(Work::Read, 512, 1024), &mut { ALL }, results);
        let at = |offset| Step::Read { offset };
        assert_eq!((steps, error), (vec![at(512), at(612), at(612), at(912)], None));
    }

    #[test]
    fn a_disk_that_ends_early_and_a_kernel_that_never_tries_are_errors() {
        let (_, error) = run(Job::new(Work::Read, 0, 512), &mut { ALL }, vec![Ok(1), Ok(0)]);
        assert_eq!(error, Some(io::ErrorKind::UnexpectedEof));
        let results = vec![Err(Errno::AGAIN); usize::from(RETRIES_MAX) + 1];
        let (_, error) = run(Job::new(Work::Write, 0, 512), &mut { ALL }, results);
        assert_eq!(error, Some(io::ErrorKind::WouldBlock));
        let (_, error) =
            run(Job::new(Work::Write, 0, 512), &mut { ALL }, vec![Err(Errno::OPNOTSUPP)]);
        assert_eq!(error, Some(io::ErrorKind::Unsupported));
    }

    #[test]
    fn zeroes_are_written_where_nothing_else_works() {
        let mut means = ALL;
        let size = 2 * ZEROES_MAX as u64 + 512;
        let piece = u32::try_from(ZEROES_MAX).unwrap();
        let unsupported = Err(Errno::OPNOTSUPP);
        let results = vec![unsupported, unsupported, Ok(piece), Ok(piece), Ok(512)];
        let job = Job::new(Work::WriteZeroes { may_unmap: true }, 4096, size);
        let (steps, error) = run(job, &mut means, results);
        assert_eq!(error, None);
        assert_eq!(means, Means { can_punch: false, can_zero_range: false, can_trim: true });
        let zeroes =
            |index: u64, size| Step::Zeroes { offset: 4096 + index * u64::from(piece), size };
        assert_eq!(steps[2..], [zeroes(0, ZEROES_MAX), zeroes(1, ZEROES_MAX), zeroes(2, 512)]);
    }

    #[test]
    fn zeroes_that_must_stay_allocated_make_no_hole() {
        let job = Job::new(Work::WriteZeroes { may_unmap: false }, 0, 512);
        assert_eq!(job.step(ALL), Some(Step::ZeroRange { offset: 0, size: 512 }));
    }

    #[test]
    fn a_discard_that_nothing_can_do_is_a_hint_that_nobody_took() {
        let mut means = ALL;
        let results = vec![Err(Errno::OPNOTSUPP), Err(Errno::NOTTY)];
        let (steps, error) = run(Job::new(Work::Discard, 0, 512), &mut means, results);
        assert_eq!((steps.len(), error), (2, None));
        assert_eq!(Job::new(Work::Discard, 0, 512).step(means), None);
    }
}
