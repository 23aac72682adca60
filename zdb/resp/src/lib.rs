//! RESP2 parser and writer: bytes in, frames out, no I/O.
