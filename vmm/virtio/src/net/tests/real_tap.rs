//! The card on a tap of the kernel's, in a network namespace of the test's own.
//!
//! Namespaces belong to threads, so that nothing is left behind: when the test's thread and the
//! tap's descriptors are gone, so are the namespace and all in it. Needs `CAP_SYS_ADMIN` and `ip`;
//! says so and passes where they are missing.

use std::net::UdpSocket;
use std::process::Command;

use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::*;

const NAME: &str = "vmmtest0";
const HOST: &str = "10.9.8.1";
const GUEST: &str = "10.9.8.2";

/// Runs `test` in a network namespace, with a tap of `queues` queues that has an address and a
/// neighbour.
fn in_a_namespace(queues: usize, test: impl FnOnce(Vec<Tap>) + Send + 'static) {
    let body = move || {
        // SAFETY: a network namespace has nothing to do with memory or descriptors.
        if let Err(errno) = unsafe { unshare_unsafe(UnshareFlags::NEWNET) } {
            eprintln!("skipped: no network namespace of its own for the test: {errno}");
            return;
        }
        let taps = match Tap::open(NAME, queues) {
            Ok(taps) => taps,
            Err(error) => {
                eprintln!("skipped: no taps here: {error}");
                return;
            }
        };
        let mac = "02:00:00:00:00:07";
        let commands = [
            format!("link set {NAME} mtu 9000 up"),
            format!("address add {HOST}/24 dev {NAME}"),
            format!("neighbour add {GUEST} lladdr {mac} dev {NAME}"),
        ];
        if commands.iter().all(|command| ip(command)) {
            test(taps);
        } else {
            eprintln!("skipped: `ip` is missing or cannot configure a tap");
        }
    };
    std::thread::spawn(body).join().unwrap();
}

fn ip(arguments: &str) -> bool {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    status.is_ok_and(|status| status.success())
}

/// A card on `taps`, in the place of sockets.
fn rig(taps: Vec<Tap>, features: u64) -> Rig {
    let backends = taps.into_iter().map(|tap| Arc::new(tap) as Arc<dyn Backend>);
    let device = Net::new(options(), backends.collect()).unwrap();
    let mut rig = Rig {
        device,
        units: Vec::new(),
        rx: Vec::new(),
        tx: Vec::new(),
        control: None,
        sockets: Vec::new(),
        wires: Vec::new(),
        interrupts: Arc::default(),
    };
    rig.activate(features).unwrap();
    rig
}

/// The next IPv4 packet that the driver of the first pair receives; others are noise.
fn received(rig: &mut Rig, places: &mut impl Iterator<Item = u64>) -> Option<Vec<u8>> {
    rig.read_all().unwrap();
    loop {
        let (_, written) = rig.rx[0].take_used()?;
        let first = rig.rx[0].read(places.next()?, usize::try_from(written).unwrap());
        let mut packet = first.clone();
        for _ in 1..u16::from_le_bytes([first[10], first[11]]) {
            let (_, written) = rig.rx[0].take_used().unwrap();
            packet.extend(rig.rx[0].read(places.next()?, usize::try_from(written).unwrap()));
        }
        if packet[HEADER + 12..HEADER + 14] == [8, 0] {
            return Some(packet);
        }
    }
}

/// A datagram from the guest to port 1000 of the host, its UDP checksum left to the host.
fn datagram(header: [u8; 10], data: &[u8]) -> Vec<u8> {
    let udp_size = u16::try_from(8 + data.len()).unwrap();
    let mut ip = vec![0x45, 0];
    ip.extend((20 + udp_size).to_be_bytes());
    ip.extend([0, 0, 0, 0, 64, 17, 0, 0, 10, 9, 8, 2, 10, 9, 8, 1]);
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&(!sum).to_be_bytes());
    // The sum of the pseudo header is where the checksum will be.
    let pseudo = [&ip[12..20], &[0, 17], &udp_size.to_be_bytes()].concat();
    let udp = [2000_u16.to_be_bytes(), 1000_u16.to_be_bytes(), udp_size.to_be_bytes()].concat();
    // The host takes what is sent to all.
    let ethernet = [&[0xff; 6][..], &MAC, &[8, 0]].concat();
    let sum = checksum(&pseudo).to_be_bytes();
    [&header[..], &[0, 0], &ethernet, &ip, &udp, &sum, data].concat()
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

