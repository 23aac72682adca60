//! Where the kernel is told addresses in guest memory: the only unsafe code of the block device.
//!
//! Three things must hold, and this file is what holds them:
//!
//! - **What the kernel may access stays mapped.** A [`Scatter`] has addresses only from the memory
//!   that it owns a share of, and a [`Ring`] owns the scatters of all its operations. If a ring
//!   goes away while the kernel still works on some of them, which is when the host hangs, ring and
//!   scatters are leaked, on purpose.
//! - **No Rust reference points there**, since the guest changes it at any time: addresses go from
//!   `vm-memory` to the kernel as pointers.
//! - **A scatter does not change while the kernel uses it**: a tag is busy from the push of its
//!   operation to its completion, and the ring does not hand out the scatter of a busy tag.

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue, types};
use rustix::io::Errno;

use super::job::Step;
use crate::Segment;
use crate::memory::{GuestMemoryBackend, SharedMemory};

/// The most zeroes that are written in one step.
pub(super) const ZEROES_MAX: usize = 1 << 20;

/// The most pieces that the kernel takes in one call (`UIO_MAXIOV`).
const VECTORS_MAX: usize = 1024;

/// How often a ring is entered again when the kernel lacks memory for an operation.
const ENTRIES_MAX: u32 = 64;

#[repr(align(4096))]
struct Zeroes([u8; 16 << 10]);

static ZEROES: Zeroes = Zeroes([0; 16 << 10]);

/// Pieces of memory for one operation: of the guest, or zeroes to be written.
pub(super) struct Scatter {
    memory: SharedMemory,
    vectors: Vec<libc::iovec>,
    /// The vectors before this one are used up.
    first: usize,
    /// They may be read from only.
    is_zeroes: bool,
}

// SAFETY: the pointers lead into `memory`, which is shared by threads anyway, or into a static;
// they are not tied to a thread.
unsafe impl Send for Scatter {}

impl Scatter {
    pub(super) const fn new(memory: SharedMemory) -> Self {
        Self { memory, vectors: Vec::new(), first: 0, is_zeroes: false }
    }

    /// Takes `segments`; those that follow one another become one.
    ///
    /// # Errors
    /// When one is not in guest memory.
    pub(super) fn fill(&mut self, segments: &[Segment]) -> io::Result<()> {
        self.clear();
        for segment in segments {
            let size = usize::try_from(segment.size).map_err(|_| Errno::INVAL)?;
            let slice = self.memory.get_slice(segment.address, size).map_err(|_| Errno::FAULT)?;
            let base = slice.ptr_guard_mut().as_ptr();
            match self.vectors.last_mut() {
                Some(last) if last.iov_base.addr() + last.iov_len == base.addr() => {
                    last.iov_len += size;
                }
                _ => self.vectors.push(libc::iovec { iov_base: base.cast(), iov_len: size }),
            }
        }
        Ok(())
    }

    /// Takes `size` zeroes, [`ZEROES_MAX`] at most.
    pub(super) fn fill_zeroes(&mut self, size: usize) {
        self.clear();
        self.is_zeroes = true;
        let mut left = size.min(ZEROES_MAX);
        while left > 0 {
            let iov_len = left.min(ZEROES.0.len());
            let iov_base = ZEROES.0.as_ptr().cast_mut().cast();
            self.vectors.push(libc::iovec { iov_base, iov_len });
            left -= iov_len;
        }
    }

    /// Whether all addresses are multiples of `address`, and all sizes of `size`.
    pub(super) fn is_aligned(&self, address: usize, size: usize) -> bool {
        self.rest().iter().all(|vector| {
            vector.iov_base.addr().is_multiple_of(address) && vector.iov_len.is_multiple_of(size)
        })
    }

