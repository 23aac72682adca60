//! Packing: a tree and the bytes of its files become blocks in stores, and an [`Image`].
//!
//! The tree comes from a directory ([`crate::scan`]) or an OCI image ([`crate::oci`]); where the
//! bytes are is known to [`Contents`]. Files are cut into spans of [`SPAN_SIZE`]; worker threads
//! take spans in order, read, encode and store them, so that one huge file keeps every core as busy
//! as many small ones. Nothing is written under the image's name here: the caller writes the image
//! when every block is where it belongs.

use std::collections::HashSet;
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use flist_view::block::{BLOCK_SIZE, BlockCipher, BlockId, BlockRef};

use crate::block::Codec;
use crate::format::Image;
use crate::progress::{Cancelled, Progress};
use crate::store::route::Stores;
use crate::store::{StoreError, store_name};
use crate::tree::{InodeId, Node, Tree};

/// Bytes that one worker reads from one file before it looks for the next piece of work.
pub const SPAN_SIZE: u64 = 32 * BLOCK_SIZE as u64;
/// Most worker threads: beyond that, stores on a network are busy enough.
pub const WORKER_COUNT_MAX: usize = 64;

/// Most bytes and most blocks that a worker reads before it encodes and stores them together. Many
/// small files make one batch: processors hash four blocks at a time, as long as there are four.
const BATCH_SIZE_MAX: usize = 8 * BLOCK_SIZE as usize;
const BATCH_COUNT_MAX: usize = 64;

/// Where a packer finds the bytes of a tree's files.
pub trait Contents: Sync {
    /// Opens file `id` at `offset` bytes from its beginning.
    ///
    /// # Errors
    /// If it can't be read.
    fn open(&self, id: InodeId, offset: u64) -> io::Result<Box<dyn Read + Send + '_>>;

    /// The file's name in error messages: where the user would look for it.
    fn name(&self, id: InodeId) -> String;
}

/// What a packer may be told.
#[derive(Clone, Debug, Default)]
pub struct PackOptions {
    /// Worker threads; by default one for each core.
    pub workers: Option<NonZeroUsize>,
    /// Return without waiting until the stores have made their blocks durable. After a power loss
    /// the image may then name blocks that its stores lost.
    pub skip_sync: bool,
}