/// Needs its checksum from byte 34 on, at offset 6 of that.
const NEEDS_CHECKSUM: [u8; 10] = [1, 0, 0, 0, 0, 0, 34, 0, 6, 0];

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind((HOST, 1000)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket
}

#[test]
fn packets_pass_in_both_directions_with_offloads() {
    in_a_namespace(1, |taps| {
        // All that is on offer but EVENT_IDX: the tap takes every offload.
        let options = options();
        let all = features(&options, 1, taps[0].has_udp_segmentation());
        let mut rig = rig(taps, all & !EVENT_IDX);
        let mut places = Vec::new();
        for _ in 0..50 {
            places.extend(rig.rx[0].add(&[Buffer::Writable(1526)]).1);
        }
        let mut places = places.into_iter();
        let socket = socket();
        for size in [5, 1400, 8000] {
            let data = frame(size, size);
            socket.send_to(&data, (GUEST, 2000)).unwrap();
            let packet = received(&mut rig, &mut places).unwrap();
            assert_eq!(packet[0], 1, "the checksum is left to the guest");
            assert_eq!(packet[HEADER..HEADER + 6], MAC);
            assert_eq!(packet[packet.len() - size..], data);
        }
        let mut bytes = [0; 9000];
        for size in [5, 1400, 8000] {
            let data = frame(size, size);
            rig.tx[0].add(&[Buffer::Readable(datagram(NEEDS_CHECKSUM, &data))]);
            rig.units[0].kicked(1).unwrap();
            let size = socket.recv(&mut bytes).unwrap();
            assert_eq!(bytes[..size], data);
        }
    });
}

#[test]
fn a_long_datagram_is_cut_up_by_the_host() {
    in_a_namespace(1, |taps| {
        if !taps[0].has_udp_segmentation() {
            eprintln!("skipped: this kernel's taps know no UDP segmentation");
            return;
        }
        let mut rig = rig(taps, 1 << wire::VIRTIO_NET_F_HOST_USO);
        let socket = socket();
        // gso_type 5 is VIRTIO_NET_HDR_GSO_UDP_L4; 42 bytes of headers, 1000 a segment.
        let header = [1, 5, 42, 0, 0xe8, 3, 34, 0, 6, 0];
        let data = frame(20_500, 1);
        rig.tx[0].add(&[Buffer::Readable(datagram(header, &data))]);
        rig.units[0].kicked(1).unwrap();
        let mut bytes = [0; 9000];
        for part in data.chunks(1000) {
            let size = socket.recv(&mut bytes).unwrap();
            assert_eq!(bytes[..size], *part);
        }
    });
}

/// Headers that make no sense are the kernel's to refuse; each is dropped or sent, and counted.
#[test]
fn hostile_headers_harm_nobody() {
    in_a_namespace(1, |taps| {
        let mut rig = rig(taps, 0);
        let socket = socket();
        let mut headers = vec![[0xff; 10], [1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]];
        for gso_type in 0..8 {
            for size in [0, 1, 0xff] {
                headers.push([1, gso_type, size, size, size, 0, 34, 0, 6, 0]);
                headers.push([0, gso_type | 0x80, 0, 0, size, size, size, size, size, size]);
            }
        }
        let count = headers.len() as u64;
        for header in headers {
            let (head, _) = rig.tx[0].add(&[Buffer::Readable(datagram(header, b"hostile"))]);
            rig.units[0].kicked(1).unwrap();
            assert_eq!(rig.tx[0].take_used(), Some((head, 0)));
        }
        rig.tx[0].add(&[Buffer::Readable(vec![0; HEADER])]);
        rig.units[0].kicked(1).unwrap();
        let drops = rig.counter("tx_drops");
        assert!(drops > 1, "{drops}");
        assert_eq!(drops + rig.counter("tx_packets"), count + 1);
        // And the card still works.
        rig.tx[0].add(&[Buffer::Readable(datagram(NEEDS_CHECKSUM, b"fine"))]);
        rig.units[0].kicked(1).unwrap();
        let mut bytes = [0; 100];
        while socket.recv(&mut bytes).unwrap() != 4 {}
        assert_eq!(bytes[..4], *b"fine");
    });
}

