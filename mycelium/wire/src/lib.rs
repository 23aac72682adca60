//! The bytes that Mycelium nodes exchange, without a socket.
//!
//! Everything a peer sends passes through here first, and everything a node sends is written here.
//! There is no I/O in this crate, and no state but keys, counters and, in [`session`], handshakes, which
//! are told the time: bytes in, values out, and back.
//!
//! ```text
//!  stream or datagram ─> [frame] ─┬─> control: one [`control::Tlv`] ─> router
//!                                 └─> data: header, sealed body ─> another peer, or [cipher]
//!                                         [cipher] ─> [inner] ─┬─> an IPv6 packet ─> TUN
//!                                                              ├─> [message] ─> messages
//!                                                              └─> [icmp], out of band
//!  datagram on the local link ─> [beacon]
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`identity`] | keys, addresses, subnets, router ids |
//! | [`control`] | routing TLVs, one a packet |
//! | [`claim`] | what the owner of a subnet proves of its route |
//! | [`xeddsa`] | signatures by a node's key |
//! | [`frame`] | where a packet of a stream begins and ends |
//! | [`cipher`] | bodies of data packets, sealed between two nodes |
//! | [`inner`] | what a sealed body holds |
//! | [`icmp`] | ICMPv6 errors, in and out of band |
//! | [`message`] | packets of the message subsystem |
//! | [`noise`] | handshakes with forward secrecy |
//! | [`session`] | keys for two minutes, between nodes that can |
//! | [`beacon`] | discovery on the local link |
//!
//! All integers are big endian. Readers go by the length fields of what they read and never past
//! them: a packet that makes no sense is skipped as a whole, and the next one is understood. What is
//! written is only what the existing daemon's reader accepts, since it loses its place in a stream
//! when it does not understand (`reference: mycelium 1.3`).

#![forbid(unsafe_code)]
#![warn(clippy::indexing_slicing)]

pub mod beacon;
pub mod cipher;
pub mod claim;
pub mod control;
pub mod frame;
pub mod icmp;
pub mod identity;
pub mod inner;
pub mod message;
pub mod noise;
mod random;
mod reader;
pub mod session;
pub mod xeddsa;

pub use random::{RandomError, random_bytes};
