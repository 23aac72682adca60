//! What a node remembers to be quicker, and can do without.
//!
//! Deployments are in the [store](crate::store), and the chain says everything else. But a node that was
//! started without a chain to ask has to know its numbers, and one that was away for a minute need not
//! compare everything when it can read a minute of blocks. That is kept here. Whatever is absent, old or
//! wrong costs time and nothing else; so nothing here fails.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Values by name. Each may be lost, and none is ever half there.
pub trait StateStore: Send + Sync {
    /// What was put there last, or before.
    fn get(&self, name: &str) -> Option<Vec<u8>>;

    /// Remembers it, soon for good.
    fn put(&self, name: &str, value: &[u8]);
}

/// Remembers until the process ends: for a node whose disk does not even take that.
#[derive(Debug, Default)]
pub struct MemoryState(Mutex<BTreeMap<String, Vec<u8>>>);

impl StateStore for MemoryState {
    fn get(&self, name: &str) -> Option<Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    fn put(&self, name: &str, value: &[u8]) {
        let mut values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        values.insert(name.to_owned(), value.to_owned());
    }
}

/// What the numbers are kept as.
const NUMBERS: &str = "numbers";
/// What the last block is kept as.
const CURSOR: &str = "cursor";

/// A node's numbers on a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Numbers {
    pub(crate) node_id: u32,
    pub(crate) twin_id: u32,
    /// Whose they are.
    account: [u8; 32],
    /// On which chain, by its first block.
    genesis: Option<[u8; 32]>,
}

impl Numbers {
    pub(crate) fn new(
        node_id: u32,
        twin_id: u32,
        account: [u8; 32],
        genesis: Option<[u8; 32]>,
    ) -> Self {
        Self { node_id, twin_id, account, genesis }
    }

    /// The numbers of that account, as far as they are remembered. A chain that is known to be another
    /// one gave it others.
    pub(crate) fn recall(
        state: &dyn StateStore,
        account: [u8; 32],
        genesis: Option<[u8; 32]>,
    ) -> Option<Self> {
        let numbers: Self = recall(state, NUMBERS)?;
        let is_other_chain =
            matches!((numbers.genesis, genesis), (Some(before), Some(now)) if before != now);
        (numbers.account == account && !is_other_chain).then_some(numbers)
    }

    pub(crate) fn remember(&self, state: &dyn StateStore) {
        remember(state, NUMBERS, self);
    }
}

/// The last block whose events were obeyed.
pub(crate) fn cursor(state: &dyn StateStore) -> Option<u32> {
    recall(state, CURSOR)
}

/// Events up to that block were obeyed.
pub(crate) fn set_cursor(state: &dyn StateStore, block: u32) {
    remember(state, CURSOR, &block);
}

/// A value, if it is what it should be.
pub(crate) fn recall<T: for<'de> Deserialize<'de>>(
    state: &dyn StateStore,
    name: &str,
) -> Option<T> {
    serde_json::from_slice(&state.get(name)?).ok()
}

/// Remembers a value as JSON.
pub(crate) fn remember(state: &dyn StateStore, name: &str, value: &impl Serialize) {
    // All that is remembered is plain numbers, lists and texts.
    let value = serde_json::to_vec(value).unwrap_or_else(|_| Value::Null.to_string().into_bytes());
    state.put(name, &value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_of_one_account_on_one_chain() {
        let state = MemoryState::default();
        assert_eq!(Numbers::recall(&state, [1; 32], None), None);
        let numbers = Numbers::new(3, 4, [1; 32], Some([9; 32]));
        numbers.remember(&state);
        assert_eq!(Numbers::recall(&state, [1; 32], None), Some(numbers.clone()));
        assert_eq!(Numbers::recall(&state, [1; 32], Some([9; 32])), Some(numbers));
        assert_eq!(Numbers::recall(&state, [1; 32], Some([8; 32])), None);
        assert_eq!(Numbers::recall(&state, [2; 32], None), None);
    }

    #[test]
    fn what_is_damaged_is_absent() {
        let state = MemoryState::default();
        set_cursor(&state, 7);
        assert_eq!(cursor(&state), Some(7));
        state.put(CURSOR, b"\xff");
        assert_eq!(cursor(&state), None);
    }
}
