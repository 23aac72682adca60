//! The whole device: a driver at real rings on one side, real unix sockets on the other.
//!
//! Nothing here runs in parallel. A test calls the unit as a machine's event loop would: when a
//! queue was kicked, when its descriptor is readable, when its deadline has passed.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::RawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};

use proptest::prelude::*;
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::packet::{HEADER_SIZE, HOST_CID, Header, SHUTDOWN_BOTH, SHUTDOWN_SEND, STREAM, op};
use super::*;
use crate::memory::SharedMemory;
use crate::testing::{self, Buffer, DRIVER_SIZE, Driver, INDIRECT, Interrupts, NEXT, WRITE};
use crate::{Interrupt, QueueError, UnitError};

const GUEST_CID: u32 = 5;
/// Buffers that the guest offers for packets to come, and their size unless a test says otherwise.
const RX_COUNT: u16 = 8;
const RX_SIZE: u32 = 300;
const RX_QUEUE_SIZE: u16 = 16;
/// Where a driver keeps its used ring.
const USED_RING: u64 = 0x2_0000;
const TX_COUNT: u16 = 64;
/// Payload of a packet that fits into a buffer of the guest's.
const TX_SIZE: u32 = 1000;
/// What the guest says it has room for, in each connection.
const GUEST_BUFFER_SIZE: u32 = 2000;
const MIB: usize = 1 << 20;

/// A device, its driver, and the guest's side of a few connections.
struct Rig {
    folder: TempDir,
    device: Vsock,
    unit: Option<Box<dyn Unit>>,
    events: Receiver<Event>,
    memory: SharedMemory,
    drivers: [Driver; 3],
    rx_size: u32,
    /// Where the buffers of the first two queues begin.
    rx_at: u64,
    tx_at: u64,
    tx_next: u16,
    /// Buffers of the rx queue that are with the driver.
    rx_kept: Vec<u16>,
    rx_offered: u16,
    offers: bool,
}

/// The guest's side of a connection.
#[derive(Debug, Default)]
struct Peer {
    guest_port: u32,
    host_port: u32,
    sent: u32,
    received: u32,
    buffer_size: u32,
    forwarded: u32,
}

impl Rig {
    fn new(rx_size: u32) -> Self {
        Self::with(rx_size, None, None)
    }

    /// With a heartbeat, and restored from `state`.
    fn with(rx_size: u32, silence_max: Option<Duration>, state: Option<serde_json::Value>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = Listener::bind(&folder.path().join("v")).unwrap();
        let (sender, events) = channel();
        let settings = Settings {
            guest_cid: GUEST_CID,
            listener,
            silence_max,
            reseeds: state.is_some(),
            on_event: Arc::new(move |event| sender.send(event).unwrap()),
        };
        let mut device = Vsock::new(settings).unwrap();
        if let Some(state) = state {
            device.restore(state).unwrap();
        }
        let memory = testing::memory(4 << 20);
        let interrupt: Arc<dyn Interrupt> = Arc::new(Interrupts::default());
        let set_up = |index: u16, size| {
            let base = u64::from(index) * DRIVER_SIZE;
            Driver::new(&memory, base, index, size, true, Arc::clone(&interrupt))
        };
        let (rx, tx, event) = (set_up(RX, RX_QUEUE_SIZE), set_up(TX, 256), set_up(EVENT, 16));
        let mut drivers = [rx.0, tx.0, event.0];
        let rx_at = drivers[0].allocate(u64::from(RX_COUNT) * u64::from(rx_size));
        let tx_at = drivers[1].allocate(u64::from(TX_COUNT) * 2048);
        let queues = vec![Some(rx.1), Some(tx.1), Some(event.1)];
        let mut rig = Self {
            folder,
            device,
            unit: None,
            events,
            memory,
            drivers,
            rx_size,
            rx_at,
            tx_at,
            tx_next: 0,
            rx_kept: (0..RX_COUNT).collect(),
            rx_offered: 0,
            offers: true,
        };
        rig.activate(queues);
        rig
    }

    fn activate(&mut self, queues: Vec<Option<crate::Queue>>) {
        let memory = Arc::clone(&self.memory);
        let units = self.device.activate(Activation { memory, features: 0, queues }).unwrap();
        let [unit] = <[_; 1]>::try_from(units).ok().unwrap();
        self.unit = Some(unit);
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("v")
    }

