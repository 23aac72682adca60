//! Reads the files of a FAT volume: the `cidata` disk of a guest, or the partition that a machine boots
//! from.
//!
//! The init needs neither the kernel's `vfat` with its three helper modules nor a mount, and of the 2 MiB
//! (`reference/zero-os.md` 4.7) it reads the few sectors that hold something: all of them would cost a
//! boot more than anything else that it does before its root is there. FAT12, FAT16 and FAT32 with long
//! names, read only: [`Volume::read`] by name in the root directory, [`Volume::list`] and
//! [`Volume::copy`] for whoever has folders to walk and files to copy. Layout: Microsoft FAT specification 1.03. As in
//! Linux, a volume is FAT32 if its 16-bit FAT size is 0, however few clusters it has.
//!
//! The bytes are hostile until proven otherwise: every offset is checked, every chain is bounded
//! by the number of clusters, every folder by [`FILE_BYTES_MAX`].

use std::borrow::Cow;

/// What a volume is read from: bytes in memory, or a disk.
pub trait Image {
    /// How many bytes there are.
    fn size(&self) -> usize;

    /// `count` bytes from `at` on, which are `what`.
    ///
    /// # Errors
    ///
    /// [`Error::Outside`] if they are not all there, [`Error::Unreadable`] if they can't be had.
    fn bytes(&self, at: usize, count: usize, what: &'static str) -> Result<Cow<'_, [u8]>, Error>;
}

impl<T: AsRef<[u8]>> Image for T {
    fn size(&self) -> usize {
        self.as_ref().len()
    }

