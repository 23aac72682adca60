//! How the C library's allocator is to treat us.
//!
//! Mounts and caches live for months, and each thread that ever fetched a block would leave its mark:
//! glibc gives threads heaps of their own, up to eight for each core, and keeps freed buffers in them
//! once it has seen a few large ones. Two heaps are enough for threads that mostly hash and wait, and
//! buffers of large blocks go back to the system when they are freed.

/// To be called before there are threads.
#[cfg(target_env = "gnu")]
pub(crate) fn tune() {
    /// Heaps that threads share.
    const ARENA_COUNT_MAX: libc::c_int = 2;
    /// Allocations of this many bytes are mapped one by one. Setting it stops glibc from raising it.
    const MAPPED_SIZE_MIN: libc::c_int = 128 << 10;
    for (parameter, value) in
        [(libc::M_ARENA_MAX, ARENA_COUNT_MAX), (libc::M_MMAP_THRESHOLD, MAPPED_SIZE_MIN)]
    {
        // SAFETY: mallopt(3) takes two numbers and sets a parameter of the allocator; it asks that no
        // other thread does so at the same time, and `main` calls us before it makes any. What it does
        // not know it refuses, which leaves things as they are.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Other C libraries need none of this.
#[cfg(not(target_env = "gnu"))]
pub(crate) const fn tune() {}
