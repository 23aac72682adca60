//! A node of the grid: its parts, wired.
//!
//! ```text
//!  config.toml ─> Daemon ─┬─ identity: one seed, in a file and its mirrors
//!  flags                  ├─ network.json, looked at again every hour, the last good one kept
//!                         ├─ what is remembered: sled
//!                         ├─ Node (hostd-node) over a Host: started, and started anew when its numbers
//!                         │    or the network change
//!                         └─ status: JSON and metrics on a socket of this machine, read only
//! ```
//!
//! [`Daemon`] takes any [`Host`](hostd_node::Host); the `hostd` command gives it the machine that it runs
//! on. Workloads are children of the supervisor, never of this process: when it ends, is killed or is
//! replaced by a newer one, they go on.

#![forbid(unsafe_code)]

pub mod config;
pub mod daemon;
pub mod identity;
pub mod network;
pub mod remember;
pub mod status;

mod files;
mod place;

pub use config::Config;
pub use daemon::Daemon;
