//! Requests that change something, or that make sense only where things change.

use crate::filesystem::{
    Attributes, Creation, Errno, FileSystem, Rename, Seek, SetAttribute, WriteSource,
};

use super::server::{Answer, Call, Server, name, put};
use super::wire::{self, RequestHeader, opcode};
use super::wire_changes::{self, CopyRequest, WriteRequest};
use super::{REQUEST_SIZE_MAX, WRITE_HEAD_SIZE};

/// `S_IFREG`, `S_IFDIR`, `S_IFLNK`.
const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const SYMLINK: u32 = 0o120_000;
/// Longest target of a symbolic link: `PATH_MAX` without its NUL.
const TARGET_SIZE_MAX: usize = 4095;
/// Most that one `COPY_FILE_RANGE` copies, so that it does not hold up the others for long.
const COPY_SIZE_MAX: u64 = 64 << 20;

impl<F: FileSystem + ?Sized> Server<F> {
    /// The second half of the server's dispatch.
    pub(super) fn change(&self, call: &mut Call<'_>, contents: &mut dyn WriteSource) -> Answer {
        let node = call.header.node;
        match call.header.opcode {
            opcode::SETATTR => {
                let changes = wire_changes::changes(call.arguments).ok_or(Errno::INVAL)?;
                let attributes = self.file_system.set_attributes(node, &changes)?;
                put(call.reply, &wire::attributes_reply(&attributes, self.policy.valid))
            }
            opcode::MKNOD | opcode::MKDIR | opcode::SYMLINK | opcode::LINK => {
                let attributes = self.make(call)?;
                self.put_counted(call.reply, &attributes)
            }
            opcode::TMPFILE => {
                let mode = wire_changes::make_unnamed(call.arguments).ok_or(Errno::INVAL)?;
                let new = creation(&call.header, REGULAR | mode, (0, 0));
                let attributes = self.file_system.create_unnamed(node, &new)?;
                self.put_counted(call.reply, &attributes)?;
                put(call.reply, &wire_changes::open_reply())
            }
            opcode::UNLINK => self.file_system.unlink(node, new_name(call.arguments)?),
            opcode::RMDIR => self.file_system.remove_directory(node, new_name(call.arguments)?),
            opcode::RENAME => self.rename(node, call.arguments, false),
            opcode::RENAME2 => self.rename(node, call.arguments, true),
            opcode::WRITE => self.write(call, contents),
            opcode::SETXATTR => self.set_extended_attribute(node, call.arguments),
            opcode::REMOVEXATTR => {
                self.file_system.remove_extended_attribute(node, name(call.arguments)?)
            }
            opcode::FALLOCATE => {
                let (offset, size, mode) =
                    wire_changes::allocate(call.arguments).ok_or(Errno::INVAL)?;
                self.file_system.allocate(node, mode, offset, size)
            }
            opcode::LSEEK => self.seek(call),
            opcode::COPY_FILE_RANGE => {
                let copy = CopyRequest::decode(call.arguments).ok_or(Errno::INVAL)?;
                let (from, to) = ((node, copy.from_offset), (copy.to_node, copy.to_offset));
                let size = copy.size.min(COPY_SIZE_MAX);
                let size = self.file_system.copy_range(from, to, size)?;
                let size = u32::try_from(size).map_err(|_| Errno::IO)?;
                put(call.reply, &wire_changes::written_reply(size))
            }
            opcode::FSYNC | opcode::FSYNCDIR => {
                let only_contents = wire_changes::sync(call.arguments).ok_or(Errno::INVAL)?;
                self.file_system.sync(node, only_contents)
            }
            opcode::SYNCFS => self.file_system.sync_all(),
            _ => Err(Errno::NOSYS),
        }
    }

    /// Whatever gives a new name to something.
    fn make(&self, call: &Call<'_>) -> Result<Attributes, Errno> {
        let (parent, arguments) = (call.header.node, call.arguments);
        match call.header.opcode {
            opcode::MKNOD => {
                let (mode, rdev, name) = wire_changes::make_node(arguments).ok_or(Errno::INVAL)?;
                let new = creation(&call.header, mode, rdev);
                self.file_system.create(parent, new_name(name)?, &new)
            }
            opcode::MKDIR => {
                let (mode, name) = wire_changes::make_directory(arguments).ok_or(Errno::INVAL)?;
                let new = creation(&call.header, DIRECTORY | (mode & 0o7777), (0, 0));
                self.file_system.create(parent, new_name(name)?, &new)
            }
            opcode::SYMLINK => {
                let (name, target) = first_name(arguments)?;
                let target = target.strip_suffix(b"\0").ok_or(Errno::INVAL)?;
                if target.is_empty() || target.contains(&0) {
                    return Err(Errno::INVAL);
                }
                if target.len() > TARGET_SIZE_MAX {
                    return Err(Errno::NAMETOOLONG);
                }
                let new = creation(&call.header, SYMLINK | 0o777, (0, 0));
                self.file_system.create_symlink(parent, name, target, &new)
            }
            _ => {
                let (node, name) = wire_changes::link(arguments).ok_or(Errno::INVAL)?;
                self.file_system.link(node, parent, new_name(name)?)
            }
        }
    }

