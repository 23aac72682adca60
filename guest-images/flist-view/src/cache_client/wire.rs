//! Messages between a VMM and the node's cache process, as bytes; no I/O.
//!
//! The socket keeps message boundaries (`SOCK_SEQPACKET`), so a message is one packet and needs no
//! length of its own. All numbers are little-endian; `FORMAT-cache.md` of the `flist` crate has the
//! byte tables. Both sides parse with this module, and neither trusts the other: what does not parse
//! ends the connection.

#![deny(clippy::indexing_slicing)]

use crate::block::{BlockCipher, BlockId, BlockKey, BlockRef};
use crate::bytes::Reader;

/// Version of the protocol, in the first message.
pub const VERSION: u8 = 1;
/// Longest request, in bytes.
pub const REQUEST_SIZE_MAX: usize = 64 * 1024;
/// Longest reply, in bytes.
pub const REPLY_SIZE_MAX: usize = 2048;
/// Longest path of an image, in bytes.
pub const PATH_SIZE_MAX: usize = 4095;
/// Most stores that a binding may name instead of the image's own.
pub const STORE_COUNT_MAX: usize = 64;
/// Longest store URL, in bytes.
pub const STORE_SIZE_MAX: usize = 2048;
/// Longest text of an error, in bytes.
pub const TEXT_SIZE_MAX: usize = 1024;
/// Most blocks behind the one that was asked for whose places a reply also tells.
pub const FOLLOWING_COUNT_MAX: usize = 15;
/// Requests that may be unanswered on one connection; the daemon reads no further ones meanwhile.
pub const IN_FLIGHT_MAX: usize = 64;

const BIND: u8 = 0x01;
const BLOCK: u8 = 0x02;
const FORGET: u8 = 0x03;
const STATUS: u8 = 0x04;
const REPLY: u8 = 0x80;
const RETIRED: u8 = 0x85;

/// What a client sends.
#[derive(Clone, PartialEq, Eq)]
pub enum Request {
    /// First message of a connection: everything after it is about this image.
    Bind {
        /// Path of the image file, as the daemon sees it.
        path: Vec<u8>,
        /// Where to fetch blocks (`[xx-xx=]URL`); none for the image's own routes. May hold secrets.
        stores: Vec<Vec<u8>>,
    },
    /// Where is a block of the bound image?
    Block {
        /// Chosen by the client, given back in the reply; not one that is still unanswered.
        tag: u64,
        /// The block's position in the image's index.
        position: u32,
        /// Its name and key, which must be those at that position.
        block: BlockRef,
    },
    /// The client closed its descriptor of a segment and wants a new one when it next needs it.
    Forget {
        /// The segment.
        segment: u64,
    },
    /// What has the daemon done? Needs no binding.
    Status,
}

/// What the daemon sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The answer to [`Request::Bind`]; carries a read-only descriptor of the image's index.
    Bound(Result<Bound, Failure>),
    /// The answer to [`Request::Block`]; carries a read-only descriptor of the segment unless this
    /// connection was given one already.
    Block {
        /// The request's.
        tag: u64,
        /// Where the block is, or why it is not to be had.
        result: Result<Located, Failure>,
        /// Where the blocks at the positions behind it are, one after the other, as far as that is
        /// known and the connection has their segments. Whoever reads a file on needs no round trip.
        following: Vec<Located>,
    },
    /// The segment left the cache. Descriptors stay good, but keep its disk space from being freed.
    Retired {
        /// The segment.
        segment: u64,
    },
    /// The answer to [`Request::Status`]; carries a read-only descriptor of a JSON text.
    Status {
        /// Bytes of text.
        size: u64,
    },
}

/// The image that a connection is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// BLAKE2b-256 of the image file.
    pub image_hash: [u8; 32],
    /// Bytes of the index.
    pub index_size: u64,
    /// How the image's blocks are hashed and encrypted.
    pub cipher: BlockCipher,
}

