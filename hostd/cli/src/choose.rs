//! Nodes for what names none.
//!
//! ```text
//!  what is there already stays where it is
//!  what belongs to a network goes to one of the nodes that have a part of it, if there are any
//!  everything else: the proxy's nodes that are up and have room, the one with most memory first
//!                   ─> asked themselves: do you run this, and is there room? ─> the first that says yes
//! ```
//!
//! One plan's things go to one node, as long as they fit there. The choice follows from what the grid says,
//! not from chance, so that the same plan again finds what it made.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, ensure};
use hostd_grid::WorkloadType;
use serde::Deserialize;
use serde_json::Value;

use crate::apply::{Found, contracts};
use crate::plan::{Plan, VmPlan};
use crate::proxy::{Amounts, ProxyNode};
use crate::session::{Bus, Session};

/// Nodes that are asked before it is given up.
const ASKED_COUNT_MAX: usize = 16;
/// The least root file system of a machine that is not small.
const ROOT_SIZE_MIN: u64 = 2 << 30;

/// What a thing needs of its node.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Need {
    amounts: Amounts,
    types: Vec<WorkloadType>,
}

/// What a node says of itself.
struct Offer {
    features: Vec<String>,
    free: Amounts,
}

#[derive(Deserialize)]
struct Statistics {
    total: Amounts,
    used: Amounts,
}

impl Need {
    fn of_vm(vm: &VmPlan) -> Self {
        let disks = vm.disks.iter().chain(&vm.volumes);
        let disks = disks.fold(0_u64, |sum, disk| sum.saturating_add(disk.size.0));
        let root = vm.root.map_or(0, |root| root.0).max(ROOT_SIZE_MIN);
        let sru = disks.saturating_add(root);
        let amounts = Amounts { cru: vm.cpu.into(), mru: vm.memory.0, sru, hru: 0 };
        let mut types = vec![WorkloadType::NetworkLight, WorkloadType::ZMachineLight];
        types.extend((!vm.disks.is_empty()).then_some(WorkloadType::ZMount));
        types.extend((!vm.volumes.is_empty()).then_some(WorkloadType::Volume));
        types.extend((!vm.logs.is_empty()).then_some(WorkloadType::Zlogs));
        Self { amounts, types }
    }

    /// Why a node is not for it, if it is not.
    fn is_met(&self, offer: &Offer) -> Result<(), String> {
        for kind in &self.types {
            let is_it = |feature: &String| feature == kind.name();
            if !offer.features.iter().any(is_it) {
                return Err(format!("does not run {kind}"));
            }
        }
        let Amounts { mru, sru, hru, cru } = self.amounts;
        for (what, needed, free) in [
            ("processors", cru, offer.free.cru),
            ("bytes of memory", mru, offer.free.mru),
            ("bytes on SSDs", sru, offer.free.sru),
            ("bytes on hard disks", hru, offer.free.hru),
        ] {
            if needed > free {
                return Err(format!("has {free} {what} free, and {needed} are needed"));
            }
        }
        Ok(())
    }
}

/// Gives each thing of a plan a node. Those that name one keep it; for the rest, `farm` limits where.
pub(crate) async fn place(
    session: &Session,
    mut plan: Plan,
    farm: Option<u32>,
) -> anyhow::Result<Plan> {
    if plan.is_placed() {
        return Ok(plan);
    }
    let bus = session.bus().await?;
    let mut existing = Vec::new();
    for node in session.proxy().nodes_of_twin(session.twin().await?).await? {
        existing.extend(contracts(session, node).await?);
    }
    let mut chooser = Chooser {
        session,
        bus: &bus,
        farm,
        existing,
        project: plan.project.clone(),
        offers: BTreeMap::new(),
        chosen: Vec::new(),
    };
    chooser.place_vms(&mut plan).await?;
    chooser.place_networks(&mut plan).await?;
    for zdb in plan.zdbs.iter_mut().filter(|zdb| zdb.node.is_none()) {
        let amounts = Amounts { hru: zdb.size.0, ..Amounts::default() };
        let need = Need { amounts, types: vec![WorkloadType::Zdb] };
        zdb.node = Some(chooser.place("zdb", &zdb.name, &need, &[]).await?);
    }
    for volume in plan.volumes.iter_mut().filter(|volume| volume.node.is_none()) {
        let amounts = Amounts { sru: volume.size.0, ..Amounts::default() };
        let need = Need { amounts, types: vec![WorkloadType::Volume] };
        volume.node = Some(chooser.place("volume", &volume.name, &need, &[]).await?);
    }
    Ok(plan)
}

