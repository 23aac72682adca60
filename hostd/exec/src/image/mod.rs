//! What machines boot from: images that users name by address, each fetched once and kept by its hash.
//!
//! ```text
//!   address ── flist fetch ──> FOLDER/HASH ── flist boot ──> HASH.boot/ kernel, initramfs, boot.json
//!                  │ MD5 as known: no download       │
//!                  └─ FOLDER/urls/SHORT.json         └── index and blocks: flist cached (supervised)
//! ```
//!
//! An image and the hub behind its address are strangers'. What reads them is always another process,
//! bounded in time, memory and bytes: `flist fetch` and `flist boot` as short-lived children, and the
//! block cache `flist cached` as a service, which alone fetches blocks. What a failure says of itself
//! reaches the user. The image of a whole disk is written to one of the owner's by `flist write-disk`.
//!
//! A machine keeps the hash that it first booted from ([`Images::pinned`]); the address is asked again
//! only for a new machine.

mod child;
mod store;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use supervise::client::ClientError;
use supervise::{Client, Log, Policy, Program};

use crate::kept::{read_json, write_whole};
use crate::locks::Locks;
use store::Known;

/// How long it may take, and bytes of its file, when somebody only wants to know whether an image can be had.
const EXAMINE_TIME_MAX: Duration = Duration::from_secs(30);
const EXAMINE_SIZE_MAX: u64 = 64 << 20;
/// Longest time for writing a whole disk, which fetches all of it.
const WRITE_TIME_MAX: Duration = Duration::from_secs(3600);
/// The service that serves blocks, as the supervisor calls it.
const CACHED: &str = "flist-cached";
/// Bytes of its log, of which one older file is kept.
const LOG_SIZE_MAX: u64 = 1 << 20;
/// Bytes of the files of images that no machine uses.
const UNUSED_SIZE_MAX: u64 = 2 << 30;
/// Bytes of what is kept of how an image boots.
const BOOT_SIZE_MAX: u64 = 64 << 10;
/// What the cache leaves free on its file system.
const FREE_MIN: &str = "512M";

/// Where images are, and how much there may be of them.
#[derive(Debug, Clone)]
pub struct ImageConfig {
    /// Folder of images' files.
    pub folder: PathBuf,
    /// Folder of the block cache.
    pub cache: PathBuf,
    /// Where the block cache listens.
    pub socket: PathBuf,
    /// Folder of logs.
    pub logs: PathBuf,
    /// The `flist` program.
    pub flist: PathBuf,
    /// Bytes of one image's file.
    pub size_max: u64,
    /// Bytes of all cached blocks.
    pub cache_size_max: u64,
    /// What may be connected to beyond addresses that anybody could reach, as `flist cached` takes it.
    pub routes: Vec<String>,
    /// How long its programs may take.
    pub times: ImageTimes,
}

/// How long a store of images may keep a machine waiting. What takes longer has failed.
#[derive(Debug, Clone, Copy)]
pub struct ImageTimes {
    /// For fetching an image's file.
    pub fetch: Duration,
    /// For finding out how it boots, which may fetch a kernel block by block.
    pub boot: Duration,
    /// What a program that bounds itself may take beyond its bound.
    pub grace: Duration,
}

impl Default for ImageTimes {
    fn default() -> Self {
        let (fetch, boot) = (Duration::from_secs(120), Duration::from_secs(180));
        Self { fetch, boot, grace: Duration::from_secs(10) }
    }
}

/// An image that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// BLAKE2b-256 of its file, in hex.
    pub hash: String,
    /// Its file.
    pub path: PathBuf,
    /// How it boots.
    pub boot: ImageBoot,
}

/// How an image boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageBoot {
    /// With the node's kernel.
    Container,
    /// With its own.
    Kernel {
        /// The kernel's file.
        kernel: PathBuf,
        /// The initial file system's, if there is one.
        initramfs: Option<PathBuf>,
    },
    /// As a whole disk.
    Disk {
        /// Its bytes.
        size: u64,
    },
}