    /// A listener on a port of the host.
    fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(format!("{}_{port}", self.path().display())).unwrap()
    }

    /// A client on the host, which does not block.
    fn client(&self) -> UnixStream {
        let client = UnixStream::connect(self.path()).unwrap();
        client.set_nonblocking(true).unwrap();
        client
    }

    /// What an event loop does in one turn.
    fn turn(&mut self) -> Result<(), UnitError> {
        if self.offers {
            for index in std::mem::take(&mut self.rx_kept) {
                let at = self.rx_at + u64::from(index) * u64::from(self.rx_size);
                self.drivers[0].descriptor(index, at, self.rx_size, WRITE, 0);
                self.drivers[0].offer(index);
                self.rx_offered += 1;
            }
        }
        let unit = self.unit.as_mut().unwrap();
        for index in [RX, TX, EVENT] {
            let kick = unit.queues()[usize::from(index)].kick().read();
            if kick.is_ok() {
                unit.kicked(index)?;
            }
        }
        for source in unit.sources() {
            if is_readable(source.descriptor) {
                unit.ready(source.token)?;
            }
        }
        let now = Instant::now();
        if unit.deadline().is_some_and(|deadline| deadline <= now) {
            unit.expired(now)?;
        }
        Ok(())
    }

    /// The packets that have come for the guest.
    fn packets(&mut self) -> Vec<(Header, Vec<u8>)> {
        self.turn().unwrap();
        let mut packets = Vec::new();
        while let Some((head, size)) = self.drivers[0].take_used() {
            let at = self.rx_at + u64::from(head) * u64::from(self.rx_size);
            let bytes = self.drivers[0].read(at, usize::try_from(size).unwrap());
            let (header, payload) = bytes.split_at(HEADER_SIZE as usize);
            let header = Header::decode(header.try_into().unwrap());
            assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, u64::from(GUEST_CID)));
            assert_eq!(header.len as usize, payload.len());
            packets.push((header, payload.to_vec()));
            self.rx_kept.push(head);
        }
        packets
    }

    /// The next packet that is no mere credit.
    fn packet(&mut self) -> (Header, Vec<u8>) {
        for _ in 0..100 {
            let mut packets = self.packets();
            packets.retain(|(header, _)| header.op != op::CREDIT_UPDATE);
            if !packets.is_empty() {
                assert_eq!(packets.len(), 1, "{packets:?}");
                return packets.remove(0);
            }
        }
        panic!("no packet comes");
    }

    /// Sends a packet in one buffer.
    fn send(&mut self, header: &Header, payload: &[u8]) {
        while self.drivers[1].take_used().is_some() {}
        let index = self.tx_next;
        self.tx_next = (index + 1) % TX_COUNT;
        let at = self.tx_at + u64::from(index) * 2048;
        let bytes = [&header.encode(), payload].concat();
        self.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
        self.drivers[1].descriptor(index, at, u32::try_from(bytes.len()).unwrap(), 0, 0);
        self.drivers[1].offer(index);
    }

    /// The guest connects to a port of the host on which somebody listens.
    fn guest_connects(
        &mut self,
        guest_port: u32,
        listener: &UnixListener,
        port: u32,
    ) -> (Peer, UnixStream) {
        let peer = Peer { guest_port, host_port: port, ..Peer::default() };
        self.send(&peer.header(op::REQUEST), &[]);
        let (header, _) = self.packet();
        assert_eq!(header.op, op::RESPONSE);
        let stream = listener.accept().unwrap().0;
        stream.set_nonblocking(true).unwrap();
        (Peer { buffer_size: header.buf_alloc, ..peer }, stream)
    }

    /// The host connects to a port of the guest.
    fn host_connects(&mut self, port: u32) -> (Peer, UnixStream) {
        let mut client = self.client();
        client.write_all(format!("CONNECT {port}\n").as_bytes()).unwrap();
        let peer = self.accept(port);
        assert_eq!(read_some(&mut client), format!("OK {}\n", peer.host_port).as_bytes());
        (peer, client)
    }

    /// The guest accepts what the host asks for.
    fn accept(&mut self, port: u32) -> Peer {
        let (header, _) = self.packet();
        assert_eq!((header.op, header.dst_port), (op::REQUEST, port));
        let buffer_size = header.buf_alloc;
        let host_port = header.src_port;
        let peer = Peer { guest_port: port, host_port, buffer_size, ..Peer::default() };
        self.send(&peer.header(op::RESPONSE), &[]);
        self.turn().unwrap();
        peer
    }
}

