//! The namespaces of a server, by name and by the short id that sessions keep.
//!
//! An id names a place and a generation of it, so that a session whose namespace was removed notices,
//! even if another one took the place.

use std::collections::HashMap;
use std::path::PathBuf;

use zdb_engine::{Name, Namespace, SeqNo, Stats};

use super::{ClientId, Synced};
use crate::commands::CommandId;
use crate::refusal::Refusal;

/// A namespace, as sessions and held replies name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NamespaceId {
    place: u32,
    generation: u32,
}

impl NamespaceId {
    /// An id for tests that need no namespace.
    #[cfg(test)]
    pub(crate) const fn testing(place: u32) -> Self {
        Self { place, generation: 0 }
    }
}

/// Most namespaces of a server.
pub(crate) const NAMESPACE_COUNT_MAX: usize = 64 * 1024;

/// A namespace and what the server keeps about it.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) name: Name,
    pub(crate) namespace: Result<Namespace, Absence>,
    /// Whether it is being made, and nobody knows of it yet.
    pub(crate) is_coming: bool,
    /// Clients whose requests wait until it is back.
    pub(crate) waiting: Vec<ClientId>,
    /// Syncs that ended while it was away.
    pub(crate) late_syncs: Vec<Synced>,
    /// Tells syncs of this namespace from those of an earlier load.
    pub(crate) epoch: u32,
    /// Whether it was written to in the running batch.
    pub(crate) is_touched: bool,
    /// Whether it has something to be synced.
    pub(crate) is_unsynced: bool,
    /// Clients that wait for a command.
    pub(crate) watchers: Vec<Watcher>,
    /// Clients that follow its writes.
    pub(crate) followers: Vec<Follower>,
    /// Segments that were written while a hook dealt with those before.
    pub(crate) dirty_kept: Vec<u32>,
    /// The segment that was written when somebody last looked.
    pub(crate) active_segment: u32,
    /// Files that were missing when somebody last looked.
    pub(crate) missing_files: Vec<PathBuf>,
    /// Errors of the disk that were counted when somebody last looked, and when they rose.
    pub(crate) errors: ErrorTimes,
    /// When its upkeep is due.
    pub(crate) upkeep: super::upkeep::Schedule,
}

/// Why a namespace can't be used.
#[derive(Debug)]
pub(crate) enum Absence {
    /// Another thread has it, and will bring it back.
    Away {
        /// Which it is.
        id: NamespaceId,
        /// Up to which write its replies may be sent meanwhile.
        acknowledged: SeqNo,
        /// What it was like when it went; a new one was like nothing.
        stats: Option<Box<Stats>>,
    },
    /// There is nothing to serve, and this is why.
    Unavailable(String),
}

impl Absence {
    /// Of a namespace that another thread takes.
    pub(crate) fn away(id: NamespaceId, namespace: &Namespace) -> Self {
        let stats = Some(Box::new(namespace.stats()));
        Self::Away { id, acknowledged: namespace.acknowledged(), stats }
    }

    /// What a client is told, or that its request waits.
    pub(crate) fn refusal(&self) -> Refusal {
        match self {
            Self::Away { id, .. } => Refusal::postponed(*id),
            Self::Unavailable(reason) => reason.clone().into(),
        }
    }
}

/// A client behind a `WAIT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Watcher {
    pub(crate) client: ClientId,
    /// `None` is any.
    pub(crate) command: Option<CommandId>,
}

/// A client behind a `REPL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Follower {
    pub(crate) client: ClientId,
    /// The newest write that was sent to it.
    pub(crate) sent: SeqNo,
    /// The newest write that it says it has.
    pub(crate) has: SeqNo,
}

/// When reading and writing last failed, in seconds of the epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ErrorTimes {
    pub(crate) data_count: u64,
    pub(crate) data_last: u32,
    pub(crate) index_count: u64,
    pub(crate) index_last: u32,
}

impl Entry {
    pub(crate) fn new(name: Name, namespace: Result<Namespace, Absence>) -> Self {
        Self {
            name,
            namespace,
            is_coming: false,
            waiting: Vec::new(),
            late_syncs: Vec::new(),
            epoch: 0,
            is_touched: false,
            is_unsynced: false,
            watchers: Vec::new(),
            followers: Vec::new(),
            dirty_kept: Vec::new(),
            active_segment: 0,
            missing_files: Vec::new(),
            errors: ErrorTimes::default(),
            upkeep: super::upkeep::Schedule::default(),
        }
    }

    /// One that is being made. [`Namespaces::insert`] gives it its id.
    pub(crate) fn coming(name: Name) -> Self {
        let id = NamespaceId { place: 0, generation: 0 };
        let away = Absence::Away { id, acknowledged: SeqNo(0), stats: None };
        Self { is_coming: true, ..Self::new(name, Err(away)) }
    }

