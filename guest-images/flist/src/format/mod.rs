//! Image files: the current `.fl` and the legacy `.flist`.
//!
//! Both readers take hostile files and make a [`Tree`]; only `.fl` is written. [`Image::open`] tells
//! the generations apart by their first bytes, never by the file's name. The formats themselves are
//! described byte by byte in `FORMAT.md`.
//!
//! What the readers promise of any file: no panic, no loop without end, and memory and time in
//! proportion to the file's size (legacy images: to the named limits of [`legacy`]). Whatever breaks
//! a rule is an error that names the file, the path inside the image and the rule; an image is read
//! whole or not at all.

mod database;
mod error;
pub mod fl;
pub mod legacy;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use flist_view::block::BlockCipher;

use self::error::Fault;
pub use self::error::FormatError;
use crate::store::url::StoreUrl;
use crate::tree::Tree;

/// Most routes in one image.
pub const ROUTE_COUNT_MAX: usize = 4096;
/// Most tags in one image.
pub const TAG_COUNT_MAX: usize = 1024;
/// Longest key of a tag, in bytes.
pub const TAG_KEY_SIZE_MAX: usize = 255;
/// Longest value of a tag, in bytes.
pub const TAG_VALUE_SIZE_MAX: usize = 64 * 1024;

/// First bytes of every SQLite 3 database.
const SQLITE_MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// First bytes of every gzip file (RFC 1952 §2.3.1).
const GZIP_MAGIC: &[u8; 2] = &[0x1f, 0x8b];

/// An image as its file describes it.
#[derive(Clone, Debug)]
pub struct Image {
    /// The tree, with the blocks of each file.
    pub tree: Tree,
    /// How its blocks are hashed and encrypted; follows from the format's generation.
    pub cipher: BlockCipher,
    /// Where its blocks are said to be; several routes may cover one block.
    pub routes: Vec<Route>,
    /// `tag` rows of a current image, metadata of a legacy one.
    pub tags: BTreeMap<String, String>,
}

/// Blocks whose id begins with a byte in `start..=end` are at `url`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// First byte of the range.
    pub start: u8,
    /// Last byte of the range.
    pub end: u8,
    /// The store.
    pub url: StoreUrl,
}

impl Image {
    /// Reads an image of either generation.
    ///
    /// # Errors
    /// [`FormatError`]; the file's contents are not trusted.
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        Self::read(path).map_err(|fault| fault.in_file(path))
    }

    fn read(path: &Path) -> Result<Self, Fault> {
        // Asked before it is opened: opening a pipe would wait for a writer.
        if !std::fs::metadata(path).map_err(Fault::Read)?.is_file() {
            return Err(Fault::File("not a regular file".to_owned()));
        }
        let mut file = File::open(path).map_err(Fault::Read)?;
        let mut head = Vec::with_capacity(SQLITE_MAGIC.len());
        let size = SQLITE_MAGIC.len() as u64;
        file.by_ref().take(size).read_to_end(&mut head).map_err(Fault::Read)?;
        if head == SQLITE_MAGIC {
            fl::read(path)
        } else if head.starts_with(GZIP_MAGIC) {
            legacy::read(path)
        } else {
            Err(Fault::File("neither a .fl (SQLite) nor a .flist (gzip) image".to_owned()))
        }
    }
}

/// BLAKE2b-256 of an image's file: the name under which caches keep what they made of it.
///
/// # Errors
/// [`FormatError::Read`] if the file can't be read.
pub fn image_hash(path: &Path) -> Result<[u8; 32], FormatError> {
    let error = |source| FormatError::Read { file: path.to_owned(), source };
    let mut file = File::open(path).map_err(error)?;
    let mut state = blake2b_simd::Params::new().hash_length(32).to_state();
    let mut buffer = vec![0; 128 * 1024];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(size) => {
                state.update(&buffer[..size]);
            }
            Err(cause) if cause.kind() == std::io::ErrorKind::Interrupted => {}
            Err(cause) => return Err(error(cause)),
        }
    }
    let mut hash = [0; 32];
    hash.copy_from_slice(state.finalize().as_bytes());
    Ok(hash)
}
