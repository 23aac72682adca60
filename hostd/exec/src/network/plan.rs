//! From the links that should be in a namespace, and those that are, to the steps between.
//!
//! Pure, and the same for a network that is new, one that a crash left half made, and one to which a
//! machine comes: what is missing is made, what is wrong is put right, taps that nobody has are removed,
//! and what is none of ours is left alone. Applied to what its steps lead to, it gives no step.
//!
//! A link carries nothing before its rules are in place: steps come in two rounds, [`Plan::build`] and
//! [`Plan::start`], and the rules are loaded in between.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use hostd_grid::derived::MacAddress;

/// A link as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) name: String,
    pub(super) kind: Kind,
    /// Its own MAC; whatever the kernel chose if none.
    pub(super) mac: Option<MacAddress>,
    pub(super) mtu: u32,
    /// The bridge that it is a port of.
    pub(super) bridge: Option<String>,
    /// Its label; any if none.
    pub(super) label: Option<String>,
    pub(super) addresses: Vec<Address>,
    /// The next hop of the default route, if that leaves here.
    pub(super) default_via: Option<Ipv4Addr>,
}

/// What a link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// It comes with the namespace.
    Loopback,
    Bridge,
    /// One end of a pair, whose other end is made with it.
    Pair,
    /// The other end.
    OtherEnd,
    Tap,
    /// Anything else; never made.
    Other,
}

/// An address of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) local: IpAddr,
    pub(super) prefix_len: u8,
    /// Who is at the other end of a line between two.
    pub(super) peer: Option<IpAddr>,
}

/// A link as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) mac: Option<MacAddress>,
    pub(super) mtu: u32,
    pub(super) bridge: Option<String>,
    pub(super) label: Option<String>,
    pub(super) is_up: bool,
    pub(super) addresses: Vec<Address>,
    pub(super) received_bytes: u64,
    pub(super) sent_bytes: u64,
    pub(super) received_packets: u64,
    pub(super) sent_packets: u64,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Remove(String),
    Make { name: String, kind: Kind, mac: Option<MacAddress> },
    SetMac { name: String, mac: MacAddress },
    SetMtu { name: String, mtu: u32 },
    SetLabel { name: String, label: String },
    Join { name: String, bridge: String },
    DropAddress { name: String, address: Address },
    AddAddress { name: String, address: Address },
    Start(String),
    DefaultRoute { name: String, via: Ipv4Addr },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Remove(name) => write!(f, "remove {name}"),
            Self::Make { name, kind, .. } => write!(f, "make {name} ({kind:?})"),
            Self::SetMac { name, mac } => write!(f, "set the MAC of {name} to {mac}"),
            Self::SetMtu { name, mtu } => write!(f, "set the MTU of {name} to {mtu}"),
            Self::SetLabel { name, .. } => write!(f, "label {name}"),
            Self::Join { name, bridge } => write!(f, "join {name} to {bridge}"),
            Self::DropAddress { name, address } => {
                write!(f, "take {} from {name}", address.local)
            }
            Self::AddAddress { name, address } => write!(f, "give {} to {name}", address.local),
            Self::Start(name) => write!(f, "start {name}"),
            Self::DefaultRoute { name, via } => write!(f, "route all through {name} via {via}"),
        }
    }
}

/// What to do before the rules are loaded, and what after.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Plan {
    pub(super) build: Vec<Step>,
    pub(super) start: Vec<Step>,
}

/// The steps from what is there to what should be. Bridges must come before their ports.
pub(super) fn plan(desired: &[Link], found: &[Found]) -> Plan {
    let mut plan = Plan::default();
    let is_desired = |name: &str| desired.iter().any(|link| link.name == name);
    let strays = found.iter().filter(|link| link.is_tap_of_ours() && !is_desired(&link.name));
    plan.build.extend(strays.map(|link| Step::Remove(link.name.clone())));
    for link in desired {
        let now = found.iter().find(|found| found.name == link.name);
        let wrong = now.filter(|now| !now.kind.is(link.kind));
        if let Some(wrong) = wrong {
            plan.build.push(Step::Remove(wrong.name.clone()));
        }
        let now = now.filter(|now| now.kind.is(link.kind));
        build(link, now, &mut plan.build);
        start(link, now, &mut plan.start);
    }
    plan
}

