//! What a user wants: a file of networks, machines, databases and volumes, on one node or many.
//!
//! ```yaml
//! project: shop
//! networks: [{name: lan, nodes: [1, 2], range: 10.20.0.0/16}]
//! vms:
//!   - {name: web, network: lan, flist: https://hub…/nginx.flist, cpu: 1, memory: 1G,
//!      disks: [{name: data, size: 10G, mount: /data}], volumes: [{name: pics, size: 5G, mount: /pics}],
//!      env: {KEY: value}, logs: ['redis://10.20.1.9/web']}
//! zdbs: [{name: cache, node: 2, size: 10G, password: secret}]
//! volumes: [{name: spare, node: 1, size: 5G}]
//! ```
//!
//! What names no node gets one ([`crate::choose`]). Each entry becomes one deployment, and so one
//! contract, on each of its nodes. Its contract carries the project and the name, which is how the same
//! file finds it again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context as _, ensure};
use hostd_grid::Name;
use hostd_grid::address::Cidr;
use serde::{Deserialize, Serialize};

use crate::size::Size;
use crate::yaml;

/// Nodes of one network: each has a /24 of a /16, and the first belongs to nobody.
const NODE_COUNT_MAX: usize = 254;

/// A whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plan {
    /// What it is called; names are unique within.
    pub(crate) project: String,
    #[serde(default)]
    pub(crate) networks: Vec<NetworkPlan>,
    #[serde(default)]
    pub(crate) vms: Vec<VmPlan>,
    #[serde(default)]
    pub(crate) zdbs: Vec<ZdbPlan>,
    #[serde(default)]
    pub(crate) volumes: Vec<VolumePlan>,
}

/// A private network.
#[derive(Debug, Clone, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub(crate) struct NetworkPlan {
    /// What machines call it
    pub(crate) name: String,
    /// A node that has a part of it; may be repeated; if absent, those of its machines, or any
    #[arg(long = "node", value_name = "NUMBER")]
    #[serde(default)]
    pub(crate) nodes: Vec<u32>,
    /// All its addresses, of which each node has a /24
    #[arg(long, default_value = "10.20.0.0/16", value_name = "ADDRESS/16")]
    #[serde(default = "default_range")]
    pub(crate) range: String,
}

/// A virtual machine.
#[derive(Debug, Clone, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub(crate) struct VmPlan {
    /// What it is called
    pub(crate) name: String,
    /// The node that runs it; one that has room if absent
    #[arg(long, value_name = "NUMBER")]
    pub(crate) node: Option<u32>,
    /// The network that it joins, which has a part on that node
    #[arg(long, value_name = "NAME")]
    pub(crate) network: String,
    /// Where its image is
    #[arg(long, value_name = "URL")]
    pub(crate) flist: String,
    /// Virtual CPUs
    #[arg(long, default_value_t = 1, value_name = "COUNT")]
    #[serde(default = "one")]
    pub(crate) cpu: u8,
    /// Its memory
    #[arg(long, default_value = "1G", value_name = "SIZE")]
    #[serde(default = "gigabyte")]
    pub(crate) memory: Size,
    /// Its root file system; the least that the node gives if absent
    #[arg(long, value_name = "SIZE")]
    pub(crate) root: Option<Size>,
    /// Its address in the network; a free one if absent
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) ip: Option<IpAddr>,
    /// What it starts, instead of what the image says
    #[arg(long, default_value = "", value_name = "COMMAND")]
    #[serde(default)]
    pub(crate) entrypoint: String,
    /// Environment: KEY=VALUE; may be repeated
    #[arg(skip)]
    #[serde(default)]
    pub(crate) env: BTreeMap<String, String>,
    /// Disks
    #[arg(skip)]
    #[serde(default)]
    pub(crate) disks: Vec<DiskPlan>,
    /// Volumes: folders of the node, which the machine shares
    #[arg(skip)]
    #[serde(default)]
    pub(crate) volumes: Vec<DiskPlan>,
    /// Where the lines of its console are sent: redis, ws or wss. No flag says it, since it may hold a
    /// password.
    #[arg(skip)]
    #[serde(default)]
    pub(crate) logs: Vec<String>,
}

