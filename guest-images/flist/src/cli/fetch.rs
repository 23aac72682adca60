//! `flist fetch`: an image's file from a hub, for a node.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use flist::download::{DownloadOptions, download};
use flist::store::policy::{AllowRule, RoutePolicy};

use super::terminal::print;

/// Fetch an image's file from a hub
///
/// For nodes, which fetch what their users name: only from addresses that anybody could reach and those
/// that --allow-route adds (as for `flist cached`), with limits on time and size. The file is named by its
/// hash. Prints JSON: `result` is "fetched", with `hash` (BLAKE2b-256), `md5` and `size`, or "unchanged" if
/// the hub's MD5 is the one that --known gives.
#[derive(Args)]
pub(crate) struct FetchArguments {
    /// Where the image is, such as https://hub.grid.tf/user/name.flist
    url: String,
    /// Folder for the file
    #[arg(long, value_name = "DIR")]
    into: PathBuf,
    /// MD5 of the image that is there already
    #[arg(long, value_name = "MD5")]
    known: Option<String>,
    /// Most bytes of the file
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = super::cached::parse_size)]
    size_max: u64,
    /// Longest time for all of it, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    time_max: u64,
    /// What may be connected to beyond addresses that anybody could reach; may be repeated
    #[arg(long = "allow-route", value_name = "RULE")]
    allow_routes: Vec<AllowRule>,
}

/// Runs the command.
pub(crate) fn run(arguments: &FetchArguments) -> anyhow::Result<()> {
    let options = DownloadOptions {
        time_max: Duration::from_secs(arguments.time_max),
        size_max: arguments.size_max,
        policy: RoutePolicy::restricted(arguments.allow_routes.clone()),
        known: arguments.known.clone(),
    };
    let downloaded = download(&arguments.url, &arguments.into, &options)?;
    Ok(print(&(serde_json::to_string(&downloaded)? + "\n"))?)
}
