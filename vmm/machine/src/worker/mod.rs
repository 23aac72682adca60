//! Threads that run units.
