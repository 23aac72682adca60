//! Clauses of the protocol on a router with neighbours made by hand.

use std::time::Duration;

use mycelium_wire::control::{Hello, Ihu, Metric, RouteRequest, Seqno, SeqnoRequest, Tlv, Update};
use mycelium_wire::identity::{PublicKey, RouterId, Subnet};

use super::*;

const A: LinkId = LinkId(1);
const B: LinkId = LinkId(2);
const C: LinkId = LinkId(3);

struct Bench {
    router: Router,
    now: Time,
}

fn id(node: u8, life: u8) -> RouterId {
    RouterId::new(PublicKey::from_bytes([node; 32]), [0; 2], [0, 0, 0, 0, 0, life])
}

fn subnet(node: u8) -> Subnet {
    id(node, 0).public_key().subnet()
}

/// The same, of a node of this kind.
fn id_of_ours(node: u8, life: u8) -> RouterId {
    RouterId::new(PublicKey::from_bytes([node; 32]), [0, 1], [0, 0, 0, 0, 0, life])
}

fn update(node: u8, life: u8, seqno: u16, metric: u16) -> Tlv {
    update_of(id(node, life), seqno, metric)
}

fn update_of(router_id: RouterId, seqno: u16, metric: u16) -> Tlv {
    Tlv::Update(Update {
        flags: 0,
        interval: 30_000,
        seqno: Seqno(seqno),
        metric: Metric(metric),
        subnet: router_id.public_key().subnet(),
        router_id,
    })
}

fn retraction(node: u8) -> Tlv {
    update(node, 9, 0, u16::MAX)
}

fn request(node: u8) -> Tlv {
    Tlv::RouteRequest(RouteRequest { generation: 0, subnet: Some(subnet(node)) })
}

fn seqno_request(node: u8, life: u8, seqno: u16) -> Tlv {
    let (subnet, router_id) = (subnet(node), id(node, life));
    Tlv::SeqnoRequest(SeqnoRequest { seqno: Seqno(seqno), hop_count: 64, subnet, router_id })
}

impl Bench {
    /// A router, node 0, with links whose round trip is 1 ms: each costs 11.
    fn new(links: &[LinkId]) -> Self {
        let config = Config { router_id: id(0, 1), subnet: subnet(0), seed: 1 };
        let now = Time(Duration::from_secs(10));
        let mut bench = Self { router: Router::new(config), now };
        for link in links {
            bench.router.link_up(*link, LinkInfo::TCP6, bench.now);
        }
        bench.pass(1);
        for link in links {
            bench.answer(*link);
        }
        bench.events();
        bench
    }

    fn answer(&mut self, link: LinkId) {
        let ihu = Ihu { rxcost: 10, interval: 6000, address: None };
        self.router.received(link, &Tlv::Ihu(ihu), self.now);
    }

    /// Time passes; what the router does meanwhile is kept.
    fn pass(&mut self, ms: u64) {
        self.now = self.now + Duration::from_millis(ms);
    }

    /// Time passes, and Hellos are answered.
    fn live(&mut self, ms: u64) -> Vec<Event> {
        let end = self.now + Duration::from_millis(ms);
        let mut all = Vec::new();
        while let Some(deadline) = self.router.deadline().filter(|deadline| *deadline <= end) {
            self.now = self.now.max(deadline);
            self.router.tick(self.now);
            let events = self.events();
            for event in &events {
                if let Event::Send { link, tlv: Tlv::Hello(_) } = event {
                    self.now = self.now + Duration::from_millis(1);
                    self.answer(*link);
                }
            }
            all.extend(events);
        }
        self.now = self.now.max(end);
        all.extend(self.events());
        all.retain(|event| !matches!(event, Event::Send { tlv: Tlv::Hello(_), .. }));
        all
    }

    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.router.poll()).collect()
    }

    /// Hands a message in; gives what is sent, the rest of events left out.
    fn hear(&mut self, link: LinkId, tlv: &Tlv) -> Vec<(LinkId, Tlv)> {
        self.router.received(link, tlv, self.now);
        self.sent()
    }

    fn sent(&mut self) -> Vec<(LinkId, Tlv)> {
        sends(self.events())
    }

    fn next_hop(&self, node: u8) -> Option<(LinkId, u16)> {
        self.router.route(subnet(node)).map(|route| (route.link, route.metric.0))
    }
}

