//! `pjdfstest`: what POSIX says of files, on the file systems that a host serves.
//!
//! What is expected to fail stands in a configuration of `pjdfstest` beside this file, with its reason.
//! A test that fails without standing there, or that stands there and passes, fails the run.

use std::process::Command;

use lab::Lab;

use crate::guest::Guest;
use crate::guest_files::succeed;
use crate::node::Node;

/// A node with an ext4 file system on `/data`.
fn with_data(name: &str) -> Node {
    let node = Node::boot(name, |lab: &Lab, builder| {
        let disk = lab.disk("data", 256).unwrap();
        succeed(Command::new("/sbin/mke2fs").args(["-q", "-t", "ext4"]).arg(disk.path()));
        builder.disk(&disk)
    });
    node.shell("/init mount ext4 /dev/vdb /data");
    node
}

#[test]
fn the_writable_overlay_keeps_posix_but_for_its_list() {
    let node = with_data("full-overlay");
    node.machine
        .push("/tools/expected.toml", 0o644, include_bytes!("pjdfstest-overlay.toml"))
        .unwrap();
    let guest = Guest { upper: ",upper=/data", words: "guest.upper=none", ..Guest::default() };
    guest
        .run(&node, "mkdir /files; chmod 0755 /files; pjdfstest -c /tools/expected.toml -p /files");
}

#[test]
fn a_directory_of_the_host_keeps_posix_but_for_its_list() {
    let node = with_data("full-directory");
    node.machine
        .push("/tools/expected.toml", 0o644, include_bytes!("pjdfstest-directory.toml"))
        .unwrap();
    let guest = Guest { options: &["--fs", "tag=data,dir=/data"], ..Guest::default() };
    // Not `/mnt/data`: `pjdfstest` makes paths of the longest length from components, and counts wrongly
    // where they would come out even.
    guest.run(
        &node,
        "mkdir /mnt/shared; mount -t virtiofs data /mnt/shared; pjdfstest -c /tools/expected.toml -p /mnt/shared",
    );
}
