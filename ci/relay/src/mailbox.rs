//! Mailboxes: where envelopes for a session wait, whether it is connected or not.
//!
//! A mailbox belongs to a twin's session, by name; the nameless one has the empty name. At most one
//! connection empties it: a newer one takes over from an older one, which then ends.
//!
//! Who puts something into the mailbox of a connection that is behind waits a little for it. That
//! slows a sender down to what the receiver can take. A receiver that takes nothing in that time is
//! *slow*: nobody waits for it any more until it has caught up, so it can't hold up others, and what
//! it does not take in time is lost to it.
//!
//! Strangers make mailboxes, by writing to sessions that do not exist: so many a twin, so many in all,
//! and so many bytes in all of them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hostd_rmb::twins::TwinId;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::State;
use crate::queue::Queue;

/// Mailboxes of one twin.
const PER_TWIN_COUNT_MAX: usize = 256;
/// Twins that have mailboxes.
const TWIN_COUNT_MAX: usize = 64 * 1024;
/// Bytes in all mailboxes.
const SIZE_MAX: usize = 1024 * 1024 * 1024;
/// A connection with so many envelopes waiting is behind.
const BEHIND_COUNT: usize = 1024;
/// Or with so many bytes.
const BEHIND_SIZE: usize = 8 * 1024 * 1024;
/// How long a sender waits for a connection that is behind.
const ROOM_TIME_MAX: Duration = Duration::from_secs(1);
/// Time between rounds through all mailboxes.
const HOUSEKEEPING_TIME: Duration = Duration::from_secs(60);

/// Why an envelope was not put into a mailbox.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub(crate) enum FullError {
    #[error("too many sessions of twin {0}")]
    Sessions(TwinId),
    #[error("the relay has no room for more twins")]
    Twins,
    #[error("the relay has no room for more messages")]
    Size,
}

/// What waits for one session.
pub(crate) struct Mailbox {
    queue: Mutex<Queue>,
    /// Bytes in all mailboxes of the relay.
    total_size: Arc<AtomicUsize>,
    /// Something was put in.
    filled: Notify,
    /// Something was taken out.
    emptied: Notify,
    /// Number of the connection that empties it, 0 if there is none.
    connection: watch::Sender<u64>,
    is_slow: AtomicBool,
}

/// All mailboxes of a relay.
#[derive(Default)]
pub(crate) struct Mailboxes {
    twins: RwLock<HashMap<TwinId, HashMap<String, Arc<Mailbox>>>>,
    /// Bytes in all of them.
    total_size: Arc<AtomicUsize>,
    connections: AtomicUsize,
    next_connection: std::sync::atomic::AtomicU64,
}

/// A connection's hold on its mailbox, given up when dropped.
pub(crate) struct Connection<'a> {
    mailboxes: &'a Mailboxes,
    mailbox: Arc<Mailbox>,
    number: u64,
}

impl Mailboxes {
    /// A new connection takes over a session's mailbox.
    pub(crate) fn connect(&self, twin: TwinId, session: &str) -> Result<Connection<'_>, FullError> {
        let mailbox = self.mailbox(twin, session)?;
        let number = 1 + self.next_connection.fetch_add(1, Ordering::Relaxed);
        mailbox.connection.send_replace(number);
        mailbox.is_slow.store(false, Ordering::Relaxed);
        self.connections.fetch_add(1, Ordering::Relaxed);
        Ok(Connection { mailboxes: self, mailbox, number })
    }

    /// Whether a session is connected.
    pub(crate) fn is_connected(&self, twin: TwinId, session: &str) -> bool {
        self.find(twin, session).is_some_and(|mailbox| mailbox.is_connected())
    }

    /// Puts an envelope into a session's mailbox; returns how many had to go for it. Waits for a
    /// connection that is behind.
    pub(crate) async fn put(
        &self,
        twin: TwinId,
        session: &str,
        bytes: &Bytes,
    ) -> Result<u64, FullError> {
        if self.total_size.load(Ordering::Relaxed).saturating_add(bytes.len()) > SIZE_MAX {
            return Err(FullError::Size);
        }
        let mailbox = self.mailbox(twin, session)?;
        mailbox.wait_for_room().await;
        Ok(mailbox.put(bytes))
    }

    pub(crate) fn session_count(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Envelopes that wait, and their bytes.
    pub(crate) fn waiting(&self) -> (usize, usize) {
        let twins = self.twins.read().unwrap_or_else(PoisonError::into_inner);
        let mailboxes = twins.values().flat_map(HashMap::values);
        let count = mailboxes.map(|mailbox| mailbox.queue().len()).sum();
        (count, self.total_size.load(Ordering::Relaxed))
    }

    fn find(&self, twin: TwinId, session: &str) -> Option<Arc<Mailbox>> {
        let twins = self.twins.read().unwrap_or_else(PoisonError::into_inner);
        twins.get(&twin)?.get(session).cloned()
    }

    fn mailbox(&self, twin: TwinId, session: &str) -> Result<Arc<Mailbox>, FullError> {
        if let Some(mailbox) = self.find(twin, session) {
            return Ok(mailbox);
        }
        let mut twins = self.twins.write().unwrap_or_else(PoisonError::into_inner);
        if twins.len() >= TWIN_COUNT_MAX && !twins.contains_key(&twin) {
            return Err(FullError::Twins);
        }
        let sessions = twins.entry(twin).or_default();
        let count = sessions.len();
        match sessions.entry(session.to_owned()) {
            Entry::Occupied(entry) => Ok(Arc::clone(entry.get())),
            Entry::Vacant(_) if count >= PER_TWIN_COUNT_MAX => Err(FullError::Sessions(twin)),
            Entry::Vacant(entry) => {
                let mailbox = Arc::new(Mailbox::new(Arc::clone(&self.total_size)));
                Ok(Arc::clone(entry.insert(mailbox)))
            }
        }
    }

    /// Drops old envelopes and unused mailboxes; returns how many envelopes were dropped.
    fn clean(&self, now: Instant) -> u64 {
        let mut gone = 0;
        let mut twins = self.twins.write().unwrap_or_else(PoisonError::into_inner);
        twins.retain(|_, sessions| {
            sessions.retain(|_, mailbox| {
                gone += mailbox.change(|queue| queue.expire(now));
                // Whoever is about to put something in holds on to the mailbox.
                mailbox.queue().len() > 0 || Arc::strong_count(mailbox) > 1
            });
            !sessions.is_empty()
        });
        gone
    }
}

