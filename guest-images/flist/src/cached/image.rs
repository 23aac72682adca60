//! An image that clients are bound to: its index, its stores, what is known of its first boot.
//!
//! Paths come from clients, who may hold the file open and change it while it is read. The index of
//! a hash must describe the file of that hash and no other, or one client could give another a wrong
//! tree: so an index is built from a private copy whose own bytes were hashed.

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use flist_view::block::{BlockCipher, BlockError, BlockId};
use flist_view::index::Index;
use rustix::fs::{Mode, OFlags};
use tempfile::NamedTempFile;

use super::indexer::Indexer;
use super::shelf;
use super::trace::{self, Recorder};
use crate::format::{Image, Route, image_hash};
use crate::index::{self, BuildError};
use crate::store::StoreError;
use crate::store::fetch::{Fetcher, RetryOptions};
use crate::store::route::{StoreOptions, Stores};
use crate::store::url::RouteSpec;

/// Largest image file, in bytes. An image of a million files has some 200 MB.
const IMAGE_SIZE_MAX: u64 = 4 << 30;

/// What a client asks to be bound to. Stores may hold secrets: no `Debug`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Binding {
    pub(super) path: PathBuf,
    pub(super) stores: Vec<Vec<u8>>,
}

/// An image with at least one client, or on its way to one.
pub(super) struct BoundImage {
    pub(super) binding: Binding,
    pub(super) hash: [u8; 32],
    pub(super) index: Index,
    pub(super) index_file: File,
    pub(super) index_directory: PathBuf,
    pub(super) counters: Counters,
    pub(super) pace: Pace,
    recorder: Mutex<Recorder>,
    /// There was a trace already.
    has_trace: bool,
    /// Routes given by the client, parsed; none for the image's own.
    routes: Vec<Route>,
    /// Made when a block is first missing: with a warm cache, nobody needs the image's routes.
    fetcher: Mutex<Option<Arc<Fetcher>>>,
}

/// How many workers an image's stores deserve: few until they have shown that they answer, one once
/// they keep a worker waiting.
pub(super) struct Pace(AtomicUsize);

/// What happened to one image's blocks.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) requests: AtomicU64,
    pub(super) hits: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) prefetched: AtomicU64,
}

