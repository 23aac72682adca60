//! What gives way in a full table, and that its counts stay right.

use std::net::Ipv6Addr;
use std::time::Duration;

use mycelium_wire::control::{Metric, Seqno};
use mycelium_wire::identity::ROUTER_ID_SIZE;
use proptest::prelude::*;

use super::*;

const BOUNDS: Bounds = Bounds { routes: 20, routes_per_link: 12, sources: 30, told: 24 };

fn table() -> Table {
    Table { bounds: BOUNDS, ..Table::default() }
}

fn at(seconds: u64) -> Time {
    Time(Duration::from_secs(seconds))
}

fn subnet(number: u64) -> Subnet {
    Subnet::of(Ipv6Addr::from_bits(0x0400 << 112 | u128::from(number) << 64))
}

fn id(number: u8) -> RouterId {
    RouterId::from_bytes([number; ROUTER_ID_SIZE])
}

fn origin(number: u8) -> Origin {
    Origin::new(id(number), number.is_multiple_of(2))
}

fn offer(link: u64, number: u64) -> Offer {
    let distance = Distance { seqno: Seqno(0), metric: Metric(7) };
    let (link, subnet) = (LinkId(link), subnet(number));
    Offer { link, subnet, router_id: id(1), proof: None, distance, expires: at(1000) }
}

#[test]
fn a_flood_fills_its_senders_share_only() {
    let mut table = table();
    for number in 0..5 {
        assert_eq!(table.offer(offer(1, number), false, at(1)), Admission::Taken);
    }
    table.keep(subnet(0));
    for number in 100..1000 {
        table.offer(offer(2, number), false, at(2));
        table.offer(offer(3, number), false, at(2));
        table.check();
    }
    assert_eq!(table.route_count_of(LinkId(1)), 5);
    assert_eq!(table.route_count_of(LinkId(2)) + table.route_count_of(LinkId(3)), 15);
}

#[test]
fn a_latecomer_gets_its_share() {
    let mut table = table();
    for number in 0..12 {
        table.offer(offer(1, number), false, at(1));
        table.offer(offer(2, 100 + number), false, at(1));
    }
    for number in 200..220 {
        table.offer(offer(3, number), false, at(2));
        table.check();
    }
    let counts = [1, 2, 3].map(|link| table.route_count_of(LinkId(link)));
    assert_eq!(counts.iter().sum::<usize>(), BOUNDS.routes);
    assert!(counts.iter().all(|count| (6..=8).contains(count)), "{counts:?}");
}

#[test]
fn what_is_asked_for_displaces_the_oldest_spare_route() {
    let mut table = table();
    for number in 0..12 {
        table.offer(offer(1, number), false, at(number));
    }
    table.keep(subnet(0));
    assert_eq!(table.offer(offer(1, 50), false, at(99)), Admission::Refused);
    assert_eq!(table.offer(offer(1, 50), true, at(99)), Admission::TakenFor(subnet(1)));
    for number in 60..100 {
        table.offer(offer(1, number), true, at(100));
        table.check();
    }
    assert_eq!(table.offer(offer(1, 200), true, at(100)), Admission::Refused, "all are kept");
    assert!(table.get(&subnet(0)).is_some_and(|d| d.entry(LinkId(1)).is_some()));
    table.release(subnet(0), at(200));
    assert_eq!(table.offer(offer(1, 200), true, at(201)), Admission::TakenFor(subnet(0)));
    table.check();
}

#[test]
fn distances_without_routes_are_given_up_first() {
    let mut table = table();
    let distance = Distance { seqno: Seqno(0), metric: Metric(9) };
    for number in 0..10 {
        table.offer(offer(1, number), false, at(1));
        for life in 1..=3 {
            assert!(table.announce(subnet(number), origin(life), distance, at(1)));
        }
    }
    assert!(!table.announce(subnet(0), origin(9), distance, at(1)), "all have routes");
    table.remove(subnet(4), LinkId(1), at(2));
    table.remove(subnet(5), LinkId(1), at(3));
    assert!(table.announce(subnet(0), origin(9), distance, at(4)));
    assert_eq!(table.get(&subnet(4)).map(|d| d.sources.len()), Some(0));
    assert_eq!(table.get(&subnet(5)).map(|d| d.sources.len()), Some(3));
    table.check();
}

proptest! {
    #[test]
    fn counts_are_right_whatever_happens(
        steps in proptest::collection::vec((0u8..8, 0u64..5, 0u64..16, any::<bool>()), 1..300),
    ) {
        let mut table = table();
        let distance = Distance { seqno: Seqno(0), metric: Metric(9) };
        for (now, (what, link, number, flag)) in (0u64..).zip(steps) {
            let now = at(now);
            let (link, subnet) = (LinkId(link), subnet(number));
            match what {
                0 | 1 => { table.offer(offer(link.0, number), flag, now); }
                2 => { table.remove(subnet, link, now); }
                3 if flag => table.keep(subnet),
                3 => table.release(subnet, now),
                4 => { table.announce(subnet, origin(u8::from(flag)), distance, now); }
                5 if table.may_tell(0, 1) => {
                    table.set_told(subnet, link, Told::new(Metric(5), now));
                }
                6 => table.remove_told(subnet, link),
                _ => { table.remove_if_empty(subnet); }
            }
            table.check();
        }
    }
}
