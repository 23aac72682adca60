//! Every value the state ever had, by key and block: what makes old blocks readable.
//!
//! The trie holds the state of the head alone. Clients also ask what a key held at an older block, so
//! each key keeps the list of its values with the block that wrote them. Only changes are kept: a
//! chain's memory grows with what its blocks wrote, and not with the size of its state.

use std::collections::BTreeMap;

/// A value, or `None` where the key was removed.
type Value = Option<Box<[u8]>>;

/// The values of one key, oldest first.
type Versions = Vec<(u32, Value)>;

/// The state at every block.
#[derive(Default)]
pub(super) struct History {
    keys: BTreeMap<Box<[u8]>, Versions>,
}

impl History {
    /// Takes what `block` wrote. Blocks come in order.
    pub(super) fn write(&mut self, block: u32, key: &[u8], value: Option<&[u8]>) {
        let value = value.map(Box::from);
        match self.keys.get_mut(key) {
            Some(versions) => versions.push((block, value)),
            None => {
                self.keys.insert(Box::from(key), vec![(block, value)]);
            }
        }
    }

    /// What `key` held after `block`.
    pub(super) fn get(&self, key: &[u8], block: u32) -> Option<&[u8]> {
        at(self.keys.get(key)?, block)
    }

    /// The pairs whose keys begin with `prefix` and follow `after`, as they were after `block`.
    pub(super) fn pairs<'a>(
        &'a self,
        prefix: &'a [u8],
        after: Option<&'a [u8]>,
        block: u32,
    ) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        use core::ops::Bound::{Excluded, Included, Unbounded};
        let start = match after {
            Some(after) if after >= prefix => Excluded(after),
            Some(_) | None => Included(prefix),
        };
        self.keys
            .range::<[u8], _>((start, Unbounded))
            .take_while(move |(key, _)| key.starts_with(prefix))
            .filter_map(move |(key, versions)| Some((&**key, at(versions, block)?)))
    }

    /// Whether `block` itself wrote `key`.
    pub(super) fn written_at(&self, key: &[u8], block: u32) -> bool {
        self.keys
            .get(key)
            .is_some_and(|versions| versions.binary_search_by_key(&block, |(at, _)| *at).is_ok())
    }
}

fn at(versions: &Versions, block: u32) -> Option<&[u8]> {
    let later = versions.partition_point(|(written, _)| *written <= block);
    versions.get(later.checked_sub(1)?)?.1.as_deref()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a copy of the whole state for every block.
        #[test]
        fn the_past_is_as_it_was(
            blocks in prop::collection::vec(
                prop::collection::btree_map(
                    prop::collection::vec(0_u8..3, 0..3),
                    prop::option::of(any::<u8>()),
                    0..6,
                ),
                1..20,
            ),
        ) {
            let mut history = History::default();
            let mut states = Vec::new();
            let mut state = BTreeMap::new();
            for (number, changes) in (0_u32..).zip(&blocks) {
                for (key, value) in changes {
                    history.write(number, key, value.map(|value| [value]).as_ref().map(|v| &v[..]));
                    match value {
                        Some(value) => { state.insert(key.clone(), *value); }
                        None => { state.remove(key); }
                    }
                }
                states.push(state.clone());
            }
            for (number, state) in (0_u32..).zip(&states) {
                for prefix in [&[][..], &[1], &[2, 2]] {
                    let expected: Vec<(Vec<u8>, u8)> = state
                        .iter()
                        .filter(|(key, _)| key.starts_with(prefix))
                        .map(|(key, value)| (key.clone(), *value))
                        .collect();
                    let found: Vec<(Vec<u8>, u8)> = history
                        .pairs(prefix, None, number)
                        .map(|(key, value)| (key.to_vec(), value[0]))
                        .collect();
                    prop_assert_eq!(&found, &expected);
                    for (key, value) in &expected {
                        prop_assert_eq!(history.get(key, number), Some(&[*value][..]));
                    }
                    if let Some(((first, _), rest)) = expected.split_first() {
                        let after = history.pairs(prefix, Some(first), number).count();
                        prop_assert_eq!(after, rest.len());
                    }
                }
            }
        }
    }
}
