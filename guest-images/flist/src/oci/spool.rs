//! Verifies blobs and decompresses layers, within bounds, into temporary files without names.
//!
//! Nothing is decompressed before its blob's digest has been checked, and nothing is parsed before
//! the layer's `diff_id` has been: what the parser sees is what the image's author made, or at least
//! what the image's digest covers. A layer that is not compressed stays where it is.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::PathBuf;

use flate2::bufread::MultiGzDecoder;

use super::OciError;
use super::digest::{Digest, Hasher, HashingReader};
use super::region::{ReadAt, Region, read_exact_at};
use crate::progress::Progress;

/// Bounds on decompressing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpoolLimits {
    /// Bytes of all layers together, decompressed.
    pub total_size_max: u64,
    /// How much larger than its blob a layer may become...
    pub ratio_max: u64,
    /// ...beyond this many bytes, which any layer may have.
    pub ratio_free_size: u64,
}

impl Default for SpoolLimits {
    fn default() -> Self {
        Self { total_size_max: 128 << 30, ratio_max: 200, ratio_free_size: 1 << 30 }
    }
}

/// Where layers are decompressed to, and how much there is already.
#[derive(Debug)]
pub struct Spool {
    directory: PathBuf,
    limits: SpoolLimits,
    used_size: u64,
}

/// How a layer is compressed; its first bytes tell, as media types are often wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

const COPY_SIZE: usize = 128 * 1024;
/// Largest zstd window, as a power of two: 128 MiB, zstd's own default for decompression.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

impl Spool {
    /// Temporary files go to `directory`.
    #[must_use]
    pub const fn new(directory: PathBuf, limits: SpoolLimits) -> Self {
        Self { directory, limits, used_size: 0 }
    }

    /// A temporary file that vanishes when it is closed.
    ///
    /// # Errors
    /// [`OciError::Io`].
    pub fn file(&self) -> Result<File, OciError> {
        tempfile::tempfile_in(&self.directory).map_err(|source| self.error(source))
    }

    /// Checks that there is room for `size` more bytes of layers: those to be downloaded, or those that
    /// are not compressed.
    ///
    /// # Errors
    /// [`OciError::Room`].
    pub fn check_room(&self, what: &str, size: u64) -> Result<(), OciError> {
        let limit = self.limits.total_size_max.saturating_sub(self.used_size);
        if size <= limit {
            return Ok(());
        }
        Err(OciError::Room { what: what.to_owned(), size, limit })
    }

    /// The uncompressed archive in `blob`. `what` names it in errors; `diff_id` is what it must hash
    /// to, if that is known.
    ///
    /// # Errors
    /// [`OciError::DiffId`], [`OciError::Expands`], [`OciError::Room`], [`OciError::Io`],
    /// [`OciError::Cancelled`].
    pub fn decompress(
        &mut self,
        blob: &Region,
        what: &str,
        diff_id: Option<&Digest>,
        progress: &dyn Progress,
    ) -> Result<Region, OciError> {
        let read_error = |source| OciError::Io { what: what.to_owned(), source };
        let reader = BufReader::new(blob.reader());
        let archive = match Compression::of(blob).map_err(read_error)? {
            Compression::None => {
                if let Some(diff_id) = diff_id {
                    self.check_room(what, blob.size())?;
                    self.used_size = self.used_size.saturating_add(blob.size());
                    let digest = hash(blob, what, diff_id, progress)?;
                    check_diff_id(what, diff_id, digest)?;
                }
                return Ok(blob.clone());
            }
            Compression::Gzip => {
                self.copy(MultiGzDecoder::new(reader), blob.size(), what, diff_id, progress)
            }
            Compression::Zstd => {
                let mut decoder =
                    zstd::stream::read::Decoder::with_buffer(reader).map_err(read_error)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(read_error)?;
                self.copy(decoder, blob.size(), what, diff_id, progress)
            }
        }?;
        Region::whole(archive).map_err(|source| self.error(source))
    }

    /// Copies a decompressed layer to a temporary file.
    fn copy(
        &mut self,
        mut from: impl Read,
        blob_size: u64,
        what: &str,
        diff_id: Option<&Digest>,
        progress: &dyn Progress,
    ) -> Result<File, OciError> {
        let ratio = blob_size.saturating_mul(self.limits.ratio_max);
        let layer_size_max = ratio.saturating_add(self.limits.ratio_free_size);
        let total_left = self.limits.total_size_max.saturating_sub(self.used_size);
        let limit = layer_size_max.min(total_left);
        let mut hasher = diff_id.map(|diff_id| Hasher::new(diff_id.algorithm()));
        let mut to = BufWriter::new(self.file()?);
        let (mut buffer, mut size) = (vec![0; COPY_SIZE], 0u64);
        loop {
            progress.check()?;
            let read = from.read(&mut buffer);
            let read = read.map_err(|source| OciError::Io { what: what.to_owned(), source })?;
            let (bytes, _) = buffer.split_at(read);
            if bytes.is_empty() {
                break;
            }
            size = size.saturating_add(read as u64);
            if size > limit {
                return Err(OciError::Expands { what: what.to_owned(), blob_size, limit });
            }
            if let Some(hasher) = &mut hasher {
                hasher.update(bytes);
            }
            to.write_all(bytes).map_err(|source| self.error(source))?;
        }
        self.used_size = self.used_size.saturating_add(size);
        if let (Some(diff_id), Some(hasher)) = (diff_id, hasher) {
            check_diff_id(what, diff_id, hasher.finish())?;
        }
        to.into_inner().map_err(|error| self.error(error.into_error()))
    }

    fn error(&self, source: io::Error) -> OciError {
        let what = format!("a temporary file in {}", self.directory.display());
        OciError::Io { what, source }
    }
}

/// Checks that `blob` hashes to `digest`.
///
/// # Errors
/// [`OciError::Digest`], [`OciError::Io`], [`OciError::Cancelled`].
pub fn verify(
    blob: &Region,
    what: &str,
    digest: &Digest,
    progress: &dyn Progress,
) -> Result<(), OciError> {
    let found = hash(blob, what, digest, progress)?;
    if found == *digest {
        return Ok(());
    }
    Err(OciError::Digest { what: what.to_owned(), expected: digest.clone(), found })
}

fn hash(
    blob: &Region,
    what: &str,
    digest: &Digest,
    progress: &dyn Progress,
) -> Result<Digest, OciError> {
    let mut reader = HashingReader::new(blob.reader(), digest.algorithm());
    let mut buffer = vec![0; COPY_SIZE];
    loop {
        progress.check()?;
        let size = reader.read(&mut buffer);
        if size.map_err(|source| OciError::Io { what: what.to_owned(), source })? == 0 {
            return Ok(reader.finish().0);
        }
    }
}

fn check_diff_id(what: &str, expected: &Digest, found: Digest) -> Result<(), OciError> {
    if found == *expected {
        return Ok(());
    }
    Err(OciError::DiffId { what: what.to_owned(), expected: expected.clone(), found })
}

impl Compression {
    fn of(blob: &Region) -> io::Result<Self> {
        let mut magic = [0; 4];
        let size = usize::try_from(blob.size()).unwrap_or(usize::MAX).min(magic.len());
        read_exact_at(blob, magic.split_at_mut(size).0, 0)?;
        Ok(match magic {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A frame, or the skippable frame with which some writers begin.
            [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => Self::Zstd,
            _ => Self::None,
        })
    }
}
