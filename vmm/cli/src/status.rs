//! `vmm status`: what a VM is and does.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use vmm_spec::OutputSpec;
use vmm_spec::api::VmInfo;

use crate::client::Client;
use crate::output;

/// Show what a VM is and does
#[derive(Args)]
pub(crate) struct StatusArguments {
    /// The VM's API socket
    socket: PathBuf,
    /// Print JSON: the VmInfo of `GET /openapi.json`, with the description that can start the VM again
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &StatusArguments) -> anyhow::Result<()> {
    let info = Client::new(&arguments.socket).info()?;
    if arguments.json {
        return output::print_json(&info);
    }
    Ok(output::print(&show(&info))?)
}

/// One line a fact; devices as the options that make them.
fn show(info: &VmInfo) -> String {
    let spec = &info.spec;
    let uptime = output::duration(Duration::from_millis(info.uptime_ms));
    let mut lines = vec![
        ("state", info.state.name().to_owned()),
        ("process", format!("{} (vmm {})", info.pid, info.vmm_version)),
        ("uptime", format!("{uptime}, {} reboots, {} exits", info.reboots, info.exits)),
        ("cpus", spec.cpus.count.to_string()),
        ("memory", spec.memory.size.to_string()),
    ];
    if let Some(kernel) = &spec.kernel {
        lines.push(("kernel", kernel.display().to_string()));
    }
    lines.extend(spec.disks.iter().map(|disk| ("disk", disk.to_options())));
    lines.extend(spec.nets.iter().map(|net| ("net", net.to_options())));
    lines.extend(spec.fs.iter().map(|fs| ("fs", fs.to_options())));
    lines.extend(spec.vsock.iter().map(|vsock| ("vsock", vsock.to_options())));
    lines.extend(spec.balloon.iter().map(|balloon| ("balloon", balloon.to_options())));
    let (standing, missing): (Vec<_>, Vec<_>) = info.walls.iter().partition(|wall| wall.stands);
    if info.walls.is_empty() {
        lines.push(("jail", "none".to_owned()));
    } else {
        let names: Vec<&str> = standing.iter().map(|wall| wall.name.as_str()).collect();
        lines.push(("jail", names.join(", ")));
    }
    lines.extend(missing.iter().map(|w| ("no wall", format!("{}: {}", w.name, w.detail))));
    for (name, output, pty) in
        [("console", &spec.console, &info.console_pty), ("serial", &spec.serial, &info.serial_pty)]
    {
        match (output, pty) {
            (OutputSpec::Off, _) => {}
            (_, Some(pty)) => lines.push((name, format!("pty {}", pty.display()))),
            (output, None) => lines.push((name, output.to_options())),
        }
    }
    lines.iter().map(|(name, value)| format!("{name:9} {}\n", output::clean(value))).collect()
}
