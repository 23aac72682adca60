//! From TUN to links: a thread for each queue of the device.
//!
//! A thread reads one packet or super packet at a time, cuts it into the buffer of its batch, each
//! segment with room for headers around it, seals it there, and gives the batch to the link when the
//! next packet goes elsewhere, when TUN has no more, or when the batch is large enough.

use std::net::Ipv6Addr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use mycelium_wire::RandomError;
use mycelium_wire::cipher::{Nonces, SEAL_OVERHEAD};
use mycelium_wire::frame::{DATA_HEADER_SIZE, DATA_OVERHEAD};
use mycelium_wire::icmp::{IcmpError, Unreachable};
use mycelium_wire::identity::OVERLAY;
use mycelium_wire::inner::InnerType;
use mycelium_wire::session::Kind as SessionKind;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use crate::data::session::channel::{Channel, Parcel, Way};
use crate::data::session::packets::{SESSION_OVERHEAD, SESSION_PAYLOAD_OFFSET, seal_packet};
use crate::data::statistics::Tally;
use crate::data::table::{Destination, Prefix};
use crate::data::waiting::Kind;
use crate::data::{DataPlane, PAYLOAD_OFFSET, count, mss, write_headers};
use crate::link::Link;
use crate::tun::segment::{IPV6_HEADER_SIZE, Segments};
use crate::tun::vnet::{self, VnetHeader};
use crate::tun::{MTU, READ_SIZE_MAX, Tun};

/// A batch this large is sent even if there is more.
const BATCH_SIZE_FULL: usize = 48 << 10;
/// Memory of a batch: one that is almost full and a packet of any size.
const BATCH_SIZE_MAX: usize = BATCH_SIZE_FULL + READ_SIZE_MAX + DATA_OVERHEAD;
/// Packets that are answered, not sent on, with a hop limit below this.
const HOP_LIMIT_MIN: u8 = 2;

/// Reads queue `number` until `stop` becomes readable or the device is gone.
pub(crate) fn run(plane: &DataPlane, tun: &Tun, number: usize, stop: &OwnedFd) {
    let mut egress = match Egress::new(plane) {
        Ok(egress) => egress,
        Err(error) => return tracing::error!(%error, "TUN is not read"),
    };
    let queue = tun.queue(number);
    let mut buffer = vec![0; READ_SIZE_MAX].into_boxed_slice();
    loop {
        match queue.read(&mut buffer) {
            Ok(size) => egress.take(&mut buffer[..size]),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                egress.flush();
                let file = queue.file();
                let mut events =
                    [PollFd::new(&file, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
                let polled = rustix::event::poll(&mut events, None);
                if polled.is_ok() && !events[1].revents().is_empty() {
                    return;
                }
            }
            Err(error) => return tracing::error!(%error, "TUN can't be read any more"),
        }
    }
}

/// What a thread that reads TUN carries.
struct Egress<'a> {
    plane: &'a DataPlane,
    nonces: Nonces,
    batch: Box<[u8]>,
    filled: usize,
    packet_count: u64,
    /// Where the batch goes.
    link: Option<Arc<Link>>,
    tally: Tally,
}

/// What becomes of a packet.
enum Verdict {
    Send { source: Ipv6Addr, destination: Ipv6Addr, hop_limit: u8 },
    Answer(IcmpError),
    Drop,
}

impl<'a> Egress<'a> {
    fn new(plane: &'a DataPlane) -> Result<Self, RandomError> {
        Ok(Self {
            plane,
            nonces: Nonces::new()?,
            batch: vec![0; BATCH_SIZE_MAX].into_boxed_slice(),
            filled: 0,
            packet_count: 0,
            link: None,
            tally: Tally::default(),
        })
    }

    /// Takes what TUN gave: a header and a packet.
    fn take(&mut self, bytes: &mut [u8]) {
        let Some((header, packet)) = bytes.split_first_chunk_mut::<{ vnet::SIZE }>() else {
            return;
        };
        let header = VnetHeader::decode(header);
        match self.judge(packet) {
            Verdict::Send { source, destination, hop_limit } => {
                if mss::is_candidate(packet) {
                    self.clamp(packet, destination, header.checksum.is_none());
                }
                if let Some(segments) = Segments::new(header, packet) {
                    self.send(segments, hop_limit, source, destination);
                }
            }
            Verdict::Answer(error) => self.plane.answer(packet, error),
            Verdict::Drop => {}
        }
    }

    /// Has the other side of a connection that begins send no more than the link can bring.
    fn clamp(&self, packet: &mut [u8], destination: Ipv6Addr, is_summed: bool) {
        let link = self.plane.table.get(Prefix::of(destination)).and_then(|to| to.link());
        if let Some(size_max) = link.and_then(|link| link.brings_at_most()) {
            mss::clamp(packet, size_max, is_summed);
        }
    }

