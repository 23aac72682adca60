//! What a reservation is, and when it may be believed.
//!
//! A user describes what should run on a node as a *deployment*: a list of workloads, JSON, signed. Its
//! hash stands in a contract on the chain. This crate turns those bytes into a value that the rest of
//! the node may act on, and derives from it every name and address that users and existing nodes expect.
//! There is no I/O in it, no clock, no randomness and no thread: equal bytes give equal answers.
//!
//! ```text
//!  bytes ──[json]──► SignedDeployment ──verify(keys)──► VerifiedDeployment ──► plan
//!            │           │                                    │
//!     Go's reading     validate(): rules of each workload     └─► [derived] names, MACs, addresses
//!        rules         hash(): MD5 of the [challenge]         └─► [capacity]
//! ```
//!
//! Only [`SignedDeployment::verify`] and [`SignedDeployment::recheck`] make a [`VerifiedDeployment`], and
//! both keep the bytes that were signed, so that the hash can be checked again for as long as the
//! contract lives.
//!
//! | module | what |
//! |---|---|
//! | [`json`] | how the grid's JSON is read: names in any case, `null`, duplicates, ranges, error texts |
//! | [`deployment`] | the descriptor, its rules, its states from signed to verified, updates |
//! | [`workload`] | one file a type: fields, rules, challenge, capacity, result |
//! | [`challenge`] | the text that is hashed and signed |
//! | [`signature`] | both schemes, both styles |
//! | [`capacity`] | what a workload takes of a node |
//! | [`derived`] | ids, interface names, MACs and addresses that follow from a deployment |
//! | [`network`], [`run_mode`] | where a grid's chain, relays and services are |
//! | [`limits`] | how much of anything is read |
//!
//! Error texts are part of the protocol where clients look at them; there they are the texts of existing
//! nodes, to the letter. Where an existing node accepts by mistake what can't work, or refuses what
//! should, we do what was meant, and the module says so under *Deviations*.

#![forbid(unsafe_code)]
#![warn(clippy::indexing_slicing)]

pub mod address;
pub mod capacity;
pub mod challenge;
pub mod deployment;
pub mod derived;
pub mod id;
pub mod json;
pub mod limits;
pub mod network;
pub mod run_mode;
pub mod secret;
pub mod signature;
pub mod timestamp;
pub mod workload;

mod excerpt;
mod hex;

pub use deployment::{Deployment, SignedDeployment, VerifiedDeployment};
pub use id::{ContractId, Name, TwinId};
pub use workload::{Workload, WorkloadData, WorkloadType};