impl Peer {
    fn header(&self, op: u16) -> Header {
        Header {
            src_cid: u64::from(GUEST_CID),
            dst_cid: HOST_CID,
            src_port: self.guest_port,
            dst_port: self.host_port,
            len: 0,
            kind: STREAM,
            op,
            flags: 0,
            buf_alloc: GUEST_BUFFER_SIZE,
            fwd_cnt: self.received,
        }
    }

    fn write(&mut self, rig: &mut Rig, bytes: &[u8]) {
        let len = u32::try_from(bytes.len()).unwrap();
        rig.send(&Header { len, ..self.header(op::RW) }, bytes);
        self.sent += len;
    }

    fn shut(&self, rig: &mut Rig, flags: u32) {
        rig.send(&Header { flags, ..self.header(op::SHUTDOWN) }, &[]);
    }

    /// Sends as many of `bytes` as there is credit for.
    fn write_some(&mut self, rig: &mut Rig, bytes: &[u8]) -> usize {
        let credit = self.buffer_size - (self.sent - self.forwarded);
        let size = bytes.len().min(credit as usize).min(TX_SIZE as usize);
        if size > 0 {
            self.write(rig, &bytes[..size]);
        }
        size
    }

    /// Takes what has come: payload into `into`, and the flags of a shutdown.
    fn take(&mut self, rig: &mut Rig, into: &mut Vec<u8>) -> u32 {
        let (mut flags, mut must_tell) = (0, false);
        for (header, payload) in rig.packets() {
            self.buffer_size = header.buf_alloc;
            self.forwarded = header.fwd_cnt;
            self.received += header.len;
            into.extend(payload);
            match header.op {
                op::RW | op::CREDIT_REQUEST => must_tell = true,
                op::SHUTDOWN => flags = header.flags,
                op::CREDIT_UPDATE => {}
                other => panic!("operation {other}"),
            }
        }
        if must_tell {
            rig.send(&self.header(op::CREDIT_UPDATE), &[]);
        }
        flags
    }
}

fn is_readable(descriptor: RawFd) -> bool {
    let epoll = Epoll::new().unwrap();
    let event = EpollEvent::new(EventSet::IN, 0);
    epoll.ctl(ControlOperation::Add, descriptor, event).unwrap();
    epoll.wait(0, &mut [EpollEvent::default()]).unwrap() > 0
}

/// What there is to read; the stream must not be at its end.
fn read_some(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = vec![0; 500];
    match stream.read(&mut bytes) {
        Ok(size) => {
            assert!(size > 0, "it has ended");
            bytes.truncate(size);
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
            bytes.clear();
        }
    }
    bytes
}

fn is_at_end(stream: &mut UnixStream) -> bool {
    matches!(stream.read(&mut [0]), Ok(0))
}

fn pattern(seed: usize) -> Vec<u8> {
    (0..MIB).map(|i| (i * 7 + i / 251 + seed).to_le_bytes()[0]).collect()
}

/// A MiB each way at once, with buffers of a few hundred bytes, then half a close from each side.
fn exchange(rig: &mut Rig, mut peer: Peer, mut stream: UnixStream) {
    let (up, down) = (pattern(1), pattern(2));
    let (mut up_sent, mut down_sent) = (0, 0);
    let (mut up_came, mut down_came) = (Vec::new(), Vec::new());
    let deadline = Instant::now() + Duration::from_secs(60);
    while up_came.len() < MIB || down_came.len() < MIB {
        assert!(Instant::now() < deadline, "{} and {} came", up_came.len(), down_came.len());
        up_sent += peer.write_some(rig, &up[up_sent..]);
        if let Ok(size) = stream.write(&down[down_sent..]) {
            down_sent += size;
        }
        assert_eq!(peer.take(rig, &mut down_came), 0);
        // Slower than the guest sends, so that the device must keep something.
        up_came.extend(read_some(&mut stream));
    }
    assert!(up_came == up && down_came == down, "the streams came otherwise than they went");
    peer.shut(rig, SHUTDOWN_SEND);
    rig.turn().unwrap();
    assert!(is_at_end(&mut stream));
    // The other direction still works.
    stream.write_all(b"goodbye").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let (mut last, mut flags) = (Vec::new(), 0);
    for _ in 0..10 {
        flags |= peer.take(rig, &mut last);
    }
    assert_eq!((last.as_slice(), flags), (&b"goodbye"[..], SHUTDOWN_BOTH));
    rig.send(&peer.header(op::RST), &[]);
    assert_eq!(rig.packets(), []);
}

