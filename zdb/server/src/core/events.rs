//! What hooks are told, and when (`reference: zdb 2.6`).
//!
//! Names of events, the order of arguments and the file names in them are an interface: the hook of
//! quantum storage reads them.

use super::{Asker, Core, Entry, NamespaceId, Worked};
use crate::hooks::{Event, HookError, MISSING_DATA};
use crate::refusal::Outcome;

impl Core {
    /// Asks the hook whether to serve.
    ///
    /// # Errors
    /// [`HookError`] if it says no.
    pub fn announce_start(&mut self) -> Result<(), HookError> {
        let options = self.engine.options();
        let folders = [&options.index, &options.data].map(|path| path.display().to_string());
        let unix = self.clock.unix;
        let event = Event::new("namespaces-init", folders.to_vec());
        // Its answer is nobody's permission.
        if let Err(error) = self.hooks.ask(event, unix) {
            tracing::warn!(%error, "a hook failed");
        }
        self.hooks.ask(Event::new("ready", Vec::new()), unix)
    }

    /// Tells the hook that serving has ended.
    pub fn announce_end(&mut self) {
        let event = Event::new("close", Vec::new());
        if let Err(error) = self.hooks.ask(event, self.clock.unix) {
            tracing::warn!(%error, "a hook failed");
        }
    }

    /// Tells of something that happened to a namespace.
    pub(crate) fn announce(&mut self, name: &'static str, namespace: &[u8]) {
        if self.hooks.is_enabled() {
            let arguments = vec![String::from_utf8_lossy(namespace).into_owned()];
            self.hooks.tell(Event::new(name, arguments), self.clock.unix);
        }
    }

    /// Tells that a namespace is closed, with its last files.
    pub(crate) fn announce_closing(&mut self, entry: &Entry) {
        let Ok(namespace) = &entry.namespace else { return };
        if !self.hooks.is_enabled() {
            return;
        }
        let active = namespace.stats().active_segment;
        let arguments = vec![
            entry.name.to_string(),
            namespace.index_folder().join(format!("i{active}")).display().to_string(),
            namespace.data_folder().join(format!("d{active}")).display().to_string(),
            numbers(&entry.dirty()),
        ];
        let event = Event::new("namespace-closing", arguments);
        self.hooks.tell(event, self.clock.unix);
    }

    /// Closes the segment that is written, beside the loop.
    pub(crate) fn begin_rotation(&mut self, id: NamespaceId, asker: Option<Asker>) -> Outcome {
        self.begin(id, asker, None, |mut namespace| {
            let rotated = namespace.rotate();
            Worked::done(namespace, rotated, "Cannot start a new file")
        })
    }

    /// Tells of files that went while we serve. What the hook brings back is found when it is wanted.
    pub(crate) fn announce_missing(&mut self, id: NamespaceId) {
        let Some(entry) = self.namespaces.get_mut(id) else { return };
        let Ok(namespace) = &entry.namespace else { return };
        let missing = namespace.missing_files();
        let before = std::mem::replace(&mut entry.missing_files, missing.clone());
        for file in missing.into_iter().filter(|file| !before.contains(file)) {
            let file = file.display().to_string();
            tracing::error!(file, "missing");
            self.hooks.tell(Event::new(MISSING_DATA, vec![file]), self.clock.unix);
        }
    }

    /// Remembers which segment is written.
    pub(crate) fn watch_segments(&mut self, id: NamespaceId) {
        if let Some(entry) = self.namespaces.get_mut(id)
            && let Ok(namespace) = &entry.namespace
        {
            entry.active_segment = namespace.stats().active_segment;
        }
    }

    /// Tells hooks if another segment is written now.
    pub(crate) fn announce_rotation(&mut self, id: NamespaceId) {
        if !self.hooks.is_enabled() {
            return;
        }
        let Some(entry) = self.namespaces.get_mut(id) else { return };
        let Ok(namespace) = &entry.namespace else { return };
        if namespace.is_busy() {
            // The new one's file may not be there yet.
            return;
        }
        let (old, new) = (entry.active_segment, namespace.stats().active_segment);
        if old == new {
            return;
        }
        entry.active_segment = new;
        let path = |folder: &std::path::Path, kind: char, number: u32| {
            folder.join(format!("{kind}{number}")).display().to_string()
        };
        // The one that was just begun is still being written.
        let dirty: Vec<u32> = entry.dirty().into_iter().filter(|number| *number != new).collect();
        let (index, data) = (namespace.index_folder(), namespace.data_folder());
        let arguments = vec![path(index, 'i', old), path(index, 'i', new), numbers(&dirty)];
        let index_event = Event { name: "jump-index", arguments, cleans: Some((id, dirty)) };
        let arguments = vec![path(data, 'd', old), path(data, 'd', new)];
        let data_event = Event::new("jump-data", arguments);
        self.hooks.tell(index_event, self.clock.unix);
        self.hooks.tell(data_event, self.clock.unix);
    }

    /// Takes what hooks answered.
    pub fn finish_hooks(&mut self) {
        for (id, cleaned) in self.hooks.poll(self.clock.now, self.clock.unix) {
            if let Some(entry) = self.namespaces.get_mut(id) {
                let left: Vec<u32> =
                    entry.dirty().into_iter().filter(|number| !cleaned.contains(number)).collect();
                entry.reset_dirty();
                entry.dirty_kept = left;
            }
        }
    }
}

impl Entry {
    /// Segments that were written and that nobody has dealt with, in order.
    pub(crate) fn dirty(&self) -> Vec<u32> {
        let mut dirty = self.dirty_kept.clone();
        if let Ok(namespace) = &self.namespace {
            dirty.extend(namespace.dirty_segments());
        }
        dirty.sort_unstable();
        dirty.dedup();
        dirty
    }

    /// Forgets which segments were written.
    pub(crate) fn reset_dirty(&mut self) {
        self.dirty_kept.clear();
        if let Ok(namespace) = &mut self.namespace {
            namespace.reset_dirty();
        }
    }
}

/// Numbers with spaces between them: one argument of a hook.
fn numbers(numbers: &[u32]) -> String {
    numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")
}
