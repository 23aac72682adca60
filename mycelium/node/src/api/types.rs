//! The JSON of both APIs. Names of fields are the existing daemon's.

use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mycelium_wire::control::Metric;
use mycelium_wire::identity::{PublicKey, Subnet};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::messages::{Message, Outbound, Peer, State, Status};

/// Who a node is.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeInfo {
    /// Its prefix.
    #[serde(serialize_with = "as_text")]
    pub node_subnet: Subnet,
    /// Its address.
    pub node_ip: Ipv6Addr,
    /// Its key.
    #[serde(serialize_with = "as_text")]
    pub node_pubkey: PublicKey,
    /// When it started, in seconds since 1970.
    pub node_start_time: u64,
}

/// A peer.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerInfo {
    /// Where it is.
    pub endpoint: EndpointInfo,
    /// How it became a peer.
    #[serde(rename = "type")]
    pub kind: PeerKind,
    /// How its link is.
    pub connection_state: ConnectionState,
    /// Bytes sent to it.
    pub tx_bytes: u64,
    /// Bytes received from it.
    pub rx_bytes: u64,
    /// For how many seconds it has been known.
    pub discovered: u64,
    /// How many seconds ago its last link began.
    pub last_connected: Option<u64>,
}

/// Where a peer is.
#[derive(Clone, Debug, Serialize)]
pub struct EndpointInfo {
    /// `tcp`, `tls`, `quic`, `udp` or `vsock`.
    pub proto: &'static str,
    /// The address there.
    pub addr: AddressInfo,
}

/// An address of a peer.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AddressInfo {
    /// IP address or name, and port.
    Socket(String),
    /// A virtual machine's.
    Vsock {
        /// The machine.
        cid: u32,
        /// The port there.
        port: u32,
    },
}

/// How a peer became one.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum PeerKind {
    /// Somebody named it.
    Static,
    /// It said on the local link that it is there.
    LinkLocalDiscovery,
    /// It dialed.
    Inbound,
    /// This node found a direct way to it; existing releases have no such kind.
    Direct,
}

/// How a peer's link is.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum ConnectionState {
    /// There is one.
    Alive,
    /// It is being made.
    Connecting,
    /// There is none.
    Dead,
}

/// All routes of a node.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    /// Those in use.
    pub selected: Vec<RouteInfo>,
    /// Those that could be.
    pub fallback: Vec<RouteInfo>,
    /// Subnets that routes are asked for.
    pub queried: Vec<QueriedSubnet>,
}

/// A route.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteInfo {
    /// Where it leads.
    #[serde(serialize_with = "as_text")]
    pub subnet: Subnet,
    /// Over which link.
    pub next_hop: String,
    /// How far it is: a number, or `infinite`.
    #[serde(serialize_with = "metric")]
    pub metric: Metric,
    /// How new it is.
    pub seqno: u16,
}

/// A subnet that a route is asked for.
#[derive(Clone, Debug, Serialize)]
pub struct QueriedSubnet {
    /// The subnet.
    #[serde(serialize_with = "as_text")]
    pub subnet: Subnet,
    /// For how many more seconds.
    #[serde(serialize_with = "seconds")]
    pub expiration: Duration,
}

/// Who sent and received how much over a node.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PacketStatistics {
    /// By sender.
    pub by_source: Vec<PacketCount>,
    /// By receiver.
    pub by_destination: Vec<PacketCount>,
}

/// How much an address sent or received.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PacketCount {
    /// The address.
    pub ip: Ipv6Addr,
    /// Packets.
    pub packet_count: u64,
    /// Their bytes.
    pub byte_count: u64,
}

/// How a node is talked to.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionInfo {
    /// Its address.
    pub address: Ipv6Addr,
    /// Its key.
    #[serde(serialize_with = "as_text")]
    pub public_key: PublicKey,
    /// In which way.
    pub state: SessionState,
    /// Whether it says that it speaks sessions.
    pub announced: bool,
    /// Whether it ever had one with this node, and so is not talked to in the old form any more.
    pub proved: bool,
    /// The cipher of the session, if there is one.
    pub cipher: Option<&'static str>,
    /// Its age in seconds.
    pub age: Option<u64>,
    /// Packets sent with it.
    pub packets_sent: Option<u64>,
}

