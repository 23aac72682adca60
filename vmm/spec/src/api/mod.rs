//! The HTTP interface of a running VM: its routes, and what bodies hold.
//!
//! Plain HTTP/1.1 with JSON over a unix socket, so that `curl --unix-socket` is a client. Answers
//! are 2xx, or an [`ErrorBody`] with the status that says who has to do something about it. The
//! document that describes it all is [`OPENAPI`], which `GET /openapi.json` serves; tests hold it
//! and the types here together, field by field.
//!
//! Two things are more than HTTP:
//!
//! - `GET /console` with `Upgrade: vmm-console` becomes, after `101 Switching Protocols`, a raw
//!   stream of bytes from and to the guest's console.
//! - A VMM in its jail can open nothing. Requests that name files or taps can bring them open, as
//!   descriptors sent along with their bytes (`SCM_RIGHTS`).

mod routes;
mod types;

pub use routes::{Body, Match, Method, Operation, ROUTES, Route, Routed, find};
pub use types::{
    BalloonInfo, BalloonTarget, Created, DiskResize, ErrorBody, SnapshotRequest, SnapshotThen,
    State, VmInfo, Wall,
};

/// The description of the interface, as OpenAPI 3.1.
pub const OPENAPI: &str = include_str!("../../openapi.json");

/// What `GET /console` asks to upgrade to.
pub const CONSOLE_PROTOCOL: &str = "vmm-console";

#[cfg(test)]
mod tests;
