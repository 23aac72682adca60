//! The HTTP interface of a running VM, over a unix socket.
//!
//! ```text
//!   client ══ socket ══► Server ── bytes ──► http ── Request ──► dispatch ──► Control
//!          ◄══════════  (one thread) ◄─────────── Response ◄─────────┘     (the machine)
//! ```
//!
//! The routes, bodies and errors are `vmm_spec::api`'s, this is the server. One thread polls the
//! socket and all connections; requests are done one after the other, in that thread, since a VM
//! does one thing at a time. A client can be slow, silent or hostile without being in the way of
//! the next: everything that it may send, leave open or make us wait for has a limit with a name.
//!
//! [`Control`] is what the server needs of a machine; [`Listener`] is made before the jail is
//! entered, [`Server::run`] is the body of a thread.

mod connection;
mod control;
mod dispatch;
#[cfg(any(test, feature = "testing"))]
mod fake;
mod http;
mod listener;
mod metrics;
mod server;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use control::{Attach, Control, ControlError};
pub use listener::Listener;
pub use metrics::{Family, Kind, Metrics, Value};
pub use server::{CONNECTION_COUNT_MAX, Server, Stopper};

#[cfg(test)]
mod tests;
