//! The flist image format: read, write, pack, unpack, convert, verify, mount and serve images.
//!
//! An image is a small file: the metadata of a tree, and for each 512 KiB block of contents its
//! name and key. The blocks live in stores. The rooms:
//!
//! | module | what |
//! |---|---|
//! | [`tree`] | an image's tree in memory: what every reader makes and every writer takes |
//! | [`block`] | one block: compress, encrypt, decrypt, verify |
//! | [`cache`] | verified blocks of all images of a node, on its disk |
//! | [`cached`] | the daemon that serves them to a node's VMMs |
//! | [`mod@format`] | `.fl` (current, SQLite) and `.flist` (legacy, Cap'n Proto in SQLite in tar) |
//! | [`index`] | a tree as the flat file that `flist-view` maps, kept by image hash |
//! | [`hub`], [`download`] | publishing images; fetching what was published, for a node |
//! | [`boot`] | with which kernel an image boots |
//! | [`oci`] | OCI and Docker images, from files and registries, as a tree |
//! | [`scan`], [`pack`] | a directory on this machine as a tree; a tree's files into blocks |
//! | [`unpack`] | an image as a directory on this machine |
//! | [`verify`], [`inspect`], [`clone`] | an image's blocks checked, its metadata shown, its blocks copied |
//! | [`mount`] | a view of an image, mounted through `/dev/fuse` |
//! | [`store`] | where blocks live: directories, ZDB, HTTP, S3; routes, sharding, retries |
//! | [`web`] | HTTP: what stores, registries and hubs have in common |

#![forbid(unsafe_code)]

pub mod block;
pub mod boot;
pub mod cache;
pub mod cached;
pub mod clone;
pub mod download;
pub mod format;
pub mod hub;
pub mod index;
pub mod inspect;
pub mod mount;
pub mod oci;
pub mod pack;
pub mod progress;
pub mod scan;
pub mod store;
pub mod tree;
pub mod unpack;
pub mod verify;
pub mod web;
mod workers;
