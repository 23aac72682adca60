//! The data plane: packets from TUN to links, from links to TUN, and from link to link.
//!
//! Each thread that has a packet carries it through to the end: [`egress`] in the threads that read TUN,
//! [`ingress`] in the tasks that read links. They share a [`DataPlane`], of which the hot parts are read
//! without locks ([`table`]). No packet passes a channel.
//!
//! ```text
//!  TUN ──> egress: cut, look up, seal ──────────────────────────> link
//!  link ──> ingress: ours? ──yes──> open, check, join ──────────> TUN, or messages
//!                    └─no──> hop limit, look up ────────────────> link
//!           no route? ──> waiting ──route found──> link or TUN
//!                              └──no route──> ICMPv6 error to TUN
//! ```
//!
//! Packets for nodes that can are sealed with a [`session`], which others don't notice.
//!
//! What the router must know, that a route is wanted or used and that a link is alive, goes to its owner
//! as [`Signal`]s: few, bounded, and lost without harm when there are too many.

pub(crate) mod egress;
pub(crate) mod ingress;
mod mss;
pub(crate) mod session;
pub(crate) mod statistics;
pub(crate) mod table;
#[cfg(test)]
mod tests;
mod waiting;

use std::io::IoSlice;
use std::net::Ipv6Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use mycelium_router::LinkId;
use mycelium_wire::RandomError;
use mycelium_wire::cipher::{Nonces, SEAL_OVERHEAD};
use mycelium_wire::frame::{DATA_HEADER_SIZE, DATA_OVERHEAD, DataHeader};
use mycelium_wire::icmp::{self, ERROR_HOP_LIMIT, IcmpError, Unreachable};
use mycelium_wire::identity::{PublicKey, SecretKey, Subnet};
use mycelium_wire::inner::{INNER_HEADER_SIZE, InnerType};
use tokio::sync::mpsc;

use crate::data::session::Sessions;
use crate::data::statistics::Statistics;
use crate::data::table::{Destination, Prefix, Table};
use crate::data::waiting::{Ask, Held, Kind, Waiting};
use crate::link::Link;
use crate::probe::Probes;
use crate::tun::coalesce::Sink;
use crate::tun::vnet::VnetHeader;
use crate::tun::{MTU, Tun};

/// What the router's owner must know.
#[derive(Debug)]
pub(crate) enum Signal {
    /// Packets wait for a route.
    Wanted(Subnet),
    /// Packets took a route.
    Used(Arc<Destination>),
    /// Packets for a subnet that took this link did not arrive.
    Astray(Subnet, LinkId),
    /// Bytes came over a link.
    Heard(Arc<Link>),
}

/// A packet of the message subsystem that arrived.
#[derive(Debug)]
pub(crate) struct MessagePacket {
    /// Who sent it; its subnet was proved.
    pub(crate) source: Ipv6Addr,
    /// To which of this node's addresses.
    pub(crate) destination: Ipv6Addr,
    /// The key of the source's node.
    pub(crate) public_key: PublicKey,
    /// The packet.
    pub(crate) payload: Vec<u8>,
}

/// What data packets met with.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Packets that left TUN for a link.
    pub(crate) sent: AtomicU64,
    /// Packets that were for this node and whole.
    pub(crate) received: AtomicU64,
    /// Packets passed on.
    pub(crate) forwarded: AtomicU64,
    /// Packets that found no route when they came.
    pub(crate) without_route: AtomicU64,
    /// Packets whose hop limit was used up.
    pub(crate) expired: AtomicU64,
    /// Packets that the next link does not take for their size.
    pub(crate) too_big: AtomicU64,
    /// Packets that no key opened, or whose inside does not match their outside.
    pub(crate) forged: AtomicU64,
}

/// Adds to a counter.
fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// What all who carry packets share.
pub(crate) struct DataPlane {
    secret: SecretKey,
    pub(crate) address: Ipv6Addr,
    pub(crate) own: Prefix,
    table: Arc<Table>,
    tun: Option<Tun>,
    waiting: Mutex<Waiting>,
    signals: mpsc::Sender<Signal>,
    messages: mpsc::Sender<MessagePacket>,
    sessions: Arc<Sessions>,
    /// For the few packets that come from neither TUN nor a link.
    nonces: Mutex<Nonces>,
    errors: Mutex<Budget>,
    counters: Counters,
    statistics: Statistics,
    pub(crate) probes: Probes,
}

