//! A link over a QUIC connection: data in datagrams, control packets on one bidirectional stream.
//!
//! A data packet that is larger than a datagram may be goes on the stream as well, where existing
//! releases take it; with their limit of 1472 bytes that is every full-size packet
//! (`reference: mycelium 3.6`). The stream's queue is that of all links ([`Outbound`]), and the stream gets
//! little more than the path takes, so that what waits can be dropped; datagrams wait in quinn, which drops
//! the oldest when there are too many.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use mycelium_wire::frame::{self, DATA_OVERHEAD, PACKET_SIZE_MAX};
use quinn::{Connection, RecvStream, SendStream, VarInt};
use tokio::io::AsyncWrite;
use tokio::sync::Notify;

use crate::link::outbound::{Outbound, Sent, Transmit, packet_size};
use crate::link::stream::{Inbound, LinkError};

/// A connection, its stream, and what waits to leave on it.
pub(crate) struct QuicCarrier {
    connection: Connection,
    /// Taken by the link's task.
    streams: Mutex<Option<(SendStream, RecvStream)>>,
    outbound: Mutex<Outbound>,
    waiting: Notify,
    sent_size: AtomicU64,
}

/// The largest datagram that is tried and taken: what every Ethernet carries, PPPoE's too, over IPv6. An
/// existing node begins with 1500 bytes, which few paths carry, or with what its peer says it takes, if that
/// is less; so this is what keeps its packets from getting lost, whatever it finds out later.
pub(crate) const UDP_SIZE_MAX: u16 = 1444;
/// What every path of QUIC takes (RFC 9000 §14), and where it falls back to.
const UDP_SIZE_MIN: u16 = 1200;
/// What a datagram of QUIC has besides its payload, as quinn reckons: flags 1, connection id 8, packet
/// number 4, tag 16, frame 9; and two more.
const QUIC_OVERHEAD_MAX: u16 = 40;
/// What existing nodes add to an IPv6 packet.
const EXISTING_OVERHEAD: u16 = 72;
const _: () = assert!(EXISTING_OVERHEAD as usize == DATA_OVERHEAD);
/// Memory for what the stream brings at once.
const STREAM_BUFFER_SIZE: usize = 2 * PACKET_SIZE_MAX;
/// Memory for datagrams that are looked at together.
const DATAGRAM_BUFFER_SIZE: usize = 64 << 10;
/// Between two looks at how much the path takes.
const FIT_INTERVAL: Duration = Duration::from_millis(10);

impl QuicCarrier {
    pub(crate) fn new(connection: Connection, streams: (SendStream, RecvStream)) -> Self {
        Self {
            connection,
            streams: Mutex::new(Some(streams)),
            outbound: Mutex::default(),
            waiting: Notify::new(),
            sent_size: AtomicU64::new(0),
        }
    }

    /// This node's address of the connection, where the kernel told it.
    pub(crate) fn local(&self) -> Option<IpAddr> {
        self.connection.local_ip().map(|address| address.to_canonical())
    }

    /// Sends whole data packets, one behind the other.
    pub(crate) fn send_data(&self, packets: &[u8], now: Instant) {
        self.sent_size.fetch_add(packets.len() as u64, Ordering::Relaxed);
        let size_max = self.connection.max_datagram_size().unwrap_or(0);
        let mut rest = packets;
        let mut has_large = false;
        while !rest.is_empty() {
            let (packet, behind) = rest.split_at(packet_size(rest));
            rest = behind;
            // One that does not fit after all, since the path became narrower, goes on the stream too.
            let is_sent = packet.len() <= size_max
                && self.connection.send_datagram(packet.to_vec().into()).is_ok();
            if !is_sent {
                has_large = true;
                // The stream takes nothing here, so this only queues and can't fail.
                let _ = self.outbound().send_data(&Later, packet, now);
            }
        }
        if has_large {
            self.waiting.notify_one();
        }
    }

    /// Sends a control packet.
    pub(crate) fn send_control(&self, packet: &[u8]) {
        self.sent_size.fetch_add(packet.len() as u64, Ordering::Relaxed);
        if self.outbound().send_control(&Later, packet).is_err() {
            self.close();
        }
        self.waiting.notify_one();
    }

    /// Ends the connection; its task finds out at once.
    pub(crate) fn close(&self) {
        self.connection.close(VarInt::from_u32(0), b"");
    }

    /// Bytes given to the link to send.
    pub(crate) fn sent_size(&self) -> u64 {
        self.sent_size.load(Ordering::Relaxed)
    }

    /// Data packets that were dropped before the stream.
    pub(crate) fn dropped(&self) -> u64 {
        self.outbound().dropped()
    }

