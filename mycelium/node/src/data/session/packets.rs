//! Packets on their way into sessions and out of them, and what is done with those that have none.
//!
//! ```text
//!  old form   headers 40 │ inner header 4 │ payload          │ tag 16 │ nonce 12
//!  session    headers 40 │ index 4 │ counter 8 │ kind 1 │ payload │ tag 16
//! ```
//!
//! The thread that reads TUN writes the second form itself ([`crate::data::egress`]); here are the few
//! packets that come from elsewhere, or had to wait.

use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Instant;

use mycelium_wire::cipher::SEAL_OVERHEAD;
use mycelium_wire::frame::{
    self, DATA_HEADER_SIZE, DATA_OVERHEAD, DATA_SOURCE_OFFSET, DataHeader, Frame,
};
use mycelium_wire::icmp::{ERROR_HOP_LIMIT, IcmpError, Unreachable};
use mycelium_wire::identity::PublicKey;
use mycelium_wire::inner::{self, InnerType};
use mycelium_wire::session::{self, Kind, SealError, Session};

use crate::data::session::channel::{Channel, Parcel, Way};
use crate::data::table::{Destination, Prefix};
use crate::data::{DataPlane, PAYLOAD_OFFSET, PAYLOAD_SIZE_MAX, Signal, count, write_headers};
use crate::link::Link;

/// Where a payload begins in a packet of a session.
pub(crate) const SESSION_PAYLOAD_OFFSET: usize = DATA_HEADER_SIZE + session::DATA_HEADER_SIZE + 1;
/// What a packet of a session has besides its payload.
pub(crate) const SESSION_OVERHEAD: usize = DATA_HEADER_SIZE + session::DATA_OVERHEAD + 1;

const _: () = assert!(SESSION_OVERHEAD < DATA_OVERHEAD);

/// Writes headers and kind around a payload that is in place, and seals it. `packet` is as large as the
/// packet will be.
pub(crate) fn seal_packet(
    session: &Session,
    packet: &mut [u8],
    header: (u8, Ipv6Addr, Ipv6Addr),
    kind: Kind,
    now: session::Time,
) -> Result<(), SealError> {
    packet[SESSION_PAYLOAD_OFFSET - 1] = kind.0;
    seal(session, packet, header, now)
}

fn seal(
    session: &Session,
    packet: &mut [u8],
    (hop_limit, source, destination): (u8, Ipv6Addr, Ipv6Addr),
    now: session::Time,
) -> Result<(), SealError> {
    // No payload is larger than a packet of TUN.
    let length = u16::try_from(packet.len() - DATA_HEADER_SIZE).unwrap_or(u16::MAX);
    let header = DataHeader { hop_limit, source, destination, length };
    let (head, body) = packet.split_at_mut(DATA_HEADER_SIZE);
    head.copy_from_slice(&header.encode());
    session.seal(&head[DATA_SOURCE_OFFSET..], body, now)
}

impl Parcel {
    /// What a packet in the old form, not sealed yet, has in it; none when it must stay in that form.
    fn of(packet: &[u8]) -> Option<Self> {
        let Ok(Some((Frame::Data(data), _))) = frame::parse(packet) else { return None };
        let body = data.body.get(..data.body.len().checked_sub(SEAL_OVERHEAD)?)?;
        let (kind, payload) = match inner::parse(body) {
            Ok((InnerType::Packet, payload)) => (Kind::PACKET, payload),
            Ok((InnerType::Message, payload)) => (Kind::MESSAGE, payload),
            _ => return None,
        };
        let DataHeader { hop_limit, source, destination, .. } = data.header;
        Some(Self { kind, hop_limit, source, destination, payload: payload.into() })
    }

