//! Calls that are killed, and calls that ask for nonsense.

use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hostd_exec::network::{NetworkConfig, Networks};
use hostd_grid::Name;
use hostd_grid::workload::NetworkLight;

use crate::frames;
use crate::guest::Card;
use crate::world::{Noted, World, is_possible, network, workload};

/// Where a child finds its configuration: folder and uplink.
const CHILD: &str = "NETWORK_TEST_CHILD";

/// Does the same for ever, until it is killed.
#[test]
fn child_that_is_killed() {
    let Some(places) = std::env::var_os(CHILD) else { return };
    let places = places.into_string().unwrap();
    let mut places = places.split('\n').map(std::path::PathBuf::from);
    let mut next = || places.next().unwrap();
    let mut config = NetworkConfig::new(next());
    (config.namespaces, config.uplink) = (next(), next());
    (config.mycelium, config.nft) = (next(), next());
    let networks = Networks::open(config, std::sync::Arc::new(Noted::default())).unwrap();
    let (id, name, vm) = (workload(11, "net1"), Name::new("net1"), workload(11, "vm1"));
    loop {
        networks.provision(&id, &network("10.20.2.0/24", 1)).unwrap();
        let ip = Some(Ipv4Addr::new(10, 20, 2, 5));
        networks.attach(&name, &vm, ip, Some([5; 6])).unwrap();
        networks.detach(&vm).unwrap();
        networks.remove(&id).unwrap();
    }
}

#[test]
fn whatever_a_killed_call_leaves_the_next_one_mends() {
    if !is_possible() {
        return;
    }
    let world = World::new();
    let config = world.config();
    let paths =
        [&config.directory, &config.namespaces, &config.uplink, &config.mycelium, &config.nft];
    let places = paths.map(|path| path.to_str().unwrap()).join("\n");
    let started = Instant::now();
    let mut wait = Duration::from_millis(7);
    for round in 0..25 {
        if started.elapsed() > Duration::from_secs(90) {
            eprintln!("{round} rounds in time");
            break;
        }
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "trouble::child_that_is_killed"])
            .env(CHILD, &places)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(wait);
        child.kill().unwrap();
        child.wait().unwrap();
        // Another moment each time, over the length of a few calls.
        wait = Duration::from_millis(7 + (u64::try_from(wait.as_millis()).unwrap() * 5 + 13) % 250);
        let networks = world.open();
        if round % 3 == 0 {
            networks.remove(&workload(11, "net1")).unwrap();
            networks.provision(&workload(11, "net2"), &network("10.20.2.0/24", 9)).unwrap();
            networks.remove(&workload(11, "net2")).unwrap();
            assert_eq!(world.left(), Vec::<String>::new(), "round {round}");
            continue;
        }
        networks.provision(&workload(11, "net1"), &network("10.20.2.0/24", 1)).unwrap();
        let attach = |vm: &str, last: u8| {
            let ip = Some(Ipv4Addr::new(10, 20, 2, last));
            networks.attach(&Name::new("net1"), &workload(11, vm), ip, None).unwrap()
        };
        let (first, second) = (attach("vm1", 5), attach("vm2", 6));
        let (a, b) = (Card::open(&first, 0), Card::open(&second, 0));
        a.send(&frames::ping4((b.mac, a.mac), a.ipv4(), b.ipv4(), round));
        b.expect_mark(round, &[]);
        drop((a, b));
        networks.detach(&workload(11, "vm2")).unwrap();
    }
    world.open().remove(&workload(11, "net1")).unwrap();
    assert_eq!(world.left(), Vec::<String>::new());
}

