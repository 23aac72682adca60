//! What a snapshot keeps of a host directory: which inodes the guest remembers, and by which names
//! they are found.

use std::collections::HashMap;
use std::os::fd::AsFd;

use flist_view::filesystem::{FileSystem, Ino, ROOT};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::nodes::NODE_COUNT_MAX;
use super::{HostDirectory, sys};
use crate::DeviceError;

/// All nodes.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    nodes: Vec<SavedNode>,
}

/// One node.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedNode {
    ino: Ino,
    generation: u64,
    parent: Ino,
    name: Vec<u8>,
    lookups: u64,
}

impl HostDirectory {
    /// # Errors
    /// When the guest has a file open that has no name any more.
    pub(super) fn save_nodes(&self) -> Result<Value, DeviceError> {
        let nodes = self.nodes();
        let mut saved = Vec::new();
        for (ino, node) in nodes.iter() {
            if node.name.is_empty() {
                return Err(DeviceError::State(format!(
                    "the guest has file {ino} open, which was deleted: it cannot be found again"
                )));
            }
            saved.push(SavedNode {
                ino,
                generation: node.generation,
                parent: node.parent,
                name: node.name.to_vec(),
                lookups: node.lookups,
            });
        }
        drop(nodes);
        serde_json::to_value(State { nodes: saved })
            .map_err(|error| DeviceError::State(error.to_string()))
    }

    /// # Errors
    /// When `state` makes no sense, or the directory is not as it was.
    pub(super) fn restore_nodes(&self, state: Value) -> Result<(), DeviceError> {
        let state: State = serde_json::from_value(state)
            .map_err(|error| DeviceError::State(format!("state of a host directory: {error}")))?;
        if state.nodes.len() > NODE_COUNT_MAX {
            return Err(DeviceError::State(format!("{} inodes are too many", state.nodes.len())));
        }
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
        let found = self
            .path(saved.parent)
            .and_then(|parent| sys::stat_at(parent.as_fd(), name))
            .and_then(|stat| self.check(&stat, saved.ino, saved.generation))
            .map_err(|error| format!("not as it was: {error}"))?;
        let learned = self.nodes().learn(saved.parent, name, &found, saved.lookups);
        learned.map_err(|error| error.to_string())
    }
}

/// Sorts nodes, of which `ids` tells the number and the parent's, so that each comes after its parent.
pub(in crate::fs) fn parents_first<T>(
    nodes: Vec<T>,
    ids: impl Fn(&T) -> (Ino, Ino),
) -> Result<Vec<T>, DeviceError> {
    let count = nodes.len();
    let mut children: HashMap<Ino, Vec<T>> = HashMap::new();
    for node in nodes {
        children.entry(ids(&node).1).or_default().push(node);
    }
    let mut sorted = children.remove(&ROOT).unwrap_or_default();
    let mut next = 0;
    while let Some(node) = sorted.get(next) {
        next += 1;
        let below = children.remove(&ids(node).0).unwrap_or_default();
        sorted.extend(below);
    }
    if sorted.len() != count {
        return Err(DeviceError::State("inodes that no directory leads to".to_owned()));
    }
    Ok(sorted)
}