/// Where a block's plaintext is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Located {
    /// The segment.
    pub segment: u64,
    /// First byte.
    pub offset: u64,
    /// Size in bytes.
    pub size: u32,
}

/// Why a request failed: a kind for programs, a text for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    /// What kind of failure.
    pub kind: FailureKind,
    /// The story; cut at [`TEXT_SIZE_MAX`].
    pub text: String,
}

/// Kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FailureKind {
    /// The message breaks the protocol; the connection ends.
    Protocol = 1,
    /// The block is not the bound image's, or its key is wrong.
    NotInImage = 2,
    /// No store has the block, or every store failed.
    Unavailable = 3,
    /// It took too long.
    TimedOut = 4,
    /// The image can't be read.
    Image = 5,
    /// The cache itself failed.
    Cache = 6,
    /// Too many connections; try again.
    Busy = 7,
}

impl FailureKind {
    const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Protocol,
            2 => Self::NotInImage,
            3 => Self::Unavailable,
            4 => Self::TimedOut,
            5 => Self::Image,
            6 => Self::Cache,
            7 => Self::Busy,
            _ => return None,
        })
    }
}

impl Request {
    /// The message.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Bind { path, stores } => {
                let mut bytes = vec![BIND, VERSION, 0, 0];
                put_u32(&mut bytes, stores.len());
                for part in std::iter::once(path).chain(stores) {
                    put_u32(&mut bytes, part.len());
                    bytes.extend_from_slice(part);
                }
                bytes
            }
            Self::Block { tag, position, block } => {
                let mut bytes = vec![BLOCK, 0, 0, 0];
                bytes.extend_from_slice(&position.to_le_bytes());
                bytes.extend_from_slice(&tag.to_le_bytes());
                bytes.extend_from_slice(&block.id.0);
                bytes.extend_from_slice(&block.key.0);
                bytes
            }
            Self::Forget { segment } => numbered(FORGET, *segment),
            Self::Status => vec![STATUS, 0, 0, 0],
        }
    }

    /// Parses a message; none if it breaks any rule.
    #[must_use]
    pub fn decode(message: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(message);
        let [kind, version, 0, 0] = reader.array()? else { return None };
        let request = match (kind, version) {
            (BIND, VERSION) => decode_bind(&mut reader)?,
            (BLOCK, 0) => Self::Block {
                position: reader.u32()?,
                tag: reader.u64()?,
                block: BlockRef { id: BlockId(reader.array()?), key: BlockKey(reader.array()?) },
            },
            (FORGET, 0) if reader.u32()? == 0 => Self::Forget { segment: reader.u64()? },
            (STATUS, 0) => Self::Status,
            _ => return None,
        };
        reader.rest().is_empty().then_some(request)
    }
}

fn decode_bind(reader: &mut Reader<'_>) -> Option<Request> {
    let store_count = usize::try_from(reader.u32()?).ok()?;
    if store_count > STORE_COUNT_MAX {
        return None;
    }
    let path = take_sized(reader, PATH_SIZE_MAX)?;
    let stores = (0..store_count).map(|_| take_sized(reader, STORE_SIZE_MAX));
    Some(Request::Bind { path, stores: stores.collect::<Option<_>>()? })
}

fn take_sized(reader: &mut Reader<'_>, size_max: usize) -> Option<Vec<u8>> {
    let size = usize::try_from(reader.u32()?).ok()?;
    if size == 0 || size > size_max {
        return None;
    }
    reader.take(size).map(<[u8]>::to_vec)
}

