//! From what is wanted to the deployment that says it, and from what is there to what must change.
//!
//! Some of a deployment nobody writes down: keys, seeds, a free address, a password. They are made once,
//! and taken over from what is there ever after, so that the same wish leads to the same deployment
//! again.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context as _, bail, ensure};
use hostd_grid::address::{Cidr, Maybe};
use hostd_grid::deployment::{SignatureRequest, SignatureRequirement};
use hostd_grid::secret::{SecretBytes, SecretText};
use hostd_grid::workload::{
    ComputeCapacity, Interface, Machine, MachineNetwork, MachineNetworkLight, Mount, Mycelium,
    MyceliumAddress, NetworkLight, ReadData, SEED_SIZE, Volume, WorkloadResult, ZMount, Zdb, Zlogs,
};
use hostd_grid::{Deployment, Name, TwinId, Workload, WorkloadData, WorkloadType};
use ring::rand::{SecureRandom as _, SystemRandom};

use crate::plan::{DiskPlan, Item, Label, VmPlan, What};

/// What the node of an item tells about itself, as far as deployments depend on it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Surroundings {
    /// The node's number.
    pub(crate) node: u32,
    /// Types of workloads, and what else it can do.
    pub(crate) features: Vec<String>,
    /// The part of the item's network that it has, and addresses in it that are taken.
    pub(crate) subnet: Option<Cidr>,
    pub(crate) taken: Vec<IpAddr>,
}

/// What is there already.
pub(crate) type Current = Deployment<ReadData>;

/// What has to be done about an item.
#[derive(Debug)]
pub(crate) enum Change {
    /// It is there, and as it should be.
    Nothing,
    /// It has to be made.
    Create(Deployment),
    /// It has to be changed; these of its workloads.
    Update(Deployment, Vec<Name>),
}

/// Compares what is wanted with what is there. What can't be done is an error, and nothing was done.
pub(crate) fn change(
    item: &Item,
    twin: TwinId,
    current: Option<&Current>,
    around: &Surroundings,
) -> anyhow::Result<Change> {
    let mut workloads = workloads(item, current, around)?;
    for workload in &workloads {
        let kind = workload.data.kind();
        let is_supported = around.features.iter().any(|feature| feature == kind.name());
        ensure!(is_supported, "node {} does not support {kind} yet", item.node);
    }
    let mut deployment = Deployment {
        twin_id: twin,
        metadata: serde_json::to_string(&item.label)?,
        signature_requirement: SignatureRequirement {
            requests: vec![SignatureRequest { twin_id: twin, required: true, weight: 1 }],
            weight_required: 1,
            ..SignatureRequirement::default()
        },
        ..Deployment::default()
    };
    let Some(current) = current else {
        deployment.workloads = workloads;
        deployment.validate()?;
        return Ok(Change::Create(deployment));
    };
    deployment.version = current.version.checked_add(1).context("there is no next version")?;
    deployment.contract_id = current.contract_id;
    let mut changed = Vec::new();
    for workload in &mut workloads {
        let was = current.workloads.iter().find(|was| was.name == workload.name);
        match was {
            Some(was) if was.data.as_ref() == Ok(&workload.data) => workload.version = was.version,
            Some(_) if !workload.data.kind().is_updatable() => bail!(
                "{} {} can't be changed while it exists: cancel it first",
                workload.data.kind(),
                workload.name
            ),
            _ => {
                workload.version = deployment.version;
                changed.push(workload.name.clone());
            }
        }
    }
    let is_kept = |was: &Workload<ReadData>| workloads.iter().any(|new| new.name == was.name);
    changed.extend(
        { current.workloads.iter() }.filter(|was| !is_kept(was)).map(|was| was.name.clone()),
    );
    if changed.is_empty() {
        return Ok(Change::Nothing);
    }
    deployment.workloads = workloads;
    deployment.validate()?;
    Ok(Change::Update(deployment, changed))
}

/// The workloads of an item, all of version 0.
fn workloads(
    item: &Item,
    current: Option<&Current>,
    around: &Surroundings,
) -> anyhow::Result<Vec<Workload>> {
    let Label { name, .. } = &item.label;
    let old = |name: &str| {
        let workloads = current.into_iter().flat_map(|current| &current.workloads);
        { workloads }.find(|old| old.name.as_str() == name).and_then(|old| old.data.as_ref().ok())
    };
    Ok(match &item.what {
        What::Network { subnet } => {
            let key = match old(name) {
                Some(WorkloadData::NetworkLight(network)) => network.mycelium.hex_key.clone(),
                _ => SecretBytes::new(random::<32>()?),
            };
            let mycelium = Mycelium { hex_key: key, peers: Vec::new() };
            let network = NetworkLight { subnet: (*subnet).into(), mycelium, ..Default::default() };
            vec![workload(name, WorkloadData::NetworkLight(network))]
        }
        What::Vm(vm) => machine(vm, old(name), around)?,
        What::Zdb(zdb) => {
            let password = match (&zdb.password, old(name)) {
                (Some(password), _) => SecretText::new(password),
                (None, Some(WorkloadData::Zdb(old))) => old.password.clone(),
                (None, _) => SecretText::new(hex(&random::<16>()?)),
            };
            let (size, mode_name, public) = (zdb.size.0, zdb.mode.clone(), zdb.public);
            vec![workload(name, WorkloadData::Zdb(Zdb { size, mode_name, password, public }))]
        }
        What::Volume(volume) => {
            vec![workload(name, WorkloadData::Volume(Volume { size: volume.size.0 }))]
        }
    })
}

