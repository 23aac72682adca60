//! What owners do with their deployments.

use std::sync::Arc;

use bytes::Bytes;
use hostd_grid::limits::DEPLOYMENT_SIZE_MAX;
use hostd_rmb::server::{Command, CommandError, Commands, Request, json as answer};

use super::{contract, found, name, owner, question};
use crate::engine::Engine;
use crate::host::MachineAction;

pub(super) fn commands(commands: Commands, engine: &Arc<Engine>) -> Commands {
    let commands = writing(commands, engine);
    let commands = machines(commands, engine);
    commands
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
        .with(
            "zos.network.list_private_ips",
            question(engine, |engine, request| {
                let network = name(request, "network_name")?;
                answer(&engine.private_addresses(owner(request), &network))
            }),
        )
}

/// Commands that take a whole deployment.
fn writing(commands: Commands, engine: &Arc<Engine>) -> Commands {
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
    let trying = Arc::clone(engine);
    let validate = Command::new(move |request: Request| {
        let engine = Arc::clone(&trying);
        async move {
            let trial = engine.validate(owner(&request), &request.payload).await;
            answer(&trial.map_err(CommandError::new)?)
        }
    });
    let delete = Command::new(|_| async {
        let reason = "deletion over the api is disabled, please cancel your contract instead";
        Err(CommandError::new(reason))
    });
    commands
        .with("zos.deployment.deploy", deploy.once().payload_size_max(DEPLOYMENT_SIZE_MAX))
        .with("zos.deployment.update", update.once().payload_size_max(DEPLOYMENT_SIZE_MAX))
        .with("zos.deployment.validate", validate.payload_size_max(DEPLOYMENT_SIZE_MAX))
        .with("zos.deployment.delete", delete)
}

/// Commands about machines: `{"contract_id": 5, "name": "vm"}`.
fn machines(commands: Commands, engine: &Arc<Engine>) -> Commands {
    let looking = Arc::clone(engine);
    let console = Command::new(move |request: Request| {
        let engine = Arc::clone(&looking);
        async move {
            let (contract, name) = (contract(&request)?, name(&request, "name")?);
            let console = engine.console(owner(&request), contract, &name).await;
            answer(&console.map_err(CommandError::new)?)
        }
    });
    let commands = commands.with("zos.vm.console", console);
    [
        ("zos.vm.start", MachineAction::Start),
        ("zos.vm.stop", MachineAction::Stop),
        ("zos.vm.restart", MachineAction::Restart),
    ]
    .into_iter()
    .fold(commands, |commands, (title, action)| {
        let engine = Arc::clone(engine);
        let command = Command::new(move |request: Request| {
            let engine = Arc::clone(&engine);
            async move {
                let (contract, name) = (contract(&request)?, name(&request, "name")?);
                let done = engine.control(owner(&request), contract, &name, action).await;
                done.map(|()| Bytes::new()).map_err(CommandError::new)
            }
        });
        commands.with(title, command.once())
    })
}
