//! Maps an index file into memory: the one place of this crate that needs `unsafe`.
//!
//! A mapping lets all processes that serve one image share its metadata through the page cache, and
//! makes opening an index cost the same for ten inodes and ten million.

#![expect(unsafe_code, reason = "a memory map's contents are beyond what the compiler can see")]

use std::fs::File;
use std::io;

use memmap2::Mmap;

/// Maps all of `file` for reading.
pub(crate) fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: the bytes must not change, nor the file shrink (SIGBUS), while they are mapped. Index
    // files are written under a temporary name, synced and renamed by one function
    // (`flist::index::open_or_build`) into a folder that only the owner of the node's cache can
    // write; nobody opens them for writing afterwards, and replacing or removing one leaves the
    // mapped inode as it was.
    unsafe { Mmap::map(file) }
}
