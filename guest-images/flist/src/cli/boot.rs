//! `flist boot`: what a node boots an image with.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use flist_view::cache_client::CacheClient;
use flist_view::view::FlistView;

use super::terminal::print;

/// Say how an image boots, and take its kernel out of it
///
/// Asks the node's cache process (`flist cached`) for the index and the blocks. Prints JSON: `kind` is
/// "container" (the image has no kernel), "kernel" (its own, with the names of `kernel` and `initramfs` in
/// the folder), or "disk" (/image.raw, with its `size`).
#[derive(Args)]
pub(crate) struct BootArguments {
    /// The image, `.fl` or `.flist`, as the cache process sees it
    image: PathBuf,
    /// Socket of the cache process
    #[arg(long, value_name = "SOCKET")]
    cache: PathBuf,
    /// Folder for the kernel
    #[arg(long, value_name = "DIR")]
    into: PathBuf,
    /// Longest time for all of it, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    time_max: u64,
}

/// Runs the command.
pub(crate) fn run(arguments: &BootArguments) -> anyhow::Result<()> {
    end_after(Duration::from_secs(arguments.time_max));
    let (client, index) = CacheClient::connect(&arguments.cache, &arguments.image, &[])
        .with_context(|| arguments.image.display().to_string())?;
    let view = FlistView::new(Arc::new(index), Arc::new(client));
    let boot = flist::boot::look(&view, &arguments.into)?;
    Ok(print(&(serde_json::to_string(&boot)? + "\n"))?)
}

/// Ends the process when it takes too long: each block has its own limit, and there may be many.
pub(super) fn end_after(time_max: Duration) {
    std::thread::spawn(move || {
        std::thread::sleep(time_max);
        let reason = anyhow::anyhow!("not done within {} s", time_max.as_secs());
        let _: ExitCode = super::exit::report(&reason);
        std::process::exit(1);
    });
}
