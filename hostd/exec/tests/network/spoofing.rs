//! What a machine pretends to be, another machine of its own network never sees; nor does the gateway.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hostd_grid::Name;

use crate::frames::{self, BROADCAST, Mac, ethernet};
use crate::guest::Card;
use crate::world::{World, is_possible, network, workload};

const EVIL: Mac = [0x02, 0x66, 0x66, 0x66, 0x66, 0x66];

/// Frames of the private interface that must not pass. They all carry the mark.
fn private_lies(a: &Card, b: &Card, mark: u32) -> Vec<(&'static str, Vec<u8>)> {
    let (gateway, other) = (Ipv4Addr::new(10, 20, 2, 1), Ipv4Addr::new(10, 20, 2, 77));
    let to_b = (b.mac, a.mac);
    let honest = frames::ping4(to_b, a.ipv4(), b.ipv4(), mark);
    let marked = |mut frame: Vec<u8>| {
        frame.extend(mark.to_be_bytes());
        frame
    };
    let arp = |from, sender| marked(frames::arp(from, 2, sender, (b.mac, b.ipv4())));
    let v6: [Ipv6Addr; 2] = ["fe80::5".parse().unwrap(), "fe80::6".parse().unwrap()];
    let tagged = [&[0, 5, 8, 0][..], &honest[14..]].concat();
    let twice = [&[0, 5, 0x81, 0, 0, 6, 8, 0][..], &honest[14..]].concat();
    vec![
        ("another MAC", frames::ping4((b.mac, EVIL), a.ipv4(), b.ipv4(), mark)),
        ("the other's MAC", frames::ping4((b.mac, b.mac), a.ipv4(), b.ipv4(), mark)),
        ("another address", frames::ping4(to_b, other, b.ipv4(), mark)),
        ("the gateway's address", frames::ping4(to_b, gateway, b.ipv4(), mark)),
        ("the other's address", frames::ping4(to_b, b.ipv4(), b.ipv4(), mark)),
        ("no address", frames::ping4(to_b, Ipv4Addr::UNSPECIFIED, b.ipv4(), mark)),
        ("ARP for the gateway", arp(a.mac, (a.mac, gateway))),
        ("ARP for the other", arp(a.mac, (a.mac, b.ipv4()))),
        ("ARP with another MAC inside", arp(a.mac, (EVIL, a.ipv4()))),
        ("ARP with another MAC outside", arp(EVIL, (a.mac, a.ipv4()))),
        ("a VLAN", ethernet(b.mac, a.mac, 0x8100, &tagged)),
        ("a VLAN in a VLAN", ethernet(b.mac, a.mac, 0x88a8, &twice)),
        ("IPv6", frames::ping6(to_b, (v6[0], v6[1]), mark)),
        ("a spanning tree", marked(ethernet([1, 0x80, 0xc2, 0, 0, 0], a.mac, 38, &[0x42; 40]))),
        ("another protocol", marked(ethernet(BROADCAST, a.mac, 0x88b5, &[0; 40]))),
    ]
}