#[test]
fn a_guest_reaches_the_host_and_streams_arrive() {
    let mut rig = Rig::new(RX_SIZE);
    let listener = rig.listen(77);
    let (peer, stream) = rig.guest_connects(1234, &listener, 77);
    exchange(&mut rig, peer, stream);
    let counters: Vec<u64> = rig.device.counters().iter().map(|(_, c)| c.value()).collect();
    // connections, refused, resets, rx_bytes, tx_bytes
    assert_eq!(counters[..5], [1, 0, 0, MIB as u64 + 7, MIB as u64]);
}

#[test]
fn the_host_reaches_a_guest_and_streams_arrive() {
    let mut rig = Rig::new(RX_SIZE);
    let (peer, stream) = rig.host_connects(52);
    assert_eq!(peer.host_port, mux::HOST_PORT_FIRST);
    exchange(&mut rig, peer, stream);
}

/// Buffers with room for a single byte are enough, and a client need not wait for `OK`.
#[test]
fn what_follows_the_line_belongs_to_the_guest() {
    let mut rig = Rig::new(HEADER_SIZE + 1);
    let mut client = rig.client();
    client.write_all(b"CONNECT 52\nhello\nworld").unwrap();
    let mut peer = rig.accept(52);
    let mut came = Vec::new();
    for _ in 0..10 {
        peer.take(&mut rig, &mut came);
    }
    assert_eq!(came, b"hello\nworld");
}

#[test]
fn whoever_is_refused_is_told() {
    let mut rig = Rig::new(RX_SIZE);
    // Nobody listens in the guest.
    let mut client = rig.client();
    client.write_all(b"CONNECT 52\n").unwrap();
    let (header, _) = rig.packet();
    let peer = Peer { guest_port: 52, host_port: header.src_port, ..Peer::default() };
    rig.send(&peer.header(op::RST), &[]);
    rig.turn().unwrap();
    assert!(is_at_end(&mut client));
    // Nobody listens on the host.
    let peer = Peer { guest_port: 9, host_port: 78, ..Peer::default() };
    rig.send(&peer.header(op::REQUEST), &[]);
    let (header, _) = rig.packet();
    assert_eq!((header.op, header.src_port, header.dst_port), (op::RST, 78, 9));
}

#[test]
fn a_client_that_leaves_before_the_answer_costs_nothing() {
    let mut rig = Rig::new(RX_SIZE);
    let mut client = rig.client();
    client.write_all(b"CONNECT 52\n").unwrap();
    let (header, _) = rig.packet();
    drop(client);
    rig.turn().unwrap();
    let peer = Peer { guest_port: 52, host_port: header.src_port, ..Peer::default() };
    rig.send(&peer.header(op::RESPONSE), &[]);
    assert_eq!(rig.packet().0.op, op::RST);
}

/// Without the guest having to write to find out.
#[test]
fn a_client_that_closes_ends_both_directions() {
    let mut rig = Rig::new(RX_SIZE);
    let (mut peer, stream) = rig.host_connects(52);
    drop(stream);
    assert_eq!(peer.take(&mut rig, &mut Vec::new()), SHUTDOWN_BOTH);
}

#[test]
fn what_the_host_sent_before_it_closed_still_arrives() {
    let mut rig = Rig::new(RX_SIZE);
    let (mut peer, mut stream) = rig.host_connects(52);
    peer.write(&mut rig, b"never read");
    rig.turn().unwrap();
    let sent = pattern(5)[..10_000].to_vec();
    stream.write_all(&sent).unwrap();
    drop(stream);
    let (mut came, mut flags) = (Vec::new(), 0);
    for _ in 0..100 {
        flags |= peer.take(&mut rig, &mut came);
    }
    assert!(came == sent, "{} bytes came", came.len());
    assert_eq!(flags, SHUTDOWN_BOTH);
}

#[test]
fn what_the_guest_sent_before_it_closed_still_arrives() {
    let mut rig = Rig::new(RX_SIZE);
    let listener = rig.listen(77);
    let (mut peer, mut stream) = rig.guest_connects(1, &listener, 77);
    // More than the socket holds: until there is no credit left.
    let sent = pattern(6);
    let (mut size, mut idle) = (0, 0);
    while idle < 10 {
        let more = peer.write_some(&mut rig, &sent[size..]);
        size += more;
        idle = if more == 0 { idle + 1 } else { 0 };
        peer.take(&mut rig, &mut Vec::new());
    }
    assert!(size >= LIMITS.roomy_size as usize && size < MIB, "{size} bytes were sent");
    peer.shut(&mut rig, SHUTDOWN_BOTH);
    assert_eq!(rig.packet().0.op, op::RST);
    let mut came = Vec::<u8>::new();
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        assert!(Instant::now() < deadline, "{} bytes came", came.len());
        let mut bytes = [0; 4096];
        match stream.read(&mut bytes) {
            Ok(0) => break,
            Ok(size) => came.extend(&bytes[..size]),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        rig.turn().unwrap();
    }
    assert!(came == sent[..size], "{} of {size} bytes came", came.len());
}