/// Why packing stopped.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// A source file can't be read.
    #[error("{file}: cannot be read")]
    Source {
        /// The file.
        file: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A source file has not the size it had when its directory was listed.
    #[error("{file}: changed while it was packed: {expected} bytes when listed, {found} read")]
    Changed {
        /// The file.
        file: String,
        /// Size when listed.
        expected: u64,
        /// Size when read; a lower bound if the file grew.
        found: u64,
    },
    /// A store did not take a block.
    #[error("storing a block of {file}")]
    Store {
        /// The file.
        file: String,
        /// What the store said.
        #[source]
        source: StoreError,
    },
    /// The stores could not make their blocks durable.
    #[error("finishing the stores")]
    Sync(#[source] StoreError),
    /// The user stopped it.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// Stores the contents of every file of `tree` and returns the image that names them. Its routes
/// are those of `stores`.
///
/// # Errors
/// [`PackError`] names the file and what was wrong. Blocks stored so far stay: they are named by
/// content and will be found again.
pub fn pack(
    mut tree: Tree,
    contents: &dyn Contents,
    stores: &Stores,
    options: &PackOptions,
    progress: &dyn Progress,
) -> Result<Image, PackError> {
    let spans = spans(&tree);
    progress.begin("packing", spans.iter().map(|span| span.size).sum());
    let packer = Packer { contents, stores, progress, claimed: Mutex::default() };
    let packed = run_workers(&packer, &spans, worker_count(options))?;
    if !options.skip_sync {
        stores.sync().map_err(PackError::Sync)?;
    }
    for (position, block) in packed {
        if let Node::File(file) = &mut tree.inode_mut(spans[position].file).node {
            file.blocks.push(block);
        }
    }
    Ok(Image { tree, cipher: BlockCipher::Aes256Gcm, routes: stores.routes(), tags: [].into() })
}

/// A piece of one file, at most [`SPAN_SIZE`] long.
struct Span {
    file: InodeId,
    offset: u64,
    size: u64,
    /// Size of the whole file, as listed.
    file_size: u64,
}

/// The work, files in the order of their inodes, each file's spans in the order of their offsets.
fn spans(tree: &Tree) -> Vec<Span> {
    let mut spans = Vec::new();
    for entry in tree.walk() {
        let Node::File(file) = &tree.inode(entry.id).node else { continue };
        let mut offset = 0;
        while offset < file.size {
            let size = SPAN_SIZE.min(file.size - offset);
            spans.push(Span { file: entry.id, offset, size, file_size: file.size });
            offset += size;
        }
    }
    // A hard link walks by twice; its contents are packed once.
    spans.sort_by_key(|span| (span.file, span.offset));
    spans.dedup_by_key(|span| (span.file, span.offset));
    spans
}

fn worker_count(options: &PackOptions) -> usize {
    let cores = || thread::available_parallelism().map_or(1, NonZeroUsize::get);
    options.workers.map_or_else(cores, NonZeroUsize::get).min(WORKER_COUNT_MAX)
}

/// Blocks by position of their span, in that order; a span's blocks in theirs.
type Packed = Vec<(usize, BlockRef)>;

/// Lets `count` workers take spans until none is left or one has failed.
fn run_workers(packer: &Packer<'_>, spans: &[Span], count: usize) -> Result<Packed, PackError> {
    let next = AtomicUsize::new(0);
    let work = || {
        let packed = Worker::new(packer, spans).work(&next);
        if packed.is_err() {
            // The others find nothing more to do.
            next.store(spans.len(), Ordering::Relaxed);
        }
        packed
    };
    let results: Vec<Result<Packed, PackError>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..count).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|worker| worker.join().expect("a worker does not panic")).collect()
    });
    let mut packed = results.into_iter().collect::<Result<Vec<_>, _>>()?.concat();
    // Stable: a span is one worker's, which packed its blocks in order.
    packed.sort_by_key(|(position, _)| *position);
    Ok(packed)
}

/// What all workers share.
struct Packer<'a> {
    contents: &'a dyn Contents,
    stores: &'a Stores,
    progress: &'a dyn Progress,
    /// Blocks that a worker stores or has stored in this run, so that copies cost no round trip.
    claimed: Mutex<HashSet<BlockId>>,
}

/// One thread's part: reads blocks into a batch, and stores the batch when it is full.
struct Worker<'a> {
    packer: &'a Packer<'a>,
    spans: &'a [Span],
    codec: Codec,
    /// Plaintext of the batch, block behind block, and room for one byte more.
    plaintext: Vec<u8>,
    batch: Vec<Batched>,
    packed: Packed,
}

/// A block that was read and waits to be encoded.
struct Batched {
    /// Position of its span.
    position: usize,
    /// Where its plaintext is.
    range: Range<usize>,
}

impl<'a> Worker<'a> {
    fn new(packer: &'a Packer<'a>, spans: &'a [Span]) -> Self {
        Self {
            packer,
            spans,
            codec: Codec::new(),
            plaintext: vec![0; BATCH_SIZE_MAX + 1],
            batch: Vec::with_capacity(BATCH_COUNT_MAX),
            packed: Vec::new(),
        }
    }

    fn work(mut self, next: &AtomicUsize) -> Result<Packed, PackError> {
        loop {
            let position = next.fetch_add(1, Ordering::Relaxed);
            let Some(span) = self.spans.get(position) else { break };
            self.packer.progress.check()?;
            self.read_span(position, span)?;
        }
        self.store_batch()?;
        Ok(self.packed)
    }

