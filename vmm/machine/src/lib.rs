//! A virtual machine on KVM.

pub mod boot;
pub mod memory;
