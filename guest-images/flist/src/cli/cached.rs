//! `flist cached`: the node's block cache as a daemon, and a look at what it does.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use comfy_table::{Table, presets};
use flist::cache;
use flist::cached::{Config, Server};
use flist::store::policy::{AllowRule, RoutePolicy};
use flist_view::cache_client;
use rustix::process::{Resource, Rlimit};
use serde_json::Value;

/// Serve verified blocks of images to the VMMs and mounts of this node.
///
/// Clients connect to the socket, name an image and ask for its blocks; the daemon alone fetches,
/// verifies and writes them. It ends in good order on SIGTERM or Ctrl-C.
#[derive(Args)]
#[command(after_help = "\
Images name their own stores, and images are users'. So blocks are fetched only over ZDB, HTTP and S3,
and only from addresses that anybody could reach: not from folders or unix sockets of this node, nor
from its own, private, link-local or loopback addresses, nor through a proxy. --allow-route adds to
that, and may be repeated:
  ADDRESS[/BITS]   a network, such as 10.1.0.0/16; the node's own addresses each need a rule
  dir:///PATH      folders at and below PATH
  zdb:///PATH      unix sockets at and below PATH
  local            everything, for tests and development")]
pub(crate) struct CachedArguments {
    /// Unix socket to listen on (mode 0600), or to ask with --status
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,

    /// Directory of the cache; made if missing
    #[arg(long, value_name = "DIR", required_unless_present = "status")]
    cache: Option<PathBuf>,

    /// Directory of indexes and boot traces of images [default: indexes in the cache's directory]
    #[arg(long, value_name = "DIR", conflicts_with = "status")]
    index: Option<PathBuf>,

    /// Most bytes that the cache takes on disk, such as 500M or 10G
    #[arg(long, value_name = "SIZE", default_value = "10G", value_parser = parse_size)]
    size_max: u64,

    /// Bytes to leave free on the cache's file system
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = parse_size)]
    free_min: u64,

    /// What routes may lead to beyond addresses that anybody could reach; see below
    #[arg(long = "allow-route", value_name = "RULE", conflicts_with = "status")]
    allow_routes: Vec<AllowRule>,

    /// Show what the daemon behind the socket has done, and end
    #[arg(long, conflicts_with = "cache")]
    status: bool,

    /// With --status: print JSON
    #[arg(long, requires = "status")]
    json: bool,
}

/// Serves, or shows the status.
pub(crate) fn run(arguments: &CachedArguments) -> anyhow::Result<()> {
    match &arguments.cache {
        Some(cache) if !arguments.status => serve(arguments, cache),
        _ => show_status(&arguments.socket, arguments.json),
    }
}

fn serve(arguments: &CachedArguments, cache: &Path) -> anyhow::Result<()> {
    raise_descriptor_limit();
    let (stop, signalled) = UnixStream::pair().context("socket pair")?;
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::low_level::pipe::register(signal, signalled.try_clone()?)
            .context("signal handler")?;
    }
    let server = Server::new(Config {
        socket: arguments.socket.clone(),
        cache: cache.join("blocks"),
        index: arguments.index.clone().unwrap_or_else(|| cache.join("indexes")),
        // Ourselves, even when the file was replaced meanwhile.
        indexer: PathBuf::from("/proc/self/exe"),
        policy: RoutePolicy::restricted(arguments.allow_routes.clone()),
        bounds: cache::Config { size_max: arguments.size_max, free_min: arguments.free_min },
    })?;
    tracing::info!(socket = %arguments.socket.display(), "listening");
    Ok(server.run(stop.as_fd())?)
}

/// Segments and clients cost a descriptor each; the usual soft limit of 1024 is less than both.
fn raise_descriptor_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the limit on open files");
    }
}

fn show_status(socket: &Path, json: bool) -> anyhow::Result<()> {
    let text = cache_client::status(socket)
        .with_context(|| format!("no status from {}", socket.display()))?;
    if json {
        println!("{text}");
        return Ok(());
    }
    let status: Value = serde_json::from_str(&text).context("the status is not JSON")?;
    for section in ["cache", "pool"] {
        let fields = status.get(section).and_then(Value::as_object);
        for (name, value) in fields.into_iter().flatten() {
            println!("{:<24} {value:>16}", format!("{section}.{name}"));
        }
    }
    for name in ["connections", "requests", "uptime_s"] {
        println!("{name:<24} {:>16}", status.get(name).unwrap_or(&Value::Null));
    }
    println!("{}", image_table(&status));
    Ok(())
}

fn image_table(status: &Value) -> Table {
    const COLUMNS: [&str; 8] =
        ["path", "clients", "requests", "hits", "prefetched", "fetched", "bad", "failed"];
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(COLUMNS);
    for image in status.get("images").and_then(Value::as_array).into_iter().flatten() {
        table.add_row(COLUMNS.map(|column| match image.get(column) {
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
            None => String::new(),
        }));
    }
    table
}

/// `4096`, `500M`, `10G`: bytes, with the binary suffixes K, M, G and T.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        suffix => return Err(format!("unknown suffix {suffix:?}: K, M, G or T")),
    };
    let number: u64 = digits.parse().map_err(|_| "a size is a whole number".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "too large".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_suffixes() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("10G"), Ok(10 << 30));
        assert_eq!(parse_size("1T"), Ok(1 << 40));
        for bad in ["", "G", "10g", "1.5G", "-1", "10GiB", "99999999T", "10 G"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
