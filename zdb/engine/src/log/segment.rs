//! One segment: its two files, what stands in them, and how much of it lives.
//!
//! The segment file is the truth; the index file says the same in fewer bytes. Entries wait in
//! `pending` until their records are durable, then go to the index file in blocks. An index file
//! that can't be written or read costs time, never data: its blocks are made again from the log.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::block::{BlockHead, Entry};
use super::header::{HEADER_SIZE, Header, Part};
use super::record::Seed;
use crate::Error;
use crate::storage::{File, Open, Storage, is_full, write_full};

/// Where a namespace's files are.
#[derive(Clone, Debug)]
pub(crate) struct Folders {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) data: PathBuf,
    pub(crate) index: PathBuf,
}

impl Folders {
    pub(crate) fn data_file(&self, id: u32) -> PathBuf {
        self.data.join(format!("d{id}"))
    }

    pub(crate) fn index_file(&self, id: u32) -> PathBuf {
        self.index.join(format!("i{id}"))
    }

    /// Where a segment stands until it is whole.
    pub(crate) fn new_data_file(&self) -> PathBuf {
        self.data.join(NEW_DATA_NAME)
    }

    /// Where what replaces a segment stands until it is whole.
    pub(crate) fn compacted_data_file(&self) -> PathBuf {
        self.data.join(COMPACTED_DATA_NAME)
    }

    pub(crate) fn new_index_file(&self) -> PathBuf {
        self.index.join(NEW_INDEX_NAME)
    }

    /// Removes a segment's files; what can't be removed now is when the namespace is loaded. A header
    /// says that the segment is void, or [`forget_index_files`](Self::forget_index_files) came before.
    pub(crate) fn remove_segment(&self, id: u32) {
        let _ = self.storage.remove(&self.index_file(id));
        let _ = self.storage.remove(&self.data_file(id));
    }

    /// Removes index files for good, before their segments go: alone they would say that a segment is
    /// missing.
    pub(crate) fn forget_index_files(&self, ids: &[u32]) {
        for id in ids {
            let _ = self.storage.remove(&self.index_file(*id));
        }
        let _ = self.storage.sync_folder(&self.index);
    }

    /// Removes what a compaction that was given up has left.
    pub(crate) fn remove_half_compacted(&self) {
        let _ = self.storage.remove(&self.compacted_data_file());
        let _ = self.storage.remove(&self.new_index_file());
    }
}

/// Names of files that are not whole yet.
pub(crate) const NEW_DATA_NAME: &str = "d.new";
pub(crate) const COMPACTED_DATA_NAME: &str = "c.new";
pub(crate) const NEW_INDEX_NAME: &str = "i.new";

/// No place in a cache.
const NOT_CACHED: u32 = u32::MAX;

/// One block of entries: where its records are, and where it is in the index file, if it is there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    pub(crate) head: BlockHead,
    pub(super) at: Option<u64>,
}

/// Names are given out by the process; four billion files of one are not all in memory at once.
static NEXT_CACHE_NAME: AtomicU32 = AtomicU32::new(0);

/// A segment.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) header: Header,
    /// What the index and everything else in memory know it by: see
    /// [`next_name`](crate::index::slot::next_name).
    pub(crate) name: u32,
    pub(crate) seed: Seed,
    file: Option<Arc<dyn File>>,
    /// Offset after the last record.
    pub(crate) end: u64,
    pub(crate) blocks: Vec<Block>,
    /// Entries that no block has yet, in order.
    pub(crate) pending: Vec<Entry>,
    /// Good bytes of the index file; 0: there is none.
    pub(crate) index_size: u64,
    /// Whether the index file says that it is complete.
    pub(crate) index_sealed: bool,
    /// Records, whatever became of them.
    pub(crate) count: u32,
    /// Bytes of records that must stay.
    pub(crate) live_size: u64,
    /// Whether the index file stands under its name for files that are not whole yet.
    pub(crate) index_is_new: bool,
    /// Bytes of records that compaction kept though they are not live, and until when.
    pub(crate) kept: (u64, u32),
    /// The largest number in it, or the one before all of it.
    pub(crate) last_seq: u64,
    /// Whether something in it is not what was written.
    pub(crate) damaged: bool,
    /// Whether its file was not there when it was last wanted.
    pub(crate) missing: bool,
    /// Whether it was written since that was last asked.
    pub(crate) dirty: bool,
    /// Whether its file must stay open, because its name is about to be another's.
    pub(crate) pinned: bool,
    /// Whether its file is being made.
    is_coming: bool,
    /// The file's name in the cache: no two files of a process have the same.
    pub(crate) cache_name: u32,
    /// Where its blocks are in the cache.
    cached: Vec<u32>,
}

impl Segment {
    pub(crate) fn new(header: Header, file: Arc<dyn File>, end: u64) -> Self {
        Self { file: Some(file), end, ..Self::without_file(header) }
    }

    /// A segment whose file is gone, known from its index file: what stood in it is damaged, until the
    /// file is back.
    pub(crate) fn missing(header: Header) -> Self {
        Self { damaged: true, missing: true, ..Self::without_file(header) }
    }

