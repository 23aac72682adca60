//! What the agent in a lab machine and the lab outside of it have in common: the protocol.
//!
//! The agent is the `lab-agent` binary: PID 1 of a machine, and a few small tools that tests
//! need where no other program is (see `main.rs`). The lab links this library only for
//! [`wire`].

#![forbid(unsafe_code)]

pub mod wire;
