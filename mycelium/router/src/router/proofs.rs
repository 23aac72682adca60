//! Owners' signatures: which neighbours get them, and what comes of those that neighbours send.
//!
//! A neighbour whose router id says that it knows proofs ([`claim`](mycelium_wire::claim)) is sent those of
//! routes that have one, and of the own subnet. What is proved is that the owner announced its subnet under
//! a router id with a sequence number. The metric is not: who is nearer than it says, or farther, nobody can
//! prove. So a neighbour may still attract what it has a right to carry, but it can't make up a life or a
//! number that outdoes those of the owner.
//!
//! | an update comes | it counts as |
//! |---|---|
//! | without a proof | unproved: followed if no proved one can be |
//! | with one that an entry of the table has too | proved, without a check |
//! | with one, more than may be checked in time | unproved |
//! | with one that holds | proved |
//! | with one that does not | nothing; after three of them, no proof of that neighbour is looked at |
//!
//! A neighbour may have good reasons to send no proof: there may be existing nodes on the way, or the owner
//! is one. That is why what is unproved is believed at all.

use std::fmt::Debug;

use mycelium_wire::claim::Claim;
use mycelium_wire::control::Update;
use mycelium_wire::xeddsa::Signature;

use super::Router;
use crate::event::LinkId;
use crate::limits::FORGED_PROOFS_MAX;

/// Signs this node's claims and checks those of others. The router has no keys, and rolls no dice.
pub trait Proofs: Debug + Send {
    /// This node's signature of its claim; none if there can't be one now.
    fn sign(&self, claim: &Claim) -> Option<Signature>;

    /// Whether the claim's owner signed it.
    fn holds(&self, claim: &Claim, signature: &Signature) -> bool;
}

/// A proof that is none.
#[derive(Debug)]
pub(super) struct Forged;

impl Router {
    /// What an update's signature proves, if anything.
    pub(super) fn checked(
        &mut self,
        link: LinkId,
        update: &Update,
        signature: Option<Signature>,
    ) -> Result<Option<Signature>, Forged> {
        let (Some(signature), Some(proofs)) = (signature, &self.proofs) else { return Ok(None) };
        if self.has_checked(update, &signature) {
            return Ok(Some(signature));
        }
        let Some(neighbour) = self.links.get_mut(&link) else { return Ok(None) };
        if neighbour.forged_count >= FORGED_PROOFS_MAX {
            self.counters.forged_proofs += 1;
            return Err(Forged);
        }
        if !neighbour.proofs_in.take(self.now) || !self.proofs_in.take(self.now) {
            self.counters.unchecked_proofs += 1;
            return Ok(None);
        }
        self.counters.checked_proofs += 1;
        let claim = Claim { router_id: update.router_id, seqno: update.seqno };
        if proofs.holds(&claim, &signature) {
            return Ok(Some(signature));
        }
        neighbour.forged_count += 1;
        self.counters.forged_proofs += 1;
        Err(Forged)
    }

    /// Whether another entry, or the same before, has this proof of this claim.
    fn has_checked(&self, update: &Update, signature: &Signature) -> bool {
        let Some(destination) = self.destination(update.subnet) else { return false };
        destination.entries().iter().any(|entry| {
            entry.proof.as_ref() == Some(signature)
                && (entry.router_id, entry.distance.seqno) == (update.router_id, update.seqno)
        })
    }

    /// The neighbour turns out to know proofs: it gets those of what it was told already.
    pub(super) fn prove_all(&mut self, link: LinkId) {
        let Some(neighbour) = self.links.get_mut(&link) else { return };
        let is_proved = |subnet| {
            let destination = self.table.get(subnet)?;
            destination.selected.filter(|route| route.is_proved)
        };
        for subnet in neighbour.told.iter().filter(|subnet| is_proved(subnet).is_some()) {
            neighbour.outbox.add(*subnet);
        }
        neighbour.outbox.add_urgent(self.subnet);
        self.unsent.insert(link);
    }

