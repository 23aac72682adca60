//! `flist mount`: look into an image as into any directory.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use flist::cache::{Cache, Config, LocalSource};
use flist::format::{Image, Route};
use flist::mount::Mount;
use flist::store::fetch::{Fetcher, RetryOptions};
use flist::store::route::{StoreOptions, Stores};
use flist_view::block::BlockSource;
use flist_view::cache_client::CacheClient;
use flist_view::index::Index;
use flist_view::view::FlistView;
use rustix::event::{PollFd, PollFlags, poll};

use super::stores;

/// How the line begins that says that the image is mounted.
const MOUNTED: &str = "mounted ";

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
    /// blocks as in `00-7f=URL`. With --cached, it is for the daemon to reach and to allow
    #[arg(short, long = "store", value_name = "URL")]
    stores: Vec<String>,
    /// Where fetched blocks and indexes of images are kept [default: /var/cache/flist for root,
    /// ~/.cache/flist for others]
    #[arg(long, value_name = "DIRECTORY")]
    cache: Option<PathBuf>,
    /// Have the blocks from the `flist cached` that listens here, instead of fetching them
    #[arg(long, value_name = "SOCKET", conflicts_with = "cache")]
    cached: Option<PathBuf>,
    /// Return once the image is mounted, and serve it in the background until it is unmounted
    #[arg(long)]
    daemon: bool,
}

/// Runs the command: returns when the mount has ended, or with `--daemon` when it has begun.
pub(crate) fn run(arguments: &MountArguments) -> anyhow::Result<()> {
    if arguments.daemon {
        return start_daemon();
    }
    let Opened { index, source, cache } = match &arguments.cached {
        Some(socket) => connect(arguments, socket)?,
        None => open(arguments)?,
    };
    // A signal from here on finds somebody to undo the mount.
    let signals = signals()?;
    let name = arguments.image.display().to_string();
    let mount = Mount::new(FlistView::new(index, source), &name, &arguments.mount_point)?;
    println!("{MOUNTED}{name} on {}", mount.mount_point().display());
    wait(&mount, &signals)?;
    mount.unmount()?;
    if let Some(cache) = cache {
        cache.flush();
    }
    Ok(())
}

/// What is to be served, and from where.
struct Opened {
    index: Arc<Index>,
    source: Arc<dyn BlockSource>,
    /// A cache of our own, if it is one.
    cache: Option<Arc<Cache>>,
}

/// Blocks from the node's cache process.
fn connect(arguments: &MountArguments, socket: &Path) -> anyhow::Result<Opened> {
    // The daemon's working directory is another one.
    let image =
        arguments.image.canonicalize().with_context(|| arguments.image.display().to_string())?;
    let (client, index) = CacheClient::connect(socket, &image, &arguments.stores)
        .with_context(|| socket.display().to_string())?;
    Ok(Opened { index: Arc::new(index), source: Arc::new(client), cache: None })
}

/// Blocks from a cache of our own.
fn open(arguments: &MountArguments) -> anyhow::Result<Opened> {
    let cache = match &arguments.cache {
        Some(cache) => cache.clone(),
        None => default_cache()?,
    };
    let indexes = cache.join("indexes");
    let index = flist::index::open_image(&indexes, &arguments.image)?;
    let routes = routes(arguments, &indexes, index.image_hash())?;
    let cipher = index.cipher();
    let blocks = Arc::new(Cache::open(&cache.join("blocks"), Config::default())?);
    let stores = Stores::new(&routes, &StoreOptions::default());
    let fetcher = Arc::new(Fetcher::new(stores, cipher, RetryOptions::default()));
    let source = LocalSource::new(Arc::clone(&blocks), fetcher, cipher);
    Ok(Opened { index: Arc::new(index), source: Arc::new(source), cache: Some(blocks) })
}

/// Begins again as a process of its own that survives this one, and waits until that has mounted or
/// given up.
fn start_daemon() -> anyhow::Result<()> {
    let arguments = std::env::args_os().skip(1).filter(|argument| argument != "--daemon");
    let mut child = Command::new(std::env::current_exe().context("our own program")?)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    if line.starts_with(MOUNTED) {
        print!("{line}");
        return Ok(());
    }
    // It has said on standard error what went wrong; its exit code is ours.
    std::process::exit(child.wait()?.code().unwrap_or(1))
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
