//! A neighbour who says what helps it: old truths, and things that never were.

use mycelium_wire::control::{
    Hello, Ihu, Metric, ProvedUpdate, RouteRequest, Seqno, SeqnoRequest, Tlv, Update,
};
use mycelium_wire::identity::{PublicKey, RouterId, Subnet};
use mycelium_wire::xeddsa::Signature;

use super::chance::Chance;
use crate::event::LinkId;

/// What it remembers, to say it again.
const MEMORY_MAX: usize = 400;

pub(super) struct Forger {
    pub(super) links: Vec<LinkId>,
    heard: Vec<Tlv>,
    chance: Chance,
    own: RouterId,
    /// Whose announcements it outdoes at each turn, besides or instead of all else.
    pub(super) victim: Option<RouterId>,
}

impl Forger {
    pub(super) fn new(own: RouterId, chance: Chance) -> Self {
        Self { links: Vec::new(), heard: Vec::new(), chance, own, victim: None }
    }

    /// Answers Hellos, so that it stays, and remembers the rest.
    pub(super) fn received(&mut self, link: LinkId, tlv: &Tlv) -> Vec<(LinkId, Tlv)> {
        if self.heard.len() < MEMORY_MAX {
            self.heard.push(tlv.clone());
        } else {
            let place = self.chance.index(MEMORY_MAX);
            self.heard[place] = tlv.clone();
        }
        match tlv {
            Tlv::Hello(_) => vec![(link, ihu())],
            _ => Vec::new(),
        }
    }

    /// Some messages of its own; `ids` are those of everybody, which are no secret.
    pub(super) fn act(&mut self, ids: &[RouterId]) -> Vec<(LinkId, Tlv)> {
        let mut sent = Vec::new();
        for link in self.links.clone() {
            if let Some(victim) = self.victim {
                sent.extend(self.outdo(victim).into_iter().map(|tlv| (link, tlv)));
                continue;
            }
            for _ in 0..self.chance.index(6) {
                sent.push((link, self.message(ids)));
            }
        }
        sent
    }

    fn message(&mut self, ids: &[RouterId]) -> Tlv {
        let victim = ids[self.chance.index(ids.len())];
        let subnet = victim.public_key().subnet();
        let heard = (!self.heard.is_empty()).then(|| self.chance.index(self.heard.len()));
        let heard = heard.map(|place| self.heard[place].clone());
        match self.chance.index(12) {
            // An old truth, as it was or a little better.
            0..=2 => match heard {
                Some(Tlv::Update(update)) => Tlv::Update(self.better(update)),
                Some(Tlv::ProvedUpdate(proved)) => self.better_proved(proved),
                Some(other) => other,
                None => ihu(),
            },
            3 => Tlv::Update(self.update(subnet, victim)),
            4 => {
                let life = self.chance.bytes::<6>();
                let router_id = RouterId::new(victim.public_key(), [0; 2], life);
                Tlv::Update(self.update(subnet, router_id))
            }
            5 => Tlv::Update(Update { metric: Metric::INFINITE, ..self.update(subnet, victim) }),
            6 => {
                // Keys cost nothing.
                let key = PublicKey::from_bytes(self.chance.bytes());
                let router_id = RouterId::new(key, [0; 2], [0; 6]);
                Tlv::Update(self.update(key.subnet(), router_id))
            }
            7 => ihu(),
            // Others send proofs to who says that it knows them.
            8 => Tlv::Update(Update { metric: Metric::ZERO, ..self.of_itself() }),
            9 => {
                let signature = Signature::from_bytes(self.chance.bytes());
                let update = self.update(subnet, victim);
                Tlv::ProvedUpdate(ProvedUpdate { update, signature })
            }
            10 => {
                let subnet = (self.chance.index(4) > 0).then_some(subnet);
                let generation = self.chance.byte();
                Tlv::RouteRequest(RouteRequest { generation, subnet })
            }
            _ if self.chance.index(8) == 0 => {
                Tlv::Hello(Hello { flags: 0, seqno: self.seqno(), interval: 1 })
            }
            _ => {
                let (seqno, hop_count) = (self.seqno(), self.chance.byte());
                Tlv::SeqnoRequest(SeqnoRequest { seqno, hop_count, subnet, router_id: victim })
            }
        }
    }

    /// A newer number than the owner's, with and without the owner's proof of another one.
    fn outdo(&mut self, victim: RouterId) -> Vec<Tlv> {
        let subnet = victim.public_key().subnet();
        let of_victim = |tlv: &&Tlv| match tlv {
            Tlv::Update(update) => update.subnet == subnet,
            Tlv::ProvedUpdate(proved) => proved.update.subnet == subnet,
            _ => false,
        };
        let newest = self.heard.iter().filter(of_victim).map(|tlv| match tlv {
            Tlv::ProvedUpdate(proved) => (proved.update, Some(proved.signature)),
            Tlv::Update(update) => (*update, None),
            other => panic!("{other:?}"),
        });
        let newest = newest.max_by_key(|(update, signature)| (signature.is_some(), update.seqno.0));
        let made_up = Update { metric: Metric(1), ..self.update(subnet, victim) };
        let (update, signature) = newest.unwrap_or((made_up, None));
        let seqno = Seqno(update.seqno.0.wrapping_add(1 + self.chance.small(30)));
        let forged = Update { seqno, metric: Metric(1), ..update };
        let stolen = signature
            .map(|signature| Tlv::ProvedUpdate(ProvedUpdate { update: forged, signature }));
        let own = Tlv::Update(Update { metric: Metric::ZERO, ..self.of_itself() });
        // Who is not asked tells nobody.
        let request = Tlv::RouteRequest(RouteRequest { generation: 0, subnet: Some(subnet) });
        let all = [Some(own), stolen, Some(Tlv::Update(forged)), Some(request)];
        all.into_iter().flatten().collect()
    }

    fn of_itself(&mut self) -> Update {
        self.update(self.own.public_key().subnet(), self.own)
    }

    fn better_proved(&mut self, proved: ProvedUpdate) -> Tlv {
        match self.chance.index(3) {
            0 => Tlv::ProvedUpdate(proved),
            1 => Tlv::Update(self.better(proved.update)),
            _ => Tlv::ProvedUpdate(ProvedUpdate { update: self.better(proved.update), ..proved }),
        }
    }

    fn better(&mut self, update: Update) -> Update {
        let seqno = Seqno(update.seqno.0.wrapping_add(self.chance.small(3)));
        let metric = Metric(update.metric.0.saturating_sub(self.chance.small(200)));
        Update { seqno, metric, ..update }
    }

    fn update(&mut self, subnet: Subnet, router_id: RouterId) -> Update {
        let (seqno, metric) = (self.seqno(), Metric(self.chance.small(300)));
        Update { flags: 0, interval: 30_000, seqno, metric, subnet, router_id }
    }

    /// Near the true ones, or as far from them as it gets.
    fn seqno(&mut self) -> Seqno {
        match self.chance.index(3) {
            0 => Seqno(self.chance.small(4)),
            1 => Seqno(self.chance.small(4100)),
            _ => Seqno(self.chance.small(u16::MAX)),
        }
    }
}

fn ihu() -> Tlv {
    Tlv::Ihu(Ihu { rxcost: 0, interval: 6000, address: None })
}
