//! The device and its file systems, driven by a FUSE client through real rings.

mod client;
mod device;
mod escape;
mod hostile;
pub(super) mod image;
mod kernel;
mod model;
mod operations;
pub(super) mod overlay;
mod overlayfs;
mod quota;
mod snapshot;
mod threads;

use std::path::Path;

use crate::fs::host::{HostDirectory, HostOptions};

use client::Client;

/// A client of the directory at `path`.
fn host(path: &Path) -> Client {
    host_with(path, HostOptions::default())
}

fn host_with(path: &Path, options: HostOptions) -> Client {
    Client::new(HostDirectory::open(path, options).unwrap())
}

/// Tests that make things of other owners or devices need root; elsewhere they say that they were
/// skipped.
fn is_root(test: &str) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("{test}: skipped, needs root");
    }
    is_root
}
