//! Guest memory, as the devices see it.

use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

pub use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryBackend};

/// All memory of a guest: one region below the 32-bit gap, one above, more after hot-plug.
pub type Memory = GuestMemoryMmap<()>;

/// Guest memory shared by vCPUs and devices.
pub type SharedMemory = Arc<Memory>;
