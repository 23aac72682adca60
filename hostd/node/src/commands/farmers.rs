//! What the farmer may know of a node, and who administers the grid.

use std::sync::Arc;

use hostd_rmb::server::{Command, CommandError, Commands, Outcome, Request, json as answer};

use crate::host::Host;
use crate::node::Known;

/// Names of the same commands in newer and older clients.
const PREFIXES: [&str; 2] = ["zos.admin", "zos.network.admin"];

pub(super) fn commands(commands: Commands, host: &Arc<dyn Host>, known: &Arc<Known>) -> Commands {
    PREFIXES.into_iter().fold(commands, |commands, prefix| {
        let machine = Arc::clone(host);
        let interfaces = farmers(known, move || answer(&machine.hardware().cards));
        // A node has one card for everything.
        let unsupported = || farmers(known, || Err(CommandError::new("not supported")));
        commands
            .with(&format!("{prefix}.interfaces"), interfaces)
            .with(&format!("{prefix}.get_public_nic"), unsupported())
            .with(&format!("{prefix}.set_public_nic"), unsupported())
    })
}

/// A command for the farmer alone.
fn farmers(known: &Arc<Known>, ask: impl Fn() -> Outcome + Send + Sync + 'static) -> Command {
    let (known, ask) = (Arc::clone(known), Arc::new(ask));
    Command::new(move |request: Request| {
        let (known, ask) = (Arc::clone(&known), Arc::clone(&ask));
        async move {
            match known.is_farmer(request.source.number()) {
                true => ask(),
                false => Err(CommandError::new("unauthorized")),
            }
        }
    })
}