    /// Drops the first `size` bytes, which have been dealt with.
    pub(super) fn skip(&mut self, size: u32) {
        let mut left = usize::try_from(size).unwrap_or(usize::MAX);
        while let Some(vector) = self.vectors.get_mut(self.first) {
            if left < vector.iov_len {
                vector.iov_base = vector.iov_base.wrapping_byte_add(left);
                vector.iov_len -= left;
                return;
            }
            left -= vector.iov_len;
            self.first += 1;
        }
    }

    /// Fills what it can from `offset` of `file`, without waiting for a disk if `no_wait`.
    ///
    /// # Errors
    /// Whatever the kernel says; `EAGAIN` if it would wait, `EOPNOTSUPP` if it cannot but wait.
    pub(super) fn read(&self, file: &File, offset: u64, no_wait: bool) -> io::Result<u32> {
        let (first, count) = self.for_reading()?;
        let flags = if no_wait { libc::RWF_NOWAIT } else { 0 };
        let (fd, offset) = (file.as_raw_fd(), file_offset(offset)?);
        // SAFETY: `first` and `count` are live vectors of ours, and what they point to is guest
        // memory (it is no zeroes), mapped and writable as long as `self.memory` is.
        counted(unsafe { libc::preadv2(fd, first, count, offset, flags) })
    }

    /// Writes what it can to `offset` of `file`.
    ///
    /// # Errors
    /// Whatever the kernel says.
    pub(super) fn write(&self, file: &File, offset: u64) -> io::Result<u32> {
        let (first, count) = self.vectors_for_kernel();
        let (fd, offset) = (file.as_raw_fd(), file_offset(offset)?);
        // SAFETY: `first` and `count` are live vectors of ours, and what they point to is mapped
        // as long as `self.memory` is, or static.
        counted(unsafe { libc::pwritev2(fd, first, count, offset, 0) })
    }

    fn clear(&mut self) {
        self.vectors.clear();
        self.first = 0;
        self.is_zeroes = false;
    }

    fn rest(&self) -> &[libc::iovec] {
        &self.vectors[self.first..]
    }

    fn for_reading(&self) -> io::Result<(*const libc::iovec, i32)> {
        if self.is_zeroes {
            return Err(Errno::INVAL.into());
        }
        Ok(self.vectors_for_kernel())
    }

    fn vectors_for_kernel(&self) -> (*const libc::iovec, i32) {
        let rest = self.rest();
        let count = i32::try_from(rest.len().min(VECTORS_MAX)).unwrap_or(0);
        (rest.as_ptr(), count)
    }
}

/// Tells a block device that a range is of no interest any more.
///
/// # Errors
/// Whatever the kernel says; `ENOTTY` if it is no block device.
pub(super) fn trim(file: &File, offset: u64, size: u64) -> io::Result<()> {
    const BLKDISCARD: rustix::ioctl::Opcode = rustix::ioctl::opcode::none(0x12, 119);
    // SAFETY: BLKDISCARD reads two u64, offset and size, and keeps nothing.
    let discard = unsafe { rustix::ioctl::Setter::<BLKDISCARD, [u64; 2]>::new([offset, size]) };
    // SAFETY: as above; it changes what the device holds, and no memory of ours.
    Ok(unsafe { rustix::ioctl::ioctl(file, discard) }?)
}

/// An io_uring with one file, and the memory that its operations use.
pub(super) struct Ring {
    uring: ManuallyDrop<IoUring>,
    lots: ManuallyDrop<Vec<Lot>>,
    /// Busy lots.
    in_flight: usize,
}

struct Lot {
    scatter: Scatter,
    is_busy: bool,
}

/// The file's index among those that are registered with the ring.
const FILE: types::Fixed = types::Fixed(0);

/// What the kernel says of an operation that was to end another. No tag is as large.
const CANCEL: u64 = u64::MAX;

