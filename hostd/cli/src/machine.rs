//! Which machine is meant, and its power: `grid start`, `stop` and `restart`.
//!
//! A machine is known by its name, if only one of its owner's has it, or by its contract's number.

use anyhow::Context as _;
use clap::Args;
use hostd_grid::Name;
use serde_json::{Value, json};

use crate::apply::{self, contracts};
use crate::exit::{NotFound, Usage};
use crate::session::{Bus, Session};

/// Which machine.
#[derive(Args)]
pub(crate) struct MachineArguments {
    /// The machine's name, or the number of its contract
    vm: String,
    /// Of several machines of that name, the one of this project
    #[arg(long, value_name = "PROJECT")]
    project: Option<String>,
}

/// What is done with a machine's power.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Switch {
    Start,
    Stop,
    Restart,
}

/// A machine, as its node knows it.
pub(crate) struct Found {
    pub(crate) node: u32,
    contract: u64,
    name: Name,
}

impl Found {
    /// What a node is asked about it.
    pub(crate) fn question(&self) -> Value {
        json!({"contract_id": self.contract, "name": self.name})
    }
}

/// Starts or stops a machine.
pub(crate) async fn switch(
    session: &Session,
    arguments: MachineArguments,
    how: Switch,
) -> anyhow::Result<()> {
    let (command, done) = match how {
        Switch::Start => ("zos.vm.start", "started"),
        Switch::Stop => ("zos.vm.stop", "stopped"),
        Switch::Restart => ("zos.vm.restart", "started again"),
    };
    let bus = session.bus().await?;
    let found = find(session, &bus, &arguments).await?;
    bus.tell(found.node, command, serde_json::to_vec(&found.question())?).await?;
    println!("{done}: {} on node {}, contract {}", found.name, found.node, found.contract);
    Ok(())
}

/// Finds what is meant.
pub(crate) async fn find(
    session: &Session,
    bus: &Bus,
    arguments: &MachineArguments,
) -> anyhow::Result<Found> {
    let (node, contract) = place(session, arguments).await?;
    let name = machine_of(bus, node, contract, &arguments.vm).await?;
    Ok(Found { node, contract, name })
}

/// The node and the contract of what is meant.
async fn place(session: &Session, arguments: &MachineArguments) -> anyhow::Result<(u32, u64)> {
    let MachineArguments { vm, project } = arguments;
    if let Ok(contract) = vm.parse() {
        return Ok((crate::look::node_of(session, contract).await?, contract));
    }
    let mut found = Vec::new();
    for node in session.proxy().nodes_of_twin(session.twin().await?).await? {
        found.extend(contracts(session, node).await?.into_iter().filter(|found| {
            let label = &found.label;
            let is_of_project = project.as_ref().is_none_or(|project| label.project == *project);
            label.kind == "vm" && label.name == *vm && is_of_project
        }));
    }
    match found.as_slice() {
        [one] => Ok((one.node, one.contract_id)),
        [] => {
            Err(NotFound(format!("there is no machine {vm}: `grid ls` shows what there is")).into())
        }
        several => {
            let numbers: Vec<_> = several.iter().map(|one| one.contract_id.to_string()).collect();
            let numbers = numbers.join(", ");
            Err(Usage(format!("contracts {numbers} have a machine {vm}: name one, or --project"))
                .into())
        }
    }
}

/// The machine of a deployment: the one of that name, or the only one.
async fn machine_of(bus: &Bus, node: u32, contract: u64, vm: &str) -> anyhow::Result<Name> {
    let found = apply::deployment(bus, node, contract).await?;
    let found = found.ok_or_else(|| NotFound(format!("node {node} has no deployment of it")))?;
    let workloads = found.deployment().workloads.iter();
    let is_machine = |data: &hostd_grid::workload::ReadData| {
        data.as_ref().is_ok_and(|data| data.kind().is_machine())
    };
    let machines: Vec<_> = workloads.filter(|workload| is_machine(&workload.data)).collect();
    let named = machines.iter().find(|machine| machine.name.as_str() == vm);
    let only = machines.first().filter(|_| machines.len() == 1);
    let one = named.or(only).with_context(|| match machines.is_empty() {
        true => format!("contract {contract} has no machine"),
        false => format!("contract {contract} has several machines: name one"),
    })?;
    Ok(one.name.clone())
}
