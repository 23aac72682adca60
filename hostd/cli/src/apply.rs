//! From a plan to contracts and deployments, and back to what is there.
//!
//! ```text
//!  plan ─> what is there? (the chain, then each node) ─> changes, all judged before anything is done
//!       ─> contract ─> message ─> wait ─┬─> done
//!                                       └─> it failed: the contract is cancelled, and that is said
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use hostd_chain::calls::NodeContractSpec;
use hostd_chain::types::ContractData;
use hostd_grid::challenge::{DeploymentHash, Form};
use hostd_grid::signature::Scheme;
use hostd_grid::workload::State;
use hostd_grid::{ContractId, Deployment, Name, SignedDeployment, TwinId, WorkloadData};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::build::{Change, Current, Surroundings, change};
use crate::plan::{Item, Label, What};
use crate::session::{Bus, Session};

/// First pause between two looks at a deployment.
const LOOK_PAUSE_MIN: Duration = Duration::from_millis(200);
/// Longest pause.
const LOOK_PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long a deployment may stand still before it is given up.
const PROGRESS_TIME_MAX: Duration = Duration::from_secs(600);
/// Bytes that a contract carries.
const DATA_SIZE_MAX: usize = 512;
/// What a node says of a contract whose deployment never came.
const NOT_FOUND: &str = "deployment not found";

/// A contract of ours.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Found {
    pub(crate) contract_id: u64,
    pub(crate) node: u32,
    #[serde(flatten)]
    pub(crate) label: Label,
    pub(crate) state: String,
}

/// What was done about an item, or would be.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    pub(crate) node: u32,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) name: String,
    /// `create`, `update` or `nothing`.
    pub(crate) action: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) workloads: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) contract_id: Option<u64>,
}

/// An item, and what is to be done about it.
struct Planned {
    item: Item,
    change: Change,
    /// A contract whose deployment the node does not have.
    leftover: Option<u64>,
}

/// Our contracts on a node.
pub(crate) async fn contracts(session: &Session, node: u32) -> anyhow::Result<Vec<Found>> {
    let twin = session.twin().await?;
    let chain = session.chain.chain();
    let mut found = Vec::new();
    for contract_id in chain.node_contracts(node).await?.ids {
        let Some(contract) = chain.contract(contract_id).await? else { continue };
        let ContractData::NodeContract(data) = contract.contract_type else { continue };
        if contract.twin_id != twin {
            continue;
        }
        // Others write other things there.
        let label = serde_json::from_slice(&data.deployment_data);
        let label = label.unwrap_or(Label {
            version: 0,
            kind: String::new(),
            name: String::new(),
            project: String::new(),
        });
        let state = match contract.state {
            hostd_chain::types::ContractState::Created => "paid".to_owned(),
            hostd_chain::types::ContractState::GracePeriod(block) => {
                format!("not paid since block {block}: everything stands still")
            }
            hostd_chain::types::ContractState::Deleted(_) => "over".to_owned(),
        };
        found.push(Found { contract_id, node, label, state });
    }
    Ok(found)
}

