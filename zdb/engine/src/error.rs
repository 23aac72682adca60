//! What can go wrong, named so that the server knows which reply to give.

use std::io;

use crate::SeqNo;

/// Why an operation of the engine failed.
///
/// The first group refuses a request; nothing happened. The second is about the disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Reads and writes are refused until the namespace is thawed.
    #[error("the namespace is frozen")]
    Frozen,
    /// Writes are refused until the namespace is unlocked.
    #[error("the namespace is locked")]
    Locked,
    /// The key exists, and worm mode keeps what exists.
    #[error("worm mode keeps existing keys as they are")]
    Worm,
    /// The value doesn't fit the namespace's maximal size.
    #[error("{live_size} bytes are stored, {value_size} more do not fit in {size_max}")]
    Quota {
        /// Bytes of live values now.
        live_size: u64,
        /// Bytes of the value refused.
        value_size: u64,
        /// The limit.
        size_max: u64,
    },
    /// Keys have 1 to [`KEY_SIZE_MAX`](crate::KEY_SIZE_MAX) bytes in user mode.
    #[error("a key of {size} bytes, must have 1 to {max}", max = crate::KEY_SIZE_MAX)]
    KeySize {
        /// Bytes of the key.
        size: usize,
    },
    /// In sequential mode only an existing id can be written.
    #[error("no such id: only existing ones can be updated")]
    UnknownId,
    /// Larger than [`VALUE_SIZE_MAX`](crate::VALUE_SIZE_MAX).
    #[error("a value of {size} bytes, at most {max}", max = crate::VALUE_SIZE_MAX)]
    ValueSize {
        /// Bytes of the value.
        size: usize,
    },
    /// Not a cursor that this namespace gave out.
    #[error("not a cursor of this namespace")]
    BadCursor,
    /// The history cursor names no record.
    #[error("no record has number {}", seq.0)]
    UnknownHistory {
        /// What the cursor says.
        seq: SeqNo,
    },
    /// The history cursor is another key's.
    #[error("record {} is another key's", seq.0)]
    ForeignHistory {
        /// What the cursor says.
        seq: SeqNo,
    },
    /// The mode can change only before the first write.
    #[error("the mode of a used namespace can't change")]
    ModeOfUsed,
    /// A namespace of that name exists.
    #[error("namespace {0} exists")]
    Exists(String),
    /// No namespace has that name.
    #[error("no namespace {0}")]
    NoSuchNamespace(String),
    /// The follower is behind what compaction forgot; it must start again from nothing.
    #[error("the log is complete from {} on, asked for {}", first.0, asked.0)]
    Gap {
        /// Where a complete stream can start.
        first: SeqNo,
        /// Where it should have started.
        asked: SeqNo,
    },
    /// A record to apply is not newer than what is here.
    #[error("record {} comes after {}", seq.0, last.0)]
    OutOfOrder {
        /// The record's number.
        seq: SeqNo,
        /// The newest number here.
        last: SeqNo,
    },
    /// The namespace is encrypted and was not unlocked.
    #[error("the namespace is encrypted, and its key was not given")]
    KeyNeeded,
    /// The key doesn't open this namespace, or the namespace is not encrypted.
    #[error("the key does not open this namespace")]
    WrongKey,
    /// Another thread must end something first: see [`Options::defers`](crate::Options::defers).
    #[error("a segment of the namespace is being changed")]
    Busy,
    /// An encrypted password, and the options have no key to open it.
    #[error("the descriptor's password is sealed, and no key for passwords was given")]
    PasswordSealed,
    /// No key could be made of the passphrase.
    #[error("no key can be made of the passphrase: {reason}")]
    Derivation {
        /// What stands in the way.
        reason: String,
    },

    /// A record, or the file it is in, is not what was written.
    #[error("segment {segment}, offset {offset}: {reason}")]
    Damaged {
        /// The segment's number.
        segment: u32,
        /// Bytes from its start.
        offset: u64,
        /// What was found.
        reason: &'static str,
    },
    /// The descriptor and its copy are unreadable: the namespace can't be served.
    #[error("descriptor of {name}: {reason}")]
    Descriptor {
        /// The namespace.
        name: String,
        /// What was found.
        reason: &'static str,
    },
    /// The disk is full, or what is left is reserved for deletions and compaction.
    #[error("no space on the disk")]
    DiskFull,
    /// The disk refused a write; this and all writes of its batch did not happen.
    #[error("cannot write")]
    Write(#[source] io::Error),
    /// The disk refused to make writes durable. They may or may not survive a crash.
    #[error("cannot sync")]
    Sync(#[source] io::Error),
    /// The disk refused a read.
    #[error("cannot read")]
    Read(#[source] io::Error),
    /// A folder or file could not be created, renamed or removed.
    #[error("{path}")]
    File {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another process uses these folders.
    #[error("{path} is in use by another process")]
    InUse {
        /// The folder.
        path: String,
    },
    /// A namespace is loaded at most once.
    #[error("namespace {0} is loaded already")]
    Loaded(String),
    /// A stream or folder given to restore, import or verify is not in a format that we know.
    #[error("not readable as {what}: {reason}")]
    Format {
        /// What was expected.
        what: &'static str,
        /// What was found.
        reason: &'static str,
    },
}

/// Writes from a number on failed.
#[derive(Debug, thiserror::Error)]
#[error("writes from {} on failed", from.0)]
pub struct CommitFailed {
    /// Writes of this number and later failed; earlier ones are as good as
    /// [`Namespace::acknowledged`](crate::Namespace::acknowledged) says.
    pub from: SeqNo,
    /// [`Error::Write`] and [`Error::DiskFull`]: they were undone. [`Error::Sync`]: they are
    /// visible, and will become durable if the disk recovers.
    #[source]
    pub source: Error,
}
