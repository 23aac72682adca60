//! What a namespace's owner can set.
//!
//! All of it is persistent, lock and freeze included: a paused contract stays paused over a restart.

use std::fmt;
use std::time::Duration;

use zeroize::Zeroizing;

/// Properties of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How keys come to be. Can change only before the first write.
    pub mode: Mode,
    /// When a reply may be sent.
    pub durability: Durability,
    /// Which earlier values compaction keeps.
    pub history: History,
    /// Most bytes of live values; 0 is without limit. Keys, headers and history are free.
    pub size_max: u64,
    /// Most bytes of files, history and garbage included; 0 is without limit. Writes that would
    /// exceed it are refused with [`Error::Quota`](crate::Error::Quota) until compaction made room.
    pub file_size_max: u64,
    /// What opens the namespace; `None` lets everyone in.
    pub password: Option<Password>,
    /// Whether reading needs no password.
    pub public: bool,
    /// Whether existing keys are kept as they are.
    pub worm: bool,
    /// Whether writes are refused.
    pub locked: bool,
    /// Whether reads and writes are refused.
    pub frozen: bool,
}

impl Default for Settings {
    /// As `NSNEW` makes them: public, no password, no limit.
    fn default() -> Self {
        Self {
            mode: Mode::User,
            durability: Durability::Group,
            history: History::None,
            size_max: 0,
            file_size_max: 0,
            password: None,
            public: true,
            worm: false,
            locked: false,
            frozen: false,
        }
    }
}

/// How keys come to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Users choose them.
    User,
    /// They are numbers in 8 bytes, little-endian, given out one by one.
    Sequential,
}

/// When a reply may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// After the write: a power loss may lose what the kernel had not written.
    None,
    /// After the write, with a sync when this time has passed since the last.
    Interval(Duration),
    /// After a sync, shared by all writes of a batch.
    Group,
}

/// Which earlier values compaction keeps. Until a segment is compacted, all of them are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum History {
    /// None.
    None,
    /// Those whose timestamp is younger than this.
    Younger(Duration),
    /// All: overwriting needs space for ever.
    All,
}

/// A namespace's password. Never shown, and wiped from memory when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(Zeroizing<Vec<u8>>);

impl Password {
    /// Takes a password; the server limits its size.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        Self(Zeroizing::new(bytes.to_vec()))
    }

    /// The password, as the protocol's challenges need it.
    #[must_use]
    pub fn reveal(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Password")
    }
}
