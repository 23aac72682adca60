//! Debian guests in our VMM, at length: what `ci/test lab-full` runs.
//!
//! ```text
//!   this host ── QEMU ── L1: Debian's kernel, kvm, our vmm, flist cached ── KVM ── L2: Debian, root and all
//! ```
//!
//! The guests' root is an image packed from a Debian root with `fio`, `iperf3` and `pjdfstest`
//! (`ci/guest-root`), mounted through virtio-fs; what a guest is to do is a shell script in its
//! `cidata`. A script ends with the machine, and says how it went. All VMMs are in their jails.
//!
//! Behind the feature `full`: `cargo test -p lab --features full --test full -- --test-threads=1`.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail by panicking")]

mod blank;
mod block;
mod cgroup;
mod clones;
mod crash;
mod grid;
mod guest;
#[path = "../guest_files/mod.rs"]
mod guest_files;
mod hotplug;
mod kill;
mod kinds;
mod memory;
mod net;
mod node;
mod npm;
mod own_kernel;
mod owner;
mod parts;
#[path = "../plug_pull/mod.rs"]
mod plug_pull;
mod posix;
mod power;
mod whole_disk;
mod world;
mod zdb;
