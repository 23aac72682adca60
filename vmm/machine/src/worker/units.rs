//! The units of one thread: which event is whose, and what is watched for them.
//!
//! An event carries 32 bits of ours: the unit's place in the upper half, and in the lower half
//! which of its watches it is. Kicks come first, then sources.
//!
//! A source is watched through a duplicate of its descriptor. A unit may close a descriptor in the
//! middle of any call; what epoll knows then disappears by itself, and its number may come back for
//! another file. A duplicate stays until we take it out.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;
use vmm_virtio::pci::Failure;
use vmm_virtio::{Interest, Queue, Source, Unit, UnitError};

/// Kicks and sources of one unit, at most.
const WATCH_COUNT_MAX: usize = 1 << 16;

/// How a unit is known to whoever started it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UnitId(pub(super) u64);

/// All units of a thread: the one subscriber of its event manager.
#[derive(Default)]
pub(super) struct Units {
    entries: Vec<Option<Entry>>,
    changes: Vec<Change>,
    is_ending: bool,
}

struct Entry {
    id: UnitId,
    unit: Box<dyn Unit>,
    failure: Arc<dyn Failure>,
    kicks: Vec<(u16, Arc<EventFd>)>,
    sources: Vec<Option<Watched>>,
    deadline: Option<Instant>,
    has_failed: bool,
}

/// A source as we watch it.
struct Watched {
    source: Source,
    duplicate: Arc<OwnedFd>,
    is_seen: bool,
}

/// What is to be told to epoll.
pub(super) enum Change {
    Add { entry: usize, events: Events, watch: Keep },
    Modify { entry: usize, events: Events },
    Remove { descriptor: RawFd, watch: Keep },
}

/// Keeps a descriptor open until epoll has been told.
pub(super) enum Keep {
    Kick(#[expect(dead_code, reason = "held, not used")] Arc<EventFd>),
    Source(#[expect(dead_code, reason = "held, not used")] Arc<OwnedFd>),
}

impl Units {
    /// Adds a unit, and calls it for each of its queues.
    pub(super) fn add(&mut self, id: UnitId, unit: Box<dyn Unit>, failure: Arc<dyn Failure>) {
        let queues = unit.queues();
        let kicks: Vec<_> =
            queues.iter().map(|queue| (queue.index(), queue.shared_kick())).collect();
        let place = self.entries.iter().position(Option::is_none).unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() - 1
        });
        for (watch, (_, kick)) in kicks.iter().enumerate() {
            let set = EventSet::IN | EventSet::EDGE_TRIGGERED;
            let events = Events::with_data(&**kick, data(place, watch), set);
            let watch = Keep::Kick(Arc::clone(kick));
            self.changes.push(Change::Add { entry: place, events, watch });
        }
        let indexes: Vec<_> = kicks.iter().map(|(index, _)| *index).collect();
        drop(queues);
        let sources = Vec::new();
        let (deadline, has_failed) = (None, false);
        self.entries[place] =
            Some(Entry { id, unit, failure, kicks, sources, deadline, has_failed });
        for index in indexes {
            self.call(place, |unit| unit.kicked(index));
        }
    }

    /// Stops a unit and takes its queues.
    pub(super) fn remove(&mut self, id: UnitId) -> Vec<Queue> {
        let is_it = |entry: &Option<Entry>| entry.as_ref().is_some_and(|entry| entry.id == id);
        let place = self.entries.iter().position(is_it);
        let Some(mut entry) = place.and_then(|place| self.entries[place].take()) else {
            return Vec::new();
        };
        entry.unwatch(&mut self.changes);
        entry.unit.stop()
    }

    /// The thread is to end.
    pub(super) fn end(&mut self) {
        self.is_ending = true;
    }

    /// Whether it is.
    pub(super) const fn is_ending(&self) -> bool {
        self.is_ending
    }

