//! Runs the runtime over a state, and makes blocks with it.
//!
//! Everything the runtime does happens inside [`run`]: with the state as its externalities, and
//! with a panic caught, so that a call which panics costs its own transaction and no more.

use std::panic::{AssertUnwindSafe, catch_unwind};

use sp_core::H256;
use sp_externalities::set_and_run_with_externalities;
use sp_runtime::{
    DispatchError, StateVersion,
    traits::{BlakeTwo256, Header as _},
    transaction_validity::{InvalidTransaction, TransactionValidityError},
};
use sp_state_machine::{Ext, InMemoryBackend, OverlayedChanges, StorageChanges};

use super::ChainError;
use crate::{
    legacy,
    runtime::{Executive, Header, RuntimeCall, UncheckedExtrinsic},
};

/// The state as the runtime sees it: a trie with the roots every Substrate chain has.
pub(super) type Backend = InMemoryBackend<BlakeTwo256>;
/// What a run changed.
pub(super) type Overlay = OverlayedChanges<BlakeTwo256>;

/// How the trie's nodes hold values; `system_version` 0 of the runtime.
pub(super) const STATE_VERSION: StateVersion = StateVersion::V0;

/// The runtime panicked.
#[derive(Debug)]
pub(super) struct Panicked;

/// Runs `f` with the state `backend` under the changes `overlay`.
pub(super) fn run<R>(
    backend: &Backend,
    overlay: &mut Overlay,
    f: impl FnOnce() -> R,
) -> Result<R, Panicked> {
    let mut ext = Ext::new(overlay, backend, None);
    catch_unwind(AssertUnwindSafe(|| set_and_run_with_externalities(&mut ext, f)))
        .map_err(|_| Panicked)
}

/// Runs `f` over `backend` and forgets what it changed.
pub(super) fn read<R>(backend: &Backend, f: impl FnOnce() -> R) -> Result<R, Panicked> {
    run(backend, &mut Overlay::default(), f)
}

/// What became of a transaction.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It is in the block, whether its call succeeded or not.
    Included(Result<(), DispatchError>),
    /// It may be in a later one.
    Later,
    /// It can never be in any.
    Invalid,
}

/// A block that is made but not part of the chain yet.
pub(super) struct Made {
    pub(super) header: Header,
    pub(super) extrinsics: Vec<Vec<u8>>,
    pub(super) changes: StorageChanges<BlakeTwo256>,
}

/// Makes a block on top of `parent`, and says what became of each candidate, in their order. There is no
/// block when there were candidates and none could be included.
pub(super) fn make_block(
    backend: &Backend,
    parent: (u32, H256),
    timestamp_ms: u64,
    candidates: &[&[u8]],
) -> Result<(Option<Made>, Vec<Outcome>), ChainError> {
    let mut overlay = Overlay::default();
    let number = parent.0.checked_add(1).ok_or(ChainError::Full)?;
    let header =
        Header::new(number, H256::default(), H256::default(), parent.1, Default::default());
    run(backend, &mut overlay, || Executive::initialize_block(&header))
        .map_err(|_| ChainError::RuntimePanicked { number })?;
    let now = RuntimeCall::Timestamp(pallet_timestamp::Call::set { now: timestamp_ms });
    let inherent = codec::Encode::encode(&UncheckedExtrinsic::new_bare_legacy(now));
    match apply(backend, &mut overlay, &inherent) {
        Outcome::Included(Ok(())) => {}
        other => return Err(ChainError::Timestamp { number, outcome: format!("{other:?}") }),
    }
    let mut extrinsics = vec![inherent];
    let mut outcomes = Vec::with_capacity(candidates.len());
    for candidate in candidates {
        let outcome = apply(backend, &mut overlay, candidate);
        if matches!(outcome, Outcome::Included(_)) {
            extrinsics.push(candidate.to_vec());
        }
        outcomes.push(outcome);
    }
    if extrinsics.len() == 1 && !candidates.is_empty() {
        return Ok((None, outcomes));
    }
    let header = run(backend, &mut overlay, Executive::finalize_block)
        .map_err(|_| ChainError::RuntimePanicked { number })?;
    let changes = overlay
        .drain_storage_changes(backend, STATE_VERSION)
        .map_err(|reason| ChainError::State { number, reason })?;
    Ok((Some(Made { header, extrinsics, changes }), outcomes))
}

/// Applies one transaction; what it changed stays only if it is included.
fn apply(backend: &Backend, overlay: &mut Overlay, bytes: &[u8]) -> Outcome {
    let Ok(extrinsic) = legacy::decode(bytes) else { return Outcome::Invalid };
    let depth = overlay.transaction_depth();
    overlay.start_transaction();
    let result = run(backend, overlay, || legacy::apply(extrinsic));
    let outcome = match result {
        Ok(Ok(dispatched)) => Outcome::Included(dispatched),
        Ok(Err(TransactionValidityError::Invalid(
            InvalidTransaction::Future | InvalidTransaction::ExhaustsResources,
        ))) => Outcome::Later,
        Ok(Err(_)) => Outcome::Invalid,
        Err(Panicked) => {
            tracing::error!("a transaction made the runtime panic; it is dropped");
            Outcome::Invalid
        }
    };
    let keep = matches!(outcome, Outcome::Included(_));
    // A panic leaves the transactions open that the runtime had opened within ours.
    while overlay.transaction_depth() > depth {
        let last = overlay.transaction_depth() == depth + 1;
        let closed = if keep && last {
            overlay.commit_transaction()
        } else {
            overlay.rollback_transaction()
        };
        if closed.is_err() {
            break;
        }
    }
    outcome
}
