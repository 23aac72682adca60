//! What everybody may know of a node.

use std::collections::BTreeMap;
use std::sync::Arc;

use hostd_chain::types::PublicConfig;
use hostd_rmb::server::{Command, CommandError, Commands, Request, json as answer};
use serde::Serialize;
use serde_json::{Value, json};

use super::{member, question};
use crate::engine::Engine;
use crate::host::{FirmwarePart, Host};
use crate::node::Known;

/// Ports that a node keeps for itself: gateways, mycelium, the planetary network, measurements.
const OWN_PORTS: [u16; 8] = [80, 443, 8082, 9651, 9943, 9944, 9945, 300];

pub(super) fn commands(
    commands: Commands,
    engine: &Arc<Engine>,
    host: &Arc<dyn Host>,
    known: &Arc<Known>,
) -> Commands {
    let commands = commands
        .with("zos.statistics.get", question(engine, |engine, _| answer(&engine.statistics())))
        .with("zos.storage.pools", question(host, |host, _| answer(&host.pools())))
        // Clients read `null` as none.
        .with("zos.gpu.list", question(host, |_, _| answer(&Value::Null)))
        .with("zos.location.get", question(known, |known, _| answer(&known.place)));
    let commands = about_system(commands, host, known);
    let commands = about_network(commands, engine, host, known);
    about_tests(commands, known)
}

fn about_system(commands: Commands, host: &Arc<dyn Host>, known: &Arc<Known>) -> Commands {
    #[derive(Serialize)]
    struct Version {
        zos: String,
        zinit: String,
    }
    commands
        .with(
            "zos.system.version",
            question(host, |host, _| {
                let about = host.about();
                answer(&Version { zos: about.version, zinit: about.supervisor })
            }),
        )
        .with("zos.system.hypervisor", question(host, |host, _| answer(&host.about().hypervisor)))
        .with("zos.system.node_features_get", question(host, |host, _| answer(&features(host))))
        .with("zos.system.dmi", question(host, |host, _| answer(&firmware(host))))
        .with("zos.system.diagnostics", diagnostics(host, known))
}

fn about_network(
    commands: Commands,
    engine: &Arc<Engine>,
    host: &Arc<dyn Host>,
    known: &Arc<Known>,
) -> Commands {
    commands
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
        .with(
            "zos.network.list_public_ips",
            question(engine, |engine, _| answer(&engine.public_addresses())),
        )
        .with(
            "zos.network.public_config_get",
            question(known, |known, _| match known.public_config() {
                Some(config) => answer(&public_config(&config)),
                None => Err(CommandError::new("public config not found")),
            }),
        )
}

/// Tests that a node makes of itself.
fn about_tests(commands: Commands, known: &Arc<Known>) -> Commands {
    commands
        .with("zos.perf.get_all", question(known, |known, _| answer(&known.results.all())))
        .with(
            "zos.perf.get",
            question(known, |known, request| {
                let name = member(request, "name")?;
                let found = name.as_str().and_then(|name| known.results.get(name));
                answer(&found.ok_or_else(|| CommandError::new("result not found"))?)
            }),
        )
}

/// Names by which clients choose what to reserve.
fn features(host: &(impl Host + ?Sized)) -> Vec<&'static str> {
    let types = host.supported().iter().map(|kind| kind.name());
    types.chain(host.extra_features().iter().copied()).collect()
}

/// What firmware says, in the shape of the tool that existing nodes read it with.
fn firmware(host: &(impl Host + ?Sized)) -> Value {
    let section = |part: FirmwarePart| {
        let properties: BTreeMap<_, _> = { part.properties.into_iter() }
            .map(|(name, value)| (name, json!({ "value": value })))
            .collect();
        json!({
            "handleline": format!("{} (type {})", part.title, part.kind),
            "typestr": part.title,
            "typenum": part.kind,
            "subsections": [{ "title": part.title, "properties": properties }],
        })
    };
    let sections: Vec<_> = host.hardware().firmware.into_iter().map(section).collect();
    json!({
        "tooling": { "aggregator": "hostd", "decoder": host.about().version },
        "sections": sections,
    })
}

fn public_config(config: &PublicConfig) -> Value {
    let (ipv6, gw6) = config.ip6.as_ref().map_or(("", ""), |ip| (ip.ip.as_str(), ip.gw.as_str()));
    json!({
        "type": "macvlan",
        "ipv4": config.ip4.ip.as_str(), "gw4": config.ip4.gw.as_str(), "ipv6": ipv6, "gw6": gw6,
        "domain": config.domain.as_ref().map_or("", |domain| domain.as_str()),
    })
}

/// How the node is: its parts for everybody, and the rest for the farmer.
fn diagnostics(host: &Arc<dyn Host>, known: &Arc<Known>) -> Command {
    let (host, known) = (Arc::clone(host), Arc::clone(known));
    Command::new(move |request: Request| {
        let (host, known) = (Arc::clone(&host), Arc::clone(&known));
        async move {
            let diagnosis = host.diagnose().await;
            let mut modules = known.modules();
            modules.extend(diagnosis.modules);
            let is_ok = modules.values().all(|module| module.error.is_empty());
            let mut shown = json!({
                "system_status_ok": is_ok, "modules": modules, "healthy": is_ok,
            });
            if known.is_farmer(request.source.number()) {
                shown["details"] = Value::Object(diagnosis.details);
            }
            answer(&shown)
        }
    })
}
