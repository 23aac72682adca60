//! A virtual machine on KVM.
