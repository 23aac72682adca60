//! Tiny bare-metal guests that exercise KVM and device models without a kernel.