/// Why an image can't be bound to.
#[derive(Debug, thiserror::Error)]
pub(super) enum ImageError {
    #[error("{}: {source}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("{}: {rule}", path.display())]
    Rule { path: PathBuf, rule: &'static str },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("a store's URL must be UTF-8")]
    StoreText,
    #[error("{0}")]
    Format(String),
    #[error(transparent)]
    Build(#[from] BuildError),
}

/// Workers for an image of which nothing is known yet.
const WORKERS_FIRST: usize = 2;
/// A fetch that takes longer has held up a worker.
const FETCH_TIME_QUICK: Duration = Duration::from_secs(2);

impl Default for Pace {
    fn default() -> Self {
        Self(AtomicUsize::new(WORKERS_FIRST))
    }
}

impl Pace {
    /// Workers that the image may have at once, at most `most`.
    pub(super) fn workers(&self, most: usize) -> usize {
        self.0.load(Ordering::Relaxed).min(most)
    }

    /// Takes note of a fetch that took `time`. Two that race leave one's verdict, which is as good.
    pub(super) fn note(&self, time: Duration, most: usize) {
        let workers = if time < FETCH_TIME_QUICK { self.workers(most) * 2 } else { 1 };
        self.0.store(workers.min(most), Ordering::Relaxed);
    }
}

impl BoundImage {
    /// Opens an image and its index, which is built if there is none yet.
    pub(super) fn open(binding: Binding, indexer: &Indexer) -> Result<Self, ImageError> {
        let routes = parse_routes(&binding.stores)?;
        let mut file = open_image(&binding.path)?;
        let (hash, index) = open_index(&mut file, &binding.path, indexer)?;
        let index_path = index::path_in(&indexer.directory, &hash);
        let index_file = File::open(&index_path)
            .map_err(|source| ImageError::Open { path: index_path, source })?;
        // Used now, for whoever looks for the longest unused.
        let _ = index_file.set_modified(SystemTime::now());
        let recorder = Recorder::new(index.block_count());
        Ok(Self {
            binding,
            hash,
            index,
            index_file,
            index_directory: indexer.directory.clone(),
            counters: Counters::default(),
            pace: Pace::default(),
            recorder: Mutex::new(recorder),
            has_trace: trace::load(&indexer.directory, &hash).is_some(),
            routes,
            fetcher: Mutex::default(),
        })
    }

    pub(super) fn cipher(&self) -> BlockCipher {
        self.index.cipher()
    }

    /// Whether the order of its first boot is known, so that it need not be seen again.
    pub(super) fn is_traced(&self) -> bool {
        self.has_trace || self.recorder().is_done()
    }

    pub(super) fn recorder(&self) -> MutexGuard<'_, Recorder> {
        self.recorder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whoever fetches this image's blocks. An error is not remembered: the file may come back.
    pub(super) fn fetcher(
        &self,
        id: BlockId,
        options: &StoreOptions,
    ) -> Result<Arc<Fetcher>, BlockError> {
        let mut fetcher = self.fetcher.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fetcher) = fetcher.as_ref() {
            return Ok(Arc::clone(fetcher));
        }
        let routes = if self.routes.is_empty() {
            self.own_routes().map_err(|error| BlockError::Unavailable {
                id,
                reason: format!("the image's routes can't be read: {error}"),
            })?
        } else {
            self.routes.clone()
        };
        let stores = Stores::new(&routes, options);
        let made = Arc::new(Fetcher::new(stores, self.cipher(), RetryOptions::default()));
        *fetcher = Some(Arc::clone(&made));
        Ok(made)
    }

    /// What the image says of its stores: kept beside its index, or in the image itself.
    fn own_routes(&self) -> Result<Vec<Route>, ImageError> {
        if let Some(routes) = index::open_routes(&self.index_directory, &self.hash) {
            return Ok(routes);
        }
        let mut file = open_image(&self.binding.path)?;
        let copy = private_copy(&mut file, &self.binding.path, &self.index_directory)?;
        Ok(parse(copy.path(), &self.binding.path)?.routes)
    }

    /// The fetcher, if a block was ever missing.
    pub(super) fn existing_fetcher(&self) -> Option<Arc<Fetcher>> {
        self.fetcher.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn parse_routes(stores: &[Vec<u8>]) -> Result<Vec<Route>, ImageError> {
    stores
        .iter()
        .map(|text| {
            let text = std::str::from_utf8(text).map_err(|_| ImageError::StoreText)?;
            Ok(Route::from(RouteSpec::parse(text)?))
        })
        .collect()
}

/// Opens a regular file, and nothing else that a hostile path may name: pipes would be waited for, and
/// some devices act when they are opened.
fn open_image(path: &Path) -> Result<File, ImageError> {
    let error = |source: io::Error| ImageError::Open { path: path.to_path_buf(), source };
    let rule = |rule| Err(ImageError::Rule { path: path.to_path_buf(), rule });
    let place: File = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| error(errno.into()))?
        .into();
    let metadata = place.metadata().map_err(error)?;
    if !metadata.is_file() {
        return rule("an image must be a regular file");
    }
    if metadata.len() > IMAGE_SIZE_MAX {
        return rule("an image must not be larger than 4 GiB");
    }
    File::open(format!("/proc/self/fd/{}", place.as_raw_fd())).map_err(error)
}

/// The index of what the file holds now. The path is not opened again: by now it may name something
/// that never answers.
fn open_index(
    file: &mut File,
    path: &Path,
    indexer: &Indexer,
) -> Result<([u8; 32], Index), ImageError> {
    let directory = &indexer.directory;
    let error = |source| ImageError::Open { path: path.to_path_buf(), source };
    let hash = image_hash(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())))
        .map_err(|error| ImageError::Format(error.to_string()))?;
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(error)?;
    if let Some(index) = index::open(directory, &hash)? {
        return Ok((hash, index));
    }
    let copy = private_copy(file, path, directory)?;
    let hash = image_hash(copy.path()).map_err(|error| ImageError::Format(error.to_string()))?;
    indexer.build(copy.path()).map_err(|error| renamed(&error, copy.path(), path))?;
    let rule = "its index was built, and is not there";
    let index = index::open(directory, &hash)?
        .ok_or_else(|| ImageError::Rule { path: path.to_path_buf(), rule })?;
    if let Err(error) = shelf::sweep(directory) {
        tracing::warn!(%error, "indexes are not swept up");
    }
    Ok((hash, index))
}

fn private_copy(
    file: &mut File,
    path: &Path,
    directory: &Path,
) -> Result<NamedTempFile, ImageError> {
    let error = |source| ImageError::Open { path: path.to_path_buf(), source };
    let builder = tempfile::Builder::new().prefix(".image-").tempfile_in(directory);
    let mut copy = builder.map_err(error)?;
    file.seek(SeekFrom::Start(0)).map_err(error)?;
    io::copy(&mut file.take(IMAGE_SIZE_MAX), copy.as_file_mut()).map_err(error)?;
    Ok(copy)
}

/// Reads the copy of an image.
fn parse(copy: &Path, path: &Path) -> Result<Image, ImageError> {
    Image::open(copy).map_err(|error| renamed(&error, copy, path))
}

/// An error about the copy of an image, as one about the image itself.
fn renamed(error: &dyn std::error::Error, copy: &Path, path: &Path) -> ImageError {
    let (text, path) = (error.to_string(), path.display().to_string());
    let text = text.replace(&copy.display().to_string(), &path);
    ImageError::Format(if text.contains(&path) { text } else { format!("{path}: {text}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_that_answer_get_more_workers_and_those_that_do_not_get_one() {
        let pace = Pace::default();
        assert_eq!(pace.workers(8), 2);
        for workers in [4, 8, 8] {
            pace.note(Duration::from_millis(5), 8);
            assert_eq!(pace.workers(8), workers);
        }
        pace.note(Duration::from_secs(30), 8);
        assert_eq!(pace.workers(8), 1);
        pace.note(Duration::from_millis(5), 8);
        assert_eq!(pace.workers(8), 2);
    }
}
