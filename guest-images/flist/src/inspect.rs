//! Looking into an image without its blocks: what it holds, and a listing.
//!
//! Nothing here touches a store. [`Summary`] and [`Listing`] serialise to the fields that
//! `flist inspect --json` documents; secrets in routes never reach them.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flist_view::block::BlockCipher;
use serde::Serialize;

use crate::format::{FormatError, Image, image_hash};
use crate::tree::{Entry, Inode, Node};

/// What an image holds. All sizes are in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// `fl` or `flist` (legacy).
    pub format: &'static str,
    /// BLAKE2b-256 of the image's file, in hex: its name in caches.
    pub image_hash: String,
    /// Size of the image's file.
    pub image_size: u64,
    /// Directory entries, the root included.
    pub entry_count: u64,
    /// Inodes of each kind.
    pub inodes: Kinds,
    /// Names beyond the first of their inode.
    pub hard_link_count: u64,
    /// Extended attributes of all inodes.
    pub xattr_count: u64,
    /// Sizes of all regular files, hard links counted once.
    pub file_bytes: u64,
    /// Blocks of all files.
    pub block_count: u64,
    /// Blocks that differ from each other.
    pub distinct_block_count: u64,
    /// Where blocks are said to be.
    pub routes: Vec<RouteSummary>,
    /// Tags of a current image, metadata of a legacy one.
    pub tags: BTreeMap<String, String>,
}

/// Inodes by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Kinds {
    /// Regular files.
    pub file: u64,
    /// Directories, the root included.
    pub directory: u64,
    /// Symbolic links.
    pub symlink: u64,
    /// Character devices.
    pub character_device: u64,
    /// Block devices.
    pub block_device: u64,
    /// Named pipes.
    pub fifo: u64,
    /// Sockets.
    pub socket: u64,
}

/// One route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteSummary {
    /// First byte of block ids, two hex digits.
    pub start: String,
    /// Last byte of block ids, two hex digits.
    pub end: String,
    /// The store, without secrets.
    pub url: String,
}

/// One entry of a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listing {
    /// Absolute path inside the image; bytes that are not UTF-8 are shown as U+FFFD.
    pub path: String,
    /// The path's bytes in base64, if it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_base64: Option<String>,
    /// `st_mode` in octal, six digits.
    pub mode: String,
    /// Number of names (directories: 2 and one for each subdirectory).
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes; of a symbolic link, of its target.
    pub size: u64,
    /// Last change of contents: seconds since the Unix epoch.
    pub mtime: i64,
    /// The rest of it, in nanoseconds.
    pub mtime_nsec: u32,
    /// Target of a symbolic link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Major and minor number of a device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rdev: Option<(u32, u32)>,
    /// Extended attributes: name to value in base64.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub xattrs: BTreeMap<String, String>,
}

/// Sums up `image`, which was read from `path`.
///
/// # Errors
/// [`FormatError::Read`] if the file can't be read again.
pub fn summary(image: &Image, path: &Path) -> Result<Summary, FormatError> {
    let read = |source| FormatError::Read { file: path.to_owned(), source };
    let image_size = std::fs::metadata(path).map_err(read)?.len();
    let image_hash = image_hash(path)?.iter().map(|byte| format!("{byte:02x}")).collect();
    let entry_count = image.tree.walk().len() as u64;
    let mut kinds = Kinds::default();
    let (mut file_bytes, mut block_count, mut xattr_count) = (0u64, 0u64, 0u64);
    let mut distinct = HashSet::new();
    for inode in image.tree.inodes() {
        *kinds.of(&inode.node) += 1;
        xattr_count += inode.xattrs.len() as u64;
        if let Node::File(contents) = &inode.node {
            file_bytes = file_bytes.saturating_add(contents.size);
            block_count += contents.blocks.len() as u64;
            distinct.extend(contents.blocks.iter().map(|block| block.id));
        }
    }
    Ok(Summary {
        format: match image.cipher {
            BlockCipher::Aes256Gcm => "fl",
            BlockCipher::Xxtea => "flist",
        },
        image_hash,
        image_size,
        entry_count,
        inodes: kinds,
        hard_link_count: entry_count.saturating_sub(image.tree.inodes().len() as u64),
        xattr_count,
        file_bytes,
        block_count,
        distinct_block_count: distinct.len() as u64,
        routes: routes(image),
        tags: image.tags.clone(),
    })
}

fn routes(image: &Image) -> Vec<RouteSummary> {
    let summary = |route: &crate::format::Route| RouteSummary {
        start: format!("{:02x}", route.start),
        end: format!("{:02x}", route.end),
        url: route.url.to_string(),
    };
    image.routes.iter().map(summary).collect()
}

impl Kinds {
    fn of(&mut self, node: &Node) -> &mut u64 {
        match node {
            Node::File(_) => &mut self.file,
            Node::Directory(_) => &mut self.directory,
            Node::Symlink(_) => &mut self.symlink,
            Node::CharacterDevice(_) => &mut self.character_device,
            Node::BlockDevice(_) => &mut self.block_device,
            Node::Fifo => &mut self.fifo,
            Node::Socket => &mut self.socket,
        }
    }
}

/// Every entry of `image`, parents before children, names in byte order.
#[must_use]
pub fn listing(image: &Image) -> Vec<Listing> {
    let links = image.tree.link_counts();
    let entries = image.tree.walk();
    entries
        .iter()
        .map(|entry| listed(entry, image.tree.inode(entry.id), links[entry.id.index()]))
        .collect()
}

fn listed(entry: &Entry, inode: &Inode, nlink: u32) -> Listing {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let is_text = std::str::from_utf8(&entry.path).is_ok();
    let (mut size, mut target, mut rdev) = (0, None, None);
    match &inode.node {
        Node::File(contents) => size = contents.size,
        Node::Directory(directory) => size = directory.size,
        Node::Symlink(link) => {
            size = link.len() as u64;
            target = Some(text(link));
        }
        Node::CharacterDevice(device) | Node::BlockDevice(device) => {
            rdev = Some((device.major, device.minor));
        }
        Node::Fifo | Node::Socket => {}
    }
    let xattrs = inode.xattrs.iter().map(|(name, value)| (text(name), STANDARD.encode(value)));
    Listing {
        path: format!("/{}", text(&entry.path)),
        path_base64: (!is_text).then(|| STANDARD.encode([b"/", &entry.path[..]].concat())),
        mode: format!("{:06o}", inode.mode()),
        nlink,
        uid: inode.metadata.uid,
        gid: inode.metadata.gid,
        size,
        mtime: inode.metadata.mtime.seconds,
        mtime_nsec: inode.metadata.mtime.nanoseconds,
        target,
        rdev,
        xattrs: xattrs.collect(),
    }
}