/// In which way a node is talked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum SessionState {
    /// As existing releases do, with keys that last for ever.
    Old,
    /// A session is being made, or will be with the next packet.
    Asking,
    /// With a session: what is said now stays secret when keys become known later.
    ForwardSecret,
    /// As [`Self::Old`], since nobody answers though the node says that it speaks sessions.
    Unanswered,
    /// Not at all: it had a session before and does not answer.
    Refused,
}

/// `{publicKey}`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PublicKeyInfo {
    #[serde(serialize_with = "as_text")]
    pub(super) public_key: PublicKey,
}

/// A message that arrived.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct MessageInfo {
    id: String,
    src_ip: Ipv6Addr,
    #[serde(serialize_with = "as_text")]
    src_pk: PublicKey,
    dst_ip: Ipv6Addr,
    #[serde(serialize_with = "as_text")]
    dst_pk: PublicKey,
    #[serde(skip_serializing_if = "Option::is_none")]
    topic: Option<String>,
    payload: String,
}

impl MessageInfo {
    /// What is told of a message to the node `own`.
    pub(super) fn new(message: &Message, own: &Peer) -> Self {
        Self {
            id: message.id.to_string(),
            src_ip: message.source.address,
            src_pk: message.source.key,
            dst_ip: message.destination,
            dst_pk: own.key,
            topic: (!message.topic.is_empty()).then(|| STANDARD.encode(&message.topic)),
            payload: STANDARD.encode(&message.payload),
        }
    }
}

/// A message to be sent.
#[derive(Debug, Deserialize)]
pub(super) struct MessageRequest {
    dst: Destination,
    #[serde(default)]
    topic: Option<Base64>,
    payload: Base64,
}

impl From<MessageRequest> for Outbound {
    fn from(request: MessageRequest) -> Self {
        Self {
            destination: match request.dst {
                Destination::Ip(address) => address,
                Destination::Pk(key) => key.0.address(),
            },
            topic: request.topic.map(|topic| topic.0).unwrap_or_default(),
            payload: request.payload.0,
        }
    }
}

/// `{ip}` or `{pk}`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Destination {
    Ip(Ipv6Addr),
    Pk(Key),
}

#[derive(Debug)]
struct Key(PublicKey);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(D::Error::custom)
    }
}

/// Bytes in standard base64 with padding.
#[derive(Debug)]
pub(super) struct Base64(pub(super) Vec<u8>);

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Self).map_err(D::Error::custom)
    }
}

/// Bytes as base64.
pub(super) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Bytes from base64.
pub(super) fn from_base64(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

/// `{id}`.
#[derive(Debug, Serialize)]
pub(super) struct IdInfo {
    pub(super) id: String,
}

/// How far a message is.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StatusInfo {
    dst: IpAddr,
    state: StateInfo,
    created: u64,
    deadline: u64,
    msg_len: usize,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
enum StateInfo {
    Pending,
    Sending { pending: u64, sent: u64, acked: u64 },
    Received,
    Read,
    Aborted,
}

impl From<Status> for StatusInfo {
    fn from(status: Status) -> Self {
        Self {
            dst: status.destination.into(),
            state: match status.state {
                State::Pending => StateInfo::Pending,
                State::Sending { pending, sent, acked } => {
                    StateInfo::Sending { pending, sent, acked }
                }
                State::Received => StateInfo::Received,
                State::Read => StateInfo::Read,
                State::Aborted => StateInfo::Aborted,
            },
            created: unix_seconds(status.created),
            deadline: unix_seconds(status.deadline),
            msg_len: status.length,
        }
    }
}

/// `{accept}`.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct DefaultTopicAction {
    pub(super) accept: bool,
}

/// A moment in seconds since 1970, by the clock of now.
fn unix_seconds(at: Instant) -> u64 {
    let (now, wall) = (Instant::now(), SystemTime::now());
    let at = match at.checked_duration_since(now) {
        Some(ahead) => wall.checked_add(ahead),
        None => wall.checked_sub(now.saturating_duration_since(at)),
    };
    let age = at.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    age.map_or(0, |age| age.as_secs())
}

fn as_text<T: ToString, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&value.to_string())
}

fn metric<S: Serializer>(metric: &Metric, serializer: S) -> Result<S::Ok, S::Error> {
    if metric.is_infinite() {
        serializer.serialize_str("infinite")
    } else {
        serializer.serialize_u16(metric.0)
    }
}

fn seconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&time.as_secs().to_string())
}
