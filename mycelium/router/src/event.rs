//! What the router and its caller say to each other, besides the protocol's messages.

use std::time::Duration;

use mycelium_wire::control::{Metric, Seqno, Tlv};
use mycelium_wire::identity::{RouterId, Subnet};

use crate::source::Origin;
use crate::time::Time;

/// A connection to a neighbour. The caller chooses the number, and never uses one twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// What the caller knows about a link when it comes up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    /// What a link of its kind costs besides its round trip: the lower, the better the kind. At
    /// least 1 is charged, since routes must become longer with each hop.
    pub static_cost: u16,
}

impl LinkInfo {
    /// TCP or TLS over IPv6.
    pub const TCP6: Self = Self { static_cost: 10 };
    /// TCP or TLS over IPv4, mapped addresses too.
    pub const TCP4: Self = Self { static_cost: 15 };
    /// QUIC over IPv6.
    pub const QUIC6: Self = Self { static_cost: 7 };
    /// QUIC over IPv4, mapped addresses too.
    pub const QUIC4: Self = Self { static_cost: 12 };
    /// Datagrams between nodes of this kind, over IPv6.
    pub const UDP6: Self = Self { static_cost: 5 };
    /// The same over IPv4.
    pub const UDP4: Self = Self { static_cost: 6 };
    /// A vsock to a virtual machine or its host.
    pub const VSOCK: Self = Self { static_cost: 5 };
}

/// What the router asks of its caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Send this to the neighbour.
    Send {
        /// Over which link.
        link: LinkId,
        /// The message.
        tlv: Tlv,
    },
    /// A subnet has another next hop or owner from now on, or none.
    Route {
        /// Where to.
        subnet: Subnet,
        /// Which way.
        route: Option<Route>,
    },
    /// What was [`wanted`](crate::Router::wanted) was not found in time.
    Unreachable(Subnet),
    /// The neighbour is silent. The router has forgotten the link; its transport is to be closed.
    Dead(LinkId),
    /// The router has a new router id, since somebody announces its subnet under the old one with
    /// sequence numbers that it never gave.
    Renewed(RouterId),
}

/// The chosen way to a subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The next hop.
    pub link: LinkId,
    /// The cost of the whole way, this node's link included.
    pub metric: Metric,
    /// The sequence number of the announcement.
    pub seqno: Seqno,
    /// Who announced the subnet; holds its public key.
    pub router_id: RouterId,
    /// Whether the owner's signature came along.
    pub is_proved: bool,
}

impl Route {
    /// Whose announcement is followed.
    pub(crate) const fn origin(&self) -> Origin {
        Origin::new(self.router_id, self.is_proved)
    }
}

/// A route of the table, chosen or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteInfo {
    /// Where to.
    pub subnet: Subnet,
    /// Which way.
    pub route: Route,
    /// When it ends if no update comes.
    pub expires: Time,
}

/// Answer to [`wanted`](crate::Router::wanted).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// There is a way.
    Known(Route),
    /// Neighbours have been asked: an [`Event::Route`] or an [`Event::Unreachable`] will come.
    Asked,
    /// Nobody is asked: the subnet is no node's (only a /64 in 400::/7 is), or the own one, or too
    /// many questions are open.
    Refused,
}

/// How a link is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkStatus {
    /// Which.
    pub id: LinkId,
    /// What it adds to the metrics of its routes.
    pub cost: u16,
    /// Its smoothed round trip, once measured.
    pub round_trip: Option<Duration>,
    /// Hellos of the last sixteen that nobody answered.
    pub lost_hellos: u8,
    /// Routes known through it.
    pub route_count: usize,
}

/// Counts since the start, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Hellos received.
    pub hellos: u64,
    /// IHUs received.
    pub ihus: u64,
    /// Updates received.
    pub updates: u64,
    /// Route requests received.
    pub route_requests: u64,
    /// Seqno requests received.
    pub seqno_requests: u64,
    /// IHUs that answered no Hello of ours.
    pub unsolicited_ihus: u64,
    /// Messages left unread because their sender sends too many.
    pub paced: u64,
    /// Updates for what is no node's subnet, or not that of its router id.
    pub denied_updates: u64,
    /// Proofs of routes that were checked.
    pub checked_proofs: u64,
    /// Proofs that were none: their updates were dropped.
    pub forged_proofs: u64,
    /// Proofs left unread because too many came: their routes count as unproved.
    pub unchecked_proofs: u64,
    /// Updates for new routes that found the table full.
    pub refused_routes: u64,
    /// Routes that gave way to others.
    pub evicted_routes: u64,
    /// Routes that ended without an update.
    pub expired_routes: u64,
    /// Times that a destination's way was chosen anew.
    pub route_selections: u64,
    /// Next hops that were avoided since they lost packets.
    pub avoided_routes: u64,
    /// Updates sent.
    pub updates_sent: u64,
    /// Links that came up.
    pub links_added: u64,
    /// Links that went down, dead ones included.
    pub links_removed: u64,
    /// Links found dead by silence.
    pub links_died: u64,
    /// Feasibility distances that were forgotten.
    pub expired_sources: u64,
}