    fn read_span(&mut self, position: usize, span: &Span) -> Result<(), PackError> {
        let contents = self.packer.contents;
        let failed = |source| PackError::Source { file: contents.name(span.file), source };
        let mut reader = contents.open(span.file, span.offset).map_err(failed)?;
        let mut left = span.size;
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(BLOCK_SIZE as usize);
            let start = self.room_for(wanted)?;
            left -= wanted as u64;
            let is_last = left == 0 && span.offset + span.size == span.file_size;
            // One byte more shows whether the file has grown.
            let end = start + wanted + usize::from(is_last);
            let size = read_at_least(&mut reader, wanted, &mut self.plaintext[start..end])
                .map_err(failed)?;
            if size != wanted {
                let before = span.offset + span.size - left - wanted as u64;
                return Err(self.changed(span, before + size as u64));
            }
            self.batch.push(Batched { position, range: start..start + wanted });
            self.packer.progress.advance(wanted as u64);
        }
        Ok(())
    }

    /// Where in the buffer a block of `size` bytes may be read to; stores the batch if it is full.
    fn room_for(&mut self, size: usize) -> Result<usize, PackError> {
        let end = |batch: &[Batched]| batch.last().map_or(0, |block| block.range.end);
        if end(&self.batch) + size > BATCH_SIZE_MAX || self.batch.len() >= BATCH_COUNT_MAX {
            self.store_batch()?;
        }
        Ok(end(&self.batch))
    }

    fn store_batch(&mut self) -> Result<(), PackError> {
        let plaintexts: Vec<&[u8]> =
            self.batch.iter().map(|block| &self.plaintext[block.range.clone()]).collect();
        let encoded = self.codec.encode_batch(&plaintexts);
        for (Batched { position, .. }, (block, stored)) in self.batch.drain(..).zip(encoded) {
            self.packer.store(&block, stored, &self.spans[position])?;
            self.packed.push((position, block));
        }
        Ok(())
    }

    fn changed(&self, span: &Span, found: u64) -> PackError {
        let file = self.packer.contents.name(span.file);
        PackError::Changed { file, expected: span.file_size, found }
    }
}

