//! Why a snapshot can't be taken, or is none.

use std::fmt::Display;
use std::io;
use std::path::Path;

/// Why a snapshot can't be taken, or is none: which of its files, and what is wrong with it.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {problem}")]
pub struct SnapshotError {
    file: String,
    #[source]
    source: Option<io::Error>,
    problem: String,
}

impl SnapshotError {
    /// Says where the file is.
    pub(super) fn within(self, directory: &Path) -> Self {
        Self { file: directory.join(&self.file).display().to_string(), ..self }
    }

    /// What the host said, if it failed.
    #[must_use]
    pub fn into_host(self) -> Option<io::Error> {
        self.source
    }
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    #[error("cannot {what} it")]
    Host {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("not a regular file")]
    NotAFile,
    #[error("a file of a snapshot begins with other bytes")]
    Magic,
    #[error("version {found}: this program reads version {known}")]
    Version { found: u32, known: u32 },
    #[error("{found} bytes, where the snapshot has {wanted}")]
    Size { found: u64, wanted: u64 },
    #[error("{size} bytes are more than a snapshot can have ({size_max})")]
    TooLarge { size: u64, size_max: u64 },
    #[error("damaged: its checksum is {found:08x}, its bytes have {wanted:08x}")]
    Checksum { found: u32, wanted: u32 },
    #[error("{what}")]
    Contents { what: String },
    #[error("it belongs to another snapshot than the state beside it")]
    Other,
    #[error("damaged: bytes {start:#x} to {end:#x} are not those that were saved")]
    Part { start: u64, end: u64 },
}

impl Problem {
    /// Names the file.
    pub(super) fn of(self, file: impl Display) -> SnapshotError {
        let problem = self.to_string();
        let source = match self {
            Self::Host { source, .. } => Some(source),
            _ => None,
        };
        SnapshotError { file: file.to_string(), source, problem }
    }
}
