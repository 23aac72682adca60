//! What other twins may ask of a node, by name: the commands of the grid (`reference: zero-os 3`).
//!
//! | commands | who may | where |
//! |---|---|---|
//! | `zos.deployment.…`, `zos.vm.…` | owners of what they name | `owners` |
//! | `zos.event.…` | owners of deployments | `events` |
//! | `zos.statistics.…`, `zos.system.…`, `zos.network.…`, `zos.storage.…`, `zos.perf.…`, `zos.gpu.…`, `zos.location.…` | everybody | `about` |
//! | `zos.admin.…` | the farmer, and who administers the grid | `farmers` |
//! | `zos.debug.…` | who administers the grid | `debug` |
//!
//! `COMMANDS.md` beside this crate describes those that existing nodes do not have.
//!
//! Where clients use different names for the same, each is there. There is no shell, and nothing that
//! can be used as one.

mod about;
mod debug;
mod events;
mod farmers;
mod owners;

use std::sync::Arc;

use hostd_grid::{ContractId, Name, TwinId};
use hostd_rmb::server::{Command, CommandError, Commands, Outcome, Request, json as answer};
use serde::Serialize;
use serde_json::Value;

use crate::engine::Engine;
use crate::host::Host;
use crate::news::News;
use crate::node::Known;

/// All commands.
pub fn commands(
    engine: &Arc<Engine>,
    host: &Arc<dyn Host>,
    known: &Arc<Known>,
    news: &Arc<News>,
) -> Commands {
    let commands = owners::commands(Commands::default(), engine);
    let commands = events::commands(commands, engine, news);
    let commands = debug::commands(commands, engine, known);
    let commands = about::commands(commands, engine, host, known);
    farmers::commands(commands, host, known)
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

fn name(request: &Request, key: &str) -> Result<Name, CommandError> {
    let text = member(request, key)?;
    Ok(Name::new(text.as_str().ok_or_else(|| wrong(key, "a text"))?))
}

/// A member of the payload. As on existing nodes, its name may be in any case.
fn member(request: &Request, name: &str) -> Result<Value, CommandError> {
    let payload: Value = serde_json::from_slice(&request.payload).map_err(CommandError::new)?;
    let Value::Object(members) = payload else { return Err(wrong("the payload", "an object")) };
    let found = members.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
    Ok(found.map(|(_, value)| value).unwrap_or_default())
}

/// The same, of a payload that may be nothing at all.
fn optional(request: &Request, name: &str) -> Result<Value, CommandError> {
    match &*request.payload {
        b"" | b"null" => Ok(Value::Null),
        _ => member(request, name),
    }
}

fn wrong(what: &str, expected: &str) -> CommandError {
    CommandError::new(format!("{what} is not {expected}"))
}

#[cfg(test)]
mod tests;
