//! The entries of a legacy image: `Dir`, `Inode` and `ACI` (`reference: flist 1.2.1`).
//!
//! Offsets below follow from the order of the schema's fields: values are packed into the data
//! section, pointers counted in order; members of the union share pointer 1 and have their tag at
//! byte 8.

use flist_view::block::{BlockId, BlockKey, BlockRef};

use super::message::{Message, MessageError, Struct};

/// Bytes of a legacy block's hash and key.
const HASH_SIZE: usize = 16;
/// A file's block size when it is 512 KiB, in units of 4 KiB.
const BLOCK_SIZE_PAGES: u16 = 128;
/// Owner of files whose user or group name says nothing to us.
const FALLBACK_ID: u32 = 1000;

/// Why an entry can't be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum EntryError {
    /// Not a well-formed message.
    #[error("not a Cap'n Proto message: {0}")]
    Message(#[from] MessageError),
    /// Well-formed, and nonsense.
    #[error("{0}")]
    Rule(&'static str),
}

/// A directory's own entry.
pub(super) struct Dir {
    pub(super) size: u64,
    pub(super) access: Vec<u8>,
    pub(super) mtime: u32,
    pub(super) ctime: u32,
    pub(super) contents: Vec<Item>,
}

/// One thing in a directory.
pub(super) struct Item {
    pub(super) name: Vec<u8>,
    pub(super) access: Vec<u8>,
    pub(super) mtime: u32,
    pub(super) ctime: u32,
    pub(super) kind: Kind,
}

/// What it is.
pub(super) enum Kind {
    /// A directory; the key of its own entry.
    Dir(Vec<u8>),
    /// A regular file.
    File { size: u64, blocks: Vec<BlockRef> },
    /// A symbolic link; its target.
    Link(Vec<u8>),
    /// A socket.
    Socket,
    /// A named pipe.
    Fifo,
    /// A block device: major, minor.
    BlockDevice(u32, u32),
    /// A character device: major, minor.
    CharacterDevice(u32, u32),
}

/// Permissions and owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Access {
    pub(super) permissions: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Dir {
    /// Decodes a directory's entry.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, EntryError> {
        let message = Message::new(bytes)?;
        let root = message.root()?;
        let list = root.list(2)?;
        let contents = list.iter().map(|item| Item::decode(&item?)).collect::<Result<_, _>>()?;
        Ok(Self {
            size: root.u64(0),
            access: root.text(4)?.to_vec(),
            mtime: root.u32(8),
            ctime: root.u32(12),
            contents,
        })
    }
}

impl Item {
    fn decode(inode: &Struct<'_, '_>) -> Result<Self, EntryError> {
        let (name, attributes) = (inode.text(0)?, inode.structure(1)?);
        let kind = match inode.u16(8) {
            0 => Kind::Dir(attributes.text(0)?.to_vec()),
            1 => file(inode.u64(0), &attributes)?,
            2 => Kind::Link(attributes.text(0)?.to_vec()),
            3 => special(&attributes, name)?,
            _ => return Err(EntryError::Rule("an inode of unknown kind")),
        };
        Ok(Self {
            name: name.to_vec(),
            access: inode.text(2)?.to_vec(),
            mtime: inode.u32(12),
            ctime: inode.u32(16),
            kind,
        })
    }
}

fn file(size: u64, file: &Struct<'_, '_>) -> Result<Kind, EntryError> {
    let list = file.list(0)?;
    if list.len() > 1 && file.u16(0) != BLOCK_SIZE_PAGES {
        return Err(EntryError::Rule("a file's blocks must be 524288 bytes"));
    }
    let hash = |bytes: &[u8]| {
        let bytes: [u8; HASH_SIZE] =
            bytes.try_into().map_err(|_| EntryError::Rule("hash and key must be 16 bytes"))?;
        let mut padded = [0; 32];
        padded[..HASH_SIZE].copy_from_slice(&bytes);
        Ok::<_, EntryError>(padded)
    };
    let blocks = list.iter().map(|block| {
        let block = block?;
        let (id, key) = (hash(block.data(0)?)?, hash(block.data(1)?)?);
        Ok::<_, EntryError>(BlockRef { id: BlockId(id), key: BlockKey(key) })
    });
    Ok(Kind::File { size, blocks: blocks.collect::<Result<_, _>>()? })
}

