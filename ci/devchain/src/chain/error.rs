//! Why a chain cannot go on, and why a transaction is refused.

use std::path::PathBuf;

use sp_core::H256;
use sp_runtime::transaction_validity::TransactionValidityError;

use super::{FAST_FORWARD_MAX, pool::PoolError};
use crate::types::BlockNumber;

/// Why a chain could not be opened, or make a block.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// The file could not be read or written.
    #[error("{}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another process has it.
    #[error("{}: another process has this chain open", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// It is something else.
    #[error("{}: not the log of a chain", path.display())]
    NotALog {
        /// The file.
        path: PathBuf,
    },
    /// A block in its middle cannot be read.
    #[error("{}: the block at byte {offset} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the block begins.
        offset: u64,
    },
    /// A block does not follow the one before it.
    #[error("block {number} of the log does not follow the one before it")]
    NotAChain {
        /// The height it should have.
        number: BlockNumber,
    },
    /// The state that was read is not the one the last header names.
    #[error("block {number} has the state {found:?}, its header says {expected:?}")]
    WrongState {
        /// The last block.
        number: BlockNumber,
        /// What its header says.
        expected: H256,
        /// What was read.
        found: H256,
    },
    /// Block 0 could not be made.
    #[error("block 0: {0}")]
    Genesis(String),
    /// The runtime panicked outside of any transaction.
    #[error("the runtime panicked while block {number} was made")]
    RuntimePanicked {
        /// The height of the block.
        number: BlockNumber,
    },
    /// The block's own timestamp was refused.
    #[error("the time of block {number} was refused: {outcome}")]
    Timestamp {
        /// The height of the block.
        number: BlockNumber,
        /// What the runtime said.
        outcome: String,
    },
    /// The changes of a block could not be drawn from the state.
    #[error("the state after block {number}: {reason}")]
    State {
        /// The height of the block.
        number: BlockNumber,
        /// Why.
        reason: String,
    },
    /// An earlier write failed, so that nothing more can be promised.
    #[error("the log could not be written before; the chain takes no more blocks")]
    Stopped,
    /// There are as many blocks as numbers.
    #[error("the chain has as many blocks as there are numbers")]
    Full,
    /// More blocks than one fast-forward makes.
    #[error("{asked} blocks are more than the {FAST_FORWARD_MAX} of one fast-forward")]
    TooFar {
        /// How many were asked for.
        asked: u32,
    },
    /// The purse's own transaction failed.
    #[error("the chain's purse could not pay: {0}")]
    Fund(String),
    /// The socket could not be served.
    #[error("the socket")]
    Serve(#[source] std::io::Error),
}

/// Why a transaction was refused.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// It is no transaction of this chain.
    #[error("not a transaction of this chain: {0}")]
    Undecodable(String),
    /// It carries no signature.
    #[error("a transaction is signed, this one is not")]
    Unsigned,
    /// The runtime says it can never be in a block.
    #[error("the runtime refuses it: {0:?}")]
    Invalid(TransactionValidityError),
    /// The runtime panicked over it.
    #[error("the runtime panicked over it")]
    Panicked,
    /// The pool refuses it.
    #[error(transparent)]
    Pool(#[from] PoolError),
}
