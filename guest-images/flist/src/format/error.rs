//! What can be wrong with an image's file.
//!
//! Readers work with a [`Fault`], which does not know the file's name; [`Fault::in_file`] adds it at
//! the door. Everything that a message takes from the image is escaped: images are hostile, and
//! messages end on terminals and in logs.

use std::io;
use std::path::{Path, PathBuf};

use crate::tree::TreeError;

/// Why an image can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The system did not let us read it.
    #[error("{}: cannot be read", file.display())]
    Read {
        /// The image.
        file: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The system did not let us write it: no space, no permission.
    #[error("{}: cannot be written", file.display())]
    Write {
        /// The image.
        file: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file as a whole breaks a rule: not an image, a table is missing, a limit is passed.
    #[error("{}: {rule}", file.display())]
    File {
        /// The image.
        file: PathBuf,
        /// The rule.
        rule: String,
    },
    /// One entry breaks a rule.
    #[error("{}: {path}: {rule}", file.display())]
    Entry {
        /// The image.
        file: PathBuf,
        /// The path inside the image, or the row where there is no path.
        path: String,
        /// The rule.
        rule: String,
    },
    /// Its database is damaged.
    #[error("{}: damaged database: {reason}", file.display())]
    Database {
        /// The image.
        file: PathBuf,
        /// What SQLite said.
        reason: String,
    },
}

/// [`FormatError`] without the file.
#[derive(Debug)]
pub(crate) enum Fault {
    /// See [`FormatError::Read`].
    Read(io::Error),
    /// See [`FormatError::File`].
    File(String),
    /// See [`FormatError::Entry`].
    Entry {
        /// Path or row.
        path: String,
        /// The rule.
        rule: String,
    },
    /// See [`FormatError::Database`].
    Database(String),
}

impl Fault {
    /// `rule` broken by the entry at `path` (shown quoted, control characters escaped).
    pub(crate) fn at(path: &[u8], rule: impl Into<String>) -> Self {
        let path = format!("\"/{}\"", String::from_utf8_lossy(path).escape_debug());
        Self::Entry { path, rule: rule.into() }
    }

    /// `rule` broken by a row that has no path (yet).
    pub(crate) fn row(table: &str, number: i64, rule: impl Into<String>) -> Self {
        Self::Entry { path: format!("table {table}, row {number}"), rule: rule.into() }
    }

    /// A tree's refusal of the entry at `path`.
    pub(crate) fn tree(path: &[u8], error: &TreeError) -> Self {
        Self::at(path, error.to_string())
    }

    /// Adds the file's name.
    pub(crate) fn in_file(self, file: &Path) -> FormatError {
        let file = file.to_owned();
        match self {
            Self::Read(source) => FormatError::Read { file, source },
            Self::File(rule) => FormatError::File { file, rule },
            Self::Entry { path, rule } => FormatError::Entry { file, path, rule },
            Self::Database(reason) => FormatError::Database { file, reason },
        }
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode;
        match error.sqlite_error_code() {
            Some(ErrorCode::OperationInterrupted) => {
                Self::File("its database asks for more work than its size explains".to_owned())
            }
            Some(ErrorCode::NotADatabase) => Self::File("not an SQLite database".to_owned()),
            _ => Self::Database(error.to_string().escape_debug().to_string()),
        }
    }
}
