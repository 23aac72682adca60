//! The card driven through real rings, with a socket at the other end of its cable.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::*;
use crate::testing::{self, Buffer, DRIVER_SIZE, Driver, Interrupts};
use crate::{Interest, Interrupt, Queue, QueueError, Source, UnitError};

mod properties;
mod real_tap;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
const RING: u16 = 64;
const EVENT_IDX: u64 = 1 << wire::VIRTIO_RING_F_EVENT_IDX;
const MERGEABLE: u64 = 1 << wire::VIRTIO_NET_F_MRG_RXBUF;
const CONTROL: u64 = 1 << wire::VIRTIO_NET_F_CTRL_VQ;
const MQ: u64 = 1 << wire::VIRTIO_NET_F_MQ;

/// A back end that is a socket, one message a packet.
struct Socket {
    socket: OwnedFd,
    offloads: Mutex<Offloads>,
    is_attached: AtomicBool,
    is_gone: AtomicBool,
}

impl Socket {
    fn pair() -> (Arc<Self>, OwnedFd) {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (socket, other) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
                .unwrap();
        let (offloads, is_attached) = (Mutex::default(), AtomicBool::new(true));
        (Arc::new(Self { socket, offloads, is_attached, is_gone: AtomicBool::new(false) }), other)
    }
}

impl Backend for Socket {
    fn descriptor(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn has_udp_segmentation(&self) -> bool {
        true
    }

    fn set_offloads(&self, offloads: Offloads) -> std::io::Result<()> {
        *self.offloads.lock().unwrap() = offloads;
        Ok(())
    }

    fn set_attached(&self, is_attached: bool) -> std::io::Result<()> {
        self.is_attached.store(is_attached, Ordering::SeqCst);
        Ok(())
    }

    fn check(&self) -> std::io::Result<()> {
        let is_gone = self.is_gone.load(Ordering::SeqCst);
        if is_gone { Err(Errno::BADFD.into()) } else { Ok(()) }
    }
}

/// Says "not before" as long as it is told to.
#[derive(Debug, Default)]
struct Gate {
    closed_until: Option<Instant>,
    taken: Vec<u64>,
}

impl Throttle for Gate {
    fn take(&mut self, bytes: u64) -> Result<(), Instant> {
        self.closed_until.map_or_else(
            || {
                self.taken.push(bytes);
                Ok(())
            },
            Err,
        )
    }
}

/// A card, its driver and the other end of each of its cables.
struct Rig {
    device: Net,
    units: Vec<Box<dyn Unit>>,
    rx: Vec<Driver>,
    tx: Vec<Driver>,
    control: Option<Driver>,
    sockets: Vec<Arc<Socket>>,
    wires: Vec<OwnedFd>,
    interrupts: Arc<Interrupts>,
}

fn options() -> NetOptions {
    NetOptions {
        mac: MAC,
        mtu: Some(1500),
        speed_mbps: None,
        queue_size: RING,
        receive_throttle: None,
        transmit_throttle: None,
    }
}

impl Rig {
    fn new(features: u64, pairs: u16) -> Self {
        Self::with(options(), features, pairs)
    }

    fn with(options: NetOptions, features: u64, pairs: u16) -> Self {
        let (sockets, wires): (Vec<_>, Vec<_>) = (0..pairs).map(|_| Socket::pair()).unzip();
        let backends = sockets.iter().map(|socket| Arc::clone(socket) as Arc<dyn Backend>);
        let device = Net::new(options, backends.collect()).unwrap();
        let (rx, tx, control) = (Vec::new(), Vec::new(), None);
        let (units, interrupts) = (Vec::new(), Arc::default());
        let mut rig = Self { device, units, rx, tx, control, sockets, wires, interrupts };
        rig.activate(features).unwrap();
        rig
    }

    fn activate(&mut self, features: u64) -> Result<(), DeviceError> {
        let has_pairs = features & MQ != 0;
        let pairs = if has_pairs { self.device.shared.pair_count() } else { 1 };
        let control_index = 2 * pairs;
        let size = DRIVER_SIZE * u64::from(control_index + 1);
        let memory = testing::memory(usize::try_from(size).unwrap());
        let mut queues = Vec::new();
        let mut drivers = Vec::new();
        for index in 0..=control_index {
            let interrupt = Arc::clone(&self.interrupts) as Arc<dyn Interrupt>;
            let (base, has_event_idx) = (DRIVER_SIZE * u64::from(index), features & EVENT_IDX != 0);
            let (driver, queue) = Driver::new(&memory, base, index, RING, has_event_idx, interrupt);
            drivers.push(driver);
            queues.push(Some(queue));
        }
        self.control = drivers.pop();
        (self.rx, self.tx) = (Vec::new(), Vec::new());
        for (i, driver) in drivers.into_iter().enumerate() {
            if i % 2 == 0 { self.rx.push(driver) } else { self.tx.push(driver) }
        }
        self.units = self.device.activate(Activation { memory, features, queues })?;
        Ok(())
    }

