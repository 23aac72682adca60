//! ZDB's storage engine: namespaces as append-only logs with an index in memory.
//!
//! A synchronous library without threads and sockets. `zdb/server` calls it: one thread owns a
//! [`Namespace`] and feeds it the requests of all its clients; an [`Engine`] is what threads share.
//!
//! # How a write becomes durable
//!
//! Writes are appended to memory, written by one `pwrite` a batch, and made durable by one
//! `fdatasync` that all clients of the batch share:
//!
//! ```text
//!  set ─┐                                            [level none, interval]
//!  set ─┼─> buffer ── flush() ──> file ─────────────────> replies may go
//!  del ─┘  (readable                └─ begin_sync() ─> SyncTicket::run ─> finish_sync()
//!           at once)                       (any thread, blocks)               │
//!                                                        [level group] replies may go
//! ```
//!
//! Every write has a sequence number, and [`Namespace::acknowledged`] tells up to which number
//! replies may be sent at the namespace's level. While a sync runs, the next batch is appended.
//! [`Namespace::commit`] does the three steps in one call for those who may block. With
//! [`Options::defers`] nothing that reads and writes do blocks: the change from one segment to the next
//! and the end of a compaction are tickets, too, and writes go on meanwhile. Who doesn't asks
//! for the next ticket when a sync has finished: what was written meanwhile waits for it.
//!
//! # How a namespace lies on the disk
//!
//! ```text
//!  DATA/NAME/zdb-namespace   descriptor: properties, sealed keys; replaced by rename
//!  DATA/NAME/d0 d1 d2 ...    segments of the log: header, then records
//!  INDEX/NAME/i0 i1 i2 ...   what stands in the segments, without keys and values
//!  INDEX/NAME/zdb-namespace  the descriptor's copy
//! ```
//!
//! A record's checksum covers its header, key and value, and is bound to the segment's random
//! number and the record's offset, so that stale and misdirected blocks fail. Each segment covers
//! a range of sequence numbers; compaction rewrites segments in place of themselves, in order, so
//! that a sequence number finds its record for ever. Cursors and history are sequence numbers.
//!
//! Blocks of an index file are written only after the records they name were synced. They serve
//! three ends: a start reads them instead of the log; they find a record by its number; and they
//! prove that a broken record was once whole, which tells damage from a torn tail. A torn tail
//! is cut at the last whole record. Damage is kept in place and reported, its keys answer
//! [`Error::Damaged`], and everything else serves. Without index files the log alone brings
//! everything back. `FORMAT.md` has the bytes.
//!
//! What is damaged after a power loss and was never synced can't be told from a torn tail, nor can
//! its key be known: it is cut, or passed over and counted, as writes that were never acknowledged
//! at level *group* may be.
//!
//! # What is not here
//!
//! Sessions, rights, passwords' checks, error texts of the protocol, hooks and schedules are
//! `zdb/server`'s. The engine enforces what belongs to a namespace whoever asks: quota, worm, lock,
//! freeze.

#![forbid(unsafe_code)]

pub mod backup;
mod cache;
mod cipher;
mod descriptor;
mod engine;
mod error;
mod hash;
pub mod import;
mod index;
mod key;
mod log;
mod name;
mod namespace;
mod settings;
mod shared;
#[cfg(test)]
mod simulation;
pub mod storage;
#[cfg(any(test, feature = "sim"))]
pub mod testing;

pub use engine::{Engine, FreeSpace, Options};
pub use error::{CommitFailed, Error};
pub use key::{Derivation, DerivationError, MasterKey, Passphrase, Secret};
pub use name::{NAME_SIZE_MAX, Name, NameError};
pub use namespace::{
    Change, Compaction, Direction, Extent, Found, Health, HistoryEntry, LogRecord, Metadata,
    Namespace, RawRecord, ScanItem, Scanned, Scrub, Stats, SyncDone, SyncTicket, Written,
};
pub use settings::{Durability, History, Mode, Password, Settings};

/// Longest key, in bytes (`reference: zdb 2.3`).
pub const KEY_SIZE_MAX: usize = 255;
/// Largest value, in bytes; one of exactly this size is accepted.
pub const VALUE_SIZE_MAX: usize = 8 * 1024 * 1024;
/// Most keys that [`Namespace::warm`] looks at.
pub const WARM_COUNT_MAX: usize = 32;
/// Bytes of a scan's cursor, which clients treat as opaque.
pub const SCAN_CURSOR_SIZE: usize = 17;
/// Bytes of a history cursor, which clients treat as opaque.
pub const HISTORY_CURSOR_SIZE: usize = 8;

/// The number of a write in its namespace. The first is 1; 0 is before all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeqNo(pub u64);
