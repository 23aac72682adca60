//! A FUSE client on the driver's side of a virtqueue, for tests.
//!
//! One request at a time, laid out as Linux does it: header and arguments in one readable buffer,
//! contents in others, the reply in one writable buffer or in pages.

use std::sync::Arc;

use flist_view::filesystem::{Errno, Ino};
use vm_memory::{Bytes, GuestAddress};

use crate::fs::{Fs, GuestFileSystem};
use crate::memory::SharedMemory;
use crate::testing::{self, Driver, Interrupts, NEXT, WRITE};
use crate::{Activation, Device, Interrupt, Unit, UnitError};

pub(super) mod op {
    pub(in crate::fs::tests) const LOOKUP: u32 = 1;
    pub(in crate::fs::tests) const FORGET: u32 = 2;
    pub(in crate::fs::tests) const GETATTR: u32 = 3;
    pub(in crate::fs::tests) const SETATTR: u32 = 4;
    pub(in crate::fs::tests) const READLINK: u32 = 5;
    pub(in crate::fs::tests) const SYMLINK: u32 = 6;
    pub(in crate::fs::tests) const MKNOD: u32 = 8;
    pub(in crate::fs::tests) const MKDIR: u32 = 9;
    pub(in crate::fs::tests) const UNLINK: u32 = 10;
    pub(in crate::fs::tests) const RMDIR: u32 = 11;
    pub(in crate::fs::tests) const RENAME: u32 = 12;
    pub(in crate::fs::tests) const LINK: u32 = 13;
    pub(in crate::fs::tests) const OPEN: u32 = 14;
    pub(in crate::fs::tests) const READ: u32 = 15;
    pub(in crate::fs::tests) const WRITE: u32 = 16;
    pub(in crate::fs::tests) const STATFS: u32 = 17;
    pub(in crate::fs::tests) const FSYNC: u32 = 20;
    pub(in crate::fs::tests) const SETXATTR: u32 = 21;
    pub(in crate::fs::tests) const GETXATTR: u32 = 22;
    pub(in crate::fs::tests) const LISTXATTR: u32 = 23;
    pub(in crate::fs::tests) const REMOVEXATTR: u32 = 24;
    pub(in crate::fs::tests) const INIT: u32 = 26;
    pub(in crate::fs::tests) const FSYNCDIR: u32 = 30;
    pub(in crate::fs::tests) const CREATE: u32 = 35;
    pub(in crate::fs::tests) const BATCH_FORGET: u32 = 42;
    pub(in crate::fs::tests) const FALLOCATE: u32 = 43;
    pub(in crate::fs::tests) const READDIRPLUS: u32 = 44;
    pub(in crate::fs::tests) const READDIR: u32 = 28;
    pub(in crate::fs::tests) const RENAME2: u32 = 45;
    pub(in crate::fs::tests) const LSEEK: u32 = 46;
    pub(in crate::fs::tests) const COPY_FILE_RANGE: u32 = 47;
    pub(in crate::fs::tests) const SYNCFS: u32 = 50;
    pub(in crate::fs::tests) const TMPFILE: u32 = 51;
}

/// Where buffers lie, beyond the memory of the two drivers.
const REQUEST: u64 = 4 << 20;
const REPLY: u64 = 8 << 20;
const MEMORY_SIZE: usize = 16 << 20;
const QUEUE_SIZE: u16 = 512;

pub(super) struct Client {
    pub(super) memory: SharedMemory,
    pub(super) device: Fs,
    pub(super) unit: Box<dyn Unit>,
    pub(super) interrupts: Arc<Interrupts>,
    pub(super) priority: Driver,
    pub(super) requests: Driver,
    unique: u64,
    /// Who asks.
    pub(super) caller: (u32, u32),
}

/// What an entry or attribute reply says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attr {
    pub(super) ino: Ino,
    pub(super) size: u64,
    pub(super) sectors: u64,
    pub(super) mtime: (i64, u32),
    pub(super) mode: u32,
    pub(super) nlink: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) rdev: u32,
    /// Seconds for which it may be believed.
    pub(super) valid: u64,
}

impl Client {
    pub(super) fn new(file_system: impl GuestFileSystem + 'static) -> Self {
        Self::with_device(Fs::new("test", 1, file_system).unwrap())
    }

