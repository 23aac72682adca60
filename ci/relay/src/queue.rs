//! What waits for one session: bounded in number, size and age.
//!
//! When it is full the oldest goes, as in the streams of the grid's relays: who comes back after a
//! while is better served with the latest. Without clock and waiting; [`crate::mailbox`] adds both.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

/// Most envelopes that wait for one session.
pub(crate) const COUNT_MAX: usize = 10_000;
/// Most bytes of them.
pub(crate) const SIZE_MAX: usize = 64 * 1024 * 1024;
/// How long one waits.
pub(crate) const AGE_MAX: Duration = Duration::from_secs(3600);
/// Most envelopes of a batch.
pub(crate) const BATCH_COUNT_MAX: usize = 128;
/// A batch that has so many bytes gets no more envelopes.
pub(crate) const BATCH_SIZE_MAX: usize = 1024 * 1024;
/// Smaller envelopes are copied: they would hold on to the buffer that they were read into.
const COPY_SIZE_MAX: usize = 4096;

/// Envelopes, the oldest first.
#[derive(Default)]
pub(crate) struct Queue {
    waiting: VecDeque<(Instant, Bytes)>,
    size: usize,
}

impl Queue {
    /// Adds an envelope; returns how many had to go for it.
    pub(crate) fn push(&mut self, bytes: &Bytes, now: Instant) -> u64 {
        let bytes = if bytes.len() <= COPY_SIZE_MAX {
            Bytes::copy_from_slice(bytes)
        } else {
            bytes.clone()
        };
        self.size += bytes.len();
        self.waiting.push_back((now, bytes));
        let mut gone = 0;
        while self.waiting.len() > COUNT_MAX || (self.size > SIZE_MAX && self.waiting.len() > 1) {
            self.pop();
            gone += 1;
        }
        gone
    }

    /// Takes a batch to be sent.
    pub(crate) fn take(&mut self) -> Vec<(Instant, Bytes)> {
        let mut batch = Vec::new();
        let mut size = 0;
        while batch.len() < BATCH_COUNT_MAX
            && size < BATCH_SIZE_MAX
            && let Some(next) = self.pop()
        {
            size += next.1.len();
            batch.push(next);
        }
        batch
    }

    /// Puts a batch that could not be sent where it was.
    pub(crate) fn put_back(&mut self, batch: Vec<(Instant, Bytes)>) {
        for (at, bytes) in batch.into_iter().rev() {
            self.size += bytes.len();
            self.waiting.push_front((at, bytes));
        }
    }

    /// Drops what has waited for too long; returns how many those were.
    pub(crate) fn expire(&mut self, now: Instant) -> u64 {
        let mut gone = 0;
        while self.waiting.front().is_some_and(|(at, _)| now.duration_since(*at) >= AGE_MAX) {
            self.pop();
            gone += 1;
        }
        gone
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Bytes that wait.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    fn pop(&mut self) -> Option<(Instant, Bytes)> {
        let next = self.waiting.pop_front()?;
        self.size -= next.1.len();
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(batch: &[(Instant, Bytes)]) -> Vec<&[u8]> {
        batch.iter().map(|(_, bytes)| &bytes[..]).collect()
    }

    #[test]
    fn the_oldest_goes_when_there_are_too_many() {
        let now = Instant::now();
        let mut queue = Queue::default();
        for number in 0..COUNT_MAX {
            assert_eq!(queue.push(&number.to_string().into(), now), 0);
        }
        assert_eq!(queue.push(&"last".into(), now), 1);
        assert_eq!(queue.len(), COUNT_MAX);
        assert_eq!(texts(&queue.take())[0], b"1");
    }

    #[test]
    fn the_oldest_goes_when_they_are_too_large() {
        let now = Instant::now();
        let mut queue = Queue::default();
        let half = Bytes::from(vec![0; SIZE_MAX / 2]);
        assert_eq!(queue.push(&half, now) + queue.push(&half, now), 0);
        assert_eq!(queue.push(&"x".into(), now), 1);
        assert_eq!(queue.size(), SIZE_MAX / 2 + 1);
    }

    #[test]
    fn a_batch_is_bounded_and_can_be_put_back() {
        let now = Instant::now();
        let mut queue = Queue::default();
        for number in 0..BATCH_COUNT_MAX + 2 {
            queue.push(&number.to_string().into(), now);
        }
        let batch = queue.take();
        assert_eq!(batch.len(), BATCH_COUNT_MAX);
        queue.put_back(batch);
        assert_eq!(texts(&queue.take())[..2], [b"0", b"1"]);
        assert_eq!(queue.take().len(), 2);
        assert_eq!((queue.len(), queue.size()), (0, 0));
        let large = Bytes::from(vec![0; BATCH_SIZE_MAX]);
        for _ in 0..3 {
            queue.push(&large, now);
        }
        assert_eq!(queue.take().len(), 1);
    }

    #[test]
    fn nothing_waits_for_longer_than_an_hour() {
        let begin = Instant::now();
        let mut queue = Queue::default();
        queue.push(&"old".into(), begin);
        queue.push(&"new".into(), begin + Duration::from_secs(1));
        assert_eq!(queue.expire(begin + AGE_MAX - Duration::from_secs(1)), 0);
        assert_eq!(queue.expire(begin + AGE_MAX), 1);
        assert_eq!(texts(&queue.take()), [b"new"]);
    }
}
