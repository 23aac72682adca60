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
//! | [`news`] | what owners are told of changes |
//! | [`kyc`] | the service that knows which twins are somebody |
//! | [`place`] | where a node is on the map |
//! | [`state`] | what is remembered, and can be done without |
//! | [`health`] | how duties go |
//! | [`node`] | all of it: registered, reachable, doing its duties |

#![forbid(unsafe_code)]

pub mod commands;
pub mod engine;
#[cfg(test)]
mod faults;
mod files;
pub mod health;
pub mod host;
pub mod kyc;
pub mod ledger;
pub mod news;
pub mod node;
mod perf;
pub mod place;
mod power;
mod registrar;
mod seen;
pub mod state;
pub mod store;
#[cfg(test)]
mod testing;
pub mod tfchain;
mod traffic;

pub use engine::{Engine, EngineConfig};
pub use host::Host;
pub use ledger::Ledger;
pub use node::{Node, NodeConfig};
pub use place::Place;
pub use store::{Store, StoreKey};