#[test]
fn clients_that_talk_nonsense_are_turned_away() {
    let mut rig = Rig::new(RX_SIZE);
    let table: [&[u8]; 6] = [
        b"GET / HTTP/1.1\r\n",
        b"CONNECT 4294967296\n",
        b"CONNECT\n",
        b"\n",
        b"CONNECT 000000000000000000000000000000000000001",
        &[0xff; 4096],
    ];
    for line in table {
        let mut client = rig.client();
        client.write_all(line).unwrap();
        assert_eq!(rig.packets(), [], "{line:?}");
        rig.turn().unwrap();
        let mut rest = Vec::new();
        let ended = client.read_to_end(&mut rest);
        // Linux fails the read of a peer that did not take everything.
        let is_closed =
            ended.is_ok() || ended.is_err_and(|e| e.kind() == ErrorKind::ConnectionReset);
        assert!(is_closed && rest.is_empty(), "{line:?}");
    }
    drop(rig.client());
    assert_eq!(rig.packets(), []);
    // A slow one is not nonsense.
    let mut client = rig.client();
    for byte in b"CONNECT 52\n" {
        assert_eq!(rig.packets(), []);
        client.write_all(&[*byte]).unwrap();
    }
    rig.accept(52);
}

/// Time is given here, not waited for.
#[test]
fn clients_that_say_nothing_are_few_and_have_little_time() {
    let rig = Rig::new(RX_SIZE);
    let mut host = Host::new(Arc::clone(&rig.device.listener)).unwrap();
    let mut clients: Vec<_> = (0..host::WAITING_MAX + 3).map(|_| rig.client()).collect();
    let (mut events, start) = (Vec::new(), Instant::now());
    host.poll(&mut events, start).unwrap();
    clients[0].write_all(b"CONN").unwrap();
    // The last one has not been let in yet, whatever it says.
    clients.last_mut().unwrap().write_all(b"CONNECT 7\n").unwrap();
    host.poll(&mut events, start).unwrap();
    assert_eq!(events, []);
    let deadline = host.deadline().unwrap();
    assert_eq!(deadline, start + host::WAITING_TIMEOUT);
    host.expire(deadline - Duration::from_millis(1));
    assert!(!is_at_end(&mut clients[1]));
    host.expire(deadline);
    assert!(clients[..host::WAITING_MAX].iter_mut().skip(1).all(is_at_end));
    for _ in 0..3 {
        host.poll(&mut events, deadline).unwrap();
    }
    assert!(matches!(events[..], [host::HostEvent::Client { port: 7, .. }]), "{events:?}");
}

#[test]
fn clients_that_come_all_at_once_are_all_served() {
    let mut rig = Rig::new(RX_SIZE);
    rig.turn().unwrap();
    let clients: Vec<_> = (0..100)
        .map(|port| {
            let mut client = rig.client();
            client.write_all(format!("CONNECT {port}\n").as_bytes()).unwrap();
            client
        })
        .collect();
    rig.turn().unwrap();
    let deadline = rig.unit.as_ref().unwrap().deadline();
    assert!(deadline.is_some_and(|deadline| deadline <= Instant::now()), "the rest is left alone");
    let mut asked = std::collections::BTreeSet::new();
    for _ in 0..50 {
        asked.extend(rig.packets().iter().map(|(header, _)| (header.op, header.dst_port)));
    }
    assert_eq!(asked, (0..100).map(|port| (op::REQUEST, port)).collect());
    drop(clients);
}

