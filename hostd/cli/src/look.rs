//! Commands that look: nodes, farms, deployments.

use anyhow::bail;
use clap::{Args, Subcommand};
use hostd_chain::types::{ContractData, Node, PowerState};
use serde_json::{Value, json};

use crate::apply::{self, changes, deployment, explained};
use crate::exit::NotFound;
use crate::proxy::Amounts;
use crate::session::Session;
use crate::size::Size;

#[derive(Subcommand)]
pub(crate) enum NodeCommand {
    /// The nodes of a farm, or of the whole grid
    Ls {
        /// The farm's name or number
        #[arg(long)]
        farm: Option<String>,
    },
    /// A node: what the chain knows of it, and what it says itself
    Show {
        /// The node's number
        node: u32,
    },
}

#[derive(Subcommand)]
pub(crate) enum FarmCommand {
    /// Found a farm
    Create {
        /// Its name, which nobody else has
        name: String,
    },
    /// A farm
    Show {
        /// Its name or number
        farm: String,
    },
}

/// Your deployments
#[derive(Args)]
pub(crate) struct ListArguments {
    /// A node; may be repeated; all that have any, if absent
    #[arg(long = "node", value_name = "NUMBER")]
    nodes: Vec<u32>,
}

/// A deployment: its contract, and what its node says
#[derive(Args)]
pub(crate) struct ContractArguments {
    /// The contract's number
    contract: u64,
}

pub(crate) async fn node(
    session: &Session,
    command: NodeCommand,
    json: bool,
) -> anyhow::Result<()> {
    let chain = session.chain.chain();
    match command {
        NodeCommand::Ls { farm: None } => all_nodes(session, json).await,
        NodeCommand::Ls { farm: Some(farm) } => {
            let mut nodes = Vec::new();
            for id in chain.nodes_of_farm(farm_id(session, &farm).await?).await? {
                nodes.extend(chain.node(id).await?);
            }
            if json {
                let shown: Vec<_> = nodes.iter().map(described).collect();
                return print(&Value::Array(shown));
            }
            let mut table = comfy_table::Table::new();
            table.load_style(comfy_table::presets::NOTHING);
            table.set_header(["node", "twin", "cpus", "memory", "ssd", "hdd", "country"]);
            for node in nodes {
                let resources = node.resources;
                table.add_row([
                    node.id.to_string(),
                    node.twin_id.to_string(),
                    resources.cru.to_string(),
                    Size(resources.mru).to_string(),
                    Size(resources.sru).to_string(),
                    Size(resources.hru).to_string(),
                    node.location.country.as_str().to_owned(),
                ]);
            }
            println!("{table}");
            Ok(())
        }
        NodeCommand::Show { node: id } => {
            let absent = || NotFound(format!("there is no node {id}"));
            let node = chain.node(id).await?.ok_or_else(absent)?;
            let mut shown = described(&node);
            let power = chain.node_power(id).await?;
            shown["is_up"] = matches!(power.state, PowerState::Up).into();
            let bus = session.bus().await?;
            for (key, command) in [
                ("version", "zos.system.version"),
                ("features", "zos.system.node_features_get"),
                ("statistics", "zos.statistics.get"),
            ] {
                shown[key] = match bus.ask(id, command, &Value::Null).await {
                    Ok(answer) => serde_json::from_slice(&answer)?,
                    Err(error) => json!({"error": format!("{error:#}")}),
                };
            }
            print(&shown)
        }
    }
}

/// All nodes of the grid, as its proxy knows them.
async fn all_nodes(session: &Session, json: bool) -> anyhow::Result<()> {
    let nodes = session.proxy().nodes("").await?;
    if json {
        let shown = nodes.iter().map(|node| {
            let (total, free) = (node.total_resources, node.free());
            let amounts = |amounts: Amounts| {
                json!({
                    "cru": amounts.cru, "mru": amounts.mru, "sru": amounts.sru, "hru": amounts.hru,
                })
            };
            json!({
                "node_id": node.id, "farm_id": node.farm_id, "farm": node.farm_name,
                "status": node.status, "country": node.country,
                "resources": amounts(total), "free": amounts(free),
            })
        });
        return print(&Value::Array(shown.collect()));
    }
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["node", "farm", "is", "cpus", "memory", "ssd", "hdd", "country"]);
    for node in nodes {
        let free = node.free();
        table.add_row([
            node.id.to_string(),
            node.farm_name,
            node.status,
            free.cru.to_string(),
            Size(free.mru).to_string(),
            Size(free.sru).to_string(),
            Size(free.hru).to_string(),
            node.country,
        ]);
    }
    println!("{table}");
    Ok(())
}

