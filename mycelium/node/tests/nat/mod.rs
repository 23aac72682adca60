//! UDP links in namespaces: between neighbours, through NATs, and back over others when NATs forbid.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::{Lab, Node};

const PATIENCE: Duration = Duration::from_secs(20);
const ALONE: &str = "--disable-peer-discovery";
const METRICS: [&str; 2] = ["--metrics-api-address", "127.0.0.1:9090"];
const FORWARDED: &str = "mycelium_router_packets_routed{verdict=\"forwarded\"}";

/// Where things are.
const INTERNET: usize = 0;
const RELAY: usize = 1;
const HOMES: [Home; 2] =
    [Home { router: 2, node: 3, number: 2 }, Home { router: 4, node: 5, number: 4 }];

/// A node behind a router; links are numbered in the order that they are made.
struct Home {
    router: usize,
    node: usize,
    number: u32,
}

impl Home {
    /// Its router's address, as the world sees it.
    fn address(&self) -> String {
        format!("10.{}.0.2", self.number)
    }
}

/// Runs a program in a namespace, which must succeed.
fn command(lab: &Lab, at: usize, line: &str) {
    let owned = line.to_owned();
    let run = move || {
        let mut words = owned.split_whitespace();
        Command::new(words.next().unwrap()).args(words).output().unwrap()
    };
    // A process is in the namespace of the thread that starts it.
    let output = lab.inside(at, run).join().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Lets a namespace pass packets on between its interfaces.
fn forward(lab: &Lab, at: usize) {
    // `/proc/sys/net` shows the namespace of who opens it.
    let write = || std::fs::write("/proc/sys/net/ipv4/ip_forward", "1");
    lab.inside(at, write).join().unwrap().unwrap();
}

/// Gives a namespace the rules of a firewall, in the language of `nft`.
fn rules(lab: &Lab, at: usize, name: &str, rules: &str) {
    let file = lab.path(name);
    std::fs::write(&file, rules).unwrap();
    command(lab, at, &format!("nft -f {}", file.display()));
}

/// The value of a metric of the node in a namespace, which serves them on port 9090.
fn metric(lab: &Lab, at: usize, name: &str) -> u64 {
    let get = || {
        let mut stream = TcpStream::connect("127.0.0.1:9090").unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let request = "GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:9090\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    let text = lab.inside(at, get).join().unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.unwrap_or_else(|| panic!("no {name} in {text}"))
}

/// Two homes behind masquerading routers and a relay, all at one router that plays the internet.
///
/// ```text
///   node 3 ── router 2 ──┐                ┌── router 4 ── node 5
///        10.3.0.0   10.2.0.0  internet  10.4.0.0     10.5.0.0
///                             │ 10.1.0.0
///                           relay
/// ```
fn world(masquerade: &str) -> Option<Lab> {
    if !Command::new("nft").arg("--version").output().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no nft");
        return None;
    }
    let mut lab = Lab::new(6)?;
    lab.join(INTERNET, RELAY);
    for home in &HOMES {
        lab.join(INTERNET, home.router);
        lab.join(home.router, home.node);
        forward(&lab, home.router);
        command(&lab, home.router, &format!("ip route add default via 10.{}.0.1", home.number));
        command(&lab, home.node, &format!("ip route add default via 10.{}.0.1", home.number + 1));
        let outside = format!("v{}", home.number);
        // As home routers do, it says nothing to who is not asked for.
        let text = format!(
            "table ip home {{
                chain out {{
                    type nat hook postrouting priority srcnat;
                    oifname \"{outside}\" {masquerade}
                }}
                chain in {{
                    type filter hook input priority filter;
                    iifname \"{outside}\" meta l4proto udp drop
                }}
            }}"
        );
        rules(&lab, home.router, &format!("router-{}", home.router), &text);
    }
    forward(&lab, INTERNET);
    command(&lab, RELAY, "ip route add default via 10.1.0.1");
    Some(lab)
}

/// Starts the relay and both nodes, which know the relay alone.
fn start(lab: &Lab, relay_endpoint: &str) -> [Node; 3] {
    let relay = lab.start(RELAY, &[&[ALONE], &METRICS[..]].concat());
    let peers = ["--peers", relay_endpoint];
    let [a, b] = [0, 1]
        .map(|at: usize| lab.start(HOMES[at].node, &[&[ALONE], &peers[..], &METRICS[..]].concat()));
    lab.echo(HOMES[1].node, b.address);
    [relay, a, b]
}