/// Why there is no image. The text reaches who named it.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// `flist` says no, or could not be run.
    #[error("image: {0}")]
    Flist(String),
    /// The folder can't be used.
    #[error("image: the node's store of images: {0}")]
    Io(#[from] io::Error),
    /// The block cache can't be started.
    #[error("image: the node's block cache: {0}")]
    Cache(#[from] ClientError),
    /// Somebody else is being answered.
    #[error("image: the node looks at another one just now")]
    Busy,
    /// It was there once.
    #[error("image: the one that this machine was made from is no longer there")]
    Gone,
}

impl ImageError {
    /// What is wrong with the image at `url`, for whoever named it: where its file is on the node is not
    /// their business.
    fn of(self, url: &str, path: &Path) -> Self {
        match self {
            Self::Flist(reason) => {
                let reason = reason.replace(&format!("{}: ", path.display()), "");
                Self::Flist(format!("{url}: {reason}"))
            }
            other => other,
        }
    }
}

/// What `flist fetch` prints.
#[derive(Deserialize)]
#[serde(tag = "result", rename_all = "lowercase")]
enum Fetched {
    Unchanged,
    Fetched { hash: String, md5: String },
}

/// What `flist boot` prints, and what is kept of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Boot {
    Container,
    Kernel { kernel: String, initramfs: Option<String> },
    Disk { size: u64 },
}

/// All images of a node.
#[derive(Debug)]
pub struct Images {
    config: ImageConfig,
    /// Addresses that are asked, and hashes that are looked at: each by one at a time.
    locks: Locks,
    /// Held by whoever only wants to know whether an image can be had.
    examining: Mutex<()>,
}

impl Images {
    /// Opens the folders, or makes them, and has the block cache run.
    ///
    /// # Errors
    /// The system or the supervisor says no.
    pub fn open(config: ImageConfig, supervisor: &Client) -> Result<Self, ImageError> {
        for folder in [&config.folder, &config.folder.join("urls"), &config.cache, &config.logs] {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        if let Some(folder) = config.socket.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        store::clean(&config.folder)?;
        let images = Self { config, locks: Locks::default(), examining: Mutex::new(()) };
        match supervisor.start(&images.cached(), &[]) {
            // Another version of it: machines find the new one again by themselves.
            Err(error) if error.is_conflict() => {
                supervisor.stop(CACHED, Duration::from_secs(5))?;
                supervisor.start(&images.cached(), &[])?;
            }
            other => drop(other?),
        }
        Ok(images)
    }

    /// The image at an address, as it is now.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn fetch(&self, url: &str) -> Result<Image, ImageError> {
        let hash = self.fetch_within(url, self.config.size_max, self.config.times.fetch)?;
        let _lock = self.locks.hold(hash.as_str());
        let path = self.path(&hash);
        self.with_boot(hash).map_err(|error| error.of(url, &path))
    }

    /// Whether an image can be had, for somebody who has not paid for it: only so much is fetched, and only
    /// one at a time.
    ///
    /// # Errors
    /// [`ImageError`]; [`ImageError::Busy`] says nothing about the image.
    pub fn examine(&self, url: &str) -> Result<(), ImageError> {
        let Ok(_one_at_a_time) = self.examining.try_lock() else { return Err(ImageError::Busy) };
        let size_max = self.config.size_max.min(EXAMINE_SIZE_MAX);
        self.fetch_within(url, size_max, EXAMINE_TIME_MAX).map(drop)
    }

    /// The hash of the image at an address, whose file is there then.
    fn fetch_within(
        &self,
        url: &str,
        size_max: u64,
        time_max: Duration,
    ) -> Result<String, ImageError> {
        let _lock = self.locks.hold(url);
        let known = store::known(&self.config.folder, url);
        let known = known.filter(|known| self.path(&known.hash).is_file());
        let arguments = self.fetch_arguments(url, known.as_ref(), size_max, time_max);
        let printed = self.run(&arguments, time_max)?;
        match (parse(&printed)?, known) {
            (Fetched::Unchanged, Some(known)) => Ok(known.hash),
            (Fetched::Unchanged, None) => Err(nonsense()),
            (Fetched::Fetched { hash, md5 }, _) => {
                if !store::is_hash(&hash) || !self.path(&hash).is_file() {
                    return Err(nonsense());
                }
                let known = Known { url: url.to_owned(), md5, hash: hash.clone() };
                store::remember(&self.config.folder, &known)?;
                Ok(hash)
            }
        }
    }

    /// The image with this hash, if it is there.
    ///
    /// # Errors
    /// [`ImageError::Gone`] if it is not.
    pub fn pinned(&self, hash: &str) -> Result<Image, ImageError> {
        if !store::is_hash(hash) || !self.path(hash).is_file() {
            return Err(ImageError::Gone);
        }
        let _lock = self.locks.hold(hash);
        self.with_boot(hash.to_owned())
    }

