//! Which disk has which namespaces, for as long as its server is not there to be asked.
//!
//! A disk that is missing when the node starts has no server. What it has must not be made anew, empty, on
//! another one: its users would lose what they wrote, and there were two of it when the disk comes back. So
//! it is written down, in a file of the node's, what each disk has. Disks are the truth: of one that is
//! there, the file is made what it says.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::kept::{read_or_forget, write_whole};

/// What the file is.
const FORMAT: &str = "zos-namespaces-1";
/// Bytes of a file that are read: more than all disks of a node have names.
const SIZE_MAX: u64 = 64 << 20;

/// Names of namespaces, by their disks' pools.
#[derive(Debug)]
pub(super) struct Book {
    path: PathBuf,
    pages: Pages,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pages {
    format: String,
    pools: BTreeMap<String, BTreeSet<String>>,
}

impl Book {
    /// Reads the file. One that makes no sense says nothing, and is written anew.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        const LOST: &str = "which disk has which namespaces is not known any more";
        let nothing = || Pages { format: FORMAT.to_owned(), pools: BTreeMap::new() };
        let is_ours = |pages: &Pages| pages.format == FORMAT;
        let pages = read_or_forget(path, SIZE_MAX, is_ours, LOST)?.unwrap_or_else(nothing);
        Ok(Self { path: path.to_owned(), pages })
    }

    /// A disk has these and no others.
    pub(super) fn set(&mut self, pool: &str, names: BTreeSet<String>) -> io::Result<()> {
        self.change(|pools| {
            pools.insert(pool.to_owned(), names);
        })
    }

    /// A disk is to have one more.
    pub(super) fn note(&mut self, pool: &str, name: &str) -> io::Result<()> {
        self.change(|pools| {
            pools.entry(pool.to_owned()).or_default().insert(name.to_owned());
        })
    }

    /// Nobody has it any more.
    pub(super) fn forget(&mut self, name: &str) -> io::Result<()> {
        self.change(|pools| {
            for names in pools.values_mut() {
                names.remove(name);
            }
        })
    }

    /// What disks have that are not among these pools: each name with its pool.
    pub(super) fn missing(
        &self,
        is_there: impl Fn(&str) -> bool,
    ) -> impl Iterator<Item = (&str, &str)> {
        let missing = self.pages.pools.iter().filter(move |(pool, _)| !is_there(pool));
        missing.flat_map(|(pool, names)| names.iter().map(|name| (name.as_str(), pool.as_str())))
    }

    fn change(
        &mut self,
        change: impl FnOnce(&mut BTreeMap<String, BTreeSet<String>>),
    ) -> io::Result<()> {
        let mut pages = self.pages.clone();
        change(&mut pages.pools);
        if pages != self.pages {
            write_whole(&self.path, &serde_json::to_vec(&pages)?)?;
            self.pages = pages;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn it_says_what_disks_have_that_are_missing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("namespaces.json");
        let mut book = Book::open(&path).unwrap();
        book.note("one", "a").unwrap();
        book.note("two", "b").unwrap();
        book.note("two", "c").unwrap();
        book.forget("c").unwrap();
        book.forget("c").unwrap();
        let mut book = Book::open(&path).unwrap();
        let missing = |book: &Book, there: &[&str]| -> Vec<(String, String)> {
            let missing = book.missing(|pool| there.contains(&pool));
            missing.map(|(name, pool)| (name.to_owned(), pool.to_owned())).collect()
        };
        assert!(missing(&book, &["one", "two"]).is_empty());
        assert_eq!(missing(&book, &["one"]), [("b".to_owned(), "two".to_owned())]);
        // A disk that is there says itself what it has.
        book.set("two", ["d".to_owned()].into()).unwrap();
        assert_eq!(missing(&book, &["one"]), [("d".to_owned(), "two".to_owned())]);
        for damage in ["", "{", "{\"format\":\"other\",\"pools\":{}}"] {
            fs::write(&path, damage).unwrap();
            assert!(missing(&Book::open(&path).unwrap(), &[]).is_empty());
        }
    }
}
