//! A virtual machine on KVM.

pub mod interrupts;
pub mod pci;
#[cfg(test)]
mod testing;
pub mod worker;
