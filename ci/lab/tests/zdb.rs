//! ZDB on a machine: nothing that was acknowledged is lost when its plug is pulled.
//!
//! Behind the feature `boot`; the same at length is in `full/`.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail by panicking")]

mod guest_files;
mod plug_pull;

#[test]
fn what_was_acknowledged_survives_two_pulled_plugs() {
    plug_pull::pull("zdb-plug", 2);
}