    /// The packet in the old form, not sealed yet; none when that form has no such packets.
    fn old_form(&self) -> Option<Vec<u8>> {
        let inner_type = match self.kind {
            Kind::PACKET => InnerType::Packet,
            Kind::MESSAGE => InnerType::Message,
            _ => return None,
        };
        let mut packet = vec![0; DATA_OVERHEAD + self.payload.len()];
        packet[PAYLOAD_OFFSET..][..self.payload.len()].copy_from_slice(&self.payload);
        write_headers(&mut packet, self.hop_limit, self.source, self.destination, inner_type);
        Some(packet)
    }

    /// The packet, sealed.
    fn sealed(&self, session: &Session, now: session::Time) -> Option<Vec<u8>> {
        let mut packet = vec![0; SESSION_OVERHEAD + self.payload.len()];
        packet[SESSION_PAYLOAD_OFFSET..][..self.payload.len()].copy_from_slice(&self.payload);
        let header = (self.hop_limit, self.source, self.destination);
        seal_packet(session, &mut packet, header, self.kind, now).ok()?;
        Some(packet)
    }
}

impl DataPlane {
    /// Which way packets for a destination go. Whoever finds none asks the keeper for one.
    pub(crate) fn way(&self, to: &Destination, now: Instant) -> (Way, Option<Arc<Channel>>) {
        let Some(channel) = self.sessions.channel(to) else { return (Way::Old, None) };
        let way = channel.way(to.is_announced(), self.sessions.time(now));
        if !matches!(way, Way::Session(_)) && (to.is_announced() || channel.is_proved()) {
            self.sessions.want(channel, now);
        }
        (way, Some(Arc::clone(channel)))
    }

    /// Sends a packet in the old form, not sealed yet, whichever way is right.
    pub(in crate::data) fn dispatch(
        &self,
        to: &Destination,
        link: &Link,
        packet: &mut [u8],
        now: Instant,
    ) {
        match Parcel::of(packet) {
            Some(parcel) => self.send_parcel(to, link, parcel, now),
            // Handshakes, and errors of nodes on the way, have no session.
            None => self.seal_and_send(to, link, packet, now),
        }
    }

    fn send_parcel(&self, to: &Destination, link: &Link, parcel: Parcel, now: Instant) {
        match self.way(to, now) {
            (Way::Session(session), _) => match parcel.sealed(&session, self.sessions.time(now)) {
                Some(packet) => link.send_data(&packet, now),
                None => count(&self.sessions.counters.unsent, 1),
            },
            (Way::Old, _) => match parcel.old_form() {
                Some(mut packet) => self.seal_and_send(to, link, &mut packet, now),
                None => count(&self.sessions.counters.unsent, 1),
            },
            (Way::Park, Some(channel)) => self.park(to, &channel, parcel, now),
            (Way::Park | Way::Refuse, _) => self.refuse_parcel(&parcel),
        }
    }

    /// Keeps a packet until the handshake is done, unless it is done by now.
    pub(in crate::data) fn park(
        &self,
        to: &Destination,
        channel: &Arc<Channel>,
        parcel: Parcel,
        now: Instant,
    ) {
        self.sessions.park(channel, parcel);
        let way = channel.way(to.is_announced(), self.sessions.time(now));
        if !matches!(way, Way::Park) {
            self.unpark(channel, now);
        }
    }

    /// Sends, or gives up, what waited for a handshake.
    pub(in crate::data) fn unpark(&self, channel: &Channel, now: Instant) {
        let parcels = channel.unpark(&self.sessions.parked_size);
        let Some(first) = parcels.front() else { return };
        // Without a route, what is left is held back in the old form, and comes here again.
        let route = self.route(Prefix::of(first.destination));
        for parcel in parcels {
            match &route {
                Some((to, link)) => self.send_parcel(to, link, parcel, now),
                None => match parcel.old_form() {
                    Some(packet) => self.hold_own(&packet, parcel.destination, now),
                    None => count(&self.sessions.counters.unsent, 1),
                },
            }
        }
    }

    fn refuse_parcel(&self, parcel: &Parcel) {
        count(&self.sessions.counters.unsent, 1);
        if parcel.kind == Kind::PACKET {
            self.answer(&parcel.payload, IcmpError::Unreachable(Unreachable::Address));
        }
    }