fn sends(events: Vec<Event>) -> Vec<(LinkId, Tlv)> {
    let send = |event| match event {
        Event::Send { link, tlv } => Some((link, tlv)),
        _ => None,
    };
    events.into_iter().filter_map(send).collect()
}

/// The metric of an update, if it is one.
fn metric(sent: &[(LinkId, Tlv)], to: LinkId) -> Option<u16> {
    sent.iter().rev().find_map(|(link, tlv)| match tlv {
        Tlv::Update(update) if *link == to => Some(update.metric.0),
        _ => None,
    })
}

#[test]
fn a_new_link_hears_hello_our_subnet_and_a_question_for_all() {
    let config = Config { router_id: id(0, 1), subnet: subnet(0), seed: 1 };
    let mut router = Router::new(config);
    router.link_up(A, LinkInfo::TCP6, Time(Duration::from_secs(1)));
    let sent = sends(std::iter::from_fn(|| router.poll()).collect());
    let hello = Hello { flags: 0x8000, seqno: Seqno(0), interval: 2000 };
    let all = RouteRequest { generation: 0, subnet: None };
    let own = update(0, 1, 0, 0);
    let expected = [Tlv::Hello(hello), own, Tlv::RouteRequest(all)];
    assert_eq!(sent, expected.map(|tlv| (A, tlv)));
}

#[test]
fn a_hello_is_answered_at_once() {
    let mut bench = Bench::new(&[A]);
    let hello = Hello { flags: 0, seqno: Seqno(7), interval: 1 };
    let ihu = Ihu { rxcost: 11, interval: 6000, address: None };
    assert_eq!(bench.hear(A, &Tlv::Hello(hello)), [(A, Tlv::Ihu(ihu))]);
}

#[test]
fn ihus_that_nobody_asked_for_change_nothing() {
    let mut bench = Bench::new(&[A]);
    for _ in 0..50 {
        bench.answer(A);
    }
    assert_eq!(bench.router.counters().unsolicited_ihus, 50);
    assert_eq!(bench.router.links().next().map(|link| link.cost), Some(11));
}

#[test]
fn only_the_owners_subnet_is_learnt() {
    let mut bench = Bench::new(&[A]);
    let Tlv::Update(sound) = update(5, 1, 0, 7) else { unreachable!() };
    let longer = Subnet::new(sound.router_id.public_key().address(), 128).unwrap();
    let outside = "300::/64".parse().unwrap();
    for wrong in [
        Update { subnet: subnet(6), ..sound },
        Update { subnet: longer, ..sound },
        Update { subnet: outside, ..sound },
    ] {
        bench.hear(A, &Tlv::Update(wrong));
        assert_eq!(bench.router.routes().count(), 0, "{wrong:?}");
    }
    assert_eq!(bench.router.counters().denied_updates, 3);
    bench.hear(A, &Tlv::Update(sound));
    assert_eq!(bench.next_hop(5), Some((A, 18)));
}

#[test]
fn acquired_routes_are_told_to_those_who_asked_alone() {
    let mut bench = Bench::new(&[A, B, C]);
    assert_eq!(bench.hear(A, &update(5, 1, 0, 0)), []);
    assert_eq!(bench.hear(B, &request(5)), [(B, update(5, 1, 0, 11))]);
    let asked = bench.hear(B, &request(6));
    let passed = Tlv::RouteRequest(RouteRequest { generation: 1, subnet: Some(subnet(6)) });
    assert_eq!(asked, [(A, passed.clone()), (C, passed)]);
    assert_eq!(bench.hear(C, &update(6, 1, 0, 30)), [(B, update(6, 1, 0, 41))]);
}

#[test]
fn changes_are_told_to_those_who_hold_the_route() {
    let mut bench = Bench::new(&[A, B, C]);
    bench.hear(A, &update(5, 1, 0, 40));
    bench.hear(B, &request(5));
    assert_eq!(bench.hear(A, &update(5, 1, 0, 45)), [], "5 more is no news");
    assert_eq!(metric(&bench.hear(A, &update(5, 1, 0, 20)), B), Some(31));
    assert_eq!(bench.hear(A, &update(5, 2, 0, 20)), [(B, update(5, 2, 0, 31))]);
    let sent = bench.hear(A, &retraction(5));
    assert_eq!((sent.len(), metric(&sent, B)), (1, Some(u16::MAX)));
    let repeats = sends(bench.live(5000));
    assert_eq!(repeats.iter().filter(|(link, _)| *link == B).count(), 2, "{repeats:?}");
}

