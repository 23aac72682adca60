//! The ext4 template: a file system made once, at build time, and copied onto blank disks.
//!
//! There is no `mkfs` in a guest. The recipe makes a few empty file systems of different sizes
//! with `mke2fs`, keeps their non-zero blocks (some 10 to 20 of 4 KiB), and puts them into the
//! initramfs. [`Template::writes`] gives a blank disk a copy with its own UUID; the kernel then
//! grows it to the disk's size while it is mounted. The byte table is in `FORMAT.md`.

use crate::bytes::{array, le32, le64};
use crate::ext4::{self, Identity, Superblock};

/// A template, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// Smallest disk that it is meant for, in bytes.
    pub disk_size_min: u64,
    blocks: Vec<(u64, Vec<u8>)>,
    superblock: Superblock,
}

/// Why a template was refused. Ours are built with the init: this is a broken build.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The bytes are no template.
    #[error("ext4 template: {0}")]
    Malformed(&'static str),
}

impl Template {
    /// Makes a template of the non-zero ones of `blocks`: index and 4 KiB each, in order.
    ///
    /// # Errors
    ///
    /// [`Error`] if they are no ext4 file system with 4 KiB blocks.
    pub fn from_blocks(
        blocks: impl IntoIterator<Item = (u64, Vec<u8>)>,
        disk_size_min: u64,
    ) -> Result<Self, Error> {
        let used = |(_, block): &(u64, Vec<u8>)| block.iter().any(|byte| *byte != 0);
        Self::new(disk_size_min, blocks.into_iter().filter(used).collect())
    }

    fn new(disk_size_min: u64, blocks: Vec<(u64, Vec<u8>)>) -> Result<Self, Error> {
        let primary = match blocks.first() {
            Some((0, block)) => block.get(ext4::OFFSET..).and_then(Superblock::parse),
            _ => None,
        };
        let superblock = primary.ok_or(Error::Malformed("no superblock in block 0"))?;
        if superblock.block_size != BLOCK_SIZE as u64 {
            return Err(Error::Malformed("blocks are not of 4096 bytes"));
        }
        if superblock.size() > disk_size_min {
            return Err(Error::Malformed("larger than the smallest disk that it is meant for"));
        }
        let inside = |(index, block): &(u64, Vec<u8>)| {
            *index < superblock.block_count && block.len() == BLOCK_SIZE
        };
        if !blocks.iter().all(inside) {
            return Err(Error::Malformed("a block lies outside the file system"));
        }
        Ok(Self { disk_size_min, blocks, superblock })
    }

    /// Decodes what [`Self::encode`] wrote.
    ///
    /// # Errors
    ///
    /// [`Error`] if `bytes` is not a whole template.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let body = bytes.strip_prefix(MAGIC).ok_or(Error::Malformed("no magic"))?;
        let disk_size_min = le64(body, 0).ok_or(Error::Malformed("cut short"))?;
        let count = le32(body, 8).ok_or(Error::Malformed("cut short"))? as usize;
        let entries = body.get(12..).unwrap_or_default();
        if count > BLOCKS_MAX || entries.len() != count * ENTRY_SIZE {
            return Err(Error::Malformed("its length is not what its header says"));
        }
        let entry = |entry: &[u8]| {
            let index = array(entry, 0).map(u64::from_le_bytes).unwrap_or_default();
            (index, entry.get(8..).unwrap_or_default().to_vec())
        };
        Self::new(disk_size_min, entries.chunks_exact(ENTRY_SIZE).map(entry).collect())
    }

    /// The bytes of `FORMAT.md`.
    ///
    /// # Errors
    ///
    /// [`Error`] if the template has more than [`BLOCKS_MAX`] blocks.
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        let count = u32::try_from(self.blocks.len()).ok().filter(|n| *n as usize <= BLOCKS_MAX);
        let count = count.ok_or(Error::Malformed("too many blocks are in use"))?;
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&self.disk_size_min.to_le_bytes());
        out.extend_from_slice(&count.to_le_bytes());
        for (index, block) in &self.blocks {
            out.extend_from_slice(&index.to_le_bytes());
            out.extend_from_slice(block);
        }
        Ok(out)
    }

    /// The writes, as byte offset and bytes, that make a copy with `identity`. All but the last
    /// may happen in any order; the last one is the primary superblock alone, and must wait until
    /// the others are on the disk.
    #[must_use]
    pub fn writes(&self, identity: &Identity) -> Vec<(u64, Vec<u8>)> {
        let backups = self.superblock.backups();
        let mut writes = Vec::with_capacity(self.blocks.len());
        let mut last = Vec::new();
        for (index, block) in &self.blocks {
            let mut block = block.clone();
            if *index == 0 {
                last = block.split_off(ext4::OFFSET);
                last.truncate(ext4::SIZE);
                // `new` has seen a whole superblock here.
                let _ = identity.stamp(&mut last);
                continue;
            }
            if backups.contains(index) {
                let _ = identity.stamp(&mut block);
            }
            writes.push((index * BLOCK_SIZE as u64, block));
        }
        writes.push((ext4::OFFSET as u64, last));
        writes
    }
}

