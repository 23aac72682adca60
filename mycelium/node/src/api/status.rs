//! The JSON of what is told of a node's health: our own, beside what existing daemons tell.

use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};

use super::types::{ConnectionState, NodeInfo, PeerKind, SessionInfo};

/// How a node and its peers are doing.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Of this program.
    pub version: &'static str,
    /// Who it is.
    pub node: NodeInfo,
    /// For how many seconds it has run.
    pub uptime_seconds: u64,
    /// Its peers.
    pub peers: Vec<PeerHealth>,
    /// How many routes it has.
    pub route_counts: RouteCounts,
    /// What its packets met with, since its start.
    pub packets: PacketCounts,
    /// How it talks to which nodes, end to end.
    pub sessions: Vec<SessionInfo>,
}

/// How a peer is doing.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerHealth {
    /// Where it is, as it would be added.
    pub endpoint: String,
    /// How it became a peer.
    #[serde(rename = "type")]
    pub kind: PeerKind,
    /// How its link is.
    pub connection_state: ConnectionState,
    /// Its link, as routes name their next hop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// How many seconds ago the link began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connected_seconds: Option<u64>,
    /// What the link adds to routes' metrics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<u16>,
    /// The link's round trip, in microseconds, once it was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub round_trip_us: Option<u64>,
    /// Hellos of the last sixteen that were not answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost_hellos: Option<u8>,
    /// Routes known through it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routes: Option<usize>,
    /// Bytes sent to it.
    pub tx_bytes: u64,
    /// Bytes received from it.
    pub rx_bytes: u64,
    /// Data packets that its link had to drop.
    pub dropped_packets: u64,
    /// Why there is no link, as far as is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// How many routes there are.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct RouteCounts {
    /// In use.
    pub selected: usize,
    /// That could be.
    pub fallback: usize,
    /// Subnets that are asked for.
    pub queried: usize,
}

/// What packets met with.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PacketCounts {
    /// Left the device for a link.
    pub sent: u64,
    /// Were for this node, and whole.
    pub received: u64,
    /// Were passed on.
    pub forwarded: u64,
    /// Found no route when they came.
    pub without_route: u64,
    /// Had used up their hop limit.
    pub expired: u64,
    /// No key opened, or their inside did not match their outside.
    pub forged: u64,
}

/// A question to another node.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProbeRequest {
    /// Whom to ask.
    pub address: Ipv6Addr,
    /// Bytes of payload.
    #[serde(default = "default_size")]
    pub size: usize,
    /// How long to wait for an answer, in milliseconds.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u64,
}

/// What became of a question.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "outcome", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum ProbeResult {
    /// It was answered.
    Answered {
        /// After as many microseconds.
        round_trip_us: u64,
        /// What is left of the answer's hop limit; none if it came inside a session.
        #[serde(skip_serializing_if = "Option::is_none")]
        hop_limit: Option<u8>,
    },
    /// A node, perhaps this one, says why it was not.
    Refused {
        /// Why.
        reason: String,
        /// Which node.
        by: Ipv6Addr,
    },
    /// Nobody said anything in time.
    Silent,
}

fn default_size() -> usize {
    56
}

fn default_timeout_ms() -> u64 {
    1000
}