/// Chooses, and remembers what it has chosen.
struct Chooser<'a> {
    session: &'a Session,
    bus: &'a Bus,
    farm: Option<u32>,
    existing: Vec<Found>,
    project: String,
    /// What nodes said, less what was placed there since.
    offers: BTreeMap<u32, Offer>,
    /// Nodes that something was placed on, in that order.
    chosen: Vec<u32>,
}

impl Chooser<'_> {
    async fn place_vms(&mut self, plan: &mut Plan) -> anyhow::Result<()> {
        let networks = plan.networks.clone();
        for vm in plan.vms.iter_mut().filter(|vm| vm.node.is_none()) {
            let named = networks.iter().find(|network| network.name == vm.network);
            let nodes = match named {
                Some(network) if !network.nodes.is_empty() => network.nodes.clone(),
                // It gets a part wherever its machines are.
                Some(_) => Vec::new(),
                None => self.nodes_of_network(&vm.network),
            };
            ensure!(
                named.is_some() || !nodes.is_empty(),
                "there is no network {}: deploy it first",
                vm.network
            );
            let need = Need::of_vm(vm);
            vm.node = Some(self.place("vm", &vm.name, &need, &nodes).await?);
        }
        Ok(())
    }

    /// Networks have a part on each node that has one of their machines, and where they were before.
    async fn place_networks(&mut self, plan: &mut Plan) -> anyhow::Result<()> {
        for network in plan.networks.iter_mut().filter(|network| network.nodes.is_empty()) {
            // Parts are numbered in order, so those that are there come first, as they were made.
            let mut nodes = self.nodes_of_network(&network.name);
            let mut added = BTreeSet::new();
            for vm in plan.vms.iter().filter(|vm| vm.network == network.name) {
                added.extend(vm.node);
            }
            nodes
                .extend(added.into_iter().filter(|node| !nodes.contains(node)).collect::<Vec<_>>());
            if nodes.is_empty() {
                let types = vec![WorkloadType::NetworkLight];
                let need = Need { amounts: Amounts::default(), types };
                nodes.push(self.place("network", &network.name, &need, &[]).await?);
            }
            network.nodes = nodes;
        }
        Ok(())
    }

    /// Nodes that have a part of a network already, in the order in which they got it.
    fn nodes_of_network(&self, name: &str) -> Vec<u32> {
        let is_it = |found: &&Found| found.label.kind == "network" && found.label.name == name;
        let mut parts: Vec<_> = self.existing.iter().filter(is_it).collect();
        parts.sort_by_key(|found| found.contract_id);
        parts.into_iter().map(|found| found.node).collect()
    }

    /// Chooses a node for one thing; if there are `nodes`, one of them.
    async fn place(
        &mut self,
        kind: &str,
        name: &str,
        need: &Need,
        nodes: &[u32],
    ) -> anyhow::Result<u32> {
        let is_it = |found: &&Found| {
            let label = &found.label;
            label.kind == kind && label.name == name && label.project == self.project
        };
        if let Some(found) = self.existing.iter().find(is_it) {
            return Ok(found.node);
        }
        let candidates = match nodes.is_empty() {
            false => nodes.to_vec(),
            true => self.candidates(need).await?,
        };
        let mut reasons = Vec::new();
        for node in candidates.into_iter().take(ASKED_COUNT_MAX) {
            let met = match self.offer(node).await {
                Ok(offer) => need.is_met(offer),
                Err(error) => Err(format!("does not answer ({error:#})")),
            };
            match met {
                Ok(()) => {
                    self.take(node, need);
                    eprintln!("{kind} {name}: node {node}");
                    return Ok(node);
                }
                Err(reason) => reasons.push(format!("node {node} {reason}")),
            }
        }
        let reasons = match reasons.is_empty() {
            true => "none is up and has room".to_owned(),
            false => reasons.join("; "),
        };
        anyhow::bail!("{kind} {name}: no node is found for it: {reasons}")
    }

    /// Nodes that may do, the best first: those that the plan uses already, then by free memory.
    async fn candidates(&self, need: &Need) -> anyhow::Result<Vec<u32>> {
        let Amounts { mru, sru, hru, .. } = need.amounts;
        let mut query = format!("status=up&free_mru={mru}&free_sru={sru}&free_hru={hru}");
        if let Some(farm) = self.farm {
            query.push_str(&format!("&farm_ids={farm}"));
        }
        let twin = self.session.twin().await?;
        query.push_str(&format!("&available_for={twin}"));
        Ok(ranked(self.session.proxy().nodes(&query).await?, &self.chosen))
    }

    /// What a node says of itself, asked once.
    async fn offer(&mut self, node: u32) -> anyhow::Result<&Offer> {
        if !self.offers.contains_key(&node) {
            let features = self.bus.ask(node, "zos.system.node_features_get", &Value::Null).await?;
            let statistics = self.bus.ask(node, "zos.statistics.get", &Value::Null).await?;
            let Statistics { total, used } = serde_json::from_slice(&statistics)?;
            let free = Amounts {
                cru: total.cru,
                mru: total.mru.saturating_sub(used.mru),
                sru: total.sru.saturating_sub(used.sru),
                hru: total.hru.saturating_sub(used.hru),
            };
            let features = serde_json::from_slice(&features)?;
            self.offers.insert(node, Offer { features, free });
        }
        self.offers.get(&node).context("it was just asked")
    }

    fn take(&mut self, node: u32, need: &Need) {
        if let Some(Offer { free, .. }) = self.offers.get_mut(&node) {
            free.mru = free.mru.saturating_sub(need.amounts.mru);
            free.sru = free.sru.saturating_sub(need.amounts.sru);
            free.hru = free.hru.saturating_sub(need.amounts.hru);
        }
        if !self.chosen.contains(&node) {
            self.chosen.push(node);
        }
    }
}