/// A machine and its disks, of whichever kind the node runs.
fn machine(
    vm: &VmPlan,
    old: Option<&WorkloadData>,
    around: &Surroundings,
) -> anyhow::Result<Vec<Workload>> {
    let (old_ip, old_seed) = match old {
        Some(WorkloadData::ZMachineLight(old)) => {
            (ip_of(&old.network.interfaces, vm), seed_of(old.network.mycelium.as_ref()))
        }
        Some(WorkloadData::ZMachine(old)) => {
            (ip_of(&old.network.interfaces, vm), seed_of(old.network.mycelium.as_ref()))
        }
        _ => (None, None),
    };
    let ip = match vm.ip.or(old_ip) {
        Some(ip) => ip,
        None => free_address(vm, around)?,
    };
    let seed = match old_seed {
        Some(seed) => seed,
        None => SecretBytes::new(random::<SEED_SIZE>()?),
    };
    let network = Name::new(&vm.network);
    let interfaces = vec![Interface { network: network.clone(), ip: Maybe::from(ip) }];
    let mycelium = Some(MyceliumAddress { network, hex_seed: seed });
    let is_light = |feature: &String| feature == WorkloadType::ZMachineLight.name();
    let data = if around.features.iter().any(is_light) {
        let network = MachineNetworkLight { mycelium, interfaces };
        WorkloadData::ZMachineLight(with_network(vm, network))
    } else {
        let network = MachineNetwork { mycelium, interfaces, ..Default::default() };
        WorkloadData::ZMachine(with_network(vm, network))
    };
    let disk = |disk: &DiskPlan| WorkloadData::ZMount(ZMount { size: disk.size.0 });
    let disks = vm.disks.iter().map(|plan| workload(&plan.name, disk(plan)));
    let volume = |volume: &DiskPlan| WorkloadData::Volume(Volume { size: volume.size.0 });
    let volumes = vm.volumes.iter().map(|plan| workload(&plan.name, volume(plan)));
    let mut workloads: Vec<_> = disks.chain(volumes).collect();
    workloads.push(workload(&vm.name, data));
    // Nobody speaks of them, so they are numbered.
    let logs = vm.logs.iter().zip(1..).map(|(url, number)| {
        let (zmachine, output) = (Name::new(&vm.name), SecretText::new(url));
        workload(&format!("log{number}"), WorkloadData::Zlogs(Zlogs { zmachine, output }))
    });
    workloads.extend(logs);
    Ok(workloads)
}

fn with_network<N>(vm: &VmPlan, network: N) -> Machine<N> {
    let mount =
        |disk: &DiskPlan| Mount { name: Name::new(&disk.name), mountpoint: disk.mount.clone() };
    Machine {
        flist: vm.flist.clone(),
        network,
        size: vm.root.map_or(0, |root| root.0),
        compute_capacity: ComputeCapacity { cpu: vm.cpu, memory: vm.memory.0 },
        mounts: vm.disks.iter().chain(&vm.volumes).map(mount).collect(),
        entrypoint: vm.entrypoint.clone(),
        env: vm.env.iter().map(|(key, value)| (key.clone(), SecretText::new(value))).collect(),
        corex: false,
        gpu: Vec::new(),
    }
}

fn ip_of(interfaces: &[Interface], vm: &VmPlan) -> Option<IpAddr> {
    let on_it = interfaces.iter().find(|interface| interface.network.as_str() == vm.network);
    on_it.and_then(|interface| interface.ip.0)
}

fn seed_of(mycelium: Option<&MyceliumAddress>) -> Option<SecretBytes> {
    mycelium.map(|address| address.hex_seed.clone())
}

/// The first address of the network's part on the node that nobody has; the very first is the node's.
fn free_address(vm: &VmPlan, around: &Surroundings) -> anyhow::Result<IpAddr> {
    let missing = || {
        format!(
            "network {} has no part on node {}: deploy the network there first",
            vm.network, around.node
        )
    };
    let subnet = around.subnet.with_context(missing)?;
    let IpAddr::V4(base) = subnet.network() else { bail!("network {} is not of IPv4", vm.network) };
    let [a, b, c, _] = base.octets();
    let mut addresses = (2..=254).map(|last| IpAddr::V4(Ipv4Addr::new(a, b, c, last)));
    let free = addresses.find(|ip| subnet.contains(*ip) && !around.taken.contains(ip));
    let full = || format!("network {} has no free address on node {}", vm.network, around.node);
    free.with_context(full)
}

