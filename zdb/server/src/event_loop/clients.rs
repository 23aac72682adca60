//! The table of clients, and the lists of those with something to do.

use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::{self, RecvFlags, Shutdown};

use super::memory::SWEEP_INTERVAL;
use super::poll::Poll;
use super::{RECEIVE_SIZE, Socket, is_transient};

use crate::connection::Connection;
use crate::core::{ClientId, Core};

/// Bytes that are thrown away after the end of a conversation.
const DRAIN_SIZE_MAX: usize = 64 * 1024 * 1024;
/// How long that may take.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(2);
/// Buffers that the kernel fills in one turn of draining.
const DRAIN_COUNT: usize = 16;

/// A client with its socket.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) socket: Socket,
    pub(super) connection: Connection,
    /// Whether receiving may give something.
    pub(super) is_readable: bool,
    /// Whether sending may take something.
    pub(super) is_writable: bool,
    /// Whether the other side sends nothing more.
    pub(super) has_ended: bool,
    /// Whether the system waits for more before it sends the rest of a segment.
    pub(super) is_corked: bool,
    /// In which lists of the loop it stands.
    pub(super) is_ready: bool,
    pub(super) is_unsent: bool,
    pub(super) is_waiting: bool,
    pub(super) is_resident: bool,
    /// Bytes of its buffers, as they were counted.
    pub(super) memory_size: usize,
    pub(super) active_at: Duration,
    /// After the end: how many bytes may still be thrown away, and until when.
    pub(super) draining: Option<(usize, Duration)>,
}

/// All clients.
#[derive(Debug, Default)]
pub(super) struct Clients {
    places: Vec<(u32, Option<Box<Client>>)>,
    free: Vec<u32>,
    count_max: u64,
    /// Those whose buffers hold memory.
    pub(super) resident: Vec<ClientId>,
    /// Those whose conversation has ended.
    pub(super) draining: Vec<ClientId>,
    /// Bytes of all buffers.
    pub(super) memory_size: usize,
}

impl Client {
    /// Receives once and serves it. An error is the end of the connection.
    pub(super) fn receive(
        &mut self,
        core: &mut Core,
        shared: &mut Vec<u8>,
        begin: Instant,
    ) -> Result<Instant, Errno> {
        let unfinished = self.connection.unfinished();
        let is_shared = unfinished.is_none();
        let buffer = match unfinished {
            Some(buffer) => buffer,
            None => {
                shared.clear();
                &mut *shared
            }
        };
        let room = buffer.capacity() - buffer.len();
        let received = net::recv(&self.socket, spare_capacity(buffer), RecvFlags::DONTWAIT);
        let count = match received {
            Ok((count, _)) => count,
            Err(error) if is_transient(error) => {
                self.is_readable = error == Errno::INTR;
                return Ok(begin);
            }
            Err(error) => return Err(error),
        };
        if count == 0 {
            // It sends no more, but may wait for replies.
            self.is_readable = false;
            self.connection.finish();
            return Ok(begin);
        }
        // Less than asked for is all there was, unless the end is behind it.
        self.is_readable = count == room || self.has_ended;
        core.metrics.received_size += count as u64;
        Ok(if is_shared {
            self.connection.receive(core, shared, begin)
        } else {
            self.connection.resume(core, begin)
        })
    }

    /// Says that nothing more comes, and throws away what the other side still sends: closing at once
    /// could take the last reply from it (RFC 1122 §4.2.2.13).
    pub(super) fn begin_draining(&mut self, now: Duration) {
        self.draining = Some((DRAIN_SIZE_MAX, now + DRAIN_TIME_MAX));
        self.connection.shrink();
        // If it has gone, draining finds out.
        let _ = net::shutdown(&self.socket, Shutdown::Write);
    }

    /// Whether there may be more to throw away, later.
    pub(super) fn drain(&mut self, shared: &mut Vec<u8>) -> bool {
        for _ in 0..DRAIN_COUNT {
            let Some((left, _)) = &mut self.draining else { return false };
            shared.clear();
            match net::recv(&self.socket, spare_capacity(shared), RecvFlags::DONTWAIT) {
                Ok((0, _)) => return false,
                Ok((count, _)) if count > *left => return false,
                Ok((count, _)) => *left -= count,
                Err(error) => {
                    self.is_readable = false;
                    return is_transient(error);
                }
            }
        }
        true
    }
}

