//! Properties, keys, numbers.

use std::path::{Path, PathBuf};

use super::Namespace;
use crate::index::Index;
use crate::log::header::HEADER_SIZE;
use crate::log::segment::Segment;
use crate::{Derivation, Error, MasterKey, Name, Secret, SeqNo, Settings, Stats};

/// Properties and keys.
impl Namespace {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.claim.name
    }

    /// Its properties.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.descriptor.settings
    }

    /// Changes its properties. The change survives a crash when this returns; blocks on syncs.
    ///
    /// # Errors
    ///
    /// [`Error::ModeOfUsed`], [`Error::DiskFull`], [`Error::File`].
    pub fn update(&mut self, settings: Settings) -> Result<(), Error> {
        let new_mode = settings.mode != self.descriptor.settings.mode;
        // An encrypted namespace without its key may hold anything.
        if new_mode && (self.numbers.last > 0 || self.keys.is_none()) {
            return Err(Error::ModeOfUsed);
        }
        let old = std::mem::replace(&mut self.descriptor.settings, settings);
        if let Err(error) = self.store_descriptor() {
            self.descriptor.settings = old;
            return Err(error);
        }
        if new_mode {
            let mode = self.descriptor.settings.mode;
            self.index = Index::new(mode);
            if let Some(keys) = &mut self.keys {
                keys.mode = mode;
            }
        }
        Ok(())
    }

    /// On a full disk the reserve makes room for it: freezing must work then, too.
    fn store_descriptor(&mut self) -> Result<(), Error> {
        self.descriptor.generation += 1;
        let secret = self.claim.shared.options.secret.as_ref();
        let stored = self.descriptor.store(&self.folders, secret);
        match stored {
            Err(Error::DiskFull) if self.claim.shared.give_reserve_up() => {
                self.descriptor.store(&self.folders, secret)
            }
            stored => stored,
        }
    }

    /// How passphrases become the key of this namespace, if one ever did. Whoever makes a key of another
    /// passphrase for it does it in this way.
    #[must_use]
    pub fn derivation(&self) -> Option<&Derivation> {
        self.descriptor.derivation()
    }

    /// Gives the key of an encrypted namespace, or its passphrase, and loads it.
    ///
    /// # Errors
    ///
    /// [`Error::WrongKey`], [`Error::Derivation`], and as [`Engine::load`](crate::Engine::load).
    pub fn unlock(&mut self, secret: &Secret) -> Result<(), Error> {
        if !self.descriptor.encrypted {
            return Err(Error::WrongKey);
        }
        let key = secret.key(self.descriptor.derivation())?;
        let keys = self.descriptor.keys(Some(&key))?;
        if self.keys.is_some() {
            return Ok(());
        }
        self.keys = Some(keys);
        if let Err(error) = self.load_log() {
            self.keys = None;
            self.unload();
            return Err(error);
        }
        self.master = Some(key);
        Ok(())
    }

    /// Seals the namespace's keys with another master key, or another passphrase's.
    ///
    /// # Errors
    ///
    /// [`Error::WrongKey`] if it is not encrypted, or the secret was derived in another way than this
    /// namespace's [`derivation`](Self::derivation); [`Error::KeyNeeded`], [`Error::Derivation`],
    /// [`Error::File`].
    pub fn change_secret(&mut self, secret: &Secret) -> Result<(), Error> {
        let old = self.master()?;
        let before = self.descriptor.clone();
        let changed = self.reseal(&old, secret).and_then(|key| {
            self.store_descriptor()?;
            Ok(key)
        });
        match changed {
            Ok(key) => {
                self.master = Some(key);
                Ok(())
            }
            Err(error) => {
                self.descriptor = before;
                Err(error)
            }
        }
    }

    fn reseal(&mut self, old: &MasterKey, secret: &Secret) -> Result<MasterKey, Error> {
        let storage = &*self.folders.storage;
        let key = self.descriptor.first_key(storage, secret)?;
        self.descriptor.reseal(storage, old, &key)?;
        Ok(key)
    }

    /// Encrypts new records with a new key. Compaction rewrites older segments step by step, then
    /// the old key is forgotten.
    ///
    /// # Errors
    ///
    /// As [`change_secret`](Self::change_secret) and [`rotate`](Self::rotate).
    pub fn rotate_data_key(&mut self) -> Result<(), Error> {
        let master = self.master()?;
        let before = self.descriptor.clone();
        self.descriptor.add_data_key(&*self.folders.storage, &master)?;
        let keys = self.descriptor.keys(Some(&master))?;
        if let Err(error) = self.store_descriptor() {
            self.descriptor = before;
            return Err(error);
        }
        self.keys = Some(keys);
        self.rotate().map(drop)
    }

    /// Data keys that no segment uses any more leave the descriptor.
    pub(super) fn forget_data_keys(&mut self) {
        let Some(keys) = self.keys.as_mut().filter(|keys| keys.sealers.len() > 1) else { return };
        let segments = &self.segments;
        let used = |key| segments.iter().any(|segment| segment.header.key_id == key);
        if self.descriptor.forget_data_keys(used) {
            let current = keys.current;
            keys.sealers.retain(|key, _| *key == current || used(*key));
            // If it can't be stored now, the key is forgotten with a later change.
            let _ = self.store_descriptor();
        }
    }

    fn master(&self) -> Result<MasterKey, Error> {
        if !self.descriptor.encrypted {
            return Err(Error::WrongKey);
        }
        self.master.clone().ok_or(Error::KeyNeeded)
    }

    fn unload(&mut self) {
        self.index = Index::new(self.descriptor.settings.mode);
        self.segments.clear();
        self.open_files.clear();
        self.tail = None;
        self.numbers = super::Numbers::default();
    }

    /// The namespace in numbers.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let last = self.segments.last();
        Stats {
            entry_count: self.numbers.entry_count,
            value_size: self.numbers.value_size,
            data_file_size: self.file_size(),
            index_file_size: self.segments.iter().map(|segment| segment.index_size).sum(),
            live_record_size: self.numbers.live_size,
            index_memory_size: self.index.memory_size(),
            next_id: self.numbers.next_id,
            last: SeqNo(self.numbers.last),
            durable: SeqNo(self.numbers.durable),
            active_segment: last.map_or(0, Segment::id),
            active_offset: last.map_or(HEADER_SIZE as u64, |segment| segment.end),
            segment_count: self.segments.len() as u64,
            quarantined_segments: self
                .segments
                .iter()
                .filter(|segment| segment.damaged)
                .map(Segment::id)
                .collect(),
            damaged_record_count: self.damaged_record_count(),
            torn_size: self.counters.torn_size,
            data_error_count: self.counters.data_error_count,
            index_error_count: self.counters.index_error_count,
            disk_full: self.claim.shared.disk_full(),
            key_needed: self.keys.is_none(),
            encrypted: self.descriptor.encrypted,
            sync_count: self.counters.sync_count,
            reclaimed_size: self.counters.reclaimed_size,
        }
    }

    pub(super) fn damaged_record_count(&self) -> u64 {
        self.damage.len() as u64 + self.counters.hole_count
    }

    /// Segments written or replaced since the last [`reset_dirty`](Self::reset_dirty), in order.
    #[must_use]
    pub fn dirty_segments(&self) -> Vec<u32> {
        self.segments.iter().filter(|segment| segment.dirty).map(Segment::id).collect()
    }

    /// Forgets which segments were written.
    pub fn reset_dirty(&mut self) {
        self.segments.iter_mut().for_each(|segment| segment.dirty = false);
    }

    /// Files of segments that are not there, though index files tell of them or they were there before.
    /// Their keys answer [`Error::Damaged`]. Whoever puts a file back heals its keys: those that are
    /// read from now on, all of them when the namespace is loaded next.
    #[must_use]
    pub fn missing_files(&self) -> Vec<PathBuf> {
        let missing = self.segments.iter().filter(|segment| segment.missing);
        missing.map(|segment| self.folders.data_file(segment.id())).collect()
    }

    /// Folder of its segments `d0`, `d1`, ….
    #[must_use]
    pub fn data_folder(&self) -> &Path {
        &self.folders.data
    }

    /// Folder of its index files `i0`, `i1`, ….
    #[must_use]
    pub fn index_folder(&self) -> &Path {
        &self.folders.index
    }
}