    /// How long the thread may sleep; -1 is for ever.
    pub(super) fn timeout_ms(&self) -> i32 {
        let deadlines = self.entries.iter().flatten().filter_map(|entry| entry.deadline);
        deadlines.min().map_or(-1, |deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            i32::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
        })
    }

    /// Calls the units whose deadline has passed.
    pub(super) fn expire(&mut self, now: Instant) {
        for place in 0..self.entries.len() {
            let deadline = self.entries[place].as_ref().and_then(|entry| entry.deadline);
            if deadline.is_some_and(|deadline| deadline <= now) {
                self.call(place, |unit| unit.expired(now));
            }
        }
    }

    /// A unit's watches cannot be what it wants.
    pub(super) fn fail(&mut self, place: usize, error: &UnitError) {
        if let Some(entry) = self.entries.get_mut(place).and_then(Option::as_mut) {
            entry.fail(error, &mut self.changes);
        }
    }

    /// What is to be told to epoll.
    pub(super) fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// The same, told: its room is used again.
    pub(super) fn give_changes(&mut self, changes: Vec<Change>) {
        if self.changes.is_empty() {
            self.changes = changes;
        }
    }

    fn dispatch(&mut self, events: Events) {
        let (place, watch) = place(events.data());
        let Some(entry) = self.entries.get(place).and_then(Option::as_ref) else { return };
        if let Some(&(index, _)) = entry.kicks.get(watch) {
            return self.call(place, |unit| unit.kicked(index));
        }
        let at = watch - entry.kicks.len();
        let Some(Some(watched)) = entry.sources.get(at) else { return };
        let (source, is_over) = (watched.source, is_over(events.event_set()));
        self.call(place, |unit| unit.ready(source.token));
        if is_over {
            self.renew(place, at, source);
        }
    }

    /// Calls a unit, and takes note of what it wants now.
    fn call(&mut self, place: usize, action: impl FnOnce(&mut dyn Unit) -> Result<(), UnitError>) {
        let Some(entry) = self.entries.get_mut(place).and_then(Option::as_mut) else { return };
        if entry.has_failed {
            return;
        }
        let result =
            action(&mut *entry.unit).and_then(|()| entry.refresh(place, &mut self.changes));
        match result {
            Ok(()) => entry.deadline = entry.unit.deadline(),
            Err(error) => entry.fail(&error, &mut self.changes),
        }
    }

    /// What a source led to hung up, yet the unit has the source still. It may have opened another
    /// under the same number, and our duplicate is of the old one.
    fn renew(&mut self, place: usize, at: usize, source: Source) {
        let Some(entry) = self.entries.get_mut(place).and_then(Option::as_mut) else { return };
        let Some(slot) = entry.sources.get_mut(at) else { return };
        let Some(old) = slot.take_if(|watched| is_same(watched.source, source)) else { return };
        old.unwatch(&mut self.changes);
        self.call(place, |_| Ok(()));
    }
}

impl MutEventSubscriber for Units {
    fn init(&mut self, _: &mut EventOps<'_>) {}

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        self.dispatch(events);
        while !self.changes.is_empty() {
            let mut changes = self.take_changes();
            for (place, error) in apply(&mut changes, ops) {
                self.fail(place, &error);
            }
            self.give_changes(changes);
        }
    }
}

/// Tells epoll, and leaves `changes` empty. Returns the units for which that failed.
pub(super) fn apply(changes: &mut Vec<Change>, ops: &mut EventOps<'_>) -> Vec<(usize, UnitError)> {
    let mut failures = Vec::new();
    for change in changes.drain(..) {
        let (entry, result) = match change {
            Change::Add { entry, events, watch: _watch } => (entry, ops.add(events)),
            Change::Modify { entry, events } => (entry, ops.modify(events)),
            Change::Remove { descriptor, watch: _watch } => {
                // Fails if it could not be added: then it is gone all the same.
                let _ = ops.remove(Events::empty_raw(descriptor));
                continue;
            }
        };
        if let Err(error) = result {
            let source = io::Error::other(error.to_string());
            failures
                .push((entry, UnitError::Host { what: "watching a descriptor".into(), source }));
        }
    }
    failures
}

