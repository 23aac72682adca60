//! The memory file: the image of memory, with holes for zeros, and a page behind it that says which
//! snapshot it belongs to.
//!
//! The image comes first and is nothing but memory, so that a machine can map it as it is. Its
//! checksums are in the state file, one for each part of 64 MiB, and are looked at when somebody asks
//! for it: a clone that reads what it touches could not afford to read all. What is checked always is
//! its size, and that it belongs to the state.

use std::fs::File;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};

use super::error::Problem;
use crate::memory::Ram;
use crate::memory::contents::{PAGE_SIZE, for_each_data, nonzero_runs};

const MAGIC: [u8; 8] = *b"ZOSVMMEM";
/// The page behind the image.
const TRAILER_SIZE: u64 = PAGE_SIZE as u64;
/// Of the trailer, what is not zero.
const TRAILER_USED: usize = 32;
/// Bytes of the image that one checksum is for.
const PART_SIZE: u64 = 64 << 20;
/// Bytes that are read at once.
const CHUNK_SIZE: usize = 1 << 20;

/// What the state says of the memory file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryManifest {
    /// Bytes of the image.
    size: u64,
    /// Random; the memory file has it too.
    id: [u8; 16],
    /// CRC-32C of each part's pages that are not zero, each behind its number.
    checksums: Vec<u32>,
}

