//! What a virtual machine is made of, and why it ended.
//!
//! The description is the seam between whoever wants a VM (hostd, a person at a terminal, a test)
//! and the one process that runs it. It is plain data: no KVM, no files opened, no threads.

#![forbid(unsafe_code)]