    pub(super) fn with_device(mut device: Fs) -> Self {
        let memory = testing::memory(MEMORY_SIZE);
        let interrupts = Arc::new(Interrupts::default());
        let driver = |index: u16| {
            let base = u64::from(index) * testing::DRIVER_SIZE;
            let interrupt = Arc::clone(&interrupts) as Arc<dyn Interrupt>;
            Driver::new(&memory, base, index, QUEUE_SIZE, false, interrupt)
        };
        let ((priority, first), (requests, second)) = (driver(0), driver(1));
        let activation = Activation {
            memory: Arc::clone(&memory),
            features: device.features(),
            queues: vec![Some(first), Some(second)],
        };
        let unit = device.activate(activation).unwrap().pop().unwrap();
        let mut client = Self {
            memory,
            device,
            unit,
            interrupts,
            priority,
            requests,
            unique: 0,
            caller: (0, 0),
        };
        if !rustix::process::geteuid().is_root() {
            client.caller =
                (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        }
        client
    }

    pub(super) fn header(&mut self, opcode: u32, node: Ino, size: usize) -> Vec<u8> {
        self.unique += 1;
        let mut bytes = Vec::new();
        bytes.extend(u32::try_from(40 + size).unwrap().to_le_bytes());
        bytes.extend(opcode.to_le_bytes());
        bytes.extend(self.unique.to_le_bytes());
        bytes.extend(node.to_le_bytes());
        bytes.extend(self.caller.0.to_le_bytes());
        bytes.extend(self.caller.1.to_le_bytes());
        bytes.extend([0; 8]);
        bytes
    }

    /// Offers one chain: `request` in pieces of the sizes `cuts`, then the rest; room for a reply of
    /// `reply_size` bytes, in pages. Returns what the used ring says was written, if anything.
    pub(super) fn offer(
        &mut self,
        request: &[u8],
        cuts: &[usize],
        reply_size: usize,
    ) -> Result<Option<u32>, UnitError> {
        self.memory.write_slice(request, GuestAddress(REQUEST)).unwrap();
        let mut pieces = Vec::new();
        let mut at = 0;
        for size in cuts.iter().copied().chain([usize::MAX]) {
            let size = size.min(request.len() - at);
            if size > 0 {
                pieces.push((REQUEST + at as u64, size, 0));
            }
            at += size;
        }
        for page in (0..reply_size).step_by(4096) {
            pieces.push((REPLY + page as u64, (reply_size - page).min(4096), WRITE));
        }
        for (i, (address, size, flags)) in pieces.iter().enumerate() {
            let (index, size) = (u16::try_from(i).unwrap(), u32::try_from(*size).unwrap());
            let next = if i + 1 < pieces.len() { NEXT } else { 0 };
            self.requests.descriptor(index, *address, size, flags | next, index + 1);
        }
        self.requests.offer(0);
        self.unit.kicked(1)?;
        Ok(self.requests.take_used().map(|(head, written)| {
            assert_eq!(head, 0);
            written
        }))
    }

    /// Sends a request and returns the body of its reply.
    pub(super) fn call_with(
        &mut self,
        opcode: u32,
        node: Ino,
        arguments: &[u8],
        cuts: &[usize],
        body_size: usize,
    ) -> Result<Vec<u8>, Errno> {
        let mut request = self.header(opcode, node, arguments.len());
        request.extend(arguments);
        let written = self.offer(&request, cuts, 16 + body_size).unwrap().expect("a reply");
        self.reply(written)
    }

    /// The reply of `written` bytes.
    fn reply(&self, written: u32) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; written as usize];
        self.memory.read_slice(&mut bytes, GuestAddress(REPLY)).unwrap();
        assert_eq!(u32_at(&bytes, 0), written, "the used ring and the header agree");
        assert_eq!(u64_at(&bytes, 8), self.unique);
        match u32_at(&bytes, 4) {
            0 => Ok(bytes[16..].to_vec()),
            error => {
                assert_eq!(written, 16, "an error has no body");
                Err(Errno::from_raw_os_error(i32::try_from(error.wrapping_neg()).unwrap()))
            }
        }
    }

    pub(super) fn call(&mut self, opcode: u32, node: Ino, args: &[u8]) -> Result<Vec<u8>, Errno> {
        self.call_with(opcode, node, args, &[40], 4096)
    }

    pub(super) fn init(&mut self) -> Vec<u8> {
        let arguments = [7u32, 38, 1 << 20, u32::MAX].map(u32::to_le_bytes).concat();
        self.call(op::INIT, 0, &arguments).unwrap()
    }

    /// What `name` is; a negative entry is `NOENT`.
    pub(super) fn lookup(&mut self, parent: Ino, name: &str) -> Result<Attr, Errno> {
        let body = self.call(op::LOOKUP, parent, &c(name))?;
        if u64_at(&body, 0) == 0 { Err(Errno::NOENT) } else { Ok(entry(&body)) }
    }

    /// What the path leads to, following nothing.
    pub(super) fn walk(&mut self, path: &str) -> Result<Attr, Errno> {
        let mut ino = 1;
        let mut found = None;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let attr = self.lookup(ino, name)?;
            ino = attr.ino;
            found = Some(attr);
        }
        found.map_or_else(|| self.getattr(1), Ok)
    }

    pub(super) fn getattr(&mut self, node: Ino) -> Result<Attr, Errno> {
        self.call(op::GETATTR, node, &[0; 16]).map(|body| attributes(&body))
    }

    /// SETATTR with `fields`: which, at which offset of the arguments, what.
    pub(super) fn setattr(
        &mut self,
        node: Ino,
        valid: u32,
        fields: &[(usize, &[u8])],
    ) -> Result<Attr, Errno> {
        let mut arguments = [0; 88];
        arguments[..4].copy_from_slice(&valid.to_le_bytes());
        for (offset, value) in fields {
            arguments[*offset..*offset + value.len()].copy_from_slice(value);
        }
        self.call(op::SETATTR, node, &arguments).map(|body| attributes(&body))
    }

    pub(super) fn chmod(&mut self, node: Ino, mode: u32) -> Result<Attr, Errno> {
        self.setattr(node, 1, &[(68, &mode.to_le_bytes())])
    }

    pub(super) fn truncate(&mut self, node: Ino, size: u64) -> Result<Attr, Errno> {
        self.setattr(node, 1 << 3, &[(16, &size.to_le_bytes())])
    }

    pub(super) fn mknod(&mut self, parent: Ino, name: &str, mode: u32) -> Result<Attr, Errno> {
        self.mknod_device(parent, name, mode, 0)
    }

    pub(super) fn mknod_device(
        &mut self,
        parent: Ino,
        name: &str,
        mode: u32,
        rdev: u32,
    ) -> Result<Attr, Errno> {
        let arguments = [&u32s(&[mode, rdev, 0o22, 0]), &c(name)[..]].concat();
        self.call(op::MKNOD, parent, &arguments).map(|body| entry(&body))
    }

    /// An empty regular file of mode 0644.
    pub(super) fn touch(&mut self, parent: Ino, name: &str) -> Result<Attr, Errno> {
        self.mknod(parent, name, 0o100_644)
    }

    pub(super) fn mkdir(&mut self, parent: Ino, name: &str) -> Result<Attr, Errno> {
        let arguments = [&u32s(&[0o755, 0o22]), &c(name)[..]].concat();
        self.call(op::MKDIR, parent, &arguments).map(|body| entry(&body))
    }

    pub(super) fn symlink(&mut self, parent: Ino, name: &str, to: &str) -> Result<Attr, Errno> {
        let arguments = [c(name), c(to)].concat();
        self.call(op::SYMLINK, parent, &arguments).map(|body| entry(&body))
    }

    pub(super) fn readlink(&mut self, node: Ino) -> Result<String, Errno> {
        self.call(op::READLINK, node, b"").map(|body| String::from_utf8(body).unwrap())
    }

    pub(super) fn link(&mut self, node: Ino, parent: Ino, name: &str) -> Result<Attr, Errno> {
        let arguments = [&node.to_le_bytes()[..], &c(name)].concat();
        self.call(op::LINK, parent, &arguments).map(|body| entry(&body))
    }

    pub(super) fn unlink(&mut self, parent: Ino, name: &str) -> Result<(), Errno> {
        self.call(op::UNLINK, parent, &c(name)).map(drop)
    }

    pub(super) fn rmdir(&mut self, parent: Ino, name: &str) -> Result<(), Errno> {
        self.call(op::RMDIR, parent, &c(name)).map(drop)
    }

    pub(super) fn rename(
        &mut self,
        from: (Ino, &str),
        to: (Ino, &str),
        flags: u32,
    ) -> Result<(), Errno> {
        let names = [c(from.1), c(to.1)].concat();
        let arguments = [&to.0.to_le_bytes()[..], &u32s(&[flags, 0]), &names].concat();
        self.call(op::RENAME2, from.0, &arguments).map(drop)
    }

    pub(super) fn read(&mut self, node: Ino, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
        let arguments = read_arguments(offset, size);
        self.call_with(op::READ, node, &arguments, &[40], size as usize)
    }

    pub(super) fn write(&mut self, node: Ino, offset: u64, data: &[u8]) -> Result<u32, Errno> {
        self.write_with(node, offset, data, 0)
    }

    pub(super) fn write_with(
        &mut self,
        node: Ino,
        offset: u64,
        data: &[u8],
        flags: u32,
    ) -> Result<u32, Errno> {
        let size = u32::try_from(data.len()).unwrap();
        let mut arguments = [&[0; 8][..], &offset.to_le_bytes(), &u32s(&[size, flags])].concat();
        arguments.extend([0; 16]);
        arguments.extend(data);
        // Not cut where the contents begin, to see that nobody relies on it.
        let cuts = [40, 30, 11, 4096, 1];
        let body = self.call_with(op::WRITE, node, &arguments, &cuts, 8)?;
        Ok(u32_at(&body, 0))
    }

    /// Names with node numbers (0 in a plain listing) and inode numbers, in replies of `size` bytes.
    pub(super) fn list(
        &mut self,
        node: Ino,
        is_plus: bool,
        size: u32,
    ) -> Result<Vec<(String, Ino, Ino)>, Errno> {
        let opcode = if is_plus { op::READDIRPLUS } else { op::READDIR };
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            let arguments = read_arguments(offset, size);
            let body = self.call_with(opcode, node, &arguments, &[40], size as usize)?;
            let mut rest = &body[..];
            if rest.is_empty() {
                return Ok(names);
            }
            while !rest.is_empty() {
                let entry_node = if is_plus { u64_at(rest, 0) } else { 0 };
                let dirent = &rest[if is_plus { 128 } else { 0 }..];
                let name_size = u32_at(dirent, 16) as usize;
                let name = String::from_utf8(dirent[24..24 + name_size].to_vec()).unwrap();
                offset = u64_at(dirent, 8);
                names.push((name, entry_node, u64_at(dirent, 0)));
                rest = &dirent[(24 + name_size).next_multiple_of(8)..];
            }
        }
    }

    /// Sorted names but for `.` and `..`.
    pub(super) fn names(&mut self, node: Ino) -> Result<Vec<String>, Errno> {
        let list = self.list(node, false, 4096)?;
        let mut names: Vec<String> = list.into_iter().map(|(name, _, _)| name).collect();
        names.retain(|name| name != "." && name != "..");
        names.sort();
        Ok(names)
    }

    pub(super) fn setxattr(&mut self, node: Ino, name: &str, value: &[u8]) -> Result<(), Errno> {
        let size = u32::try_from(value.len()).unwrap();
        let arguments = [&u32s(&[size, 0]), &c(name)[..], value].concat();
        self.call(op::SETXATTR, node, &arguments).map(drop)
    }

    pub(super) fn getxattr(&mut self, node: Ino, name: &str) -> Result<Vec<u8>, Errno> {
        let arguments = [&u32s(&[65_536, 0]), &c(name)[..]].concat();
        self.call_with(op::GETXATTR, node, &arguments, &[40], 65_536)
    }

    pub(super) fn listxattr(&mut self, node: Ino) -> Result<Vec<u8>, Errno> {
        self.call_with(op::LISTXATTR, node, &u32s(&[65_536, 0]), &[40], 65_536)
    }

    /// Forgets on the priority queue.
    pub(super) fn forget(&mut self, node: Ino, count: u64) {
        let mut request = self.header(op::FORGET, node, 8);
        request.extend(count.to_le_bytes());
        self.memory.write_slice(&request, GuestAddress(REQUEST)).unwrap();
        self.priority.descriptor(0, REQUEST, u32::try_from(request.len()).unwrap(), 0, 0);
        self.priority.offer(0);
        self.unit.kicked(0).unwrap();
        assert_eq!(self.priority.take_used(), Some((0, 0)));
    }
}

