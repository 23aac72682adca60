//! Reads directories written by the existing server (`reference: zdb 2.5`).
//!
//! Data files are the truth: every record in them whose header makes sense and whose checksum is
//! right is taken, in order; the index files are only asked for the mode. A torn tail and damaged
//! records are counted and left out. Originals are not touched.

use std::path::Path;

use crate::{Engine, Error, Name, Namespace};

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Writes taken over.
    pub record_count: u64,
    /// Records left out: damaged, or out of place.
    pub damaged_count: u64,
    /// Bytes at the ends of files that are no record.
    pub torn_size: u64,
}

/// Namespaces below two folders of the existing server; empty if they are not its.
///
/// # Errors
///
/// [`Error::File`].
pub fn find(_engine: &Engine, _data: &Path, _index: &Path) -> Result<Vec<Name>, Error> {
    unimplemented!()
}

/// Makes a namespace of one of them, with its properties.
///
/// # Errors
///
/// [`Error::Format`] if the descriptor can't be read, [`Error::Read`], and as [`Engine::create`].
pub fn import(
    _engine: &Engine,
    _data: &Path,
    _index: &Path,
    _name: &Name,
) -> Result<(Namespace, Report), Error> {
    unimplemented!()
}
