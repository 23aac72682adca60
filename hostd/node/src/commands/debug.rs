//! What who administers the grid may look at when an owner asks for help: `zos.debug.deployment.…`.
//!
//! States, and what led to them; nothing of what is in a workload, since that is its owner's alone. Existing
//! nodes have a `health` beside these that runs what it is sent, which is a shell, and is not here.
//!
//! | command | payload | answer |
//! |---|---|---|
//! | `list` | `{"twin_id": 7}`, or nothing for all twins | `{"deployments": […]}` |
//! | `get` | `{"deployment": "7:99"}` | `{"deployment": …}` |
//! | `history` | the same | `{"deployment": "7:99", "transactions": […]}` |
//! | `info` | the same, and `{"workload": "vm"}` | one workload, and its part of the history |

use std::sync::Arc;

use hostd_grid::{ContractId, Name, TwinId};
use hostd_rmb::server::{Command, CommandError, Commands, Outcome, Request, json as answer};
use serde_json::{Value, json};

use super::{member, name, optional, wrong};
use crate::engine::{Engine, Overview};
use crate::node::Known;

/// Deployments of one answer.
const DEPLOYMENT_COUNT_MAX: usize = 1024;

/// How one of them is answered.
type Ask = fn(&Engine, &Request) -> Outcome;

pub(super) fn commands(commands: Commands, engine: &Arc<Engine>, known: &Arc<Known>) -> Commands {
    let asks: [(&str, Ask); 4] =
        [("list", list), ("get", get), ("history", history), ("info", info)];
    asks.into_iter().fold(commands, |commands, (title, ask)| {
        let (engine, known) = (Arc::clone(engine), Arc::clone(known));
        let command = Command::new(move |request: Request| {
            let (engine, known) = (Arc::clone(&engine), Arc::clone(&known));
            async move {
                match known.is_admin(request.source.number()) {
                    true => ask(&engine, &request),
                    false => Err(CommandError::new("unauthorized")),
                }
            }
        });
        commands.with(&format!("zos.debug.deployment.{title}"), command)
    })
}

fn list(engine: &Engine, request: &Request) -> Outcome {
    let twin = match optional(request, "twin_id")? {
        // Existing clients say 0 for all.
        Value::Null => 0,
        value => value.as_u64().ok_or_else(|| wrong("twin_id", "a number"))?,
    };
    let mut deployments = engine.overview();
    deployments.retain(|deployment| twin == 0 || u64::from(deployment.twin_id) == twin);
    deployments.truncate(DEPLOYMENT_COUNT_MAX);
    answer(&json!({ "deployments": deployments }))
}

fn get(engine: &Engine, request: &Request) -> Outcome {
    answer(&json!({ "deployment": deployment(engine, request)? }))
}

fn history(engine: &Engine, request: &Request) -> Outcome {
    let Overview { twin_id, contract_id, .. } = deployment(engine, request)?;
    let transactions = transactions(engine, twin_id, contract_id, |_| true);
    answer(&json!({
        "deployment": format!("{twin_id}:{contract_id}"), "transactions": transactions,
    }))
}

fn info(engine: &Engine, request: &Request) -> Outcome {
    let Overview { twin_id, contract_id, workloads, .. } = deployment(engine, request)?;
    let wanted = name(request, "workload")?;
    let found = workloads.into_iter().find(|workload| workload.name == wanted.as_str());
    let found = found.ok_or_else(|| CommandError::new("workload not found"))?;
    let transactions = transactions(engine, twin_id, contract_id, |name| *name == wanted);
    answer(&json!({
        "deployment": format!("{twin_id}:{contract_id}"),
        "workload": found,
        "transactions": transactions,
    }))
}

/// The deployment that is named as `twin:contract`.
fn deployment(engine: &Engine, request: &Request) -> Result<Overview, CommandError> {
    let text = member(request, "deployment")?;
    let parts = text.as_str().and_then(|text| text.split_once(':'));
    let numbers =
        parts.and_then(|(twin, contract)| Some((twin.parse().ok()?, contract.parse().ok()?)));
    let (twin, contract) = numbers.ok_or_else(|| wrong("deployment", "twin:contract"))?;
    let found = engine.overview_of(TwinId(twin), ContractId(contract));
    found.ok_or_else(|| CommandError::new("deployment not found"))
}

fn transactions(
    engine: &Engine,
    twin: u32,
    contract: u64,
    is_wanted: impl Fn(&Name) -> bool,
) -> Vec<Value> {
    let changes = engine.changes(TwinId(twin), ContractId(contract)).unwrap_or_default();
    let shown = changes.iter().enumerate().filter(|(_, change)| is_wanted(&change.name));
    shown
        .map(|(index, change)| {
            json!({
                "seq": index + 1,
                "type": change.data.kind,
                "name": change.name,
                "version": change.version,
                "state": change.result.state,
                "message": change.result.message,
                "time": change.result.created.0,
            })
        })
        .collect()
}
