//! A read-only view of an flist image: index, file system trait, FUSE server, cache reader.