/// Who may not be of ours: see what `announce` says of them.
#[test]
fn existing_nodes_hear_of_newer_sequence_numbers() {
    let mut bench = Bench::new(&[A, B, C]);
    let ours = RouterId::new(PublicKey::from_bytes([3; 32]), [0, 1], [0; 6]);
    let subnet = ours.public_key().subnet();
    let (flags, interval, seqno, metric_zero) = (0, 30_000, Seqno(0), Metric::ZERO);
    let own = Update { flags, interval, seqno, metric: metric_zero, subnet, router_id: ours };
    bench.hear(C, &Tlv::Update(own));
    bench.hear(A, &update(5, 1, 0, 20));
    for asker in [B, C] {
        assert_eq!(metric(&bench.hear(asker, &request(5)), asker), Some(31));
    }
    let sent = bench.hear(A, &update(5, 1, 1, 20));
    assert_eq!((metric(&sent, B), metric(&sent, C)), (Some(31), None));
}

#[test]
fn who_loses_packets_is_avoided_while_there_is_another_way() {
    let mut bench = Bench::new(&[A, B]);
    bench.hear(A, &update(5, 1, 0, 40));
    assert_eq!(bench.next_hop(5), Some((A, 51)));
    // Nobody else leads there: others are asked, and this one is better than none.
    bench.router.astray(subnet(5), A, bench.now);
    let sent = bench.sent();
    assert!(sent.iter().any(|(link, tlv)| *link == B && *tlv == request(5)), "{sent:?}");
    assert_eq!(bench.next_hop(5), Some((A, 51)));
    bench.hear(B, &update(5, 1, 0, 300));
    assert_eq!(bench.next_hop(5), Some((B, 311)));
    // What is not the way is not avoided.
    bench.router.astray(subnet(5), A, bench.now);
    assert_eq!(bench.router.counters().avoided_routes, 1);
    bench.live(59_000);
    assert_eq!(bench.next_hop(5), Some((B, 311)));
    bench.live(2_000);
    assert_eq!(bench.next_hop(5), Some((A, 51)));
}

#[test]
fn the_next_hop_hears_that_our_old_way_is_gone() {
    let mut bench = Bench::new(&[A, B]);
    bench.hear(A, &update(5, 1, 0, 40));
    bench.hear(B, &request(5));
    let sent = bench.hear(B, &update(5, 1, 1, 0));
    assert_eq!(bench.next_hop(5), Some((B, 11)));
    assert_eq!((sent.len(), metric(&sent, B)), (1, Some(u16::MAX)));
    assert_eq!(bench.hear(B, &request(5)), [(B, request(5))], "split horizon, and doubt");
}

#[test]
fn an_infeasible_update_of_the_next_hop_is_not_taken_but_asked_about() {
    let mut bench = Bench::new(&[A, B]);
    bench.hear(A, &update(5, 1, 3, 40));
    bench.hear(B, &request(5));
    let sent = bench.hear(A, &update(5, 1, 3, 500));
    assert_eq!(sent, [(A, seqno_request(5, 1, 4))]);
    assert_eq!(bench.next_hop(5), Some((A, 51)));
    assert_eq!(bench.hear(A, &update(5, 1, 3, 501)), [], "not twice in a second");
    assert_eq!(metric(&bench.hear(A, &update(5, 1, 4, 500)), B), Some(511));
}

#[test]
fn a_lost_route_in_use_is_looked_for_at_once() {
    let mut bench = Bench::new(&[A, B, C]);
    bench.hear(A, &update(5, 1, 3, 40));
    bench.hear(C, &request(5));
    bench.hear(B, &update(5, 1, 3, 60));
    bench.router.used(subnet(5), bench.now);
    bench.events();
    let sent = bench.hear(A, &retraction(5));
    assert_eq!(bench.next_hop(5), None, "60 is not less than the 51 that we announced");
    for link in [A, B, C] {
        assert!(sent.contains(&(link, request(5))), "{sent:?}");
    }
    assert_eq!(metric(&sent[..1], C), Some(u16::MAX), "first that it is lost, then the question");
    assert!(sent.contains(&(B, seqno_request(5, 1, 4))), "{sent:?}");
    let sent = bench.hear(B, &update(5, 1, 4, 60));
    assert_eq!((bench.next_hop(5), metric(&sent, C)), (Some((B, 71)), Some(71)));
}

