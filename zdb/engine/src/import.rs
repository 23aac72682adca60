//! Reads directories written by the existing server (`reference: zdb 2.5`).
//!
//! Data files are the truth: every record in them whose header makes sense and whose checksum is
//! right is taken, in order; the index files are only asked for the mode and for how many ids were
//! given out. A torn tail and damaged records are counted and left out: the checksum covers only
//! the payload, so where a header makes no sense, the next record is looked for byte by byte.
//! Originals are not touched.

use std::path::Path;

use crate::log::bytes::Fields;
use crate::log::scan::Window;
use crate::storage::{File, Open, Storage, read_full};
use crate::{
    Change, Engine, Error, KEY_SIZE_MAX, LogRecord, Mode, Name, Namespace, Password, SeqNo,
    Settings, VALUE_SIZE_MAX,
};

const DATA_MAGIC: &[u8] = b"DAT0";
const INDEX_MAGIC: &[u8] = b"IDX0";
const DATA_HEADER_SIZE: u64 = 28;
const INDEX_HEADER_SIZE: u64 = 29;
const RECORD_HEAD_SIZE: usize = 18;
/// Of an index entry in sequential mode.
const ID_ENTRY_SIZE: u64 = 34 + 8;
const DESCRIPTOR_NAME: &str = "zdb-namespace";
const DESCRIPTOR_SIZE_MAX: usize = 1024;
const FLAG_PUBLIC: u8 = 1;
const FLAG_WORM: u8 = 2;
const FLAG_DELETED: u8 = 1;
const FLAGS_KNOWN: u8 = 3;
/// Files of a namespace that are looked for; each has up to 4 GiB.
const FILE_COUNT_MAX: u32 = 65_536;
/// How many bytes checksums may cover while looking for a next record, per byte of the file.
const RESYNC_FACTOR: u64 = 8;
/// Bytes after which writes are handed to the disk.
const BATCH_SIZE: usize = 4 * 1024 * 1024;

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Writes taken over.
    pub record_count: u64,
    /// Places left out: records that are damaged.
    pub damaged_count: u64,
    /// Bytes at the ends of files that are no record.
    pub torn_size: u64,
}

/// Namespaces below two folders of the existing server; empty if they are not its.
///
/// # Errors
///
/// [`Error::File`].
pub fn find(engine: &Engine, data: &Path, index: &Path) -> Result<Vec<Name>, Error> {
    let storage = engine.storage();
    let listed = storage.list(index);
    let listed = listed.map_err(|error| crate::engine::file_error(error, index))?;
    let mut names: Vec<Name> = listed
        .iter()
        .filter(|folder| is_foreign(storage, &data.join(folder).join("d0")))
        .filter_map(|folder| Name::new(folder.as_encoded_bytes()).ok())
        .collect();
    names.sort();
    Ok(names)
}

/// Whether a file is a data file of the existing server.
pub(crate) fn is_foreign(storage: &dyn Storage, path: &Path) -> bool {
    let mut magic = [0; 4];
    let read = storage.open(path, Open::Existing).and_then(|file| read_full(&*file, &mut magic, 0));
    read.is_ok() && magic == *DATA_MAGIC
}

/// Makes a namespace of one of them, with its properties.
///
/// # Errors
///
/// [`Error::Format`] if the descriptor can't be read, [`Error::Read`], and as [`Engine::create`].
/// After an error there is no such namespace.
pub fn import(
    engine: &Engine,
    data: &Path,
    index: &Path,
    name: &Name,
) -> Result<(Namespace, Report), Error> {
    use std::os::unix::ffi::OsStrExt;
    let folder = std::ffi::OsStr::from_bytes(name.as_bytes());
    let (data, index) = (data.join(folder), index.join(folder));
    let storage = engine.storage();
    let mut settings = settings(storage, &index)?;
    settings.mode = mode(storage, &index);
    let mut namespace = engine.create(name, settings)?;
    match import_files(storage, &data, &index, &mut namespace) {
        Ok(report) => Ok((namespace, report)),
        Err(error) => {
            drop(namespace);
            engine.remove(name)?;
            Err(error)
        }
    }
}

fn import_files(
    storage: &dyn Storage,
    data: &Path,
    index: &Path,
    namespace: &mut Namespace,
) -> Result<Report, Error> {
    let mut report = Report::default();
    let mut id_count = 0;
    for id in 0..FILE_COUNT_MAX {
        let Ok(file) = storage.open(&data.join(format!("d{id}")), Open::Existing) else { break };
        import_file(&*file, namespace, &mut report)?;
        let entries = storage.open(&index.join(format!("i{id}")), Open::Existing);
        let size = entries.and_then(|file| file.size()).unwrap_or(0);
        id_count += size.saturating_sub(INDEX_HEADER_SIZE) / ID_ENTRY_SIZE;
    }
    namespace.sync().map_err(|failed| failed.source)?;
    if namespace.settings().mode == Mode::Sequential {
        namespace.continue_ids(id_count)?;
    }
    Ok(report)
}

/// `u32 version, u8 name size, u8 password size, u64 maxsize, u8 flags, name, password`.
fn settings(storage: &dyn Storage, index: &Path) -> Result<Settings, Error> {
    let file = storage.open(&index.join(DESCRIPTOR_NAME), Open::Existing).map_err(Error::Read)?;
    let mut bytes = vec![0; DESCRIPTOR_SIZE_MAX];
    let read = read_full(&*file, &mut bytes, 0).map_err(Error::Read)?;
    bytes.truncate(read);
    parse_settings(&bytes).ok_or(Error::Format {
        what: "descriptor of the existing server",
        reason: "not of version 1, or cut short",
    })
}

