//! Links between sockets of this machine, and through a relay that plays NAT, loses, and reorders.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use mycelium_wire::frame::{self, DataHeader, Frame, FrameError};
use mycelium_wire::identity::SecretKey;
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::dial::{Reason, dial};
use super::handshake::{Dialer, HandshakeError};
use super::packet::{COOKIE_SIZE, Datagram};
use super::socket::{ACCEPTED_COUNT_MAX, SocketSettings};
use super::*;
use crate::link::stream::Taker;

const PATIENCE: Duration = Duration::from_secs(10);

/// A node's sockets and the links that it accepted.
struct Station {
    sockets: Arc<Sockets>,
    accepted: mpsc::Receiver<UdpCarrier>,
    key: PublicKey,
}

impl Station {
    fn new(number: u8) -> Self {
        let secret = SecretKey::from_bytes([number; 32]);
        let (sender, accepted) = mpsc::channel(ACCEPTED_COUNT_MAX);
        let key = secret.public();
        let settings = SocketSettings { port: 0, takes: 1400, reader_count: 2 };
        let sockets = Sockets::open(secret, settings, |_| Ok(()), sender).unwrap();
        Self { sockets, accepted, key }
    }

    fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.sockets.port()).into()
    }

    async fn accept(&mut self) -> UdpCarrier {
        timeout(PATIENCE, self.accepted.recv()).await.unwrap().unwrap()
    }

    async fn dial(
        &self,
        to: SocketAddr,
        peer: Option<&PublicKey>,
    ) -> Result<UdpCarrier, HandshakeError> {
        dial(&self.sockets, &[to], peer, Reason::Chosen).await
    }
}

/// What came over a link: numbers of data packets, and of control packets.
#[derive(Clone, Debug, Default)]
struct Seen {
    data: Vec<u8>,
    control: Vec<u16>,
}

#[derive(Clone)]
struct Collector(watch::Sender<Seen>);

impl Taker for Collector {
    fn packets(&mut self, mut bytes: &mut [u8]) -> Result<usize, FrameError> {
        let total = bytes.len();
        while let Some((frame, size)) = frame::parse(bytes)? {
            self.0.send_modify(|seen| match frame {
                Frame::Data(data) => seen.data.push(data.header.hop_limit),
                Frame::Control(Ok(mycelium_wire::control::Tlv::Hello(hello))) => {
                    seen.control.push(hello.seqno.0);
                }
                Frame::Control(other) => panic!("{other:?}"),
            });
            bytes = &mut bytes[size..];
        }
        Ok(total - bytes.len())
    }

    fn arrived(&mut self, size: usize) {
        assert!(size > 0);
    }
}

impl Inbound for Collector {
    async fn settle(&mut self) -> Result<(), LinkError> {
        Ok(())
    }

    fn data_taker(&self) -> Box<dyn Taker> {
        Box::new(self.clone())
    }
}

/// A link that is carried.
struct Carried {
    link: Arc<UdpCarrier>,
    seen: watch::Receiver<Seen>,
    end: tokio::task::JoinHandle<LinkError>,
}

fn carry(link: UdpCarrier) -> Carried {
    let (sender, seen) = watch::channel(Seen::default());
    let link = Arc::new(link);
    let end = tokio::spawn({
        let link = Arc::clone(&link);
        async move { link.run(&mut Collector(sender)).await }
    });
    Carried { link, seen, end }
}

impl Carried {
    async fn until(&mut self, is: impl FnMut(&Seen) -> bool) -> Seen {
        let seen = timeout(PATIENCE, self.seen.wait_for(is)).await;
        seen.unwrap_or_else(|_| panic!("not in time")).unwrap().clone()
    }

    fn hello(&self, number: u16) {
        let seqno = mycelium_wire::control::Seqno(number);
        let hello = mycelium_wire::control::Hello { flags: 0x8000, seqno, interval: 1 };
        let mut packet = Vec::new();
        mycelium_wire::control::Tlv::Hello(hello).encode(&mut packet);
        self.link.send_control(&packet);
    }
}

