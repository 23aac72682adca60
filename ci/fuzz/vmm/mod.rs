//! What a fuzzer does with some bytes to a VMM: one function for each door by which a guest, a
//! client or an image comes in.
//!
//! Most inputs are a [`Script`](script::Script): a sequence of operations, each with its arguments,
//! so that a fuzzer changes what happens rather than where a number begins. Nothing depends on time or
//! chance. Shared by the fuzz targets beside this folder and by `vmm/machine/tests/fuzz_replay.rs`,
//! which feeds the committed corpus through the same functions in every test run. A function returns
//! if all is well; it panics if a promise is broken.

mod api;
mod boot;
mod devices;
mod functions;
mod requests;
mod rings;
mod script;

use std::sync::{Arc, Once};

use signal_hook::consts::SIGPIPE;

/// What a fuzzer calls with some bytes.
pub(crate) type Harness = fn(&[u8]);

/// All of them, by the name of their target and corpus.
pub(crate) const HARNESSES: [(&str, Harness); 13] = [
    ("block", devices::block),
    ("net", devices::net),
    ("fs_queue", devices::fs_queue),
    ("vsock", devices::vsock),
    ("balloon", devices::balloon),
    ("console", devices::console),
    ("rng", devices::rng),
    ("pci", functions::pci),
    ("bus", functions::bus),
    ("directory", requests::directory),
    ("overlay", requests::overlay),
    ("api", api::api),
    ("boot", boot::boot),
];

/// Runs the one that is called `name`.
pub(crate) fn run(name: &str, bytes: &[u8]) {
    // A fuzzer has no `main` of Rust's, which would have seen to it: whoever writes to a socket that
    // nobody reads is told so, and no more.
    static PIPES: Once = Once::new();
    PIPES.call_once(|| {
        signal_hook::flag::register(SIGPIPE, Arc::default()).expect("a signal's handler");
    });
    let found = HARNESSES.iter().find(|(known, _)| *known == name);
    found.expect("a harness of that name").1(bytes);
}