/// The template for a disk of `size` bytes: the one for the largest disks not above it.
#[must_use]
pub fn choose(templates: &[Template], size: u64) -> Option<&Template> {
    let fitting = templates.iter().filter(|template| template.disk_size_min <= size);
    fitting.max_by_key(|template| template.disk_size_min)
}

/// Folder of the templates in the initramfs.
pub const DIR: &str = "/templates";
const MAGIC: &[u8] = b"ext4tpl\x01";
/// Size of a block in bytes.
pub const BLOCK_SIZE: usize = 4096;
const ENTRY_SIZE: usize = 8 + BLOCK_SIZE;
/// Most blocks in a template: 1 MiB of them.
pub const BLOCKS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ext4::tests::superblock;

    /// Two block groups: the superblock, one block of other data, the superblock's backup.
    fn blocks() -> Vec<(u64, Vec<u8>)> {
        let sb = superblock(32770, "");
        let block = |at: usize, bytes: &[u8]| {
            let mut block = vec![0; BLOCK_SIZE];
            block[at..at + bytes.len()].copy_from_slice(bytes);
            block
        };
        vec![(0, block(1024, &sb)), (5, block(0, &[9])), (32768, block(0, &sb))]
    }

    fn template() -> Template {
        Template::new(1 << 30, blocks()).unwrap()
    }

    #[test]
    fn encoding_is_reversible() {
        let bytes = template().encode().unwrap();
        assert_eq!(bytes.len(), 8 + 8 + 4 + 3 * (8 + 4096));
        assert_eq!(Template::decode(&bytes).unwrap(), template());
    }

    #[test]
    fn damaged_bytes_are_refused() {
        let bytes = template().encode().unwrap();
        for len in [0, 7, 8, 15, 19, 20, bytes.len() - 1] {
            assert!(Template::decode(&bytes[..len]).is_err(), "{len} bytes");
        }
        for at in [0, 16, 19, 20 + 8 + 1024 + 4] {
            let mut bad = bytes.clone();
            bad[at] ^= 0x80;
            assert!(Template::decode(&bad).is_err(), "byte {at}");
        }
        assert!(Template::new(4096, blocks()).is_err());
        assert!(Template::from_blocks([(0, vec![0; 4096])], 1 << 30).is_err());
    }

    #[test]
    fn only_used_blocks_of_an_image_are_kept() {
        let unused = (1..5).map(|index| (index, vec![0; BLOCK_SIZE]));
        let (first, rest) = (blocks().into_iter().take(1), blocks().into_iter().skip(1));
        let template = Template::from_blocks(first.chain(unused).chain(rest), 1 << 30).unwrap();
        let indexes: Vec<u64> = template.blocks.iter().map(|(index, _)| *index).collect();
        assert_eq!(indexes, [0, 5, 32768]);
    }

    #[test]
    fn a_copy_has_its_own_identity_and_ends_with_the_superblock() {
        let id = Identity { uuid: [1; 16], hash_seed: [2; 16], label: "vol".into(), now: 3 };
        let writes = template().writes(&id);
        let offsets: Vec<u64> = writes.iter().map(|(at, _)| *at).collect();
        assert_eq!(offsets, [5 * 4096, 32768 * 4096, 1024]);
        for (_, bytes) in &writes[1..] {
            let sb = Superblock::parse(bytes).unwrap();
            assert_eq!((sb.uuid, sb.label.as_str()), ([1; 16], "vol"));
        }
        assert_eq!(writes[2].1.len(), 1024);
    }

    #[test]
    fn the_largest_template_that_fits_is_chosen() {
        let mut all = vec![template(), template(), template()];
        all[0].disk_size_min = 100;
        all[1].disk_size_min = 300;
        all[2].disk_size_min = 200;
        assert_eq!(choose(&all, 99), None);
        assert_eq!(choose(&all, 100).unwrap().disk_size_min, 100);
        assert_eq!(choose(&all, 299).unwrap().disk_size_min, 200);
        assert_eq!(choose(&all, u64::MAX).unwrap().disk_size_min, 300);
    }
}
