//! `flist unpack`: an image becomes a directory.

use std::path::PathBuf;

use clap::Args;
use flist::format::Image;
use flist::unpack::{UnpackOptions, unpack};

use super::stores::SourceArguments;
use super::terminal::Terminal;

/// Unpack an image into a directory
///
/// The directory appears when it is whole: until then everything is in DIRECTORY.partial-XXXX beside
/// it, which is removed after an error or Ctrl-C. As root, owners and devices are made as they were.
#[derive(Args)]
pub(crate) struct UnpackArguments {
    /// The image, `.fl` or `.flist`
    image: PathBuf,
    /// Absent or empty
    directory: PathBuf,
    #[command(flatten)]
    source: SourceArguments,
    /// Do not wait until the directory is safe from a power loss
    #[arg(long)]
    no_sync: bool,
}

/// Runs the command.
pub(crate) fn run(arguments: &UnpackArguments) -> anyhow::Result<()> {
    let progress = Terminal::new()?;
    let image = Image::open(&arguments.image)?;
    let fetcher = arguments.source.fetcher(&image, &arguments.image)?;
    let options = UnpackOptions { workers: arguments.source.workers, skip_sync: arguments.no_sync };
    let report = unpack(&image, &fetcher, &arguments.directory, &options, &progress)?;
    progress.finish();
    println!(
        "{}: {} entries, {} bytes",
        arguments.directory.display(),
        report.entry_count,
        report.bytes
    );
    Ok(())
}