/// A deployment as its node has it; none if the node does not have it.
pub(crate) async fn deployment(
    bus: &Bus,
    node: u32,
    contract_id: u64,
) -> anyhow::Result<Option<SignedDeployment>> {
    let question = json!({"contract_id": contract_id});
    match bus.ask(node, "zos.deployment.get", &question).await {
        Ok(answer) => Ok(Some(SignedDeployment::read(answer)?)),
        Err(error) if error.root_cause().to_string() == NOT_FOUND => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes everything as the items say; with `dry_run` only says what would be done.
pub(crate) async fn apply(
    session: &Session,
    items: Vec<Item>,
    dry_run: bool,
) -> anyhow::Result<Vec<Outcome>> {
    let bus = session.bus().await?;
    let planned = planned(session, &bus, items).await?;
    let mut outcomes = Vec::new();
    for Planned { item, change, leftover } in planned {
        let Label { kind, name, .. } = item.label.clone();
        let (action, workloads, contract_id) = match change {
            Change::Nothing => ("nothing", Vec::new(), None),
            Change::Create(_) if dry_run => ("create", Vec::new(), None),
            Change::Update(deployment, names) if dry_run => {
                ("update", names, Some(deployment.contract_id.0))
            }
            Change::Create(deployment) => {
                if let Some(contract) = leftover {
                    say(&item, &format!("contract {contract} of an earlier try is cancelled"));
                    session.chain.cancel_contract(contract).await?;
                }
                let contract = create(session, &bus, &item, deployment).await;
                ("create", Vec::new(), Some(contract.with_context(|| shown(&item))?))
            }
            Change::Update(deployment, names) => {
                let contract = deployment.contract_id.0;
                let title = shown(&item);
                let updated = update(session, &bus, item.node, &title, deployment, &names).await;
                updated.context(title)?;
                ("update", names, Some(contract))
            }
        };
        let workloads = workloads.iter().map(Name::to_string).collect();
        outcomes.push(Outcome { node: item.node, kind, name, action, workloads, contract_id });
    }
    Ok(outcomes)
}

/// Judges all items, and changes nothing.
async fn planned(session: &Session, bus: &Bus, items: Vec<Item>) -> anyhow::Result<Vec<Planned>> {
    let twin = TwinId(session.twin().await?);
    let nodes: BTreeSet<_> = items.iter().map(|item| item.node).collect();
    let (mut existing, mut features) = (Vec::new(), BTreeMap::new());
    for node in nodes {
        existing.extend(contracts(session, node).await?);
        let answer = bus.ask(node, "zos.system.node_features_get", &Value::Null).await?;
        features.insert(node, serde_json::from_slice::<Vec<String>>(&answer)?);
    }
    let mut lands = Lands::default();
    let mut planned = Vec::new();
    for item in items {
        let is_it = |found: &&Found| found.node == item.node && found.label == item.label;
        let contract = existing.iter().find(is_it).map(|found| found.contract_id);
        let there = match contract {
            Some(contract) => deployment(bus, item.node, contract).await?,
            None => None,
        };
        let leftover = contract.filter(|_| there.is_none());
        let current = there.map(|there| there.deployment().clone());
        refuse_failed(&item, current.as_ref())?;
        let features = features[&item.node].clone();
        let mut around = Surroundings { node: item.node, features, ..Surroundings::default() };
        match &item.what {
            What::Network { subnet } => {
                lands.subnets.insert((item.node, item.label.name.clone()), *subnet);
            }
            What::Vm(vm) => lands.look(bus, &existing, vm, &mut around).await?,
            What::Zdb(_) | What::Volume(_) => {}
        }
        let change =
            change(&item, twin, current.as_ref(), &around).with_context(|| shown(&item))?;
        if let (What::Vm(vm), Change::Create(made)) = (&item.what, &change) {
            let taken = lands.taken.entry((item.node, vm.network.clone())).or_default();
            taken.extend(made.workloads.iter().filter_map(|workload| address(&workload.data)));
        }
        planned.push(Planned { item, change, leftover });
    }
    Ok(planned)
}

/// Networks on nodes, those that are about to be made included.
#[derive(Default)]
struct Lands {
    subnets: BTreeMap<(u32, String), hostd_grid::address::Cidr>,
    taken: BTreeMap<(u32, String), Vec<IpAddr>>,
}

impl Lands {
    /// Finds out where a machine goes.
    async fn look(
        &mut self,
        bus: &Bus,
        existing: &[Found],
        vm: &crate::plan::VmPlan,
        around: &mut Surroundings,
    ) -> anyhow::Result<()> {
        let node = around.node;
        let key = (node, vm.network.clone());
        let is_it = |found: &&Found| {
            found.node == node && found.label.kind == "network" && found.label.name == vm.network
        };
        if let Some(found) =
            existing.iter().find(is_it).filter(|_| !self.subnets.contains_key(&key))
            && let Some(network) = deployment(bus, node, found.contract_id).await?
        {
            let workloads = &network.deployment().workloads;
            let subnets = workloads.iter().filter_map(|workload| match &workload.data {
                Ok(WorkloadData::NetworkLight(network)) => network.subnet.0,
                Ok(WorkloadData::Network(network)) => network.subnet.0,
                _ => None,
            });
            self.subnets.extend(subnets.map(|subnet| (key.clone(), subnet)));
        }
        if !self.taken.contains_key(&key) {
            let question = json!({"network_name": vm.network});
            let answer = bus.ask(node, "zos.network.list_private_ips", &question).await?;
            // Nodes say `null` for none.
            let taken: Option<Vec<IpAddr>> = serde_json::from_slice(&answer)?;
            self.taken.insert(key.clone(), taken.unwrap_or_default());
        }
        around.subnet = self.subnets.get(&key).copied();
        around.taken = self.taken.get(&key).cloned().unwrap_or_default();
        Ok(())
    }
}

fn address(data: &WorkloadData) -> Option<IpAddr> {
    let interfaces = match data {
        WorkloadData::ZMachine(machine) => &machine.network.interfaces,
        WorkloadData::ZMachineLight(machine) => &machine.network.interfaces,
        _ => return None,
    };
    interfaces.first().and_then(|interface| interface.ip.0)
}

/// What failed is never tried again by its node, so a plan can't be true of it.
fn refuse_failed(item: &Item, current: Option<&Current>) -> anyhow::Result<()> {
    let workloads = current.into_iter().flat_map(|current| &current.workloads);
    for workload in workloads {
        let result = &workload.result;
        if matches!(result.state, State::Error | State::Deleted) {
            let contract = current.map_or(0, |current| current.contract_id.0);
            bail!(
                "{}: {} {}: {}; run `grid cancel {contract}` and deploy it again",
                shown(item),
                workload.name,
                explained(result.state.name()),
                result.message
            );
        }
    }
    Ok(())
}

/// Makes a contract and its deployment, or neither. Returns the contract's number.
async fn create(
    session: &Session,
    bus: &Bus,
    item: &Item,
    mut deployment: Deployment,
) -> anyhow::Result<u64> {
    ensure!(
        deployment.metadata.len() <= DATA_SIZE_MAX,
        "its names are too long for a contract, which carries {DATA_SIZE_MAX} bytes"
    );
    let names: Vec<_> = deployment.workloads.iter().map(|workload| workload.name.clone()).collect();
    let hash = sign(session, &mut deployment)?;
    let contract = session
        .chain
        .create_node_contract(&NodeContractSpec {
            node_id: item.node,
            hash: on_chain(&hash)?,
            data: deployment.metadata.clone().into_bytes(),
            public_ips: 0,
            solution_provider: None,
        })
        .await?;
    say(item, &format!("contract {contract}"));
    deployment.contract_id = ContractId(contract);
    let deploying = async {
        bus.tell(item.node, "zos.deployment.deploy", serde_json::to_vec(&deployment)?).await?;
        wait(bus, item.node, contract, 0, &names, |line| say(item, line)).await
    };
    let deployed = tokio::select! {
        deployed = deploying => deployed,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    let Err(error) = deployed else { return Ok(contract) };
    match session.chain.cancel_contract(contract).await {
        Ok(()) => Err(error.context(format!("contract {contract} was cancelled"))),
        Err(problem) => Err(error.context(format!(
            "contract {contract} could NOT be cancelled ({problem}): run `grid cancel {contract}`"
        ))),
    }
}

/// Changes a deployment that is there, in the contract first and then on its node, and waits until these
/// of its workloads have followed.
pub(crate) async fn update(
    session: &Session,
    bus: &Bus,
    node: u32,
    title: &str,
    mut deployment: Deployment,
    names: &[Name],
) -> anyhow::Result<()> {
    let (contract, version) = (deployment.contract_id.0, deployment.version);
    let hash = on_chain(&sign(session, &mut deployment)?)?;
    let data = deployment.metadata.clone().into_bytes();
    session.chain.update_node_contract(contract, &hash, &data).await?;
    bus.tell(node, "zos.deployment.update", serde_json::to_vec(&deployment)?).await?;
    let kept = |name: &&Name| deployment.workloads.iter().any(|workload| workload.name == **name);
    let names: Vec<_> = names.iter().filter(kept).cloned().collect();
    wait(bus, node, contract, version, &names, |line| eprintln!("{title}: {line}")).await
}

/// Signs a deployment, and says its hash.
fn sign(session: &Session, deployment: &mut Deployment) -> anyhow::Result<DeploymentHash> {
    let signature = session.identity.sign_bare(&deployment.signing_message());
    let scheme = match session.identity.scheme() {
        hostd_rmb::signature::Scheme::Sr25519 => Scheme::Sr25519,
        hostd_rmb::signature::Scheme::Ed25519 => Scheme::Ed25519,
    };
    let twin = deployment.twin_id;
    deployment.add_signature(twin, scheme, &signature);
    Ok(deployment.hash(Form::Current)?)
}

/// A hash as contracts have it.
fn on_chain(hash: &DeploymentHash) -> anyhow::Result<[u8; 32]> {
    hash.to_string().into_bytes().try_into().ok().context("a hash has 32 digits")
}

/// One line of what happened to a deployment.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Happened {
    pub(crate) name: String,
    pub(crate) version: u32,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) result: HappenedResult,
}

/// What it led to.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct HappenedResult {
    pub(crate) created: i64,
    pub(crate) state: String,
    pub(crate) message: String,
}