#[test]
fn a_guest_without_buffers_is_waited_for() {
    let mut rig = Rig::new(RX_SIZE);
    let (mut peer, mut stream) = rig.host_connects(52);
    rig.offers = false;
    let sent = pattern(3)[..5000].to_vec();
    stream.write_all(&sent).unwrap();
    let mut came = Vec::new();
    for _ in 0..20 {
        peer.take(&mut rig, &mut came);
    }
    let offered = usize::from(RX_COUNT) * (RX_SIZE - HEADER_SIZE) as usize;
    assert!(came.len() <= offered, "{} bytes came", came.len());
    assert_eq!(rig.device.rx_starved.value(), 1);
    // virtio 1.3 §2.7.10: it wants to know of the next buffer (`avail_event`).
    let event = rig.drivers[0].read(USED_RING + 4 + 8 * u64::from(RX_QUEUE_SIZE), 2);
    assert_eq!(event, rig.rx_offered.to_le_bytes());
    // Nothing spins meanwhile.
    let unit = rig.unit.as_ref().unwrap();
    assert!(unit.sources().iter().all(|source| !is_readable(source.descriptor)));
    assert_eq!(unit.deadline(), None);
    rig.offers = true;
    while came.len() < sent.len() {
        peer.take(&mut rig, &mut came);
    }
    assert_eq!(came, sent);
}

#[test]
fn one_call_does_a_bounded_amount_of_work() {
    let mut rig = Rig::new(RX_SIZE);
    rig.turn().unwrap();
    rig.offers = false;
    let peer = Peer::default();
    for _ in 0..unit::PACKETS_MAX {
        rig.send(&peer.header(op::RST), &[]);
    }
    let unit = rig.unit.as_mut().unwrap();
    unit.kicked(TX).unwrap();
    let deadline = unit.deadline().expect("it wants to be called again");
    assert!(deadline <= Instant::now());
    unit.expired(deadline).unwrap();
    assert_eq!(unit.deadline(), None);
}

/// Payload of which every byte is a buffer of its own.
#[test]
fn scattered_payload_arrives() {
    let mut rig = Rig::new(RX_SIZE);
    let listener = rig.listen(77);
    let (peer, mut stream) = rig.guest_connects(1, &listener, 77);
    let sent = &pattern(4)[..100];
    let header = Header { len: 100, ..peer.header(op::RW) };
    let pieces = sent.iter().map(|byte| Buffer::Readable(vec![*byte]));
    let packet = std::iter::once(Buffer::Readable(header.encode().to_vec())).chain(pieces);
    rig.drivers[1].add(&packet.collect::<Vec<_>>());
    rig.turn().unwrap();
    assert_eq!(read_some(&mut stream), sent);
}

/// What breaks a ring stops the device; what breaks a connection does not.
#[test]
fn packets_that_do_not_fit_their_buffers() {
    let mut rig = Rig::new(RX_SIZE);
    let listener = rig.listen(77);
    let (peer, mut stream) = rig.guest_connects(1, &listener, 77);
    rig.send(&Header { len: 6, ..peer.header(op::RW) }, b"short");
    assert_eq!(rig.packet().0.op, op::RST);
    assert!(is_at_end(&mut stream));
    let (at, what) = (rig.tx_at, "a packet header");
    rig.drivers[1].descriptor(0, at, 43, 0, 0);
    rig.drivers[1].offer(0);
    let source = QueueError::Short { head: 0, what, wanted: 44, found: 43 };
    let error = rig.turn().unwrap_err();
    assert_eq!(error.to_string(), UnitError::Queue { index: TX, source }.to_string());
}

#[test]
fn buffers_without_room_for_a_packet_stop_the_device() {
    for (size, op, what) in [(43, op::REQUEST, "a packet header"), (44, op::RW, "payload")] {
        let mut rig = Rig::new(size);
        if op == op::RW {
            let (_, mut stream) = rig.host_connects(52);
            stream.write_all(b"x").unwrap();
        } else {
            rig.client().write_all(b"CONNECT 52\n").unwrap();
        }
        let mut turns = std::iter::from_fn(|| Some(rig.turn())).take(10);
        let error = turns.find_map(Result::err).expect("an error").to_string();
        assert!(error.contains(what) && error.starts_with("queue 0"), "{error}");
    }
}

#[test]
fn chains_that_mean_nothing_stop_the_device() {
    let mut rig = Rig::new(RX_SIZE);
    rig.drivers[1].descriptor(0, rig.tx_at, 44, NEXT, 0);
    rig.drivers[1].offer(0);
    assert!(matches!(rig.turn(), Err(UnitError::Queue { index: TX, .. })));
    // It gives its queues back even so.
    assert_eq!(rig.unit.take().unwrap().stop().len(), 3);
}

