//! The machine's disks and the node's own folder, from the start on.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hostd_node::host::Module;
use tracing::{error, warn};

use super::{Config, Inner, OpenError};
use crate::storage::Storage;
use crate::storage::disks::{self, DiskUse, Found, Rest};
use crate::storage::node_folder::{IN_MEMORY, NodeFolder};

/// How often the node's folder is fitted to what is in it.
const FIT_INTERVAL: Duration = Duration::from_secs(5 * 60);
/// How often it is looked which hard disks nobody uses (`reference: zero-os 4.4`).
const REST_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// Names of the pools that there once were.
const NAMES: &str = "pools.json";
/// Which of them has what.
const LEDGER: &str = "spaces.json";
/// Written and removed to see whether the node's folder can be.
const PROBE: &str = ".probe";
/// Digits in the parts of a number that is unique in the world, with the dashes between them.
const NUMBER_PARTS: [usize; 5] = [8, 4, 4, 4, 12];

/// What was found.
pub(super) struct Disks {
    found: Vec<Found>,
    /// None if the configuration wants none.
    folder: Mutex<Option<NodeFolder>>,
    /// Hard disks that nobody uses.
    rest: Mutex<Rest>,
}

impl Config {
    /// Prepares disks, mounts the node's own folder, and takes all pools.
    pub(super) fn open_disks(&mut self) -> Result<(Disks, Storage), OpenError> {
        let mut prepared = disks::Prepared::default();
        if self.disks == DiskUse::Auto {
            prepared = disks::prepare(&self.disks()).map_err(OpenError::Disks)?;
        }
        let mut pools = prepared.pools;
        let mut folder = None;
        if let Some(place) = &self.cache {
            // With what works now; which pools there should be, its own state says.
            let all = [self.pools.clone(), pools.clone()].concat();
            let storage = Storage::open(&all)?.with_missing_ssd(self.missing_ssd);
            folder = Some(storage.mount_node_folder(place)?);
        }
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.state);
        made.map_err(|source| OpenError::Io { path: self.state.clone(), source })?;
        if self.disks == DiskUse::Auto {
            let names = self.state.join(NAMES);
            disks::remember(&names, &self.mounts, &mut pools)
                .map_err(|source| OpenError::Io { path: names, source })?;
        }
        self.pools.extend(pools);
        let storage = Storage::open(&self.pools)?.with_missing_ssd(self.missing_ssd);
        let storage = storage.with_ledger(&self.state.join(LEDGER))?;
        Ok((Disks::new(prepared.disks, folder), storage))
    }
}

impl Disks {
    fn new(found: Vec<Found>, folder: Option<NodeFolder>) -> Self {
        Self { found, folder: Mutex::new(folder), rest: Mutex::default() }
    }

    /// Bytes that the node keeps of its SSDs; `otherwise` if it has no folder of its own there.
    pub(super) fn reserved(&self, otherwise: u64) -> u64 {
        match &*self.folder() {
            Some(NodeFolder::Pool(space)) => space.size,
            Some(NodeFolder::Memory) => 0,
            None => otherwise,
        }
    }

    /// How disks and the node's folder are, as parts of the node.
    pub(super) fn modules(&self, state: &Path) -> BTreeMap<String, Module> {
        let mut modules = BTreeMap::new();
        // While disks are told to rest, which takes its time, nobody waits for this word.
        let rest = self.rest.try_lock().ok();
        for disk in &self.found {
            // Of a pool, the pool says what is wrong.
            let mut status = match &disk.pool {
                Some(pool) => format!("{} bytes, {}: {pool}", disk.size, disk.what),
                None => format!("{} bytes, {}", disk.size, disk.what),
            };
            if rest.as_ref().is_some_and(|rest| rest.rests(&disk.name)) {
                status.push_str(", rests");
            }
            let module = Module { status, error: String::new() };
            modules.insert(format!("disk-{}", disk.name), module);
        }
        let status = match &*self.folder() {
            Some(NodeFolder::Pool(space)) => format!("{} bytes of {}", space.size, space.pool),
            Some(NodeFolder::Memory) => "in memory".to_owned(),
            None => String::new(),
        };
        let problem = match write_probe(state) {
            Ok(()) => self.unfit().unwrap_or_default().to_owned(),
            Err(error) => format!("the node's own folder can't be written: {error}"),
        };
        modules.insert("cache".to_owned(), Module { status, error: problem });
        modules
    }

