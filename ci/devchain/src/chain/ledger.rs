//! The chain's blocks and states, in memory; the log is what makes them last.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use codec::Decode;
use sp_core::H256;
use sp_runtime::traits::{BlakeTwo256, Hash as _, Header as _};
use sp_state_machine::{StorageCollection, TrieBackendBuilder};
use sp_trie::PrefixedMemoryDB;

use super::{
    ChainError,
    execute::{Backend, Made, STATE_VERSION},
    history::History,
    log::Record,
};
use crate::runtime::Header;

/// After how many blocks the trie forgets its dead nodes.
const PURGE_INTERVAL_BLOCKS: u32 = 64;

/// A block in memory.
pub(super) struct Stored {
    pub(super) hash: H256,
    pub(super) header: Header,
    pub(super) extrinsics: Arc<[Vec<u8>]>,
}

/// All blocks, the state of the head and of every block before it.
pub(super) struct Ledger {
    blocks: Vec<Stored>,
    numbers: HashMap<H256, u32>,
    pub(super) history: History,
    backend: Backend,
    /// The state of one old block that a client calls the runtime at.
    old: Mutex<Option<(u32, Arc<Backend>)>>,
}

impl Ledger {
    /// An empty one, that waits for block 0.
    pub(super) fn new() -> Self {
        Self {
            blocks: Vec::new(),
            numbers: HashMap::new(),
            history: History::default(),
            backend: Backend::default(),
            old: Mutex::new(None),
        }
    }

    /// Takes a block from the log. The trie is built by [`Self::finish`].
    pub(super) fn replay(&mut self, record: Record) -> Result<(), ChainError> {
        let number = self.next_number();
        let parent = self.blocks.last().map_or_else(H256::default, |block| block.hash);
        if record.header.number != number || record.header.parent_hash != parent {
            return Err(ChainError::NotAChain { number });
        }
        for (key, value) in &record.changes {
            self.history.write(number, key, value.as_deref());
        }
        self.push(record.header, record.extrinsics);
        Ok(())
    }

    /// Builds the state of the head, which must have the root that its header names.
    pub(super) fn finish(&mut self) -> Result<(), ChainError> {
        let head = self.head();
        let number = head.header.number;
        let expected = head.header.state_root;
        self.backend = self.build(number);
        let found = *self.backend.root();
        if found == expected {
            Ok(())
        } else {
            Err(ChainError::WrongState { number, expected, found })
        }
    }

    /// Takes a block that was just made, and answers what the log must keep.
    pub(super) fn commit(&mut self, made: Made) -> Record {
        let number = made.header.number;
        let mut db = core::mem::take(&mut self.backend).into_storage();
        db.consolidate(made.changes.transaction);
        if number.is_multiple_of(PURGE_INTERVAL_BLOCKS) {
            db.purge();
        }
        let root = made.changes.transaction_storage_root;
        self.backend = TrieBackendBuilder::<PrefixedMemoryDB<BlakeTwo256>, _>::new(db, root).build();
        let changes: StorageCollection = made.changes.main_storage_changes;
        for (key, value) in &changes {
            self.history.write(number, key, value.as_deref());
        }
        self.push(made.header.clone(), made.extrinsics.clone());
        Record { header: made.header, extrinsics: made.extrinsics, changes }
    }

    fn push(&mut self, header: Header, extrinsics: Vec<Vec<u8>>) {
        let hash = header.hash();
        self.numbers.insert(hash, header.number);
        self.blocks.push(Stored { hash, header, extrinsics: extrinsics.into() });
    }

    fn next_number(&self) -> u32 {
        // A chain is full long before: see `make_block`.
        u32::try_from(self.blocks.len()).unwrap_or(u32::MAX)
    }

    /// Whether there is not even block 0.
    pub(super) fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// The newest block.
    ///
    /// # Panics
    ///
    /// Before block 0 is there, which no caller outside of opening sees.
    pub(super) fn head(&self) -> &Stored {
        match self.blocks.last() {
            Some(head) => head,
            None => panic!("a chain has its block 0 from the start"),
        }
    }

    /// The block of this height.
    pub(super) fn block(&self, number: u32) -> Option<&Stored> {
        self.blocks.get(number as usize)
    }

    /// The height of the block with this hash.
    pub(super) fn number(&self, hash: &H256) -> Option<u32> {
        self.numbers.get(hash).copied()
    }

    /// The state of the head.
    pub(super) fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Runs `f` with the state after `number`.
    pub(super) fn with_state<R>(&self, number: u32, f: impl FnOnce(&Backend) -> R) -> R {
        if number == self.head().header.number {
            return f(&self.backend);
        }
        let cached = {
            let mut old = self.old.lock().unwrap_or_else(PoisonError::into_inner);
            match &*old {
                Some((at, backend)) if *at == number => backend.clone(),
                Some(_) | None => {
                    let backend = Arc::new(self.build(number));
                    *old = Some((number, backend.clone()));
                    backend
                }
            }
        };
        f(&cached)
    }

    /// What `key` held after block `number`, as a `V`.
    pub(super) fn value<V: Decode>(&self, key: &[u8], number: u32) -> Option<V> {
        V::decode(&mut self.history.get(key, number)?).ok()
    }

    fn build(&self, number: u32) -> Backend {
        let pairs: StorageCollection = self
            .history
            .pairs(&[], None, number)
            .map(|(key, value)| (key.to_vec(), Some(value.to_vec())))
            .collect();
        Backend::from((vec![(None, pairs)], STATE_VERSION))
    }
}

/// Block 0 with this state.
pub(super) fn genesis_record(storage: sp_runtime::Storage) -> Record {
    let changes: StorageCollection =
        storage.top.into_iter().map(|(key, value)| (key, Some(value))).collect();
    let backend = Backend::from((vec![(None, changes.clone())], STATE_VERSION));
    let extrinsics_root = BlakeTwo256::ordered_trie_root(Vec::new(), STATE_VERSION);
    let header = Header::new(
        0,
        extrinsics_root,
        *backend.root(),
        H256::default(),
        Default::default(),
    );
    Record { header, extrinsics: Vec::new(), changes }
}
