//! What a block device needs of its back end.
//!
//! A [`Storage`] is the disk, shared by all queues of a device. Each queue opens a [`Lane`] into
//! it, on which operations are started, each with a tag, and reported when they are done, in any
//! order. The pace is the queue's:
//!
//! ```text
//!   start, start, start ──► turn ──► done: those that are done already
//!                             ▲
//!   the lane's descriptor ────┘ becomes readable when more is done
//! ```
//!
//! Buffers are pieces of guest memory, not copies of it: [`Segment`]s, to be found in the memory
//! that the lane was opened with. A lane that reads or writes them after [`Lane::start`] has
//! returned holds that memory, and copies the list.
//!
//! A lane need not order anything. The device starts a flush only when all that was to be flushed
//! is done, and the driver knows that requests which it has in flight together may be served in
//! any order.

use std::io;
use std::os::fd::BorrowedFd;

use crate::Segment;
use crate::memory::SharedMemory;

/// A disk.
pub trait Storage: Send + Sync {
    /// Its size in bytes, as it is now.
    ///
    /// # Errors
    /// When the host cannot tell.
    fn size(&self) -> io::Result<u64>;

    /// What does not change while it is open.
    fn traits(&self) -> Traits;

    /// Makes what `lane_count` lanes of this depth will need, into this memory. Those that are opened
    /// later, at most as many at a time, need nothing of the host that a thread in a jail may not ask
    /// for.
    ///
    /// # Errors
    /// When the host lacks the means, and there is no other way.
    fn prepare(&self, memory: &SharedMemory, lane_count: u16, depth: u16) -> io::Result<()> {
        let _ = (memory, lane_count, depth);
        Ok(())
    }

    /// A way into it for one queue, for up to `depth` operations at a time. It becomes the
    /// queue's on whatever thread that is served.
    ///
    /// # Errors
    /// When the host lacks the means.
    fn open_lane(&self, memory: &SharedMemory, depth: u16) -> io::Result<Box<dyn Lane>>;
}

/// What a disk is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traits {
    /// Nobody may write it.
    pub is_read_only: bool,
    /// Offsets and sizes of all operations are multiples of this many bytes: a power of two from
    /// 512 up.
    pub block_size: u32,
    /// What it stores in one piece: a power of two from `block_size` up.
    pub physical_block_size: u32,
    /// Whether [`Operation::Discard`] is of use.
    pub has_discard: bool,
}

/// What can be done to a disk. Whoever starts one has checked offset and size against the size of
/// the disk, which may have shrunk since.
#[derive(Clone, Copy, Debug)]
pub enum Operation<'a> {
    /// Fill the buffers with what begins at `offset`.
    Read {
        /// In bytes.
        offset: u64,
        /// All of them are to be filled.
        into: &'a [Segment],
    },
    /// Write the buffers from `offset` on.
    Write {
        /// In bytes.
        offset: u64,
        /// All of them are to be written.
        from: &'a [Segment],
    },
    /// Make everything durable that was reported as done before.
    Flush,
    /// What the range holds is of no interest any more; reading it gives anything.
    Discard {
        /// In bytes.
        offset: u64,
        /// In bytes.
        size: u64,
    },
    /// The range reads as zeroes from now on.
    WriteZeroes {
        /// In bytes.
        offset: u64,
        /// In bytes.
        size: u64,
        /// It need not stay allocated.
        may_unmap: bool,
    },
}

/// An operation that is over.
#[derive(Debug)]
pub struct Done {
    /// The tag that it was started with.
    pub tag: u16,
    /// How it went. After an error, a buffer or a range may have been dealt with in part.
    pub result: io::Result<()>,
}

/// One queue's way into a disk.
pub trait Lane: Send {
    /// Starts `operation`. Its `tag` is less than the depth of the lane and is not in use. The
    /// lane may wait for [`turn`](Self::turn) to begin.
    fn start(&mut self, tag: u16, operation: Operation<'_>);

    /// Gets on with everything that was started, and adds to `done` what is over, each tag once.
    /// Does not wait for what takes the host long.
    ///
    /// # Errors
    /// When the lane is of no use any more. It is then cancelled, and dropped once it is not busy.
    fn turn(&mut self, done: &mut Vec<Done>) -> io::Result<()>;

    /// Gives up: begins nothing any more, and asks the host to end what it is at. All that was
    /// started is still reported by [`turn`](Self::turn), as an error if it was not over; what the
    /// host does not let go of, when it does.
    fn cancel(&mut self);

    /// Whether the host may still read or write buffers of what was started.
    fn is_busy(&self) -> bool;

    /// Readable when [`turn`](Self::turn) would report something, until it has been called. `None`
    /// if that always reports everything.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;
}
