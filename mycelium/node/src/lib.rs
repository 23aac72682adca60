//! A node of the Mycelium overlay: sockets, a TUN device, and the tasks between them.
//!
//! What bytes mean is in `mycelium-wire`, which way they go in `mycelium-router`; this crate moves them.
//! The `mycelium` program is a thin shell around it.
//!
//! | module | what |
//! |---|---|
//! | [`daemon`] | one node, put together |
//! | [`instances`], `namespace` | several nodes in one process, each in its network namespace |
//! | [`config`], `topic_config`, [`key_file`], [`endpoint`] | what people give it |
//! | `peers` | whom it dials and who dials it |
//! | `link` | a link: its socket and what waits for it |
//! | `routing` | the task that owns the router |
//! | `data` | the way of packets between TUN and links |
//! | `discovery` | peers on the local network |
//! | `interfaces` | the machine's links and addresses, as they come and go |
//! | [`doctor`] | why nobody is reached |
//! | `probe` | how long a packet takes to another node and back |
//! | [`messages`] | messages between nodes |
//! | [`api`], `control` | what programs ask of it, and its answers |
//! | `metrics` | counts for Prometheus |
//! | `tun` | the device: super packets, checksums |
//! | `sys` | the one module with `unsafe` |

#![deny(unsafe_code)]

pub mod api;
pub mod config;
mod control;
pub mod daemon;
mod data;
mod discovery;
pub mod doctor;
pub mod endpoint;
pub mod instances;
mod interfaces;
pub mod key_file;
mod link;
pub mod messages;
mod metrics;
mod namespace;
pub mod peers;
mod probe;
mod proofs;
mod routing;
#[allow(unsafe_code, reason = "system calls that no safe crate wraps; see its story")]
mod sys;
mod topic_config;
pub mod tun;
