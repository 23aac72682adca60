//! A namespace as one stream: export, restore, verify.
//!
//! ```text
//!  "ZDBBAK01", then frames: u32 size, u32 CRC-32C of what follows, u8 kind, body
//!  kind 1, once, first:  properties, as a descriptor with other keys
//!  kind 2:               u64 sequence number, u32 timestamp, u8 key size, key, value
//!  kind 3:               u64 sequence number, u32 timestamp, u8 key size, key: it is gone
//!  kind 4:               u64 sequence number: all keys are gone
//!  kind 5, once, last:   u64 how many of kinds 2 to 4, u64 the last number, u64 next id
//! ```
//!
//! Every record that the log still has is in it, oldest first. A stream that was cut lacks its
//! last frame, and frames that were swapped or left out break the order or the count.

use std::io::{self, Read, Write};
use std::ops::ControlFlow;

use crate::descriptor::Descriptor;
use crate::log::bytes::Fields;
use crate::log::record::RECORD_SIZE_MAX;
use crate::{Change, Engine, Error, LogRecord, Name, Namespace, SeqNo, Settings};

const MAGIC: &[u8; 8] = b"ZDBBAK01";
const SETTINGS: u8 = 1;
const SET: u8 = 2;
const DELETE: u8 = 3;
const CLEAR: u8 = 4;
const END: u8 = 5;
/// Largest frame: a record with its number.
const FRAME_SIZE_MAX: usize = RECORD_SIZE_MAX + 64;
/// Bytes of records read from the log at once.
const STEP_SIZE: u64 = 16 * 1024 * 1024;
/// Bytes after which restored writes are handed to the disk.
const BATCH_SIZE: usize = 4 * 1024 * 1024;

/// What a stream holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Writes in it.
    pub record_count: u64,
    /// The newest of them.
    pub last: SeqNo,
}

/// Writes a namespace to a stream. An encrypted namespace is written decrypted: the stream's
/// place must be private. Passwords are part of it.
///
/// # Errors
///
/// [`Error::Write`] if the stream fails, and as [`Namespace::read_log`].
pub fn export(namespace: &mut Namespace, stream: &mut dyn Write) -> Result<Summary, Error> {
    namespace.sync().map_err(|failed| failed.source)?;
    let mut out = Frames { stream, buffer: Vec::new() };
    out.stream.write_all(MAGIC).map_err(Error::Write)?;
    let settings = namespace.settings().clone();
    let properties = Descriptor::new(namespace.storage(), settings, None)?;
    out.put(SETTINGS, &[&properties.to_bytes(namespace.storage(), None)?])?;
    let mut summary = Summary::default();
    let last = namespace.last();
    while summary.last < last {
        let mut failed = None;
        let known = namespace.read_log(summary.last, STEP_SIZE, &mut |record| {
            summary.record_count += 1;
            match out.put_record(&record) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        summary.last = known;
    }
    let numbers = [summary.record_count, summary.last.0, namespace.stats().next_id];
    out.put(
        END,
        &numbers.each_ref().map(|number| number.to_le_bytes()).each_ref().map(|b| &b[..]),
    )?;
    out.stream.flush().map_err(Error::Write)?;
    Ok(summary)
}

/// Makes a namespace of a stream. If it can't be read to its end, there is no namespace.
///
/// # Errors
///
/// [`Error::Format`], [`Error::Read`] if the stream fails, and as [`Engine::create`] and
/// [`Namespace::apply`].
pub fn restore(
    engine: &Engine,
    name: &Name,
    stream: &mut dyn Read,
) -> Result<(Namespace, Summary), Error> {
    let mut reader = Reader::new(stream)?;
    let settings = reader.settings.clone();
    let mut namespace = engine.create(name, settings)?;
    let restored = (|| {
        let mut pending = 0;
        while let Some(record) = reader.next()? {
            namespace.apply(&record)?;
            pending += size_of_change(&record.change);
            if pending > BATCH_SIZE {
                namespace.flush().map_err(|failed| failed.source)?;
                pending = 0;
            }
        }
        namespace.sync().map_err(|failed| failed.source)?;
        namespace.continue_ids(reader.next_id)
    })();
    match restored {
        Ok(()) => Ok((namespace, reader.summary)),
        Err(error) => {
            drop(namespace);
            engine.remove(name)?;
            Err(error)
        }
    }
}

/// Reads a stream to its end and believes nothing.
///
/// # Errors
///
/// [`Error::Format`], [`Error::Read`].
pub fn verify(stream: &mut dyn Read) -> Result<Summary, Error> {
    let mut reader = Reader::new(stream)?;
    while reader.next()?.is_some() {}
    Ok(reader.summary)
}

fn size_of_change(change: &Change<'_>) -> usize {
    match change {
        Change::Set { key, value, .. } => key.len() + value.len(),
        Change::Delete { key, .. } => key.len(),
        Change::Clear => 0,
    }
}

struct Frames<'a> {
    stream: &'a mut dyn Write,
    buffer: Vec<u8>,
}

impl Frames<'_> {
    fn put_record(&mut self, record: &LogRecord<'_>) -> Result<(), Error> {
        let seq = record.seq.0.to_le_bytes();
        match &record.change {
            Change::Set { key, value, timestamp } => {
                let size = [u8::try_from(key.len()).unwrap_or(u8::MAX)];
                self.put(SET, &[&seq, &timestamp.to_le_bytes(), &size, key, value])
            }
            Change::Delete { key, timestamp } => {
                let size = [u8::try_from(key.len()).unwrap_or(u8::MAX)];
                self.put(DELETE, &[&seq, &timestamp.to_le_bytes(), &size, key])
            }
            Change::Clear => self.put(CLEAR, &[&seq]),
        }
    }

    fn put(&mut self, kind: u8, parts: &[&[u8]]) -> Result<(), Error> {
        let size: usize = 1 + parts.iter().map(|part| part.len()).sum::<usize>();
        self.buffer.clear();
        self.buffer.extend_from_slice(&u32::try_from(size).unwrap_or(u32::MAX).to_le_bytes());
        self.buffer.extend_from_slice(&[0; 4]);
        self.buffer.push(kind);
        parts.iter().for_each(|part| self.buffer.extend_from_slice(part));
        let crc = crc32c::crc32c(&self.buffer[8..]);
        self.buffer[4..8].copy_from_slice(&crc.to_le_bytes());
        self.stream.write_all(&self.buffer).map_err(Error::Write)
    }
}