impl Mailbox {
    fn new(total_size: Arc<AtomicUsize>) -> Self {
        Self {
            queue: Mutex::default(),
            total_size,
            filled: Notify::new(),
            emptied: Notify::new(),
            connection: watch::Sender::new(0),
            is_slow: AtomicBool::new(false),
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the queue, and what is known about the size of all.
    fn change<T>(&self, change: impl FnOnce(&mut Queue) -> T) -> T {
        let mut queue = self.queue();
        let before = queue.size();
        let result = change(&mut queue);
        let after = queue.size();
        if after >= before {
            self.total_size.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.total_size.fetch_sub(before - after, Ordering::Relaxed);
        }
        result
    }

    fn is_connected(&self) -> bool {
        *self.connection.borrow() != 0
    }

    fn is_behind(&self) -> bool {
        let queue = self.queue();
        queue.len() >= BEHIND_COUNT || queue.size() >= BEHIND_SIZE
    }

    fn put(&self, bytes: &Bytes) -> u64 {
        let gone = self.change(|queue| queue.push(bytes, Instant::now()));
        self.filled.notify_one();
        gone
    }

    async fn wait_for_room(&self) {
        if !self.is_behind() {
            self.is_slow.store(false, Ordering::Relaxed);
            return;
        }
        if !self.is_connected() || self.is_slow.load(Ordering::Relaxed) {
            return;
        }
        let room = async {
            loop {
                // Registered before looking, so that nothing is missed in between.
                let mut emptied = std::pin::pin!(self.emptied.notified());
                emptied.as_mut().enable();
                if !self.is_behind() || !self.is_connected() {
                    return;
                }
                emptied.await;
            }
        };
        if timeout(ROOM_TIME_MAX, room).await.is_err() {
            self.is_slow.store(true, Ordering::Relaxed);
        }
    }
}

impl Connection<'_> {
    /// Waits for envelopes and takes a batch of them.
    pub(crate) async fn take(&self) -> Vec<(Instant, Bytes)> {
        loop {
            let batch = self.mailbox.change(Queue::take);
            if !batch.is_empty() {
                self.mailbox.emptied.notify_waiters();
                return batch;
            }
            self.mailbox.filled.notified().await;
        }
    }

    /// Puts a batch back that may not have been sent.
    pub(crate) fn put_back(&self, batch: Vec<(Instant, Bytes)>) {
        self.mailbox.change(|queue| queue.put_back(batch));
    }

    /// Waits until a newer connection has taken over.
    pub(crate) async fn taken_over(&self) {
        let mut current = self.mailbox.connection.subscribe();
        // The mailbox, and so the sender, is alive as long as we are.
        let _ = current.wait_for(|number| *number != self.number).await;
    }
}

impl Drop for Connection<'_> {
    fn drop(&mut self) {
        self.mailboxes.connections.fetch_sub(1, Ordering::Relaxed);
        self.mailbox.connection.send_if_modified(|number| {
            let is_ours = *number == self.number;
            if is_ours {
                *number = 0;
            }
            is_ours
        });
        // Whoever waits for room need not any more; and if something was put back, a newer
        // connection may be waiting for it.
        self.mailbox.emptied.notify_waiters();
        self.mailbox.filled.notify_one();
    }
}

