//! A read-only view of an flist image, and nothing more: what a VMM links.
//!
//! An flist describes a file tree whose contents are 512 KiB blocks kept in remote stores. This
//! crate knows none of that remoteness. It maps an [`index::Index`] (the whole tree's metadata as
//! one flat file, built once per image), obtains blocks as ranges of local files through a
//! [`block::BlockSource`], and offers both as a [`filesystem::FileSystem`], which the [`fuse`]
//! server turns into FUSE replies for `/dev/fuse` or a virtio-fs queue.
//!
//! What is absent, on purpose: SQLite, network, tokio, threads, and every decision about stores.
//! Metadata calls never do I/O beyond page faults on the index; only `read` may wait, for a block
//! that the node's cache process is still fetching.

#![deny(unsafe_code)]

pub mod block;
mod bytes;
pub mod cache_client;
pub mod filesystem;
pub mod fuse;
pub mod index;
mod log_limit;
mod map;
#[cfg(test)]
mod testing;
pub mod view;
