//! `flist pack`: a directory becomes an image and blocks in stores.

use std::num::NonZeroUsize;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use flist::format::Image;
use flist::format::fl::{self, Secrets};
use flist::pack::{PackOptions, pack};
use flist::scan::{ScanOptions, scan};
use flist::store::route::{StoreOptions, Stores};
use flist::store::url::Target;

use super::stores;
use super::terminal::Terminal;

/// Pack a directory into an image; its contents go to the stores
#[derive(Args)]
pub(crate) struct PackArguments {
    /// The directory
    directory: PathBuf,
    #[command(flatten)]
    output: OutputArguments,
    /// Stay on the directory's own file system
    #[arg(long)]
    one_file_system: bool,
    /// Leave out this path, relative to the directory, and all below it; may be repeated
    #[arg(long, value_name = "PATH")]
    exclude: Vec<PathBuf>,
}

/// What every subcommand that makes an image asks for.
#[derive(Args)]
pub(crate) struct OutputArguments {
    /// The image file to write
    #[arg(short, long, value_name = "IMAGE")]
    pub(crate) output: PathBuf,
    /// Where blocks go: dir://PATH, zdb://HOST:PORT/NAMESPACE or s3://KEY:SECRET@HOST:PORT/BUCKET;
    /// repeat it for copies, or for shards with `00-7f=URL`, `80-ff=URL`
    #[arg(short, long = "store", value_name = "URL", required = true)]
    pub(crate) stores: Vec<String>,
    /// Keep passwords in the image's routes (readers of the image can see them)
    #[arg(long)]
    pub(crate) no_strip_password: bool,
    /// Put a tag into the image; may be repeated
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = parse_tag)]
    pub(crate) tags: Vec<(String, String)>,
    /// Worker threads; by default one for each core
    #[arg(long, value_name = "COUNT")]
    pub(crate) workers: Option<NonZeroUsize>,
    /// Do not wait until the blocks are safe from a power loss
    #[arg(long)]
    pub(crate) no_sync: bool,
}

/// Runs the command.
pub(crate) fn run(arguments: &PackArguments) -> anyhow::Result<()> {
    let progress = Terminal::new()?;
    let exclude = arguments.exclude.iter().map(|path| relative(path)).collect::<Result<_, _>>()?;
    let options = ScanOptions { one_file_system: arguments.one_file_system, exclude };
    arguments.check_outside(&options)?;
    let stores = arguments.output.open_stores()?;
    let (tree, contents) = scan(&arguments.directory, &options, &progress)?;
    tracing::debug!(inodes = tree.inodes().len(), "listed");
    let image = pack(tree, &contents, &stores, &arguments.output.pack_options(), &progress)?;
    tracing::debug!("stored");
    arguments.output.write(image, &progress)
}

impl PackArguments {
    /// An image that packs its own store would never come to an end.
    fn check_outside(&self, options: &ScanOptions) -> anyhow::Result<()> {
        let failed = || self.directory.display().to_string();
        let directory = self.directory.canonicalize().with_context(failed)?;
        for route in stores::routes(&self.output.stores)? {
            let Target::Dir(path) = route.url.target() else { continue };
            let Ok(path) = std::path::absolute(path) else { continue };
            let path = path.canonicalize().unwrap_or(path);
            let Ok(inside) = path.strip_prefix(&directory) else { continue };
            if !inside.ancestors().any(|path| options.exclude.contains(path)) {
                bail!(
                    "{}: a store inside the directory that is packed; move it or --exclude it",
                    route.url
                );
            }
        }
        Ok(())
    }
}

impl OutputArguments {
    /// Opens all stores for writing, so that a mistake shows before work begins.
    pub(crate) fn open_stores(&self) -> anyhow::Result<Stores> {
        let folder = self.output.parent().filter(|folder| !folder.as_os_str().is_empty());
        if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
            bail!("{}: no such folder to write the image into", folder.display());
        }
        let routes = stores::routes(&self.stores)?;
        Ok(Stores::open_for_writing(&routes, &StoreOptions::default())?)
    }

    pub(crate) const fn pack_options(&self) -> PackOptions {
        PackOptions { workers: self.workers, skip_sync: self.no_sync }
    }

    /// Writes the image with the tags asked for, and tells what it is.
    pub(crate) fn write(&self, mut image: Image, progress: &Terminal) -> anyhow::Result<()> {
        image.tags.extend(self.tags.iter().cloned());
        let secrets = if self.no_strip_password { Secrets::Keep } else { Secrets::Strip };
        fl::write_with(&image, &self.output, secrets)?;
        progress.finish();
        let size = std::fs::metadata(&self.output)?.len();
        println!(
            "{}: {} inodes, {size} bytes of metadata",
            self.output.display(),
            image.tree.inodes().len()
        );
        Ok(())
    }
}

/// A path of names only, as the scan compares them.
fn relative(path: &Path) -> anyhow::Result<PathBuf> {
    let is_name = |part: &Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if !path.components().all(|part| is_name(&part)) {
        bail!("--exclude {}: must be relative to the directory, without `..`", path.display());
    }
    Ok(path.components().filter(|part| matches!(part, Component::Normal(_))).collect())
}

fn parse_tag(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("a tag looks like KEY=VALUE".to_owned()),
    }
}