impl Reply {
    /// The message. Descriptors travel beside it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Bound(result) => {
                let mut bytes = vec![BIND | REPLY, status(result), 0, 0, 0, 0, 0, 0];
                match result {
                    Ok(bound) => {
                        bytes.extend_from_slice(&bound.image_hash);
                        bytes.extend_from_slice(&bound.index_size.to_le_bytes());
                        bytes.extend_from_slice(&u64::from(bound.cipher as u8).to_le_bytes());
                    }
                    Err(failure) => put_text(&mut bytes, &failure.text),
                }
                bytes
            }
            Self::Block { tag, result, following } => {
                let size = result.as_ref().map_or(0, |located| located.size);
                let mut bytes = vec![BLOCK | REPLY, status(result), 0, 0];
                bytes.extend_from_slice(&size.to_le_bytes());
                bytes.extend_from_slice(&tag.to_le_bytes());
                match result {
                    Ok(located) => {
                        bytes.extend_from_slice(&located.segment.to_le_bytes());
                        bytes.extend_from_slice(&located.offset.to_le_bytes());
                        for located in following.iter().take(FOLLOWING_COUNT_MAX) {
                            bytes.extend_from_slice(&located.segment.to_le_bytes());
                            bytes.extend_from_slice(&located.offset.to_le_bytes());
                            bytes.extend_from_slice(&located.size.to_le_bytes());
                        }
                    }
                    Err(failure) => put_text(&mut bytes, &failure.text),
                }
                bytes
            }
            Self::Retired { segment } => numbered(RETIRED, *segment),
            Self::Status { size } => numbered(STATUS | REPLY, *size),
        }
    }

    /// Parses a message; none if it breaks any rule.
    #[must_use]
    pub fn decode(message: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(message);
        let [kind, status, 0, 0] = reader.array()? else { return None };
        let word = reader.u32()?;
        let reply = match (kind, word) {
            (RETIRED, 0) if status == 0 => Self::Retired { segment: reader.u64()? },
            (0x84, 0) if status == 0 => Self::Status { size: reader.u64()? },
            (0x81, 0) if status == 0 => Self::Bound(Ok(Bound {
                image_hash: reader.array()?,
                index_size: reader.u64()?,
                cipher: BlockCipher::from_number(u8::try_from(reader.u64()?).ok()?)?,
            })),
            (0x81, 0) => Self::Bound(Err(take_failure(&mut reader, status)?)),
            (0x82, size) if status == 0 => Self::Block {
                tag: reader.u64()?,
                result: Ok(Located { segment: reader.u64()?, offset: reader.u64()?, size }),
                following: take_following(&mut reader)?,
            },
            (0x82, 0) => Self::Block {
                tag: reader.u64()?,
                result: Err(take_failure(&mut reader, status)?),
                following: Vec::new(),
            },
            _ => return None,
        };
        reader.rest().is_empty().then_some(reply)
    }
}

fn status<T>(result: &Result<T, Failure>) -> u8 {
    result.as_ref().map_or_else(|failure| failure.kind as u8, |_| 0)
}

fn take_failure(reader: &mut Reader<'_>, status: u8) -> Option<Failure> {
    let text = reader.rest();
    let kind = FailureKind::from_number(status)?;
    if text.len() > TEXT_SIZE_MAX {
        return None;
    }
    reader.take(text.len())?;
    Some(Failure { kind, text: String::from_utf8_lossy(text).into_owned() })
}

fn take_following(reader: &mut Reader<'_>) -> Option<Vec<Located>> {
    let mut following = Vec::new();
    while !reader.rest().is_empty() {
        if following.len() == FOLLOWING_COUNT_MAX {
            return None;
        }
        let (segment, offset) = (reader.u64()?, reader.u64()?);
        following.push(Located { segment, offset, size: reader.u32()? });
    }
    Some(following)
}

fn numbered(kind: u8, number: u64) -> Vec<u8> {
    let mut bytes = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    bytes.extend_from_slice(&number.to_le_bytes());
    bytes
}

