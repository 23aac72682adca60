//! A network from its first call to its last.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::Duration;

use hostd_exec::network::{NODE_ADDRESS, Services as _};
use hostd_grid::derived::NetworkId;
use hostd_grid::{Name, TwinId};

use crate::frames::{self, BROADCAST};
use crate::guest::Card;
use crate::world::{INTERNET, NEIGHBOUR, NODE, World, is_possible, network, workload};

/// How long to wait for what must not come.
const MOMENT: Duration = Duration::from_millis(300);

#[test]
fn machines_reach_each_other_and_the_internet_and_nothing_else() {
    if !is_possible() {
        return;
    }
    let world = World::new();
    let networks = world.open();
    // Two users with the same names and the same subnet.
    for twin in [11, 12] {
        let key = u8::try_from(twin).unwrap();
        networks.provision(&workload(twin, "net1"), &network("10.20.2.0/24", key)).unwrap();
    }
    let name = Name::new("net1");
    let attach = |twin, vm: &str, last: u8| {
        let ip = Some(Ipv4Addr::new(10, 20, 2, last));
        networks.attach(&name, &workload(twin, vm), ip, Some([last; 6])).unwrap()
    };
    let (first, second) = (attach(11, "vm1", 5), attach(11, "vm2", 6));
    let stranger = attach(12, "vm1", 6);
    let (a, b, x) = (Card::open(&first, 0), Card::open(&second, 0), Card::open(&stranger, 0));
    assert_ne!(first.namespace, stranger.namespace);

    // One another: a request reaches the other machine of the network, and not the stranger's with the
    // same address.
    a.send(&frames::ping4((b.mac, a.mac), a.ipv4(), b.ipv4(), 0x1111));
    b.expect_mark(0x1111, &[]);
    a.send(&frames::ping4((BROADCAST, a.mac), a.ipv4(), b.ipv4(), 0x2222));
    b.expect_mark(0x2222, &[]);
    assert_eq!(x.receive(MOMENT, |frame| frame.ends_with(&0x2222_u32.to_be_bytes())), None);

    // The gateway, and the Internet behind it.
    let gateway = a.resolve(Ipv4Addr::new(10, 20, 2, 1)).expect("a gateway");
    assert!(a.pings(gateway, Ipv4Addr::new(10, 20, 2, 1), 0x3333, MOMENT * 10));
    assert!(a.pings(gateway, INTERNET.into(), 0x4444, MOMENT * 10));
    let other_gateway = x.resolve(Ipv4Addr::new(10, 20, 2, 1)).expect("a gateway");
    assert!(x.pings(other_gateway, INTERNET.into(), 0x5555, MOMENT * 10));

    // What went there and back is counted: two echoes of 32 bytes; nothing of what stayed inside.
    let traffic = networks.traffic().unwrap();
    let expected = [(workload(11, "vm1"), 64), (workload(11, "vm2"), 0), (workload(12, "vm1"), 64)];
    assert_eq!(traffic.len(), 3);
    assert!(expected.iter().all(|one| traffic.contains(one)), "{traffic:?}");

    // Not the node, its neighbours, nor the other network by any of its addresses.
    let lease = lease_of(&world, NetworkId::of(TwinId(12), &name).as_str()).expect("an address");
    let metadata = Ipv4Addr::new(169, 254, 169, 254);
    let forbidden = [NODE.into(), NEIGHBOUR.into(), NODE_ADDRESS, metadata, lease];
    for target in forbidden {
        assert!(!a.pings(gateway, target, 0x6666, MOMENT), "{target}");
    }

    // By mycelium: the gateway is there, and so is the other machine.
    let (a6, b6) = (Card::open(&first, 1), Card::open(&second, 1));
    let IpAddr::V6(via) = a6.interface.routes[0].via else { panic!("IPv6") };
    assert!(a6.discover(via).is_some());
    a6.send(&frames::ping6((b6.mac, a6.mac), (a6.ipv6(), b6.ipv6()), 0x7777));
    b6.expect_mark(0x7777, &[]);
    assert_eq!(a6.interface.address.address(), IpAddr::V6(first.mycelium_address().unwrap()));

    // Asked again, the same is said; nothing is made twice.
    networks.provision(&workload(11, "net1"), &network("10.20.2.0/24", 11)).unwrap();
    assert_eq!(attach(11, "vm1", 5), first);
    a.send(&frames::ping4((b.mac, a.mac), a.ipv4(), b.ipv4(), 0x8888));
    b.expect_mark(0x8888, &[]);

    let is_remembered = |one: &(_, u64)| one.0 == expected[0].0 && one.1 >= expected[0].1;
    assert!(networks.traffic().unwrap().iter().any(is_remembered));

    drop((a, b, x, a6, b6));
    another_process_finds_all_of_it_and_takes_it_down(&world);
}