    fn bytes(&self, at: usize, count: usize, what: &'static str) -> Result<Cow<'_, [u8]>, Error> {
        let end = at.checked_add(count);
        let bytes = end.and_then(|end| self.as_ref().get(at..end));
        bytes.map(Cow::Borrowed).ok_or(Error::Outside(what))
    }
}

/// A volume, of which nothing but its boot sector has been read.
#[derive(Clone, Copy, Debug)]
pub struct Volume<I> {
    image: I,
    kind: Kind,
    cluster_size: usize,
    fat_offset: usize,
    root: Root,
    data_offset: usize,
    /// Clusters are numbered from 2 to this, inclusive.
    cluster_last: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Fat12,
    Fat16,
    Fat32,
}

#[derive(Clone, Copy, Debug)]
enum Root {
    /// Byte offset and size of the fixed root directory of FAT12 and FAT16.
    Fixed(usize, usize),
    /// First cluster, FAT32.
    Cluster(u32),
}

/// Why a volume was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The boot sector has no FAT layout.
    #[error("not a FAT volume: {0}")]
    NotFat(&'static str),
    /// Something lies outside the volume.
    #[error("FAT volume damaged: {0} lies outside it")]
    Outside(&'static str),
    /// The disk does not give its bytes.
    #[error("FAT volume: reading {what}: {error}")]
    Unreadable {
        /// What was to be read.
        what: &'static str,
        /// What the system said.
        error: String,
    },
    /// A chain of clusters is a loop or leads nowhere.
    #[error("FAT volume damaged: the chain from cluster {0} has no end")]
    Chain(u32),
    /// The file is larger than [`FILE_BYTES_MAX`].
    #[error("file of {0} bytes on the FAT volume, at most {FILE_BYTES_MAX} expected")]
    TooLarge(u32),
}

impl<I: Image> Volume<I> {
    /// Reads the boot sector of `image`.
    ///
    /// # Errors
    ///
    /// [`Error::NotFat`] or [`Error::Outside`] when there is no sound FAT layout,
    /// [`Error::Unreadable`] when it can't be read.
    pub fn open(image: I) -> Result<Self, Error> {
        let boot = image.bytes(0, image.size().min(BOOT_SECTOR_SIZE), "the boot sector")?;
        if boot.get(510..512) != Some(&[0x55, 0xaa]) {
            return Err(Error::NotFat("no 55 AA at byte 510"));
        }
        let bpb = Bpb::read(&boot).ok_or(Error::NotFat("boot sector too short"))?;
        bpb.check()?;
        let sector = usize::from(bpb.bytes_per_sector);
        let fat32 = bpb.fat_sectors_16 == 0;
        let fat_sectors =
            if fat32 { bpb.fat_sectors_32 } else { u32::from(bpb.fat_sectors_16) } as usize;
        let fat_offset = usize::from(bpb.reserved_sectors) * sector;
        let fats = fat_sectors
            .checked_mul(usize::from(bpb.fats))
            .and_then(|n| n.checked_mul(sector))
            .ok_or(Error::Outside("the FAT"))?;
        let root_offset = fat_offset.checked_add(fats).ok_or(Error::Outside("the FAT"))?;
        let root_size = usize::from(bpb.root_entries) * ENTRY_SIZE;
        let data_offset = root_offset + root_size.next_multiple_of(sector);
        let cluster_size = sector * usize::from(bpb.sectors_per_cluster);
        let end = (bpb.sectors as usize).saturating_mul(sector).min(image.size());
        let clusters =
            end.checked_sub(data_offset).ok_or(Error::Outside("the data area"))? / cluster_size;
        let clusters = u32::try_from(clusters).map_err(|_| Error::NotFat("too large"))?;
        let kind = match clusters {
            _ if fat32 => Kind::Fat32,
            0..4085 => Kind::Fat12,
            _ => Kind::Fat16,
        };
        let root = match kind {
            Kind::Fat32 => Root::Cluster(bpb.root_cluster),
            _ => Root::Fixed(root_offset, root_size),
        };
        let cluster_last = clusters.saturating_add(1);
        drop(boot);
        Ok(Self { image, kind, cluster_size, fat_offset, root, data_offset, cluster_last })
    }

    /// The volume's label, from the root directory or else the boot sector, without the padding.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    pub fn label(&self) -> Result<String, Error> {
        let root = self.root()?;
        let mut entries = root.chunks_exact(ENTRY_SIZE).take_while(|e| e.first() != Some(&0));
        let label = entries.find(|entry| {
            let attr = entry.get(11).copied().unwrap_or_default();
            entry.first() != Some(&0xe5) && attr & 0x3f == ATTR_LABEL
        });
        if let Some(entry) = label {
            return Ok(text(entry.get(..11).unwrap_or_default()));
        }
        let at = if self.kind == Kind::Fat32 { 71 } else { 43 };
        Ok(text(&self.image.bytes(at, 11, "the label")?))
    }

    /// The content of the file `name` in the root directory, upper and lower case being the same;
    /// `None` if there is no such file.
    ///
    /// # Errors
    ///
    /// [`Error`] for a damaged directory or chain, or a file above [`FILE_BYTES_MAX`].
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let root = self.root()?;
        let is_wanted = |file: &Entry| !file.is_folder && file.name.eq_ignore_ascii_case(name);
        let Some(file) = entries(&root).find(is_wanted) else {
            return Ok(None);
        };
        if file.size as usize > FILE_BYTES_MAX {
            return Err(Error::TooLarge(file.size));
        }
        let mut content = Vec::new();
        self.copy(&file, |bytes| {
            content.extend_from_slice(bytes);
            Ok::<_, Error>(())
        })?;
        Ok(Some(content))
    }

    /// What is in `folder`, which an entry named; in the root directory if there is none.
    ///
    /// # Errors
    ///
    /// [`Error`] for a damaged directory or chain.
    pub fn list(&self, folder: Option<&Entry>) -> Result<Vec<Entry>, Error> {
        let directory = match folder {
            // A folder's entry for the one above it says 0 for the root.
            Some(folder) if folder.cluster != 0 => self.chain(folder.cluster, FILE_BYTES_MAX)?,
            _ => self.root()?,
        };
        let named = entries(&directory).filter(|entry| entry.name != "." && entry.name != "..");
        Ok(named.collect())
    }