impl Clients {
    /// A table for so many.
    pub(super) fn new(count_max: u64) -> Self {
        Self { count_max, ..Self::default() }
    }

    /// Clients that are here.
    pub(super) fn count(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Adds one; gives the socket back if there is no room.
    pub(super) fn insert(
        &mut self,
        core: &mut Core,
        poll: &Poll,
        socket: Socket,
        is_local: bool,
    ) -> Result<(), Socket> {
        if self.count() as u64 >= self.count_max {
            return Err(socket);
        }
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push((0, None));
            u32::try_from(self.places.len() - 1).expect("descriptors are fewer")
        });
        let (generation, slot) = &mut self.places[place as usize];
        let id = ClientId { place, generation: *generation };
        if poll.add_client(&socket, id).is_err() {
            self.free.push(place);
            return Err(socket);
        }
        *slot = Some(Box::new(Client {
            socket,
            connection: Connection::new(core.session(id, is_local)),
            is_readable: false,
            is_writable: true,
            has_ended: false,
            is_corked: false,
            is_ready: false,
            is_unsent: false,
            is_waiting: false,
            is_resident: false,
            memory_size: 0,
            active_at: core.now(),
            draining: None,
        }));
        core.metrics.connected_count = self.count() as u64;
        Ok(())
    }

    /// `None` if it has gone.
    pub(super) fn get_mut(&mut self, id: ClientId) -> Option<&mut Client> {
        let (generation, client) = self.places.get_mut(id.place as usize)?;
        client.as_deref_mut().filter(|_| *generation == id.generation)
    }

    /// Takes one out; its socket closes when it is dropped.
    pub(super) fn remove(&mut self, id: ClientId) -> Option<Box<Client>> {
        self.get_mut(id)?;
        let (generation, slot) = self.places.get_mut(id.place as usize)?;
        let client = slot.take()?;
        // The last generation marks what is no client.
        *generation = generation.wrapping_add(1) % (u32::MAX - 1);
        self.free.push(id.place);
        self.memory_size -= client.memory_size.min(self.memory_size);
        Some(client)
    }

    /// Counts the memory of a client's buffers anew.
    pub(super) fn count_memory(&mut self, id: ClientId) {
        let Some(client) = self.get_mut(id) else { return };
        let after = client.connection.memory_size();
        let before = std::mem::replace(&mut client.memory_size, after);
        let is_new = after > 0 && !std::mem::replace(&mut client.is_resident, true);
        if is_new {
            self.resident.push(id);
        }
        self.memory_size = (self.memory_size + after).saturating_sub(before);
    }

    /// Gives back the buffers of those that have been quiet for a while.
    pub(super) fn shrink_idle(&mut self, now: Duration) {
        let mut index = 0;
        while let Some(id) = self.resident.get(index).copied() {
            let Some(client) = self.get_mut(id) else {
                self.resident.swap_remove(index);
                continue;
            };
            let is_quiet = client.active_at + SWEEP_INTERVAL <= now;
            if is_quiet && client.connection.is_idle() {
                client.connection.shrink();
                client.is_resident = false;
                let size = std::mem::take(&mut client.memory_size);
                self.memory_size -= size.min(self.memory_size);
                self.resident.swap_remove(index);
            } else {
                index += 1;
            }
        }
    }

    /// Those that were to hang up, and didn't in time.
    pub(super) fn take_overdue(&mut self, now: Duration) -> Vec<ClientId> {
        let mut overdue = Vec::new();
        let draining = std::mem::take(&mut self.draining);
        for id in draining {
            match self.get_mut(id).and_then(|client| client.draining) {
                Some((_, deadline)) if deadline > now => self.draining.push(id),
                Some(_) => overdue.push(id),
                None => {}
            }
        }
        overdue
    }
}

const _: () = assert!(RECEIVE_SIZE * DRAIN_COUNT <= DRAIN_SIZE_MAX);
