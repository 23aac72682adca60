//! Where each key's newest record is: the only thing that memory holds of a key.
//!
//! In user mode an open-addressing [`table`] by hash, in sequential mode an ordered map by id. Keys
//! are not here: who looks one up compares it with the record on the disk.

pub(crate) mod slot;
pub(crate) mod table;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use slot::Slot;
use table::{Place, Table};

use crate::Mode;

/// A namespace's index.
#[derive(Debug)]
pub(crate) enum Index {
    /// By hash; several keys may have one hash.
    User(Table),
    /// By id, which stands where others have the hash.
    Sequential(BTreeMap<u64, Slot>),
}

/// Where a slot is, until the index changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// In the table.
    Place(Place),
    /// Under this id.
    Id(u64),
}

/// Whether the index knew a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// It didn't, and knows it now.
    Inserted,
    /// It did; this is the first slot with it.
    Already((At, Slot)),
}

impl Index {
    pub(crate) fn new(mode: Mode) -> Self {
        match mode {
            Mode::User => Self::User(Table::default()),
            Mode::Sequential => Self::Sequential(BTreeMap::new()),
        }
    }

    /// The first slot with this hash, or the next after `after`.
    pub(crate) fn find(&self, hash: u64, after: Option<At>) -> Option<(At, Slot)> {
        match self {
            Self::User(table) => {
                let after = match after {
                    Some(At::Place(place)) => Some(place),
                    _ => None,
                };
                table.find(hash, after).map(|(place, slot)| (At::Place(place), slot))
            }
            Self::Sequential(map) => {
                let slot = map.get(&hash).filter(|_| after.is_none())?;
                Some((At::Id(hash), *slot))
            }
        }
    }

    /// Reads from where the search for a hash begins, if that is known before it. What it gives means
    /// nothing.
    pub(crate) fn touch(&self, hash: u64) -> u32 {
        match self {
            Self::User(table) => table.touch(hash),
            Self::Sequential(_) => 0,
        }
    }

    /// The slot with this hash that stands for the record at this place.
    pub(crate) fn find_record(&self, hash: u64, segment: u32, offset: u32) -> Option<(At, Slot)> {
        let mut found = self.find(hash, None);
        while let Some((at, slot)) = found {
            if slot.segment() == segment && slot.offset == offset {
                return found;
            }
            found = self.find(hash, Some(at));
        }
        None
    }

    pub(crate) fn replace(&mut self, at: At, slot: Slot) {
        match (self, at) {
            (Self::User(table), At::Place(place)) => table.replace(place, slot),
            (Self::Sequential(map), At::Id(id)) => drop(map.insert(id, slot)),
            _ => debug_assert!(false, "a place of another index"),
        }
    }

    pub(crate) fn insert(&mut self, hash: u64, slot: Slot) {
        match self {
            Self::User(table) => table.insert(hash, slot),
            Self::Sequential(map) => drop(map.insert(hash, slot)),
        }
    }

    /// Inserts a slot if there is none with this hash.
    pub(crate) fn insert_new(&mut self, hash: u64, slot: Slot) -> Known {
        match self {
            Self::User(table) => match table.insert_new(hash, slot) {
                Some((place, slot)) => Known::Already((At::Place(place), slot)),
                None => Known::Inserted,
            },
            Self::Sequential(map) => match map.entry(hash) {
                Entry::Occupied(occupied) => Known::Already((At::Id(hash), *occupied.get())),
                Entry::Vacant(vacant) => {
                    vacant.insert(slot);
                    Known::Inserted
                }
            },
        }
    }

    pub(crate) fn remove(&mut self, at: At) {
        match (self, at) {
            (Self::User(table), At::Place(place)) => table.remove(place),
            (Self::Sequential(map), At::Id(id)) => drop(map.remove(&id)),
            _ => debug_assert!(false, "a place of another index"),
        }
    }

    /// Makes room for so many more keys at once.
    pub(crate) fn reserve(&mut self, count: usize) {
        if let Self::User(table) = self {
            table.reserve(count);
        }
    }

    /// Bytes of memory, as well as they can be known.
    pub(crate) fn memory_size(&self) -> u64 {
        match self {
            Self::User(table) => table.memory_size(),
            // A node of a B-tree has room for 11; ascending insertion fills 6 to 7 of them.
            Self::Sequential(map) => map.len() as u64 * 33,
        }
    }
}
