//! Who starts a node's programs, waits for them, and outlives who asked.