    fn stop(&mut self) -> Vec<Queue> {
        self.units.drain(..).flat_map(Unit::stop).collect()
    }

    /// Sends `frame` from the host's side, behind a header.
    fn put(&self, pair: usize, frame: &[u8]) -> Result<(), Errno> {
        let mut packet = vec![0; HEADER];
        packet.extend_from_slice(frame);
        rustix::net::send(&self.wires[pair], &packet, SendFlags::empty()).map(|_| ())
    }

    /// What arrived at the host's side, with its header.
    fn arrived(&self, pair: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 70_000];
        match rustix::net::recv(&self.wires[pair], &mut bytes[..], RecvFlags::empty()) {
            Ok((size, _)) => Some(bytes[..size].to_vec()),
            Err(Errno::AGAIN) => None,
            Err(errno) => panic!("{errno}"),
        }
    }

    /// Tells pair 0 that packets can be read, as long as it wants to know and takes some.
    fn read_all(&mut self) -> Result<(), UnitError> {
        let taken = |rig: &Self| rig.counter("rx_packets") + rig.counter("rx_drops");
        while self.interest(0) == Some(Interest::Read) {
            let before = taken(self);
            self.units[0].ready(unit::BACKEND)?;
            if taken(self) == before {
                break;
            }
        }
        Ok(())
    }

    fn interest(&self, pair: usize) -> Option<Interest> {
        let sources = self.units[pair].sources();
        let backend = sources.iter().find(|source| source.token == unit::BACKEND);
        backend.map(|source| source.interest)
    }

    fn counter(&self, name: &str) -> u64 {
        let counters = self.device.counters();
        counters.iter().find(|(known, _)| *known == name).unwrap().1.value()
    }

    /// Gives a command to the control queue and returns the answer.
    fn command(&mut self, bytes: &[u8]) -> u8 {
        let control = self.control.as_mut().unwrap();
        let index = u16::try_from(self.rx.len() * 2).unwrap();
        let (head, places) = control.add(&[Buffer::Readable(bytes.to_vec()), Buffer::Writable(1)]);
        self.units[0].kicked(index).unwrap();
        assert_eq!(control.take_used(), Some((head, 1)));
        control.read(places[1], 1)[0]
    }
}

const HEADER: usize = wire::HEADER_SIZE as usize;

fn frame(size: usize, seed: usize) -> Vec<u8> {
    (0..size).map(|i| u8::try_from((i * 7 + seed * 13) % 251).unwrap()).collect()
}

/// A packet as the driver sends it.
fn packet(frame: &[u8]) -> Buffer {
    let mut bytes = vec![0; HEADER];
    bytes.extend_from_slice(frame);
    Buffer::Readable(bytes)
}

/// §5.1.4: what the driver reads before anything else.
#[test]
fn the_configuration_space_has_address_link_pairs_and_mtu() {
    let rig = Rig::new(0, 2);
    let mut bytes = [0; 17];
    rig.device.config().read(0, &mut bytes);
    assert_eq!(bytes[..6], MAC);
    assert_eq!(bytes[6..], [1, 0, 2, 0, 0xdc, 5, 0xff, 0xff, 0xff, 0xff, 0xff]);
}

/// §5.1.5.2, §5.1.3.1: features that need another one come with it, and MQ only with pairs.
#[test]
fn features_on_offer_keep_the_rules() {
    let one = Rig::new(0, 1).device.features();
    let two = Rig::new(0, 2).device.features();
    assert_eq!(one ^ two, MQ);
    for bit in [wire::VIRTIO_NET_F_HOST_USO, wire::VIRTIO_NET_F_GUEST_USO4] {
        assert_ne!(one & 1 << bit, 0);
    }
    for bit in [wire::VIRTIO_NET_F_SPEED_DUPLEX, 23, 24, 32] {
        assert_eq!(one & 1 << bit, 0, "{bit}");
    }
    let mut options = options();
    (options.mtu, options.speed_mbps) = (None, Some(10_000));
    let other = features(&options, 1, false);
    assert_eq!(other & 1 << wire::VIRTIO_NET_F_MTU, 0);
    assert_eq!(other & 1 << wire::VIRTIO_NET_F_HOST_USO, 0);
    assert_ne!(other & 1 << wire::VIRTIO_NET_F_SPEED_DUPLEX, 0);
}

