//! A grid as its people use it: devgrid, a node, and the `grid` command.
//!
//! ```text
//!  grid (a process each) ──────────────┐
//!                                      ├─> devgrid (a process): chain, relay, services
//!  node (hostd-node) ── lines, cut ────┘
//!    └─> machine: a Host that remembers what it was asked
//! ```
//!
//! Everything speaks the protocols of the grid over sockets of this machine; only what would run
//! workloads is pretended. The node reaches chain and relay by [lines](line) that a test can cut, while
//! users and the chain go on. Each test has a grid of its own.

#![expect(clippy::unwrap_used, reason = "a test stops where something is wrong")]

mod console;
mod deploy;
mod flood;
mod lies;
mod line;
mod machine;
mod outage;
mod owner;
mod restart;
mod unpaid;
mod world;
