//! One client: what it may ask, what it waits for, what it has not taken yet.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use flist_view::cache_client::socket;
use flist_view::cache_client::wire::{
    FOLLOWING_COUNT_MAX, Failure, FailureKind, IN_FLIGHT_MAX, Located, Reply,
};
use rustix::event::epoll::EventFlags;

use super::image::BoundImage;
use crate::cache::Handout;

/// Messages that may wait for a slow client. Requests stop being read long before; what remains are
/// notices of retired segments, and a client that lets so many of them pile up is dead.
const OUTBOX_COUNT_MAX: usize = IN_FLIGHT_MAX + 1024;

/// Where a connection is in its life.
pub(super) enum Stage {
    /// No image yet.
    New,
    /// Its image is being read.
    Binding,
    /// It may ask for blocks of this image.
    Bound(Arc<BoundImage>),
}

/// One client.
pub(super) struct Connection {
    pub(super) socket: OwnedFd,
    pub(super) stage: Stage,
    pub(super) since: Instant,
    /// Unanswered requests, and when they are given up.
    pub(super) pending: HashMap<u64, Instant>,
    /// What the socket is polled for at present.
    pub(super) interest: EventFlags,
    /// Segments of which the client has a descriptor.
    held: HashSet<u64>,
    outbox: VecDeque<Outgoing>,
    /// To be closed once the outbox is empty.
    ending: bool,
}

struct Outgoing {
    message: Vec<u8>,
    descriptor: Option<Arc<File>>,
}

impl Connection {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            stage: Stage::New,
            since: Instant::now(),
            pending: HashMap::new(),
            interest: EventFlags::IN,
            held: HashSet::new(),
            outbox: VecDeque::new(),
            ending: false,
        }
    }

    /// What the socket should be polled for.
    pub(super) fn wanted(&self) -> EventFlags {
        let mut wanted = EventFlags::empty();
        wanted.set(EventFlags::IN, self.reads());
        wanted.set(EventFlags::OUT, !self.outbox.is_empty());
        wanted
    }

    /// Whether requests are taken: not from a client that does not take its replies, nor from one
    /// that waits for many.
    pub(super) fn reads(&self) -> bool {
        self.outbox.is_empty()
            && self.pending.len() < IN_FLIGHT_MAX
            && !self.ending
            && !matches!(self.stage, Stage::Binding)
    }

    pub(super) fn is_over(&self) -> bool {
        self.ending && self.outbox.is_empty()
    }

    /// Closes the connection after what was already sent.
    pub(super) fn end(&mut self) {
        self.ending = true;
    }

    /// Answers with a block's place, and with the segment's descriptor if the client has none.
    /// `following` are the blocks behind it, of which it is told as far as their segments are known to
    /// it, too. `retired` says that the segment has left the cache meanwhile.
    pub(super) fn hand_out(
        &mut self,
        tag: u64,
        handout: &Handout,
        following: impl Iterator<Item = Handout>,
        retired: bool,
    ) -> io::Result<()> {
        let segment = handout.segment.0;
        let new = self.held.insert(segment);
        let descriptor = new.then(|| Arc::clone(&handout.data.file));
        let following = following.take(FOLLOWING_COUNT_MAX);
        let following = following.take_while(|handout| self.held.contains(&handout.segment.0));
        let following = following.map(|handout| located(&handout)).collect();
        let reply = Reply::Block { tag, result: Ok(located(handout)), following };
        self.send(&reply, descriptor)?;
        if retired { self.retire(segment) } else { Ok(()) }
    }

    /// Answers that a block can't be had.
    pub(super) fn fail(&mut self, tag: u64, kind: FailureKind, text: String) -> io::Result<()> {
        let (result, following) = (Err(Failure { kind, text }), Vec::new());
        self.send(&Reply::Block { tag, result, following }, None)
    }

    /// Tells the client that a segment is gone, if it has it.
    pub(super) fn retire(&mut self, segment: u64) -> io::Result<()> {
        if !self.held.remove(&segment) {
            return Ok(());
        }
        self.send(&Reply::Retired { segment }, None)
    }

    /// The client closed its descriptor.
    pub(super) fn forget(&mut self, segment: u64) {
        self.held.remove(&segment);
    }

    /// Sends a message, or keeps it until the client takes more.
    pub(super) fn send(&mut self, reply: &Reply, descriptor: Option<Arc<File>>) -> io::Result<()> {
        if self.outbox.len() >= OUTBOX_COUNT_MAX {
            return Err(io::Error::other("the client takes no messages"));
        }
        self.outbox.push_back(Outgoing { message: reply.encode(), descriptor });
        self.flush()
    }

    /// Sends what is kept, as far as the client takes it.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while let Some(next) = self.outbox.front() {
            let descriptor = next.descriptor.as_deref().map(AsFd::as_fd);
            if !socket::send(self.socket.as_fd(), &next.message, descriptor)? {
                return Ok(());
            }
            self.outbox.pop_front();
        }
        Ok(())
    }
}

const fn located(handout: &Handout) -> Located {
    let Handout { segment, data } = handout;
    Located { segment: segment.0, offset: data.offset, size: data.size }
}
