//! Requests to calls, results to replies.

use std::io;

use crate::bytes::Reader;
use crate::filesystem::{DirectoryEntry, Errno, FileSystem};

use super::wire::{
    self, DIRENT_SIZE, ENTRY_SIZE, InitReply, InitRequest, REQUEST_HEADER_SIZE, ReadRequest,
    RequestHeader, init_flag, opcode,
};
use super::{REPLY_BODY_SIZE_MAX, REQUEST_SIZE_MAX, Reply};

/// Protocol version that the server speaks; older kernels get theirs.
const MINOR: u32 = 38;
/// Oldest minor version whose structs are the ones of [`wire`] (Linux 3.15).
const MINOR_MIN: u32 = 23;
/// Longest name that a request may carry.
const NAME_SIZE_MAX: usize = 255;
/// `/dev/fuse` and virtio-fs queue this many requests that nobody waits for (readahead).
const BACKGROUND_MAX: u16 = 64;
/// Beyond this many the kernel stops reading ahead.
const CONGESTION_THRESHOLD: u16 = 48;
/// Least that the protocol allows; nothing is ever written.
const WRITE_SIZE_MAX: u32 = 4096;
/// Unit in which the kernel is told how much one request may ask for.
const PAGE_SIZE: usize = 4096;

const INIT_FLAGS: u32 = init_flag::ASYNC_READ
    | init_flag::EXPORT_SUPPORT
    | init_flag::DO_READDIRPLUS
    | init_flag::NO_OPEN_SUPPORT
    | init_flag::PARALLEL_DIROPS
    | init_flag::MAX_PAGES
    | init_flag::CACHE_SYMLINKS
    | init_flag::NO_OPENDIR_SUPPORT
    | init_flag::EXPLICIT_INVAL_DATA;

/// Serves one read-only [`FileSystem`] to one FUSE client. Has no state of its own: any number of
/// threads may call [`Server::handle`].
#[derive(Debug)]
pub struct Server<F> {
    file_system: F,
    body_size_max: usize,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A reply was sent: with contents, or with an error.
    Replied,
    /// The request wants no reply (`FORGET`).
    Silent,
    /// Too short to say whom to reply to, or not to be replied to: dropped.
    Malformed,
    /// The client ended the session (`DESTROY`), and got a reply.
    Destroyed,
}

/// Ways not to answer with a body.
type Answer = Result<(), Errno>;

impl<F: FileSystem> Server<F> {
    /// A server of `file_system`. The client is told to ask for no more than `body_size_max` bytes
    /// at once, which is cut to whole pages and to [`REPLY_BODY_SIZE_MAX`].
    pub fn new(file_system: F, body_size_max: usize) -> Self {
        let body_size_max = body_size_max.clamp(PAGE_SIZE, REPLY_BODY_SIZE_MAX);
        Self { file_system, body_size_max }
    }

    /// The file system served.
    pub const fn file_system(&self) -> &F {
        &self.file_system
    }

    /// Handles one request; at most one reply goes to `reply`, which must be empty. A longer request
    /// than [`REQUEST_SIZE_MAX`] may be given cut to that size.
    ///
    /// # Errors
    /// Only what [`Reply::send`] returns; bad requests and failed calls are replies.
    pub fn handle(&self, request: &[u8], reply: &mut dyn Reply) -> io::Result<Outcome> {
        let mut reader = Reader::new(request);
        let Some(header) = RequestHeader::decode(&mut reader) else {
            return Ok(Outcome::Malformed);
        };
        if matches!(header.opcode, opcode::FORGET | opcode::BATCH_FORGET) {
            return Ok(Outcome::Silent);
        }
        let answer = arguments(&header, request)
            .and_then(|arguments| self.dispatch(&header, arguments, reply));
        let error = answer.err().map_or(0, Errno::raw_os_error);
        if error != 0 {
            reply.clear();
        }
        reply.send(wire::reply_header(header.unique, error, reply.size()))?;
        Ok(if header.opcode == opcode::DESTROY { Outcome::Destroyed } else { Outcome::Replied })
    }

