//! ZDB's plug is pulled, many times over on the same disk.

use crate::plug_pull;

#[test]
fn what_was_acknowledged_survives_twenty_pulled_plugs() {
    plug_pull::pull("full-zdb-plug", 20);
}
