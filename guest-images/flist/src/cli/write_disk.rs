//! `flist write-disk`: the disk that is in an image, on a disk of the node's.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use flist_view::cache_client::CacheClient;
use flist_view::view::FlistView;

use super::boot::end_after;
use super::terminal::print;

/// Write the disk of an image (/image.raw) to a file or block device of nothing but zeros
///
/// Asks the node's cache process (`flist cached`) for the index and the blocks. What is written is on the
/// medium when it is done. Prints JSON: the disk's `size`.
#[derive(Args)]
pub(crate) struct WriteDiskArguments {
    /// The image, `.fl` or `.flist`, as the cache process sees it
    image: PathBuf,
    /// Socket of the cache process
    #[arg(long, value_name = "SOCKET")]
    cache: PathBuf,
    /// The disk: it is there, at least as large, and holds nothing
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// Longest time for all of it, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    time_max: u64,
}

/// Runs the command.
pub(crate) fn run(arguments: &WriteDiskArguments) -> anyhow::Result<()> {
    end_after(Duration::from_secs(arguments.time_max));
    let name = || arguments.to.display().to_string();
    let disk = OpenOptions::new().read(true).write(true).open(&arguments.to).with_context(name)?;
    let (client, index) = CacheClient::connect(&arguments.cache, &arguments.image, &[])
        .with_context(|| arguments.image.display().to_string())?;
    let view = FlistView::new(Arc::new(index), Arc::new(client));
    let size = flist::boot::write_disk(&view, &disk, &arguments.to)?;
    Ok(print(&format!("{{\"size\":{size}}}\n"))?)
}