#[test]
fn what_is_wanted_is_asked_for_and_given_up() {
    let mut bench = Bench::new(&[A]);
    assert_eq!(bench.router.wanted(subnet(5), bench.now), Wanted::Asked);
    assert_eq!(bench.sent(), [(A, request(5))]);
    assert_eq!(bench.router.wanted(subnet(5), bench.now), Wanted::Asked);
    assert_eq!(bench.sent(), []);
    assert_eq!(bench.router.queried().count(), 1);
    let events = bench.live(15_000);
    assert!(events.contains(&Event::Unreachable(subnet(5))), "{events:?}");
    let asked = sends(events).into_iter().filter(|(_, tlv)| *tlv == request(5)).count();
    assert_eq!((asked, bench.router.queried().count()), (2, 0));
    assert_eq!(bench.router.wanted(subnet(0), bench.now), Wanted::Refused);
    let link_local = "fe80::/64".parse().unwrap();
    assert_eq!(bench.router.wanted(link_local, bench.now), Wanted::Refused);
}

#[test]
fn a_new_link_is_asked_for_what_is_looked_for() {
    let mut bench = Bench::new(&[A]);
    bench.router.wanted(subnet(5), bench.now);
    bench.router.link_up(B, LinkInfo::TCP6, bench.now);
    assert!(bench.sent().contains(&(B, request(5))));
}

#[test]
fn our_sequence_number_grows_once_in_four_seconds() {
    let mut bench = Bench::new(&[A, B]);
    let sent = bench.hear(A, &seqno_request(0, 1, 1));
    assert_eq!(sent, [(A, update(0, 1, 1, 0)), (B, update(0, 1, 1, 0))]);
    assert_eq!(bench.hear(A, &seqno_request(0, 1, 1)), [(A, update(0, 1, 1, 0))]);
    assert_eq!(bench.hear(A, &seqno_request(0, 1, 2)), [], "too early");
    let sent = sends(bench.live(4000));
    assert!(sent.contains(&(B, update(0, 1, 2, 0))), "{sent:?}");
    assert_eq!(bench.router.seqno(), Seqno(2));
}

#[test]
fn a_seqno_request_finds_its_way_and_the_answer_back() {
    let mut bench = Bench::new(&[A, B, C]);
    bench.hear(A, &update(5, 1, 3, 40));
    assert_eq!(bench.hear(B, &seqno_request(5, 1, 3)), [(B, update(5, 1, 3, 51))]);
    let passed =
        SeqnoRequest { seqno: Seqno(4), hop_count: 63, subnet: subnet(5), router_id: id(5, 1) };
    let sent = bench.hear(C, &seqno_request(5, 1, 4));
    assert_eq!(sent, [(A, Tlv::SeqnoRequest(passed))]);
    assert_eq!(bench.hear(C, &seqno_request(5, 1, 4)), [], "just passed on");
    // The other one was told before, and may be an existing node.
    let newer = update(5, 1, 4, 51);
    assert_eq!(bench.hear(A, &update(5, 1, 4, 40)), [(B, newer.clone()), (C, newer)]);
}

#[test]
fn forged_sequence_numbers_of_ours_renew_our_router_id() {
    let mut bench = Bench::new(&[A, B]);
    bench.router.received(A, &update(0, 1, 900, 5), bench.now);
    let events = bench.events();
    assert_eq!(events[0], Event::Renewed(id(0, 2)));
    assert_eq!(metric(&sends(events), B), Some(0));
    assert_eq!(bench.router.router_id(), id(0, 2));
    bench.router.received(A, &update(0, 2, 900, 5), bench.now);
    assert_eq!(bench.router.router_id(), id(0, 2), "once in 30 s");
}

