//! Networks in namespaces of this machine: what machines reach, what they can't do, and what is left.
//!
//! A machine is played by the test: it opens the taps that a VMM would, and sends and receives frames.
//! Where the `mycelium` program was built, networks meet by it too; where `supervise` and `guestio` were,
//! consoles are used and logs sent.
//!
//! Needs root, `nft` and `ip`; without them the tests say so and pass.

#![expect(clippy::unwrap_used, reason = "a test stops where something is wrong")]

mod border;
mod console;
mod frames;
mod guest;
mod life;
mod overlay;
mod spoofing;
mod trouble;
mod world;