impl Ring {
    /// Sets a ring up for `depth` operations at a time on `file`.
    ///
    /// What a ring does passes by the thread's system call filter. So the ring itself is restricted,
    /// for ever: to the operations that `entry` makes, and to this file.
    ///
    /// # Errors
    /// When the kernel has no io_uring, or one from before Linux 5.19, or forbids it.
    pub(super) fn new(file: &File, memory: &SharedMemory, depth: u16) -> io::Result<Self> {
        // Completions are seen when the thread next enters the kernel, which its event loop does
        // anyway: no interrupt to another CPU for each. One bad entry does not hold up a batch.
        let mut builder = IoUring::builder();
        builder.dontfork().setup_coop_taskrun().setup_submit_all().setup_r_disabled();
        let uring: IoUring = builder.build(u32::from(depth).next_power_of_two())?;
        if !uring.params().is_feature_nodrop() || !uring.params().is_feature_submit_stable() {
            return Err(Errno::NOSYS.into());
        }
        uring.submitter().register_files(&[file.as_raw_fd()])?;
        uring.submitter().register_restrictions(&mut restrictions())?;
        uring.submitter().register_enable_rings()?;
        let lot = || Lot { scatter: Scatter::new(memory.clone()), is_busy: false };
        let lots = (0..depth).map(|_| lot()).collect();
        let (uring, lots) = (ManuallyDrop::new(uring), ManuallyDrop::new(lots));
        Ok(Self { uring, lots, in_flight: 0 })
    }

    /// How many operations were pushed and have not come back.
    pub(super) const fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether the kernel works on `tag`.
    pub(super) fn is_busy(&self, tag: u16) -> bool {
        self.lots.get(usize::from(tag)).is_some_and(|lot| lot.is_busy)
    }

    /// The scatter of `tag`, for its next operation.
    ///
    /// # Panics
    /// When the kernel is using it, or there is no such tag.
    pub(super) fn scatter(&mut self, tag: u16) -> &mut Scatter {
        let lot = &mut self.lots[usize::from(tag)];
        assert!(!lot.is_busy, "operation {tag} is in flight");
        &mut lot.scatter
    }

    /// Queues `step` with the scatter of `tag`, for [`enter`](Self::enter).
    ///
    /// # Errors
    /// When the step makes no sense for the ring.
    ///
    /// # Panics
    /// As for [`scatter`](Self::scatter).
    pub(super) fn push(&mut self, tag: u16, step: Step) -> io::Result<()> {
        let entry = entry(self.scatter(tag), step)?.user_data(u64::from(tag));
        // SAFETY: the entry points to vectors of the scatter, and through them to memory that it
        // owns a share of. Both stay as they are until the operation is over: the lot is busy until
        // `next` has its completion, and if the ring is dropped before that, both are leaked. The
        // file is the ring's own.
        let pushed = unsafe { self.uring.submission().push(&entry) };
        // There is an entry for each tag.
        pushed.map_err(|_| Errno::NOSPC)?;
        self.lots[usize::from(tag)].is_busy = true;
        self.in_flight += 1;
        Ok(())
    }