impl DataPlane {
    pub(crate) fn new(
        secret: SecretKey,
        table: Arc<Table>,
        tun: Option<Tun>,
        signals: mpsc::Sender<Signal>,
        messages: mpsc::Sender<MessagePacket>,
        sessions: Arc<Sessions>,
    ) -> Result<Self, RandomError> {
        let address = secret.public().address();
        Ok(Self {
            secret,
            address,
            own: Prefix::of(address),
            table,
            tun,
            waiting: Mutex::default(),
            signals,
            messages,
            sessions,
            nonces: Mutex::new(Nonces::new()?),
            errors: Mutex::new(Budget::new(Instant::now())),
            counters: Counters::default(),
            statistics: Statistics::default(),
            probes: Probes::new()?,
        })
    }

    /// All destinations.
    pub(crate) fn table(&self) -> &Table {
        &self.table
    }

    /// The TUN device, if there is one.
    pub(crate) fn tun(&self) -> Option<&Tun> {
        self.tun.as_ref()
    }

    /// What packets met with.
    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Who has a session with this node.
    pub(crate) fn sessions(&self) -> &Arc<Sessions> {
        &self.sessions
    }

    /// Who sent and received how much.
    pub(crate) fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// Sends what this node itself has to say, now or when there is a route.
    pub(crate) fn send(
        &self,
        inner_type: InnerType,
        source: Ipv6Addr,
        destination: Ipv6Addr,
        payload: &[u8],
    ) {
        let mut packet = vec![0; DATA_OVERHEAD + payload.len()];
        packet[PAYLOAD_OFFSET..][..payload.len()].copy_from_slice(payload);
        write_headers(&mut packet, ERROR_HOP_LIMIT, source, destination, inner_type);
        let now = Instant::now();
        let prefix = Prefix::of(destination);
        match self.route(prefix) {
            Some((to, link)) => self.dispatch(&to, &link, &mut packet, now),
            None => self.hold(prefix, Kind::Own, &packet, now),
        }
    }

    /// Sends what waited for a route, which now is there.
    pub(crate) fn release(&self, prefix: Prefix, now: Instant) {
        let packets = lock(&self.waiting).take(prefix);
        if packets.is_empty() {
            return;
        }
        let Some(destination) = self.table.get(prefix) else { return };
        let mut arrived = ingress::Ingress::without_link(self);
        for Held { kind, mut bytes } in packets {
            match (kind, destination.link()) {
                (Kind::Arrived, _) => arrived.deliver_one(&mut bytes, &destination),
                // It came to a node without a route, so it is the first that is dropped for its size.
                (Kind::Transit, Some(link))
                    if too_big_for(&destination, &link, bytes.len()).is_none() =>
                {
                    link.send_data(&bytes, now);
                }
                (Kind::Own, Some(link)) => self.dispatch(&destination, &link, &mut bytes, now),
                (Kind::Transit, _) | (Kind::Own, None) => {}
            }
        }
    }

    /// Drops what waited for a route that nobody knows, and says so to this node's hosts.
    pub(crate) fn give_up(&self, prefix: Prefix) {
        let packets = lock(&self.waiting).take(prefix);
        for Held { kind, bytes } in packets {
            let is_packet = bytes.get(DATA_HEADER_SIZE + 1) == Some(&(InnerType::Packet as u8));
            if kind == Kind::Own && is_packet && bytes.len() > DATA_OVERHEAD {
                let packet = &bytes[PAYLOAD_OFFSET..bytes.len() - SEAL_OVERHEAD];
                self.answer(packet, IcmpError::Unreachable(Unreachable::NoRoute));
            }
        }
    }

    /// Gives up what waited for too long. The router says when it gives up; this is for what it never
    /// heard of, since there were too many.
    pub(crate) fn sweep(&self, now: Instant) {
        let overdue = lock(&self.waiting).overdue(now);
        for prefix in overdue {
            self.give_up(prefix);
        }
    }

    /// Whether no packet waits.
    pub(crate) fn is_idle(&self) -> bool {
        lock(&self.waiting).is_empty()
    }

    /// Where packets for a subnet go, and that they do.
    fn route(&self, prefix: Prefix) -> Option<(Arc<Destination>, Arc<Link>)> {
        let destination = self.table.get(prefix)?;
        let link = destination.link()?;
        self.note_use(&destination);
        Some((destination, link))
    }

    fn note_use(&self, destination: &Arc<Destination>) {
        if destination.used() {
            let signal = Signal::Used(Arc::clone(destination));
            if self.signals.try_send(signal).is_err() {
                destination.listen();
            }
        }
    }

