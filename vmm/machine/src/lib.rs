//! A virtual machine on KVM.

pub mod api;