/// A disk or a volume of a machine.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DiskPlan {
    pub(crate) name: String,
    pub(crate) size: Size,
    pub(crate) mount: String,
}

/// A namespace of keys and values.
#[derive(Debug, Clone, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub(crate) struct ZdbPlan {
    /// What it is called
    pub(crate) name: String,
    /// The node that keeps it; one that has room if absent
    #[arg(long, value_name = "NUMBER")]
    pub(crate) node: Option<u32>,
    /// How much fits into it
    #[arg(long, value_name = "SIZE")]
    pub(crate) size: Size,
    /// Who chooses its keys: user or seq
    #[arg(long, default_value = "user", value_name = "MODE")]
    #[serde(default = "user_mode")]
    pub(crate) mode: String,
    /// What clients authenticate with, from a file; a random one if absent
    #[arg(skip)]
    pub(crate) password: Option<String>,
    /// Clients may read without the password
    #[arg(long)]
    #[serde(default)]
    pub(crate) public: bool,
}

/// A volume that no machine mounts yet.
#[derive(Debug, Clone, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub(crate) struct VolumePlan {
    /// What it is called
    pub(crate) name: String,
    /// The node that keeps it; one that has room if absent
    #[arg(long, value_name = "NUMBER")]
    pub(crate) node: Option<u32>,
    /// How much fits into it
    #[arg(long, value_name = "SIZE")]
    pub(crate) size: Size,
}

fn default_range() -> String {
    "10.20.0.0/16".to_owned()
}

fn one() -> u8 {
    1
}

fn gigabyte() -> Size {
    Size(1 << 30)
}

fn user_mode() -> String {
    "user".to_owned()
}

/// One deployment that is wanted on one node.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) node: u32,
    pub(crate) label: Label,
    pub(crate) what: What,
}

/// What a contract carries, for everybody to see: how a deployment is found again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Label {
    #[serde(default)]
    pub(crate) version: u32,
    #[serde(default, rename = "type")]
    pub(crate) kind: String,
    #[serde(default)]
    pub(crate) name: String,
    #[serde(default, rename = "projectName")]
    pub(crate) project: String,
}

/// What is to be there.
#[derive(Debug, Clone)]
pub(crate) enum What {
    Network { subnet: Cidr },
    Vm(VmPlan),
    Zdb(ZdbPlan),
    Volume(VolumePlan),
}

impl Plan {
    /// Reads a file.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let value = yaml::parse(text)?;
        serde_path_to_error::deserialize(value)
            .map_err(|error| anyhow::anyhow!("{}: {}", error.path(), error.inner()))
    }

    /// Whether everything names its nodes.
    pub(crate) fn is_placed(&self) -> bool {
        self.networks.iter().all(|network| !network.nodes.is_empty())
            && self.vms.iter().all(|vm| vm.node.is_some())
            && self.zdbs.iter().all(|zdb| zdb.node.is_some())
            && self.volumes.iter().all(|volume| volume.node.is_some())
    }

    /// All that it asks for, in the order in which it is made.
    ///
    /// # Errors
    ///
    /// A name or a range is wrong, something is there twice, or has no node.
    pub(crate) fn items(self) -> anyhow::Result<Vec<Item>> {
        ensure!(self.is_placed(), "not everything in the plan has a node");
        let Self { project, networks, vms, zdbs, volumes } = self;
        let mut items = Vec::new();
        let item = |node, kind: &str, name: &str, what| {
            let (kind, name, project) = (kind.to_owned(), name.to_owned(), project.clone());
            Item { node, label: Label { version: 4, kind, name, project }, what }
        };
        for network in networks {
            for (node, subnet) in network.subnets()? {
                items.push(item(node, "network", &network.name, What::Network { subnet }));
            }
        }
        items.extend(vms.into_iter().filter_map(|vm| {
            let name = vm.name.clone();
            Some(item(vm.node?, "vm", &name, What::Vm(vm)))
        }));
        items.extend(zdbs.into_iter().filter_map(|zdb| {
            let name = zdb.name.clone();
            Some(item(zdb.node?, "zdb", &name, What::Zdb(zdb)))
        }));
        items.extend(volumes.into_iter().filter_map(|volume| {
            let name = volume.name.clone();
            Some(item(volume.node?, "volume", &name, What::Volume(volume)))
        }));
        let mut known = BTreeSet::new();
        for Item { node, label, .. } in &items {
            let name = Name::new(&label.name);
            name.check().with_context(|| format!("{} {:?}", label.kind, label.name))?;
            let is_new = known.insert((*node, label.clone()));
            ensure!(is_new, "{} {} is there twice on node {node}", label.kind, label.name);
        }
        Ok(items)
    }
}