    /// Hands what was queued to the kernel: one system call, unless it lacks something.
    ///
    /// # Errors
    /// When the kernel does not take it all. The ring is of no use any more.
    pub(super) fn enter(&mut self) -> io::Result<()> {
        let mut last = None;
        for _ in 0..ENTRIES_MAX {
            if self.uring.submission().is_empty() {
                return Ok(());
            }
            match self.uring.submit() {
                Ok(_) => last = None,
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::INTR | Errno::AGAIN | Errno::BUSY) => last = Some(error),
                    _ => return Err(error),
                },
            }
        }
        if self.uring.submission().is_empty() {
            return Ok(());
        }
        Err(last.unwrap_or_else(|| Errno::AGAIN.into()))
    }

    /// Asks the kernel to end what is in flight. What ended, and how, the completions tell: transfers
    /// that the device is at cannot be ended.
    pub(super) fn cancel(&mut self) {
        let tags = (0_u64..).zip(self.lots.iter()).filter(|(_, lot)| lot.is_busy);
        for tag in tags.map(|(tag, _)| tag) {
            // The restrictions ask for the flag, which means nothing here.
            let entry = opcode::AsyncCancel::new(tag).build().user_data(CANCEL);
            let entry = entry.flags(squeue::Flags::FIXED_FILE);
            // SAFETY: the entry points to nothing.
            if unsafe { self.uring.submission().push(&entry) }.is_err() {
                break;
            }
        }
        // What it does not take now is there the next time.
        let _ = self.enter();
    }

    /// The next operation that is over, with the kernel's result.
    pub(super) fn next(&mut self) -> Option<(u16, io::Result<u32>)> {
        let completion = self.uring.completion().find(|entry| entry.user_data() != CANCEL)?;
        let tag = u16::try_from(completion.user_data()).unwrap_or(u16::MAX);
        let lot = &mut self.lots[usize::from(tag)];
        assert!(lot.is_busy, "operation {tag} was not in flight");
        lot.is_busy = false;
        self.in_flight -= 1;
        let result = completion.result();
        let error = || io::Error::from_raw_os_error(result.saturating_neg());
        Some((tag, u32::try_from(result).map_err(|_| error())))
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the ring is, which is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.uring.as_raw_fd()) }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.in_flight > 0 {
            let count = self.in_flight;
            tracing::error!(count, "disk operations hang in the host: their memory stays mapped");
            return;
        }
        // The kernel takes rings apart at its leisure. What must not wait for that is the file,
        // whose lock others may be after.
        let _ = self.uring.submitter().unregister_files();
        // SAFETY: neither is used after this; the kernel uses no scatter, since none is in flight.
        unsafe {
            ManuallyDrop::drop(&mut self.uring);
            ManuallyDrop::drop(&mut self.lots);
        }
    }
}

/// All that a ring may do.
fn restrictions() -> [Restriction; 10] {
    /// What `Drop` asks for (`<linux/io_uring.h>`).
    const UNREGISTER_FILES: u8 = 3;
    let fixed_file = squeue::Flags::FIXED_FILE.bits();
    [
        Restriction::sqe_op(opcode::Read::CODE),
        Restriction::sqe_op(opcode::Readv::CODE),
        Restriction::sqe_op(opcode::Write::CODE),
        Restriction::sqe_op(opcode::Writev::CODE),
        Restriction::sqe_op(opcode::Fsync::CODE),
        Restriction::sqe_op(opcode::Fallocate::CODE),
        Restriction::sqe_op(opcode::AsyncCancel::CODE),
        Restriction::sqe_flags_required(fixed_file),
        Restriction::sqe_flags_allowed(fixed_file),
        Restriction::register_op(UNREGISTER_FILES),
    ]
}

/// The ring's form of `step`.
fn entry(scatter: &mut Scatter, step: Step) -> io::Result<squeue::Entry> {
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let zero = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
    let allocate =
        |offset, size, mode| opcode::Fallocate::new(FILE, size).offset(offset).mode(mode);
    Ok(match step {
        Step::Read { offset } => {
            let (vectors, count) = scatter.for_reading()?;
            vectored(scatter, |base, size| {
                opcode::Read::new(FILE, base, size).offset(offset).build()
            })
            .unwrap_or_else(|| {
                opcode::Readv::new(FILE, vectors, count.unsigned_abs()).offset(offset).build()
            })
        }
        Step::Zeroes { offset, size } => {
            scatter.fill_zeroes(size);
            write_entry(scatter, offset)
        }
        Step::Write { offset } => write_entry(scatter, offset),
        Step::Sync => opcode::Fsync::new(FILE).flags(types::FsyncFlags::DATASYNC).build(),
        Step::PunchHole { offset, size } => allocate(offset, size, punch).build(),
        Step::ZeroRange { offset, size } => allocate(offset, size, zero).build(),
        Step::Trim { .. } => return Err(Errno::OPNOTSUPP.into()),
    })
}

