//! Which blocks an image's first boot asked for, in order: recorded once, fetched ahead ever after.
//!
//! ```text
//! bind ── record first requests ──> window over, or enough, or client gone ──> file beside the index
//! later bind ── read file ──> prefetch in that order
//! ```
//!
//! A trace is a hint. Whatever is wrong with its file means that there is none.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long after the first binding first requests are recorded.
pub(super) const WINDOW: Duration = Duration::from_secs(120);
/// Most positions in a trace.
pub(super) const COUNT_MAX: usize = 65_536;

const MAGIC: [u8; 8] = *b"ZOSTRAC1";
const HEADER_SIZE: usize = 48;

/// Notes the order in which positions are first asked for.
pub(super) struct Recorder {
    begun: Instant,
    block_count: u32,
    seen: Vec<u64>,
    positions: Vec<u32>,
    done: bool,
}

impl Recorder {
    /// Begins recording for an image with this many blocks.
    pub(super) fn new(block_count: u32) -> Self {
        let seen = vec![0; (block_count as usize).div_ceil(64)];
        Self { begun: Instant::now(), block_count, seen, positions: Vec::new(), done: false }
    }

    /// A client asked for the block at a position.
    pub(super) fn note(&mut self, position: u32) {
        if position >= self.block_count || self.positions.len() >= COUNT_MAX {
            return;
        }
        // Empty once recording has ended.
        let Some(word) = self.seen.get_mut(position as usize / 64) else { return };
        let bit = 1 << (position % 64);
        if *word & bit == 0 {
            *word |= bit;
            self.positions.push(position);
        }
    }

    /// Whether recording has ended.
    pub(super) const fn is_done(&self) -> bool {
        self.done
    }

    /// The trace, once it is complete: because time is up or it is full, or because `leaving` says
    /// that a client went away. Gives it only once.
    pub(super) fn finish(&mut self, leaving: bool) -> Option<Vec<u32>> {
        let full = self.positions.len() >= COUNT_MAX || self.begun.elapsed() >= WINDOW;
        if self.done || !(full || leaving) {
            return None;
        }
        self.done = true;
        self.seen = Vec::new();
        Some(std::mem::take(&mut self.positions))
    }
}

/// Writes a trace, unless there is one at least as long.
pub(super) fn store(directory: &Path, image_hash: &[u8; 32], positions: &[u32]) -> io::Result<()> {
    let old = load(directory, image_hash).map_or(0, |old| old.len());
    if positions.len() <= old {
        return Ok(());
    }
    let mut file = tempfile::Builder::new().prefix(".trace-").tempfile_in(directory)?;
    file.write_all(&encode(image_hash, positions))?;
    file.persist(path_in(directory, image_hash)).map(drop).map_err(|error| error.error)
}

/// Reads a trace; none if there is none that can be believed.
pub(super) fn load(directory: &Path, image_hash: &[u8; 32]) -> Option<Vec<u32>> {
    let file = File::open(path_in(directory, image_hash)).ok()?;
    let size_max = HEADER_SIZE + COUNT_MAX * 4;
    let mut bytes = Vec::new();
    file.take(size_max as u64 + 1).read_to_end(&mut bytes).ok()?;
    decode(image_hash, &bytes)
}

fn path_in(directory: &Path, image_hash: &[u8; 32]) -> PathBuf {
    let hex: String = image_hash.iter().map(|byte| format!("{byte:02x}")).collect();
    directory.join(format!("{hex}.trace"))
}

fn encode(image_hash: &[u8; 32], positions: &[u32]) -> Vec<u8> {
    let positions = &positions[..positions.len().min(COUNT_MAX)];
    let mut bytes = Vec::with_capacity(HEADER_SIZE + positions.len() * 4);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(image_hash);
    bytes.extend_from_slice(&u32::try_from(positions.len()).unwrap_or(0).to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend(positions.iter().flat_map(|position| position.to_le_bytes()));
    let checksum = crc32c::crc32c(&bytes);
    bytes[44..48].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

fn decode(image_hash: &[u8; 32], bytes: &[u8]) -> Option<Vec<u32>> {
    let (header, rest) = bytes.split_first_chunk::<HEADER_SIZE>()?;
    let (checksum, count) = (header.last_chunk::<4>()?, header[40..].first_chunk::<4>()?);
    let (positions, tail) = rest.as_chunks::<4>();
    let unchecked = [&header[..44], &[0; 4]].concat();
    let believed = header.starts_with(&MAGIC)
        && header[8..40] == *image_hash
        && tail.is_empty()
        && positions.len() <= COUNT_MAX
        && u32::from_le_bytes(*count) as usize == positions.len()
        && crc32c::crc32c_append(crc32c::crc32c(&unchecked), rest) == u32::from_le_bytes(*checksum);
    believed.then(|| positions.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: [u8; 32] = [7; 32];

    #[test]
    fn first_requests_are_kept_in_order_and_given_once() {
        let mut recorder = Recorder::new(100);
        [5, 3, 5, 99, 3, 100, u32::MAX].into_iter().for_each(|p| recorder.note(p));
        assert_eq!(recorder.finish(false), None, "the window is open");
        assert_eq!(recorder.finish(true), Some(vec![5, 3, 99]));
        recorder.note(8);
        assert_eq!(recorder.finish(true), None);
    }

    #[test]
    fn a_trace_is_bounded() {
        let mut recorder = Recorder::new(u32::MAX / 64);
        (0..65_546).for_each(|position| recorder.note(position));
        assert_eq!(recorder.finish(false).unwrap().len(), COUNT_MAX);
    }

    #[test]
    fn a_trace_survives_and_any_changed_byte_unmakes_it() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(load(directory.path(), &HASH), None);
        store(directory.path(), &HASH, &[9, 1, 4]).unwrap();
        store(directory.path(), &HASH, &[1, 2]).unwrap();
        assert_eq!(load(directory.path(), &HASH), Some(vec![9, 1, 4]), "the longer one stays");
        let bytes = encode(&HASH, &[9, 1, 4]);
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert_eq!(decode(&HASH, &bad), None, "byte {at}");
            assert_eq!(decode(&HASH, &bytes[..at]), None, "cut at {at}");
        }
        assert_eq!(decode(&[8; 32], &bytes), None, "another image's");
    }
}
