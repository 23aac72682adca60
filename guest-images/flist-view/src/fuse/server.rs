//! Requests to calls, results to replies.

use std::io;

use std::os::fd::BorrowedFd;
use std::time::Duration;

use crate::bytes::Reader;
use crate::filesystem::{
    Attributes, DirectoryEntry, Errno, FileSystem, Listing, Policy, WriteSource,
};

use super::wire::{
    self, DIRENT_SIZE, ENTRY_SIZE, InitReply, InitRequest, REQUEST_HEADER_SIZE, ReadRequest,
    RequestHeader, init_flag, opcode,
};
use super::{REPLY_BODY_SIZE_MAX, REQUEST_SIZE_MAX, Reply, WRITE_HEAD_SIZE};

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
/// Unit in which the kernel is told how much one request may ask for.
const PAGE_SIZE: usize = 4096;

/// Whatever the file system.
const INIT_FLAGS: u32 = init_flag::ASYNC_READ
    | init_flag::DO_READDIRPLUS
    | init_flag::NO_OPEN_SUPPORT
    | init_flag::PARALLEL_DIROPS
    | init_flag::MAX_PAGES
    | init_flag::CACHE_SYMLINKS
    | init_flag::NO_OPENDIR_SUPPORT;
/// Of one that may be written to.
const INIT_FLAGS_WRITABLE: u32 =
    init_flag::BIG_WRITES | init_flag::READDIRPLUS_AUTO | init_flag::HANDLE_KILLPRIV_V2;

/// Serves one [`FileSystem`] to one FUSE client. Has no state of its own: any number of threads may
/// call [`Server::handle`].
#[derive(Debug)]
pub struct Server<F: ?Sized> {
    pub(super) policy: Policy,
    body_size_max: usize,
    pub(super) file_system: F,
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
pub(super) type Answer = Result<(), Errno>;

/// One request, on its way through the server.
pub(super) struct Call<'a> {
    pub(super) header: RequestHeader,
    /// What follows the header; of a `WRITE` whose contents are elsewhere, without them.
    pub(super) arguments: &'a [u8],
    pub(super) reply: &'a mut dyn Reply,
}

impl<F: FileSystem> Server<F> {
    /// A server of `file_system`. The client is told to ask for no more than `body_size_max` bytes
    /// at once, which is cut to whole pages and to [`REPLY_BODY_SIZE_MAX`].
    pub fn new(file_system: F, body_size_max: usize) -> Self {
        let body_size_max = body_size_max.clamp(PAGE_SIZE, REPLY_BODY_SIZE_MAX);
        let policy = file_system.policy();
        Self { policy, body_size_max, file_system }
    }
}

impl<F: FileSystem + ?Sized> Server<F> {
    /// The file system served.
    pub const fn file_system(&self) -> &F {
        &self.file_system
    }

    /// Whether the file system may be written to.
    pub const fn is_writable(&self) -> bool {
        self.policy.is_writable
    }

    /// Handles one request that came in one piece; at most one reply goes to `reply`, which must be
    /// empty. A longer request than [`REQUEST_SIZE_MAX`] may be given cut to that size, unless the
    /// file system may be written to.
    ///
    /// # Errors
    /// Only what [`Reply::send`] returns; bad requests and failed calls are replies.
    pub fn handle(&self, request: &[u8], reply: &mut dyn Reply) -> io::Result<Outcome> {
        if super::is_write(request)
            && let Some((head, contents)) = request.split_at_checked(WRITE_HEAD_SIZE)
        {
            return self.handle_with(head, &mut Contents(contents), reply);
        }
        self.handle_with(request, &mut Contents(&[]), reply)
    }

    /// As [`Server::handle`], for a transport that leaves the contents of a `WRITE` where they are:
    /// `request` ends where they begin.
    ///
    /// # Errors
    /// As for [`Server::handle`].
    pub fn handle_with(
        &self,
        request: &[u8],
        contents: &mut dyn WriteSource,
        reply: &mut dyn Reply,
    ) -> io::Result<Outcome> {
        let mut reader = Reader::new(request);
        let Some(header) = RequestHeader::decode(&mut reader) else {
            return Ok(Outcome::Malformed);
        };
        if matches!(header.opcode, opcode::FORGET | opcode::BATCH_FORGET) {
            self.forget(&header, reader.rest());
            return Ok(Outcome::Silent);
        }
        let answer = arguments(&header, request).and_then(|arguments| {
            let mut call = Call { header, arguments, reply: &mut *reply };
            self.dispatch(&mut call, contents)
        });
        let error = answer.err().map_or(0, Errno::raw_os_error);
        if error != 0 {
            reply.clear();
        }
        reply.send(wire::reply_header(header.unique, error, reply.size()))?;
        Ok(if header.opcode == opcode::DESTROY { Outcome::Destroyed } else { Outcome::Replied })
    }

