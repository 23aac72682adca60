//! The chain on disk: one file, to which each block is appended with what it changed.
//!
//! ```text
//! "devchain log 1\n"  record  record  …
//! record = length of the body (u32 LE) | first 8 bytes of BLAKE2b-128 of the body | body
//! body   = SCALE(header, extrinsics, [(key, value or none)])
//! ```
//!
//! The first record is block 0 with the whole state. A restart reads the records and never executes a
//! block again; that the state root of the last header comes out proves nothing was lost between. A
//! record cut short by a power failure is the last one, and is dropped: its block was never
//! announced.

use std::{
    fs::{File, OpenOptions},
    io::{BufReader, Read as _, Seek as _, SeekFrom, Write as _},
    path::Path,
    time::{Duration, Instant},
};

use codec::{Decode, Encode};

use super::ChainError;
use crate::runtime::Header;

/// What the file begins with.
const MAGIC: &[u8] = b"devchain log 1\n";
/// The file's name in its directory.
const FILE_NAME: &str = "chain.log";
/// A record's length and checksum.
const RECORD_HEADER_SIZE: usize = 12;
/// The largest body that is read: more than any block can change.
const BODY_SIZE_MAX: u32 = 256 * 1024 * 1024;
/// How long to wait for another process to leave the file.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// One block with what it changed.
#[derive(Encode, Decode)]
pub(super) struct Record {
    pub(super) header: Header,
    pub(super) extrinsics: Vec<Vec<u8>>,
    pub(super) changes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

/// The open file.
pub(super) struct Log {
    file: File,
}

impl Log {
    /// Opens the log of a directory, making both when they are missing, and gives `each` its
    /// records.
    pub(super) fn open(
        dir: &Path,
        mut each: impl FnMut(Record) -> Result<(), ChainError>,
    ) -> Result<Self, ChainError> {
        std::fs::create_dir_all(dir).map_err(|source| io(dir, source))?;
        let path = dir.join(FILE_NAME);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|source| io(&path, source))?;
        lock(&file, &path)?;
        let size = file.metadata().map_err(|source| io(&path, source))?.len();
        let end = if size < MAGIC.len() as u64 {
            file.set_len(0).map_err(|source| io(&path, source))?;
            file.write_all(MAGIC).map_err(|source| io(&path, source))?;
            File::open(dir).and_then(|dir| dir.sync_all()).map_err(|source| io(dir, source))?;
            MAGIC.len() as u64
        } else {
            read_records(&file, &path, size, &mut each)?
        };
        if end < size {
            tracing::warn!(dropped = size - end, "the log ended in the middle of a block");
            file.set_len(end).map_err(|source| io(&path, source))?;
        }
        file.seek(SeekFrom::Start(end)).map_err(|source| io(&path, source))?;
        Ok(Self { file })
    }

    /// Appends a block. It is durable after [`Self::sync`].
    pub(super) fn append(&mut self, record: &Record) -> std::io::Result<()> {
        let mut bytes = vec![0; RECORD_HEADER_SIZE];
        record.encode_to(&mut bytes);
        let (head, body) = bytes.split_at_mut(RECORD_HEADER_SIZE);
        let length = u32::try_from(body.len())
            .ok()
            .filter(|length| *length <= BODY_SIZE_MAX)
            .ok_or_else(|| std::io::Error::other("a block changed too much to be written"))?;
        head[..4].copy_from_slice(&length.to_le_bytes());
        head[4..].copy_from_slice(&checksum(body));
        self.file.write_all(&bytes)
    }

    /// Makes durable what was appended.
    pub(super) fn sync(&mut self) -> std::io::Result<()> {
        self.file.sync_data()
    }
}