    /// Keeps a packet while the router looks for a route.
    fn hold(&self, prefix: Prefix, kind: Kind, packet: &[u8], now: Instant) {
        count(&self.counters.without_route, 1);
        let ask = lock(&self.waiting).push(prefix, kind, packet, now);
        if ask == Ask::Yes {
            // When there are too many signals, the next packet asks again a second later.
            let _ = self.signals.try_send(Signal::Wanted(prefix.subnet()));
        }
        // The route may have been found since it was looked up.
        let is_known = self
            .table
            .get(prefix)
            .is_some_and(|destination| kind == Kind::Arrived || destination.link().is_some());
        if is_known {
            self.release(prefix, now);
        }
    }

    /// Keeps a packet of this node's, not sealed yet, while the router looks for a route.
    fn hold_own(&self, packet: &[u8], destination: Ipv6Addr, now: Instant) {
        self.hold(Prefix::of(destination), Kind::Own, packet, now);
    }

    /// Sends a packet in the form that existing nodes know.
    fn seal_and_send(&self, to: &Destination, link: &Link, packet: &mut [u8], now: Instant) {
        let Ok(nonce) = lock(&self.nonces).next() else { return };
        to.key(&self.secret).seal_in_place(nonce, &mut packet[DATA_HEADER_SIZE..]);
        link.send_data(packet, now);
    }

    /// Tells a host of this node why its packet was dropped.
    fn answer(&self, packet: &[u8], error: IcmpError) {
        if self.probes.refused(packet, error, self.address) {
            return;
        }
        let Some(header) = packet.first_chunk() else { return };
        if !icmp::may_answer(packet, false) || !lock(&self.errors).take(Instant::now()) {
            return;
        }
        let (source, _) = icmp::addresses(header);
        self.write_error(error, self.address, source, ERROR_HOP_LIMIT, packet);
    }

    /// Gives the kernel an ICMPv6 error.
    fn write_error(
        &self,
        error: IcmpError,
        source: Ipv6Addr,
        destination: Ipv6Addr,
        hop_limit: u8,
        original: &[u8],
    ) {
        let Some(tun) = &self.tun else { return };
        let mut packet = Vec::with_capacity(icmp::ERROR_SIZE_MAX);
        icmp::write_error(error, source, destination, hop_limit, original, &mut packet);
        let header = VnetHeader::default().encode();
        tun.queue(0).write(&[IoSlice::new(&header), IoSlice::new(&packet)]);
    }
}

/// Where a data packet's payload begins.
const PAYLOAD_OFFSET: usize = DATA_HEADER_SIZE + INNER_HEADER_SIZE;

/// Largest payload that this node sends.
const PAYLOAD_SIZE_MAX: usize = MTU as usize;

/// Writes all headers of a data packet around a payload that is in place already. `packet` is as large
/// as the packet will be.
fn write_headers(
    packet: &mut [u8],
    hop_limit: u8,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    inner_type: InnerType,
) {
    // No payload is larger than a packet of TUN.
    let length = u16::try_from(packet.len() - DATA_HEADER_SIZE).unwrap_or(u16::MAX);
    let header = DataHeader { hop_limit, source, destination, length };
    packet[..DATA_HEADER_SIZE].copy_from_slice(&header.encode());
    packet[DATA_HEADER_SIZE..PAYLOAD_OFFSET].copy_from_slice(&inner_type.header());
}

/// The MTU of a link, when a data packet of `size` bytes that is passed on carries more. By how much its form
/// adds least, a few bytes too many are let pass, which no node minds.
fn too_big_for(to: &Destination, link: &Link, size: usize) -> Option<u16> {
    let inside = size.saturating_sub(DATA_OVERHEAD);
    if inside <= PAYLOAD_SIZE_MAX {
        return None;
    }
    let mtu = link.mtu(to.public_key());
    (inside > usize::from(mtu)).then_some(mtu)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many ICMPv6 errors a node sends (RFC 4443 §2.4 f).
#[derive(Debug)]
struct Budget {
    left: u32,
    filled: Instant,
}

/// Errors at once, and in a second.
const ERROR_COUNT_MAX: u32 = 100;

impl Budget {
    fn new(now: Instant) -> Self {
        Self { left: ERROR_COUNT_MAX, filled: now }
    }

    /// Whether one more may be sent.
    fn take(&mut self, now: Instant) -> bool {
        let millis = now.saturating_duration_since(self.filled).as_millis();
        let earned = u32::try_from(millis * u128::from(ERROR_COUNT_MAX) / 1000);
        let earned = earned.unwrap_or(ERROR_COUNT_MAX);
        if earned > 0 {
            self.left = self.left.saturating_add(earned).min(ERROR_COUNT_MAX);
            self.filled = now;
        }
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }
}
