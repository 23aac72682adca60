//! What makes a machine a node of the grid, without the machine.
//!
//! A node obeys nobody but the chain. Deployments come by message, and count only with their owner's
//! signature and a contract on the chain; what they ask for is done by a [`Host`], which decides
//! nothing.
//!
//! | module | what |
//! |---|---|
//! | [`engine`] | deployments, from message to running workload to the end of their contract |
//! | [`store`] | what was accepted and what became of it, sealed, on disk |
//! | [`ledger`] | the chain as deployments see it |
//! | [`host`] | what can be done to the machine |
//! | [`commands`] | what other twins may ask, by name |
//! | [`tfchain`] | TFChain as that ledger |
//! | [`node`] | all of it: registered, reachable, doing its duties |

#![forbid(unsafe_code)]

pub mod commands;
pub mod engine;
pub mod host;
pub mod ledger;
pub mod node;
pub mod store;
#[cfg(test)]
mod testing;
pub mod tfchain;

pub use engine::{Engine, EngineConfig};
pub use host::Host;
pub use ledger::Ledger;
pub use node::{Node, NodeConfig};
pub use store::{Store, StoreKey};
