//! What crosses the border between a network and the Internet: nothing that begins outside, no mail, whole
//! packets of 1500 bytes.

use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use hostd_exec::network::Networks;
use hostd_grid::Name;

use crate::frames::{self, Mac};
use crate::guest::Card;
use crate::world::{INTERNET, World, is_possible, network, workload};

/// How long to wait for what should come.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait for what must not come.
const MOMENT: Duration = Duration::from_millis(300);
/// A port of the machine.
const PORT: u16 = 5353;

/// A network with a machine, and the way to its gateway.
fn machine(networks: &Networks, name: &str, last: u8) -> (Card, Mac) {
    networks.provision(&workload(11, "net1"), &network("10.20.2.0/24", 11)).unwrap();
    let ip = Some(Ipv4Addr::new(10, 20, 2, last));
    let network = Name::new("net1");
    let attached = networks.attach(&network, &workload(11, name), ip, Some([last; 6])).unwrap();
    let card = Card::open(&attached, 0);
    let gateway = card.resolve(Ipv4Addr::new(10, 20, 2, 1)).expect("a gateway");
    (card, gateway)
}

/// Whether a frame is a packet of IPv4 for that address.
fn is_for(frame: &[u8], address: Ipv4Addr) -> bool {
    frame[12..14] == [8, 0] && frame[30..34] == address.octets()
}

#[test]
fn nobody_outside_begins_a_connection() {
    if !is_possible() {
        return;
    }
    let world = World::new();
    let networks = world.open();
    let (card, gateway) = machine(&networks, "vm1", 5);
    let own = card.ipv4();
    let lines = world.lines();
    let line = lines.first().unwrap().split('/').next().unwrap();
    let line: Ipv4Addr = line.parse().unwrap();
    world.lead_in("10.20.2.0/24");
    world.lead_in("100.127.0.0/16");

    // Whom it writes to may answer.
    let outside = world.on_the_internet(|| UdpSocket::bind((Ipv4Addr::from(INTERNET), 0))).unwrap();
    outside.set_read_timeout(Some(PATIENCE)).unwrap();
    let target = (INTERNET.into(), outside.local_addr().unwrap().port());
    card.send(&frames::udp4((gateway, card.mac), (own, PORT), target, b"question"));
    let (_, seen_as) = outside.recv_from(&mut [0; 16]).unwrap();
    outside.send_to(b"answer", seen_as).unwrap();
    let answer = card.receive(PATIENCE, |frame| is_for(frame, own) && frame.ends_with(b"answer"));
    assert!(answer.is_some(), "what was answered does not come");

    // Nobody else may, on the same way or another, nor begin anything.
    let other = world.on_the_internet(|| UdpSocket::bind((Ipv4Addr::from(INTERNET), 0))).unwrap();
    let at = |address: Ipv4Addr, port| SocketAddr::from((address, port));
    for target in [seen_as, at(own, PORT), at(line, PORT), at(line, seen_as.port())] {
        // The node may say that there is nobody, which the next call would be told.
        let _ = other.send_to(b"intruder", target);
    }
    // The console's port is one of these.
    for target in [at(own, 22), at(line, 22), at(line, 20_005), at(own, 20_005)] {
        let connected = world.on_the_internet(|| TcpStream::connect_timeout(&target, MOMENT));
        assert!(connected.is_err(), "{target} takes connections from outside");
    }
    let intruder = card.receive(MOMENT, |frame| is_for(frame, own));
    assert_eq!(intruder, None, "it came in from outside");
}

#[test]
fn no_mail_leaves_and_everything_else_does() {
    if !is_possible() {
        return;
    }
    let world = World::new();
    let networks = world.open();
    let (card, gateway) = machine(&networks, "vm1", 5);
    let answer_to = |port| {
        let syn = frames::syn4((gateway, card.mac), (card.ipv4(), PORT), (INTERNET.into(), port));
        card.send(&syn);
        let answer = card.receive(PATIENCE, |frame| is_for(frame, card.ipv4()));
        let answer = answer.unwrap_or_else(|| panic!("nothing answers for port {port}"));
        (answer[23], Ipv4Addr::from(<[u8; 4]>::try_from(&answer[26..30]).unwrap()), answer)
    };
    // Nobody listens there, which the host itself says: by TCP, with a reset.
    for port in [24, 26, 80, 465, 587] {
        let (protocol, from, answer) = answer_to(port);
        assert_eq!((protocol, from), (6, INTERNET.into()), "port {port}");
        assert_eq!(answer[47] & 0x04, 0x04, "port {port} is not reset");
    }
    // Mail is refused on the way: destination unreachable, prohibited (RFC 1812 section 5.2.7.1).
    let (protocol, from, answer) = answer_to(25);
    assert_eq!((protocol, from), (1, Ipv4Addr::new(10, 20, 2, 1)));
    assert_eq!(answer[34..36], [3, 13]);
}

#[test]
fn packets_of_1500_bytes_cross_whole() {
    if !is_possible() {
        return;
    }
    let world = World::new();
    let networks = world.open();
    let (card, gateway) = machine(&networks, "vm1", 5);
    let (other, _) = machine(&networks, "vm2", 6);
    let is_whole =
        |frame: &[u8], mark: u32| frame.len() == 14 + 1500 && frame.ends_with(&mark.to_be_bytes());
    let ping = |to, target, mark| {
        card.send(&frames::ping4_of(1500, (to, card.mac), card.ipv4(), target, mark));
    };
    ping(other.mac, other.ipv4(), 0x1111);
    assert!(other.receive(PATIENCE, |frame| is_whole(frame, 0x1111)).is_some(), "to a neighbour");
    ping(gateway, INTERNET.into(), 0x2222);
    let answered = card.receive(PATIENCE, |frame| is_whole(frame, 0x2222) && frame[34] == 0);
    assert!(answered.is_some(), "to the Internet and back");
}