fn packet(number: u8, size: u16) -> Vec<u8> {
    let address = Ipv6Addr::from([number; 16]);
    let header =
        DataHeader { hop_limit: number, source: address, destination: address, length: size };
    let mut packet = header.encode().to_vec();
    packet.resize(packet.len() + usize::from(size), number);
    packet
}

async fn pair(peer_is_known: bool) -> (Carried, Carried, Station, Station) {
    let (a, mut b) = (Station::new(1), Station::new(2));
    let peer = peer_is_known.then_some(b.key);
    let dialed = carry(a.dial(b.address(), peer.as_ref()).await.unwrap());
    let accepted = carry(b.accept().await);
    (dialed, accepted, a, b)
}

#[tokio::test]
async fn batches_and_control_packets_arrive_both_ways() {
    for peer_is_known in [false, true] {
        let (mut dialed, mut accepted, a, b) = pair(peer_is_known).await;
        assert_eq!((dialed.link.peer(), accepted.link.peer()), (b.key, a.key));
        let batch: Vec<u8> = (0..60).flat_map(|number| packet(number, 1432)).collect();
        dialed.link.send_data(&batch, Instant::now());
        accepted.link.send_data(&batch, Instant::now());
        (0..100).for_each(|number| dialed.hello(number));
        let seen = accepted.until(|seen| seen.data.len() >= 60 && seen.control.len() >= 100).await;
        assert_eq!(seen.data, (0..60).collect::<Vec<u8>>());
        assert_eq!(seen.control, (0..100).collect::<Vec<u16>>());
        dialed.until(|seen| seen.data.len() >= 60).await;
        // Each was told where it is seen.
        let start = Instant::now();
        while a.sockets.observations().addresses(Instant::now()) != [a.address()] {
            assert!(start.elapsed() < PATIENCE);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn a_large_size_is_found_and_used() {
    let (dialed, mut accepted, _a, _b) = pair(true).await;
    let start = Instant::now();
    while dialed.link.engine().datagram_size() < 8952 {
        assert!(start.elapsed() < PATIENCE, "{}", dialed.link.engine().datagram_size());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let batch: Vec<u8> = (0..40).flat_map(|number| packet(number, 8000)).collect();
    dialed.link.send_data(&batch, Instant::now());
    accepted.until(|seen| seen.data.len() >= 40).await;
    assert_eq!(dialed.link.dropped(), 0);
}

#[tokio::test]
async fn a_link_that_is_closed_ends_at_both_ends() {
    let (dialed, mut accepted, a, b) = pair(true).await;
    dialed.hello(1);
    accepted.until(|seen| seen.control.len() == 1).await;
    dialed.link.close();
    for end in [dialed.end, accepted.end] {
        let error = timeout(PATIENCE, end).await.unwrap().unwrap();
        assert!(matches!(error, LinkError::Closed), "{error:?}");
    }
    drop((dialed.link, accepted.link));
    assert_eq!((a.sockets.entry_count(), b.sockets.entry_count()), (0, 0));
}

/// Passes datagrams between whoever sends first and `to`; from a new port after each [`watch`] change;
/// loses one in `loss`.
async fn nat(to: SocketAddr, loss: u32) -> (SocketAddr, watch::Sender<()>) {
    let inside = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = inside.local_addr().unwrap();
    let (change, mut changed) = watch::channel(());
    tokio::spawn(async move {
        let mut outside = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (mut a, mut b) = (vec![0; 1 << 16], vec![0; 1 << 16]);
        let (mut client, mut count) = (None, 0_u32);
        loop {
            tokio::select! {
                received = inside.recv_from(&mut a) => {
                    let Ok((size, from)) = received else { continue };
                    client = Some(from);
                    count += 1;
                    if loss == 0 || count % loss != 0 {
                        outside.send_to(&a[..size], to).await.unwrap();
                    }
                }
                received = outside.recv_from(&mut b) => {
                    let (Ok((size, _)), Some(client)) = (received, client) else { continue };
                    count += 1;
                    if loss == 0 || count % loss != 0 {
                        inside.send_to(&b[..size], client).await.unwrap();
                    }
                }
                change = changed.changed() => match change {
                    Ok(()) => outside = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap(),
                    Err(_) => return,
                },
            }
        }
    });
    (address, change)
}

#[tokio::test]
async fn a_link_goes_on_when_a_nat_forgets_its_port() {
    let (a, mut b) = (Station::new(1), Station::new(2));
    let (through, change) = nat(b.address(), 0).await;
    let mut dialed = carry(a.dial(through, None).await.unwrap());
    let mut accepted = carry(b.accept().await);
    dialed.hello(1);
    accepted.until(|seen| seen.control == [1]).await;
    let before = accepted.link.address();
    change.send(()).unwrap();
    dialed.hello(2);
    accepted.until(|seen| seen.control == [1, 2]).await;
    // Its answers find the new port.
    accepted.hello(3);
    dialed.until(|seen| seen.control == [3]).await;
    assert_ne!(accepted.link.address(), before);
}

#[tokio::test]
async fn handshakes_and_control_packets_get_over_losses() {
    let (a, mut b) = (Station::new(1), Station::new(2));
    let (through, _change) = nat(b.address(), 3).await;
    let dialed = carry(a.dial(through, None).await.unwrap());
    (0..50).for_each(|number| dialed.hello(number));
    let mut accepted = carry(b.accept().await);
    let seen = accepted.until(|seen| seen.control.len() >= 50).await;
    assert_eq!(seen.control, (0..50).collect::<Vec<u16>>());
}

#[tokio::test]
async fn nobody_else_is_reached_and_nobody_is_found_where_there_is_none() {
    let (a, b, c) = (Station::new(1), Station::new(2), Station::new(3));
    let wrong = timeout(PATIENCE, a.dial(b.address(), Some(&c.key))).await.unwrap();
    assert!(matches!(wrong, Err(HandshakeError::Timeout)), "{wrong:?}");
    let itself = a.dial(a.address(), None).await;
    assert!(matches!(itself, Err(HandshakeError::Itself)), "{itself:?}");
    assert_eq!((a.sockets.entry_count(), b.sockets.entry_count()), (1, 0));
}

#[tokio::test]
async fn a_flood_of_inits_gets_little_and_others_still_come_in() {
    let mut b = Station::new(2);
    let flooder = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, 2), 0)).await.unwrap();
    let (mut received, mut answers) = (vec![0; 2000], Vec::new());
    let mut sent = 0;
    for index in 0..2000 {
        let init = Dialer::new(&SecretKey::from_bytes([9; 32]), Some(&b.key), index).unwrap();
        let init = init.init([0; COOKIE_SIZE]);
        sent += init.len();
        flooder.send_to(&init, b.address()).await.unwrap();
        while let Ok(size) = flooder.try_recv(&mut received) {
            answers.push(received[..size].to_vec());
        }
    }
    let a = Station::new(1);
    let dialed = carry(a.dial(b.address(), None).await.unwrap());
    let mut accepted = carry(b.accept().await);
    dialed.hello(1);
    accepted.until(|seen| seen.control == [1]).await;
    assert!(answers.iter().map(Vec::len).sum::<usize>() < sent / 4);
    let is_cookie =
        |answer: &&Vec<u8>| matches!(Datagram::parse(answer), Some(Datagram::Cookie { .. }));
    assert!(answers.iter().filter(|answer| !is_cookie(answer)).count() < 100);
    assert!(b.sockets.entry_count() < 100);
}

#[tokio::test]
async fn datagrams_from_nowhere_change_nothing() {
    let (mut dialed, accepted, a, b) = pair(false).await;
    let stranger = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    for size in 0..200_usize {
        for first in 0..8 {
            let mut datagram = vec![first; size];
            datagram.extend(dialed.link.index.to_be_bytes());
            stranger.send_to(&datagram, a.address()).await.unwrap();
            let mut sealed = packet::sealed_header(dialed.link.index, u64::from(first)).to_vec();
            sealed.resize(13 + size, 0);
            stranger.send_to(&sealed, a.address()).await.unwrap();
        }
    }
    accepted.hello(1);
    dialed.until(|seen| seen.control == [1]).await;
    assert_eq!(dialed.link.address(), b.address());
}
