//! `vmm ps`: which VMs have their sockets in a directory.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde::Serialize;
use vmm_spec::api::VmInfo;

use crate::client::{Client, ClientError};
use crate::output;

/// How long each VM may take for an answer: one that hangs must not hide the others.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// List the VMs whose API sockets are in a directory
///
/// A VM that is there but doesn't answer within two seconds is `silent`. Sockets that nobody listens on
/// are named on standard error.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct PsArguments {
    /// The directory
    directory: PathBuf,
    /// Print JSON: a list of {socket, vm}, where vm is null for a silent VM
    #[arg(long)]
    json: bool,
}

const AFTER_HELP: &str = "\
Examples:
  vmm ps /run/vm
  vmm ps /run/vm --json | jq -r '.[].vm.state'";

/// A VM and where it listens.
#[derive(Serialize)]
struct Listed {
    socket: PathBuf,
    vm: Option<VmInfo>,
}

pub(crate) fn run(arguments: &PsArguments) -> anyhow::Result<()> {
    let mut listed = Vec::new();
    for socket in sockets(&arguments.directory)? {
        let client = Client::new(&socket).with_timeout(Some(ANSWER_TIMEOUT));
        match client.info() {
            Ok(info) => listed.push(Listed { socket, vm: Some(info) }),
            Err(ClientError::Silent(_)) => listed.push(Listed { socket, vm: None }),
            Err(ClientError::NobodyListens(_) | ClientError::Denied(_)) => {
                eprintln!("vmm: {}: no VM of ours listens there", socket.display());
            }
            // Gone meanwhile, or the socket of something else.
            Err(_) => {}
        }
    }
    if arguments.json {
        return output::print_json(&listed);
    }
    let rows: Vec<[String; 7]> = listed.iter().map(row).collect();
    let heading = ["NAME", "STATE", "PID", "CPUS", "MEMORY", "DEVICES", "UPTIME"];
    Ok(output::print(&output::table(heading, &rows))?)
}

/// Sockets in the directory, in order.
fn sockets(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    let mut sockets = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| directory.display().to_string())?;
        if entry.file_type().is_ok_and(|kind| kind.is_socket()) {
            sockets.push(entry.path());
        }
    }
    sockets.sort();
    Ok(sockets)
}

fn row(listed: &Listed) -> [String; 7] {
    let name = listed.socket.file_name().unwrap_or_default().to_string_lossy();
    let name = output::clean(name.strip_suffix(".sock").unwrap_or(&name));
    let Some(info) = &listed.vm else {
        return [name, "silent".into(), "-".into(), "-".into(), "-".into(), "-".into(), "-".into()];
    };
    let spec = &info.spec;
    [
        name,
        info.state.name().to_owned(),
        info.pid.to_string(),
        spec.cpus.count.to_string(),
        spec.memory.size.to_string(),
        devices(info),
        output::duration(Duration::from_millis(info.uptime_ms)),
    ]
}

/// `2 disks, 1 net, 1 fs`.
fn devices(info: &VmInfo) -> String {
    let spec = &info.spec;
    let count = |count: usize, one: &str, many: &str| match count {
        0 => None,
        1 => Some(format!("1 {one}")),
        _ => Some(format!("{count} {many}")),
    };
    let parts = [
        count(spec.disks.len(), "disk", "disks"),
        count(spec.nets.len(), "net", "nets"),
        count(spec.fs.len(), "fs", "fs"),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() { "-".to_owned() } else { parts.join(", ") }
}
