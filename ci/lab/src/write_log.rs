//! What a logged disk was told, write by write: the basis of power-cut tests.
//!
//! After a power cut a disk holds everything up to some flush, and any part of what came after.
//! [`WriteLog`] reads the log that QEMU's `blklogwrites` keeps (the format of Linux'
//! dm-log-writes, `drivers/md/dm-log-writes.c`), and [`WriteLog::replay`] rebuilds the disk as
//! it was after the first so many entries. A test that opens each of these disks and finds
//! every acknowledged write has shown more than any number of pulled plugs.
//!
//! All numbers are little-endian. The log begins with a sector that holds
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic, 0x6a736677736872 |
//! | 8 | 8 | version, 1 |
//! | 16 | 8 | count of entries |
//! | 24 | 4 | sector size in bytes |
//!
//! and goes on with the entries: a sector that holds
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | first sector |
//! | 8 | 8 | count of sectors |
//! | 16 | 8 | flags: 1 flush, 2 forced unit access, 4 discard |
//! | 24 | 8 | size of a mark's text |
//!
//! followed by the sectors' data, unless it is a discard. QEMU brings the count up to date at
//! each flush: what was written after the last one is not in it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::LabError;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLAG_FLUSH: u64 = 1;
const FLAG_FORCED: u64 = 2;
const FLAG_DISCARD: u64 = 4;
/// The largest write that is believed, in bytes; QEMU splits requests long before.
const WRITE_SIZE_MAX: u64 = 1 << 30;
/// The most entries that are read.
const ENTRY_COUNT_MAX: u64 = 10_000_000;

/// A log, read to its end.
#[derive(Debug)]
pub struct WriteLog {
    path: PathBuf,
    file: File,
    entries: Vec<WriteEntry>,
}

/// One request to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteEntry {
    /// Where on the disk, in bytes.
    pub offset: u64,
    /// How much, in bytes; 0 for a mere flush.
    pub size: u64,
    /// What came before it is on the disk for certain.
    pub is_flush: bool,
    /// It is itself on the disk for certain.
    pub is_forced: bool,
    /// It gives the range up; a disk may read as anything there. Replayed as zeros.
    pub is_discard: bool,
    /// Where its data is in the log.
    data_at: u64,
}

impl WriteLog {
    /// Reads the log of a disk whose machine has ended.
    ///
    /// # Errors
    ///
    /// [`LabError::Io`] when it can't be read, or isn't a log.
    pub fn open(path: &Path) -> Result<Self, LabError> {
        let file = File::open(path).map_err(LabError::io("open", path))?;
        let entries = read_entries(&file).map_err(LabError::io("read the write log", path))?;
        Ok(Self { path: path.to_path_buf(), file, entries })
    }

    /// Its entries, in the order the disk was told.
    #[must_use]
    pub fn entries(&self) -> &[WriteEntry] {
        &self.entries
    }

    /// Does to `image` what the entries from index `from` to before `to` did to the disk.
    ///
    /// `image` begins as a copy of the disk before the log began: blank, mostly. One image
    /// can be taken from each count of entries to the next.
    ///
    /// # Errors
    ///
    /// [`LabError::Io`] when the log can't be read or the image not written.
    pub fn replay(&self, from: usize, to: usize, image: &File) -> Result<(), LabError> {
        let entries = self.entries.get(from..to.min(self.entries.len())).unwrap_or_default();
        for entry in entries {
            self.apply(entry, image).map_err(LabError::io("replay", &self.path))?;
        }
        Ok(())
    }

    fn apply(&self, entry: &WriteEntry, image: &File) -> io::Result<()> {
        const PIECE_SIZE: u64 = 1 << 20;
        let mut done = 0;
        while done < entry.size {
            let size = PIECE_SIZE.min(entry.size - done);
            let mut piece = vec![0; usize::try_from(size).map_err(io::Error::other)?];
            if !entry.is_discard {
                self.file.read_exact_at(&mut piece, entry.data_at + done)?;
            }
            image.write_all_at(&piece, entry.offset + done)?;
            done += size;
        }
        Ok(())
    }
}