    /// Gives the contents of `file` to `sink`, piece by piece.
    ///
    /// # Errors
    ///
    /// [`Error`] for a damaged chain, and whatever `sink` says.
    pub fn copy<E: From<Error>>(
        &self,
        file: &Entry,
        mut sink: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut left = file.size as usize;
        if left == 0 {
            return Ok(());
        }
        self.clusters(file.cluster, |bytes| {
            let piece = bytes.get(..left).unwrap_or(bytes);
            left -= piece.len();
            sink(piece)?;
            Ok::<_, E>(left > 0)
        })?;
        if left > 0 {
            return Err(Error::Chain(file.cluster).into());
        }
        Ok(())
    }

    /// The number that formatting gave the volume.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    pub fn serial(&self) -> Result<u32, Error> {
        let at = if self.kind == Kind::Fat32 { 67 } else { 39 };
        Ok(le32(&self.image.bytes(at, 4, "the serial number")?))
    }

    fn root(&self) -> Result<Vec<u8>, Error> {
        match self.root {
            Root::Cluster(first) => self.chain(first, FILE_BYTES_MAX),
            Root::Fixed(offset, size) => {
                Ok(self.image.bytes(offset, size, "the root directory")?.into_owned())
            }
        }
    }

    /// The clusters from `first` on, until the chain ends or `wanted` bytes are there.
    fn chain(&self, first: u32, wanted: usize) -> Result<Vec<u8>, Error> {
        let mut out = Vec::new();
        self.clusters(first, |bytes| {
            out.extend_from_slice(bytes);
            Ok::<_, Error>(out.len() < wanted)
        })?;
        Ok(out)
    }

    /// Gives the clusters from `first` on to `sink`, until the chain ends or `sink` wants no more.
    fn clusters<E: From<Error>>(
        &self,
        first: u32,
        mut sink: impl FnMut(&[u8]) -> Result<bool, E>,
    ) -> Result<(), E> {
        let mut cluster = first;
        for _ in 0..self.cluster_last {
            if !(2..=self.cluster_last).contains(&cluster) {
                return Err(Error::Outside("a cluster").into());
            }
            let at = self.data_offset + (cluster as usize - 2) * self.cluster_size;
            if !sink(&self.image.bytes(at, self.cluster_size, "a cluster")?)? {
                return Ok(());
            }
            match self.next(cluster)? {
                Some(next) => cluster = next,
                None => return Ok(()),
            }
        }
        Err(Error::Chain(first).into())
    }

    /// The cluster after `cluster`, or `None` at the end of its chain.
    fn next(&self, cluster: u32) -> Result<Option<u32>, Error> {
        let n = cluster as usize;
        let entry =
            |at: usize, size: usize| self.image.bytes(self.fat_offset + at, size, "a FAT entry");
        let (value, end) = match self.kind {
            Kind::Fat12 => {
                let pair = u32::from(le16(&entry(n + n / 2, 2)?));
                (if n.is_multiple_of(2) { pair & 0xfff } else { pair >> 4 }, 0xff8)
            }
            Kind::Fat16 => (u32::from(le16(&entry(n * 2, 2)?)), 0xfff8),
            Kind::Fat32 => (le32(&entry(n * 4, 4)?) & 0x0fff_ffff, 0x0fff_fff8),
        };
        Ok((value < end).then_some(value))
    }
}

/// The fields of the boot sector that matter here.
struct Bpb {
    bytes_per_sector: u16,
    sectors_per_cluster: u8,
    reserved_sectors: u16,
    fats: u8,
    root_entries: u16,
    sectors: u32,
    fat_sectors_16: u16,
    fat_sectors_32: u32,
    root_cluster: u32,
}

impl Bpb {
    fn read(image: &[u8]) -> Option<Self> {
        let at16 = |at: usize| image.get(at..at + 2).map(le16);
        let at32 = |at: usize| image.get(at..at + 4).map(le32);
        let sectors = match at16(19)? {
            0 => at32(32)?,
            n => u32::from(n),
        };
        Some(Self {
            bytes_per_sector: at16(11)?,
            sectors_per_cluster: *image.get(13)?,
            reserved_sectors: at16(14)?,
            fats: *image.get(16)?,
            root_entries: at16(17)?,
            sectors,
            fat_sectors_16: at16(22)?,
            fat_sectors_32: at32(36)?,
            root_cluster: at32(44)?,
        })
    }

