//! Verifying an image: is every block that it names to be had, and is it what the image says?
//!
//! Reading the image has checked its metadata already ([`crate::format`]). Here every distinct block
//! is fetched once and verified by both hashes, and its size compared with every place that uses it.
//! Problems are collected, not thrown: a person wants all of them, by block and by the files that
//! would suffer. Only stores that do not answer at all end it early.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use flist_view::block::{BLOCK_SIZE, BlockRef};
use serde::Serialize;

use crate::block::Codec;
use crate::format::Image;
use crate::progress::{Cancelled, Progress};
use crate::store::fetch::{FetchError, Fetcher};
use crate::tree::Node;
use crate::workers;

/// Blocks that could not be fetched one after the other, without one in between that could, until
/// verification gives up.
pub const UNREACHABLE_COUNT_MAX: u32 = 16;
/// Most paths named for one bad block.
pub const PATH_COUNT_MAX: usize = 16;

/// What was found. Serialises to the fields that `flist verify --json` documents.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Distinct blocks that the image names.
    pub block_count: u64,
    /// Blocks that are there and right.
    pub good_count: u64,
    /// Their plaintext, in bytes.
    pub good_bytes: u64,
    /// Bad and missing blocks, in the order of their ids.
    pub problems: Vec<Problem>,
}

/// A block that is missing or wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Its id in hex.
    pub block: String,
    /// What is wrong with it.
    pub reason: String,
    /// Paths of files that need it, at most [`PATH_COUNT_MAX`].
    pub files: Vec<String>,
    /// How many files need it.
    pub file_count: u64,
}

/// Why verification could not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The stores do not answer.
    #[error("{UNREACHABLE_COUNT_MAX} blocks in a row could not be fetched, the last one")]
    Unreachable(#[source] FetchError),
    /// The user stopped it.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// Where a distinct block is used.
#[derive(Default)]
struct Usage {
    /// Bytes that its first place asks for.
    size: u32,
    /// Bytes that another place asks for, if not the same.
    odd_size: Option<u32>,
    files: Vec<String>,
    file_count: u64,
}

/// Fetches and checks every distinct block of `image`.
///
/// # Errors
/// [`VerifyError`]; bad blocks are no error but part of the report.
pub fn verify(
    image: &Image,
    fetcher: &Fetcher,
    worker_count: Option<NonZeroUsize>,
    progress: &dyn Progress,
) -> Result<VerifyReport, VerifyError> {
    let mut blocks: Vec<(BlockRef, Usage)> = usages(image).into_iter().collect();
    blocks.sort_unstable_by_key(|(block, _)| block.id);
    progress.begin("verifying", blocks.iter().map(|(_, usage)| u64::from(usage.size)).sum());
    let problems = Mutex::new(Vec::new());
    let unreachable = AtomicU32::new(0);
    let (good_count, good_bytes) = (AtomicU64::new(0), AtomicU64::new(0));
    let check = |codec: &mut Codec, (block, usage): &(BlockRef, Usage)| {
        progress.check()?;
        let fetched = fetcher.fetch(codec, block);
        progress.advance(usage.size.into());
        let reason = match fetched {
            Ok(plaintext) => {
                unreachable.store(0, Ordering::Relaxed);
                let Some(reason) = wrong_size(plaintext.len(), usage) else {
                    good_count.fetch_add(1, Ordering::Relaxed);
                    good_bytes.fetch_add(plaintext.len() as u64, Ordering::Relaxed);
                    return Ok(());
                };
                reason
            }
            Err(error @ FetchError::Unreachable { .. }) => {
                if unreachable.fetch_add(1, Ordering::Relaxed) + 1 >= UNREACHABLE_COUNT_MAX {
                    return Err(VerifyError::Unreachable(error));
                }
                error.reason()
            }
            Err(error) => error.reason(),
        };
        let id = block.id.to_string();
        let (files, file_count) = (usage.files.clone(), usage.file_count);
        let problem = Problem { block: id, reason, files, file_count };
        problems.lock().unwrap_or_else(PoisonError::into_inner).push(problem);
        Ok(())
    };
    workers::each(workers::count(worker_count), &blocks, check)?;
    let mut problems = problems.into_inner().unwrap_or_else(PoisonError::into_inner);
    problems.sort_unstable_by(|left, right| left.block.cmp(&right.block));
    Ok(VerifyReport {
        block_count: blocks.len() as u64,
        good_count: good_count.into_inner(),
        good_bytes: good_bytes.into_inner(),
        problems,
    })
}

/// Every distinct block and who uses it. Two keys for one id are two blocks here, of which one must
/// be wrong.
fn usages(image: &Image) -> HashMap<BlockRef, Usage> {
    let mut usages: HashMap<BlockRef, Usage> = HashMap::new();
    let mut seen = vec![false; image.tree.inodes().len()];
    for entry in image.tree.walk() {
        let Node::File(contents) = &image.tree.inode(entry.id).node else { continue };
        if std::mem::replace(&mut seen[entry.id.index()], true) {
            continue;
        }
        let path = format!("/{}", String::from_utf8_lossy(&entry.path).escape_debug());
        let mut left = contents.size;
        for block in &contents.blocks {
            let size = u32::try_from(left).unwrap_or(BLOCK_SIZE).min(BLOCK_SIZE);
            left -= u64::from(size);
            let usage = usages.entry(*block).or_insert_with(|| Usage { size, ..Usage::default() });
            if usage.size != size {
                usage.odd_size = Some(size);
            }
            if usage.files.last() == Some(&path) {
                continue;
            }
            usage.file_count += 1;
            if usage.files.len() < PATH_COUNT_MAX {
                usage.files.push(path.clone());
            }
        }
    }
    usages
}

fn wrong_size(found: usize, usage: &Usage) -> Option<String> {
    let wrong = [Some(usage.size), usage.odd_size]
        .into_iter()
        .flatten()
        .find(|expected| usize::try_from(*expected) != Ok(found))?;
    Some(format!("holds {found} bytes where a file's size asks for {wrong}"))
}