/// Numbers of nodes, the best first.
fn ranked(mut nodes: Vec<ProxyNode>, chosen: &[u32]) -> Vec<u32> {
    nodes.sort_by_key(|node| {
        let place = chosen.iter().position(|chosen| *chosen == node.id).unwrap_or(usize::MAX);
        (place, std::cmp::Reverse(node.free().mru), node.id)
    });
    nodes.into_iter().map(|node| node.id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u32, mru: u64) -> ProxyNode {
        let text =
            format!(r#"{{"nodeId": {id}, "farmId": 1, "total_resources": {{"mru": {mru}}}}}"#);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn nodes_of_the_plan_come_first_and_then_those_with_room() {
        let nodes = || vec![node(1, 10), node(2, 30), node(3, 30), node(4, 20)];
        assert_eq!(ranked(nodes(), &[]), [2, 3, 4, 1]);
        assert_eq!(ranked(nodes(), &[4, 1]), [4, 1, 2, 3]);
    }

    #[test]
    fn a_node_says_why_it_is_not_for_it() {
        let text = "{name: web, network: lan, flist: 'https://hub/x.flist', memory: 2G,\
                    disks: [{name: data, size: 10G, mount: /data}]}";
        let plan = Plan::parse(&format!("project: x\nvms: [{text}]\n")).unwrap();
        let need = Need::of_vm(&plan.vms[0]);
        assert_eq!((need.amounts.mru, need.amounts.sru), (2 << 30, 12 << 30));
        let features = ["network-light", "zmachine-light", "zmount"].map(str::to_owned).to_vec();
        let free = Amounts { cru: 4, mru: 4 << 30, sru: 12 << 30, hru: 0 };
        let offer = Offer { features: features.clone(), free };
        assert_eq!(need.is_met(&offer), Ok(()));
        let offer = Offer { features: features[..2].to_vec(), free };
        assert_eq!(need.is_met(&offer), Err("does not run zmount".to_owned()));
        let offer = Offer { features, free: Amounts { sru: 1, ..free } };
        let reason = "has 1 bytes on SSDs free, and 12884901888 are needed";
        assert_eq!(need.is_met(&offer), Err(reason.to_owned()));
    }
}