    /// A segment whose file is being made. All of it is in memory until
    /// [`give_file`](Self::give_file).
    pub(crate) fn coming(header: Header) -> Self {
        Self { is_coming: true, ..Self::without_file(header) }
    }

    pub(crate) fn give_file(&mut self, file: Arc<dyn File>) {
        self.file = Some(file);
        self.is_coming = false;
    }

    /// The file of a segment that was just made.
    pub(crate) fn into_file(self) -> Result<Arc<dyn File>, Error> {
        let missing = self.damage(0, "its file is missing");
        self.file.ok_or(missing)
    }

    fn without_file(header: Header) -> Self {
        Self {
            header,
            name: header.id,
            seed: header.seed(),
            file: None,
            end: HEADER_SIZE as u64,
            blocks: Vec::new(),
            pending: Vec::new(),
            index_size: 0,
            index_sealed: false,
            count: 0,
            live_size: 0,
            index_is_new: false,
            kept: (0, 0),
            last_seq: header.base,
            damaged: false,
            missing: false,
            dirty: false,
            pinned: false,
            is_coming: false,
            cached: Vec::new(),
            cache_name: NEXT_CACHE_NAME.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// As it is now, for a thread that reads it. It has no part in the cache.
    pub(crate) fn frozen(&self, file: Arc<dyn File>) -> Self {
        Self { file: Some(file), cached: Vec::new(), ..self.clone() }
    }

    /// Makes a segment without records, which survives a crash when this returns.
    pub(crate) fn create(folders: &Folders, header: Header) -> Result<Self, Error> {
        let path = folders.new_data_file();
        let made = (|| {
            let file = folders.storage.open(&path, Open::Empty)?;
            write_full(&*file, &header.to_bytes(Part::Data), 0)?;
            file.sync()?;
            folders.storage.rename(&path, &folders.data_file(header.id))?;
            folders.storage.sync_folder(&folders.data)?;
            io::Result::Ok(file)
        })();
        let file = made.map_err(|error| write_error(error, &path))?;
        Ok(Self::new(header, file, HEADER_SIZE as u64))
    }

    pub(crate) fn id(&self) -> u32 {
        self.header.id
    }

    pub(crate) fn is_encrypted(&self) -> bool {
        self.header.key_id != 0
    }

    /// The file, opened if it is not open.
    pub(crate) fn file(&mut self, folders: &Folders) -> Result<&Arc<dyn File>, Error> {
        if self.is_coming {
            return Err(Error::Busy);
        }
        if self.file.is_none() {
            let path = folders.data_file(self.id());
            let opened = folders.storage.open(&path, Open::Existing);
            self.missing =
                opened.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
            if self.missing {
                self.damaged = true;
                return Err(self.damage(0, "its file is missing"));
            }
            self.file = Some(opened.map_err(Error::Read)?);
        }
        self.file.as_ref().ok_or(Error::Damaged { segment: 0, offset: 0, reason: "no file" })
    }

    /// The file, if it is open.
    pub(crate) fn open_file(&self) -> Option<&Arc<dyn File>> {
        self.file.as_ref()
    }

    /// Where a block is in the cache, if it is there.
    pub(crate) fn cached(&self, number: u32) -> Option<u32> {
        self.cached.get(number as usize).copied().filter(|place| *place != NOT_CACHED)
    }

    /// Notes where a block is in the cache, or that it is not there.
    pub(crate) fn set_cached(&mut self, number: u32, place: Option<u32>) {
        let number = number as usize;
        if self.cached.len() <= number {
            self.cached.resize(number + 1, NOT_CACHED);
        }
        self.cached[number] = place.unwrap_or(NOT_CACHED);
    }

    /// Notes that no block is in the cache.
    pub(crate) fn forget_cached(&mut self) {
        self.cached = Vec::new();
    }

    pub(crate) fn close_file(&mut self) {
        self.file = None;
    }

    /// Offset after the last record that a block tells of.
    pub(crate) fn block_end(&self) -> u64 {
        self.blocks.last().map_or(HEADER_SIZE as u64, |block| u64::from(block.head.end))
    }

    /// Error for damage at a place.
    pub(crate) fn damage(&self, offset: u64, reason: &'static str) -> Error {
        Error::Damaged { segment: self.id(), offset, reason }
    }

    /// How many groups of entries there are: blocks, and what is pending as the last.
    pub(crate) fn group_count(&self) -> usize {
        self.blocks.len() + 1
    }

    /// The group that has, or would have, this number.
    pub(crate) fn group_of(&self, seq: u64) -> usize {
        if self.pending.first().is_some_and(|entry| entry.seq <= seq) {
            return self.blocks.len();
        }
        self.blocks.partition_point(|block| block.head.before < seq).saturating_sub(1)
    }
}

/// What a failed creation is to those who wanted to write.
pub(crate) fn write_error(source: io::Error, path: &std::path::Path) -> Error {
    if is_full(&source) {
        return Error::DiskFull;
    }
    Error::File { path: path.display().to_string(), source }
}
