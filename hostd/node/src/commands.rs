//! What other twins may ask of a node, by name: the commands of the grid (`reference: zero-os 3`).

use std::sync::Arc;

use bytes::Bytes;
use hostd_grid::limits::DEPLOYMENT_SIZE_MAX;
use hostd_grid::{ContractId, Name, TwinId};
use hostd_rmb::server::{Command, CommandError, Commands, Outcome, Request, json as answer};
use serde::Serialize;
use serde_json::Value;

use crate::engine::Engine;
use crate::host::Host;

/// Ports that a node keeps for itself: gateways, mycelium, the planetary network, measurements.
const OWN_PORTS: [u16; 8] = [80, 443, 8082, 9651, 9943, 9944, 9945, 300];

/// All commands.
pub fn commands(engine: &Arc<Engine>, host: &Arc<dyn Host>) -> Commands {
    let commands = deployment_commands(Commands::default(), engine);
    about_commands(commands, engine, host)
}

fn deployment_commands(commands: Commands, engine: &Arc<Engine>) -> Commands {
    let deploying = Arc::clone(engine);
    let deploy = Command::new(move |request: Request| {
        let engine = Arc::clone(&deploying);
        async move {
            let done = engine.deploy(owner(&request), &request.payload).await;
            done.map(|()| Bytes::new()).map_err(CommandError::new)
        }
    });
    let updating = Arc::clone(engine);
    let update = Command::new(move |request: Request| {
        let engine = Arc::clone(&updating);
        async move {
            let done = engine.update(owner(&request), &request.payload).await;
            done.map(|()| Bytes::new()).map_err(CommandError::new)
        }
    });
    commands
        .with("zos.deployment.deploy", deploy.payload_size_max(DEPLOYMENT_SIZE_MAX))
        .with("zos.deployment.update", update.payload_size_max(DEPLOYMENT_SIZE_MAX))
        .with(
            "zos.deployment.delete",
            Command::new(|_| async {
                Err(CommandError::new(
                    "deletion over the api is disabled, please cancel your contract instead",
                ))
            }),
        )
        .with(
            "zos.deployment.get",
            question(engine, |engine, request| {
                found(engine.get(owner(request), contract(request)?))
            }),
        )
        .with(
            "zos.deployment.changes",
            question(engine, |engine, request| {
                found(engine.changes(owner(request), contract(request)?))
            }),
        )
        .with(
            "zos.deployment.list",
            question(engine, |engine, request| answer(&engine.list(owner(request)))),
        )
}

fn about_commands(commands: Commands, engine: &Arc<Engine>, host: &Arc<dyn Host>) -> Commands {
    #[derive(Serialize)]
    struct Version {
        zos: String,
        zinit: String,
    }
    commands
        .with("zos.statistics.get", question(engine, |engine, _| answer(&engine.statistics())))
        .with(
            "zos.network.list_private_ips",
            question(engine, |engine, request| {
                let network = member(request, "network_name")?;
                let network = network.as_str().ok_or_else(|| wrong("network_name", "a text"))?;
                let network = Name::new(network);
                answer(&engine.private_addresses(owner(request), &network))
            }),
        )
        .with(
            "zos.system.version",
            question(host, |host, _| {
                let about = host.about();
                answer(&Version { zos: about.version, zinit: about.supervisor })
            }),
        )
        .with("zos.system.hypervisor", question(host, |host, _| answer(&host.about().hypervisor)))
        .with("zos.system.node_features_get", question(host, |host, _| answer(&features(host))))
        .with("zos.storage.pools", question(host, |host, _| answer(&host.pools())))
        .with("zos.network.interfaces", question(host, |host, _| answer(&host.about().interfaces)))
        .with(
            "zos.network.has_ipv6",
            question(host, |host, _| match host.about().has_ipv6 {
                true => answer(&true),
                false => Err(CommandError::new("no public ipv6 found")),
            }),
        )
        .with(
            "zos.network.list_wg_ports",
            question(host, |host, _| {
                let mut ports = host.about().wireguard_ports;
                ports.extend(OWN_PORTS);
                answer(&ports)
            }),
        )
}

/// A command that is answered at once, from `subject`.
fn question<T: ?Sized + Send + Sync + 'static>(
    subject: &Arc<T>,
    ask: impl Fn(&T, &Request) -> Outcome + Send + Sync + 'static,
) -> Command {
    let subject = Arc::clone(subject);
    let ask = Arc::new(ask);
    Command::new(move |request: Request| {
        let (subject, ask) = (Arc::clone(&subject), Arc::clone(&ask));
        async move { ask(&subject, &request) }
    })
}

/// Names by which clients choose what to reserve.
fn features(host: &(impl Host + ?Sized)) -> Vec<&'static str> {
    let types = host.supported().iter().map(|kind| kind.name());
    types.chain(host.extra_features().iter().copied()).collect()
}

fn owner(request: &Request) -> TwinId {
    TwinId(request.source.number())
}

fn found(value: Option<impl Serialize>) -> Outcome {
    answer(&value.ok_or_else(|| CommandError::new("deployment not found"))?)
}

fn contract(request: &Request) -> Result<ContractId, CommandError> {
    let number = member(request, "contract_id")?;
    let number = number.as_u64().ok_or_else(|| wrong("contract_id", "a number"))?;
    Ok(ContractId(number))
}

/// A member of the payload. As on existing nodes, its name may be in any case.
fn member(request: &Request, name: &str) -> Result<Value, CommandError> {
    let payload: Value = serde_json::from_slice(&request.payload).map_err(CommandError::new)?;
    let Value::Object(members) = payload else { return Err(wrong("the payload", "an object")) };
    let found = members.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
    Ok(found.map(|(_, value)| value).unwrap_or_default())
}

fn wrong(what: &str, expected: &str) -> CommandError {
    CommandError::new(format!("{what} is not {expected}"))
}

#[cfg(test)]
mod tests;
