//! The log's bytes: records, segment headers, index blocks; and files of them.
//!
//! | module | what |
//! |---|---|
//! | [`bytes`] | little-endian fields of a buffer |
//! | [`record`] | one write |
//! | [`header`] | the first bytes of a segment, and of its index file |
//! | [`block`] | what an index file says about some records |
//! | [`segment`] | one segment's files and numbers |
//! | [`index_file`] | a segment's entries, written and read |
//! | [`scan`] | records found in a segment's bytes, damage or not |
//!
//! All parsers take hostile bytes. The first three do no I/O.

pub(crate) mod block;
pub(crate) mod bytes;
pub(crate) mod header;
pub(crate) mod index_file;
pub(crate) mod record;
pub(crate) mod scan;
pub(crate) mod segment;