#[test]
fn connections_survive_a_pause_but_not_a_reset() {
    let mut rig = Rig::new(RX_SIZE);
    let (mut peer, mut stream) = rig.host_connects(52);
    let queues = rig.unit.take().unwrap().stop();
    stream.write_all(b"while it was paused").unwrap();
    rig.activate(queues.into_iter().map(Some).collect());
    let mut came = Vec::new();
    peer.take(&mut rig, &mut came);
    peer.take(&mut rig, &mut came);
    assert_eq!(came, b"while it was paused");
    let queues = rig.unit.take().unwrap().stop();
    rig.device.reset();
    assert!(is_at_end(&mut stream));
    // The listener stays, and those who came meanwhile are let in.
    let mut client = rig.client();
    client.write_all(b"CONNECT 53\n").unwrap();
    rig.activate(queues.into_iter().map(Some).collect());
    rig.accept(53);
}

#[test]
fn a_restored_guest_forgets_its_connections_and_learns_the_time() {
    let mut rig = Rig::with(RX_SIZE, Some(heartbeat::SILENCE_MAX), None);
    rig.host_connects(52);
    rig.unit.take().unwrap().stop();
    let state = rig.device.save().unwrap();
    let mut rig = Rig::with(RX_SIZE, Some(heartbeat::SILENCE_MAX), Some(state));
    let (_, addresses) = rig.drivers[2].add(&[Buffer::Writable(4)]);
    rig.memory.write_slice(&[9; 4], GuestAddress(addresses[0])).unwrap();
    let (header, _) = rig.packet();
    // virtio 1.3 §5.10.6.7: the event came, before anything else.
    assert_eq!(rig.drivers[2].take_used(), Some((0, 4)));
    assert_eq!(rig.drivers[2].read(addresses[0], 4), [0; 4]);
    assert_eq!(rig.drivers[2].take_used(), None);
    // Its port is none that the guest could remember.
    assert_eq!(header.src_port, mux::HOST_PORT_FIRST + 1);
    assert_eq!((header.op, header.dst_port), (op::REQUEST, reseed::PORT));
    let (guest_port, host_port) = (reseed::PORT, header.src_port);
    let mut peer = Peer { guest_port, host_port, buffer_size: 100, ..Peer::default() };
    // The first time the guest is not ready.
    rig.send(&peer.header(op::RST), &[]);
    rig.turn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    peer = rig.accept(reseed::PORT);
    let mut message = Vec::new();
    peer.take(&mut rig, &mut message);
    let message = reseed::Message::decode(&message.try_into().unwrap()).unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    assert!(now - message.wall_clock < Duration::from_secs(60));
    assert_ne!(message.entropy, [0; reseed::ENTROPY_SIZE]);
    peer.write(&mut rig, &[reseed::DONE]);
    let flags: Vec<u32> = rig.packets().iter().map(|(header, _)| header.flags).collect();
    assert_eq!(flags.last(), Some(&SHUTDOWN_BOTH));
    assert_eq!(rig.events.try_recv(), Ok(Event::Reseed(reseed::Event::Done)));
    rig.send(&peer.header(op::RST), &[]);
    rig.turn().unwrap();
    assert!(rig.events.try_recv().is_err() && rig.unit.unwrap().deadline().is_none());
}

/// A guest may have no buffer for the event when it is restored, and be paused before it has one.
#[test]
fn the_loss_of_connections_is_told_after_however_many_pauses() {
    let state = serde_json::json!({ "next_host_port": 1 << 30, "expects_beats": false });
    let mut rig = Rig::with(RX_SIZE, None, Some(state));
    for _ in 0..2 {
        rig.turn().unwrap();
        let queues = rig.unit.take().unwrap().stop();
        rig.activate(queues.into_iter().map(Some).collect());
    }
    let (_, addresses) = rig.drivers[2].add(&[Buffer::Writable(4)]);
    rig.memory.write_slice(&[9; 4], GuestAddress(addresses[0])).unwrap();
    rig.turn().unwrap();
    assert_eq!(rig.drivers[2].take_used(), Some((0, 4)));
    assert_eq!(rig.drivers[2].read(addresses[0], 4), [0; 4]);
    // And once.
    let queues = rig.unit.take().unwrap().stop();
    rig.activate(queues.into_iter().map(Some).collect());
    rig.drivers[2].add(&[Buffer::Writable(4)]);
    rig.turn().unwrap();
    assert_eq!(rig.drivers[2].take_used(), None);
}

#[test]
fn a_restored_guest_s_address_is_this_host_s() {
    let mut rig = Rig::new(RX_SIZE);
    rig.device.restore_config(&7_u64.to_le_bytes()).unwrap();
    assert_eq!(rig.device.config().save(), u64::from(GUEST_CID).to_le_bytes());
    rig.device.restore_config(&[0; 7]).unwrap_err();
}