/// Cleans up from time to time.
pub(crate) async fn keep_house(state: Arc<State>) {
    loop {
        tokio::time::sleep(HOUSEKEEPING_TIME).await;
        let now = Instant::now();
        let gone = state.mailboxes.clean(now);
        state.metrics.dropped.add(gone);
        if let Some(rates) = &state.rates {
            rates.clean(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::AGE_MAX;

    fn twin(number: u32) -> TwinId {
        TwinId::new(number).unwrap()
    }

    async fn texts(connection: &Connection<'_>) -> Vec<Bytes> {
        connection.take().await.into_iter().map(|(_, bytes)| bytes).collect()
    }

    #[tokio::test]
    async fn what_came_before_the_session_waits_for_it() {
        let mailboxes = Mailboxes::default();
        mailboxes.put(twin(1), "a", &"1".into()).await.unwrap();
        mailboxes.put(twin(1), "", &"2".into()).await.unwrap();
        assert!(!mailboxes.is_connected(twin(1), "a"));
        let connection = mailboxes.connect(twin(1), "a").unwrap();
        assert!(mailboxes.is_connected(twin(1), "a") && !mailboxes.is_connected(twin(1), ""));
        assert_eq!(texts(&connection).await, ["1"]);
        drop(connection);
        assert!(!mailboxes.is_connected(twin(1), "a"));
        assert_eq!(mailboxes.session_count(), 0);
    }

    #[tokio::test]
    async fn a_newer_connection_takes_over() {
        let mailboxes = Mailboxes::default();
        let old = mailboxes.connect(twin(1), "").unwrap();
        assert!(timeout(Duration::from_millis(1), old.taken_over()).await.is_err());
        let new = mailboxes.connect(twin(1), "").unwrap();
        old.taken_over().await;
        // What the old one could not send goes to the new one, even if that waits already.
        let waiting = async { texts(&new).await };
        let putting = async {
            tokio::task::yield_now().await;
            old.put_back(vec![(Instant::now(), "x".into())]);
            drop(old);
        };
        let (got, ()) = tokio::join!(waiting, putting);
        assert_eq!(got, ["x"]);
        assert!(mailboxes.is_connected(twin(1), ""));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_who_takes_nothing() {
        let mailboxes = Mailboxes::default();
        let connection = mailboxes.connect(twin(1), "").unwrap();
        let begin = tokio::time::Instant::now();
        for _ in 0..BEHIND_COUNT {
            mailboxes.put(twin(1), "", &"x".into()).await.unwrap();
        }
        assert_eq!(begin.elapsed(), Duration::ZERO);
        // Once, and never again.
        for _ in 0..3 {
            mailboxes.put(twin(1), "", &"x".into()).await.unwrap();
            assert_eq!(begin.elapsed().as_secs(), ROOM_TIME_MAX.as_secs());
        }
        // Until it has caught up.
        while mailboxes.find(twin(1), "").unwrap().queue().len() > 0 {
            connection.take().await;
        }
        mailboxes.put(twin(1), "", &"x".into()).await.unwrap();
        assert!(!connection.mailbox.is_slow.load(Ordering::Relaxed));
    }

    #[tokio::test(start_paused = true)]
    async fn a_sender_waits_until_there_is_room() {
        let mailboxes = Mailboxes::default();
        let connection = mailboxes.connect(twin(1), "").unwrap();
        for _ in 0..BEHIND_COUNT {
            mailboxes.put(twin(1), "", &"x".into()).await.unwrap();
        }
        let begin = tokio::time::Instant::now();
        let message = Bytes::from_static(b"y");
        let putting = mailboxes.put(twin(1), "", &message);
        let taking = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            connection.take().await.len()
        };
        let (put, _) = tokio::join!(putting, taking);
        assert_eq!(put, Ok(0));
        assert!(begin.elapsed() < ROOM_TIME_MAX, "{:?}", begin.elapsed());
    }

    #[tokio::test]
    async fn mailboxes_are_limited_and_go_when_they_are_empty() {
        let mailboxes = Mailboxes::default();
        let message = Bytes::from_static(b"x");
        for number in 0..PER_TWIN_COUNT_MAX {
            mailboxes.put(twin(1), &number.to_string(), &message).await.unwrap();
        }
        let refused = mailboxes.put(twin(1), "more", &message).await;
        assert_eq!(refused, Err(FullError::Sessions(twin(1))));
        let connection = mailboxes.connect(twin(2), "").unwrap();
        assert_eq!(mailboxes.clean(Instant::now()), 0);
        assert_eq!(mailboxes.waiting(), (PER_TWIN_COUNT_MAX, PER_TWIN_COUNT_MAX));
        let before = mailboxes.connect(twin(1), "0").unwrap();
        before.put_back(before.take().await);
        drop(before);
        assert_eq!(mailboxes.waiting(), (PER_TWIN_COUNT_MAX, PER_TWIN_COUNT_MAX));
        let later = Instant::now() + AGE_MAX;
        assert_eq!(mailboxes.clean(later), u64::try_from(PER_TWIN_COUNT_MAX).unwrap());
        assert!(mailboxes.find(twin(1), "0").is_none() && mailboxes.is_connected(twin(2), ""));
        drop(connection);
        mailboxes.clean(later);
        assert_eq!(mailboxes.waiting(), (0, 0));
        assert!(mailboxes.twins.read().unwrap().is_empty());
    }
}
