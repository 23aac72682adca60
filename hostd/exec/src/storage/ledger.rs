//! Which pool has what: so that a pool that is broken keeps nobody from the others.
//!
//! What is on the pools is the truth. But when one is broken, nobody can look whether it has what is
//! sought, and what may be there must not be made again. The ledger says which pool that would be:
//!
//! ```text
//!   made:     ledger ──► pool        removed:  pool ──► ledger
//!   opened with all pools: the ledger becomes what they have, and is complete from then on
//! ```
//!
//! So a complete ledger never misses what is there. One that can't be read, or was never complete, says
//! nothing, and a broken pool then may have anything.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Kind;
use crate::kept::{read_or_forget, write_whole};

/// What the file is.
const FORMAT: &str = "zos-spaces-1";
/// Bytes of a file that are read: more than any node promises.
const SIZE_MAX: u64 = 64 << 20;

/// Which pool has what.
#[derive(Debug)]
pub(super) struct Ledger {
    path: PathBuf,
    book: Book,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Book {
    format: String,
    /// Whether it misses nothing.
    complete: bool,
    /// Pools by names, by folders of kinds.
    spaces: BTreeMap<String, BTreeMap<String, String>>,
}

/// What a pool has: its kind, its name, and the pool.
pub(super) type Line = (Kind, String, String);

impl Ledger {
    /// Reads the file. One that makes no sense says nothing.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        const LOST: &str = "which pool has what is not known any more";
        let nothing =
            || Book { format: FORMAT.to_owned(), complete: false, spaces: BTreeMap::new() };
        let is_ours = |book: &Book| book.format == FORMAT;
        let book = read_or_forget(path, SIZE_MAX, is_ours, LOST)?.unwrap_or_else(nothing);
        Ok(Self { path: path.to_owned(), book })
    }

    /// Makes it what pools have. If all of them were looked at, it misses nothing from then on.
    pub(super) fn settle(&mut self, lines: &[Line], are_all: bool) -> io::Result<()> {
        let mut book = self.book.clone();
        if are_all {
            book.spaces.clear();
            book.complete = true;
        }
        for (kind, name, pool) in lines {
            let names = book.spaces.entry(kind.folder().to_owned()).or_default();
            names.insert(name.clone(), pool.clone());
        }
        self.write(book)
    }

    /// The pool that has it, or was to get it. An error if that is not known.
    pub(super) fn pool_of(&self, kind: Kind, name: &str) -> Result<Option<&str>, Unknown> {
        match self.book.spaces.get(kind.folder()).and_then(|names| names.get(name)) {
            Some(pool) => Ok(Some(pool)),
            None if self.book.complete => Ok(None),
            None => Err(Unknown),
        }
    }

    /// Names of a kind that a pool has. An error if that is not known.
    pub(super) fn names_in(&self, kind: Kind, pool: &str) -> Result<Vec<&str>, Unknown> {
        if !self.book.complete {
            return Err(Unknown);
        }
        let names = self.book.spaces.get(kind.folder()).into_iter().flatten();
        Ok(names.filter(|(_, other)| *other == pool).map(|(name, _)| name.as_str()).collect())
    }

    /// A pool is to get something.
    pub(super) fn note(&mut self, kind: Kind, name: &str, pool: &str) -> io::Result<()> {
        self.settle(&[(kind, name.to_owned(), pool.to_owned())], false)
    }

    /// Nobody has it any more.
    pub(super) fn forget(&mut self, kind: Kind, name: &str) -> io::Result<()> {
        let mut book = self.book.clone();
        book.spaces.get_mut(kind.folder()).and_then(|names| names.remove(name));
        self.write(book)
    }

    fn write(&mut self, book: Book) -> io::Result<()> {
        if book != self.book {
            write_whole(&self.path, &serde_json::to_vec(&book)?)?;
            self.book = book;
        }
        Ok(())
    }
}

/// It is not known which pool has what.
#[derive(Debug)]
pub(super) struct Unknown;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn it_says_nothing_until_it_misses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spaces.json");
        let mut ledger = Ledger::open(&path).unwrap();
        ledger.note(Kind::ZMount, "a", "one").unwrap();
        assert_eq!(ledger.pool_of(Kind::ZMount, "a").unwrap(), Some("one"));
        assert!(ledger.pool_of(Kind::Volume, "a").is_err());
        assert!(ledger.names_in(Kind::ZMount, "one").is_err());
        let lines = [(Kind::ZMount, "b".to_owned(), "two".to_owned())];
        ledger.settle(&lines, true).unwrap();
        let mut ledger = Ledger::open(&path).unwrap();
        assert_eq!(ledger.pool_of(Kind::ZMount, "a").unwrap(), None);
        assert_eq!(ledger.names_in(Kind::ZMount, "two").unwrap(), ["b"]);
        ledger.forget(Kind::ZMount, "b").unwrap();
        ledger.forget(Kind::ZMount, "b").unwrap();
        assert_eq!(Ledger::open(&path).unwrap().pool_of(Kind::ZMount, "b").unwrap(), None);
        for damage in ["", "{", "{\"format\":\"other\",\"complete\":true,\"spaces\":{}}"] {
            fs::write(&path, damage).unwrap();
            assert!(Ledger::open(&path).unwrap().pool_of(Kind::ZMount, "b").is_err());
        }
    }
}
