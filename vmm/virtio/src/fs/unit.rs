//! What serves the queues: a chain is a FUSE request and room for its reply.
//!
//! ```text
//!   readable: header, arguments, (contents of a WRITE)     writable: reply header, body
//!             └── copied once ──┘ └─ stay where they are ─┘
//! ```
//!
//! The high-priority queue carries `FORGET` (virtio 1.3 §5.11.6.2), which nobody waits for but which
//! frees what the host keeps for the guest, so it is emptied before each round of requests.
//!
//! Replies of one round are announced together, with one exception: before a `READ`, which may have to
//! wait for a disk or for the network, those that are ready are announced.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use flist_view::cache_client::CacheClient;
use flist_view::fuse::{
    self, Outcome, REPLY_HEADER_SIZE, REQUEST_SIZE_MAX, Server, WRITABLE_REQUEST_SIZE_MAX,
    WRITE_HEAD_SIZE,
};

use super::buffers::{GuestContents, GuestReply};
use super::{Counters, GuestFileSystem};
use crate::memory::Memory;
use crate::{Chain, Interest, Queue, Source, Unit, UnitError};

/// Requests that one call serves before other devices of the thread get their turn.
const REQUEST_COUNT_MAX: u32 = 1024;
/// A FUSE request without arguments.
const REQUEST_HEADER_SIZE: u32 = 40;
/// The one source: the socket to the block cache.
const CACHE_TOKEN: u32 = 0;

/// Serves request queues of one file system, and the first unit its high-priority queue.
pub(super) struct FsUnit {
    server: Arc<Server<dyn GuestFileSystem>>,
    /// The high-priority queue, if this unit has it, comes first.
    queues: Vec<Queue>,
    scratch: Scratch,
    counters: Counters,
    cache: Option<Cache>,
}

/// What lives from one request to the next, so that a busy queue allocates nothing.
#[derive(Default)]
struct Scratch {
    chain: Chain,
    request: Vec<u8>,
}

/// The client of the block cache, listened to while there is nothing else to do.
struct Cache {
    client: Arc<CacheClient>,
    socket: Option<Arc<OwnedFd>>,
}

impl FsUnit {
    pub(super) fn new(
        server: Arc<Server<dyn GuestFileSystem>>,
        queues: Vec<Queue>,
        counters: Counters,
        cache: Option<Arc<CacheClient>>,
    ) -> Self {
        let cache = cache.map(|client| Cache { socket: client.socket(), client });
        Self { server, queues, scratch: Scratch::default(), counters, cache }
    }

    /// Serves the queue at `position` until it is empty or `budget` is used up. Returns what is
    /// left of it.
    fn serve(&mut self, position: usize, budget: u32) -> Result<u32, UnitError> {
        let Self { server, queues, scratch, counters, .. } = self;
        let Some(queue) = queues.get_mut(position) else { return Ok(budget) };
        let memory = Arc::clone(queue.memory());
        let mut left = budget;
        loop {
            queue.disarm()?;
            let mut waiting_count = 0;
            while left > 0 && queue.pop(&mut scratch.chain)? {
                left -= 1;
                if scratch.receive(&memory)? && waiting_count > 0 {
                    queue.notify()?;
                    waiting_count = 0;
                }
                let written = scratch.answer(&memory, server, counters)?;
                queue.push(scratch.chain.head(), written)?;
                waiting_count += 1;
            }
            if waiting_count > 0 {
                queue.notify()?;
            }
            if left == 0 {
                // The rest as if it had just come. A full counter is as good a kick as any.
                let _ = queue.kick().write(1);
                return Ok(0);
            }
            if !queue.rearm()? {
                return Ok(left);
            }
        }
    }
}

impl Scratch {
    /// Copies in the head of the request; true if it is a `READ`.
    fn receive(&mut self, memory: &Memory) -> Result<bool, UnitError> {
        let size = self.chain.readable_size();
        if size < REQUEST_HEADER_SIZE {
            return Err(UnitError::Guest(format!(
                "a FUSE request of {size} bytes, of {REQUEST_HEADER_SIZE} at least"
            )));
        }
        self.request.clear();
        self.copy_up_to(memory, WRITE_HEAD_SIZE)?;
        Ok(fuse::is_read(&self.request))
    }