fn build(link: &Link, now: Option<&Found>, steps: &mut Vec<Step>) {
    let name = || link.name.clone();
    if now.is_none() {
        steps.push(Step::Make { name: name(), kind: link.kind, mac: link.mac });
    }
    if let Some(mac) = link.mac
        && now.is_some_and(|now| now.mac != Some(mac))
    {
        steps.push(Step::SetMac { name: name(), mac });
    }
    if now.is_none_or(|now| now.mtu != link.mtu) && link.kind != Kind::Loopback {
        steps.push(Step::SetMtu { name: name(), mtu: link.mtu });
    }
    if let Some(label) = &link.label
        && now.and_then(|now| now.label.as_ref()) != Some(label)
    {
        steps.push(Step::SetLabel { name: name(), label: label.clone() });
    }
    if let Some(bridge) = &link.bridge
        && now.and_then(|now| now.bridge.as_ref()) != Some(bridge)
    {
        steps.push(Step::Join { name: name(), bridge: bridge.clone() });
    }
    if link.kind == Kind::Loopback {
        return;
    }
    let old = now.map_or(&[] as &[_], |now| &now.addresses);
    for address in old.iter().filter(|old| !link.addresses.contains(old)) {
        steps.push(Step::DropAddress { name: name(), address: *address });
    }
    for address in link.addresses.iter().filter(|new| !old.contains(new)) {
        steps.push(Step::AddAddress { name: name(), address: *address });
    }
}

fn start(link: &Link, now: Option<&Found>, steps: &mut Vec<Step>) {
    if !now.is_some_and(|now| now.is_up) {
        steps.push(Step::Start(link.name.clone()));
    }
    // To set it again changes nothing, and routes vanish with what they lead through.
    if let Some(via) = link.default_via {
        steps.push(Step::DefaultRoute { name: link.name.clone(), via });
    }
}

impl Kind {
    /// Whether a link of this kind can be the one that is wanted: ends of a pair look alike.
    fn is(self, wanted: Self) -> bool {
        let ends = [Self::Pair, Self::OtherEnd];
        self == wanted || ends.contains(&self) && ends.contains(&wanted)
    }
}

