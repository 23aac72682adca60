//! What the namespaces of an engine share: the disk, options, the cache's budget, the reserve, and which
//! of them are loaded.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::cache::Budget;
use crate::storage::{Open, Storage};
use crate::{Error, Name, Options};

const RESERVE_NAME: &str = ".reserve";

/// What the namespaces of an engine share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) options: Options,
    pub(crate) cache_budget: Arc<Budget>,
    loaded: Mutex<BTreeSet<Name>>,
    disk_full: AtomicBool,
    /// Serializes changes of the reserve.
    reserve: Mutex<()>,
    _locks: [Box<dyn Debug + Send + Sync>; 2],
}

impl Shared {
    /// Takes the options as they are, and makes the reserve.
    pub(crate) fn new(
        storage: Arc<dyn Storage>,
        options: Options,
        locks: [Box<dyn Debug + Send + Sync>; 2],
    ) -> Self {
        let shared = Self {
            storage,
            cache_budget: Arc::new(Budget::new(options.cache_size)),
            options,
            loaded: Mutex::default(),
            disk_full: AtomicBool::new(false),
            reserve: Mutex::default(),
            _locks: locks,
        };
        shared.make_reserve();
        shared
    }

    pub(crate) fn disk_full(&self) -> bool {
        self.disk_full.load(Ordering::Relaxed)
    }

    /// Gives the reserve back to the disk. Says whether there was one.
    pub(crate) fn give_reserve_up(&self) -> bool {
        let _serialized = self.reserve.lock().unwrap_or_else(PoisonError::into_inner);
        self.disk_full.store(true, Ordering::Relaxed);
        let path = self.options.data.join(RESERVE_NAME);
        let given = (|| {
            let file = self.storage.open(&path, Open::Existing)?;
            let size = file.size()?;
            file.set_size(0)?;
            io::Result::Ok(size)
        })();
        given.is_ok_and(|size| size > 0)
    }

    /// Makes the reserve if the disk has room for it and as much again, so that it is not given up
    /// at once; the disk is not full then.
    pub(crate) fn make_reserve(&self) {
        let _serialized = self.reserve.lock().unwrap_or_else(PoisonError::into_inner);
        let made = (|| {
            let file = self.storage.open(&self.options.data.join(RESERVE_NAME), Open::Empty)?;
            let space = self.storage.space(&self.options.data)?;
            // A small disk shall not be all reserve.
            let size = self.options.reserve_size.min(space.total / 16);
            if space.free < size.saturating_mul(2) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            if size > 0 {
                file.allocate(size)?;
            }
            io::Result::Ok(())
        })();
        self.disk_full.store(made.is_err(), Ordering::Relaxed);
    }
}

/// The right to have a namespace loaded, given back when dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) shared: Arc<Shared>,
    pub(crate) name: Name,
}

impl Claim {
    pub(crate) fn new(shared: &Arc<Shared>, name: &Name) -> Result<Self, Error> {
        let mut loaded = shared.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if !loaded.insert(name.clone()) {
            return Err(Error::Loaded(name.to_string()));
        }
        Ok(Self { shared: Arc::clone(shared), name: name.clone() })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut loaded = self.shared.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.remove(&self.name);
    }
}