fn write_entry(scatter: &Scatter, offset: u64) -> squeue::Entry {
    let (vectors, count) = scatter.vectors_for_kernel();
    vectored(scatter, |base, size| opcode::Write::new(FILE, base, size).offset(offset).build())
        .unwrap_or_else(|| {
            opcode::Writev::new(FILE, vectors, count.unsigned_abs()).offset(offset).build()
        })
}

/// The plain form of an operation, if there is but one vector: the kernel then copies no list.
fn vectored(
    scatter: &Scatter,
    plain: impl FnOnce(*mut u8, u32) -> squeue::Entry,
) -> Option<squeue::Entry> {
    let [vector] = scatter.rest() else { return None };
    Some(plain(vector.iov_base.cast(), u32::try_from(vector.iov_len).ok()?))
}

fn file_offset(offset: u64) -> io::Result<i64> {
    Ok(i64::try_from(offset).map_err(|_| Errno::INVAL)?)
}

fn counted(result: isize) -> io::Result<u32> {
    let error = |_| io::Error::last_os_error();
    // The kernel moves less than 2 GiB at a time.
    u32::try_from(result).map_err(error)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::memory::{Bytes, GuestAddress};
    use crate::testing;

    /// A pipe that nobody writes to is a host that hangs.
    #[test]
    fn memory_outlives_a_ring_that_the_kernel_still_works_for() {
        let (reader, mut writer) = io::pipe().unwrap();
        let reader = File::from(std::os::fd::OwnedFd::from(reader));
        let memory = testing::memory(1 << 20);
        let Ok(mut ring) = Ring::new(&reader, &memory, 4) else {
            println!("skipped: no io_uring here");
            return;
        };
        let segment = Segment { address: GuestAddress(4096), size: 8 };
        ring.scatter(2).fill(&[segment]).unwrap();
        ring.push(2, Step::Read { offset: 0 }).unwrap();
        ring.enter().unwrap();
        assert!(ring.next().is_none());
        drop(ring);
        assert!(Arc::strong_count(&memory) > 1, "the ring has let go of the memory");
        writer.write_all(b"too late").unwrap();
        for _ in 0..400 {
            let mut bytes = [0; 8];
            memory.read_slice(&mut bytes, segment.address).unwrap();
            if &bytes == b"too late" {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the operation did not end");
    }

    /// Whoever takes the thread over cannot make the ring do anything else.
    #[test]
    fn a_ring_does_nothing_but_what_it_is_for() {
        let file = tempfile::tempfile().unwrap();
        let Ok(mut ring) = Ring::new(&file, &testing::memory(1 << 20), 4) else {
            println!("skipped: no io_uring here");
            return;
        };
        let other = types::Fd(file.as_raw_fd());
        let attempts = [
            opcode::Nop::new().build(),
            opcode::Fsync::new(other).build(),
            opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), c"/".as_ptr()).build(),
            opcode::Socket::new(libc::AF_UNIX, libc::SOCK_STREAM, 0).build(),
            opcode::Fsync::new(FILE)
                .build()
                .flags(squeue::Flags::FIXED_FILE | squeue::Flags::ASYNC),
        ];
        for attempt in attempts {
            // SAFETY: the only pointer among them leads to a static.
            unsafe { ring.uring.submission().push(&attempt) }.unwrap();
            let _ = ring.uring.submit();
            let completion = ring.uring.completion().next().unwrap();
            assert_eq!(completion.result(), -libc::EACCES, "{attempt:?}");
        }
        let more = ring.uring.submitter().register_files_update(0, &[file.as_raw_fd()]);
        assert_eq!(Errno::from_io_error(&more.unwrap_err()), Some(Errno::ACCESS));
        ring.push(0, Step::Sync).unwrap();
        ring.enter().unwrap();
        while ring.in_flight() > 0 {
            if let Some((_, result)) = ring.next() {
                assert_eq!(result.unwrap(), 0);
            }
        }
    }

    #[test]
    fn what_is_cancelled_ends_and_touches_nothing_afterwards() {
        let (reader, mut writer) = io::pipe().unwrap();
        let reader = File::from(std::os::fd::OwnedFd::from(reader));
        let memory = testing::memory(1 << 20);
        let Ok(mut ring) = Ring::new(&reader, &memory, 4) else {
            println!("skipped: no io_uring here");
            return;
        };
        for tag in 0..4 {
            let segment = Segment { address: GuestAddress(4096 * u64::from(tag)), size: 8 };
            ring.scatter(tag).fill(&[segment]).unwrap();
            ring.push(tag, Step::Read { offset: 0 }).unwrap();
        }
        ring.enter().unwrap();
        assert_eq!((ring.next().is_none(), ring.in_flight()), (true, 4));
        for _ in 0..400 {
            ring.cancel();
            while let Some((_, result)) = ring.next() {
                let error = result.expect_err("there was nothing to read");
                assert!(
                    [Some(Errno::CANCELED), Some(Errno::INTR)]
                        .contains(&Errno::from_io_error(&error)),
                    "{error}"
                );
            }
            if ring.in_flight() == 0 {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(ring.in_flight(), 0);
        writer.write_all(b"too late").unwrap();
        std::thread::sleep(Duration::from_millis(20));
        let mut bytes = [0; 8];
        memory.read_slice(&mut bytes, GuestAddress(4096)).unwrap();
        assert_eq!(bytes, [0; 8]);
    }

    #[test]
    #[should_panic(expected = "operation 0 is in flight")]
    fn buffers_in_use_are_not_changed() {
        let (reader, _writer) = io::pipe().unwrap();
        let reader = File::from(std::os::fd::OwnedFd::from(reader));
        let memory = testing::memory(1 << 20);
        let ring = Ring::new(&reader, &memory, 4);
        let mut ring = ring.unwrap_or_else(|_| panic!("operation 0 is in flight: not tested"));
        ring.scatter(0).fill(&[Segment { address: GuestAddress(0), size: 8 }]).unwrap();
        ring.push(0, Step::Read { offset: 0 }).unwrap();
        ring.scatter(0);
    }

    #[test]
    fn neighbours_become_one_piece_and_what_is_done_is_dropped() {
        let mut scatter = Scatter::new(testing::memory(1 << 20));
        let segment = |address, size| Segment { address: GuestAddress(address), size };
        scatter.fill(&[segment(0, 10), segment(10, 20), segment(100, 5), segment(50, 5)]).unwrap();
        let sizes = |scatter: &Scatter| -> Vec<usize> {
            scatter.rest().iter().map(|vector| vector.iov_len).collect()
        };
        assert_eq!(sizes(&scatter), [30, 5, 5]);
        assert!(
            scatter.is_aligned(2, 5) && !scatter.is_aligned(4, 5) && !scatter.is_aligned(2, 10)
        );
        for (skipped, left) in [(0, vec![30, 5, 5]), (29, vec![1, 5, 5]), (1, vec![5, 5])] {
            scatter.skip(skipped);
            assert_eq!(sizes(&scatter), left);
        }
        scatter.skip(7);
        assert_eq!(sizes(&scatter), [3]);
        scatter.skip(u32::MAX);
        assert!(sizes(&scatter).is_empty());
    }

    #[test]
    fn zeroes_are_never_read_into() {
        let mut scatter = Scatter::new(testing::memory(1 << 20));
        scatter.fill_zeroes(usize::MAX);
        assert_eq!(scatter.rest().iter().map(|vector| vector.iov_len).sum::<usize>(), ZEROES_MAX);
        let file = tempfile::tempfile().unwrap();
        assert!(scatter.read(&file, 0, false).is_err());
        assert!(entry(&mut scatter, Step::Read { offset: 0 }).is_err());
    }
}
