//! Links to neighbours: a carrier that moves packets, and what is counted about it.
//!
//! A link is made by [`crate::peers`] when a connection is there and ends with it. Its number is never
//! used again, so what others remember of it can't mean another one.

pub(crate) mod codel;
mod fair;
pub(crate) mod layer;
pub(crate) mod local;
pub(crate) mod outbound;
mod pace;
pub(crate) mod quic;
pub(crate) mod stream;
pub(crate) mod tls;
pub(crate) mod udp;
pub(crate) mod websocket;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use mycelium_router::LinkId;
use mycelium_wire::control::Tlv;
use mycelium_wire::identity::{PublicKey, RouterId};
use mycelium_wire::session;

use crate::link::local::LocalCarrier;
use crate::link::quic::QuicCarrier;
use crate::link::stream::{Inbound, LinkError, StreamCarrier};
use crate::link::udp::UdpCarrier;
use crate::tun::{MTU, MTU_MAX};

/// What moves a link's packets.
pub(crate) enum Carrier {
    /// A TCP or vsock connection.
    Stream(StreamCarrier),
    /// Memory between two instances of this process.
    Local(LocalCarrier),
    /// A QUIC connection.
    Quic(QuicCarrier),
    /// Datagrams between nodes of this kind.
    Udp(Box<UdpCarrier>),
}

impl Carrier {
    /// Carries packets both ways until the connection ends.
    pub(crate) async fn run(&self, inbound: &mut impl Inbound) -> LinkError {
        match self {
            Self::Stream(stream) => stream.run(inbound).await,
            Self::Local(local) => local.run(inbound).await,
            Self::Quic(quic) => quic.run(inbound).await,
            Self::Udp(udp) => udp.run(inbound).await,
        }
    }
}

/// A link to a neighbour.
pub(crate) struct Link {
    id: LinkId,
    /// As the API shows it: protocol and both ends.
    description: String,
    carrier: Carrier,
    received_size: AtomicU64,
    /// Bytes came since the router was last told so.
    is_heard: AtomicBool,
    /// The neighbour says that it is of this kind.
    is_of_ours: AtomicBool,
}

impl Link {
    pub(crate) fn new(id: LinkId, description: String, carrier: Carrier) -> Self {
        let (received_size, is_heard) = (AtomicU64::new(0), AtomicBool::new(false));
        let is_of_ours = AtomicBool::new(false);
        Self { id, description, carrier, received_size, is_heard, is_of_ours }
    }

    pub(crate) fn id(&self) -> LinkId {
        self.id
    }

    /// Protocol and both ends, as the API shows them.
    pub(crate) fn description(&self) -> &str {
        &self.description
    }

    /// What moves its packets.
    pub(crate) fn carrier(&self) -> &Carrier {
        &self.carrier
    }

    /// Sends whole data packets, one behind the other. Never waits; what there is no room for is lost.
    pub(crate) fn send_data(&self, packets: &[u8], now: Instant) {
        match &self.carrier {
            Carrier::Stream(stream) => stream.send_data(packets, now),
            Carrier::Local(local) => local.send_data(packets, now),
            Carrier::Quic(quic) => quic.send_data(packets, now),
            Carrier::Udp(udp) => udp.send_data(packets, now),
        }
    }

    /// Sends a control packet.
    pub(crate) fn send_control(&self, tlv: &Tlv) {
        let mut packet = Vec::with_capacity(CONTROL_SIZE_USUAL);
        tlv.encode(&mut packet);
        match &self.carrier {
            Carrier::Stream(stream) => stream.send_control(&packet),
            Carrier::Local(local) => local.send_control(&packet),
            Carrier::Quic(quic) => quic.send_control(&packet),
            Carrier::Udp(udp) => udp.send_control(&packet),
        }
    }

    /// Who is at the other end, on links that prove it.
    pub(crate) fn peer(&self) -> Option<PublicKey> {
        match &self.carrier {
            Carrier::Udp(udp) => Some(udp.peer()),
            Carrier::Stream(_) | Carrier::Local(_) | Carrier::Quic(_) => None,
        }
    }

    /// The largest IPv6 packet that may go this way to the owner of `key`: what every node takes, or more. A
    /// neighbour of this kind says what it takes for itself, and refuses what it can't pass on.
    pub(crate) fn mtu(&self, key: PublicKey) -> u16 {
        match &self.carrier {
            Carrier::Udp(udp) if udp.peer() == key => udp.takes(),
            Carrier::Udp(_) => MTU_MAX,
            Carrier::Stream(_) | Carrier::Local(_) | Carrier::Quic(_) => MTU,
        }
    }

    /// The largest IPv6 packet that the neighbour can send this way, if some that nodes send are larger.
    pub(crate) fn brings_at_most(&self) -> Option<u16> {
        match &self.carrier {
            Carrier::Quic(quic) if !self.is_of_ours.load(Ordering::Relaxed) => {
                Some(quic.existing_node_brings_at_most())
            }
            _ => None,
        }
    }

    /// Notes what the neighbour announces of itself.
    pub(crate) fn introduced(&self, router_id: &RouterId) {
        self.is_of_ours.store(session::is_announced(router_id), Ordering::Relaxed);
    }

    /// Ends it; its task finds out at once.
    pub(crate) fn close(&self) {
        match &self.carrier {
            Carrier::Stream(stream) => stream.close(),
            Carrier::Local(local) => local.close(),
            Carrier::Quic(quic) => quic.close(),
            Carrier::Udp(udp) => udp.close(),
        }
    }

    /// Counts what arrived. True when the router has not been told since [`Self::listen`] that
    /// anything did.
    pub(crate) fn heard(&self, size: usize) -> bool {
        self.received_size.fetch_add(size as u64, Ordering::Relaxed);
        !self.is_heard.load(Ordering::Relaxed) && !self.is_heard.swap(true, Ordering::Relaxed)
    }

    /// The router wants to know when the next bytes arrive.
    pub(crate) fn listen(&self) {
        self.is_heard.store(false, Ordering::Relaxed);
    }

    /// Bytes that arrived.
    pub(crate) fn received_size(&self) -> u64 {
        self.received_size.load(Ordering::Relaxed)
    }

    /// Bytes given to it to send.
    pub(crate) fn sent_size(&self) -> u64 {
        match &self.carrier {
            Carrier::Stream(stream) => stream.sent_size(),
            Carrier::Local(local) => local.sent_size(),
            Carrier::Quic(quic) => quic.sent_size(),
            Carrier::Udp(udp) => udp.sent_size(),
        }
    }

    /// Data packets that had to be dropped.
    pub(crate) fn dropped(&self) -> u64 {
        match &self.carrier {
            Carrier::Stream(stream) => stream.dropped(),
            Carrier::Local(local) => local.dropped(),
            Carrier::Quic(quic) => quic.dropped(),
            Carrier::Udp(udp) => udp.dropped(),
        }
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Link({})", self.description)
    }
}

/// Room for a proved update of a /64, the largest packet that is usual.
const CONTROL_SIZE_USUAL: usize = 136;