    fn dispatch(&self, header: &RequestHeader, arguments: &[u8], reply: &mut dyn Reply) -> Answer {
        let node = header.node;
        match header.opcode {
            opcode::INIT => self.init(arguments, reply),
            opcode::LOOKUP => self.lookup(node, arguments, reply),
            opcode::GETATTR => {
                let attributes = self.file_system.attributes(node)?;
                put(reply, &wire::attributes_reply(&attributes))
            }
            opcode::READLINK => put(reply, &self.file_system.read_link(node)?),
            opcode::READ => self.read(node, arguments, reply),
            opcode::READDIR => self.read_directory(node, arguments, reply, false),
            opcode::READDIRPLUS => self.read_directory(node, arguments, reply, true),
            opcode::STATFS => put(reply, &wire::statfs_reply(&self.file_system.statistics()?)),
            opcode::GETXATTR => self.extended_attribute(node, arguments, reply),
            opcode::LISTXATTR => self.extended_attribute_names(node, arguments, reply),
            opcode::OPEN => open(arguments),
            opcode::RELEASE | opcode::RELEASEDIR | opcode::DESTROY => Ok(()),
            opcode::SETATTR
            | opcode::SYMLINK
            | opcode::MKNOD
            | opcode::MKDIR
            | opcode::UNLINK
            | opcode::RMDIR
            | opcode::RENAME
            | opcode::RENAME2
            | opcode::LINK
            | opcode::WRITE
            | opcode::SETXATTR
            | opcode::REMOVEXATTR
            | opcode::CREATE
            | opcode::FALLOCATE
            | opcode::COPY_FILE_RANGE
            | opcode::TMPFILE => Err(Errno::ROFS),
            // The kernel opens directories itself from now on, and keeps their listings.
            opcode::OPENDIR => Err(Errno::NOSYS),
            // ACCESS, FLUSH, FSYNC, LSEEK, IOCTL, INTERRUPT and whatever comes to be: the kernel then
            // does what is right without us, and most of them it never sends again.
            _ => Err(Errno::NOSYS),
        }
    }

    /// Agrees on version and flags.
    fn init(&self, arguments: &[u8], reply: &mut dyn Reply) -> Answer {
        let request = InitRequest::decode(&mut Reader::new(arguments)).ok_or(Errno::INVAL)?;
        let mut init = InitReply {
            minor: MINOR,
            readahead_size_max: 0,
            flags: 0,
            background_max: BACKGROUND_MAX,
            congestion_threshold: CONGESTION_THRESHOLD,
            write_size_max: WRITE_SIZE_MAX,
            pages_max: u16::try_from(self.body_size_max / PAGE_SIZE).unwrap_or(u16::MAX),
        };
        if request.major < 7 || (request.major == 7 && request.minor < MINOR_MIN) {
            return Err(Errno::PROTO);
        }
        // A newer major version learns ours from the reply and asks again in it.
        if request.major == 7 {
            init.minor = MINOR.min(request.minor);
            init.readahead_size_max = request.readahead_size_max;
            init.flags = request.flags & INIT_FLAGS;
        }
        put(reply, &wire::init_reply(&init))
    }

    fn lookup(&self, parent: u64, arguments: &[u8], reply: &mut dyn Reply) -> Answer {
        match self.file_system.lookup(parent, name(arguments)?) {
            Ok(attributes) => put(reply, &wire::entry(&attributes)),
            Err(Errno::NOENT) => {
                // No such parent is an error; no such name is an answer to remember.
                self.file_system.attributes(parent)?;
                put(reply, &wire::negative_entry())
            }
            Err(error) => Err(error),
        }
    }

    fn read(&self, node: u64, arguments: &[u8], reply: &mut dyn Reply) -> Answer {
        let read = ReadRequest::decode(&mut Reader::new(arguments)).ok_or(Errno::INVAL)?;
        let room = reply.room().min(self.body_size_max);
        let size = u32::try_from(room).unwrap_or(u32::MAX).min(read.size);
        self.file_system.read(node, read.offset, size, reply)
    }

    fn read_directory(
        &self,
        node: u64,
        arguments: &[u8],
        reply: &mut dyn Reply,
        is_plus: bool,
    ) -> Answer {
        let read = ReadRequest::decode(&mut Reader::new(arguments)).ok_or(Errno::INVAL)?;
        let size = usize::try_from(read.size).unwrap_or(usize::MAX);
        let mut room = size.min(reply.room()).min(self.body_size_max);
        let mut result = Ok(());
        self.file_system.read_directory(node, read.offset, &mut |entry| match put_entry(
            reply, room, &entry, is_plus,
        ) {
            Ok(Some(size)) => {
                room = room.saturating_sub(size);
                true
            }
            Ok(None) => false,
            Err(error) => {
                result = Err(error);
                false
            }
        })?;
        result
    }

