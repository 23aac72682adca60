//! What a namespace's methods take and give: plain data.

use std::sync::Arc;

use crate::storage::File;
use crate::{HISTORY_CURSOR_SIZE, KEY_SIZE_MAX, SCAN_CURSOR_SIZE, SeqNo};

/// What became of a read.
#[derive(Clone, Debug)]
pub enum Found {
    /// No such key.
    Missing,
    /// The value was appended to the buffer.
    Inline {
        /// Bytes of it.
        size: usize,
    },
    /// The value was verified and stays in its file; nothing was appended.
    Extent(Extent),
}

/// A value in a file. It stays there while this exists, whatever happens to the key.
#[derive(Clone, Debug)]
pub struct Extent {
    /// The file.
    pub file: Arc<dyn File>,
    /// Where the value starts.
    pub offset: u64,
    /// Bytes of it.
    pub size: u64,
}

/// About a live key, without its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Bytes of the value.
    pub size: u64,
    /// As given by `SET`.
    pub timestamp: u32,
    /// The number of its last write.
    pub seq: SeqNo,
}

/// What `CHECK` finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// The record is as it was written.
    Good,
    /// Its checksum fails.
    Bad,
    /// The disk doesn't give it.
    Unreadable,
}

/// A write that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Its number; a reply may be sent when
    /// [`Namespace::acknowledged`](crate::Namespace::acknowledged) reaches it.
    pub seq: SeqNo,
    /// In sequential mode, the id: its 8 bytes, little-endian, are the key.
    pub id: Option<u64>,
}

/// Which way a scan goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Oldest first: by last write in user mode, by id in sequential mode.
    Forward,
    /// Newest first.
    Backward,
}

/// A live key that a scan came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanItem<'a> {
    /// The key.
    pub key: &'a [u8],
    /// Bytes of the value.
    pub size: u64,
    /// As given by `SET`.
    pub timestamp: u32,
}

/// How far a scan came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scanned {
    /// Keys shown.
    pub count: usize,
    /// Where to go on; `None` if there was nothing more to show at all.
    pub cursor: Option<[u8; SCAN_CURSOR_SIZE]>,
}

/// One value of a key, now or earlier. The value was appended to the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryEntry {
    /// As given by `SET`.
    pub timestamp: u32,
    /// Bytes of the value.
    pub size: usize,
    /// Leads to the value before; `None` if there is none, or it was not kept.
    pub next: Option<[u8; HISTORY_CURSOR_SIZE]>,
}

/// One write, for followers and backups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRecord<'a> {
    /// Its number. Numbers rise; compaction leaves holes.
    pub seq: SeqNo,
    /// What was written.
    pub change: Change<'a>,
}

/// What a write does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// A key has a value now.
    Set {
        /// The key; in sequential mode the id's 8 bytes.
        key: &'a [u8],
        /// Its value.
        value: &'a [u8],
        /// Its timestamp.
        timestamp: u32,
    },
    /// A key is gone.
    Delete {
        /// The key.
        key: &'a [u8],
        /// When, as the client says.
        timestamp: u32,
    },
    /// All keys are gone, and ids start again.
    Clear,
}

/// A record as it lies in its segment, for `DATA RAW`. Payload and key were appended to the buffer,
/// the key first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawRecord {
    /// Bytes of the key, at most [`KEY_SIZE_MAX`].
    pub key_size: usize,
    /// Bytes of the payload.
    pub value_size: usize,
    /// Whether it says that the key is gone.
    pub deleted: bool,
    /// As given by `SET` or `DEL`.
    pub timestamp: u32,
    /// The number of the write before it to the same key; 0 if there is none.
    pub previous: SeqNo,
    /// CRC-32C of the payload as the existing server computes it.
    pub payload_crc: u32,
    /// Where the next record starts.
    pub next_offset: u64,
}

const _: () = assert!(KEY_SIZE_MAX <= u8::MAX as usize);

/// How a step of compaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compaction {
    /// There is more to do; call again.
    Working,
    /// A segment was replaced.
    Reclaimed {
        /// Bytes of files that were freed.
        size: u64,
    },
    /// Something that another thread does must end first: see
    /// [`Options::defers`](crate::Options::defers).
    Waiting,
    /// No segment has enough garbage.
    Idle,
}

/// How a step of scrubbing ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scrub {
    /// There is more to read; call again.
    Working,
    /// All of the log was read once; the next step starts again.
    Finished {
        /// Damaged records that stand in the log.
        damaged_count: u64,
    },
}

/// A namespace in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Live keys.
    pub entry_count: u64,
    /// Bytes of live values: what the quota counts.
    pub value_size: u64,
    /// Bytes of all segments.
    pub data_file_size: u64,
    /// Bytes of all index files.
    pub index_file_size: u64,
    /// Bytes of records that compaction could not free: live ones, and history that is kept.
    pub live_record_size: u64,
    /// Bytes of memory that the index takes.
    pub index_memory_size: u64,
    /// The id that the next `SET` with an empty key gets.
    pub next_id: u64,
    /// The newest write.
    pub last: SeqNo,
    /// The newest write that survives a power loss.
    pub durable: SeqNo,
    /// The segment that is written, and where its next record goes.
    pub active_segment: u32,
    /// Offset in it.
    pub active_offset: u64,
    /// Segments.
    pub segment_count: u64,
    /// Segments with damage: kept as they are, their intact records serve.
    pub quarantined_segments: Vec<u32>,
    /// Records known to be damaged: found at the start, by reads, or by scrubbing.
    pub damaged_record_count: u64,
    /// Bytes of a torn tail cut at the last start.
    pub torn_size: u64,
    /// Errors of reads and writes of segments, and when the last was, as the clock of
    /// [`Namespace::tick`](crate::Namespace::tick) says.
    pub data_error_count: u64,
    /// Errors of reads and writes of index files.
    pub index_error_count: u64,
    /// Whether writes are refused because the disk is full.
    pub disk_full: bool,
    /// Whether an encrypted namespace waits for its key.
    pub key_needed: bool,
    /// Whether keys and values are encrypted.
    pub encrypted: bool,
    /// Syncs of the log so far.
    pub sync_count: u64,
    /// Bytes that compaction freed so far.
    pub reclaimed_size: u64,
}
