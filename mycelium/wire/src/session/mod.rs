//! Sessions: what two nodes say to each other stays secret even when their keys become known later.
//!
//! The keys that data packets are sealed with by existing nodes last for ever ([`crate::cipher`]). Nodes
//! that can agree on keys for two minutes instead, by a handshake that passes through the network as
//! an inner packet like others, and forget them. Nodes on the way need not know of it.
//!
//! ```text
//!      initiator                                    responder
//!          ── initiation (Noise IK 1, stamp) ──────────>   new stamp? ── no ──> challenge
//!          <───────────── response (Noise IK 2) ────────
//!  current: sends and opens                          next: opens
//!          ── first packet, or a sign of life ─────────>   current: sends and opens
//! ```
//!
//! ```text
//!   Idle ── want ──> Asking ── response ──> Established ── 120 s, or 2^60 packets ──> Asking
//!    ^                 │ 4 s                    │ 180 s, unused
//!    └── Unanswered <──┘                        └──> Idle
//! ```
//!
//! [`Machine`] has all of a node's handshakes. It opens no socket and reads no clock: it is told of
//! messages and of time, and says what to send. [`Session`] is what it makes: threads that carry packets
//! use it without asking the machine. Up to three sessions of a peer live at once ([`Ring`]), as with
//! WireGuard, whose timers these are in the main: packets under way survive a change, and when both
//! ends begin at once, both sessions work.
//!
//! **Repeated and flooding initiations.** What comes here was sealed with the static key of two nodes, so
//! it is the peer's, or a recording of it. An initiation whose stamp is not newer than the last one gets a
//! challenge instead of three curve operations: a cookie that only an initiation made now can have in it.
//! A node whose clock was set back gets over it that way. A peer may begin a session each
//! [`INITIATION_SPACING`], and all peers together [`INITIATION_RATE`] a second.
//!
//! **Peers that fell silent.** Who gets data and has none to send says so within [`KEEPALIVE_AFTER`]. Who
//! hears nothing for [`SILENCE_MAX`] after it sent data begins a new session: the peer has started anew.
//!
//! **Proof.** The machine remembers who ever had a session with this node ([`Event::Proved`]): such a
//! peer can't be talked into anything less by who sits in between. What that means is the caller's to say.

mod cipher;
mod established;
mod limits;
mod machine;
mod packet;
mod peer;
#[cfg(test)]
mod simulation;
mod time;
mod window;

pub use cipher::{COUNTER_END, Opener, SealError, Sealer, Suite, Suites, TAG_SIZE};
pub use established::{Session, index};
pub use limits::*;
pub use machine::{Counters, Event, Machine};
pub use packet::VERSION;
pub use peer::Ring;
pub use time::{Clock, STAMP_SIZE, Time};
pub use window::{WINDOW_SIZE, Window};

/// Size of what stands in front of a packet's plaintext, in bytes: index and counter.
pub const DATA_HEADER_SIZE: usize = 12;
/// What a session adds to a plaintext.
pub const DATA_OVERHEAD: usize = DATA_HEADER_SIZE + TAG_SIZE;

/// What a plaintext that is not empty begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind(pub u8);

impl Kind {
    /// An IPv6 packet.
    pub const PACKET: Self = Self(0);
    /// What peers need to find a direct path.
    pub const RENDEZVOUS: Self = Self(1);
    /// A probe, or the answer to one.
    pub const PROBE: Self = Self(2);
    /// A packet of the message subsystem.
    pub const MESSAGE: Self = Self(4);
}

/// What a router id's zone says when its node speaks sessions of version 1. Nobody else looks at it, and
/// it passes through the network unchanged.
pub const ZONE: [u8; 2] = [0, 1];

/// Whether the node with this router id says that it speaks sessions. Higher bits are for later.
#[must_use]
pub fn is_announced(router_id: &crate::identity::RouterId) -> bool {
    let [_, low] = router_id.zone();
    low & 1 == 1
}