fn another_process_finds_all_of_it_and_takes_it_down(world: &World) {
    let again = world.open();
    assert_eq!(again.inventory().unwrap(), [workload(11, "net1"), workload(12, "net1")]);
    let machines = [workload(11, "vm1"), workload(11, "vm2"), workload(12, "vm1")];
    assert_eq!(again.machines().unwrap(), machines);
    assert_eq!(world.services.running().len(), 2);

    again.detach(&workload(11, "vm1")).unwrap();
    again.detach(&workload(11, "vm1")).unwrap();
    assert_eq!(again.machines().unwrap(), machines[1..]);
    for twin in [11, 12, 11] {
        again.remove(&workload(twin, "net1")).unwrap();
    }
    assert_eq!(again.inventory().unwrap(), []);
    assert_eq!(world.left(), Vec::<String>::new());
}

#[test]
fn what_is_left_of_a_network_without_power_is_no_network_until_it_is_made_again() {
    if !is_possible() {
        return;
    }
    let world = World::new();
    let networks = world.open();
    let (id, data) = (workload(11, "net1"), network("10.20.2.0/24", 1));
    let found = || (networks.inventory().unwrap(), networks.remains().unwrap());
    let ids = || vec![id.clone()];
    networks.provision(&id, &data).unwrap();
    assert_eq!(found(), (ids(), vec![]));
    // Its mycelium is gone, and then its namespace; what is written down stays.
    let service = world.services.running()[0].name.clone();
    world.services.stop(&service).unwrap();
    assert_eq!(found(), (vec![], ids()));
    let network = NetworkId::of(TwinId(11), &Name::new("net1"));
    let namespace = world.folder.path().join("netns").join(network.light_namespace());
    rustix::mount::unmount(&namespace, rustix::mount::UnmountFlags::DETACH).unwrap();
    assert_eq!(found(), (vec![], ids()));
    networks.provision(&id, &data).unwrap();
    assert_eq!(found(), (ids(), vec![]));
    networks.remove(&id).unwrap();
    assert_eq!(found(), (vec![], vec![]));
    assert_eq!(world.left(), Vec::<String>::new());
}

/// The address of the node that a network has.
fn lease_of(world: &World, id: &str) -> Option<Ipv4Addr> {
    let path = world.folder.path().join("netns").join(format!("n{id}"));
    let net = format!("--net={}", path.display());
    let output = Command::new("nsenter")
        .args([&net, "ip", "-o", "-4", "addr", "show", "dev", "public"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().skip_while(|word| *word != "inet").nth(1)?.parse().ok()
}

#[test]
fn a_network_changes_unless_machines_would_feel_it() {
    if !is_possible() {
        return;
    }
    let world = World::new();
    let networks = world.open();
    let id = workload(11, "net1");
    networks.provision(&id, &network("10.20.2.0/24", 1)).unwrap();
    let (name, vm) = (Name::new("net1"), workload(11, "vm1"));
    let attach = |ip: [u8; 4]| networks.attach(&name, &vm, Some(ip.into()), Some([1; 6]));
    let before = attach([10, 20, 2, 5]).unwrap();

    let say = |data| networks.update(&id, &data).unwrap_err().to_string();
    assert_eq!(
        say(network("10.20.3.0/24", 1)),
        "the subnet of network 'net1' can't change while machine 11-4242-vm1 uses it"
    );
    assert_eq!(
        say(network("10.20.2.0/24", 2)),
        "the mycelium key of network 'net1' can't change while machine 11-4242-vm1 uses it"
    );
    // A larger one that has the machine's address is another matter.
    networks.update(&id, &network("10.20.0.0/16", 1)).unwrap();
    let after = attach([10, 20, 2, 5]).unwrap();
    assert_eq!(after.interfaces[0].address.to_string(), "10.20.2.5/16");
    assert_eq!(after.interfaces[1], before.interfaces[1]);
    let card = Card::open(&after, 0);
    assert!(card.resolve(Ipv4Addr::new(10, 20, 0, 1)).is_some());
    drop(card);

    // Another address takes the place of the old one, which others may have from then on.
    attach([10, 20, 2, 7]).unwrap();
    let other = workload(11, "vm2");
    networks.attach(&name, &other, Some([10, 20, 2, 5].into()), None).unwrap();
    let error = attach([10, 20, 2, 5]).unwrap_err().to_string();
    assert_eq!(error, "address 10.20.2.5 is already used by machine 11-4242-vm2");

    networks.detach(&vm).unwrap();
    networks.update(&id, &network("10.20.0.0/16", 2)).unwrap();
    networks.detach(&other).unwrap();
    networks.update(&id, &network("192.168.1.0/24", 2)).unwrap();
    assert_eq!(networks.machines().unwrap(), []);
    networks.remove(&id).unwrap();
    assert_eq!(world.left(), Vec::<String>::new());
}