/// Reads until `wanted` bytes of `buffer` are filled, or the file ends. A file gives all it has at once,
/// so that the room behind `wanted` costs no second call.
fn read_at_least(reader: &mut dyn Read, wanted: usize, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < wanted {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(size) => filled += size,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

impl Packer<'_> {
    fn store(&self, block: &BlockRef, stored: &[u8], span: &Span) -> Result<(), PackError> {
        // Whoever names a block first stores it. Another worker need not wait: if this one fails, all do.
        if !self.claimed.lock().unwrap_or_else(PoisonError::into_inner).insert(block.id) {
            return Ok(());
        }
        self.stores
            .put(store_name(&block.id, BlockCipher::Aes256Gcm), stored)
            .map_err(|source| PackError::Store { file: self.contents.name(span.file), source })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use super::*;
    use crate::format::Route;
    use crate::progress::Quiet;
    use crate::store::Store;
    use crate::store::url::StoreUrl;
    use crate::tree::{FileContents, Inode, Metadata};

    /// Blocks in memory; refuses the block after the last one it has room for.
    struct MemoryStore {
        blocks: Mutex<HashMap<Vec<u8>, Vec<u8>>>,
        room: usize,
    }

    impl Store for MemoryStore {
        fn get(&self, name: &[u8]) -> Result<Vec<u8>, StoreError> {
            Ok(self.blocks.lock().unwrap()[name].clone())
        }

        fn put(&self, name: &[u8], stored: &[u8]) -> Result<(), StoreError> {
            let mut blocks = self.blocks.lock().unwrap();
            if blocks.len() == self.room {
                return Err(StoreError::Refused { store: "memory".into(), reason: "full".into() });
            }
            assert_eq!(blocks.insert(name.to_vec(), stored.to_vec()), None, "stored twice");
            Ok(())
        }

        fn sync(&self) -> Result<(), StoreError> {
            Ok(())
        }
    }

    struct MemoryContents(HashMap<InodeId, Vec<u8>>);

    impl Contents for MemoryContents {
        fn open(&self, id: InodeId, offset: u64) -> io::Result<Box<dyn Read + Send + '_>> {
            let bytes = self.0.get(&id).ok_or(io::ErrorKind::PermissionDenied)?;
            Ok(Box::new(&bytes[usize::try_from(offset).unwrap().min(bytes.len())..]))
        }

        fn name(&self, id: InodeId) -> String {
            format!("file {}", id.index())
        }
    }

    fn store(room: usize) -> (Arc<MemoryStore>, Stores) {
        let store = Arc::new(MemoryStore { blocks: Mutex::default(), room });
        let route = Route { start: 0, end: 255, url: StoreUrl::parse("dir:///memory").unwrap() };
        (Arc::clone(&store), Stores::from_open(vec![(route, store)]))
    }

    /// A tree with one file of these bytes, listed as `size` bytes long.
    fn one_file(bytes: Vec<u8>, size: u64) -> (Tree, MemoryContents, InodeId) {
        let mut tree = Tree::new(Metadata::default());
        let node = Node::File(FileContents { size, blocks: Vec::new() });
        let id = tree.add(InodeId::ROOT, b"file", Inode::new(Metadata::default(), node)).unwrap();
        (tree, MemoryContents([(id, bytes)].into()), id)
    }

    fn patterned(size: usize) -> Vec<u8> {
        (0..size).map(|i| u8::try_from((i / 4096 + i % 7) % 256).unwrap()).collect()
    }

    fn blocks(image: &Image, id: InodeId) -> &[BlockRef] {
        match &image.tree.inode(id).node {
            Node::File(file) => &file.blocks,
            other => panic!("not a file: {other:?}"),
        }
    }

    #[test]
    fn a_file_of_several_spans_is_stored_in_order_and_once_for_both_its_names() {
        let span = usize::try_from(SPAN_SIZE).unwrap();
        let bytes = patterned(2 * span + 5);
        let (mut tree, contents, id) = one_file(bytes.clone(), bytes.len() as u64);
        tree.link(InodeId::ROOT, b"again", id).unwrap();
        let (memory, stores) = store(1000);
        let options = PackOptions { workers: NonZeroUsize::new(3), ..PackOptions::default() };
        let image = pack(tree, &contents, &stores, &options, &Quiet).unwrap();
        let mut codec = Codec::new();
        let read: Vec<u8> = blocks(&image, id)
            .iter()
            .flat_map(|block| {
                let mut stored = memory.get(&block.id.0).unwrap();
                codec.decode(BlockCipher::Aes256Gcm, block, &mut stored).unwrap()
            })
            .collect();
        assert!(read == bytes);
        assert_eq!(blocks(&image, id).len(), 65);
    }

    #[test]
    fn an_empty_file_has_no_blocks() {
        let (tree, contents, id) = one_file(Vec::new(), 0);
        let (memory, stores) = store(0);
        let image = pack(tree, &contents, &stores, &PackOptions::default(), &Quiet).unwrap();
        assert_eq!(blocks(&image, id), []);
        assert!(memory.blocks.lock().unwrap().is_empty());
    }

    #[test]
    fn a_file_that_shrank_or_grew_since_it_was_listed_is_named() {
        for (size, found) in [(600_001, 600_000), (599_999, 600_000)] {
            let (tree, contents, _) = one_file(patterned(600_000), size);
            let (_, stores) = store(1000);
            let error =
                pack(tree, &contents, &stores, &PackOptions::default(), &Quiet).unwrap_err();
            let expected = format!(
                "file 1: changed while it was packed: {size} bytes when listed, {found} read"
            );
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let (tree, _, _) = one_file(Vec::new(), 10);
        let (_, stores) = store(1000);
        let contents = MemoryContents(HashMap::new());
        let error = pack(tree, &contents, &stores, &PackOptions::default(), &Quiet).unwrap_err();
        assert_eq!(error.to_string(), "file 1: cannot be read");
    }

    #[test]
    fn a_store_that_is_full_stops_all_workers() {
        let bytes = patterned(usize::try_from(SPAN_SIZE).unwrap());
        let (tree, contents, _) = one_file(bytes.clone(), bytes.len() as u64);
        let (_, stores) = store(3);
        let options = PackOptions { workers: NonZeroUsize::new(2), ..PackOptions::default() };
        let error = pack(tree, &contents, &stores, &options, &Quiet).unwrap_err();
        assert!(matches!(error, PackError::Store { .. }), "{error:?}");
    }
}