    /// Why a machine with such disks can't be a node; none if it can.
    pub(super) fn unfit(&self) -> Option<&'static str> {
        matches!(&*self.folder(), Some(NodeFolder::Memory)).then_some(IN_MEMORY)
    }

    fn folder(&self) -> MutexGuard<'_, Option<NodeFolder>> {
        self.folder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rest(&self) -> MutexGuard<'_, Rest> {
        self.rest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Fits the node's folder to what is in it, and has disks rest that nobody uses, for as long as the
/// machine is there.
pub(super) fn look_after(inner: &Arc<Inner>) {
    let weak = Arc::downgrade(inner);
    let look = move || {
        let mut rested: Option<Instant> = None;
        while let Some(inner) = weak.upgrade() {
            inner.fit_folder();
            if rested.is_none_or(|at| at.elapsed() >= REST_INTERVAL) {
                rested = Some(Instant::now());
                inner.rest_disks();
            }
            drop(inner);
            std::thread::sleep(FIT_INTERVAL);
        }
    };
    if let Err(error) = std::thread::Builder::new().name("disks".to_owned()).spawn(look) {
        error!(%error, "disks are not looked after");
    }
}

impl Inner {
    fn fit_folder(&self) {
        let mut folder = self.disks.folder();
        let Some(NodeFolder::Pool(space)) = &mut *folder else { return };
        match self.storage.fit_node_folder(space) {
            Ok(now) => *space = now,
            Err(error) => warn!(%error, "the node's folder keeps its size"),
        }
    }

    fn rest_disks(&self) {
        let empty = self.storage.empty_hard_disks(&self.zdbs.promised());
        self.disks.rest().look(&empty);
    }
}

/// A disk that fails turns read-only: only a write shows it.
fn write_probe(folder: &Path) -> io::Result<()> {
    let path = folder.join(PROBE);
    match File::create(&path) {
        Ok(_) => std::fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::StorageFull => Ok(()),
        Err(error) => Err(error),
    }
}

/// A text in which numbers that are unique in the world, such as those of disks, are cut to what tells
/// them apart: they have been passwords (`reference: zero-os 1.6`).
pub(super) fn without_numbers(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        match number_size(rest.as_bytes()) {
            Some(size) => {
                plain.push_str(&rest[..NUMBER_PARTS[0]]);
                plain.push_str("-***");
                rest = &rest[size..];
            }
            None => {
                plain.push(next);
                rest = &rest[next.len_utf8()..];
            }
        }
    }
    plain
}

/// Bytes of the number that a text begins with.
fn number_size(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    for (index, digits) in NUMBER_PARTS.into_iter().enumerate() {
        if index > 0 {
            if text.get(at) != Some(&b'-') {
                return None;
            }
            at += 1;
        }
        let part = text.get(at..at + digits)?;
        if !part.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        at += digits;
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_disks_reach_nobody_in_full() {
        let number = "1a2b3c4d-5e6f-4711-89ab-cdef01234567";
        let text = format!("pool {number}: /mnt/{number}/zdb é {number}");
        let plain = "pool 1a2b3c4d-***: /mnt/1a2b3c4d-***/zdb é 1a2b3c4d-***";
        assert_eq!(without_numbers(&text), plain);
        for text in
            ["", "1a2b3c4d-5e6f-4711-89ab", "no number", "1a2b3c4d-5e6f-4711-89ab-cdef0123456g"]
        {
            assert_eq!(without_numbers(text), text);
        }
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let disks = |folder| Disks::new(Vec::new(), folder);
        let error = |disks: &Disks, path: &Path| disks.modules(path)["cache"].error.clone();
        assert_eq!(error(&disks(None), folder.path()), "");
        let gone = folder.path().join("absent");
        assert!(error(&disks(None), &gone).starts_with("the node's own folder can't be written"));
        let memory = disks(Some(NodeFolder::Memory));
        assert_eq!(error(&memory, folder.path()), IN_MEMORY);
        assert_eq!((memory.reserved(7), disks(None).reserved(7)), (0, 7));
        // It is no node, in the words of existing ones.
        assert!(memory.unfit().unwrap().starts_with("no disks"));
        assert_eq!(disks(None).unfit(), None);
    }
}
