//! Memory of clients' buffers: bounded for all of them together, and given back by those that are idle.

use std::time::Duration;

use super::{RECEIVE_SIZE, Server};
use crate::core::ClientId;
use crate::output::Spares;

/// Most bytes of all clients' buffers. Beyond it, the client that wants more is turned away.
const BUFFERS_SIZE_MAX: usize = 512 * 1024 * 1024;
/// A client with less is never turned away for want of memory, in bytes.
const BUFFER_SIZE_FREE: usize = 512 * 1024;
/// How often idle buffers are looked for, and how long a client is idle before.
pub(super) const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

impl Server {
    /// Counts a client's buffers, and ends the conversation if there is no room for them.
    pub(super) fn bound_memory(&mut self, id: ClientId) {
        self.clients.count_memory(id);
        if self.clients.memory_size <= BUFFERS_SIZE_MAX {
            return;
        }
        let Some(client) = self.clients.get_mut(id) else { return };
        if client.memory_size > BUFFER_SIZE_FREE && !client.connection.is_closing() {
            client.connection.refuse(&mut self.core, "Too many bytes in flight, try again later");
        }
    }

    /// Gives idle buffers back, once a second.
    pub(super) fn sweep(&mut self) {
        let now = self.core.now();
        if now < self.swept_at + SWEEP_INTERVAL {
            return;
        }
        self.swept_at = now;
        self.clients.shrink_idle(now);
        self.spares = Spares::default();
        for id in self.clients.take_overdue(now) {
            self.close(id);
        }
        self.core.metrics.buffer_size = self.clients.memory_size as u64;
        self.core.metrics.connected_count = self.clients.count() as u64;
        if self.shared.capacity() == 0 {
            self.shared.reserve_exact(RECEIVE_SIZE);
        }
    }
}