    fn check(&self) -> Result<(), Error> {
        let sound = [
            (matches!(self.bytes_per_sector, 512 | 1024 | 2048 | 4096), "bytes per sector"),
            (self.sectors_per_cluster.is_power_of_two(), "sectors per cluster"),
            (self.reserved_sectors > 0, "reserved sectors"),
            (self.fats > 0, "number of FATs"),
            (self.fat_sectors_16 > 0 || self.fat_sectors_32 > 0, "size of the FAT"),
        ];
        match sound.iter().find(|(ok, _)| !ok) {
            Some((_, field)) => Err(Error::NotFat(field)),
            None => Ok(()),
        }
    }
}

/// A file or a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name: the long one if it has one.
    pub name: String,
    /// Whether it is a folder.
    pub is_folder: bool,
    /// Bytes of a file; of a folder, nothing.
    pub size: u32,
    cluster: u32,
}

/// The files and folders of a directory, with their long names.
fn entries(directory: &[u8]) -> impl Iterator<Item = Entry> + '_ {
    let mut long = LongName::default();
    directory.chunks_exact(ENTRY_SIZE).take_while(|entry| entry.first() != Some(&0)).filter_map(
        move |entry| {
            let attr = *entry.get(11)?;
            if entry.first() == Some(&0xe5) {
                long = LongName::default();
                return None;
            }
            if attr & 0x3f == ATTR_LONG_NAME {
                long.add(entry);
                return None;
            }
            let name = std::mem::take(&mut long).finish(entry);
            if attr & ATTR_LABEL != 0 {
                return None;
            }
            let high = u32::from(le16(entry.get(20..22)?));
            let low = u32::from(le16(entry.get(26..28)?));
            let is_folder = attr & ATTR_DIRECTORY != 0;
            let size = if is_folder { 0 } else { le32(entry.get(28..32)?) };
            Some(Entry { name, is_folder, cluster: high << 16 | low, size })
        },
    )
}

/// The parts of a long name, which precede its short entry, last part first.
#[derive(Default)]
struct LongName {
    units: Vec<u16>,
    checksum: u8,
}

impl LongName {
    fn add(&mut self, entry: &[u8]) {
        let Some((&order, &checksum)) = entry.first().zip(entry.get(13)) else { return };
        if order & 0x40 != 0 {
            *self = Self { units: Vec::new(), checksum };
        }
        let mut part: Vec<u16> = Vec::with_capacity(13);
        for range in [1..11, 14..26, 28..32] {
            part.extend(entry.get(range).unwrap_or_default().chunks_exact(2).map(le16));
        }
        if self.units.len() < NAME_UNITS_MAX {
            part.append(&mut self.units);
            self.units = part;
        }
    }

    /// The long name if it belongs to the short entry, else the short one.
    fn finish(self, entry: &[u8]) -> String {
        let short = entry.get(..11).unwrap_or_default();
        let sum = short.iter().fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
        if !self.units.is_empty() && sum == self.checksum {
            let end = self.units.iter().position(|u| *u == 0).unwrap_or(self.units.len());
            return String::from_utf16_lossy(self.units.get(..end).unwrap_or_default());
        }
        let (base, extension) = short.split_at_checked(8).unwrap_or_default();
        match (text(base), text(extension)) {
            (base, extension) if extension.is_empty() => base,
            (base, extension) => format!("{base}.{extension}"),
        }
    }
}

fn text(padded: &[u8]) -> String {
    String::from_utf8_lossy(padded).trim_end_matches([' ', '\0']).to_owned()
}

fn le16(bytes: &[u8]) -> u16 {
    bytes.iter().rev().fold(0, |n, byte| n << 8 | u16::from(*byte))
}

fn le32(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |n, byte| n << 8 | u32::from(*byte))
}