/// Whether a node has a direct link to this address.
fn is_direct(lab: &Lab, at: usize, address: &str) -> bool {
    let peers = lab.json(at, &["peers", "list", "--json"]);
    peers.as_array().unwrap().iter().any(|peer| {
        let socket = peer["endpoint"]["addr"]["socket"].as_str().unwrap_or_default();
        peer["endpoint"]["proto"] == "udp"
            && socket.starts_with(&format!("{address}:"))
            && peer["connectionState"] == "alive"
    })
}

#[test]
fn neighbours_are_reached_over_udp_with_full_size_packets() {
    let Some(mut lab) = Lab::new(3) else { return };
    let (_, b) = lab.join(0, 1);
    let (_, c) = lab.join(1, 2);
    let first = lab.start(0, &[ALONE, "--peers", &format!("udp://{b}:9652")]);
    let middle = lab.start(1, &[ALONE, "--peers", &format!("udp://{c}:9652")]);
    let last = lab.start(2, &[ALONE]);
    lab.echo(1, middle.address);
    lab.echo(2, last.address);
    for size in [100, 1200, 1352] {
        assert!(lab.reach(0, middle.address, size, PATIENCE).is_some(), "{size} bytes");
        assert!(lab.reach(0, last.address, size, PATIENCE).is_some(), "{size} bytes, two hops");
    }
    lab.transfer(0, 1, middle.address, 8 << 20);
    lab.transfer(2, 0, first.address, 8 << 20);
    // A path that is narrower than a packet splits it.
    for at in [0, 1] {
        command(&lab, at, "ip link set v1 mtu 1280");
    }
    assert!(lab.reach(0, middle.address, 1352, PATIENCE).is_some());
    lab.transfer(0, 1, middle.address, 2 << 20);
    assert!(first.stop() && middle.stop() && last.stop());
}

#[test]
fn nodes_behind_nats_find_a_direct_way_and_lose_it_without_harm() {
    let Some(lab) = world("masquerade") else { return };
    let [relay, a, b] = start(&lab, "udp://10.1.0.2:9652");
    let first = lab.reach(HOMES[0].node, b.address, 100, PATIENCE);
    println!("over the relay after {first:?}");
    assert!(first.is_some());
    let begin = Instant::now();
    let pings = lab.ping(HOMES[0].node, b.address, Duration::from_secs(25));
    while !is_direct(&lab, HOMES[0].node, &HOMES[1].address())
        && !is_direct(&lab, HOMES[1].node, &HOMES[0].address())
    {
        assert!(begin.elapsed() < PATIENCE, "no direct way");
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("direct after {:?}", begin.elapsed());
    std::thread::sleep(Duration::from_secs(3));
    // Nothing of the 30 packets a second passes the relay.
    let before = metric(&lab, RELAY, FORWARDED);
    assert!(before > 0);
    std::thread::sleep(Duration::from_secs(3));
    let passed = metric(&lab, RELAY, FORWARDED) - before;
    assert!(passed < 6, "{passed} packets still passed the relay");

    // The direct way dies without a word.
    let (from, to) = (HOMES[0].address(), HOMES[1].address());
    let text = format!(
        "table ip cut {{
            chain pass {{
                type filter hook forward priority filter;
                ip saddr {from} ip daddr {to} drop
                ip saddr {to} ip daddr {from} drop
            }}
        }}"
    );
    rules(&lab, INTERNET, "cut", &text);
    let pings = pings.join().unwrap();
    println!("{pings:?}");
    assert!(metric(&lab, RELAY, FORWARDED) > before + 20, "the relay is not used again");
    // Three seconds are the goal; a loaded machine gets more.
    assert!(pings.lost_in_a_row < 80, "{pings:?}");
    assert!(relay.stop() && a.stop() && b.stop());
}

