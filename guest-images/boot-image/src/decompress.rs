//! The compressions a kernel image or a module may use, told apart by their first bytes.
//!
//! Bounded by the caller's `size_max`: a few kilobytes that claim to be a terabyte end in an
//! error, not in the machine's last page.

use std::io::Read;

use thiserror::Error;

/// Decompresses one whole stream, at most `size_max` bytes of it.
///
/// # Errors
///
/// [`DecompressError`], also when there is more than `size_max`.
pub fn decompress(stream: &[u8], size_max: usize) -> Result<Vec<u8>, DecompressError> {
    let format = Format::of(stream).ok_or_else(|| unknown(stream))?;
    let name = format.name();
    let read = |reader: &mut dyn Read| read_bounded(name, reader, size_max);
    match format {
        Format::Gzip => read(&mut flate2::read::GzDecoder::new(stream)),
        Format::Xz => read(&mut lzma_rust2::XzReader::new(stream, false)),
        Format::Zstd => read(
            &mut zstd::stream::read::Decoder::with_buffer(stream)
                .map_err(|source| DecompressError::Stream { format: name, source })?
                .single_frame(),
        ),
        Format::Lz4Legacy => lz4_legacy(stream, size_max),
    }
}

/// A stream format and its magic number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// RFC 1952.
    Gzip,
    /// The `.xz` container.
    Xz,
    /// RFC 8878.
    Zstd,
    /// LZ4's legacy frame, the only one that Linux' build writes.
    Lz4Legacy,
}

impl Format {
    fn of(stream: &[u8]) -> Option<Self> {
        match stream {
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Self::Xz),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstd),
            [0x02, 0x21, 0x4c, 0x18, ..] => Some(Self::Lz4Legacy),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Lz4Legacy => "lz4",
        }
    }
}

/// Magic, then blocks of `size: u32` and that many bytes, each at most 8 MiB decompressed.
fn lz4_legacy(stream: &[u8], size_max: usize) -> Result<Vec<u8>, DecompressError> {
    const BLOCK_SIZE_MAX: usize = 8 << 20;
    let mut rest = stream.get(4..).unwrap_or_default();
    let mut out = Vec::new();
    let mut block = vec![0; BLOCK_SIZE_MAX];
    while let Some((size, tail)) = rest.split_first_chunk::<4>() {
        let size = usize::try_from(u32::from_le_bytes(*size)).unwrap_or(usize::MAX);
        let packed =
            tail.get(..size).ok_or(DecompressError::Lz4Block { size, left: tail.len() })?;
        let unpacked = lz4_flex::block::decompress_into(packed, &mut block)?;
        if out.len() + unpacked > size_max {
            return Err(DecompressError::TooLarge { size_max });
        }
        out.extend_from_slice(block.get(..unpacked).unwrap_or_default());
        rest = tail.get(size..).unwrap_or_default();
    }
    if rest.is_empty() { Ok(out) } else { Err(DecompressError::Lz4Tail { left: rest.len() }) }
}

fn read_bounded(
    format: &'static str,
    reader: &mut dyn Read,
    size_max: usize,
) -> Result<Vec<u8>, DecompressError> {
    let limit = u64::try_from(size_max).unwrap_or(u64::MAX).saturating_add(1);
    let mut out = Vec::new();
    reader
        .take(limit)
        .read_to_end(&mut out)
        .map_err(|source| DecompressError::Stream { format, source })?;
    if out.len() > size_max { Err(DecompressError::TooLarge { size_max }) } else { Ok(out) }
}

fn unknown(stream: &[u8]) -> DecompressError {
    let mut magic = [0; 4];
    for (to, from) in magic.iter_mut().zip(stream) {
        *to = *from;
    }
    DecompressError::UnknownFormat { magic: u32::from_be_bytes(magic) }
}

/// A stream can't be decompressed.
#[derive(Debug, Error)]
pub enum DecompressError {
    /// The first bytes are no format we know.
    #[error("stream begins with {magic:08x}, which is not gzip, xz, zstd or lz4")]
    UnknownFormat {
        /// The first four bytes, big-endian.
        magic: u32,
    },
    /// The decoder refused the stream.
    #[error("{format} stream is damaged")]
    Stream {
        /// The stream's format.
        format: &'static str,
        /// The decoder's reason.
        source: std::io::Error,
    },
    /// An LZ4 block's size reaches past the end.
    #[error("lz4 block of {size} bytes, but {left} are left")]
    Lz4Block {
        /// What the block's header says.
        size: usize,
        /// What the stream has.
        left: usize,
    },
    /// An LZ4 block is damaged.
    #[error("lz4 block is damaged")]
    Lz4(#[from] lz4_flex::block::DecompressError),
    /// Bytes after the last LZ4 block.
    #[error("{left} stray bytes after the last lz4 block")]
    Lz4Tail {
        /// How many.
        left: usize,
    },
    /// The stream holds more than the caller allows.
    #[error("stream holds more than the limit of {size_max} bytes")]
    TooLarge {
        /// The limit.
        size_max: usize,
    },
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Write;

    pub(crate) fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    pub(crate) fn xz(data: &[u8]) -> Vec<u8> {
        let options = lzma_rust2::XzOptions::with_preset(1);
        let mut encoder = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    pub(crate) fn zstd(data: &[u8]) -> Vec<u8> {
        ::zstd::bulk::compress(data, 1).unwrap()
    }

    pub(crate) fn lz4(data: &[u8]) -> Vec<u8> {
        let mut out = vec![0x02, 0x21, 0x4c, 0x18];
        for chunk in data.chunks(8 << 20) {
            let packed = lz4_flex::block::compress(chunk);
            out.extend(u32::try_from(packed.len()).unwrap().to_le_bytes());
            out.extend(packed);
        }
        out
    }

    #[test]
    fn each_format_round_trips() {
        let data: Vec<u8> = (0..100_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        for packed in [gzip(&data), xz(&data), zstd(&data), lz4(&data)] {
            assert_eq!(decompress(&packed, data.len()).unwrap(), data);
            let over = decompress(&packed, data.len() - 1);
            assert!(matches!(over, Err(DecompressError::TooLarge { .. })), "{over:?}");
        }
    }

    #[test]
    fn every_truncation_and_bit_flip_ends_in_a_result() {
        let data: Vec<u8> = (0..2000u32).flat_map(|n| (n * n).to_le_bytes()).collect();
        for packed in [gzip(&data), xz(&data), zstd(&data), lz4(&data)] {
            for len in (0..packed.len()).step_by(97) {
                let _ = decompress(&packed[..len], 1 << 20);
            }
            for at in (0..packed.len()).step_by(97) {
                let mut damaged = packed.clone();
                damaged[at] ^= 0x40;
                let _ = decompress(&damaged, 1 << 20);
            }
            assert!(decompress(&packed[..packed.len() / 2], 1 << 20).is_err());
        }
        assert!(decompress(b"", 1).is_err());
        assert!(decompress(b"hello world", 1).is_err());
    }
}