/// A pair out of use gets no packets and is no error; in use it works.
#[test]
fn queue_pairs_of_a_tap_come_and_go() {
    in_a_namespace(2, |taps| {
        let mut rig = rig(taps, CONTROL | MQ);
        let socket = socket();
        let send = |rig: &mut Rig, pair: usize| {
            rig.tx[pair].add(&[Buffer::Readable(datagram(
                NEEDS_CHECKSUM,
                &[u8::try_from(pair).unwrap(); 3],
            ))]);
            rig.units[pair].kicked(u16::try_from(pair).unwrap() * 2 + 1).unwrap();
        };
        let mut bytes = [0; 100];
        for round in 0..3 {
            send(&mut rig, 1);
            assert_eq!(rig.tx[1].take_used(), None, "out of use in round {round}");
            assert_eq!(rig.command(&[4, 0, 2, 0]), wire::ACK_OK);
            rig.units[1].ready(unit::WAKE).unwrap();
            assert_eq!(socket.recv(&mut bytes).unwrap(), 3);
            assert_eq!(bytes[..3], [1; 3]);
            assert!(rig.tx[1].take_used().is_some());
            // Nothing to read, which is not an error.
            rig.rx[1].add(&[Buffer::Writable(1526)]);
            rig.units[1].kicked(2).unwrap();
            rig.units[1].ready(unit::BACKEND).unwrap();
            assert_eq!(rig.command(&[4, 0, 1, 0]), wire::ACK_OK);
            rig.units[1].ready(unit::BACKEND).unwrap();
        }
        send(&mut rig, 0);
        assert_eq!(socket.recv(&mut bytes).unwrap(), 3);
    });
}

/// A tap that is handed over works like one opened by name, and one that disappears is noticed by
/// whoever touches it.
#[test]
fn a_tap_that_disappears_stops_its_unit() {
    for with_buffers in [true, false] {
        in_a_namespace(1, move |taps| {
            let descriptor = taps[0].descriptor().try_clone_to_owned().unwrap();
            let mut rig = rig(Tap::from_descriptors(vec![descriptor]).unwrap(), 0);
            drop(taps);
            if with_buffers {
                for _ in 0..30 {
                    rig.rx[0].add(&[Buffer::Writable(9100)]);
                }
            }
            rig.read_all().unwrap();
            rig.units[0].ready(unit::BACKEND).unwrap();
            assert!(ip(&format!("link delete {NAME}")));
            rig.tx[0].add(&[Buffer::Readable(datagram(NEEDS_CHECKSUM, b"x"))]);
            let error = if with_buffers {
                rig.units[0].kicked(1).unwrap_err()
            } else {
                rig.units[0].ready(unit::BACKEND).unwrap_err()
            };
            assert!(matches!(error, UnitError::Host { .. }), "{error:?}");
            assert!(!rig.device.handle().is_link_up());
            rig.stop();
            let error = rig.activate(0).unwrap_err();
            assert!(matches!(error, DeviceError::Host { .. }), "{error:?}");
        });
    }
}

#[test]
fn one_queue_of_a_tap_with_several_is_enough() {
    in_a_namespace(2, |taps| {
        let descriptors: Vec<_> =
            taps.iter().map(|tap| tap.descriptor().try_clone_to_owned().unwrap()).collect();
        assert_eq!(Tap::from_descriptors(descriptors).unwrap().len(), 2);
        // One queue of a tap that has several is fine, by descriptor and by name.
        let one = taps[0].descriptor().try_clone_to_owned().unwrap();
        assert!(Tap::from_descriptors(vec![one]).is_ok());
        assert_eq!(Tap::open(NAME, 1).unwrap().len(), 1);
    });
}
