//! Replies of one client on their way out, and the writes that some of them wait for.
//!
//! Replies are a stream. Small ones are appended to one buffer, so that a batch becomes one system
//! call; large values stay in their file and go from there to the socket. A reply to a write waits,
//! and with it all that comes after it, until the engine has acknowledged the write:
//!
//! ```text
//!    sent │ may be sent        │ held back
//!  ───────┼────────────────────┼────────────────────────────
//!         │ $5..value.. <file> │ $1..k..  :1  $1..j..
//!         begin()              first of `held`            end()
//! ```
//!
//! When a write fails after all, its reply is replaced by an error. All positions count bytes from the
//! connection's start.

mod held;

use std::collections::VecDeque;
use std::mem;

use held::Held;
use zdb_engine::Extent;

/// Memory of an empty buffer that is kept for the next replies, in bytes.
const KEPT_SIZE_MAX: usize = 256 * 1024;
/// Buffers that are kept for whoever needs one next.
const SPARE_COUNT_MAX: usize = 64;
/// Bytes already sent are dropped from the front of a buffer once they are this many.
const SENT_SIZE_MAX: usize = 64 * 1024;

/// Buffers of clients who have got all their replies, for those who come next: the one used last is
/// still in the processor's caches, and nobody else holds memory.
#[derive(Debug, Default)]
pub struct Spares(Vec<Vec<u8>>);

/// Unsent replies of one client.
#[derive(Debug, Default)]
pub struct Output {
    /// What comes before `tail`; buffers and files take turns.
    chunks: VecDeque<Chunk>,
    /// Where replies are appended.
    tail: Vec<u8>,
    /// Bytes of the first chunk (or of `tail` if there is none) that were sent.
    sent: u64,
    /// Where the first chunk, or `tail`, begins.
    front_at: u64,
    /// Where `tail` begins.
    tail_at: u64,
    /// Replies that wait for their write, in order.
    held: VecDeque<Held>,
}

#[derive(Debug)]
enum Chunk {
    Bytes(Vec<u8>),
    File(Extent),
}

/// What can be sent next.
#[derive(Debug)]
pub enum Piece<'a> {
    /// These bytes; `more` says that others follow at once.
    Bytes {
        /// What to send.
        bytes: &'a [u8],
        /// Whether something may be sent right after it.
        more: bool,
    },
    /// A part of a file.
    File {
        /// The value.
        extent: &'a Extent,
        /// Where in the file to go on.
        offset: u64,
        /// Bytes left of it.
        size: u64,
    },
}

impl Output {
    /// Takes a buffer for the next replies, if there is none.
    pub fn borrow_from(&mut self, spares: &mut Spares) {
        if self.tail.capacity() == 0 {
            self.tail = spares.0.pop().unwrap_or_default();
        }
    }

    /// Gives the buffer back when all of it was sent.
    pub fn give_back_to(&mut self, spares: &mut Spares) {
        let is_kept = (1..=KEPT_SIZE_MAX).contains(&self.tail.capacity());
        if self.unsent_size() == 0 && is_kept && spares.0.len() < SPARE_COUNT_MAX {
            spares.0.push(mem::take(&mut self.tail));
        }
    }

    /// Where replies are appended.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.tail
    }

    /// Appends a value that stays in its file.
    pub fn push_file(&mut self, extent: Extent) {
        let size = extent.size;
        if !self.tail.is_empty() {
            let bytes = mem::take(&mut self.tail);
            self.tail_at += bytes.len() as u64;
            self.chunks.push_back(Chunk::Bytes(bytes));
        }
        self.tail_at += size;
        self.chunks.push_back(Chunk::File(extent));
    }

    /// Where the next reply begins.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.tail_at + self.tail.len() as u64
    }

    /// Where the first unsent byte stands.
    #[must_use]
    pub fn begin(&self) -> u64 {
        self.front_at + self.sent
    }

    /// Bytes that were not sent yet, files included.
    #[must_use]
    pub fn unsent_size(&self) -> u64 {
        self.end() - self.begin()
    }

    /// Files that wait to be sent; each keeps a descriptor open.
    #[must_use]
    pub fn file_count(&self) -> usize {
        self.chunks.len().div_ceil(2)
    }

    /// Bytes of memory held.
    #[must_use]
    pub fn memory_size(&self) -> usize {
        let chunks = self.chunks.iter().map(|chunk| match chunk {
            Chunk::Bytes(bytes) => bytes.capacity(),
            Chunk::File(_) => size_of::<Chunk>(),
        });
        chunks.sum::<usize>() + self.tail.capacity() + self.held.capacity() * size_of::<Held>()
    }

    /// What can be sent now.
    #[must_use]
    pub fn next(&self) -> Option<Piece<'_>> {
        let limit = self.held.front().map_or_else(|| self.end(), |held| held.begin);
        let begin = self.begin();
        let left = limit.checked_sub(begin).filter(|left| *left > 0)?;
        let bytes = match self.chunks.front() {
            Some(Chunk::File(extent)) => {
                let size = extent.size - self.sent;
                return Some(Piece::File { extent, offset: extent.offset + self.sent, size });
            }
            Some(Chunk::Bytes(bytes)) => bytes,
            None => &self.tail,
        };
        let rest = bytes.get(usize::try_from(self.sent).ok()?..)?;
        let size = usize::try_from(left).map_or(rest.len(), |left| left.min(rest.len()));
        Some(Piece::Bytes { bytes: rest.get(..size)?, more: (size as u64) < left })
    }

    /// `count` bytes of what [`next`](Self::next) gave were sent.
    pub fn advance(&mut self, count: u64) {
        self.sent += count;
        match self.chunks.front() {
            Some(chunk) => {
                let size = chunk.size();
                if self.sent >= size {
                    self.chunks.pop_front();
                    self.front_at += size;
                    self.sent = 0;
                }
            }
            None => self.drop_sent(),
        }
    }

    /// Gives memory back when nothing waits. For idle clients.
    pub fn shrink(&mut self) {
        if self.unsent_size() == 0 {
            self.tail = Vec::new();
            self.held = VecDeque::new();
            self.chunks = VecDeque::new();
        }
    }

    /// Forgets the sent part of `tail`, when that is all of it or a lot.
    fn drop_sent(&mut self) {
        let sent = usize::try_from(self.sent).map_or(self.tail.len(), |sent| sent);
        if sent >= self.tail.len() {
            if self.tail.capacity() > KEPT_SIZE_MAX {
                self.tail = Vec::new();
            } else {
                self.tail.clear();
            }
        } else if sent > SENT_SIZE_MAX && sent > self.tail.len() / 2 {
            self.tail.drain(..sent);
        } else {
            return;
        }
        self.front_at += self.sent;
        self.tail_at += self.sent;
        self.sent = 0;
    }
}

