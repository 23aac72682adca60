//! The flist image format: read, write, pack, unpack, mount, convert and serve images.
fn main() {}