pub(super) fn read_arguments(offset: u64, size: u32) -> Vec<u8> {
    let mut bytes = [&[0; 8][..], &offset.to_le_bytes(), &size.to_le_bytes()].concat();
    bytes.extend([0; 20]);
    bytes
}

/// As C has it.
pub(super) fn c(name: &str) -> Vec<u8> {
    [name.as_bytes(), b"\0"].concat()
}

pub(super) fn u32s(fields: &[u32]) -> Vec<u8> {
    fields.iter().flat_map(|field| field.to_le_bytes()).collect()
}

pub(super) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

pub(super) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

fn entry(body: &[u8]) -> Attr {
    let attr = decode(&body[40..], u64_at(body, 16));
    assert_eq!(attr.ino, u64_at(body, 0), "nodes are inodes");
    attr
}

fn attributes(body: &[u8]) -> Attr {
    decode(&body[16..], u64_at(body, 0))
}

fn decode(attr: &[u8], valid: u64) -> Attr {
    Attr {
        ino: u64_at(attr, 0),
        size: u64_at(attr, 8),
        sectors: u64_at(attr, 16),
        mtime: (u64_at(attr, 32).cast_signed(), u32_at(attr, 52)),
        mode: u32_at(attr, 60),
        nlink: u32_at(attr, 64),
        uid: u32_at(attr, 68),
        gid: u32_at(attr, 72),
        rdev: u32_at(attr, 76),
        valid,
    }
}