#[test]
fn a_question_about_a_forged_sequence_number_finds_its_owner() {
    let mut bench = Bench::new(&[A, B]);
    bench.hear(A, &update(5, 1, 3, 40));
    // Modulo 2^16 this is older than 3, but 3 is of no use to who asks.
    let sent = bench.hear(B, &seqno_request(5, 1, 57_888));
    assert!(matches!(sent[..], [(A, Tlv::SeqnoRequest(_))]), "{sent:?}");
    bench.hear(B, &seqno_request(0, 1, 57_888));
    assert_eq!(bench.router.router_id(), id(0, 2));
    assert_eq!(bench.hear(A, &update(5, 2, 0, 40)), [(B, update(5, 2, 0, 51))]);
}

#[test]
fn an_older_life_is_followed_only_when_nobody_depends_on_us() {
    let mut bench = Bench::new(&[A, B]);
    bench.hear(A, &update(5, 7, 3, 40));
    bench.hear(B, &request(5));
    bench.hear(A, &update(5, 6, 0, 0));
    assert_eq!(bench.next_hop(5), None);
    bench.live(5900);
    assert_eq!(bench.next_hop(5), None);
    bench.live(200);
    assert_eq!(bench.next_hop(5), Some((A, 11)));
}

#[test]
fn routes_end_without_updates_and_with_their_link() {
    let mut bench = Bench::new(&[A, B]);
    bench.hear(A, &update(5, 1, 3, 40));
    bench.hear(B, &update(6, 1, 3, 40));
    bench.router.link_down(B, bench.now);
    assert_eq!((bench.next_hop(5), bench.next_hop(6)), (Some((A, 51)), None));
    bench.live(1_049_000);
    assert_eq!(bench.next_hop(5), Some((A, 51)));
    bench.live(2000);
    assert_eq!((bench.next_hop(5), bench.router.counters().expired_routes), (None, 1));
    bench.router.check();
}

#[test]
fn a_route_in_use_is_renewed_or_dropped() {
    let mut bench = Bench::new(&[A]);
    bench.hear(A, &update(5, 1, 3, 40));
    let mut asked = 0;
    for _ in 0..600 {
        bench.router.used(subnet(5), bench.now);
        let mut sent = bench.sent();
        sent.extend(sends(bench.live(250)));
        asked += sent.iter().filter(|(_, tlv)| *tlv == request(5)).count();
        bench.router.heard(A, bench.now);
    }
    assert!(asked >= 3, "{asked}");
    assert_eq!(bench.next_hop(5), None, "its next hop never answers for it");
}

#[test]
fn a_next_hop_that_asks_us_the_way_must_answer_for_its_own() {
    let mut bench = Bench::new(&[A, B]);
    bench.hear(A, &update(5, 1, 3, 40));
    bench.router.used(subnet(5), bench.now);
    assert_eq!(bench.hear(A, &request(5)), [(A, request(5))]);
    bench.hear(A, &update(5, 1, 3, 40));
    bench.live(20_000);
    assert_eq!(bench.next_hop(5), Some((A, 51)));
    assert_eq!(bench.hear(A, &request(5)), [(A, request(5))]);
    bench.live(8000);
    assert_eq!(bench.next_hop(5), Some((A, 51)));
    bench.live(1100);
    assert_eq!(bench.next_hop(5), None);
}

#[test]
fn an_owner_is_not_told_the_way_to_itself() {
    let mut bench = Bench::new(&[A, B, C]);
    bench.hear(A, &update(5, 9, 0, 40));
    bench.hear(B, &request(5));
    // An older life than the one that B depends on, of a node whose lives have an order.
    bench.hear(C, &update_of(id_of_ours(5, 1), 0, 0));
    assert_eq!(bench.next_hop(5), Some((A, 51)));
    let all = Tlv::RouteRequest(RouteRequest { generation: 0, subnet: None });
    assert_eq!(bench.hear(C, &all), [(C, update(0, 1, 0, 0))]);
}

#[test]
fn an_existing_owner_that_restarted_beside_us_ends_routes_to_its_former_life() {
    let mut bench = Bench::new(&[A, B, C]);
    bench.hear(A, &update(5, 9, 0, 40));
    bench.hear(B, &request(5));
    bench.pass(10);
    // Dice gave its new life a smaller id, and A never hears of it: others tell it of the old one.
    bench.hear(C, &update(5, 1, 0, 0));
    assert_eq!(bench.next_hop(5), None);
    bench.hear(A, &update(5, 9, 0, 60));
    assert_eq!(bench.next_hop(5), None);
    bench.live(6100);
    assert_eq!(bench.next_hop(5), Some((C, 11)));
    assert_eq!(bench.hear(B, &request(5)), [(B, update(5, 1, 0, 11))]);
    bench.router.check();
}