pub(crate) async fn farm(
    session: &Session,
    command: FarmCommand,
    json: bool,
) -> anyhow::Result<()> {
    match command {
        FarmCommand::Create { name } => {
            let id = session.chain.create_farm(&name, &[]).await?;
            if json {
                return print(&json!({"farm_id": id, "name": name}));
            }
            println!("farm {id}, {name}");
            Ok(())
        }
        FarmCommand::Show { farm } => {
            let id = farm_id(session, &farm).await?;
            let farm = session.chain.chain().farm(id).await?;
            let farm = farm.ok_or_else(|| NotFound(format!("there is no farm {id}")))?;
            let nodes = session.chain.chain().nodes_of_farm(id).await?;
            let name = farm.name.as_str();
            print(&json!({"farm_id": id, "name": name, "twin_id": farm.twin_id, "nodes": nodes}))
        }
    }
}

pub(crate) async fn farm_id(session: &Session, farm: &str) -> anyhow::Result<u32> {
    if let Ok(id) = farm.parse() {
        return Ok(id);
    }
    let found = session.chain.chain().farm_by_name(farm).await?;
    Ok(found.ok_or_else(|| NotFound(format!("there is no farm {farm:?}")))?)
}

fn described(node: &Node) -> Value {
    json!({
        "node_id": node.id, "farm_id": node.farm_id, "twin_id": node.twin_id,
        "resources": {
            "cru": node.resources.cru, "mru": node.resources.mru,
            "sru": node.resources.sru, "hru": node.resources.hru,
        },
        "country": node.location.country.as_str(), "city": node.location.city.as_str(),
        "has_public_address": node.public_config.is_some(),
    })
}

pub(crate) async fn list(
    session: &Session,
    arguments: ListArguments,
    json: bool,
) -> anyhow::Result<()> {
    let nodes = match arguments.nodes.is_empty() {
        false => arguments.nodes,
        true => session.proxy().nodes_of_twin(session.twin().await?).await?,
    };
    let mut found = Vec::new();
    for node in nodes {
        found.extend(apply::contracts(session, node).await?);
    }
    if json {
        return print(&serde_json::to_value(&found)?);
    }
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["contract", "node", "type", "name", "project", "contract is"]);
    for apply::Found { contract_id, node, label, state } in found {
        let (contract, node) = (contract_id.to_string(), node.to_string());
        table.add_row([contract, node, label.kind, label.name, label.project, state]);
    }
    println!("{table}");
    Ok(())
}

/// The node of a contract.
pub(crate) async fn node_of(session: &Session, contract: u64) -> anyhow::Result<u32> {
    let found = session.chain.chain().contract(contract).await?;
    let found = found.ok_or_else(|| NotFound(format!("there is no contract {contract}")))?;
    match found.contract_type {
        ContractData::NodeContract(data) => Ok(data.node_id),
        _ => bail!("contract {contract} is not about a deployment"),
    }
}

pub(crate) async fn show(
    session: &Session,
    arguments: ContractArguments,
    json: bool,
) -> anyhow::Result<()> {
    let contract = arguments.contract;
    let node = node_of(session, contract).await?;
    let bus = session.bus().await?;
    let found = deployment(&bus, node, contract).await?;
    let found = found.ok_or_else(|| NotFound(format!("node {node} has no deployment of it")))?;
    if json {
        return print(&serde_json::from_slice(found.original())?);
    }
    println!("contract {contract} on node {node}, version {}", found.deployment().version);
    for workload in &found.deployment().workloads {
        let result = &workload.result;
        let kind = workload.data.as_ref().map_or("unknown", |data| data.kind().name());
        print!("{kind} {} {}", workload.name, explained(result.state.name()));
        match result.message.is_empty() {
            true => println!(),
            false => println!(": {}", result.message),
        }
        if result.data.as_str() != "null" {
            println!("  {}", result.data.as_str());
        }
    }
    Ok(())
}

pub(crate) async fn logs(
    session: &Session,
    arguments: ContractArguments,
    json: bool,
) -> anyhow::Result<()> {
    let contract = arguments.contract;
    let node = node_of(session, contract).await?;
    let happened = changes(&session.bus().await?, node, contract).await?;
    if json {
        return print(&serde_json::to_value(&happened)?);
    }
    for change in happened {
        let apply::HappenedResult { created, state, message } = change.result;
        let (kind, name, state) = (change.kind, change.name, explained(&state));
        println!("{created} {kind} {name} version {} {state} {message}", change.version);
    }
    Ok(())
}

pub(crate) async fn wait(session: &Session, arguments: ContractArguments) -> anyhow::Result<()> {
    let contract = arguments.contract;
    let node = node_of(session, contract).await?;
    let bus = session.bus().await?;
    let found = deployment(&bus, node, contract).await?;
    let found = found.ok_or_else(|| NotFound(format!("node {node} has no deployment of it")))?;
    let workloads = &found.deployment().workloads;
    let names: Vec<_> = workloads.iter().map(|workload| workload.name.clone()).collect();
    apply::wait(&bus, node, contract, 0, &names, |line| eprintln!("{line}")).await
}

fn print(value: &Value) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}