#[test]
fn nonsense_fails_in_words_and_leaves_nothing() {
    if !is_possible() {
        return;
    }
    let world = World::new();
    let networks = world.open();
    let good = network("10.20.2.0/24", 1);
    let mut names: Vec<String> = ["", ".", "..", "/", "ygg", "a b", "net\0", "é", "-x", "%d", "{}"]
        .map(str::to_owned)
        .to_vec();
    names.extend((0..1000_u32).map(|at| match at % 5 {
        0 => format!("../../etc/{at}"),
        1 => format!("n;{at}\""),
        2 => "x".repeat(37 + usize::try_from(at).unwrap()),
        3 => format!("\u{202e}{at}\n"),
        _ => format!("{at}-{at}"),
    }));
    for name in &names {
        let error = networks.provision(&workload(11, name), &good).unwrap_err().to_string();
        assert!(error.starts_with("network '") && error.len() < 300, "{error}");
        let attached = networks.attach(&Name::new(name.as_str()), &workload(11, "vm"), None, None);
        assert!(attached.is_err());
        networks.remove(&workload(11, name)).unwrap();
    }
    let id = workload(11, "net1");
    let mut short = good.clone();
    short.mycelium.hex_key = hostd_grid::secret::SecretBytes::new([7; 31]);
    for bad in [NetworkLight::default(), short, network("127.0.0.0/8", 1), network("fd00::/64", 1)]
    {
        networks.provision(&id, &bad).unwrap_err();
    }
    assert_eq!(world.left(), Vec::<String>::new());

    // Of another user's network, nothing can be named; of one's own, no second under the same name.
    networks.provision(&id, &good).unwrap();
    let ip = Some(Ipv4Addr::new(10, 20, 2, 5));
    let error = networks.attach(&Name::new("net1"), &workload(12, "vm"), ip, None).unwrap_err();
    assert_eq!(error.to_string(), "network 'net1' does not exist on this node");
    let mut second = id.clone();
    second.contract_id.0 += 1;
    let error = networks.provision(&second, &good).unwrap_err().to_string();
    assert_eq!(error, "network 'net1' is workload 11-4242-net1 already: conflict");
    networks.remove(&second).unwrap();
    assert_eq!(networks.inventory().unwrap(), std::slice::from_ref(&id));
    networks.remove(&id).unwrap();

    // A program that is not there: an error, and nothing half made.
    let mut config = world.config();
    config.nft = "/no/such/nft".into();
    let without = Networks::open(config, world.services.clone()).unwrap();
    let error = without.provision(&id, &good).unwrap_err().to_string();
    assert!(error.contains("load its rules on the node: No such file"), "{error}");
    networks.remove(&id).unwrap();
    assert_eq!(world.left(), Vec::<String>::new());
}

#[test]
fn many_users_at_once_get_lines_of_their_own() {
    if !is_possible() {
        return;
    }
    let world = World::new();
    let networks = world.open();
    let started = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..4_u32 {
            let networks = &networks;
            scope.spawn(move || {
                for twin in thread * 5..thread * 5 + 5 {
                    let id = workload(100 + twin, "net1");
                    networks.provision(&id, &network("10.20.2.0/24", 1)).unwrap();
                    let (name, vm) = (Name::new("net1"), workload(100 + twin, "vm1"));
                    let ip = Some(Ipv4Addr::new(10, 20, 2, 5));
                    networks.attach(&name, &vm, ip, Some([5; 6])).unwrap();
                }
            });
        }
    });
    eprintln!("20 networks with a machine each: {:?}", started.elapsed());
    assert_eq!(networks.inventory().unwrap().len(), 20);
    assert_eq!(networks.machines().unwrap().len(), 20);
    assert_eq!(world.lines().len(), 20);
    let started = Instant::now();
    for twin in 100..120 {
        networks.provision(&workload(twin, "net1"), &network("10.20.2.0/24", 1)).unwrap();
    }
    eprintln!("found again: {:?}", started.elapsed());
    assert_eq!(world.lines().len(), 20);
    std::thread::scope(|scope| {
        for twin in 100..120 {
            let networks = &networks;
            scope.spawn(move || networks.remove(&workload(twin, "net1")).unwrap());
        }
    });
    assert_eq!(world.left(), Vec::<String>::new());
}
