//! The chain, as deployments see it: contracts, keys, and a place for reports.
//!
//! A trait, so that [`Engine`](crate::Engine) can be tried against a chain that hangs, lies behind or
//! is gone. What matters is that the two kinds of failure are apart: *there is no such contract* is an
//! answer, and may end a deployment; *the chain did not answer* says nothing, and changes nothing.

use std::collections::BTreeSet;
use std::pin::Pin;

use hostd_grid::capacity::Capacity;
use hostd_grid::deployment::Keys;
use hostd_grid::{ContractId, TwinId};

/// Why the chain's answer is not here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// It did not answer. What it would have said is not known.
    #[error("the chain does not answer: {0}")]
    Unreachable(String),
    /// It answered that it won't.
    #[error("{0}")]
    Refused(String),
}

/// An answer that is under way.
pub type Reply<'a, T> = Pin<Box<dyn Future<Output = Result<T, LedgerError>> + Send + 'a>>;

/// A contract, as far as a node is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contract {
    /// Its number.
    pub id: ContractId,
    /// Who pays.
    pub twin_id: TwinId,
    /// Where it stands.
    pub state: ContractState,
    /// What it is about.
    pub subject: Subject,
}

/// Where a contract stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContractState {
    /// It is paid.
    Created,
    /// It was not paid, and may still be.
    Grace,
    /// It is over.
    Deleted,
}

/// What a contract is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A deployment on a node.
    Node {
        /// The node's number.
        node_id: u32,
        /// The deployment's hash, as the chain has it.
        hash: String,
    },
    /// A name, or a whole node.
    Other,
}

/// Something that knows contracts.
pub trait Ledger: Send + Sync {
    /// The contract of that number; none if there is none.
    fn contract(&self, id: ContractId) -> Reply<'_, Option<Contract>>;

    /// Those of these contracts that there are. A failure says nothing of any of them.
    fn contracts(&self, ids: Vec<ContractId>) -> Reply<'_, Vec<Contract>> {
        Box::pin(async move {
            let mut found = Vec::new();
            for id in ids {
                found.extend(self.contract(id).await?);
            }
            Ok(found)
        })
    }

    /// The contracts that this node has, by the chain's own list.
    fn active_contracts(&self) -> Reply<'_, Vec<ContractId>>;

    /// Keys of those twins that exist.
    fn keys(&self, twins: BTreeSet<TwinId>) -> Reply<'_, Keys>;

    /// Whether the grid's operator knows who that twin is; everybody is somebody where nobody asks.
    fn is_verified(&self, twin: TwinId) -> Reply<'_, bool> {
        let _ = twin;
        Box::pin(async { Ok(true) })
    }

    /// Says what deployments take, for which their owners pay.
    fn report_resources(&self, used: Vec<(ContractId, Capacity)>) -> Reply<'_, ()>;
}
