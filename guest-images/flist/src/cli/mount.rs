//! `flist mount`: look into an image as into any directory.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use flist::cache::{Cache, Config, LocalSource};
use flist::format::{Image, Route};
use flist::mount::Mount;
use flist::store::fetch::{Fetcher, RetryOptions};
use flist::store::route::{StoreOptions, Stores};
use flist_view::view::FlistView;
use rustix::event::{PollFd, PollFlags, poll};

use super::stores;

/// Mount an image read-only, until Ctrl-C or `umount`
///
/// Contents are fetched when they are read, verified, and kept in the cache. Set-id bits and device
/// files are shown but have no effect.
#[derive(Args)]
pub(crate) struct MountArguments {
    /// The image, `.fl` or `.flist`
    image: PathBuf,
    /// An existing directory
    mount_point: PathBuf,
    /// Where the blocks are, instead of where the image says; may be repeated, and take a range of
    /// blocks as in `00-7f=URL`
    #[arg(short, long = "store", value_name = "URL")]
    stores: Vec<String>,
    /// Where fetched blocks and indexes of images are kept [default: /var/cache/flist for root,
    /// ~/.cache/flist for others]
    #[arg(long, value_name = "DIRECTORY")]
    cache: Option<PathBuf>,
}

/// Runs the command: returns when the mount has ended.
pub(crate) fn run(arguments: &MountArguments) -> anyhow::Result<()> {
    let cache = match &arguments.cache {
        Some(cache) => cache.clone(),
        None => default_cache()?,
    };
    let indexes = cache.join("indexes");
    let index = Arc::new(flist::index::open_image(&indexes, &arguments.image)?);
    let routes = routes(arguments, &indexes, index.image_hash())?;
    let cipher = index.cipher();
    let blocks = Arc::new(Cache::open(&cache.join("blocks"), Config::default())?);
    let stores = Stores::new(&routes, &StoreOptions::default());
    let fetcher = Arc::new(Fetcher::new(stores, cipher, RetryOptions::default()));
    let source = Arc::new(LocalSource::new(blocks, fetcher, cipher));
    // A signal from here on finds somebody to undo the mount.
    let signals = signals()?;
    let view = FlistView::new(index, source);
    let name = arguments.image.display().to_string();
    let mount = Mount::new(view, &name, &arguments.mount_point)?;
    println!("mounted {name} on {}", mount.mount_point().display());
    wait(&mount, &signals)?;
    mount.unmount()?;
    Ok(())
}

/// `--store`, or what the image says.
fn routes(
    arguments: &MountArguments,
    indexes: &Path,
    image_hash: &[u8; 32],
) -> anyhow::Result<Vec<Route>> {
    if !arguments.stores.is_empty() {
        return stores::routes(&arguments.stores);
    }
    let routes = match flist::index::open_routes(indexes, image_hash) {
        Some(routes) => routes,
        None => Image::open(&arguments.image)?.routes,
    };
    if routes.is_empty() {
        bail!("{}: names no store; name one with --store URL", arguments.image.display());
    }
    Ok(routes)
}

fn default_cache() -> anyhow::Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/cache/flist"));
    }
    let absolute = |name| {
        std::env::var_os(name).map(PathBuf::from).filter(|path: &PathBuf| path.is_absolute())
    };
    absolute("XDG_CACHE_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".cache")))
        .map(|path| path.join("flist"))
        .context("no home directory to keep a cache in; name a directory with --cache")
}

/// Becomes readable when somebody asks us to stop.
fn signals() -> anyhow::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    for signal in
        [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP]
    {
        signal_hook::low_level::pipe::register(signal, theirs.try_clone()?)?;
    }
    Ok(ours)
}

/// Waits for a signal, or for the mount to end without us.
fn wait(mount: &Mount, signals: &UnixStream) -> anyhow::Result<()> {
    let ended = mount.ended();
    let mut descriptors =
        [PollFd::new(signals, PollFlags::IN), PollFd::from_borrowed_fd(ended, PollFlags::IN)];
    loop {
        match poll(&mut descriptors, None) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
