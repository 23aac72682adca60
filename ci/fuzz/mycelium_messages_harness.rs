//! What a fuzzer does with a node's messages: packets from a few peers, calls of its user, and time.
//!
//! Shared by the fuzz target and by `mycelium/node/tests/fuzz_corpus.rs`, which feeds the committed
//! corpus through it in every test run.

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use mycelium_node::messages::limits::RECORD_TIME;
use mycelium_node::messages::{Event, Messages, Outbound, Peer, Topics};
use mycelium_wire::identity::PublicKey;

/// Packets that one step can make a node send: what it has room for, and some.
const PACKET_COUNT_MAX: usize = 200_000;
/// Packets that are kept to be acknowledged.
const KEPT_COUNT_MAX: usize = 10_000;

/// Whatever peers send, in whatever order, the node goes on and comes to rest.
pub(crate) fn messages(script: &[u8]) {
    let own = peer(0);
    let peers = [1, 2, 3].map(peer);
    let mut messages = Messages::new(Topics::default());
    let mut now = Instant::now();
    let mut script = script.iter().copied();
    let mut sent: Vec<(Ipv6Addr, Vec<u8>)> = Vec::new();
    while let (Some(step), Some(operand)) = (script.next(), script.next()) {
        let source = peers[usize::from(operand) % peers.len()];
        match step % 8 {
            0..=3 => {
                let size = script.next().map_or(0, usize::from);
                let payload: Vec<u8> = script.by_ref().take(size).collect();
                messages.received(source, own.address, &payload, now);
            }
            4 => {
                let payload = vec![step; usize::from(operand) * 64];
                let outbound = Outbound { destination: source.address, topic: Vec::new(), payload };
                // Too many are refused.
                let _ = messages.push(outbound, step & 0x80 != 0, now);
            }
            5 => drop(messages.pop(None)),
            6 => now += Duration::from_millis(u64::from(operand) * 200),
            // The receivers of all that was sent say that they have it.
            _ => {
                for (destination, mut packet) in std::mem::take(&mut sent) {
                    if let Some(flags) = packet.get_mut(8) {
                        *flags |= 1;
                    }
                    for source in peers.iter().filter(|peer| peer.address == destination) {
                        messages.received(*source, own.address, &packet, now);
                    }
                }
            }
        }
        settle(&mut messages, now, &mut sent);
    }
    // When nobody says anything any more, all is forgotten but what waits to be read.
    now += RECORD_TIME;
    settle(&mut messages, now, &mut sent);
    assert_eq!(messages.deadline(), None, "something is remembered for ever");
    while messages.pop(None).is_some() {}
}

fn peer(number: u8) -> Peer {
    let key = PublicKey::from_bytes([number; 32]);
    Peer { address: key.address(), key }
}

/// Takes all packets and events.
fn settle(messages: &mut Messages, now: Instant, sent: &mut Vec<(Ipv6Addr, Vec<u8>)>) {
    let mut count = 0;
    let mut packet = Vec::new();
    while let Some(destination) = messages.poll_packet(now, &mut packet) {
        sent.push((destination, std::mem::take(&mut packet)));
        count += 1;
        assert!(count <= PACKET_COUNT_MAX, "no rest");
    }
    assert!(
        messages.deadline().is_none_or(|deadline| deadline > now),
        "a deadline that is no more"
    );
    while let Some(event) = messages.poll_event() {
        match event {
            Event::Arrived => {}
            Event::Reply(message) | Event::Forward(_, message) => {
                messages.handed_over(&message, true);
            }
        }
    }
    sent.truncate(KEPT_COUNT_MAX);
}