impl Entry {
    /// Brings what is watched in line with what the unit wants.
    fn refresh(&mut self, place: usize, changes: &mut Vec<Change>) -> Result<(), UnitError> {
        let Self { unit, sources, kicks, .. } = self;
        for watched in sources.iter_mut().flatten() {
            watched.is_seen = false;
        }
        let mut result = Ok(());
        unit.visit_sources(&mut |source| {
            let is_it = |slot: &&mut Option<Watched>| {
                slot.as_ref().is_some_and(|watched| is_same(watched.source, source))
            };
            let found = sources.iter_mut().enumerate().find(|(_, slot)| is_it(slot));
            if let Some((at, Some(watched))) = found {
                watched.is_seen = true;
                watched.set_interest(source.interest, place, kicks.len() + at, changes);
                return;
            }
            match Watched::new(source) {
                Ok(mut watched) => {
                    let free = sources.iter().position(Option::is_none);
                    let at = free.unwrap_or(sources.len());
                    assert!(kicks.len() + at < WATCH_COUNT_MAX, "a unit with too many sources");
                    watched.set_interest(source.interest, place, kicks.len() + at, changes);
                    if free.is_none() {
                        sources.push(None);
                    }
                    sources[at] = Some(watched);
                }
                Err(error) => result = Err(error),
            }
        });
        for slot in sources {
            if let Some(gone) = slot.take_if(|watched| !watched.is_seen) {
                gone.unwatch(changes);
            }
        }
        result
    }

    fn fail(&mut self, error: &UnitError, changes: &mut Vec<Change>) {
        if !self.has_failed {
            self.has_failed = true;
            self.deadline = None;
            self.unwatch(changes);
            self.failure.failed(error);
        }
    }

    fn unwatch(&mut self, changes: &mut Vec<Change>) {
        for (_, kick) in self.kicks.drain(..) {
            let descriptor = kick.as_raw_fd();
            changes.push(Change::Remove { descriptor, watch: Keep::Kick(kick) });
        }
        for watched in self.sources.drain(..).flatten() {
            watched.unwatch(changes);
        }
    }
}

impl Watched {
    /// Not watched yet.
    fn new(source: Source) -> Result<Self, UnitError> {
        // SAFETY: a unit keeps its sources open as long as it names them, and it named this one
        // just now.
        let descriptor = unsafe { BorrowedFd::borrow_raw(source.descriptor) };
        let duplicate = rustix::io::fcntl_dupfd_cloexec(descriptor, 0).map_err(|error| {
            UnitError::Host { what: "duplicating a descriptor".into(), source: error.into() }
        })?;
        let source = Source { interest: Interest::None, ..source };
        Ok(Self { source, duplicate: Arc::new(duplicate), is_seen: true })
    }

    fn set_interest(
        &mut self,
        interest: Interest,
        entry: usize,
        watch: usize,
        changes: &mut Vec<Change>,
    ) {
        let old = std::mem::replace(&mut self.source.interest, interest);
        if old == interest {
            return;
        }
        let descriptor = self.duplicate.as_raw_fd();
        let Some(set) = event_set(interest) else {
            // Not an empty set: epoll would go on to report that the other side hung up.
            let watch = Keep::Source(Arc::clone(&self.duplicate));
            changes.push(Change::Remove { descriptor, watch });
            return;
        };
        let events = Events::with_data_raw(descriptor, data(entry, watch), set);
        changes.push(if old == Interest::None {
            let watch = Keep::Source(Arc::clone(&self.duplicate));
            Change::Add { entry, events, watch }
        } else {
            Change::Modify { entry, events }
        });
    }

    fn unwatch(self, changes: &mut Vec<Change>) {
        if self.source.interest != Interest::None {
            let descriptor = self.duplicate.as_raw_fd();
            changes.push(Change::Remove { descriptor, watch: Keep::Source(self.duplicate) });
        }
    }
}

fn is_same(a: Source, b: Source) -> bool {
    (a.descriptor, a.token) == (b.descriptor, b.token)
}

/// Whether a descriptor's other side is gone.
fn is_over(set: EventSet) -> bool {
    set.intersects(EventSet::HANG_UP | EventSet::ERROR | EventSet::READ_HANG_UP)
}

const fn event_set(interest: Interest) -> Option<EventSet> {
    match interest {
        Interest::None => None,
        Interest::Read => Some(EventSet::IN),
        Interest::Write => Some(EventSet::OUT),
        Interest::ReadWrite => Some(EventSet::IN.union(EventSet::OUT)),
    }
}

/// What an event carries.
fn data(entry: usize, watch: usize) -> u32 {
    let half = |value: usize| u32::from(u16::try_from(value).expect("a thread has few units"));
    half(entry) << 16 | half(watch)
}

const fn place(data: u32) -> (usize, usize) {
    (data as usize >> 16, data as usize & 0xffff)
}
