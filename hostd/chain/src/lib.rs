//! TFChain, for the node and the command line: the only user of subxt.
//!
//! Everything about the chain is learned from the chain: which pallets there are, how calls and values
//! are encoded, what the errors are called. We name what we need, and the metadata of the connected
//! chain says how it looks today; so an upgrade of the chain, also in the middle of a connection, needs
//! no upgrade of ours.
//!
//! ```text
//!   [reads]  [calls] ── [signing] ── [transaction]      [follow]: block after block of events
//!      │                                  │                 │
//!      └────────────────── [link] ────────┴─────────────────┘
//!                   one connection, deadlines, fail-over, height and genesis checked
//!                            │
//!                      [connection] ── websocket ── endpoint 1 │ endpoint 2 │ …
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`config`] | endpoints, and every limit |
//! | [`types`] | what the chain keeps: twins, farms, nodes, contracts |
//! | [`error`] | what can go wrong, told apart by what a caller should do |
//! | [`reads`] | one method a question |
//! | [`calls`] | what can be asked of the chain, as values |
//! | [`signing`] | the same, signed and sent, with what came of it |
//! | [`event`] | what happened in a block |
//! | [`follow`] | all blocks from one on, catching up first |
//! | [`registration`] | account, terms, twin and node, each made or updated only if it has to be |
//! | [`activation`] | the service that gives a new account its first tokens |
//!
//! **A chain outage never changes a workload.** Whether something is absent or nobody could be asked
//! are two different answers everywhere: `Ok(None)` and [`ChainError::Unreachable`].
//!
//! **What is trusted.** Endpoints are configured, and say what the state is; there are no proofs in this
//! protocol. They can't make us speak to another chain (the genesis is checked), nor go back behind what
//! we have seen, nor keep us waiting, nor fill our memory.

#![forbid(unsafe_code)]
#![warn(clippy::indexing_slicing)]

pub mod activation;
pub mod calls;
mod chain;
pub mod config;
mod connection;
pub mod error;
pub mod event;
pub mod follow;
mod link;
pub mod reads;
pub mod registration;
pub mod signing;
mod text;
mod transaction;
pub mod types;

pub use chain::Chain;
pub use config::ChainConfig;
pub use error::ChainError;
pub use event::Event;
pub use follow::{BlockEvents, Follow};
pub use signing::SigningChain;
pub use types::BlockNumber;