    /// Writes the disk of an image, which is one, to `disk`, which holds nothing but zeros.
    ///
    /// # Errors
    /// [`ImageError`]; part of it is written then.
    pub fn write_disk(&self, image: &Image, disk: &Path) -> Result<(), ImageError> {
        let mut arguments: Vec<OsString> = vec!["write-disk".into(), "--cache".into()];
        arguments.push(self.config.socket.clone().into());
        arguments.extend(["--to".into(), disk.into()]);
        arguments.extend(["--time-max".into(), WRITE_TIME_MAX.as_secs().to_string().into()]);
        arguments.push(image.path.clone().into());
        self.run(&arguments, WRITE_TIME_MAX).map(drop)
    }

    /// Removes images that are not among `used`, the oldest first, until what is left is not too much.
    ///
    /// # Errors
    /// The folder can't be read or written.
    pub fn prune(&self, used: &BTreeSet<String>) -> io::Result<()> {
        store::prune(&self.config.folder, used, UNUSED_SIZE_MAX)
    }

    /// Where the block cache listens.
    pub fn socket(&self) -> &Path {
        &self.config.socket
    }

    fn with_boot(&self, hash: String) -> Result<Image, ImageError> {
        let folder = self.config.folder.join(format!("{hash}.boot"));
        let kept = folder.join("boot.json");
        let boot = match read_json(&kept, BOOT_SIZE_MAX).ok().flatten() {
            Some(boot) => boot,
            None => {
                DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
                let printed = self.run(&self.boot_arguments(&hash), self.config.times.boot)?;
                let boot: Boot = parse(&printed)?;
                let text = serde_json::to_vec(&boot).map_err(io::Error::from)?;
                write_whole(&kept, &text)?;
                boot
            }
        };
        let boot = match boot {
            Boot::Container => ImageBoot::Container,
            Boot::Disk { size } => ImageBoot::Disk { size },
            // Names are ours: whatever was printed, nothing outside the folder is meant.
            Boot::Kernel { initramfs, .. } => ImageBoot::Kernel {
                kernel: folder.join("kernel"),
                initramfs: initramfs.map(|_| folder.join("initramfs")),
            },
        };
        Ok(Image { path: self.path(&hash), hash, boot })
    }

    fn fetch_arguments(
        &self,
        url: &str,
        known: Option<&Known>,
        size_max: u64,
        time_max: Duration,
    ) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["fetch".into(), "--into".into()];
        arguments.push(self.config.folder.clone().into());
        arguments.extend(["--size-max".into(), size_max.to_string().into()]);
        arguments.extend(["--time-max".into(), time_max.as_secs().to_string().into()]);
        for route in &self.config.routes {
            arguments.extend(["--allow-route".into(), route.into()]);
        }
        if let Some(known) = known {
            arguments.extend(["--known".into(), known.md5.clone().into()]);
        }
        // Whatever the address begins with, it is no option.
        arguments.extend(["--".into(), url.into()]);
        arguments
    }

    fn boot_arguments(&self, hash: &str) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["boot".into(), "--cache".into()];
        arguments.push(self.config.socket.clone().into());
        arguments.push("--into".into());
        arguments.push(self.config.folder.join(format!("{hash}.boot")).into());
        arguments
            .extend(["--time-max".into(), self.config.times.boot.as_secs().to_string().into()]);
        arguments.push(self.path(hash).into());
        arguments
    }

    fn run(&self, arguments: &[OsString], limit: Duration) -> Result<Vec<u8>, ImageError> {
        let grace = self.config.times.grace;
        child::run(&self.config.flist, arguments, (limit, grace)).map_err(ImageError::Flist)
    }

    fn cached(&self) -> Program {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let mut argv = vec![text(&self.config.flist), "cached".into()];
        argv.extend(["--socket".into(), text(&self.config.socket)]);
        argv.extend(["--cache".into(), text(&self.config.cache)]);
        argv.extend(["--size-max".into(), self.config.cache_size_max.to_string()]);
        argv.extend(["--free-min".into(), FREE_MIN.into()]);
        for route in &self.config.routes {
            argv.extend(["--allow-route".into(), route.clone()]);
        }
        let path = self.config.logs.join("flist-cached.log");
        let log = Some(Log { path, size_max: LOG_SIZE_MAX, kept: 1 });
        Program { log, policy: Policy::service(), ..Program::new(CACHED, argv) }
    }

    fn path(&self, hash: &str) -> PathBuf {
        self.config.folder.join(hash)
    }
}

fn parse<T: for<'a> Deserialize<'a>>(printed: &[u8]) -> Result<T, ImageError> {
    serde_json::from_slice(printed).map_err(|_| nonsense())
}

fn nonsense() -> ImageError {
    ImageError::Flist("the node's flist program says what makes no sense".to_owned())
}

#[cfg(test)]
mod tests;
