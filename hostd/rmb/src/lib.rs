//! The reliable message bus: how twins of the grid talk to one another.
//!
//! A *twin* is somebody on the chain: a deployer, or a node. Twins do not connect to each other; each
//! keeps a websocket open to one or more *relays*, which pass envelopes on and are trusted with
//! nothing. An envelope says from which twin to which twin it goes, is signed with the key of the
//! sender's account on the chain, and usually sealed, so that only the other twin can read it.
//!
//! ```text
//!            ┌───────────────────────────── Peer ─────────────────────────────┐
//!   call ───>│ envelope ─> [seal] ─> [signature] ─> bytes ─> [relay] ─────────┼──> websocket
//!            │                │            │                    │             │
//!            │                └── [twins]: who is twin 7, and what is its key?│
//!            │                ┌────────────┘                    │             │
//!  answer <──┤ uid <─ opened ─┤                                 └─────────────┼<── websocket
//!            │                └─> replay window ─> [server]: commands, limits │
//!            └────────────────────────────────────────────────────────────────┘
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`identity`] | a mnemonic or a seed, and the keys that come of it |
//! | [`signature`] | the 65 bytes that say who wrote something |
//! | [`envelope`] | the message on the wire, its limits, what is signed, when it expires |
//! | [`seal`] | encryption between two twins, versions 1 and 2 |
//! | [`jwt`] | the token that opens a connection to a relay |
//! | [`twins`] | the chain's answers to "who is twin N", cached |
//! | [`relay`] | connections to relays |
//! | [`server`] | commands that others may call here, and how much of it |
//! | [`peer`] | all of it, as something that makes calls and answers them |
//!
//! Version 1 of all this is spoken by every peer of the living grid, and byte-compatible with it. It
//! has weaknesses that can't be repaired within it; two twins that both publish a version 2 key (see
//! `FORMAT.md`) use version 2 with one another and refuse version 1, while either goes on to use
//! version 1 with everyone else.
//!
//! Relays, and every other twin, are hostile: nothing of an envelope is believed before its signature
//! was checked, and there is a limit to everything that they can make us remember or do.

#![forbid(unsafe_code)]
#![warn(clippy::indexing_slicing)]

pub mod envelope;
pub mod identity;
pub mod jwt;
pub mod peer;
mod random;
pub mod relay;
pub mod seal;
pub mod server;
pub mod signature;
pub mod twins;

pub use random::RandomError;