    /// The signature of the own announcement, made once for each.
    pub(super) fn own_proof(&mut self) -> Option<Signature> {
        let claim = Claim { router_id: self.router_id, seqno: self.seqno };
        if let Some((signed, signature)) = self.own_proof
            && signed == claim
        {
            return Some(signature);
        }
        let signature = self.proofs.as_ref()?.sign(&claim)?;
        self.own_proof = Some((claim, signature));
        Some(signature)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mycelium_wire::control::{Metric, ProvedUpdate, RouteRequest, Seqno, Tlv};
    use mycelium_wire::identity::{RouterId, SecretKey};

    use super::*;
    use crate::event::{Event, LinkInfo};
    use crate::router::Config;
    use crate::time::Time;

    const A: LinkId = LinkId(1);
    const B: LinkId = LinkId(2);
    const C: LinkId = LinkId(3);

    /// A node's key, with the signatures of nodes.
    #[derive(Debug)]
    struct Keys(SecretKey);

    impl Proofs for Keys {
        fn sign(&self, claim: &Claim) -> Option<Signature> {
            claim.sign(&self.0).ok()
        }

        fn holds(&self, claim: &Claim, signature: &Signature) -> bool {
            claim.is_proved_by(signature)
        }
    }

    struct Bench {
        router: Router,
        now: Time,
    }

    fn secret(node: u8) -> SecretKey {
        SecretKey::from_bytes([node; 32])
    }

    fn id(node: u8, zone: u8) -> RouterId {
        RouterId::new(secret(node).public(), [0, zone], [0, 0, 0, 0, 0, 1])
    }

    fn update(node: u8, seqno: u16, metric: u16) -> Update {
        let (router_id, subnet) = (id(node, 3), secret(node).public().subnet());
        let (seqno, metric) = (Seqno(seqno), Metric(metric));
        Update { flags: 0, interval: 30_000, seqno, metric, subnet, router_id }
    }

    fn signature(node: u8, seqno: u16) -> Signature {
        let claim = Claim { router_id: id(node, 3), seqno: Seqno(seqno) };
        claim.sign(&secret(node)).unwrap()
    }

    impl Bench {
        fn new() -> Self {
            let subnet = secret(9).public().subnet();
            let config = Config { router_id: id(9, 3), subnet, seed: 1 };
            let router = Router::with_proofs(config, Box::new(Keys(secret(9))));
            let mut bench = Self { router, now: Time(Duration::from_secs(10)) };
            for link in [A, B, C] {
                bench.router.link_up(link, LinkInfo::TCP6, bench.now);
            }
            bench.sent();
            bench
        }

        fn sent(&mut self) -> Vec<(LinkId, Tlv)> {
            let events = std::iter::from_fn(|| self.router.poll());
            let send = |event| match event {
                Event::Send { link, tlv } => Some((link, tlv)),
                _ => None,
            };
            events.filter_map(send).collect()
        }

        fn hear(&mut self, link: LinkId, tlv: &Tlv) -> Vec<(LinkId, Tlv)> {
            self.router.received(link, tlv, self.now);
            self.sent()
        }

        fn proved(&mut self, link: LinkId, update: Update, signature: Signature) {
            self.hear(link, &Tlv::ProvedUpdate(ProvedUpdate { update, signature }));
        }

        fn way(&self, node: u8) -> Option<(LinkId, u16, bool)> {
            let route = self.router.route(secret(node).public().subnet())?;
            Some((route.link, route.seqno.0, route.is_proved))
        }

        fn counts(&self) -> (u64, u64, u64) {
            let counters = self.router.counters();
            (counters.checked_proofs, counters.forged_proofs, counters.unchecked_proofs)
        }
    }

    #[test]
    fn a_number_that_the_owner_never_gave_is_refused() {
        let mut bench = Bench::new();
        bench.hear(B, &Tlv::Update(update(1, 50, 0)));
        assert_eq!(bench.way(1), Some((B, 50, false)), "nobody knows better");
        bench.proved(A, update(1, 5, 400), signature(1, 5));
        assert_eq!(bench.way(1), Some((A, 5, true)));
        bench.hear(B, &Tlv::Update(update(1, 51, 0)));
        bench.proved(B, update(1, 6, 0), signature(1, 5));
        bench.proved(B, update(1, 5, 0), signature(2, 5));
        assert_eq!(bench.way(1), Some((A, 5, true)));
        assert_eq!(bench.counts(), (3, 2, 0));
        // The owner's next number, by whatever way.
        bench.proved(B, update(1, 6, 100), signature(1, 6));
        assert_eq!(bench.way(1), Some((B, 6, true)));
    }

    #[test]
    fn who_forged_three_times_is_not_listened_to() {
        let mut bench = Bench::new();
        for seqno in 0..10 {
            bench.proved(B, update(1, seqno, 0), signature(2, seqno));
        }
        assert_eq!(bench.counts(), (3, 10, 0), "three of them cost something");
        bench.proved(B, update(1, 5, 0), signature(1, 5));
        assert_eq!(bench.way(1), None);
        bench.proved(A, update(1, 5, 10), signature(1, 5));
        assert_eq!(bench.way(1), Some((A, 5, true)));
    }

    #[test]
    fn a_proof_said_again_is_older_than_what_we_announced() {
        let mut bench = Bench::new();
        let old = signature(1, 5);
        bench.proved(A, update(1, 5, 40), old);
        bench.proved(A, update(1, 6, 40), signature(1, 6));
        let request = RouteRequest { generation: 0, subnet: Some(secret(1).public().subnet()) };
        bench.hear(C, &Tlv::RouteRequest(request));
        bench.proved(B, update(1, 5, 0), old);
        assert_eq!(bench.way(1), Some((A, 6, true)));
    }

    #[test]
    fn a_proof_that_is_known_is_not_checked_again() {
        let mut bench = Bench::new();
        let proof = signature(1, 5);
        for link in [A, B, C, A] {
            bench.proved(link, update(1, 5, 10), proof);
        }
        assert_eq!(bench.counts(), (1, 0, 0));
        let fallbacks = bench.router.fallbacks().filter(|info| info.route.is_proved).count();
        assert_eq!(fallbacks, 2);
    }

    #[test]
    fn proofs_go_to_those_who_know_them() {
        let mut bench = Bench::new();
        let introduced = |node, zone| {
            let router_id = id(node, zone);
            Tlv::Update(Update { router_id, ..update(node, 0, 0) })
        };
        let answers = bench.hear(A, &introduced(2, 3));
        let own = answers.iter().find_map(|(link, tlv)| match tlv {
            Tlv::ProvedUpdate(proved) if *link == A => Some(*proved),
            _ => None,
        });
        let own = own.expect("its own subnet, with a proof");
        let claim = Claim { router_id: own.update.router_id, seqno: own.update.seqno };
        assert!(own.update.router_id == id(9, 3) && claim.is_proved_by(&own.signature));
        for zone in [0, 1] {
            assert!(bench.hear(B, &introduced(3, zone)).is_empty(), "zone {zone}");
        }
        let proof = signature(1, 5);
        bench.proved(C, update(1, 5, 10), proof);
        let subnet = Some(secret(1).public().subnet());
        let request = Tlv::RouteRequest(RouteRequest { generation: 0, subnet });
        let [(A, Tlv::ProvedUpdate(proved))] = bench.hear(A, &request)[..] else {
            panic!("no proof")
        };
        assert_eq!((proved.signature, proved.update.seqno), (proof, Seqno(5)));
        assert!(matches!(bench.hear(B, &request)[..], [(B, Tlv::Update(_))]));
        // What became known before its proof is said again with it.
        bench.hear(C, &Tlv::Update(update(4, 5, 10)));
        let subnet = Some(secret(4).public().subnet());
        let request = Tlv::RouteRequest(RouteRequest { generation: 0, subnet });
        assert!(matches!(bench.hear(A, &request)[..], [(A, Tlv::Update(_))]));
        let update = update(4, 5, 10);
        let proved = Tlv::ProvedUpdate(ProvedUpdate { update, signature: signature(4, 5) });
        assert!(matches!(bench.hear(C, &proved)[..], [(A, Tlv::ProvedUpdate(_))]));
    }

    /// Takes all for signed, to be quick.
    #[derive(Debug)]
    struct Credulous;

    impl Proofs for Credulous {
        fn sign(&self, _: &Claim) -> Option<Signature> {
            None
        }

        fn holds(&self, _: &Claim, _: &Signature) -> bool {
            true
        }
    }

    #[test]
    fn a_flood_of_proofs_costs_no_more_than_its_pace() {
        let mut bench = Bench::new();
        bench.router.proofs = Some(Box::new(Credulous));
        let proof = Signature::from_bytes([1; 64]);
        for seqno in 0..3000 {
            bench.proved(A, update(1, seqno, 10), proof);
        }
        let (checked, forged, unchecked) = bench.counts();
        assert_eq!((checked, forged, unchecked), (1000, 0, 2000));
        // Others have their own share.
        bench.proved(B, update(1, 3001, 10), proof);
        assert_eq!(bench.way(1), Some((B, 3001, true)));
    }
}