    fn dispatch(&self, call: &mut Call<'_>, contents: &mut dyn WriteSource) -> Answer {
        let (node, arguments) = (call.header.node, call.arguments);
        if !self.policy.is_writable && is_change(call.header.opcode) {
            return Err(Errno::ROFS);
        }
        let reply = &mut *call.reply;
        match call.header.opcode {
            opcode::INIT => self.init(arguments, reply),
            opcode::LOOKUP => self.lookup(node, arguments, reply),
            opcode::GETATTR => {
                let attributes = self.file_system.attributes(node)?;
                put(reply, &wire::attributes_reply(&attributes, self.policy.valid))
            }
            opcode::READLINK => put(reply, &self.file_system.read_link(node)?),
            opcode::READ => self.read(node, arguments, reply),
            opcode::READDIR => self.read_directory(node, arguments, reply, Listing::Names),
            opcode::READDIRPLUS => self.read_directory(node, arguments, reply, Listing::Counted),
            opcode::STATFS => put(reply, &wire::statfs_reply(&self.file_system.statistics()?)),
            opcode::GETXATTR => self.extended_attribute(node, arguments, reply),
            opcode::LISTXATTR => self.extended_attribute_names(node, arguments, reply),
            opcode::OPEN if !self.policy.is_writable => open(arguments),
            opcode::RELEASE | opcode::RELEASEDIR => Ok(()),
            opcode::DESTROY => {
                self.file_system.forget_all();
                Ok(())
            }
            // OPEN, OPENDIR: the kernel opens by itself from now on, and keeps what it read. CREATE:
            // it sends MKNOD. ACCESS, FLUSH, IOCTL, INTERRUPT and whatever comes to be: it then does
            // what is right without us, and most of them it never sends again.
            _ => self.change(call, contents),
        }
    }

    /// Takes back what the client forgets; whatever makes no sense in it is passed over.
    fn forget(&self, header: &RequestHeader, arguments: &[u8]) {
        let mut reader = Reader::new(arguments);
        if header.opcode == opcode::FORGET {
            if let Some(count) = reader.u64() {
                self.file_system.forget(header.node, count);
            }
            return;
        }
        let (count, _padding) = (reader.u32().unwrap_or(0), reader.u32());
        for _ in 0..count {
            let (Some(node), Some(count)) = (reader.u64(), reader.u64()) else { return };
            self.file_system.forget(node, count);
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
            write_size_max: u32::try_from(self.write_size_max()).unwrap_or(u32::MAX),
            pages_max: u16::try_from(self.body_size_max / PAGE_SIZE).unwrap_or(u16::MAX),
        };
        if request.major < 7 || (request.major == 7 && request.minor < MINOR_MIN) {
            return Err(Errno::PROTO);
        }
        // A newer major version learns ours from the reply and asks again in it.
        if request.major == 7 {
            init.minor = MINOR.min(request.minor);
            init.readahead_size_max = request.readahead_size_max;
            init.flags = request.flags & self.init_flags();
        }
        self.file_system.forget_all();
        put(reply, &wire::init_reply(&init))
    }

    const fn init_flags(&self) -> u32 {
        let policy = &self.policy;
        let mut flags = INIT_FLAGS;
        flags |= if policy.is_writable { INIT_FLAGS_WRITABLE } else { 0 };
        flags |= if policy.has_lasting_numbers { init_flag::EXPORT_SUPPORT } else { 0 };
        flags
            | if policy.is_shared {
                init_flag::AUTO_INVAL_DATA
            } else {
                init_flag::EXPLICIT_INVAL_DATA
            }
    }

    /// As much as a read, or the least that the protocol allows.
    pub(super) const fn write_size_max(&self) -> usize {
        if self.policy.is_writable { self.body_size_max } else { PAGE_SIZE }
    }

    fn lookup(&self, parent: u64, arguments: &[u8], reply: &mut dyn Reply) -> Answer {
        match self.file_system.lookup(parent, name(arguments)?) {
            Ok(attributes) => self.put_counted(reply, &attributes),
            Err(Errno::NOENT) => {
                // No such parent is an error; no such name is an answer to remember.
                self.file_system.attributes(parent)?;
                put(reply, &wire::negative_entry(self.policy.valid))
            }
            Err(error) => Err(error),
        }
    }

