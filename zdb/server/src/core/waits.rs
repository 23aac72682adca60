//! Who waits for a command (`WAIT`), and until when.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use zdb_resp::write;

use super::{ClientId, Core, NamespaceId, Watcher};

/// Deadlines of waiting clients; what they wait for stands in their namespace's entry.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    by_client: HashMap<ClientId, (Duration, NamespaceId)>,
    by_time: BTreeSet<(Duration, ClientId)>,
}

impl Waits {
    /// Ends a wait; the namespace it was in.
    pub(crate) fn remove(&mut self, client: ClientId) -> Option<NamespaceId> {
        let (deadline, namespace) = self.by_client.remove(&client)?;
        self.by_time.remove(&(deadline, client));
        Some(namespace)
    }

    fn insert(&mut self, client: ClientId, deadline: Duration, namespace: NamespaceId) {
        self.by_client.insert(client, (deadline, namespace));
        self.by_time.insert((deadline, client));
    }

    /// When the next wait ends.
    pub(crate) fn next(&self) -> Option<Duration> {
        self.by_time.first().map(|(deadline, _)| *deadline)
    }
}

impl Core {
    /// Makes a client wait; an earlier wait of it is forgotten.
    pub(crate) fn wait(&mut self, id: NamespaceId, watcher: Watcher, timeout: Duration) {
        self.stop_waiting(watcher.client);
        if let Some(entry) = self.namespaces.get_mut(id) {
            entry.watchers.push(watcher);
            self.waits.insert(watcher.client, self.clock.now + timeout, id);
        }
    }

    /// Ends a client's wait without a word.
    pub(crate) fn stop_waiting(&mut self, client: ClientId) {
        if let Some(id) = self.waits.remove(client)
            && let Some(entry) = self.namespaces.get_mut(id)
        {
            entry.watchers.retain(|watcher| watcher.client != client);
        }
    }

    /// Tells those whose time is up.
    pub(crate) fn end_waits(&mut self) {
        while let Some((deadline, client)) = self.waits.by_time.first().copied() {
            if deadline > self.clock.now {
                return;
            }
            self.stop_waiting(client);
            let mut reply = Vec::new();
            write::error(&mut reply, b"Timeout");
            self.messages.push((client, reply));
        }
    }
}
