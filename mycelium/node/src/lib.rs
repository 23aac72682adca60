//! A Mycelium node: what its router and its data plane need from the operating system, and what
//! people and programs ask of it.

pub mod api;
pub mod messages;
