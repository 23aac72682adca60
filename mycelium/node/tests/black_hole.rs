//! A neighbour that says the shortest way leads through it, answers every Hello, and swallows what is sent
//! there. Its link is well; only who is talked to can say that nothing arrives.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[allow(dead_code, reason = "each test program uses its part of it")]
mod common;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use common::Lab;
use mycelium_wire::control::{Ihu, Metric, RouteRequest, Tlv, Update};
use mycelium_wire::frame::{self, Frame};
use mycelium_wire::identity::{SecretKey, Subnet};

const PATIENCE: Duration = Duration::from_secs(20);
const ALONE: &str = "--disable-peer-discovery";
/// What the route of a stranger costs at most: the direct way, which the owner alone has.
const NEAREST: Metric = Metric::ZERO;

/// Announces the way to `victim` to the node beside it, in the owner's words, and counts what comes.
fn swallow(victim: Subnet, swallowed: &AtomicU32) {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, 9651)).unwrap();
    let send = |tlv: &Tlv, stream: &mut TcpStream| {
        let mut packet = Vec::new();
        tlv.encode(&mut packet);
        // The test may be over.
        let _ = stream.write_all(&packet);
    };
    let question = RouteRequest { generation: 0, subnet: Some(victim) };
    send(&Tlv::RouteRequest(question), &mut stream);
    let (mut bytes, mut buffer, mut is_announced) = (Vec::new(), [0; 4096], false);
    while let Ok(size) = stream.read(&mut buffer)
        && size > 0
    {
        bytes.extend_from_slice(&buffer[..size]);
        while let Some((frame, size)) = frame::parse(&bytes).unwrap() {
            let answer = match frame {
                Frame::Control(Ok(Tlv::Hello(_))) => {
                    Some(Tlv::Ihu(Ihu { rxcost: 10, interval: 6000, address: None }))
                }
                Frame::Control(Ok(Tlv::Update(update)))
                    if update.subnet == victim && !update.metric.is_infinite() && !is_announced =>
                {
                    is_announced = true;
                    Some(Tlv::Update(Update { metric: NEAREST, ..update }))
                }
                Frame::Data(data) => {
                    let is_victims = victim.contains(data.header.destination);
                    swallowed.fetch_add(u32::from(is_victims), Ordering::Relaxed);
                    None
                }
                Frame::Control(_) => None,
            };
            bytes.drain(..size);
            if let Some(answer) = answer {
                send(&answer, &mut stream);
            }
        }
    }
}

#[test]
fn a_neighbour_that_swallows_packets_is_found_out_and_gone_round() {
    let Some(mut lab) = Lab::new(3) else { return };
    let (_, b) = lab.join(0, 1);
    let (_, c) = lab.join(1, 2);
    let _last = lab.start(2, &[ALONE]);
    // As an existing node it passes no proofs on; with them, the swallower would attract nothing.
    let _middle = lab.start(1, &[ALONE, "--no-sessions", "--peers", &format!("tcp://{c}:9651")]);
    let _first = lab.start(0, &[ALONE, "--peers", &format!("tcp://{b}:9651")]);
    let (key_file, target) = lab.key("2");
    lab.echo(2, target);
    assert!(lab.reach(0, target, 100, PATIENCE).is_some());
    let pings = lab.ping(0, target, Duration::from_secs(25));
    std::thread::sleep(Duration::from_secs(3));
    let secret: [u8; 32] = std::fs::read(key_file).unwrap().try_into().unwrap();
    let victim = SecretKey::from_bytes(secret).public().subnet();
    let swallowed = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&swallowed);
    lab.inside(0, move || swallow(victim, &counter));
    let pings = pings.join().unwrap();
    let swallowed = swallowed.load(Ordering::Relaxed);
    println!("{pings:?}, {swallowed} packets swallowed");
    assert!(swallowed > 10 && pings.lost_in_a_row > 10, "nothing was swallowed");
    // A silent peer is asked anew after 3 s, and given up 4 s later; a loaded machine gets more.
    assert!(pings.lost_in_a_row < 130, "{pings:?}");
    assert!(pings.answered > 60, "{pings:?}");
}