/// Frames of the mycelium interface that must not pass.
fn mycelium_lies(a: &Card, b: &Card, mark: u32) -> Vec<(&'static str, Vec<u8>)> {
    let IpAddr::V6(gateway) = a.interface.routes[0].via else { panic!("IPv6") };
    let address = |text: &str| text.parse::<Ipv6Addr>().unwrap();
    let [local, local_gateway] = ["fe80::5", "fe80::1"].map(address);
    let to_b = (b.mac, a.mac);
    let marked = |mut body: Vec<u8>| {
        body.extend([&[14, 1, 0, 0][..], &mark.to_be_bytes()].concat());
        body
    };
    let from = |source, kind, body: Vec<u8>| frames::icmp6(to_b, (source, b.ipv6()), kind, &body);
    let claim =
        |source, target| from(source, 136, marked(frames::neighbour(0x60, target, 2, a.mac)));
    // A header of options that say nothing (RFC 8200 section 4.6) in front of a claim.
    let hidden = |claim: Vec<u8>| {
        let payload = u16::try_from(claim.len() - 54 + 8).unwrap().to_be_bytes();
        let head = [&claim[..18], &payload, &[60], &claim[21..54]].concat();
        [&head[..], &[58, 0, 1, 4, 0, 0, 0, 0], &claim[54..]].concat()
    };
    // A header of options that say nothing (RFC 8200 section 4.6) in front of a claim.
    let hidden = |claim: Vec<u8>| {
        let payload = u16::try_from(claim.len() - 54 + 8).unwrap().to_be_bytes();
        let head = [&claim[..18], &payload, &[60], &claim[21..54]].concat();
        [&head[..], &[58, 0, 1, 4, 0, 0, 0, 0], &claim[54..]].concat()
    };
    let router = marked([64, 0, 0x0e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0].to_vec());
    let redirect = marked([[0; 4].as_slice(), &a.ipv6().octets(), &gateway.octets()].concat());
    vec![
        ("another MAC", frames::ping6((b.mac, EVIL), (a.ipv6(), b.ipv6()), mark)),
        ("the gateway's address", frames::ping6(to_b, (gateway, b.ipv6()), mark)),
        ("the other's address", frames::ping6(to_b, (b.ipv6(), b.ipv6()), mark)),
        ("an address elsewhere", frames::ping6(to_b, (address("5ff::1"), b.ipv6()), mark)),
        ("a link-local echo", frames::ping6(to_b, (local, b.ipv6()), mark)),
        ("no address", frames::ping6(to_b, (Ipv6Addr::UNSPECIFIED, b.ipv6()), mark)),
        ("a router", from(local, 134, router.clone())),
        ("a router with an address", from(a.ipv6(), 134, router)),
        ("a redirect", from(a.ipv6(), 137, redirect)),
        ("a claim for the gateway", claim(a.ipv6(), gateway)),
        ("a claim for the gateway's other address", claim(a.ipv6(), local_gateway)),
        ("a claim for the gateway, link-local", claim(local, local_gateway)),
        ("a claim as the gateway", claim(local_gateway, local)),
        ("a claim for the other", claim(local, b.ipv6())),
        ("a hidden claim for the gateway", hidden(claim(a.ipv6(), gateway))),
        ("a hidden claim for the other", hidden(claim(a.ipv6(), b.ipv6()))),
        (
            "IPv4",
            frames::ping4(to_b, Ipv4Addr::new(10, 20, 2, 5), Ipv4Addr::new(10, 20, 2, 6), mark),
        ),
    ]
}

#[test]
fn lies_do_not_pass() {
    if !is_possible() {
        return;
    }
    let world = World::new();
    let networks = world.open();
    networks.provision(&workload(11, "net1"), &network("10.20.2.0/24", 1)).unwrap();
    let attach = |vm: &str, last: u8| {
        let ip = Some(Ipv4Addr::new(10, 20, 2, last));
        networks.attach(&Name::new("net1"), &workload(11, vm), ip, Some([last; 6])).unwrap()
    };
    let (first, second) = (attach("vm1", 5), attach("vm2", 6));
    let (a, b) = (Card::open(&first, 0), Card::open(&second, 0));
    // Lies come before a truth, on the same way: when it is there and they are not, they were dropped.
    let mut mark = 0xbad0_0000;
    for (what, lie) in private_lies(&a, &b, 0xbad0_0000) {
        mark += 1;
        eprintln!("private: {what}");
        a.send(&lie);
        a.send(&frames::ping4((b.mac, a.mac), a.ipv4(), b.ipv4(), mark));
        b.expect_mark(mark, &[0xbad0_0000]);
    }
    let (a6, b6) = (Card::open(&first, 1), Card::open(&second, 1));
    let mut mark = 0xbad1_0000;
    for (what, lie) in mycelium_lies(&a6, &b6, 0xbad1_0000) {
        mark += 1;
        eprintln!("mycelium: {what}");
        a6.send(&lie);
        a6.send(&frames::ping6((b6.mac, a6.mac), (a6.ipv6(), b6.ipv6()), mark));
        b6.expect_mark(mark, &[0xbad1_0000]);
    }
    // What honest machines say passes: probes, claims of their own, link-local discovery.
    let probe = frames::arp(a.mac, 1, (a.mac, Ipv4Addr::UNSPECIFIED), ([0; 6], a.ipv4()));
    a.send(&probe);
    assert!(b.receive(MOMENT, |frame| frame == probe).is_some());
    let local: Ipv6Addr = "fe80::5".parse().unwrap();
    for (source, target) in [(a6.ipv6(), a6.ipv6()), (local, local)] {
        let claim = frames::neighbour(0x60, target, 2, a6.mac);
        let claim = frames::icmp6((b6.mac, a6.mac), (source, b6.ipv6()), 136, &claim);
        a6.send(&claim);
        assert!(b6.receive(MOMENT, |frame| frame == claim).is_some(), "{target}");
    }
    // After all of it, the gateway is still itself to the other machine.
    let gateway = Ipv4Addr::new(10, 20, 2, 1);
    let mac = b.resolve(gateway).unwrap();
    assert!(mac != a.mac && mac != EVIL);
    assert!(b.pings(mac, gateway, 0x900d, MOMENT));
}

const MOMENT: std::time::Duration = std::time::Duration::from_secs(3);