    fn judge(&self, packet: &[u8]) -> Verdict {
        let Some(header) = packet.first_chunk::<IPV6_HEADER_SIZE>() else { return Verdict::Drop };
        if header[0] >> 4 != 6 {
            return Verdict::Drop;
        }
        let (source, destination) = mycelium_wire::icmp::addresses(header);
        let hop_limit = header[7];
        if !OVERLAY.contains(destination) {
            // Such as what the kernel asks of routers on a new interface.
            return Verdict::Drop;
        }
        if Prefix::of(destination) == self.plane.own {
            return Verdict::Answer(IcmpError::Unreachable(Unreachable::Address));
        }
        if Prefix::of(source) != self.plane.own {
            // Nobody could open it, since its key is found by its source.
            return Verdict::Answer(IcmpError::Unreachable(Unreachable::SourcePolicy));
        }
        if hop_limit < HOP_LIMIT_MIN {
            return Verdict::Answer(IcmpError::TimeExceeded);
        }
        Verdict::Send { source, destination, hop_limit: hop_limit - 1 }
    }

    fn send(
        &mut self,
        mut segments: Segments<'_>,
        hop_limit: u8,
        source: Ipv6Addr,
        destination: Ipv6Addr,
    ) {
        let prefix = Prefix::of(destination);
        let route = self.plane.route(prefix);
        let now = Instant::now();
        if segments.size_max() > usize::from(MTU) {
            // Only a device whose MTU was raised gives such packets.
            let mtu = route.as_ref().map_or(MTU, |(to, link)| mtu_to(to, link, now));
            if segments.size_max() > usize::from(mtu) {
                let error = IcmpError::PacketTooBig { mtu: mtu.into() };
                return self.plane.answer(segments.packet(), error);
            }
        }
        if let Some((to, _)) = &route {
            to.used_here();
        }
        let link = route.as_ref().map(|(_, link)| link);
        if !is_same(self.link.as_ref(), link) {
            self.flush();
            self.link = link.cloned();
        }
        let way = route.as_ref().map(|(to, _)| self.plane.way(to, now));
        let (offset, overhead) = match &way {
            Some((Way::Session(_), _)) => (SESSION_PAYLOAD_OFFSET, SESSION_OVERHEAD),
            _ => (PAYLOAD_OFFSET, DATA_OVERHEAD),
        };
        let header = (hop_limit, source, destination);
        loop {
            if self.filled + segments.size_max() + overhead > self.batch.len() {
                self.flush();
            }
            let room = &mut self.batch[self.filled..];
            let Some(size) = segments.next_into(&mut room[offset..]) else { break };
            let size = size + overhead;
            self.tally.add(source, destination, size, &self.plane.statistics);
            match (&route, &way) {
                (Some((to, _)), Some((way, channel))) => {
                    self.carry(to, way, channel.as_ref(), size, header, now);
                }
                _ => {
                    let packet = &mut room[..size];
                    write_headers(packet, hop_limit, source, destination, InnerType::Packet);
                    self.plane.hold(prefix, Kind::Own, packet, now);
                }
            }
        }
        if self.filled >= BATCH_SIZE_FULL {
            self.flush();
        }
    }

    /// Does with the packet behind the batch, whose payload is in place, what its way says. If it is
    /// sealed, it belongs to the batch then.
    fn carry(
        &mut self,
        to: &Arc<Destination>,
        way: &Way,
        channel: Option<&Arc<Channel>>,
        size: usize,
        header: (u8, Ipv6Addr, Ipv6Addr),
        now: Instant,
    ) {
        let packet = &mut self.batch[self.filled..][..size];
        let (hop_limit, source, destination) = header;
        match way {
            Way::Session(session) => {
                let time = self.plane.sessions.time(now);
                if seal_packet(session, packet, header, SessionKind::PACKET, time).is_err() {
                    // It is over since this super packet was read.
                    return count(&self.plane.sessions.counters().unsent, 1);
                }
            }
            Way::Old => {
                let Ok(nonce) = self.nonces.next() else { return };
                write_headers(packet, hop_limit, source, destination, InnerType::Packet);
                to.key(&self.plane.secret).seal_in_place(nonce, &mut packet[DATA_HEADER_SIZE..]);
            }
            Way::Park | Way::Refuse => {
                let payload = &packet[PAYLOAD_OFFSET..size - SEAL_OVERHEAD];
                return match channel.filter(|_| matches!(way, Way::Park)) {
                    Some(channel) => {
                        let parcel = Parcel {
                            kind: SessionKind::PACKET,
                            hop_limit,
                            source,
                            destination,
                            payload: payload.into(),
                        };
                        self.plane.park(to, channel, parcel, now);
                    }
                    None => {
                        count(&self.plane.sessions.counters().unsent, 1);
                        let error = IcmpError::Unreachable(Unreachable::Address);
                        self.plane.answer(payload, error);
                    }
                };
            }
        }
        self.filled += size;
        self.packet_count += 1;
    }

    /// Gives the batch to its link.
    fn flush(&mut self) {
        if let Some(link) = &self.link
            && self.filled > 0
        {
            link.send_data(&self.batch[..self.filled], Instant::now());
            count(&self.plane.counters.sent, self.packet_count);
        }
        self.filled = 0;
        self.packet_count = 0;
        self.tally.flush(&self.plane.statistics);
    }
}

/// The largest packet that may go to `to`.
fn mtu_to(to: &Destination, link: &Link, now: Instant) -> u16 {
    let mtu = link.mtu(to.public_key());
    to.limited(now).map_or(mtu, |limit| limit.min(mtu))
}

fn is_same(a: Option<&Arc<Link>>, b: Option<&Arc<Link>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    }
}

const _: () = assert!(PAYLOAD_OFFSET + SEAL_OVERHEAD == DATA_OVERHEAD);