/// What of the first sector is looked at.
const BOOT_SECTOR_SIZE: usize = 512;
const ENTRY_SIZE: usize = 32;
const ATTR_LABEL: u8 = 0x08;
const ATTR_DIRECTORY: u8 = 0x10;
const ATTR_LONG_NAME: u8 = 0x0f;
/// Longest long name, in UTF-16 units: 20 parts of 13.
const NAME_UNITS_MAX: usize = 260;
/// Largest file that is read, in bytes.
pub const FILE_BYTES_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    /// A volume of 64 KiB made by hand: `kind`, one sector per cluster, two files.
    fn volume(kind: Kind) -> Vec<u8> {
        let mut v = vec![0u8; 128 * 512];
        let put = |v: &mut Vec<u8>, at: usize, bytes: &[u8]| {
            v[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(&mut v, 11, &512u16.to_le_bytes());
        v[13] = 1;
        put(&mut v, 14, &1u16.to_le_bytes());
        v[16] = 1;
        put(&mut v, 19, &128u16.to_le_bytes());
        put(&mut v, 510, &[0x55, 0xaa]);
        let (fat, root) = (512, 1024);
        let links: Vec<(usize, u32)> = vec![(2, 0x0fff_ffff), (3, 5), (5, 0x0fff_ffff), (6, 6)];
        match kind {
            Kind::Fat32 => {
                put(&mut v, 36, &1u32.to_le_bytes());
                put(&mut v, 44, &2u32.to_le_bytes());
                put(&mut v, 71, b"CIDATA     ");
                for (n, next) in links {
                    put(&mut v, fat + n * 4, &next.to_le_bytes());
                }
            }
            _ => {
                put(&mut v, 17, &16u16.to_le_bytes());
                put(&mut v, 22, &1u16.to_le_bytes());
                put(&mut v, 43, b"cidata     ");
                for (n, next) in links {
                    let at = fat + n + n / 2;
                    let old = u32::from(u16::from_le_bytes([v[at], v[at + 1]]));
                    let next = next & 0xfff;
                    let new = if n % 2 == 0 { old | next } else { old | next << 4 };
                    put(&mut v, at, &new.to_le_bytes()[..2]);
                }
            }
        }
        let mut entry = |slot: usize, name: &[u8; 11], cluster: u16, size: u32| {
            let at = root + slot * 32;
            put(&mut v, at, name);
            v[at + 11] = 0x20;
            put(&mut v, at + 26, &cluster.to_le_bytes());
            put(&mut v, at + 28, &size.to_le_bytes());
        };
        entry(0, b"ZOSRC      ", 3, 600);
        entry(2, b"USER-D~1   ", 4, 3);
        entry(3, b"EMPTY   TXT", 0, 0);
        entry(4, b"LOOP       ", 6, 100_000);
        entry(5, b"OUT        ", 900, 1);
        entry(6, b"HUGE       ", 3, 0xffff_ffff);
        let long = long_entry("user-data", b"USER-D~1   ");
        put(&mut v, root + 32, &long);
        let data = if kind == Kind::Fat32 { 1024 } else { 1536 };
        put(&mut v, data + 512, &[b'a'; 512]);
        put(&mut v, data + 3 * 512, &[b'b'; 512]);
        put(&mut v, data + 2 * 512, b"hey");
        v
    }

    fn long_entry(name: &str, short: &[u8; 11]) -> [u8; 32] {
        let mut units = [0xffffu16; 13];
        for (slot, unit) in units.iter_mut().zip(name.encode_utf16().chain([0])) {
            *slot = unit;
        }
        let mut entry = [0u8; 32];
        entry[0] = 0x41;
        entry[11] = ATTR_LONG_NAME;
        entry[13] = short.iter().fold(0u8, |s, b| s.rotate_right(1).wrapping_add(*b));
        let places = (1..11).step_by(2).chain((14..26).step_by(2)).chain((28..32).step_by(2));
        for (at, unit) in places.zip(units) {
            entry[at..at + 2].copy_from_slice(&unit.to_le_bytes());
        }
        entry
    }

    #[test]
    fn files_are_read_whatever_the_width() {
        for kind in [Kind::Fat12, Kind::Fat32] {
            let image = volume(kind);
            let v = Volume::open(&image).unwrap();
            assert_eq!(v.kind, kind);
            assert_eq!(v.label().unwrap().to_lowercase(), "cidata");
            let zosrc = v.read("zosrc").unwrap().unwrap();
            assert_eq!(zosrc, [[b'a'; 512].as_slice(), &[b'b'; 88]].concat());
            assert_eq!(v.read("user-data").unwrap().unwrap(), b"hey");
            assert_eq!(v.read("empty.txt").unwrap().unwrap(), b"");
            assert_eq!(v.read("absent").unwrap(), None);
        }
    }

    #[test]
    fn folders_are_listed_and_files_are_copied() {
        let mut image = volume(Kind::Fat32);
        // `ZOSRC` becomes a folder, in which there are what stands for itself and a file.
        image[1024 + 11] = ATTR_DIRECTORY;
        let data = 1024;
        let mut inside = [0u8; 512];
        inside[..11].copy_from_slice(b".          ");
        inside[11] = ATTR_DIRECTORY;
        inside[32..43].copy_from_slice(b"KERNEL     ");
        inside[32 + 26..32 + 28].copy_from_slice(&4u16.to_le_bytes());
        inside[32 + 28..32 + 32].copy_from_slice(&3u32.to_le_bytes());
        image[data + 512..data + 1024].copy_from_slice(&inside);
        let v = Volume::open(&image).unwrap();
        let top = v.list(None).unwrap();
        let names: Vec<_> = top.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names, ["ZOSRC", "user-data", "EMPTY.TXT", "LOOP", "OUT", "HUGE"]);
        assert!(top[0].is_folder && !top[1].is_folder);
        let inside = v.list(Some(&top[0])).unwrap();
        assert_eq!(inside.len(), 1);
        assert_eq!((inside[0].name.as_str(), inside[0].size), ("KERNEL", 3));
        let mut copied = Vec::new();
        v.copy(&inside[0], |bytes| {
            copied.extend_from_slice(bytes);
            Ok::<_, Error>(())
        })
        .unwrap();
        assert_eq!(copied, b"hey");
        assert_eq!(v.read("zosrc"), Ok(None));
        let huge = v.copy(&top[5], |_| Ok::<_, Error>(()));
        assert_eq!(huge, Err(Error::Chain(3)));
        assert_eq!(v.list(Some(&top[3])), Err(Error::Chain(6)));
    }

    #[test]
    fn damage_is_an_error() {
        let image = volume(Kind::Fat32);
        let v = Volume::open(&image).unwrap();
        assert_eq!(v.read("loop"), Err(Error::Chain(6)));
        assert_eq!(v.read("out"), Err(Error::Outside("a cluster")));
        assert_eq!(v.read("huge"), Err(Error::TooLarge(0xffff_ffff)));
    }

    #[test]
    fn no_boot_sector_is_trusted() {
        assert!(Volume::open(&[]).is_err());
        assert!(Volume::open(&[0; 512]).is_err());
        let good = volume(Kind::Fat32);
        for at in 11..48 {
            for byte in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[at] = byte;
                if let Ok(v) = Volume::open(&bad) {
                    let _ = (v.label(), v.read("zosrc"), v.read("user-data"));
                }
            }
        }
        for len in (0..good.len()).step_by(97) {
            if let Ok(v) = Volume::open(&good[..len]) {
                let _ = (v.label(), v.read("zosrc"));
            }
        }
    }

    #[test]
    fn a_label_in_the_root_directory_comes_first() {
        let mut image = volume(Kind::Fat12);
        let at = 1024 + 7 * 32;
        image[at..at + 11].copy_from_slice(b"OTHER      ");
        image[at + 11] = ATTR_LABEL;
        assert_eq!(Volume::open(&image).unwrap().label().unwrap(), "OTHER");
    }
}