fn read_entries(file: &File) -> io::Result<Vec<WriteEntry>> {
    let bad = |text: String| Err(io::Error::new(io::ErrorKind::InvalidData, text));
    let [magic, version, count, sector_size] = words(file, 0)?;
    let sector_size = sector_size & u64::from(u32::MAX);
    if magic != MAGIC || version != 1 {
        return bad(format!("magic {magic:#x}, version {version}"));
    }
    if !sector_size.is_power_of_two() || !(512..=65536).contains(&sector_size) {
        return bad(format!("sectors of {sector_size} bytes"));
    }
    if count > ENTRY_COUNT_MAX {
        return bad(format!("{count} entries are more than {ENTRY_COUNT_MAX}"));
    }
    let mut at = sector_size;
    let mut entries = Vec::new();
    for index in 0..count {
        let [sector, sector_count, flags, _] = words(file, at)?;
        let range = sector.checked_mul(sector_size).zip(sector_count.checked_mul(sector_size));
        let Some((offset, size)) = range.filter(|(offset, size)| {
            let is_discard = flags & FLAG_DISCARD != 0;
            offset.checked_add(*size).is_some() && (is_discard || *size <= WRITE_SIZE_MAX)
        }) else {
            return bad(format!("entry {index}: {sector_count} sectors from {sector}"));
        };
        let entry = WriteEntry {
            offset,
            size,
            is_flush: flags & FLAG_FLUSH != 0,
            is_forced: flags & FLAG_FORCED != 0,
            is_discard: flags & FLAG_DISCARD != 0,
            data_at: at + sector_size,
        };
        at += sector_size + if entry.is_discard { 0 } else { size };
        entries.push(entry);
    }
    Ok(entries)
}

/// The four numbers that a header begins with.
fn words(file: &File, at: u64) -> io::Result<[u64; 4]> {
    let mut words = [0; 4];
    for (index, word) in (0..).zip(&mut words) {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at + 8 * index)?;
        *word = u64::from_le_bytes(bytes);
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sector(words: [u64; 4]) -> Vec<u8> {
        let mut sector: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        sector.resize(512, 0);
        sector
    }

    fn log(count: u64) -> Vec<u8> {
        [
            sector([MAGIC, 1, count, 512]),
            sector([2, 1, 0, 0]),
            vec![0xaa; 512],
            sector([0, 0, FLAG_FLUSH, 0]),
            sector([2, 2, FLAG_FORCED, 0]),
            vec![0xbb; 1024],
            sector([3, 1, FLAG_DISCARD, 0]),
        ]
        .concat()
    }

    fn open(bytes: &[u8]) -> Result<WriteLog, LabError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        WriteLog::open(file.path())
    }

    #[test]
    fn a_disk_is_rebuilt_step_by_step() {
        let log = open(&log(4)).unwrap();
        let kinds: Vec<_> =
            log.entries().iter().map(|e| (e.is_flush, e.is_forced, e.is_discard)).collect();
        let (write, flush, forced, discard) = (
            (false, false, false),
            (true, false, false),
            (false, true, false),
            (false, false, true),
        );
        assert_eq!(kinds, [write, flush, forced, discard]);
        let image = tempfile::tempfile().unwrap();
        image.set_len(4096).unwrap();
        let at = |offset| {
            let mut byte = [0];
            image.read_exact_at(&mut byte, offset).unwrap();
            byte[0]
        };
        log.replay(0, 2, &image).unwrap();
        assert_eq!([at(1023), at(1024), at(1535), at(1536)], [0, 0xaa, 0xaa, 0]);
        log.replay(2, 3, &image).unwrap();
        assert_eq!([at(1023), at(1024), at(2047), at(2048)], [0, 0xbb, 0xbb, 0]);
        log.replay(3, 99, &image).unwrap();
        assert_eq!([at(1535), at(1536), at(2047)], [0xbb, 0, 0]);
    }

    #[test]
    fn only_what_the_header_counts_is_there() {
        assert_eq!(open(&log(1)).unwrap().entries().len(), 1);
        assert_eq!(open(&log(0)).unwrap().entries().len(), 0);
    }

    #[test]
    fn damaged_logs_are_errors() {
        let good = log(4);
        assert!(open(&[]).is_err());
        assert!(open(&good[..good.len() - 512]).is_err());
        for (at, byte) in
            [(0, 1), (8, 2), (18, 0xff), (24, 3), (25, 0), (512 + 15, 1), (512 + 7, 1)]
        {
            let mut bad = good.clone();
            bad[at] = byte;
            assert!(open(&bad).is_err(), "byte {at}");
        }
    }
}