#[test]
fn only_what_was_saved_is_restored() {
    let mut rig = Rig::new(RX_SIZE);
    let table = [
        serde_json::Value::Null,
        serde_json::json!({ "next_host_port": 5 }),
        serde_json::json!({ "next_host_port": -5, "expects_beats": false }),
        serde_json::json!({ "next_host_port": 5, "expects_beats": false, "more": 1 }),
    ];
    for state in table {
        assert!(matches!(rig.device.restore(state), Err(DeviceError::State(_))));
    }
}

#[test]
fn an_agent_s_beats_are_heard_and_missed() {
    let mut rig = Rig::with(RX_SIZE, Some(Duration::from_millis(50)), None);
    let mut peer = Peer { guest_port: 1, host_port: heartbeat::PORT, ..Peer::default() };
    rig.send(&peer.header(op::REQUEST), &[]);
    assert_eq!(rig.packet().0.op, op::RESPONSE);
    assert!(rig.events.try_recv().is_err());
    peer.write(&mut rig, b"\n");
    rig.turn().unwrap();
    assert_eq!(rig.events.try_recv(), Ok(Event::Heartbeat(heartbeat::Event::Alive)));
    // An agent may connect again.
    rig.send(&peer.header(op::RST), &[]);
    rig.turn().unwrap();
    std::thread::sleep(Duration::from_millis(60));
    rig.turn().unwrap();
    let Ok(Event::Heartbeat(heartbeat::Event::Silent(silence))) = rig.events.try_recv() else {
        panic!("it is not missed")
    };
    assert!(silence >= Duration::from_millis(50));
    peer.sent = 0;
    rig.send(&peer.header(op::REQUEST), &[]);
    assert_eq!(rig.packet().0.op, op::RESPONSE);
    peer.write(&mut rig, b"\n");
    rig.turn().unwrap();
    assert_eq!(rig.events.try_recv(), Ok(Event::Heartbeat(heartbeat::Event::AliveAgain)));
}

#[test]
fn without_a_heartbeat_its_port_is_like_any_other() {
    let mut rig = Rig::new(RX_SIZE);
    let listener = rig.listen(heartbeat::PORT);
    rig.guest_connects(1, &listener, heartbeat::PORT);
}

#[test]
fn addresses_that_no_guest_has_are_refused() {
    for guest_cid in [0, 1, 2, u32::MAX] {
        let folder = tempfile::tempdir().unwrap();
        let listener = Listener::bind(&folder.path().join("v")).unwrap();
        let on_event: EventSink = Arc::new(|_| {});
        let settings =
            Settings { guest_cid, listener, silence_max: None, reseeds: false, on_event };
        assert!(matches!(Vsock::new(settings), Err(DeviceError::State(_))));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a driver puts into the rings, the device goes on or says what is wrong.
    #[test]
    fn any_rings_are_survived(
        steps in prop::collection::vec(
            (0usize..3, 0u16..16, 0u64..5 << 20, 0u32..200, 0u16..8, 0u16..20, any::<[u8; 12]>()),
            1..60,
        ),
    ) {
        let mut rig = Rig::new(RX_SIZE);
        let listener = rig.listen(3);
        listener.set_nonblocking(true).unwrap();
        let mut streams = Vec::new();
        for (queue, index, address, size, flags, next, bytes) in steps {
            // Half of what is sent is nearly right.
            let header = Header {
                src_port: u32::from(bytes[0] % 4),
                op: u16::from(bytes[1] % 9),
                len: u32::from(bytes[2] % 100),
                flags: u32::from(bytes[3] % 4),
                fwd_cnt: u32::from(bytes[4] % 4),
                ..Peer { host_port: 3, ..Peer::default() }.header(0)
            };
            if bytes[5] % 2 == 0 {
                rig.send(&header, &bytes);
            } else {
                let at = rig.tx_at + u64::from(index) * 64;
                let address = if bytes[6] % 4 == 0 { address } else { at };
                rig.memory.write_slice(&header.encode(), GuestAddress(at)).unwrap();
                rig.drivers[queue].descriptor(index, address, size, flags & !INDIRECT, next);
                rig.drivers[queue].offer(index);
            }
            if let Ok((mut stream, _)) = listener.accept() {
                stream.write_all(&bytes).unwrap();
                streams.push(stream);
            }
            rig.offers = bytes[7] % 2 == 0;
            if let Err(error) = rig.turn() {
                prop_assert!(matches!(error, UnitError::Queue { .. }), "{error}");
                break;
            }
        }
        prop_assert_eq!(rig.unit.take().unwrap().stop().len(), 3);
    }
}
