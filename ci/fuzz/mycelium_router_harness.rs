//! What a fuzzer does with the messages of Mycelium's neighbours: three of them, a data plane and a
//! clock, on a router without sockets.
//!
//! Shared by the fuzz target and by `mycelium/router/tests/fuzz_corpus.rs`, which feeds the committed
//! corpus through it in every test run.

use std::time::Duration;

use mycelium_router::{Config, Event, LinkId, LinkInfo, Proofs, Router, Time};
use mycelium_wire::claim::Claim;
use mycelium_wire::control::{Hello, Ihu, Metric, RouteRequest, Seqno, SeqnoRequest, Tlv, Update};
use mycelium_wire::frame::{self, Frame};
use mycelium_wire::identity::{PublicKey, RouterId, Subnet};
use mycelium_wire::xeddsa::{SIGNATURE_SIZE, Signature};

/// Neighbours, and keys that they know of.
const LINK_COUNT: u8 = 3;
const NODE_COUNT: u8 = 6;
/// Bytes of one step that is not raw.
const STEP_SIZE: usize = 8;
/// More events than this one step can't cause with so few neighbours and subnets.
const EVENT_COUNT_MAX: usize = 500;

/// Whatever neighbours say and whenever, the router neither spins nor floods, believes no one about
/// its own subnet, and never sends a packet back where it came from.
pub(crate) fn router(bytes: &[u8]) {
    let config = Config { router_id: id(0, 1), subnet: subnet(0), seed: 1 };
    let router = Router::with_proofs(config, Box::new(HalfTrue));
    let mut bench = Bench { router, now: Time(Duration::from_secs(1)) };
    for link in 0..LINK_COUNT {
        bench.router.link_up(LinkId(link.into()), LinkInfo::TCP6, bench.now);
    }
    let mut rest = bytes;
    while let Some((step, after)) = rest.split_first_chunk::<STEP_SIZE>() {
        let link = LinkId(u64::from(step[1] % LINK_COUNT));
        // One in eight steps is a packet as it comes from a stream.
        let raw = (step[0] % 8 == 7).then(|| frame::parse(after)).and_then(Result::ok).flatten();
        match raw {
            Some((frame, size)) => {
                if let Frame::Control(Ok(tlv)) = frame {
                    bench.router.received(link, &tlv, bench.now);
                }
                rest = &after[size..];
            }
            None => {
                bench.step(step, link);
                rest = after;
            }
        }
        bench.check();
    }
}

struct Bench {
    router: Router,
    now: Time,
}

impl Bench {
    fn step(&mut self, step: &[u8; STEP_SIZE], link: LinkId) {
        let [what, _, node, life, a, b, c, d] = *step;
        let (subnet, router_id) = (subnet(node), id(node, life));
        let (seqno, metric) = (Seqno(u16::from_be_bytes([a, b])), u16::from_be_bytes([c, d]));
        match what % 8 {
            0 | 1 => {
                let metric = Metric(metric);
                let interval = if what & 8 == 0 { 30_000 } else { metric.0 };
                let subnet = if what & 16 == 0 { subnet } else { longer(router_id) };
                let update = Update { flags: 0, interval, seqno, metric, subnet, router_id };
                self.router.received(link, &Tlv::Update(update), self.now);
            }
            2 => {
                let subnet = (what & 8 == 0).then_some(subnet);
                let request = RouteRequest { generation: a, subnet };
                self.router.received(link, &Tlv::RouteRequest(request), self.now);
            }
            3 => {
                let request = SeqnoRequest { seqno, hop_count: c, subnet, router_id };
                self.router.received(link, &Tlv::SeqnoRequest(request), self.now);
            }
            4 => {
                let hello = Hello { flags: metric, seqno, interval: metric };
                let ihu = Ihu { rxcost: metric, interval: 0, address: None };
                let tlv = if what & 8 == 0 { Tlv::Hello(hello) } else { Tlv::Ihu(ihu) };
                self.router.received(link, &tlv, self.now);
            }
            5 if what & 8 == 0 => {
                self.router.wanted(subnet, self.now);
            }
            5 => self.router.used(subnet, self.now),
            6 if what & 8 == 0 => self.router.link_down(link, self.now),
            6 => self.router.link_up(link, LinkInfo { static_cost: metric }, self.now),
            _ if what & 8 == 0 => self.pass(Duration::from_millis(metric.into())),
            // No more passes at a time than the router believes.
            _ => (0..metric % 64).for_each(|_| {
                self.pass(Duration::from_secs(25));
                self.check();
            }),
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        self.router.tick(self.now);
    }

    fn check(&mut self) {
        let mut count = 0;
        while let Some(event) = self.router.poll() {
            count += 1;
            assert!(count <= EVENT_COUNT_MAX, "a flood");
            match event {
                Event::Send { link, tlv } => {
                    tlv.update().into_iter().for_each(|update| self.check_update(link, update));
                }
                Event::Route { subnet: to, route: Some(_) } => assert_ne!(to, subnet(0)),
                _ => {}
            }
        }
        // A timer that is due is done with after one tick.
        self.router.tick(self.now);
        let spins = self.router.deadline().is_some_and(|deadline| deadline <= self.now);
        assert!(!spins, "a timer that does not end");
        while self.router.poll().is_some() {}
        let links: Vec<_> = self.router.links().map(|status| status.id).collect();
        for info in self.router.routes() {
            assert!(links.contains(&info.route.link), "a route over a link that is gone");
            assert!(!info.route.metric.is_infinite() && info.route.metric.0 > 0);
        }
    }

    fn check_update(&self, link: LinkId, update: &Update) {
        let is_ours = update.subnet == subnet(0);
        if is_ours || update.metric.is_infinite() {
            assert_eq!(update.router_id.public_key(), id(0, 0).public_key());
            assert!(!is_ours || update.metric == Metric::ZERO);
            return;
        }
        let route = self.router.route(update.subnet).expect("what is announced exists");
        assert_ne!(route.link, link, "an announcement to the next hop");
        assert!(update.metric > Metric::ZERO && update.router_id == route.router_id);
    }
}

/// Half of all signatures hold, and none takes time.
#[derive(Debug)]
struct HalfTrue;

impl Proofs for HalfTrue {
    fn sign(&self, _: &Claim) -> Option<Signature> {
        Some(Signature::from_bytes([0; SIGNATURE_SIZE]))
    }

    fn holds(&self, _: &Claim, signature: &Signature) -> bool {
        signature.as_bytes()[0].is_multiple_of(2)
    }
}

fn id(node: u8, life: u8) -> RouterId {
    let key = PublicKey::from_bytes([node % NODE_COUNT; 32]);
    RouterId::new(key, [0; 2], [0, 0, 0, 0, 0, life % 4])
}

fn subnet(node: u8) -> Subnet {
    id(node, 0).public_key().subnet()
}

/// A node's own address, as a subnet.
fn longer(router_id: RouterId) -> Subnet {
    Subnet::new(router_id.public_key().address(), 128).expect("an address has 128 bits")
}