    /// Copies in the request until `end` bytes of it, or all, are here.
    fn copy_up_to(&mut self, memory: &Memory, end: usize) -> Result<(), UnitError> {
        let start = self.request.len();
        let size = usize::try_from(self.chain.readable_size()).unwrap_or(usize::MAX);
        self.request.resize(size.min(end).max(start), 0);
        let skip = u32::try_from(start).unwrap_or(u32::MAX);
        let into = &mut self.request[start..];
        let copied = self.chain.readable(memory).read(skip, into, "a FUSE request");
        copied.map_err(|error| UnitError::Guest(error.to_string()))
    }

    /// Has the request answered; returns how much of the chain was written.
    fn answer(
        &mut self,
        memory: &Memory,
        server: &Server<dyn GuestFileSystem>,
        counters: &Counters,
    ) -> Result<u32, UnitError> {
        let (mut skip, mut size) = (0, 0);
        if fuse::is_write(&self.request) && self.request.len() == WRITE_HEAD_SIZE {
            skip = u32::try_from(WRITE_HEAD_SIZE).unwrap_or(u32::MAX);
            size = self.chain.readable_size() - skip;
        } else {
            let is_writable = server.is_writable();
            let end = if is_writable { WRITABLE_REQUEST_SIZE_MAX } else { REQUEST_SIZE_MAX };
            self.copy_up_to(memory, end)?;
        }
        let mut contents = GuestContents::new(self.chain.readable(memory), skip, size);
        let capacity = self.chain.writable_size();
        let mut reply = GuestReply::new(self.chain.writable(memory), capacity);
        counters.requests.increment();
        let host = |source| UnitError::Host { what: "a reply into guest memory".into(), source };
        let wants_reply = !fuse::is_forget(&self.request);
        if wants_reply && usize::try_from(capacity).is_ok_and(|size| size < REPLY_HEADER_SIZE) {
            return Err(UnitError::Guest(format!(
                "{capacity} bytes for a FUSE reply, of {REPLY_HEADER_SIZE} at least"
            )));
        }
        match server.handle_with(&self.request, &mut contents, &mut reply).map_err(host)? {
            Outcome::Replied if fuse::is_read(&self.request) => {
                counters.read_bytes.add(u64::from(reply.written()));
            }
            Outcome::Replied => counters.written_bytes.add(u64::from(size)),
            Outcome::Silent | Outcome::Destroyed | Outcome::Malformed => {}
        }
        Ok(reply.written())
    }
}

impl Unit for FsUnit {
    fn sources(&self) -> Vec<Source> {
        let socket = self.cache.as_ref().and_then(|cache| cache.socket.as_ref());
        let source = socket.map(|socket| Source {
            descriptor: socket.as_raw_fd(),
            token: CACHE_TOKEN,
            interest: Interest::Read,
        });
        source.into_iter().collect()
    }

    fn queues(&self) -> Vec<&Queue> {
        self.queues.iter().collect()
    }

    fn kicked(&mut self, index: u16) -> Result<(), UnitError> {
        let position = self.queues.iter().position(|queue| queue.index() == index);
        let Some(position) = position else { return Ok(()) };
        let mut budget = REQUEST_COUNT_MAX;
        if position > 0 {
            budget = self.serve(0, budget)?.max(1);
        }
        self.serve(position, budget)?;
        if let Some(cache) = &mut self.cache {
            // It may have connected anew.
            cache.socket = cache.client.socket();
        }
        Ok(())
    }

    fn ready(&mut self, token: u32) -> Result<(), UnitError> {
        if let Some(cache) = self.cache.as_mut().filter(|_| token == CACHE_TOKEN) {
            cache.client.drain();
            cache.socket = cache.client.socket();
        }
        Ok(())
    }

    fn stop(self: Box<Self>) -> Vec<Queue> {
        self.queues
    }
}