#[test]
fn a_silent_link_under_traffic_is_dead() {
    let mut bench = Bench::new(&[A, B]);
    bench.hear(A, &update(5, 1, 3, 40));
    bench.hear(B, &update(5, 1, 3, 90));
    let start = bench.now;
    let mut events = Vec::new();
    while bench.next_hop(5) == Some((A, 51)) {
        bench.router.used(subnet(5), bench.now);
        bench.pass(50);
        bench.router.heard(B, bench.now);
        bench.router.tick(bench.now);
        events.extend(bench.events());
        assert!(bench.now.since(start) < Duration::from_secs(3));
    }
    assert!(events.contains(&Event::Dead(A)), "{events:?}");
    assert_eq!(bench.next_hop(5), Some((B, 101)));
}

#[test]
fn a_whole_table_is_given_at_a_pace() {
    let mut bench = Bench::new(&[A, B]);
    for node in 1..=200 {
        bench.hear(A, &update(node, 1, 3, 40));
    }
    let all = Tlv::RouteRequest(RouteRequest { generation: 0, subnet: None });
    assert_eq!(bench.hear(B, &all).len(), 201);
    assert_eq!(bench.hear(B, &all), [], "not again so soon");
    assert_eq!(bench.hear(A, &all), [(A, update(0, 1, 0, 0))], "split horizon");
}

#[test]
fn a_flood_of_made_up_subnets_costs_its_sender_only() {
    let mut bench = Bench::new(&[A, B]);
    bench.hear(A, &update(5, 1, 3, 40));
    bench.hear(B, &update(6, 1, 3, 40));
    bench.router.used(subnet(5), bench.now);
    let made_up = |number: u32| {
        let mut key = [9; 32];
        key[..4].copy_from_slice(&number.to_be_bytes());
        let router_id = RouterId::new(PublicKey::from_bytes(key), [0; 2], [0; 6]);
        let subnet = router_id.public_key().subnet();
        let (seqno, metric) = (Seqno(0), Metric(1));
        Tlv::Update(Update { flags: 0, interval: 30_000, seqno, metric, subnet, router_id })
    };
    for number in 0..18_000 {
        assert_eq!(bench.hear(A, &made_up(number)), [], "nobody asked");
    }
    bench.router.check();
    let count = |link| bench.router.links().find(|l| l.id == link).map(|l| l.route_count);
    assert_eq!((count(A), count(B)), (Some(16_384), Some(1)));
    assert_eq!((bench.next_hop(5), bench.next_hop(6)), (Some((A, 51)), Some((B, 51))));
    // What is asked for is still found.
    bench.router.wanted(subnet(7), bench.now);
    bench.hear(A, &update(7, 1, 0, 0));
    assert_eq!(bench.next_hop(7), Some((A, 11)));
    for number in 18_000..60_000 {
        bench.hear(A, &made_up(number));
    }
    assert!(bench.router.counters().paced > 20_000);
    assert_eq!(bench.next_hop(7), Some((A, 11)));
}

#[test]
fn time_that_goes_back_is_no_time() {
    let mut bench = Bench::new(&[A]);
    bench.hear(A, &update(5, 1, 3, 40));
    let later = bench.now + Duration::from_secs(30);
    bench.router.tick(later);
    bench.router.tick(Time::default());
    bench.router.used(subnet(5), Time::default());
    assert!(bench.router.deadline() > Some(later));
    assert_eq!(bench.next_hop(5), Some((A, 51)));
}

#[test]
fn a_host_that_slept_has_not_forgotten_what_it_told() {
    let mut bench = Bench::new(&[A, B]);
    bench.hear(A, &update(5, 1, 3, 40));
    bench.hear(B, &request(5));
    bench.pass(3_600_000);
    bench.router.tick(bench.now);
    assert_eq!(bench.next_hop(5), Some((A, 51)));
    let sent = bench.hear(A, &retraction(5));
    assert_eq!(metric(&sent, B), Some(u16::MAX));
    bench.hear(B, &update(5, 1, 3, 60));
    assert_eq!(bench.next_hop(5), None, "it may lead through us");
}