impl Found {
    /// Whether it is named like a machine's tap. Programs of the network have devices too.
    fn is_tap_of_ours(&self) -> bool {
        self.kind == Kind::Tap && (self.name.starts_with("b-") || self.name.starts_with("m-"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::subsequence;

    use super::*;

    fn address(text: &str) -> Address {
        Address { local: text.parse().unwrap(), prefix_len: 24, peer: None }
    }

    fn link(name: &str, kind: Kind) -> Link {
        Link {
            name: name.to_owned(),
            kind,
            mac: None,
            mtu: 1500,
            bridge: None,
            label: None,
            addresses: Vec::new(),
            default_via: None,
        }
    }

    fn desired() -> Vec<Link> {
        let mac = Some(MacAddress::of("r"));
        vec![
            link("lo", Kind::Loopback),
            Link { mac, addresses: vec![address("10.0.0.1")], ..link("rN", Kind::Bridge) },
            link("public", Kind::Pair),
            Link {
                bridge: Some("rN".to_owned()),
                label: Some("zos1 1-2-x 10.0.0.2".to_owned()),
                ..link("b-1", Kind::Tap)
            },
        ]
    }

    fn found(index: u32, name: &str, kind: Kind) -> Found {
        Found {
            index,
            name: name.to_owned(),
            kind,
            mac: None,
            mtu: 1400,
            bridge: None,
            label: None,
            is_up: false,
            addresses: Vec::new(),
            received_bytes: 0,
            sent_bytes: 0,
            received_packets: 0,
            sent_packets: 0,
        }
    }

    /// What the kernel would make of a step.
    fn apply(step: &Step, links: &mut Vec<Found>) {
        let (Step::Remove(name)
        | Step::Make { name, .. }
        | Step::SetMac { name, .. }
        | Step::SetMtu { name, .. }
        | Step::SetLabel { name, .. }
        | Step::Join { name, .. }
        | Step::DropAddress { name, .. }
        | Step::AddAddress { name, .. }
        | Step::Start(name)
        | Step::DefaultRoute { name, .. }) = step;
        let at = links.iter().position(|link| link.name == *name);
        if let Step::Make { kind, mac, .. } = step {
            assert!(at.is_none(), "{name} is there");
            links.push(Found { mac: *mac, ..found(9, name, *kind) });
            return;
        }
        let at = at.unwrap_or_else(|| panic!("{name} is not there"));
        if let Step::Join { bridge, .. } = step {
            assert!(links.iter().any(|link| link.name == *bridge && link.kind == Kind::Bridge));
        }
        let link = &mut links[at];
        match step {
            Step::Remove(_) => drop(links.remove(at)),
            Step::SetMac { mac, .. } => link.mac = Some(*mac),
            Step::SetMtu { mtu, .. } => link.mtu = *mtu,
            Step::SetLabel { label, .. } => link.label = Some(label.clone()),
            Step::Join { bridge, .. } => link.bridge = Some(bridge.clone()),
            Step::DropAddress { address, .. } => link.addresses.retain(|old| old != address),
            Step::AddAddress { address, .. } => link.addresses.push(*address),
            Step::Start(_) => link.is_up = true,
            Step::Make { .. } | Step::DefaultRoute { .. } => {}
        }
    }

    fn run(plan: &Plan, links: &mut Vec<Found>) {
        plan.build.iter().chain(&plan.start).for_each(|step| apply(step, links));
    }

    #[test]
    fn a_new_namespace_gets_all_of_it_in_order() {
        let plan = plan(&desired(), &[found(1, "lo", Kind::Loopback)]);
        let steps = plan.build.iter().map(Step::to_string).collect::<Vec<_>>();
        assert_eq!(
            steps,
            [
                "make rN (Bridge)",
                "set the MTU of rN to 1500",
                "give 10.0.0.1 to rN",
                "make public (Pair)",
                "set the MTU of public to 1500",
                "make b-1 (Tap)",
                "set the MTU of b-1 to 1500",
                "label b-1",
                "join b-1 to rN",
            ]
        );
        let started = plan.start.iter().map(Step::to_string).collect::<Vec<_>>();
        assert_eq!(started, ["start lo", "start rN", "start public", "start b-1"]);
    }

    #[test]
    fn what_nobody_has_goes_and_what_is_not_ours_stays() {
        let there = [
            found(2, "b-old", Kind::Tap),
            found(3, "my0", Kind::Tap),
            found(4, "b-not-a-tap", Kind::Other),
            found(5, "rN", Kind::Other),
        ];
        let plan = plan(&desired(), &there);
        let removed = { plan.build.iter() }.filter(|step| matches!(step, Step::Remove(_)));
        let removed = removed.cloned().collect::<Vec<_>>();
        assert_eq!(removed, [Step::Remove("b-old".to_owned()), Step::Remove("rN".to_owned())]);
    }

    proptest! {
        /// However far an earlier call came, and whatever it got wrong, the next one ends in the same
        /// state, and one more has nothing to do.
        #[test]
        fn any_beginning_ends_the_same(
            stop in 0usize..20,
            kept in subsequence(vec!["lo", "rN", "public", "b-1", "b-9"], 0..=5),
            is_up: bool,
        ) {
            let desired = desired();
            let mut links = vec![found(1, "lo", Kind::Loopback)];
            let first = plan(&desired, &links);
            let steps = first.build.iter().chain(&first.start).take(stop);
            steps.for_each(|step| apply(step, &mut links));
            links.retain(|link| link.name == "lo" || kept.contains(&link.name.as_str()));
            // A port of a bridge that is gone is a port of nothing.
            let has_bridge = links.iter().any(|link| link.name == "rN");
            for link in &mut links {
                link.is_up |= is_up;
                link.bridge = link.bridge.take().filter(|_| has_bridge);
            }
            if kept.contains(&"b-9") {
                links.push(found(7, "b-9", Kind::Tap));
            }
            run(&plan(&desired, &links), &mut links);
            prop_assert_eq!(plan(&desired, &links), Plan::default());
            prop_assert_eq!(links.len(), desired.len());
        }
    }
}