/// What happened to a deployment's workloads, in order.
pub(crate) async fn changes(bus: &Bus, node: u32, contract: u64) -> anyhow::Result<Vec<Happened>> {
    let question = json!({"contract_id": contract});
    let answer = bus.ask(node, "zos.deployment.changes", &question).await?;
    Ok(serde_json::from_slice::<Option<_>>(&answer)?.unwrap_or_default())
}

/// Waits until these workloads are what `version` made of them. What failed is an error, in the node's
/// words.
pub(crate) async fn wait(
    bus: &Bus,
    node: u32,
    contract: u64,
    version: u32,
    names: &[Name],
    say: impl Fn(&str),
) -> anyhow::Result<()> {
    let (mut pause, mut seen) = (LOOK_PAUSE_MIN, 0);
    let mut progress = tokio::time::Instant::now();
    loop {
        let changes = changes(bus, node, contract).await?;
        for change in changes.iter().skip(seen) {
            say(&format!("{} {} {}", change.kind, change.name, explained(&change.result.state)));
        }
        if changes.len() > seen {
            (seen, pause, progress) = (changes.len(), LOOK_PAUSE_MIN, tokio::time::Instant::now());
        }
        let (mut waiting, mut failed) = (0, Vec::new());
        for name in names {
            let last = { changes.iter().rev() }.find(|change| change.name == name.as_str());
            match last.filter(|last| last.version >= version).map(|last| &last.result) {
                Some(result) if matches!(&*result.state, "ok" | "paused") => {}
                Some(result) if matches!(&*result.state, "error" | "deleted" | "unchanged") => {
                    let state = explained(&result.state);
                    failed.push(format!("{name} {state}: {}", result.message));
                }
                _ => waiting += 1,
            }
        }
        if waiting == 0 && failed.is_empty() {
            return Ok(());
        }
        // The rest may still be told, but nothing makes up for what failed.
        ensure!(failed.is_empty(), "{}", failed.join("; "));
        ensure!(
            progress.elapsed() < PROGRESS_TIME_MAX,
            "nothing happened on node {node} for {} minutes",
            PROGRESS_TIME_MAX.as_secs() / 60
        );
        tokio::time::sleep(pause).await;
        pause = (pause * 5 / 4).min(LOOK_PAUSE_MAX);
    }
}

/// A state in words.
pub(crate) fn explained(state: &str) -> &'static str {
    match state {
        "init" => "was taken in and waits",
        "ok" => "runs",
        "error" => "failed",
        "deleted" => "was taken down",
        "paused" => "stands still until its contract is paid",
        "unchanged" => "could not be changed, and runs as before",
        _ => "is not known to its node",
    }
}

fn shown(item: &Item) -> String {
    format!("{} {} on node {}", item.label.kind, item.label.name, item.node)
}

fn say(item: &Item, line: &str) {
    eprintln!("{}: {line}", shown(item));
}