/// Reads the records up to `size`; where the last whole one ends.
fn read_records(
    file: &File,
    path: &Path,
    size: u64,
    each: &mut impl FnMut(Record) -> Result<(), ChainError>,
) -> Result<u64, ChainError> {
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut magic = [0; MAGIC.len()];
    reader.read_exact(&mut magic).map_err(|source| io(path, source))?;
    if magic != MAGIC {
        return Err(ChainError::NotALog { path: path.to_path_buf() });
    }
    let mut offset = MAGIC.len() as u64;
    let mut body = Vec::new();
    while offset + (RECORD_HEADER_SIZE as u64) <= size {
        let mut head = [0; RECORD_HEADER_SIZE];
        reader.read_exact(&mut head).map_err(|source| io(path, source))?;
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        let end = offset + RECORD_HEADER_SIZE as u64 + u64::from(length);
        if length > BODY_SIZE_MAX || end > size {
            break;
        }
        body.resize(length as usize, 0);
        reader.read_exact(&mut body).map_err(|source| io(path, source))?;
        let record = (checksum(&body) == head[4..]).then(|| Record::decode(&mut &body[..]));
        match record {
            Some(Ok(record)) => each(record)?,
            // Within the file it is not torn but damaged, and what follows must not be thrown away.
            Some(Err(_)) | None if end < size => {
                return Err(ChainError::Damaged { path: path.to_path_buf(), offset });
            }
            Some(Err(_)) | None => break,
        }
        offset = end;
    }
    Ok(offset)
}

fn checksum(body: &[u8]) -> [u8; 8] {
    let hash = sp_io::hashing::blake2_128(body);
    let mut first = [0; 8];
    first.copy_from_slice(&hash[..8]);
    first
}

/// One process at a time. The one before us may be on its way out.
fn lock(file: &File, path: &Path) -> Result<(), ChainError> {
    let start = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(std::fs::TryLockError::WouldBlock) if start.elapsed() < LOCK_TIMEOUT => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(ChainError::Locked { path: path.to_path_buf() });
            }
            Err(std::fs::TryLockError::Error(source)) => return Err(io(path, source)),
        }
    }
}

fn io(path: &Path, source: std::io::Error) -> ChainError {
    ChainError::Io { path: path.to_path_buf(), source }
}

#[cfg(test)]
mod tests {
    use sp_runtime::traits::Header as _;

    use super::*;

    fn record(number: u32) -> Record {
        Record {
            header: Header::new_from_number(number),
            extrinsics: vec![vec![1; 40]],
            changes: vec![(vec![2; 8], Some(vec![3; 90])), (vec![4], None)],
        }
    }

    fn read(dir: &Path) -> Result<(Log, Vec<u32>), ChainError> {
        let mut numbers = Vec::new();
        let log = Log::open(dir, |record| {
            numbers.push(record.header.number);
            Ok(())
        })?;
        Ok((log, numbers))
    }

    #[test]
    fn every_cut_leaves_the_whole_records_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, none) = read(dir.path()).unwrap();
        assert!(none.is_empty());
        let mut ends = vec![MAGIC.len()];
        for number in 0..3 {
            log.append(&record(number)).unwrap();
            ends.push(usize::try_from(log.file.metadata().unwrap().len()).unwrap());
        }
        drop(log);
        let whole = std::fs::read(dir.path().join(FILE_NAME)).unwrap();
        for cut in 0..=whole.len() {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join(FILE_NAME), &whole[..cut]).unwrap();
            let (mut log, numbers) = read(dir.path()).unwrap();
            let kept = ends.iter().filter(|end| **end <= cut).count().saturating_sub(1);
            assert_eq!(numbers.len(), kept, "cut at {cut}");
            log.append(&record(9)).unwrap();
            drop(log);
            assert_eq!(read(dir.path()).unwrap().1.last(), Some(&9), "cut at {cut}");
        }
    }

    #[test]
    fn damage_in_the_middle_is_an_error_and_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _) = read(dir.path()).unwrap();
        log.append(&record(0)).unwrap();
        log.append(&record(1)).unwrap();
        drop(log);
        let path = dir.path().join(FILE_NAME);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[MAGIC.len() + RECORD_HEADER_SIZE + 3] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(matches!(read(dir.path()), Err(ChainError::Damaged { offset: 15, .. })));
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }
}