    /// Sends something of `kind` to a peer inside a session, which is made if there is none. False when
    /// that is impossible: this node speaks no sessions, or it is too large.
    pub(crate) fn send_session(&self, peer: PublicKey, kind: Kind, payload: &[u8]) -> bool {
        if payload.len() > PAYLOAD_SIZE_MAX {
            return false;
        }
        let Some(channel) = self.sessions.channel_of(peer) else { return false };
        let (now, destination) = (Instant::now(), peer.address());
        let parcel = Parcel {
            kind,
            hop_limit: ERROR_HOP_LIMIT,
            source: self.address,
            destination,
            payload: payload.into(),
        };
        let time = self.sessions.time(now);
        let route = self.route(Prefix::of(destination));
        // Of two keys with the same /64, one is not the peer's.
        let route = route.filter(|(to, _)| to.public_key() == peer);
        let session = channel.ring().current().filter(|session| !session.is_over(time)).cloned();
        match (session, route) {
            (Some(session), Some((_, link))) => {
                let Some(packet) = parcel.sealed(&session, time) else { return false };
                link.send_data(&packet, now);
            }
            (Some(_), None) => {
                count(&self.sessions.counters.unsent, 1);
                return false;
            }
            (None, _) => {
                self.sessions.want(&channel, now);
                if channel.is_unanswered() {
                    count(&self.sessions.counters.unsent, 1);
                    return false;
                }
                self.sessions.park(&channel, parcel);
            }
        }
        true
    }

    /// Whether the route to a peer says that it speaks sessions.
    pub(in crate::data) fn is_announced(&self, peer: PublicKey) -> bool {
        let destination = self.table.get(Prefix::of(peer.address()));
        destination.is_some_and(|to| to.public_key() == peer && to.is_announced())
    }

    /// Says that what is sent to a peer does not arrive: it speaks sessions, and does not answer.
    pub(in crate::data) fn note_astray(&self, peer: PublicKey) {
        let prefix = Prefix::of(peer.address());
        let link = self.table.get(prefix).and_then(|destination| destination.link());
        if let Some(link) = link {
            // Lost without harm: the next handshake that nobody answers says it again.
            let _ = self.signals.try_send(Signal::Astray(prefix.subnet(), link.id()));
        }
    }

    /// Tells a peer that this node is there.
    pub(in crate::data) fn send_sign_of_life(&self, channel: &Channel, now: Instant) {
        let peer = channel.peer();
        let Some((_, link)) = self.route(Prefix::of(peer.address())) else { return };
        let ring = channel.ring();
        let Some(session) = ring.current() else { return };
        let mut packet = [0; DATA_HEADER_SIZE + session::DATA_OVERHEAD];
        let header = (ERROR_HOP_LIMIT, self.address, peer.address());
        if seal(session, &mut packet, header, self.sessions.time(now)).is_ok() {
            link.send_data(&packet, now);
        }
    }

    /// Opens a packet of ours that a node on the way sent back, and gives the IPv6 packet in it.
    pub(in crate::data) fn reopen<'a>(
        &self,
        to: &Destination,
        source: Ipv6Addr,
        destination: Ipv6Addr,
        body: &'a mut [u8],
    ) -> Option<&'a [u8]> {
        let ring = self.sessions.channel(to).map(|channel| channel.ring());
        let is_session = ring.as_ref().is_some_and(|ring| ring.has_sealed(body));
        if let Some(ring) = ring.filter(|_| is_session) {
            let mut aad = [0; 32];
            aad[..16].copy_from_slice(&source.octets());
            aad[16..].copy_from_slice(&destination.octets());
            let (kind, packet) = ring.reopen(&aad, body)?.split_first()?;
            return (*kind == Kind::PACKET.0).then_some(packet);
        }
        let body = to.key(&self.secret).open_in_place(body).ok()?;
        match inner::parse(body) {
            Ok((InnerType::Packet, packet)) => Some(packet),
            _ => None,
        }
    }
}
