//! `vmm balloon`: how much memory a guest gives back.

use std::path::PathBuf;

use clap::Args;
use vmm_spec::Size;
use vmm_spec::api::{BalloonInfo, BalloonTarget};

use crate::client::Client;
use crate::exit::Usage;
use crate::output;

const MIB: u64 = 1 << 20;

/// Ask a guest to give memory back, or show how much it has given
///
/// The guest takes its time, and may give less than it is asked for.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct BalloonArguments {
    /// The VM's API socket
    socket: PathBuf,
    /// Memory that the guest is to give back; 0 lets it have all again
    #[arg(value_name = "SIZE")]
    target: Option<Size>,
    /// Print JSON: {target_mib, actual_mib}
    #[arg(long, conflicts_with = "target")]
    json: bool,
}

const AFTER_HELP: &str = "\
Examples:
  vmm balloon /run/vm/a.sock          what was asked for, what was given
  vmm balloon /run/vm/a.sock 256M     ask for 256 MiB
  vmm balloon /run/vm/a.sock 0        give all back";

pub(crate) fn run(arguments: &BalloonArguments) -> anyhow::Result<()> {
    let client = Client::new(&arguments.socket);
    let Some(target) = arguments.target else {
        let info: BalloonInfo = client.get("/balloon")?;
        if arguments.json {
            return output::print_json(&info);
        }
        let [asked, given] = [info.target_mib, info.actual_mib].map(Size::from_mib);
        return Ok(output::print(&format!("asked for {asked}, given {given}\n"))?);
    };
    if !target.bytes().is_multiple_of(MIB) {
        return Err(Usage(format!("{target}: a balloon is made of whole MiB")).into());
    }
    let body = BalloonTarget { target_mib: target.bytes() / MIB };
    client.send("PUT", "/balloon", &body, &[])?;
    Ok(())
}
