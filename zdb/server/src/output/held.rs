//! Replies that wait for their write: held back, let go, or replaced by an error.

use zdb_engine::SeqNo;
use zdb_resp::write;

use super::{Chunk, Output};
use crate::core::NamespaceId;

/// A reply that must not be sent before its write is acknowledged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) begin: u64,
    end: u64,
    namespace: NamespaceId,
    seq: SeqNo,
    /// What to say instead if the write fails.
    failure: &'static str,
}

impl Output {
    /// Holds back the reply that was written from `begin` on until `seq` is acknowledged.
    pub fn hold(&mut self, begin: u64, namespace: NamespaceId, seq: SeqNo, failure: &'static str) {
        self.held.push_back(Held { begin, end: self.end(), namespace, seq, failure });
    }

    /// Replies that wait for their write.
    #[must_use]
    pub fn held_count(&self) -> usize {
        self.held.len()
    }

    /// Lets go of replies whose writes are acknowledged; `None` from `acknowledged` says that
    /// the namespace is gone, and with it what the reply promises.
    pub fn release(&mut self, mut acknowledged: impl FnMut(NamespaceId) -> Option<SeqNo>) {
        // Most are about one namespace, which need not be looked up for each.
        let mut last = None;
        while let Some(held) = self.held.front() {
            let through = match last {
                Some((namespace, through)) if namespace == held.namespace => through,
                _ => acknowledged(held.namespace),
            };
            last = Some((held.namespace, through));
            match through {
                Some(seq) if seq < held.seq => break,
                _ => self.held.pop_front(),
            };
        }
    }

    /// Replaces the replies to writes of `namespace` from `from` on by errors. Writes that were
    /// `undone` will never be acknowledged; others are told so at once as well.
    pub fn fail(&mut self, namespace: NamespaceId, from: SeqNo) {
        let mut index = 0;
        while let Some(held) = self.held.get(index).copied() {
            if held.namespace == namespace && held.seq >= from {
                self.held.remove(index);
                let mut error = Vec::new();
                write::error(&mut error, held.failure.as_bytes());
                self.replace(held.begin, held.end, &error, index);
            } else {
                index += 1;
            }
        }
    }

    /// Replaces a reply, which stands in one buffer, and moves all that come after it. `next_held` is
    /// the first held reply that stands behind it.
    fn replace(&mut self, begin: u64, end: u64, reply: &[u8], next_held: usize) {
        let mut at = self.front_at;
        let mut moved = 0;
        for chunk in &mut self.chunks {
            let size = chunk.size();
            if begin >= at
                && end <= at + size
                && let Chunk::Bytes(bytes) = chunk
            {
                moved = splice(bytes, begin - at, end - at, reply);
                self.tail_at = self.tail_at.wrapping_add_signed(moved);
                break;
            }
            at += size;
        }
        if begin >= self.tail_at && moved == 0 {
            moved = splice(&mut self.tail, begin - self.tail_at, end - self.tail_at, reply);
        }
        for held in self.held.iter_mut().skip(next_held) {
            held.begin = held.begin.wrapping_add_signed(moved);
            held.end = held.end.wrapping_add_signed(moved);
        }
    }
}

/// Replaces a part of a buffer; by how much the rest moved.
fn splice(bytes: &mut Vec<u8>, begin: u64, end: u64, with: &[u8]) -> i64 {
    let (Ok(begin), Ok(end)) = (usize::try_from(begin), usize::try_from(end)) else { return 0 };
    if begin > end || end > bytes.len() {
        return 0;
    }
    bytes.splice(begin..end, with.iter().copied());
    // Both are sizes of replies that are in memory.
    i64::try_from(with.len()).unwrap_or(0) - i64::try_from(end - begin).unwrap_or(0)
}
