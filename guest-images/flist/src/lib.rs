//! The flist image format: read, write, pack, unpack, convert, verify, mount and serve images.
//!
//! An image is a small file: the metadata of a tree, and for each 512 KiB block of contents its
//! name and key. The blocks live in stores. The rooms:
//!
//! | module | what |
//! |---|---|
//! | [`tree`] | an image's tree in memory: what every reader makes and every writer takes |
//! | [`block`] | one block: compress, encrypt, decrypt, verify |
//! | [`format`] | `.fl` (current, SQLite) and `.flist` (legacy, Cap'n Proto in SQLite in tar) |
//! | [`store`] | where blocks live: directories, ZDB, HTTP, S3; routes, sharding, retries |

#![forbid(unsafe_code)]

pub mod block;
pub mod format;
pub mod progress;
pub mod store;
pub mod tree;
