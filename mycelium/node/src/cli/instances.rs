//! `mycelium instances`: the identities of a process that has several.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use mycelium_node::instances::settings::InstancesFile;
use serde_json::{Value, json};

use crate::cli::http::{Client, encode};
use crate::cli::node::{Output, new_table, show, text};

/// See, add and remove the instances of a process that runs with --instances
#[derive(Args)]
#[command(after_help = "\
The file of --instances, and of `add`:
  [[instance]]
  name = \"network-7\"                # letters, digits, dots, dashes, underscores
  key_file = \"/var/lib/mycelium/7.key\"
  namespace = \"n7\"                  # by name or path; without it, that of the process
  tun_name = \"my0\"                  # without it, no device
  peers = [\"tcp://192.0.2.1:9651\"]  # besides the other instances
  tcp_listen_port = 9651            # without it, nobody connects; as quic_, udp_, ws_, vsock_listen_port
More: threads, disable_direct, map_port, tun_mtu, peer_discovery, peer_discovery_port,
peer_discovery_interface, network_name, network_key_file, firewall_mark, topic_config, state_dir,
no_sessions, api_addr, jsonrpc_addr, metrics_api_address.
The first instance of the file is the one by whose peers the others reach everybody.

With --instance NAME, all other subcommands ask that instance: mycelium --instance network-7 status")]
pub(crate) struct InstancesArguments {
    #[command(subcommand)]
    command: InstancesCommand,
}

#[derive(Subcommand)]
enum InstancesCommand {
    /// Show all instances
    List(Output),
    /// Add the instances of a file, until the process ends
    Add {
        /// TOML file, as for --instances; - for standard input
        file: PathBuf,
        #[command(flatten)]
        output: Output,
    },
    /// Remove instances, with their devices
    Remove {
        /// As `list` shows them
        #[arg(required = true)]
        names: Vec<String>,
        #[command(flatten)]
        output: Output,
    },
}

/// How long an instance may take to start or to end.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) fn run(arguments: &InstancesArguments, client: &Client) -> anyhow::Result<()> {
    match &arguments.command {
        InstancesCommand::List(output) => show(&client.get("/instances")?, output, table),
        InstancesCommand::Add { file, output } => {
            let instances = read(file)?.instances;
            if instances.is_empty() {
                bail!("{}: there is no [[instance]] in it", file.display());
            }
            let mut added = Vec::new();
            for instance in instances {
                let body = serde_json::to_value(&instance)?;
                let answer =
                    client.ask("POST", "/instances", Some(&body), CHANGE_TIMEOUT)?.check()?;
                added.push(serde_json::from_slice::<Value>(&answer.body)?);
            }
            show(&Value::Array(added), output, table)
        }
        InstancesCommand::Remove { names, output } => {
            for name in names {
                let path = format!("/instances/{}", encode(name));
                client.ask("DELETE", &path, None, CHANGE_TIMEOUT)?.check()?;
            }
            if output.json {
                println!("{}", serde_json::to_string_pretty(&json!({ "removed": names }))?);
            }
            Ok(())
        }
    }
}

fn read(file: &Path) -> anyhow::Result<InstancesFile> {
    if file != Path::new("-") {
        return InstancesFile::read(file);
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("standard input")?;
    InstancesFile::parse(&text, file)
}

fn table(instances: &Value) -> String {
    let titles = ["INSTANCE", "STATE", "ADDRESS", "NAMESPACE", "DEVICE", "INSTANCES", "PEERS"];
    let mut table = new_table(&titles);
    let mut errors = Vec::new();
    for instance in instances.as_array().into_iter().flatten() {
        let fields =
            ["name", "state", "address", "namespace", "tunName", "joinedInstances", "alivePeers"];
        table.add_row(fields.map(|field| text(instance.get(field))));
        if let Some(error) = instance["error"].as_str() {
            errors.push(format!("\n{}: {error}", text(instance.get("name"))));
        }
    }
    format!("{table}{}", errors.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_is_said_below_the_table() {
        let shown = table(&json!([
            { "name": "host", "state": "running", "address": "400::1", "joinedInstances": 1 },
            { "name": "n7", "state": "failed", "error": "no namespace" },
        ]));
        assert!(shown.contains("400::1") && shown.ends_with("\nn7: no namespace"), "{shown}");
    }
}