fn parse_settings(bytes: &[u8]) -> Option<Settings> {
    let mut fields = Fields(bytes);
    if fields.u32()? != 1 {
        return None;
    }
    let (name_size, password_size) = (fields.u8()?, fields.u8()?);
    let (size_max, flags) = (fields.u64()?, fields.u8()?);
    fields.slice(name_size.into())?;
    let password = fields.slice(password_size.into())?;
    Some(Settings {
        size_max,
        password: (!password.is_empty()).then(|| Password::new(password)),
        public: flags & FLAG_PUBLIC != 0,
        worm: flags & FLAG_WORM != 0,
        ..Settings::default()
    })
}

/// The mode is the byte after the first index file's id.
fn mode(storage: &dyn Storage, index: &Path) -> Mode {
    let mut header = [0; 29];
    let read = storage
        .open(&index.join("i0"), Open::Existing)
        .and_then(|file| read_full(&*file, &mut header, 0));
    let is_sequential = read.is_ok() && header.starts_with(INDEX_MAGIC) && header[28] == 1;
    if is_sequential { Mode::Sequential } else { Mode::User }
}

/// A record's fixed part.
struct Head {
    key_size: usize,
    value_size: usize,
    crc: u32,
    deleted: bool,
    timestamp: u32,
}

impl Head {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let key_size = usize::from(fields.u8()?);
        let value_size = fields.u32()? as usize;
        let (_previous, crc) = (fields.u32()?, fields.u32()?);
        let (flags, timestamp) = (fields.u8()?, fields.u32()?);
        let deleted = flags & FLAG_DELETED != 0;
        let sound = (1..=KEY_SIZE_MAX).contains(&key_size)
            && value_size <= VALUE_SIZE_MAX
            && flags & !FLAGS_KNOWN == 0
            && (!deleted || value_size == 0);
        sound.then_some(Self { key_size, value_size, crc, deleted, timestamp })
    }

    fn record_size(&self) -> usize {
        RECORD_HEAD_SIZE + self.key_size + self.value_size
    }
}

fn import_file(
    file: &dyn File,
    namespace: &mut Namespace,
    report: &mut Report,
) -> Result<(), Error> {
    let size = file.size().map_err(Error::Read)?;
    let mut window = Window::new(file, size);
    let mut offset = DATA_HEADER_SIZE;
    let mut pending = 0;
    let mut work = size * RESYNC_FACTOR;
    while offset < size {
        if let Some(record_size) = import_record(&mut window, offset, namespace)? {
            report.record_count += 1;
            offset += record_size as u64;
            pending += record_size;
            if pending > BATCH_SIZE {
                namespace.flush().map_err(|failed| failed.source)?;
                pending = 0;
            }
            continue;
        }
        match next_record(&mut window, offset, size, &mut work)? {
            Some(next) => {
                report.damaged_count += 1;
                offset = next;
            }
            None => {
                report.torn_size += size - offset;
                break;
            }
        }
    }
    namespace.flush().map_err(|failed| failed.source)
}

/// Takes the record at an offset, if it is whole; gives its size.
fn import_record(
    window: &mut Window<'_>,
    offset: u64,
    namespace: &mut Namespace,
) -> Result<Option<usize>, Error> {
    let Some(head) = head_at(window, offset)? else { return Ok(None) };
    let size = head.record_size();
    let Some(bytes) = window.get(offset, size)? else { return Ok(None) };
    let body =
        bytes.get(RECORD_HEAD_SIZE..size).and_then(|body| body.split_at_checked(head.key_size));
    let Some((key, value)) = body.filter(|(_, value)| payload_crc(value) == head.crc) else {
        return Ok(None);
    };
    let timestamp = head.timestamp;
    let change = match head.deleted {
        true => Change::Delete { key, timestamp },
        false => Change::Set { key, value, timestamp },
    };
    let seq = SeqNo(namespace.last().0 + 1);
    match namespace.apply(&LogRecord { seq, change }) {
        // Not a key of this mode: it can't have been written there.
        Err(Error::UnknownId) => Ok(None),
        taken => taken.map(|()| Some(size)),
    }
}

fn head_at(window: &mut Window<'_>, offset: u64) -> Result<Option<Head>, Error> {
    Ok(window.get(offset, RECORD_HEAD_SIZE)?.and_then(Head::parse))
}

/// Where the next whole record with a payload is, behind a place where there is none. Payloads
/// prove a record; where the header there makes sense and leads to another sensible header, only
/// its payload is broken.
fn next_record(
    window: &mut Window<'_>,
    offset: u64,
    size: u64,
    work: &mut u64,
) -> Result<Option<u64>, Error> {
    if let Some(head) = head_at(window, offset)? {
        let next = offset + head.record_size() as u64;
        if next < size && head_at(window, next)?.is_some() {
            return Ok(Some(next));
        }
    }
    for place in offset + 1..size {
        let Some(head) = head_at(window, place)? else { continue };
        if head.value_size == 0 || place + head.record_size() as u64 > size {
            continue;
        }
        *work = work.saturating_sub(head.record_size() as u64);
        if *work == 0 {
            return Ok(None);
        }
        let value = window
            .get(place, head.record_size())?
            .and_then(|bytes| bytes.get(RECORD_HEAD_SIZE + head.key_size..));
        if value.is_some_and(|value| payload_crc(value) == head.crc) {
            return Ok(Some(place));
        }
    }
    Ok(None)
}

/// CRC-32C from 0 and without the final inversion, as the existing server computes it.
pub(crate) fn payload_crc(payload: &[u8]) -> u32 {
    !crc32c::crc32c_append(!0, payload)
}
