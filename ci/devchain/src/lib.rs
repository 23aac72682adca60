//! A chain that behaves as TFChain does, on one machine.
//!
//! ```text
//!  rpc ──> chain ──> runtime ──> pallets ──> types
//!  (JSON-RPC)  (state, pool, blocks, log)  (FRAME, native)   (what is stored)
//! ```
//!
//! It is a real Substrate runtime, compiled into the program: real metadata, real SCALE, real fees,
//! nonces and mortality, with TFChain's pallets at TFChain's indexes. What it leaves out is
//! consensus: [`DevChain`] makes a block when a transaction waits, and that block is final.
//!
//! Whoever embeds it opens a [`DevChain`], serves it to clients on a socket, and reads it in-process
//! through [`View`] and [`DevChain::subscribe`].
#![forbid(unsafe_code)]

mod chain;
pub mod genesis;
mod legacy;
pub mod pallets;
mod rpc;
pub mod runtime;
mod signing;
pub mod types;

pub use chain::{
    AccountInfo, Block, BlockRef, ChainError, ChainOptions, DevChain, FAST_FORWARD_MAX, PoolError,
    SubmitError, TxStatus, View,
};
pub use rpc::RpcServer;
pub use signing::sign_call;