impl Chunk {
    fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(extent) => extent.size,
        }
    }
}

#[cfg(test)]
mod tests {
    use zdb_engine::SeqNo;
    use zdb_resp::write;

    use super::*;
    use crate::core::NamespaceId;

    const ONE: NamespaceId = NamespaceId::testing(1);
    const TWO: NamespaceId = NamespaceId::testing(2);

    fn reply(output: &mut Output, text: &[u8]) {
        write::simple(output.buffer(), text);
    }

    fn held(output: &mut Output, text: &[u8], namespace: NamespaceId, seq: u64) {
        let begin = output.end();
        reply(output, text);
        output.hold(begin, namespace, SeqNo(seq), "failed");
    }

    fn send_all(output: &mut Output, step: usize) -> String {
        let mut sent = Vec::new();
        while let Some(piece) = output.next() {
            let Piece::Bytes { bytes, .. } = piece else { panic!("a file") };
            let count = bytes.len().min(step);
            sent.extend_from_slice(&bytes[..count]);
            output.advance(count as u64);
        }
        String::from_utf8(sent).unwrap().replace("\r\n", "|")
    }

    #[test]
    fn a_write_holds_back_all_that_follows() {
        let mut output = Output::default();
        reply(&mut output, b"a");
        held(&mut output, b"b", ONE, 5);
        reply(&mut output, b"c");
        held(&mut output, b"d", ONE, 6);
        assert_eq!(send_all(&mut output, 2), "+a|");
        output.release(|_| Some(SeqNo(4)));
        assert_eq!(send_all(&mut output, 2), "");
        output.release(|_| Some(SeqNo(5)));
        assert_eq!(send_all(&mut output, 2), "+b|+c|");
        output.release(|_| None);
        assert_eq!(send_all(&mut output, 100), "+d|");
        assert_eq!(output.unsent_size(), 0);
    }

    #[test]
    fn failed_writes_become_errors_and_nothing_else_changes() {
        let mut output = Output::default();
        reply(&mut output, b"a");
        held(&mut output, b"one", ONE, 1);
        held(&mut output, b"two", ONE, 2);
        reply(&mut output, b"b");
        held(&mut output, b"other", TWO, 2);
        held(&mut output, b"three", ONE, 3);
        reply(&mut output, b"c");
        output.fail(ONE, SeqNo(2));
        output.release(|_| Some(SeqNo(9)));
        assert_eq!(send_all(&mut output, 3), "+a|+one|-failed|+b|+other|-failed|+c|");
    }

    #[test]
    fn an_empty_buffer_goes_to_whoever_is_next_and_others_stay() {
        let (mut one, mut two) = (Output::default(), Output::default());
        let mut spares = Spares::default();
        one.borrow_from(&mut spares);
        reply(&mut one, b"a");
        one.give_back_to(&mut spares);
        assert!(spares.0.is_empty(), "it is not sent");
        assert_eq!(send_all(&mut one, 100), "+a|");
        one.give_back_to(&mut spares);
        assert_eq!((one.memory_size(), spares.0.len()), (0, 1));
        two.borrow_from(&mut spares);
        held(&mut two, b"b", ONE, 1);
        two.give_back_to(&mut spares);
        two.release(|_| Some(SeqNo(1)));
        assert_eq!(send_all(&mut two, 100), "+b|");
        reply(&mut one, b"c");
        assert_eq!(send_all(&mut one, 100), "+c|", "positions go on");
    }

    #[test]
    fn a_reader_who_lags_for_ever_costs_no_more_than_what_is_unsent() {
        let mut output = Output::default();
        for _ in 0..1000 {
            output.buffer().extend_from_slice(&[b'x'; 4096]);
            let step = output.unsent_size().saturating_sub(100);
            output.advance(step);
        }
        assert_eq!(output.unsent_size(), 100);
        assert!(output.memory_size() < 8 * SENT_SIZE_MAX, "{}", output.memory_size());
    }
}