#[test]
fn nodes_that_reach_the_relay_by_tcp_find_a_direct_way_too() {
    let Some(lab) = world("masquerade") else { return };
    let [relay, a, b] = start(&lab, "tcp://10.1.0.2:9651");
    assert!(lab.reach(HOMES[0].node, b.address, 100, PATIENCE).is_some());
    let begin = Instant::now();
    let pings = lab.ping(HOMES[0].node, b.address, PATIENCE);
    while !is_direct(&lab, HOMES[0].node, &HOMES[1].address())
        && !is_direct(&lab, HOMES[1].node, &HOMES[0].address())
    {
        assert!(begin.elapsed() < PATIENCE, "no direct way");
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("direct after {:?}", begin.elapsed());
    assert!(pings.join().unwrap().lost_in_a_row < 20);
    assert!(relay.stop() && a.stop() && b.stop());
}

#[test]
fn nodes_behind_symmetric_nats_go_on_over_the_relay() {
    let Some(lab) = world("masquerade random,fully-random") else { return };
    let [relay, a, b] = start(&lab, "udp://10.1.0.2:9652");
    assert!(lab.reach(HOMES[0].node, b.address, 100, PATIENCE).is_some());
    let pings = lab.ping(HOMES[0].node, b.address, Duration::from_secs(12)).join().unwrap();
    println!("{pings:?}");
    assert!(pings.lost_in_a_row < 5, "{pings:?}");
    assert!(metric(&lab, RELAY, FORWARDED) > 150);
    assert!(!is_direct(&lab, HOMES[0].node, &HOMES[1].address()));
    assert!(relay.stop() && a.stop() && b.stop());
}

#[test]
fn a_node_that_wants_none_gets_no_direct_way() {
    let Some(mut lab) = Lab::new(3) else { return };
    let (relay, _) = lab.join(0, 1);
    let (other, _) = lab.join(0, 2);
    forward(&lab, 0);
    command(&lab, 1, "ip route add default via 10.1.0.1");
    command(&lab, 2, "ip route add default via 10.2.0.1");
    let middle = lab.start(0, &[&[ALONE], &METRICS[..]].concat());
    let shy = [ALONE, "--disable-direct", "--peers"];
    let a = lab
        .start(1, &[&[ALONE, "--peers"], &[format!("udp://{relay}:9652").as_str()][..]].concat());
    let b = lab.start(2, &[&shy[..], &[format!("udp://{other}:9652").as_str()]].concat());
    lab.echo(2, b.address);
    assert!(lab.reach(1, b.address, 100, PATIENCE).is_some());
    lab.ping(1, b.address, Duration::from_secs(8)).join().unwrap();
    assert!(metric(&lab, 0, FORWARDED) > 100);
    assert!(!is_direct(&lab, 1, "10.2.0.2") && !is_direct(&lab, 2, "10.1.0.2"));
    assert!(middle.stop() && a.stop() && b.stop());
}

#[test]
fn larger_packets_go_as_far_as_all_links_take_them_and_1400_bytes_elsewhere() {
    const SENT: &str = "mycelium_router_packets_routed{verdict=\"sent\"}";
    const TOO_BIG: &str = "mycelium_router_packets_routed{verdict=\"too_big\"}";
    let Some(mut lab) = Lab::new(4) else { return };
    let peers = [("udp", 9652), ("udp", 9652), ("tcp", 9651)];
    let peers: Vec<String> = (0..3)
        .map(|at| format!("{}://{}:{}", peers[at].0, lab.join(at, at + 1).1, peers[at].1))
        .collect();
    let large = [ALONE, "--tun-mtu", "8900", "--disable-direct"];
    let nodes: Vec<Node> = (0..4)
        .map(|at| match peers.get(at) {
            Some(peer) => lab.start(at, &[&large[..], &METRICS, &["--peers", peer]].concat()),
            None => lab.start(at, &large),
        })
        .collect();
    for (at, node) in nodes.iter().enumerate().skip(1) {
        lab.echo(at, node.address);
        assert!(lab.reach(0, node.address, 100, PATIENCE).is_some());
    }
    let size = 8 << 20;
    let mut sent = metric(&lab, 0, SENT);
    let packets_for = |to: usize| {
        lab.transfer(0, to, nodes[to].address, size);
        let before = std::mem::replace(&mut sent, metric(&lab, 0, SENT));
        sent - before
    };
    let counts = [1, 2, 3].map(packets_for);
    println!("{counts:?} packets to the nodes behind one, two and three links");
    assert!(counts[..2].iter().all(|count| *count < size as u64 / 6000), "{counts:?}");
    // The last link is no UDP one: the node before it says so, and is believed.
    assert!(counts[2] > size as u64 / 1400, "{counts:?}");
    assert!((1..100).contains(&metric(&lab, 2, TOO_BIG)));
    assert!(nodes.into_iter().all(Node::stop));
}
