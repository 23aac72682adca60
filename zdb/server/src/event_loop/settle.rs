//! The end of a batch: what other threads did is taken, what is durable is let go.

use super::Server;

impl Server {
    /// Ends the batch: takes what other threads did, writes, plans syncs and tasks, and sends what may be
    /// sent.
    pub(super) fn settle(&mut self) {
        self.take_done();
        self.core.commit();
        for sync in self.core.take_syncs() {
            let workers = if sync.is_urgent() { &self.syncs } else { &self.upkeep };
            workers.push(sync);
        }
        for task in self.core.take_tasks() {
            self.tasks.push(task);
        }
        self.release();
        self.deliver();
        // Who has more to send than a turn's worth gets another turn in the next round.
        let mut sending = std::mem::take(&mut self.sending);
        std::mem::swap(&mut sending, &mut self.unsent);
        for id in sending.drain(..) {
            self.send(id);
            self.clients.count_memory(id);
        }
        self.sending = sending;
        if let Some(metrics) = &self.metrics {
            metrics.answer(&self.core);
        }
    }

    /// Takes what other threads did: syncs, and namespaces that are back with answers for those who asked.
    pub(super) fn take_done(&mut self) {
        for synced in self.syncs.take_done().chain(self.upkeep.take_done()) {
            self.core.synced(synced);
        }
        for done in self.tasks.take_done() {
            self.core.finish_task(done);
        }
        for (id, reply) in self.core.take_answers() {
            if let Some(client) = self.clients.get_mut(id) {
                client.connection.answer(&reply);
                Self::queue_unsent(&mut self.unsent, id, client);
                Self::queue_ready(&mut self.ready, id, client);
            }
        }
        for id in self.core.take_woken() {
            if let Some(client) = self.clients.get_mut(id) {
                client.connection.wake();
                Self::queue_ready(&mut self.ready, id, client);
            }
        }
    }

    /// Lets go of replies whose writes are durable, or failed.
    pub(super) fn release(&mut self) {
        let failures = self.core.take_failures();
        let mut index = 0;
        while let Some(id) = self.waiting.get(index).copied() {
            let Some(client) = self.clients.get_mut(id) else {
                self.waiting.swap_remove(index);
                continue;
            };
            let output = client.connection.output_mut();
            for failure in &failures {
                output.fail(failure.namespace, failure.from);
            }
            let before = output.held_count();
            output.release(|namespace| self.core.acknowledged(namespace));
            let left = output.held_count();
            if left < before || !failures.is_empty() {
                Self::queue_unsent(&mut self.unsent, id, client);
            }
            if left == 0 {
                client.is_waiting = false;
                self.waiting.swap_remove(index);
            } else {
                index += 1;
            }
        }
    }

    /// Tells clients what is no reply: ends of waits, and writes to followers.
    fn deliver(&mut self) {
        for (id, message) in self.core.take_messages() {
            if let Some(client) = self.clients.get_mut(id) {
                client.connection.tell(&message);
                Self::queue_unsent(&mut self.unsent, id, client);
            }
        }
        self.must_feed = false;
        if !self.core.has_followers() {
            return;
        }
        for id in self.core.lagging_followers() {
            if let Some(client) = self.clients.get_mut(id) {
                client.connection.feed(&mut self.core);
                Self::queue_unsent(&mut self.unsent, id, client);
            }
        }
    }
}
