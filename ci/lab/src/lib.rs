//! The farm lab: real kernels and nested KVM in QEMU, driven from tests.