    fn extended_attribute(&self, node: u64, arguments: &[u8], reply: &mut dyn Reply) -> Answer {
        let mut reader = Reader::new(arguments);
        let (size, _padding) = (reader.u32().ok_or(Errno::INVAL)?, reader.u32());
        let value = self
            .file_system
            .extended_attribute(node, name(arguments.get(8..).unwrap_or_default())?)?;
        put_sized(reply, size, &value)
    }

    fn extended_attribute_names(
        &self,
        node: u64,
        arguments: &[u8],
        reply: &mut dyn Reply,
    ) -> Answer {
        let size = Reader::new(arguments).u32().ok_or(Errno::INVAL)?;
        put_sized(reply, size, &self.file_system.extended_attribute_names(node)?)
    }
}

/// What follows the header, as long as the header says and the transport kept.
fn arguments<'a>(header: &RequestHeader, request: &'a [u8]) -> Result<&'a [u8], Errno> {
    let size = usize::try_from(header.size).unwrap_or(usize::MAX);
    let end = if request.len() >= REQUEST_SIZE_MAX { size.min(request.len()) } else { size };
    request.get(REQUEST_HEADER_SIZE..end).ok_or(Errno::INVAL)
}

/// Refuses to open for writing; else "no need to ask".
fn open(arguments: &[u8]) -> Answer {
    const ACCESS_MODE: u32 = 3;
    let flags = Reader::new(arguments).u32().ok_or(Errno::INVAL)?;
    Err(if flags & ACCESS_MODE == 0 { Errno::NOSYS } else { Errno::ROFS })
}

/// A name as requests carry it: ended by the only NUL.
fn name(arguments: &[u8]) -> Result<&[u8], Errno> {
    let (end, name) = arguments.split_last().ok_or(Errno::INVAL)?;
    if *end != 0 || name.is_empty() || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
        return Err(Errno::INVAL);
    }
    if name.len() > NAME_SIZE_MAX {
        return Err(Errno::NAMETOOLONG);
    }
    Ok(name)
}

/// Adds to the body. A transport that has no room for it asked for less than the protocol does.
fn put(reply: &mut dyn Reply, bytes: &[u8]) -> Answer {
    if bytes.len() > reply.room() {
        return Err(Errno::INVAL);
    }
    reply.bytes(bytes).map_err(|_| Errno::IO)
}

/// The two-step answer of extended attributes: size 0 asks how much room is needed.
fn put_sized(reply: &mut dyn Reply, size: u32, value: &[u8]) -> Answer {
    let value_size = u32::try_from(value.len()).map_err(|_| Errno::TOOBIG)?;
    match size {
        0 => {
            put(reply, &value_size.to_le_bytes())?;
            put(reply, &[0; 4])
        }
        size if size < value_size => Err(Errno::RANGE),
        _ => put(reply, value),
    }
}

/// Adds an entry if it fits in `room`; returns its size.
fn put_entry(
    reply: &mut dyn Reply,
    room: usize,
    entry: &DirectoryEntry<'_>,
    is_plus: bool,
) -> Result<Option<usize>, Errno> {
    let attributes = &entry.attributes;
    let name_size = u32::try_from(entry.name.len()).map_err(|_| Errno::NAMETOOLONG)?;
    let padded = entry.name.len().next_multiple_of(8);
    let size = padded + DIRENT_SIZE + if is_plus { ENTRY_SIZE } else { 0 };
    if size > room {
        return Ok(None);
    }
    if is_plus {
        let is_dot = matches!(entry.name, b"." | b"..");
        // The kernel takes no reference to "." and ".."; a node of 0 says so.
        put(reply, &if is_dot { [0; ENTRY_SIZE] } else { wire::entry(attributes) })?;
    }
    put(reply, &wire::dirent(attributes.ino, entry.next_offset, name_size, attributes.mode))?;
    put(reply, entry.name)?;
    put(reply, [0; 8].get(..padded - entry.name.len()).unwrap_or_default())?;
    Ok(Some(size))
}
