//! Where a packer finds the bytes of a converted image's files: in the layers' archives.

use std::io::{self, Read};

use super::layer::Source;
use super::region::{ReadAt, Region};
use super::tar::Extent;
use crate::pack::Contents;
use crate::tree::{InodeId, Node, Tree, printable};

/// The files of a converted image.
#[derive(Debug)]
pub struct LayerContents {
    layers: Vec<Region>,
    files: Vec<File>,
}

/// One inode, by [`InodeId::index`].
#[derive(Debug)]
struct File {
    source: Source,
    size: u64,
    path: Box<[u8]>,
}

impl LayerContents {
    /// The files of `tree`; `sources` are by [`InodeId::index`], `layers` from the bottom.
    #[must_use]
    pub fn new(tree: &Tree, sources: Vec<Source>, layers: Vec<Region>) -> Self {
        let size = |node: &Node| if let Node::File(file) = node { file.size } else { 0 };
        let inodes = tree.inodes().iter().zip(sources);
        let mut files: Vec<File> = inodes
            .map(|(inode, source)| File { source, size: size(&inode.node), path: Box::default() })
            .collect();
        for entry in tree.walk() {
            if let Some(file) = files.get_mut(entry.id.index()) {
                file.path = entry.path.into();
            }
        }
        Self { layers, files }
    }
}

impl Contents for LayerContents {
    fn open(&self, id: InodeId, offset: u64) -> io::Result<Box<dyn Read + Send + '_>> {
        let Some(file) = self.files.get(id.index()) else {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        };
        Ok(match &file.source {
            Source::Nothing => Box::new(io::empty()),
            Source::Memory(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                Box::new(bytes.split_at(start).1)
            }
            Source::Layer { layer, extents } => {
                let layer = self.layers.get(*layer);
                let layer = layer.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
                Box::new(ExtentReader { layer, extents, position: offset, size: file.size })
            }
        })
    }

    fn name(&self, id: InodeId) -> String {
        let path = self.files.get(id.index()).map(|file| printable(&file.path));
        format!("/{}", path.unwrap_or_default())
    }
}

/// Reads a file from its pieces; what lies between them is zeros.
struct ExtentReader<'a> {
    layer: &'a Region,
    extents: &'a [Extent],
    position: u64,
    size: u64,
}

impl Read for ExtentReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let position = self.position;
        let next = self.extents.partition_point(|e| e.start.saturating_add(e.size) <= position);
        let (end, extent) = match self.extents.get(next) {
            Some(extent) if extent.start <= position => {
                (extent.start.saturating_add(extent.size), Some(extent))
            }
            Some(extent) => (extent.start, None),
            None => (self.size, None),
        };
        let rest = usize::try_from(end.saturating_sub(position)).unwrap_or(usize::MAX);
        let (piece, _) = buffer.split_at_mut(rest.min(buffer.len()));
        let size = match extent {
            Some(extent) => {
                let within = position.saturating_sub(extent.start);
                let size = self.layer.read_at(piece, extent.offset.saturating_add(within))?;
                if size == 0 && !piece.is_empty() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                size
            }
            None => {
                piece.fill(0);
                piece.len()
            }
        };
        self.position = position.saturating_add(size as u64);
        Ok(size)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn holes_read_as_zeros_from_any_offset() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"..abcd").unwrap();
        let layer = Region::whole(file).unwrap();
        let extents =
            [Extent { start: 3, offset: 2, size: 2 }, Extent { start: 7, offset: 4, size: 2 }];
        let whole = b"\0\0\0ab\0\0cd\0\0";
        for position in 0..=whole.len() {
            let mut reader = ExtentReader {
                layer: &layer,
                extents: &extents,
                position: position as u64,
                size: whole.len() as u64,
            };
            let mut found = Vec::new();
            reader.read_to_end(&mut found).unwrap();
            assert_eq!(found, &whole[position..]);
        }
    }
}
