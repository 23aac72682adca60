//! Cloning: the blocks of an image are copied to other stores.
//!
//! Stored bytes are copied as they are, after they were fetched and verified like any block: a clone
//! can't spread damage. The image itself is not touched; whoever wants its routes changed writes it
//! anew with [`with_routes`].

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};

use flist_view::block::BlockRef;

use crate::block::Codec;
use crate::format::{Image, Route};
use crate::progress::{Cancelled, Progress};
use crate::store::fetch::{FetchError, Fetcher};
use crate::store::route::Stores;
use crate::store::{StoreError, store_name};
use crate::tree::Node;
use crate::workers;

/// What was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CloneReport {
    /// Distinct blocks.
    pub block_count: u64,
    /// Their stored bytes.
    pub bytes: u64,
}

/// Why cloning stopped. Blocks copied so far stay: they are whole and right.
#[derive(Debug, thiserror::Error)]
pub enum CloneError {
    /// A block can't be had.
    #[error("fetching")]
    Fetch(#[source] FetchError),
    /// A store did not take a block.
    #[error("storing")]
    Store(#[source] StoreError),
    /// The user stopped it.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// Copies every distinct block of `image` into `stores` and makes them durable.
///
/// # Errors
/// [`CloneError`] names the block and the store.
pub fn clone_blocks(
    image: &Image,
    source: &Fetcher,
    stores: &Stores,
    worker_count: Option<NonZeroUsize>,
    progress: &dyn Progress,
) -> Result<CloneReport, CloneError> {
    let (blocks, plaintext_bytes) = distinct(image);
    progress.begin("cloning", plaintext_bytes);
    let bytes = AtomicU64::new(0);
    let mean = plaintext_bytes / (blocks.len() as u64).max(1);
    let copy = |codec: &mut Codec, block: &BlockRef| {
        progress.check()?;
        let stored = source.fetch_stored(codec, block).map_err(CloneError::Fetch)?;
        stores.put(store_name(&block.id, image.cipher), &stored).map_err(CloneError::Store)?;
        bytes.fetch_add(stored.len() as u64, Ordering::Relaxed);
        progress.advance(mean);
        Ok::<_, CloneError>(())
    };
    workers::each(workers::count(worker_count), &blocks, copy)?;
    stores.sync().map_err(CloneError::Store)?;
    Ok(CloneReport { block_count: blocks.len() as u64, bytes: bytes.into_inner() })
}

/// The same image with other routes.
#[must_use]
pub fn with_routes(image: &Image, routes: Vec<Route>) -> Image {
    Image { routes, ..image.clone() }
}

/// Distinct blocks in the order of their ids, and the plaintext bytes of all files.
fn distinct(image: &Image) -> (Vec<BlockRef>, u64) {
    let (mut ids, mut bytes) = (BTreeSet::new(), 0u64);
    let mut blocks: Vec<BlockRef> = Vec::new();
    for inode in image.tree.inodes() {
        let Node::File(contents) = &inode.node else { continue };
        bytes = bytes.saturating_add(contents.size);
        blocks.extend(contents.blocks.iter().copied().filter(|block| ids.insert(block.id)));
    }
    blocks.sort_unstable_by_key(|block| block.id);
    (blocks, bytes)
}