    /// Puts an entry that the file system counted as known to the client. If there is no room for
    /// it, the client does not know.
    pub(super) fn put_counted(&self, reply: &mut dyn Reply, attributes: &Attributes) -> Answer {
        let result = put(reply, &wire::entry(attributes, self.policy.valid));
        if result.is_err() {
            self.file_system.forget(attributes.ino, 1);
        }
        result
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
        listing: Listing,
    ) -> Answer {
        let read = ReadRequest::decode(&mut Reader::new(arguments)).ok_or(Errno::INVAL)?;
        let size = usize::try_from(read.size).unwrap_or(usize::MAX);
        let mut room = size.min(reply.room()).min(self.body_size_max);
        let valid = (listing == Listing::Counted).then_some(self.policy.valid);
        let mut result = Ok(());
        self.file_system.read_directory(
            node,
            read.offset,
            listing,
            &mut |entry| match put_entry(reply, room, &entry, valid) {
                Ok(Some(size)) => {
                    room = room.saturating_sub(size);
                    true
                }
                Ok(None) => false,
                Err(error) => {
                    result = Err(error);
                    false
                }
            },
        )?;
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
    let is_cut = request.len() >= REQUEST_SIZE_MAX
        || (request.len() == WRITE_HEAD_SIZE && header.opcode == opcode::WRITE);
    let end = if is_cut { size.min(request.len()) } else { size };
    request.get(REQUEST_HEADER_SIZE..end).ok_or(Errno::INVAL)
}

/// Refuses to open for writing; else "no need to ask".
fn open(arguments: &[u8]) -> Answer {
    const ACCESS_MODE: u32 = 3;
    let flags = Reader::new(arguments).u32().ok_or(Errno::INVAL)?;
    Err(if flags & ACCESS_MODE == 0 { Errno::NOSYS } else { Errno::ROFS })
}

/// Contents that came in one piece with their request.
struct Contents<'a>(&'a [u8]);

impl WriteSource for Contents<'_> {
    fn size(&self) -> usize {
        self.0.len()
    }

    fn write(&mut self, file: BorrowedFd<'_>, offset: u64, size: usize) -> io::Result<usize> {
        let contents = self.0.get(..size).unwrap_or(self.0);
        let mut done = 0;
        while let Some(rest) = contents.get(done..).filter(|rest| !rest.is_empty()) {
            match rustix::io::pwrite(file, rest, offset.saturating_add(done as u64)) {
                Ok(count) => done = done.saturating_add(count),
                Err(error) if done == 0 => return Err(error.into()),
                Err(_) => break,
            }
        }
        Ok(done)
    }
}

/// Requests that a read-only file system refuses, whatever they say.
const fn is_change(opcode: u32) -> bool {
    matches!(
        opcode,
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
            | opcode::TMPFILE
    )
}

/// A name as requests carry it: ended by the only NUL.
pub(super) fn name(arguments: &[u8]) -> Result<&[u8], Errno> {
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
pub(super) fn put(reply: &mut dyn Reply, bytes: &[u8]) -> Answer {
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

/// Adds an entry if it fits in `room`, with attributes if it says how long they are `valid`; returns
/// its size.
fn put_entry(
    reply: &mut dyn Reply,
    room: usize,
    entry: &DirectoryEntry<'_>,
    valid: Option<Duration>,
) -> Result<Option<usize>, Errno> {
    let attributes = &entry.attributes;
    let name_size = u32::try_from(entry.name.len()).map_err(|_| Errno::NAMETOOLONG)?;
    let padded = entry.name.len().next_multiple_of(8);
    let size = padded + DIRENT_SIZE + valid.map_or(0, |_| ENTRY_SIZE);
    if size > room {
        return Ok(None);
    }
    if let Some(valid) = valid {
        let is_dot = matches!(entry.name, b"." | b"..");
        // The kernel takes no reference to "." and ".."; a node of 0 says so.
        put(reply, &if is_dot { [0; ENTRY_SIZE] } else { wire::entry(attributes, valid) })?;
    }
    put(reply, &wire::dirent(attributes.ino, entry.next_offset, name_size, attributes.mode))?;
    put(reply, entry.name)?;
    put(reply, [0; 8].get(..padded - entry.name.len()).unwrap_or_default())?;
    Ok(Some(size))
}
