//! The pallets of TFChain that a node, a deployer and a proxy use, by its own indexes and rules.
//!
//! Calls, storage, events and errors carry the numbers of spec version 152; `tests/metadata.rs` compares
//! them and lists what we leave out on purpose. Two things differ by design: billing happens in the
//! block itself (TFChain's validators send a transaction for each bill), and the council is one
//! account, `//Alice`.

pub mod kv_store;
pub mod smart_contract;
pub mod tfgrid;
pub mod tft_price;