    /// The largest IPv6 packet that an existing node at the other end is sure to send in a datagram; one
    /// that is larger ends the link. Where this end did not find that the path takes what both may send,
    /// the other will have found so as well, and fallen back to the least.
    pub(crate) fn existing_node_brings_at_most(&self) -> u16 {
        let is_wide = self.connection.stats().path.current_mtu >= UDP_SIZE_MAX;
        let udp_size = if is_wide { UDP_SIZE_MAX } else { UDP_SIZE_MIN };
        udp_size - QUIC_OVERHEAD_MAX - EXISTING_OVERHEAD
    }

    /// Carries packets both ways until the connection ends.
    pub(crate) async fn run(&self, inbound: &mut impl Inbound) -> LinkError {
        let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((send, receive)) = streams else { return LinkError::Closed };
        tokio::select! {
            error = self.read(receive, inbound) => error,
            error = self.drain(send) => error,
        }
    }

    async fn read(&self, mut stream: RecvStream, inbound: &mut impl Inbound) -> LinkError {
        let mut buffer = vec![0; STREAM_BUFFER_SIZE].into_boxed_slice();
        let mut end = 0;
        let mut datagrams = Vec::with_capacity(DATAGRAM_BUFFER_SIZE);
        loop {
            let taken = tokio::select! {
                datagram = self.connection.read_datagram() => match datagram {
                    Ok(datagram) => self.datagrams(&datagram, &mut datagrams, inbound).await,
                    Err(error) => return LinkError::Io(error.into()),
                },
                read = stream.read(&mut buffer[end..]) => match read {
                    Ok(None) => return LinkError::Closed,
                    Ok(Some(size)) => {
                        inbound.arrived(size);
                        end += size;
                        inbound.packets(&mut buffer[..end]).map(|done| {
                            buffer.copy_within(done..end, 0);
                            end -= done;
                        })
                    }
                    Err(error) => return LinkError::Io(error.into()),
                },
            };
            if let Err(error) = taken {
                return LinkError::Frame(error);
            }
            if let Err(error) = inbound.settle().await {
                return error;
            }
        }
    }

    /// Takes a datagram and those that are there already, so that packets of a flow can be joined.
    async fn datagrams(
        &self,
        first: &[u8],
        buffer: &mut Vec<u8>,
        inbound: &mut impl Inbound,
    ) -> Result<(), frame::FrameError> {
        buffer.clear();
        frame::parse_datagram(first)?;
        buffer.extend_from_slice(first);
        while buffer.len() < DATAGRAM_BUFFER_SIZE {
            let next = tokio::select! {
                biased;
                next = self.connection.read_datagram() => next,
                () = std::future::ready(()) => break,
            };
            // An end is found again by whoever waits for the next one.
            let Ok(next) = next else { break };
            frame::parse_datagram(&next)?;
            buffer.extend_from_slice(&next);
        }
        inbound.arrived(buffer.len());
        inbound.packets(buffer).map(|_| ())
    }

    /// Sends what waits for the stream, as long as the connection lives.
    async fn drain(&self, mut stream: SendStream) -> LinkError {
        let mut fitted = None;
        loop {
            self.waiting.notified().await;
            let drained = poll_fn(|context| {
                let now = Instant::now();
                if fitted.is_none_or(|at| now.saturating_duration_since(at) >= FIT_INTERVAL) {
                    self.fit_window();
                    fitted = Some(now);
                }
                let writer = StreamWriter(RefCell::new((&mut stream, context)));
                match self.outbound().drain(&writer, now) {
                    Ok(Sent::Done) => Poll::Ready(Ok(())),
                    Ok(Sent::Waiting) => Poll::Pending,
                    Err(error) => Poll::Ready(Err(error)),
                }
            });
            if let Err(error) = drained.await {
                return LinkError::Io(error);
            }
        }
    }

    /// Lets the stream hold what may be under way, and what may wait for it: [`super::pace`].
    fn fit_window(&self) {
        let ahead = self.outbound().ahead_size() as u64;
        let under_way = self.connection.stats().path.cwnd;
        self.connection.set_send_window(under_way.saturating_add(ahead));
    }

    fn outbound(&self) -> MutexGuard<'_, Outbound> {
        self.outbound.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes nothing: all waits for the link's task, which alone may write to the stream.
struct Later;

impl Transmit for Later {
    fn transmit(&self, _bytes: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

/// The stream while its task is polled, which is woken when it takes more.
struct StreamWriter<'a, 'b>(RefCell<(&'a mut SendStream, &'a mut Context<'b>)>);

impl Transmit for StreamWriter<'_, '_> {
    fn transmit(&self, bytes: &[u8]) -> io::Result<usize> {
        let (stream, context) = &mut *self.0.borrow_mut();
        match AsyncWrite::poll_write(Pin::new(&mut **stream), context, bytes) {
            Poll::Ready(result) => result,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}