#[test]
fn options_out_of_bounds_are_refused_with_their_value() {
    let refused = |change: fn(&mut NetOptions)| {
        let mut options = options();
        change(&mut options);
        let error = Net::new(options, vec![Socket::pair().0]).err().unwrap();
        error.to_string()
    };
    assert!(refused(|o| o.queue_size = 100).contains("100"));
    assert!(refused(|o| o.queue_size = 2048).contains("2048"));
    assert!(refused(|o| o.mac[0] = 1).contains("01, 00"));
    assert!(refused(|o| o.mtu = Some(60)).contains("60"));
    assert!(Net::new(options(), Vec::new()).is_err());
}

/// §5.1.6.4: without mergeable buffers one packet is in one chain, and `num_buffers` is 1.
#[test]
fn a_packet_is_received_into_one_chain_with_num_buffers_1() {
    let mut rig = Rig::new(0, 1);
    let (head, places) = rig.rx[0].add(&[Buffer::Writable(12), Buffer::Writable(1514)]);
    let sent = frame(1514, 1);
    rig.put(0, &sent).unwrap();
    rig.read_all().unwrap();
    assert_eq!(rig.rx[0].take_used(), Some((head, 1526)));
    assert_eq!(rig.rx[0].read(places[0], 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(rig.rx[0].read(places[1], 1514), sent);
    assert_eq!(rig.interrupts.take(), [0]);
    assert_eq!((rig.counter("rx_packets"), rig.counter("rx_bytes")), (1, 1514));
}

/// §5.1.6.4.1: all buffers but the last are full, and the header says how many there are.
#[test]
fn a_long_packet_is_spread_over_buffers_that_appear_together() {
    let mut rig = Rig::new(MERGEABLE | EVENT_IDX, 1);
    let buffers: Vec<_> = (0..50).map(|_| rig.rx[0].add(&[Buffer::Writable(1526)])).collect();
    let sent = frame(60_000, 3);
    rig.put(0, &sent).unwrap();
    rig.read_all().unwrap();
    let mut received = Vec::new();
    for (head, places) in buffers {
        let Some((used, written)) = rig.rx[0].take_used() else { break };
        assert_eq!(used, head);
        let last = received.len() + 1526 > 60_012;
        assert_eq!(written, if last { 60_012 % 1526 } else { 1526 });
        received.extend(rig.rx[0].read(places[0], usize::try_from(written).unwrap()));
    }
    assert_eq!(received[10..12], 40_u16.to_le_bytes());
    assert_eq!(received[12..], sent);
    assert_eq!(rig.interrupts.take(), [0]);
}

#[test]
fn a_packet_too_long_for_its_buffer_is_dropped_and_the_buffer_serves_the_next() {
    let mut rig = Rig::new(0, 1);
    let (head, places) = rig.rx[0].add(&[Buffer::Writable(100)]);
    rig.put(0, &frame(200, 1)).unwrap();
    rig.put(0, &frame(88, 2)).unwrap();
    rig.read_all().unwrap();
    assert_eq!(rig.rx[0].take_used(), Some((head, 100)));
    assert_eq!(rig.rx[0].read(places[0] + 12, 88), frame(88, 2));
    assert_eq!((rig.counter("rx_drops"), rig.counter("rx_packets")), (1, 1));
}

/// §5.1.6.3.1: a buffer that cannot hold the header is the driver's mistake.
#[test]
fn a_receive_buffer_smaller_than_the_header_stops_the_device() {
    let mut rig = Rig::new(MERGEABLE, 1);
    rig.rx[0].add(&[Buffer::Writable(11)]);
    rig.put(0, &frame(60, 1)).unwrap();
    let error = rig.units[0].ready(unit::BACKEND).unwrap_err();
    let UnitError::Queue { index: 0, source: QueueError::Short { wanted: 12, found: 11, .. } } =
        error
    else {
        panic!("{error:?}");
    };
}

#[test]
fn without_buffers_the_back_end_is_not_watched_until_the_driver_kicks() {
    let mut rig = Rig::new(EVENT_IDX, 1);
    rig.put(0, &frame(60, 1)).unwrap();
    rig.read_all().unwrap();
    assert_eq!(rig.interest(0), Some(Interest::None));
    // An event that was on its way changes nothing.
    rig.units[0].ready(unit::BACKEND).unwrap();
    let (head, _) = rig.rx[0].add(&[Buffer::Writable(1526)]);
    rig.units[0].kicked(0).unwrap();
    assert_eq!(rig.rx[0].take_used(), Some((head, 72)));
    assert_eq!(rig.counter("rx_drops"), 0);
}

#[test]
fn a_packet_waits_for_buffers_but_not_for_ever() {
    let mut rig = Rig::new(MERGEABLE, 1);
    rig.rx[0].add(&[Buffer::Writable(1000)]);
    rig.put(0, &frame(5000, 1)).unwrap();
    rig.put(0, &frame(60, 2)).unwrap();
    rig.read_all().unwrap();
    assert_eq!(rig.interest(0), Some(Interest::None));
    assert!(rig.units[0].deadline().unwrap() > Instant::now());
    rig.rx[0].add(&[Buffer::Writable(4012)]);
    rig.units[0].kicked(0).unwrap();
    assert_eq!(rig.rx[0].take_used(), Some((0, 1000)));
    assert_eq!(rig.rx[0].take_used(), Some((1, 4012)));
    // Another one comes to nothing: the short one after it is delivered all the same.
    rig.rx[0].add(&[Buffer::Writable(1000)]);
    rig.units[0].kicked(0).unwrap();
    rig.read_all().unwrap();
    assert_eq!(rig.rx[0].take_used(), Some((2, 72)));
    rig.rx[0].add(&[Buffer::Writable(1000)]);
    rig.units[0].kicked(0).unwrap();
    rig.put(0, &frame(5000, 1)).unwrap();
    rig.put(0, &frame(61, 2)).unwrap();
    rig.read_all().unwrap();
    let deadline = rig.units[0].deadline().unwrap();
    std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
    rig.units[0].expired(deadline).unwrap();
    rig.read_all().unwrap();
    assert_eq!(rig.rx[0].take_used(), Some((3, 73)));
    assert_eq!(rig.counter("rx_drops"), 1);
}

#[test]
fn a_packet_that_no_ring_of_the_driver_can_hold_is_dropped_at_once() {
    let mut rig = Rig::new(MERGEABLE, 1);
    for _ in 0..RING {
        rig.rx[0].add(&[Buffer::Writable(100)]);
    }
    rig.put(0, &frame(7000, 1)).unwrap();
    rig.put(0, &frame(60, 2)).unwrap();
    rig.read_all().unwrap();
    assert_eq!(rig.rx[0].take_used(), Some((0, 72)));
    assert_eq!(rig.counter("rx_drops"), 1);
}

/// §5.1.6.2: a packet is the readable part of a chain, however it is cut.
#[test]
fn packets_are_sent_as_they_are_with_their_header() {
    let mut rig = Rig::new(EVENT_IDX, 1);
    let sent = frame(1514, 5);
    let header = vec![1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0];
    let pieces = [header.clone(), sent[..700].to_vec(), sent[700..].to_vec()];
    let (head, _) = rig.tx[0].add(&pieces.map(Buffer::Readable));
    rig.units[0].kicked(1).unwrap();
    assert_eq!(rig.arrived(0).unwrap(), [header, sent].concat());
    assert_eq!(rig.tx[0].take_used(), Some((head, 0)));
    assert_eq!((rig.counter("tx_packets"), rig.counter("tx_bytes")), (1, 1514));
}

#[test]
fn packets_that_are_too_long_are_dropped_and_counted() {
    let mut rig = Rig::new(0, 1);
    rig.tx[0].add(&[packet(&frame(65_554, 1))]);
    rig.tx[0].add(&[packet(&frame(65_553, 1))]);
    rig.units[0].kicked(1).unwrap();
    assert_eq!(rig.arrived(0).unwrap().len(), 65_565);
    assert_eq!(rig.arrived(0), None);
    assert_eq!(rig.tx[0].take_used(), Some((0, 0)));
    assert_eq!(rig.tx[0].take_used(), Some((1, 0)));
    assert_eq!((rig.counter("tx_drops"), rig.counter("tx_packets")), (1, 1));
}

#[test]
fn a_packet_without_a_whole_header_stops_the_device() {
    let mut rig = Rig::new(0, 1);
    rig.tx[0].add(&[Buffer::Readable(vec![0; 11])]);
    let error = rig.units[0].kicked(1).unwrap_err();
    assert!(matches!(error, UnitError::Queue { index: 1, .. }), "{error:?}");
}

#[test]
fn a_full_back_end_is_waited_for() {
    let gate: Arc<Mutex<Gate>> = Arc::default();
    let mut options = options();
    options.transmit_throttle = Some(Arc::clone(&gate) as SharedThrottle);
    let mut rig = Rig::with(options, EVENT_IDX, 1);
    let sent = frame(20_000, 1);
    for _ in 0..30 {
        rig.tx[0].add(&[packet(&sent)]);
    }
    rig.units[0].kicked(1).unwrap();
    assert_eq!(rig.interest(0), Some(Interest::ReadWrite));
    let mut count = 0;
    for _ in 0..30 {
        while let Some(packet) = rig.arrived(0) {
            assert_eq!(packet[HEADER..], sent);
            count += 1;
        }
        rig.units[0].ready(unit::BACKEND).unwrap();
    }
    assert_eq!((count, rig.counter("tx_packets"), rig.counter("tx_drops")), (30, 30, 0));
    assert_eq!(gate.lock().unwrap().taken, [20_000; 30], "each is paid for once");
}

/// A batch is bounded, and what is left over is served without another kick.
#[test]
fn a_busy_queue_leaves_room_for_others() {
    let mut options = options();
    options.queue_size = 256;
    let mut rig = Rig::with(options, 0, 1);
    for round in 0..3 {
        for _ in 0..RING {
            rig.tx[0].add(&[packet(&frame(60, round))]);
        }
        rig.units[0].kicked(1).unwrap();
        while rig.arrived(0).is_some() {}
    }
    // Batches and the ring are of one size here: each was full, and asks to be called again.
    assert_eq!(u32::from(RING), unit::BATCH);
    let now = Instant::now();
    assert!(rig.units[0].deadline().unwrap() <= now);
    rig.units[0].expired(now).unwrap();
    assert_eq!(rig.units[0].deadline(), None);
}

/// The interrupt for a lone short packet comes late, and not at all if the driver has seen it.
#[test]
fn a_lone_packet_costs_an_interrupt_only_if_the_driver_waits_for_it() {
    let mut rig = Rig::new(EVENT_IDX, 1);
    rig.tx[0].set_used_event(0);
    rig.tx[0].add(&[packet(&frame(60, 1))]);
    rig.units[0].kicked(1).unwrap();
    assert!(rig.interrupts.take().is_empty());
    let due = rig.units[0].deadline().unwrap();
    assert!(due <= Instant::now() + Duration::from_millis(1));
    rig.units[0].expired(due).unwrap();
    assert_eq!((rig.interrupts.take(), rig.units[0].deadline()), (vec![1], None));
    // The driver freed the buffer on its own, and wants to hear of the next one.
    rig.tx[0].set_used_event(1);
    rig.tx[0].add(&[packet(&frame(60, 1))]);
    rig.units[0].kicked(1).unwrap();
    rig.tx[0].set_used_event(2);
    let due = rig.units[0].deadline().unwrap();
    rig.units[0].expired(due).unwrap();
    assert!(rig.interrupts.take().is_empty());
    // Several at once are told at once.
    rig.tx[0].add(&[packet(&frame(60, 1))]);
    rig.tx[0].add(&[packet(&frame(60, 1))]);
    rig.units[0].kicked(1).unwrap();
    assert_eq!(rig.interrupts.take(), [1]);
}

/// A request and its answer: Linux frees sent buffers when it looks at what it received.
#[test]
fn an_answer_saves_the_interrupt_of_its_request() {
    let mut rig = Rig::new(EVENT_IDX | MERGEABLE, 1);
    for _ in 0..30 {
        rig.rx[0].add(&[Buffer::Writable(1526)]);
    }
    for round in 0..20_u16 {
        rig.rx[0].set_used_event(round);
        rig.tx[0].set_used_event(round);
        rig.tx[0].add(&[packet(&frame(60, 1))]);
        rig.units[0].kicked(1).unwrap();
        assert!(rig.tx[0].take_used().is_some(), "only the interrupt waits");
        rig.put(0, &rig.arrived(0).unwrap()[HEADER..]).unwrap();
        rig.units[0].ready(unit::BACKEND).unwrap();
        assert_eq!(rig.interrupts.take(), [0]);
        rig.tx[0].set_used_event(round + 1);
    }
}

/// Without `VIRTIO_F_EVENT_IDX` (§2.7.10): kicks are wanted only while there are no buffers.
#[test]
fn a_driver_with_buffers_posted_need_not_kick_for_more() {
    let mut rig = Rig::new(0, 1);
    let used_flags = |rig: &Rig| rig.rx[0].read(0x2_0000, 2);
    rig.rx[0].add(&[Buffer::Writable(1526)]);
    rig.rx[0].add(&[Buffer::Writable(1526)]);
    for (put, flags) in [(1, [1, 0]), (2, [0, 0])] {
        for _ in 0..put {
            rig.put(0, &frame(60, 1)).unwrap();
        }
        rig.read_all().unwrap();
        assert_eq!(used_flags(&rig), flags);
    }
}

#[test]
fn packets_that_exceed_the_rate_wait_and_are_paid_for_once() {
    let gates: [Arc<Mutex<Gate>>; 2] = Default::default();
    let mut options = options();
    options.receive_throttle = Some(Arc::clone(&gates[0]) as SharedThrottle);
    options.transmit_throttle = Some(Arc::clone(&gates[1]) as SharedThrottle);
    let mut rig = Rig::with(options, 0, 1);
    let until = Instant::now() + Duration::from_secs(60);
    for gate in &gates {
        gate.lock().unwrap().closed_until = Some(until);
    }
    rig.rx[0].add(&[Buffer::Writable(1526)]);
    rig.put(0, &frame(60, 1)).unwrap();
    rig.read_all().unwrap();
    rig.tx[0].add(&[packet(&frame(70, 2))]);
    rig.units[0].kicked(1).unwrap();
    assert_eq!(rig.units[0].deadline(), Some(until));
    assert_eq!(rig.interest(0), Some(Interest::None));
    assert_eq!((rig.rx[0].take_used(), rig.arrived(0)), (None, None));
    for gate in &gates {
        gate.lock().unwrap().closed_until = None;
    }
    rig.units[0].expired(until).unwrap();
    assert_eq!(rig.rx[0].take_used(), Some((0, 72)));
    assert_eq!(rig.arrived(0).unwrap()[HEADER..], frame(70, 2));
    assert_eq!(gates.each_ref().map(|gate| gate.lock().unwrap().taken.clone()), [[60], [70]]);
    assert_eq!((rig.counter("rx_throttled"), rig.counter("tx_throttled")), (1, 1));
}

/// §5.1.6.5.6.1 and §5.1.3.1: the back end hears of what the driver can take, by both ways.
#[test]
fn offloads_follow_features_and_commands() {
    let tso = 1 << wire::VIRTIO_NET_F_GUEST_TSO4 | 1 << wire::VIRTIO_NET_F_GUEST_TSO6;
    let checksum = 1 << wire::VIRTIO_NET_F_GUEST_CSUM;
    let command = 1 << wire::VIRTIO_NET_F_CTRL_GUEST_OFFLOADS;
    let mut rig = Rig::new(tso | checksum | command | CONTROL, 1);
    let offloads = |rig: &Rig| *rig.sockets[0].offloads.lock().unwrap();
    let all =
        Offloads { has_checksum: true, has_tso4: true, has_tso6: true, ..Offloads::default() };
    assert_eq!(offloads(&rig), all);
    let set = |bits: u64| [&[5, 0][..], &bits.to_le_bytes()].concat();
    assert_eq!(rig.command(&set(checksum)), wire::ACK_OK);
    let only_checksum = Offloads { has_checksum: true, ..Offloads::default() };
    assert_eq!(offloads(&rig), only_checksum);
    // Not negotiated.
    assert_eq!(rig.command(&set(1 << wire::VIRTIO_NET_F_GUEST_ECN)), wire::ACK_ERROR);
    assert_eq!(offloads(&rig), only_checksum);
    // A pause changes nothing, a reset does.
    rig.stop();
    rig.activate(tso | checksum | command | CONTROL).unwrap();
    assert_eq!(offloads(&rig), only_checksum);
    rig.stop();
    rig.device.reset();
    rig.activate(tso).unwrap();
    assert_eq!(offloads(&rig), Offloads::default(), "TSO counts only with checksums");
}

/// §5.1.6.5.1, §5.1.6.5.2: modes and tables are accepted, nonsense is not.
#[test]
fn receive_modes_and_address_tables_are_accepted() {
    let mut rig = Rig::new(CONTROL, 1);
    for mode in 0..6 {
        assert_eq!(rig.command(&[0, mode, 1]), wire::ACK_OK);
    }
    assert_eq!(rig.command(&[0, 0, 2]), wire::ACK_ERROR);
    assert_eq!(rig.command(&[0, 6, 1]), wire::ACK_ERROR);
    let tables = [&[1, 0, 1, 0, 0, 0][..], &MAC, &[0; 4]].concat();
    assert_eq!(rig.command(&tables), wire::ACK_OK);
    let lying = [&[1, 0, 0, 0, 0, 0][..], &[2, 0, 0, 0], &MAC].concat();
    assert_eq!(rig.command(&lying), wire::ACK_ERROR);
    // §5.1.6.5.5 without MQ, §5.1.6.5.3 without VLANs, §5.1.6.5.6 without the feature.
    assert_eq!(rig.command(&[4, 0, 1, 0]), wire::ACK_ERROR);
    assert_eq!(rig.command(&[2, 0, 1, 0]), wire::ACK_ERROR);
    assert_eq!(rig.command(&[5, 0, 0, 0, 0, 0, 0, 0, 0, 0]), wire::ACK_ERROR);
}

#[test]
fn commands_cut_short_stop_the_device() {
    let cases: [(&[u8], u32); 5] =
        [(&[0], 1), (&[4, 0, 1], 1), (&[1, 0, 255, 255, 255, 255], 1), (&[0, 0], 1), (&[9, 9], 0)];
    for (bytes, room) in cases {
        let mut rig = Rig::new(CONTROL | MQ, 2);
        let mut buffers = vec![Buffer::Readable(bytes.to_vec())];
        buffers.extend((room > 0).then_some(Buffer::Writable(room)));
        rig.control.as_mut().unwrap().add(&buffers);
        let result = rig.units[0].kicked(4);
        if bytes[..] == [1, 0, 255, 255, 255, 255] {
            // The second table's count lies beyond what a chain can hold.
            assert!(result.is_err() || rig.control.as_mut().unwrap().take_used().is_some());
            continue;
        }
        assert!(matches!(result, Err(UnitError::Queue { index: 4, .. })), "{bytes:?}: {result:?}");
    }
}

/// §5.1.6.5.5: one pair is in use until the driver says otherwise.
#[test]
fn queue_pairs_are_used_as_the_driver_says() {
    let mut rig = Rig::new(CONTROL | MQ | EVENT_IDX, 3);
    let attached = |rig: &Rig| -> Vec<bool> {
        rig.sockets.iter().map(|socket| socket.is_attached.load(Ordering::SeqCst)).collect()
    };
    assert_eq!(attached(&rig), [true, false, false]);
    assert_eq!(rig.units.len(), 3);
    assert_eq!(rig.interest(1), None);
    // Out of use: kicks and wake-ups come to nothing.
    rig.tx[1].add(&[packet(&frame(60, 1))]);
    rig.units[1].kicked(3).unwrap();
    rig.units[1].ready(unit::WAKE).unwrap();
    assert_eq!(rig.arrived(1), None);
    for bad in [0_u16, 4, 0xffff] {
        let command = [&[4, 0][..], &bad.to_le_bytes()].concat();
        assert_eq!(rig.command(&command), wire::ACK_ERROR, "{bad}");
    }
    assert_eq!(rig.command(&[4, 0, 2, 0]), wire::ACK_OK);
    assert_eq!(attached(&rig), [true, true, false]);
    // What was queued before goes out on the wake-up.
    let wake = rig.units[1].sources()[0];
    assert!(matches!(wake, Source { token: unit::WAKE, interest: Interest::Read, .. }));
    rig.units[1].ready(wake.token).unwrap();
    assert_eq!(rig.arrived(1).unwrap()[HEADER..], frame(60, 1));
    assert_eq!(rig.interest(1), Some(Interest::None), "no receive buffers yet");
    let saved = rig.device.save().unwrap();
    rig.stop();
    rig.device.reset();
    assert_eq!(attached(&rig), [true, false, false]);
    rig.device.restore(saved).unwrap();
    rig.activate(CONTROL | MQ).unwrap();
    assert_eq!(attached(&rig), [true, true, false]);
}

/// §5.1.2: without MQ the control queue is the third one, whatever the device could do.
#[test]
fn a_driver_without_mq_finds_the_control_queue_behind_the_first_pair() {
    let mut rig = Rig::new(CONTROL, 2);
    assert_eq!(rig.units.len(), 1);
    assert_eq!(rig.command(&[0, 0, 1]), wire::ACK_OK);
}

#[test]
fn saved_state_that_makes_no_sense_is_refused() {
    let mut rig = Rig::new(0, 2);
    for json in [
        r#"{"active_pairs": 0, "offloads": null}"#,
        r#"{"active_pairs": 3, "offloads": null}"#,
        r#"{"active_pairs": 1, "offloads": -1}"#,
        r#"{"active_pairs": 1, "offloads": null, "more": 1}"#,
        "null",
    ] {
        let state = serde_json::from_str(json).unwrap();
        assert!(matches!(rig.device.restore(state), Err(DeviceError::State(_))), "{json}");
    }
}

#[test]
fn a_restored_guest_keeps_its_address_and_gets_this_host_s_link() {
    let mut rig = Rig::new(0, 2);
    let mut seen = rig.device.config().save();
    seen[..6].copy_from_slice(&[2, 9, 9, 9, 9, 9]);
    rig.device.handle().set_link(false);
    rig.device.restore_config(&seen).unwrap();
    let now = rig.device.config().save();
    assert_eq!((&now[..6], now[6]), (&seen[..6], 0), "the cable is out here");
    let error = |rig: &mut Rig, at: usize, value: u8| {
        let mut seen = seen.clone();
        seen[at] = value;
        rig.device.restore_config(&seen).unwrap_err().to_string()
    };
    let pairs = error(&mut rig, 8, 3);
    assert_eq!(pairs, "the guest knows max_virtqueue_pairs 3, this device has 2");
    assert!(error(&mut rig, 0, 1).contains("multicast"));
    rig.device.restore_config(&seen[1..]).unwrap_err();
}

/// §5.1.4: the driver sees the link's state, and is told of changes.
#[test]
fn an_unplugged_cable_carries_nothing() {
    let mut rig = Rig::new(0, 1);
    let interrupt = Arc::clone(&rig.interrupts) as Arc<dyn Interrupt>;
    rig.device.config().announce_to(Some(interrupt));
    let handle = rig.device.handle();
    let status = |rig: &Rig| {
        let mut status = [9; 2];
        rig.device.config().read(6, &mut status);
        status
    };
    handle.set_link(false);
    handle.set_link(false);
    assert_eq!((status(&rig), rig.interrupts.config_count()), ([0, 0], 1));
    rig.rx[0].add(&[Buffer::Writable(1526)]);
    rig.put(0, &frame(60, 1)).unwrap();
    rig.read_all().unwrap();
    rig.tx[0].add(&[packet(&frame(60, 1))]);
    rig.units[0].kicked(1).unwrap();
    assert_eq!((rig.rx[0].take_used(), rig.arrived(0)), (None, None));
    assert_eq!((rig.counter("rx_drops"), rig.counter("tx_drops")), (1, 1));
    handle.set_link(true);
    assert_eq!((status(&rig), rig.interrupts.config_count()), ([1, 0], 2));
    rig.put(0, &frame(61, 1)).unwrap();
    rig.read_all().unwrap();
    assert_eq!(rig.rx[0].take_used(), Some((0, 73)));
}

#[test]
fn a_back_end_that_disappears_stops_the_unit_and_takes_the_link_down() {
    let lost = |event: fn(&mut Rig) -> Result<(), UnitError>| {
        let mut rig = Rig::new(0, 1);
        rig.tx[0].add(&[packet(&frame(60, 1))]);
        rig.wires.clear();
        let error = event(&mut rig).unwrap_err();
        assert!(matches!(error, UnitError::Host { .. }), "{error:?}");
        let handle = rig.device.handle();
        assert!(!handle.is_link_up());
        handle.set_link(true);
        assert!(!handle.is_link_up(), "there is nothing to plug into");
        assert_eq!(rig.stop().len(), 2);
    };
    lost(|rig| rig.units[0].kicked(1));
    lost(|rig| {
        rig.rx[0].add(&[Buffer::Writable(1526)]);
        rig.units[0].ready(unit::BACKEND)
    });
    // Without receive buffers nothing is read: the descriptor's error is looked into.
    lost(|rig| {
        rig.units[0].ready(unit::BACKEND)?;
        rig.sockets[0].is_gone.store(true, Ordering::SeqCst);
        rig.units[0].ready(unit::BACKEND)
    });
}

/// A pause gives unused receive buffers back, and none is lost.
#[test]
fn stopped_units_give_their_queues_back_as_they_were() {
    let mut rig = Rig::new(MERGEABLE, 1);
    for _ in 0..8 {
        rig.rx[0].add(&[Buffer::Writable(1526)]);
    }
    rig.put(0, &frame(60, 1)).unwrap();
    rig.read_all().unwrap();
    assert_eq!(rig.rx[0].take_used(), Some((0, 72)));
    let mut queues = rig.stop();
    assert_eq!(queues.iter().map(Queue::index).collect::<Vec<_>>(), [0, 1]);
    let mut chain = crate::Chain::new();
    for head in 1..8 {
        assert!(queues[0].pop(&mut chain).unwrap());
        assert_eq!(chain.head(), head);
    }
    assert!(!queues[0].pop(&mut chain).unwrap());
}