/// Counts and sizes are bounded by the limits above; one beyond `u32` becomes one that no reader
/// accepts.
fn put_u32(bytes: &mut Vec<u8>, number: usize) {
    bytes.extend_from_slice(&u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes());
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    let end = text.floor_char_boundary(TEXT_SIZE_MAX);
    bytes.extend_from_slice(text.get(..end).unwrap_or_default().as_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn block() -> BlockRef {
        BlockRef { id: BlockId([1; 32]), key: BlockKey([2; 32]) }
    }

    fn failure() -> Failure {
        Failure { kind: FailureKind::Unavailable, text: "all stores are away".to_owned() }
    }

    fn requests() -> Vec<Request> {
        vec![
            Request::Bind { path: b"/images/a.fl".to_vec(), stores: Vec::new() },
            Request::Bind { path: b"a".to_vec(), stores: vec![b"dir:///x".to_vec(); 3] },
            Request::Block { tag: 7, position: 9, block: block() },
            Request::Forget { segment: u64::MAX },
            Request::Status,
        ]
    }

    fn replies() -> Vec<Reply> {
        let bound = Bound { image_hash: [3; 32], index_size: 4096, cipher: BlockCipher::Xxtea };
        let located = Located { segment: 5, offset: 1 << 40, size: 524_288 };
        vec![
            Reply::Bound(Ok(bound)),
            Reply::Bound(Err(failure())),
            Reply::Block { tag: 1, result: Ok(located), following: Vec::new() },
            Reply::Block { tag: 2, result: Err(failure()), following: Vec::new() },
            Reply::Block { tag: 1, result: Ok(located), following: vec![located; 15] },
            Reply::Retired { segment: 6 },
            Reply::Status { size: 100 },
        ]
    }

    #[test]
    fn every_message_round_trips_and_none_may_be_cut_or_extended() {
        for request in requests() {
            let bytes = request.encode();
            assert!(Request::decode(&bytes) == Some(request));
            (0..bytes.len()).for_each(|n| assert!(Request::decode(&bytes[..n]).is_none()));
            assert!(Request::decode(&[&bytes[..], &[0]].concat()).is_none());
        }
        for reply in replies() {
            let bytes = reply.encode();
            assert_eq!(Reply::decode(&bytes), Some(reply));
            (0..8).for_each(|n| assert_eq!(Reply::decode(&bytes[..n]), None));
        }
    }

    #[test]
    fn sizes_of_messages_are_those_of_the_format() {
        let size = |request: &Request| request.encode().len();
        assert_eq!(requests().iter().map(size).collect::<Vec<_>>(), [24, 49, 80, 16, 4]);
        let sizes: Vec<_> = replies().iter().map(|reply| reply.encode().len()).collect();
        assert_eq!(sizes, [56, 27, 32, 35, 332, 16, 16]);
    }

    #[test]
    fn limits_are_kept() {
        let bind = |path: usize, stores: usize, store: usize| {
            let request =
                Request::Bind { path: vec![b'p'; path], stores: vec![vec![b's'; store]; stores] };
            Request::decode(&request.encode()).is_some()
        };
        assert!(bind(PATH_SIZE_MAX, STORE_COUNT_MAX, 10));
        assert!(bind(1, 1, STORE_SIZE_MAX));
        assert!(!bind(PATH_SIZE_MAX + 1, 0, 1));
        assert!(!bind(0, 0, 1));
        assert!(!bind(1, STORE_COUNT_MAX + 1, 1));
        assert!(!bind(1, 1, STORE_SIZE_MAX + 1));
        let long = Failure { kind: FailureKind::Cache, text: "ü".repeat(TEXT_SIZE_MAX) };
        let reply = Reply::decode(&Reply::Bound(Err(long)).encode());
        assert!(matches!(reply, Some(Reply::Bound(Err(f))) if f.text.len() == TEXT_SIZE_MAX));
        let longest = replies().iter().map(|reply| reply.encode()).max_by_key(Vec::len).unwrap();
        assert_eq!(Reply::decode(&[&longest[..], &[0; 20]].concat()), None);
        assert_eq!(Reply::decode(&longest[..longest.len() - 1]), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Request::decode(&bytes);
            let _ = Reply::decode(&bytes);
        }
    }
}