    /// The namespace, or why it can't be served.
    pub(crate) fn loaded(&mut self) -> Result<&mut Namespace, Refusal> {
        self.namespace.as_mut().map_err(|absence| absence.refusal())
    }

    /// In numbers: as it is, or as it was when another thread took it. `None` if there is nothing to
    /// serve.
    pub(crate) fn stats(&self) -> Option<Stats> {
        match &self.namespace {
            Ok(namespace) => Some(namespace.stats()),
            Err(Absence::Away { stats, .. }) => stats.as_deref().cloned(),
            Err(Absence::Unavailable(_)) => None,
        }
    }

    /// Whether another thread has it.
    pub(crate) fn is_away(&self) -> bool {
        matches!(self.namespace, Err(Absence::Away { .. }))
    }
}

/// All namespaces.
#[derive(Debug, Default)]
pub(crate) struct Namespaces {
    places: Vec<(u32, Option<Entry>)>,
    free: Vec<u32>,
    by_name: HashMap<Vec<u8>, NamespaceId>,
    /// In the order in which they came.
    order: Vec<NamespaceId>,
}

impl Namespaces {
    /// Adds one, whose name is new.
    pub(crate) fn insert(&mut self, mut entry: Entry) -> NamespaceId {
        let name = entry.name.as_bytes().to_vec();
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push((0, None));
            u32::try_from(self.places.len() - 1).expect("there are fewer namespaces")
        });
        let (generation, slot) = &mut self.places[place as usize];
        let id = NamespaceId { place, generation: *generation };
        if let Err(Absence::Away { id: own, .. }) = &mut entry.namespace {
            *own = id;
        }
        *slot = Some(entry);
        self.by_name.insert(name, id);
        self.order.push(id);
        id
    }

    /// Takes one out.
    pub(crate) fn remove(&mut self, id: NamespaceId) -> Option<Entry> {
        self.get(id)?;
        let (generation, slot) = self.places.get_mut(id.place as usize)?;
        let entry = slot.take()?;
        *generation = generation.wrapping_add(1);
        self.free.push(id.place);
        self.by_name.remove(entry.name.as_bytes());
        self.order.retain(|other| *other != id);
        Some(entry)
    }

    /// `None` if it was removed.
    pub(crate) fn get(&self, id: NamespaceId) -> Option<&Entry> {
        let (generation, entry) = self.places.get(id.place as usize)?;
        entry.as_ref().filter(|_| *generation == id.generation)
    }

    /// `None` if it was removed.
    pub(crate) fn get_mut(&mut self, id: NamespaceId) -> Option<&mut Entry> {
        let (generation, entry) = self.places.get_mut(id.place as usize)?;
        entry.as_mut().filter(|_| *generation == id.generation)
    }

    /// The namespace of that name.
    pub(crate) fn find(&self, name: &[u8]) -> Option<NamespaceId> {
        self.by_name.get(name).copied()
    }

    /// All of them, oldest first.
    pub(crate) fn ids(&self) -> &[NamespaceId] {
        &self.order
    }

    /// The next one after `id`, or the first.
    pub(crate) fn after(&self, id: Option<NamespaceId>) -> Option<NamespaceId> {
        let place = id.and_then(|id| self.order.iter().position(|other| *other == id));
        let next = place.and_then(|place| self.order.get(place + 1));
        next.or_else(|| self.order.first()).copied()
    }

    /// All entries, oldest first.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.order.iter().filter_map(|id| self.get(*id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &[u8]) -> Entry {
        Entry::new(Name::new(name).unwrap(), Err(Absence::Unavailable("not loaded".to_owned())))
    }

    #[test]
    fn an_id_does_not_outlive_its_namespace() {
        let mut all = Namespaces::default();
        let one = all.insert(entry(b"one"));
        let two = all.insert(entry(b"two"));
        assert_eq!(all.find(b"one"), Some(one));
        assert!(all.remove(one).is_some());
        assert!(all.remove(one).is_none());
        let three = all.insert(entry(b"three"));
        assert!(all.get(one).is_none() && all.get_mut(one).is_none());
        assert_eq!(all.get(three).unwrap().name.as_bytes(), b"three");
        assert_eq!(all.ids(), [two, three]);
        assert_eq!(all.find(b"one"), None);
    }

    #[test]
    fn going_round_reaches_all() {
        let mut all = Namespaces::default();
        assert_eq!(all.after(None), None);
        let one = all.insert(entry(b"one"));
        let two = all.insert(entry(b"two"));
        assert_eq!(all.after(None), Some(one));
        assert_eq!(all.after(Some(one)), Some(two));
        assert_eq!(all.after(Some(two)), Some(one));
    }
}
