//! Our VMM with real kernels: nested KVM in a machine of the lab, Debian's cloud kernel above it.
//!
//! ```text
//!   this host ── QEMU ── L1: Debian, kvm, our vmm, flist cached ── KVM ── L2: Debian's cloud kernel
//! ```
//!
//! Behind the feature `boot`: `cargo test -p lab --features boot --test vmm`.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail by panicking")]

mod guest_files;

use std::time::Duration;

use guest_files::{Files, files};
use lab::{Lab, Machine, Outcome};

/// How long a guest may take from the start of its VMM to its end.
const GUEST_LIMIT: Duration = Duration::from_secs(180);

/// A node: a machine with KVM and what it takes to run a VM.
fn node(lab: &Lab) -> Machine {
    let Files { vmm, vmlinux, initramfs, .. } = files();
    let builder = lab.machine("node").nested_kvm().memory_mib(1536).cpus(2);
    let builder = builder.modules(&["tun"]).life(Duration::from_secs(900));
    let builder = builder.host_file("/vmm", 0o755, vmm).host_file("/vmlinux", 0o644, vmlinux);
    builder.host_file("/initramfs.img", 0o644, initramfs).boot().unwrap()
}

#[test]
fn a_kernel_boots_on_one_and_two_vcpus() {
    let lab = Lab::new("vmm-boot").unwrap();
    let node = node(&lab);
    for cpus in ["1", "2"] {
        let words = "console=ttyS0 reboot=k panic=1 cryptomgr.notests rootdelay=1";
        let run = ["/vmm", "run", "--kernel", "/vmlinux", "--initramfs", "/initramfs.img"];
        let run = [&run[..], &["--cpus", cpus, "--no-jail", "--serial", "stdio"]].concat();
        let run = [&run[..], &["--cmdline", words]].concat();
        let output = node.command(&run).timeout(GUEST_LIMIT).run().unwrap();
        let (text, errors) = (output.text(), String::from_utf8_lossy(&output.stderr));
        let what = format!("{text}\n{errors}");
        assert_eq!(output.outcome, Outcome::Exited(0), "{what}");
        assert!(text.contains("guest-init: no read-only disk labelled cidata"), "{what}");
        assert!(text.contains("; powering off"), "{what}");
        assert!(text.contains(&format!("smp: Brought up 1 node, {cpus} CPU")), "{what}");
    }
}