fn workload(name: &str, data: WorkloadData) -> Workload {
    Workload {
        version: 0,
        name: Name::new(name),
        data,
        metadata: String::new(),
        description: String::new(),
        result: WorkloadResult::default(),
    }
}

fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| anyhow::anyhow!("the operating system gives no random bytes"))?;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use hostd_grid::SignedDeployment;

    use super::*;
    use crate::plan::Plan;

    const PLAN: &str = "project: shop\n\
        networks: [{name: lan, nodes: [1]}]\n\
        vms: [{name: web, node: 1, network: lan, flist: 'https://hub/x.flist',\
               disks: [{name: data, size: 1G, mount: /data}]}]\n\
        zdbs: [{name: db, node: 1, size: 1G}]\n";

    fn around() -> Surroundings {
        let features =
            ["zmachine-light", "network-light", "zmount", "zdb"].map(String::from).into();
        let taken = vec!["10.20.1.2".parse().unwrap()];
        Surroundings {
            node: 1,
            features,
            subnet: Some(Cidr::parse("10.20.1.0/24").unwrap()),
            taken,
        }
    }

    fn there(deployment: &Deployment) -> Current {
        let json = serde_json::to_vec(deployment).unwrap();
        SignedDeployment::read(json).unwrap().deployment().clone()
    }

    fn changed(plan: &str, current: &[Current]) -> Vec<anyhow::Result<Change>> {
        let items = Plan::parse(plan).unwrap().items().unwrap();
        let find = |item: &Item| {
            let metadata = serde_json::to_string(&item.label).unwrap();
            current.iter().find(|current| current.metadata == metadata)
        };
        items.iter().map(|item| change(item, TwinId(7), find(item), &around())).collect()
    }

    fn created() -> Vec<Current> {
        let made = changed(PLAN, &[]).into_iter().map(|change| match change {
            Ok(Change::Create(deployment)) => there(&deployment),
            other => panic!("{other:?}"),
        });
        made.collect()
    }

    #[test]
    fn the_same_file_changes_nothing() {
        let current = created();
        assert_eq!(current.len(), 3);
        let Ok(WorkloadData::ZMachineLight(vm)) = &current[1].workloads[1].data else { panic!() };
        assert_eq!(vm.network.interfaces[0].ip.to_string(), "10.20.1.3");
        for change in changed(PLAN, &current) {
            assert!(matches!(change, Ok(Change::Nothing)), "{change:?}");
        }
    }

    #[test]
    fn a_machine_has_disks_volumes_and_logs_in_its_deployment() {
        let more = "volumes: [{name: pics, size: 2G, mount: /pics}], logs: ['redis://10.1.2.3/x'],\
                    disks:";
        let features = ["zmachine-light", "zmount", "volume", "zlogs"].map(String::from).into();
        let around = Surroundings { features, ..around() };
        let items = Plan::parse(&PLAN.replace("disks:", more)).unwrap().items().unwrap();
        let Ok(Change::Create(deployment)) = change(&items[1], TwinId(7), None, &around) else {
            panic!("nothing is made")
        };
        let names = deployment.workloads.iter().map(|workload| workload.name.as_str());
        assert_eq!(names.collect::<Vec<_>>(), ["data", "pics", "web", "log1"]);
        let WorkloadData::ZMachineLight(vm) = &deployment.workloads[2].data else { panic!() };
        let mounts = vm.mounts.iter().map(|mount| mount.mountpoint.as_str());
        assert_eq!(mounts.collect::<Vec<_>>(), ["/data", "/pics"]);
        let WorkloadData::Volume(volume) = &deployment.workloads[1].data else { panic!() };
        assert_eq!(volume.size, 2 << 30);
        let WorkloadData::Zlogs(log) = &deployment.workloads[3].data else { panic!() };
        assert_eq!((log.zmachine.as_str(), log.output.expose()), ("web", "redis://10.1.2.3/x"));
    }

    #[test]
    fn what_differs_is_updated_and_the_rest_keeps_its_version() {
        let current = created();
        let plan = PLAN.replace("name: data, size: 1G", "name: data, size: 2G");
        let changes = changed(&plan, &current);
        let Ok(Change::Update(deployment, names)) = &changes[1] else { panic!("{changes:?}") };
        assert_eq!(*names, ["data".into()]);
        assert_eq!((deployment.version, deployment.workloads[1].version), (1, 0));
        assert!(matches!(changes[2], Ok(Change::Nothing)));
    }

    #[test]
    fn what_a_node_can_not_do_is_said_before() {
        let plan = "project: p\nvolumes: [{name: v, node: 1, size: 1G}]\n";
        let error = changed(plan, &[]).remove(0).unwrap_err();
        assert_eq!(error.to_string(), "node 1 does not support volume yet");
        let machine =
            PLAN.replace("/x.flist', ", "/y.flist', ").replace("/x.flist',", "/y.flist',");
        let error = changed(&machine, &created()).remove(1).unwrap_err();
        let text = "zmachine-light web can't be changed while it exists: cancel it first";
        assert_eq!(error.to_string(), text);
    }
}