/// The writer that we know (libflist 2.1.0) leaves the type at 0, a socket, whatever it packs. Where
/// a "socket" has device numbers it is a device, and `name` tells which kind; a pipe can't be told
/// from a socket any more.
fn special(special: &Struct<'_, '_>, name: &[u8]) -> Result<Kind, EntryError> {
    let data = special.data(0)?;
    let device = || {
        let text = std::str::from_utf8(data).ok()?;
        let (major, minor) = text.trim_end_matches('\0').split_once(',')?;
        Some((major.trim().parse().ok()?, minor.trim().parse().ok()?))
    };
    let needed = || device().ok_or(EntryError::Rule("a device must have \"major,minor\""));
    match special.u16(0) {
        0 => Ok(match device() {
            None => Kind::Socket,
            Some((major, minor)) if is_block_device_name(name) => Kind::BlockDevice(major, minor),
            Some((major, minor)) => Kind::CharacterDevice(major, minor),
        }),
        1 => needed().map(|(major, minor)| Kind::BlockDevice(major, minor)),
        2 => needed().map(|(major, minor)| Kind::CharacterDevice(major, minor)),
        3 => Ok(Kind::Fifo),
        _ => Err(EntryError::Rule("a special file of unknown kind")),
    }
}

/// Whether Linux names block devices like that: `loop7`, `sda1`, `nvme0n1`, but not `loop-control`.
fn is_block_device_name(name: &[u8]) -> bool {
    let follows = |prefix: &&str, next: fn(&u8) -> bool| {
        name.strip_prefix(prefix.as_bytes()).is_some_and(|rest| rest.first().is_some_and(next))
    };
    let numbered = ["loop", "ram", "sr", "fd", "md", "nbd", "dm-", "mmcblk", "zd"];
    let lettered = ["sd", "hd", "vd", "xvd"];
    numbered.iter().any(|prefix| follows(prefix, u8::is_ascii_digit))
        || lettered.iter().any(|prefix| follows(prefix, u8::is_ascii_lowercase))
        || (follows(&"nvme", u8::is_ascii_digit)
            && name.get(5..).is_some_and(|n| n.contains(&b'n')))
}

impl Access {
    /// Decodes an access entry. Writers before the last stored whole `st_mode`s, so only permission
    /// bits count; a number of -1 means that only the name is known.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, EntryError> {
        let message = Message::new(bytes)?;
        let root = message.root()?;
        // The schema's default is -1, and fields are stored as the difference from it.
        let (uid, gid) = (!root.u64(8).cast_signed(), !root.u64(16).cast_signed());
        Ok(Self {
            permissions: u32::from(root.u16(0) & 0o7777),
            uid: owner(uid, root.text(0)?)?,
            gid: owner(gid, root.text(1)?)?,
        })
    }
}

/// The number, or what the name says of itself. Names mean something only inside the image, and its
/// `/etc/passwd` is not at hand here; `root` and numbers are clear, others become 1000 as upstream
/// does for names that it does not know.
fn owner(number: i64, name: &[u8]) -> Result<u32, EntryError> {
    if number != -1 {
        return u32::try_from(number)
            .map_err(|_| EntryError::Rule("uid and gid must be 32-bit numbers or -1"));
    }
    if name == b"root" {
        return Ok(0);
    }
    let parsed = std::str::from_utf8(name).ok().and_then(|name| name.parse().ok());
    Ok(parsed.unwrap_or(FALLBACK_ID))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_block_devices() {
        for name in ["loop7", "sda", "sda1", "sr0", "dm-3", "nvme0n1", "vdb"] {
            assert!(is_block_device_name(name.as_bytes()), "{name}");
        }
        for name in ["loop-control", "null", "nvme0", "sd", "bigminor", "tty0", ""] {
            assert!(!is_block_device_name(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn owners_without_a_number() {
        assert_eq!(owner(-1, b"root").unwrap(), 0);
        assert_eq!(owner(-1, b"33").unwrap(), 33);
        assert_eq!(owner(-1, b"www-data").unwrap(), FALLBACK_ID);
        assert_eq!(owner(-1, b"").unwrap(), FALLBACK_ID);
        assert_eq!(owner(4_294_967_295, b"").unwrap(), u32::MAX);
        assert!(owner(4_294_967_296, b"root").is_err());
        assert!(owner(-2, b"root").is_err());
    }
}