impl MemoryManifest {
    /// Writes the file.
    pub(super) fn write(file: &File, ram: &Ram, pagemap: Option<&File>) -> Result<Self, Problem> {
        let host = |source| Problem::Host { what: "write", source };
        let size = ram.image_size();
        let mut id = [0; 16];
        rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| Problem::Host { what: "name", source: error.into() })?;
        // All zeros, whatever there was.
        file.set_len(0).and_then(|()| file.set_len(size + TRAILER_SIZE)).map_err(host)?;
        let mut sums = Checksums::new(size);
        ram.read_out(pagemap, &mut |offset, bytes| {
            for run in nonzero_runs(bytes) {
                let at = offset + run.start as u64;
                let bytes = bytes.get(run).unwrap_or_default();
                sums.add(at, bytes);
                file.write_all_at(bytes, at)?;
            }
            Ok(())
        })
        .map_err(host)?;
        let manifest = Self { size, id, checksums: sums.0 };
        file.write_all_at(&manifest.trailer(), size).map_err(host)?;
        Ok(manifest)
    }

    /// Magic, version, zeros, id.
    fn trailer(&self) -> [u8; TRAILER_USED] {
        let mut trailer = [0; TRAILER_USED];
        trailer[..8].copy_from_slice(&MAGIC);
        trailer[8] = 1;
        trailer[16..].copy_from_slice(&self.id);
        trailer
    }

    /// Refuses what can't be said of a machine with so much memory.
    pub(super) fn check(&self, memory_size: u64) -> Result<(), Problem> {
        let Self { size, ref checksums, .. } = *self;
        if size != memory_size {
            let what = format!("{size} bytes of memory for a machine of {memory_size}");
            return Err(Problem::Contents { what });
        }
        let (found, wanted) = (checksums.len() as u64, size.div_ceil(PART_SIZE));
        if found != wanted {
            let what = format!("{found} checksums of memory that has {wanted} parts");
            return Err(Problem::Contents { what });
        }
        Ok(())
    }

    /// Refuses a file that is not this snapshot's.
    pub(super) fn check_file(&self, file: &File) -> Result<(), Problem> {
        let host = |source| Problem::Host { what: "read", source };
        let metadata = file.metadata().map_err(host)?;
        if !metadata.is_file() {
            return Err(Problem::NotAFile);
        }
        // Bounded by what a description may ask for.
        let (found, wanted) = (metadata.len(), self.size.saturating_add(TRAILER_SIZE));
        if found != wanted {
            return Err(Problem::Size { found, wanted });
        }
        let mut trailer = [0; TRAILER_USED];
        file.read_exact_at(&mut trailer, self.size).map_err(host)?;
        if trailer[..8] != MAGIC {
            return Err(Problem::Magic);
        }
        if trailer != self.trailer() {
            return Err(Problem::Other);
        }
        Ok(())
    }

    /// Refuses a file whose bytes are others than were saved.
    pub(super) fn verify(&self, file: &File) -> Result<(), Problem> {
        let host = |source| Problem::Host { what: "read", source };
        let mut sums = Checksums::new(self.size);
        let mut buffer = vec![0; CHUNK_SIZE];
        for_each_data(file, 0..self.size, &mut buffer, &mut |offset, bytes| {
            for run in nonzero_runs(bytes) {
                sums.add(offset + run.start as u64, bytes.get(run).unwrap_or_default());
            }
            Ok(())
        })
        .map_err(host)?;
        for ((start, found), wanted) in (0..).step_by(PART_STEP).zip(&sums.0).zip(&self.checksums) {
            if found != wanted {
                let end = (start + PART_SIZE).min(self.size);
                return Err(Problem::Part { start, end });
            }
        }
        Ok(())
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a constant that fits")]
const PART_STEP: usize = PART_SIZE as usize;

/// Checksums of an image's parts, as its pages come along, in order.
struct Checksums(Vec<u32>);

impl Checksums {
    fn new(size: u64) -> Self {
        // As many as a manifest has been found to have, or as memory makes.
        Self(vec![0; usize::try_from(size.div_ceil(PART_SIZE)).unwrap_or(0)])
    }

    /// Adds pages at `offset` of the image.
    fn add(&mut self, offset: u64, pages: &[u8]) {
        for (at, page) in (offset..).step_by(PAGE_SIZE).zip(pages.chunks_exact(PAGE_SIZE)) {
            let part = usize::try_from(at / PART_SIZE).unwrap_or(usize::MAX);
            if let Some(sum) = self.0.get_mut(part) {
                let number = at / PAGE_SIZE as u64;
                *sum = crc32c::crc32c_append(*sum, &number.to_le_bytes());
                *sum = crc32c::crc32c_append(*sum, page);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vmm_virtio::memory::{Bytes, GuestAddress};

    use super::*;
    use crate::memory::layout::MIB;
    use crate::memory::{Backing, Layout};

    fn saved() -> (File, MemoryManifest) {
        let ram = Ram::new(Layout::new(130, 46).unwrap(), Backing::default()).unwrap();
        let memory = Arc::clone(ram.memory());
        for place in [0, 70 * MIB, 130 * MIB - 8] {
            memory.write_obj(place | 1, GuestAddress(place)).unwrap();
        }
        let file = tempfile::tempfile().unwrap();
        // What was there before does not matter.
        file.write_all_at(&[9; 1 << 16], 0).unwrap();
        let pagemap = File::open("/proc/self/pagemap").ok();
        let manifest = MemoryManifest::write(&file, &ram, pagemap.as_ref()).unwrap();
        (file, manifest)
    }

    #[test]
    fn an_image_is_memory_with_holes_and_a_page_that_binds_it() {
        use std::os::unix::fs::MetadataExt;
        let (file, manifest) = saved();
        assert_eq!((manifest.size, manifest.checksums.len()), (130 * MIB, 3));
        assert!(file.metadata().unwrap().blocks() * 512 < 4 * MIB, "zeros take room");
        let mut word = [0; 8];
        file.read_exact_at(&mut word, 70 * MIB).unwrap();
        assert_eq!(u64::from_le_bytes(word), (70 * MIB) | 1);
        let mut trailer = [9; 4096];
        file.read_exact_at(&mut trailer, 130 * MIB).unwrap();
        assert_eq!(trailer[..16], *b"ZOSVMMEM\x01\0\0\0\0\0\0\0");
        assert_eq!((&trailer[16..32], &trailer[32..]), (&manifest.id[..], &[0; 4064][..]));
        manifest.check(130 * MIB).unwrap();
        manifest.check_file(&file).unwrap();
        manifest.verify(&file).unwrap();
    }

    #[test]
    fn damage_is_found_where_it_is() {
        let (file, manifest) = saved();
        let error = || manifest.verify(&file).unwrap_err().to_string();
        // A hole that is filled, a page that moved, a bit that tipped.
        file.write_all_at(&[1], 10 * MIB).unwrap();
        assert!(error().contains("bytes 0x0 to 0x4000000 are not"), "{}", error());
        file.write_all_at(&[0], 10 * MIB).unwrap();
        manifest.verify(&file).unwrap();
        file.write_all_at(&(70 * MIB).to_le_bytes(), 70 * MIB).unwrap();
        assert!(error().contains("0x4000000 to 0x8000000"), "{}", error());
        file.write_all_at(&((70 * MIB) | 1).to_le_bytes(), 71 * MIB).unwrap();
        file.write_all_at(&[0; 8], 70 * MIB).unwrap();
        assert!(error().contains("0x4000000 to 0x8000000"), "{}", error());
    }

    #[test]
    fn only_the_state_s_own_file_is_taken() {
        let (file, manifest) = saved();
        let error = |file: &File| manifest.check_file(file).unwrap_err().to_string();
        assert!(error(&saved().0).contains("belongs to another snapshot"));
        file.set_len(130 * MIB + 4095).unwrap();
        assert_eq!(error(&file), "136318975 bytes, where the snapshot has 136318976");
        file.set_len(0).unwrap();
        file.set_len(130 * MIB + 4096).unwrap();
        assert_eq!(error(&file), "a file of a snapshot begins with other bytes");
        let null = File::open("/dev/null").unwrap();
        assert_eq!(error(&null), "not a regular file");
        for bad in [
            MemoryManifest { size: 64 * MIB, ..manifest.clone() },
            MemoryManifest { checksums: vec![0; 4], ..manifest.clone() },
        ] {
            bad.check(130 * MIB).unwrap_err();
        }
    }
}