impl NetworkPlan {
    /// Each node's part.
    fn subnets(&self) -> anyhow::Result<Vec<(u32, Cidr)>> {
        let named = || format!("network {}", self.name);
        let range = Cidr::parse(&self.range).with_context(named)?;
        let IpAddr::V4(base) = range.network() else {
            anyhow::bail!("{}: its range is of IPv4", named());
        };
        ensure!(range.prefix_len() == 16, "{}: its range is a /16, not {}", named(), self.range);
        let count = self.nodes.len();
        ensure!(count <= NODE_COUNT_MAX, "{}: at most {NODE_COUNT_MAX} nodes", named());
        let [a, b, ..] = base.octets();
        let subnet = |index: usize| Cidr::new([a, b, u8::try_from(index + 1).ok()?, 0].into(), 24);
        let parts = self.nodes.iter().enumerate();
        parts.map(|(index, node)| Ok((*node, subnet(index).with_context(named)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_becomes_deployments_in_order() {
        let text = "project: shop\n\
                    zdbs: [{name: db, node: 2, size: 10G}]\n\
                    vms: [{name: web, node: 1, network: lan, flist: 'https://hub/x.flist'}]\n\
                    networks: [{name: lan, nodes: [1, 2]}]\n";
        let items = Plan::parse(text).unwrap().items().unwrap();
        let shown: Vec<_> = items
            .iter()
            .map(|item| format!("{} {} {}", item.label.kind, item.label.name, item.node))
            .collect();
        assert_eq!(shown, ["network lan 1", "network lan 2", "vm web 1", "zdb db 2"]);
        let What::Network { subnet } = items[1].what else { panic!() };
        assert_eq!(subnet.to_string(), "10.20.2.0/24");
    }

    #[test]
    fn mistakes_are_named() {
        let refusal = |text: &str| {
            let items = Plan::parse(text).and_then(Plan::items);
            format!("{:#}", items.unwrap_err())
        };
        let text = refusal("project: x\nvms: [{name: a, node: 1, memroy: 1G}]\n");
        assert!(text.starts_with("vms[0].memroy: unknown field `memroy`"), "{text}");
        let text = refusal("project: x\nvolumes: [{name: a, node: 1, size: big}]\n");
        assert!(text.starts_with("volumes[0].size: \"big\" is no size"), "{text}");
        let twice =
            "project: x\nvolumes: [{name: a, node: 1, size: 1G}, {name: a, node: 1, size: 1G}]";
        assert_eq!(refusal(twice), "volume a is there twice on node 1");
        let name = "project: x\nvolumes: [{name: a-b, node: 1, size: 1G}]";
        assert_eq!(refusal(name), "volume \"a-b\": unsupported character in workload name");
        let range = "project: x\nnetworks: [{name: a, nodes: [1], range: 10.1.1.0/24}]";
        assert_eq!(refusal(range), "network a: its range is a /16, not 10.1.1.0/24");
    }
}
