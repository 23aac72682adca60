//! What a snapshot keeps of an overlay: which inodes the guest remembers, and by which names they are
//! found. Layers are found by looking the names up again.

use flist_view::filesystem::{Errno, FileSystem, Ino};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::find::Found;
use super::tree::NODE_COUNT_MAX;
use super::{Overlay, host};
use crate::DeviceError;
use crate::fs::host::parents_first;
use crate::fs::{check_image, image_name};

/// All nodes, and the lower layer's hash.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    image: String,
    nodes: Vec<SavedNode>,
}

/// One node.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedNode {
    ino: Ino,
    parent: Ino,
    name: Vec<u8>,
    lookups: u64,
}

impl Overlay {
    /// # Errors
    /// When the guest has a file open that has no name any more.
    pub(super) fn save_tree(&self) -> Result<Value, DeviceError> {
        let mut nodes = Vec::new();
        for (ino, node) in self.tree().iter() {
            if node.name.is_empty() {
                return Err(DeviceError::State(format!(
                    "the guest has file {ino} open, which was deleted: it cannot be found again"
                )));
            }
            nodes.push(SavedNode {
                ino,
                parent: node.parent,
                name: node.name.to_vec(),
                lookups: node.lookups,
            });
        }
        serde_json::to_value(State { image: image_name(&self.lower), nodes })
            .map_err(|error| DeviceError::State(error.to_string()))
    }

    /// # Errors
    /// When `state` makes no sense, or the layers are not as they were.
    pub(super) fn restore_tree(&self, state: Value) -> Result<(), DeviceError> {
        let state: State = serde_json::from_value(state)
            .map_err(|error| DeviceError::State(format!("state of an overlay: {error}")))?;
        if state.nodes.len() > NODE_COUNT_MAX {
            return Err(DeviceError::State(format!("{} inodes are too many", state.nodes.len())));
        }
        check_image(&self.lower, &state.image)?;
        self.forget_all();
        for saved in parents_first(state.nodes, |node| (node.ino, node.parent))? {
            self.restore_node(&saved).map_err(|reason| {
                let name = String::from_utf8_lossy(&saved.name);
                DeviceError::State(format!("file {} ({name:?}): {reason}", saved.ino))
            })?;
        }
        Ok(())
    }

    fn restore_node(&self, saved: &SavedNode) -> Result<(), String> {
        let name = &*saved.name;
        if matches!(name, b"" | b"." | b"..") || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
            return Err("no such name is possible".to_owned());
        }
        let not_as_it_was = |error: Errno| format!("not as it was: {error}");
        let place = self.place(saved.parent).map_err(not_as_it_was)?;
        let found = self.find(place, name).map_err(not_as_it_was)?;
        if !self.is_same(saved.ino, &found) {
            self.drop_found(&found);
            return Err(format!("another file, {}, has its name", found.ino));
        }
        let known = (saved.parent, name);
        let mut tree = self.tree();
        let learned = tree.learn(saved.ino, known, found.place, saved.lookups);
        if saved.ino != found.ino {
            tree.copied_up(saved.ino, found.place);
        }
        drop(tree);
        self.let_go(learned.map_err(|error| error.to_string())?);
        Ok(())
    }

    /// Whether what was found can be what was saved: what was copied up without a mark has another
    /// number when it is found anew.
    fn is_same(&self, ino: Ino, found: &Found) -> bool {
        let kind = found.attributes.mode & host::TYPE_MASK;
        let is_unmarked = found.is_named_above && !matches!(kind, host::REGULAR | host::DIRECTORY);
        let was_below = || self.lower.attributes(ino).map(|below| below.mode & host::TYPE_MASK);
        ino == found.ino || (is_unmarked && ino <= self.number_base && was_below() == Ok(kind))
    }
}
