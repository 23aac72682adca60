//! `flist clone`: the blocks of an image are copied to other stores.

use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use flist::clone::{clone_blocks, with_routes};
use flist::format::Image;
use flist::format::fl::{self, Secrets};
use flist::store::route::{StoreOptions, Stores};
use flist_view::block::BlockCipher;

use super::stores::{self, SourceArguments};
use super::terminal::Terminal;

/// Copy an image's blocks to other stores, verifying each
#[derive(Args)]
pub(crate) struct CloneArguments {
    /// The image, `.fl` or `.flist`
    image: PathBuf,
    #[command(flatten)]
    source: SourceArguments,
    /// Where the blocks go: dir://PATH, zdb://HOST:PORT/NAMESPACE or
    /// s3://KEY:SECRET@HOST:PORT/BUCKET; repeat it for copies, or for shards with `00-7f=URL`,
    /// `80-ff=URL`
    #[arg(long = "to", value_name = "URL", required = true)]
    to: Vec<String>,
    /// Write the image again, with these stores as its routes
    #[arg(short, long, value_name = "IMAGE")]
    output: Option<PathBuf>,
    /// Keep passwords in the new image's routes (readers of the image can see them)
    #[arg(long, requires = "output")]
    no_strip_password: bool,
}

/// Runs the command.
pub(crate) fn run(arguments: &CloneArguments) -> anyhow::Result<()> {
    let progress = Terminal::new()?;
    let image = Image::open(&arguments.image)?;
    if arguments.output.is_some() && image.cipher != BlockCipher::Aes256Gcm {
        bail!("{}: a legacy image can't be written again", arguments.image.display());
    }
    let fetcher = arguments.source.fetcher(&image, &arguments.image)?;
    let routes = stores::routes(&arguments.to)?;
    let target = Stores::open_for_writing(&routes, &StoreOptions::default())?;
    let report = clone_blocks(&image, &fetcher, &target, arguments.source.workers, &progress)?;
    if let Some(output) = &arguments.output {
        let secrets = if arguments.no_strip_password { Secrets::Keep } else { Secrets::Strip };
        fl::write_with(&with_routes(&image, routes), output, secrets)?;
    }
    progress.finish();
    println!(
        "{} blocks, {} bytes, to {}",
        report.block_count,
        report.bytes,
        target.names().join(", ")
    );
    Ok(())
}
