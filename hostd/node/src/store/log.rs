//! A file that only grows, of records that are there whole or not at all.
//!
//! ```text
//! log    = record*
//! record = size: u32 little-endian, sealed[size]      sealed for the log's name and the record's number
//! ```
//!
//! A record is on disk before [`Log::append`] returns. What a crash leaves behind the last whole record
//! was never promised to anybody: it is cut off. A record that doesn't open although others follow is
//! damage, and nothing is read of such a log.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use super::StoreError;
use super::disk::Disk;
use super::seal::{OVERHEAD, StoreKey};

/// Bytes of a sealed record.
const RECORD_SIZE_MAX: usize = 8 << 20;
/// Bytes of a log that is read.
const LOG_SIZE_MAX: u64 = 256 << 20;
/// Bytes of a record's size.
const HEAD_SIZE: usize = 4;

/// Where a log ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Log {
    size: u64,
    count: u64,
}

impl Log {
    /// Reads all records; a file that is not there has none.
    pub(super) fn read(
        path: &Path,
        name: &str,
        key: &StoreKey,
    ) -> Result<(Self, Vec<Vec<u8>>), StoreError> {
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Default::default()),
            Err(error) => return Err(StoreError::io(path, error)),
        };
        let mut bytes = Vec::new();
        let limited = file.by_ref().take(LOG_SIZE_MAX + 1);
        let read = { limited }.read_to_end(&mut bytes);
        let size = read.map_err(|error| StoreError::io(path, error))?;
        if u64::try_from(size).is_ok_and(|size| size > LOG_SIZE_MAX) {
            return Err(StoreError::damaged(path, "it is too large"));
        }
        let (mut log, mut records) = (Self::default(), Vec::new());
        let mut rest = &bytes[..];
        while let Some((sealed, after)) = next_record(rest) {
            match key.open(&place(name, log.count), sealed) {
                Ok(record) => records.push(record),
                // Its size came to the disk, and the rest did not.
                Err(_) if after.is_empty() => break,
                Err(error) => return Err(StoreError::damaged(path, error)),
            }
            log.advance(sealed.len());
            rest = after;
        }
        Ok((log, records))
    }

    /// Adds a record, and returns when it is on disk. The folder is synced with the first one.
    pub(super) fn append(
        &mut self,
        disk: &Disk,
        path: &Path,
        name: &str,
        key: &StoreKey,
        record: &[u8],
    ) -> Result<(), StoreError> {
        let framed = framed(path, &place(name, self.count), key, record)?;
        disk.append(path, self.size, &framed)?;
        if let Some(folder) = path.parent().filter(|_| self.count == 0) {
            disk.sync_folder(folder)?;
        }
        self.advance(framed.len() - HEAD_SIZE);
        Ok(())
    }

    /// Puts these records in the place of all others.
    pub(super) fn rewrite(
        &mut self,
        disk: &Disk,
        path: &Path,
        name: &str,
        key: &StoreKey,
        records: &[Vec<u8>],
    ) -> Result<(), StoreError> {
        let (mut log, mut bytes) = (Self::default(), Vec::new());
        for record in records {
            let framed = framed(path, &place(name, log.count), key, record)?;
            log.advance(framed.len() - HEAD_SIZE);
            bytes.extend_from_slice(&framed);
        }
        disk.write_whole(path, &bytes)?;
        *self = log;
        Ok(())
    }

    fn advance(&mut self, sealed_size: usize) {
        // Sizes of records are bounded, so 64 bits are enough for ever.
        self.size += (HEAD_SIZE + sealed_size) as u64;
        self.count += 1;
    }
}

/// What a record is sealed for.
fn place(name: &str, number: u64) -> String {
    format!("{name}:{number}")
}

fn framed(path: &Path, place: &str, key: &StoreKey, record: &[u8]) -> Result<Vec<u8>, StoreError> {
    let sealed = key.seal(place, record).map_err(|error| StoreError::damaged(path, error))?;
    let size = u32::try_from(sealed.len()).ok().filter(|_| sealed.len() <= RECORD_SIZE_MAX);
    let size = size.ok_or_else(|| StoreError::damaged(path, "a record is too large"))?;
    Ok([&size.to_le_bytes()[..], &sealed].concat())
}

/// The next sealed record, and what follows it; nothing if it is not whole.
fn next_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<HEAD_SIZE>()?;
    let size = usize::try_from(u32::from_le_bytes(*head)).ok()?;
    (OVERHEAD..=RECORD_SIZE_MAX).contains(&size).then(|| rest.split_at_checked(size)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> StoreKey {
        StoreKey::from_seed(&[1; 32])
    }

    #[test]
    fn every_prefix_of_a_log_is_a_log() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = Log::default();
        let mut ends = vec![0];
        for record in [&b"one"[..], b"", b"three"] {
            log.append(&Disk::default(), &path, "x", &key(), record).unwrap();
            ends.push(log.size);
        }
        let whole = std::fs::read(&path).unwrap();
        for end in 0..=whole.len() {
            std::fs::write(&path, &whole[..end]).unwrap();
            let (log, records) = Log::read(&path, "x", &key()).unwrap();
            let count = ends.iter().filter(|at| **at <= end as u64).count() - 1;
            assert_eq!((records.len(), log.size), (count, ends[count]), "{end}");
        }
    }

    #[test]
    fn what_a_failed_step_left_is_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = Log::default();
        log.append(&Disk::default(), &path, "x", &key(), b"one").unwrap();
        let mut torn = std::fs::read(&path).unwrap();
        torn.extend_from_slice(&[200, 0, 0, 0, 1, 2, 3]);
        std::fs::write(&path, torn).unwrap();
        let (mut log, _) = Log::read(&path, "x", &key()).unwrap();
        log.append(&Disk::default(), &path, "x", &key(), b"two").unwrap();
        let (_, records) = Log::read(&path, "x", &key()).unwrap();
        assert_eq!(records, [b"one".to_vec(), b"two".to_vec()]);
    }

    #[test]
    fn damage_in_the_middle_is_not_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = Log::default();
        log.append(&Disk::default(), &path, "x", &key(), b"one").unwrap();
        log.append(&Disk::default(), &path, "x", &key(), b"two").unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[HEAD_SIZE + 13] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(Log::read(&path, "x", &key()), Err(StoreError::Damaged { .. })));
        assert!(Log::read(&path, "y", &key()).is_err());
    }

    #[test]
    fn a_log_can_be_written_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = Log::default();
        (0..9).for_each(|_| log.append(&Disk::default(), &path, "x", &key(), b"one").unwrap());
        log.rewrite(&Disk::default(), &path, "x", &key(), &[b"two".to_vec()]).unwrap();
        log.append(&Disk::default(), &path, "x", &key(), b"three").unwrap();
        let (read, records) = Log::read(&path, "x", &key()).unwrap();
        assert_eq!(records, [b"two".to_vec(), b"three".to_vec()]);
        assert_eq!((read, read.count), (log, 2));
    }
}