/// A stream, read frame by frame and believed only as far as it makes sense.
struct Reader<'a> {
    stream: &'a mut dyn Read,
    settings: Settings,
    frame: Vec<u8>,
    summary: Summary,
    next_id: u64,
    ended: bool,
}

impl<'a> Reader<'a> {
    fn new(stream: &'a mut dyn Read) -> Result<Self, Error> {
        let mut magic = [0; MAGIC.len()];
        stream.read_exact(&mut magic).map_err(cut_short)?;
        if magic != *MAGIC {
            return Err(malformed("it begins otherwise"));
        }
        let mut reader = Self {
            stream,
            settings: Settings::default(),
            frame: Vec::new(),
            summary: Summary::default(),
            next_id: 0,
            ended: false,
        };
        if reader.read_frame()? != SETTINGS {
            return Err(malformed("properties are missing"));
        }
        let body = reader.frame.get(1..).unwrap_or_default();
        let properties = Descriptor::parse(body, None)?;
        reader.settings = properties.ok_or_else(|| malformed("properties make no sense"))?.settings;
        Ok(reader)
    }

    /// The next record; `None` at the end of a whole stream.
    fn next(&mut self) -> Result<Option<LogRecord<'_>>, Error> {
        if self.ended {
            return Ok(None);
        }
        let kind = self.read_frame()?;
        if kind == END {
            self.end()?;
            return Ok(None);
        }
        let record = parse_record(kind, self.frame.get(1..).unwrap_or_default())
            .ok_or_else(|| malformed("a record makes no sense"))?;
        if record.seq <= self.summary.last {
            return Err(malformed("records are out of order"));
        }
        self.summary.last = record.seq;
        self.summary.record_count += 1;
        Ok(Some(record))
    }

    fn end(&mut self) -> Result<(), Error> {
        let mut fields = Fields(self.frame.get(1..).unwrap_or_default());
        let numbers = (fields.u64(), fields.u64(), fields.u64());
        let (Some(count), Some(last), Some(next_id)) = numbers else {
            return Err(malformed("the end makes no sense"));
        };
        if count != self.summary.record_count || last < self.summary.last.0 {
            return Err(malformed("records are missing"));
        }
        self.summary.last = SeqNo(last);
        self.next_id = next_id;
        self.ended = true;
        Ok(())
    }

    /// Reads a frame and verifies it; gives its kind.
    fn read_frame(&mut self) -> Result<u8, Error> {
        let mut head = [0; 8];
        self.stream.read_exact(&mut head).map_err(cut_short)?;
        let mut fields = Fields(&head);
        let (size, crc) = (fields.u32().unwrap_or(0) as usize, fields.u32());
        if size == 0 || size > FRAME_SIZE_MAX {
            return Err(malformed("a frame's size makes no sense"));
        }
        // As much memory as bytes come, not as were promised.
        self.frame.clear();
        let read = self.stream.take(size as u64).read_to_end(&mut self.frame);
        if read.map_err(Error::Read)? < size {
            return Err(cut_short(io::ErrorKind::UnexpectedEof.into()));
        }
        if Some(crc32c::crc32c(&self.frame)) != crc {
            return Err(malformed("a checksum is wrong"));
        }
        self.frame.first().copied().ok_or_else(|| malformed("a frame is empty"))
    }
}

fn parse_record(kind: u8, body: &[u8]) -> Option<LogRecord<'_>> {
    let mut fields = Fields(body);
    let seq = SeqNo(fields.u64()?);
    let change = match kind {
        SET | DELETE => {
            let timestamp = fields.u32()?;
            let key_size = fields.u8()?;
            let key = fields.slice(key_size.into())?;
            let value = fields.0;
            match kind {
                SET => Change::Set { key, value, timestamp },
                _ if value.is_empty() => Change::Delete { key, timestamp },
                _ => return None,
            }
        }
        CLEAR if fields.0.is_empty() => Change::Clear,
        _ => return None,
    };
    Some(LogRecord { seq, change })
}

fn malformed(reason: &'static str) -> Error {
    Error::Format { what: "backup", reason }
}

fn cut_short(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => malformed("it is cut short"),
        _ => Error::Read(error),
    }
}