    fn rename(&self, node: u64, arguments: &[u8], has_flags: bool) -> Answer {
        /// `RENAME_NOREPLACE` and `RENAME_EXCHANGE`.
        const NO_REPLACE: u32 = 1;
        const EXCHANGE: u32 = 2;
        let (directory, flags, names) =
            wire_changes::rename(arguments, has_flags).ok_or(Errno::INVAL)?;
        let how = match flags {
            0 => Rename::Replace,
            NO_REPLACE => Rename::NoReplace,
            EXCHANGE => Rename::Exchange,
            _ => return Err(Errno::INVAL),
        };
        let (from, to) = first_name(names)?;
        self.file_system.rename((node, from), (directory, new_name(to)?), how)
    }

    fn write(&self, call: &mut Call<'_>, contents: &mut dyn WriteSource) -> Answer {
        let write = WriteRequest::decode(call.arguments).ok_or(Errno::INVAL)?;
        let size = usize::try_from(write.size).map_err(|_| Errno::INVAL)?;
        let size_told = usize::try_from(call.header.size).map_err(|_| Errno::INVAL)?;
        if size_told != WRITE_HEAD_SIZE.saturating_add(size)
            || size > contents.size()
            || size > self.write_size_max()
        {
            return Err(Errno::INVAL);
        }
        let node = call.header.node;
        let size =
            self.file_system.write(node, write.offset, write.size, contents, write.drops_set_id)?;
        put(call.reply, &wire_changes::written_reply(size))
    }

    fn set_extended_attribute(&self, node: u64, arguments: &[u8]) -> Answer {
        /// `XATTR_CREATE` and `XATTR_REPLACE`.
        const CREATE: u32 = 1;
        const REPLACE: u32 = 2;
        let (size, flags, rest) =
            wire_changes::set_extended_attribute(arguments).ok_or(Errno::INVAL)?;
        let how = match flags {
            0 => SetAttribute::Any,
            CREATE => SetAttribute::Create,
            REPLACE => SetAttribute::Replace,
            _ => return Err(Errno::INVAL),
        };
        let (name, value) = first_name(rest)?;
        if usize::try_from(size).ok() != Some(value.len()) {
            return Err(Errno::INVAL);
        }
        self.file_system.set_extended_attribute(node, name, value, how)
    }

    fn seek(&self, call: &mut Call<'_>) -> Answer {
        /// `SEEK_DATA` and `SEEK_HOLE`: others are the client's affair.
        const DATA: u32 = 3;
        const HOLE: u32 = 4;
        let (offset, whence) = wire_changes::seek(call.arguments).ok_or(Errno::INVAL)?;
        let what = match whence {
            DATA => Seek::Data,
            HOLE => Seek::Hole,
            _ => return Err(Errno::NOSYS),
        };
        let offset = self.file_system.seek(call.header.node, offset, what)?;
        put(call.reply, &wire_changes::seek_reply(offset))
    }
}

/// What is to be made, in the name of whoever asks. No type is a regular file, as for `mknod`.
const fn creation(header: &RequestHeader, mode: u32, rdev: (u32, u32)) -> Creation {
    let mode = if mode & 0o170_000 == 0 { mode | REGULAR } else { mode };
    Creation { mode, rdev, uid: header.uid, gid: header.gid }
}

/// A name that can be made or taken away: `.` and `..` cannot.
fn new_name(arguments: &[u8]) -> Result<&[u8], Errno> {
    match name(arguments)? {
        b"." | b".." => Err(Errno::INVAL),
        name => Ok(name),
    }
}

/// The first of two names, and what follows its NUL.
fn first_name(arguments: &[u8]) -> Result<(&[u8], &[u8]), Errno> {
    let arguments_looked_at = arguments.get(..REQUEST_SIZE_MAX).unwrap_or(arguments);
    let end = arguments_looked_at.iter().position(|byte| *byte == 0).ok_or(Errno::INVAL)?;
    let (first, rest) = arguments.split_at_checked(end.saturating_add(1)).ok_or(Errno::INVAL)?;
    Ok((new_name(first)?, rest))
}
