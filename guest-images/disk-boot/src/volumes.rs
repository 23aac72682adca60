//! All file systems of a disk, by the names that boot loaders give them.

use crate::filesystem::{self, FileError, FileSystem, Kind, Node, Path, name_of, resolve};
use crate::source::Window;
use crate::table::{Scheme, TableError, partitions};

/// Bytes of a text file that is read: a boot loader's configuration.
pub const TEXT_SIZE_MAX: u64 = 1 << 20;

/// A file system, and where it is.
pub struct Volume {
    /// The number of its partition; none if it is all of the disk.
    pub partition: Option<(Scheme, u32)>,
    /// The file system.
    pub system: Box<dyn FileSystem>,
}

/// All file systems of a disk.
#[derive(Default)]
pub struct Volumes {
    /// Those that can be read, in the order of their partitions.
    pub all: Vec<Volume>,
    /// What else is there, in words for an error.
    pub others: Vec<String>,
}

/// A place on a volume: its index, and a path as a boot loader writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which volume.
    pub volume: usize,
    /// The path.
    pub path: String,
}

impl Volumes {
    /// Opens all file systems of a disk. One that is damaged is among the others.
    ///
    /// # Errors
    /// The partition table can't be read.
    pub fn open(disk: &Window) -> Result<Self, TableError> {
        let mut volumes = Self::default();
        let found = partitions(disk)?;
        if found.is_empty() {
            volumes.add(None, "the whole disk", disk);
        }
        for partition in found {
            let name = format!("partition {}", partition.number);
            match disk.part(partition.start, partition.size) {
                Some(part) => {
                    volumes.add(Some((partition.scheme, partition.number)), &name, &part);
                }
                None => volumes.others.push(format!("{name}: it is beyond the end of the disk")),
            }
        }
        Ok(volumes)
    }

    fn add(&mut self, partition: Option<(Scheme, u32)>, name: &str, part: &Window) {
        match filesystem::open(part) {
            Ok(Some(system)) => self.all.push(Volume { partition, system }),
            Ok(None) => {
                if let Some(kind) = name_of(part) {
                    self.others.push(format!("{name}: {kind}, which is not read"));
                }
            }
            Err(error) => self.others.push(format!("{name}: {error}")),
        }
    }

    /// What GRUB calls a volume.
    #[must_use]
    pub fn name(&self, volume: usize) -> String {
        match self.all.get(volume).and_then(|volume| volume.partition) {
            Some((scheme, number)) => format!("hd0,{}{number}", scheme.name()),
            None => "hd0".to_owned(),
        }
    }

    /// The volume that GRUB calls so: `hd0,gpt1`, `hd0,msdos5`, `hd0,1`, with or without parentheses.
    /// There is one disk, whatever its number: firmware counts it among others.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<usize> {
        let name = name.trim_start_matches('(').trim_end_matches(')');
        let (disk, part) = name.split_once(',').unwrap_or((name, ""));
        disk.strip_prefix("hd")?;
        if part.is_empty() {
            return self.all.iter().position(|volume| volume.partition.is_none());
        }
        let digits = part.trim_start_matches(|letter: char| letter.is_ascii_alphabetic());
        let number: u32 = digits.parse().ok()?;
        self.all.iter().position(|volume| volume.partition.is_some_and(|(_, of)| of == number))
    }

    /// The volume with this identity.
    #[must_use]
    pub fn by_uuid(&self, uuid: &str) -> Option<usize> {
        self.all.iter().position(|volume| volume.system.uuid().eq_ignore_ascii_case(uuid))
    }

    /// The volume with this label.
    #[must_use]
    pub fn by_label(&self, label: &str) -> Option<usize> {
        self.all.iter().position(|volume| volume.system.label() == label)
    }

    /// What is at a place.
    ///
    /// # Errors
    /// The file system is damaged.
    pub fn look(&self, place: &Place) -> Result<Option<(Path, Node)>, FileError> {
        match self.all.get(place.volume) {
            Some(volume) => resolve(volume.system.as_ref(), &place.path),
            None => Ok(None),
        }
    }

    /// The regular file at a place.
    ///
    /// # Errors
    /// The file system is damaged.
    pub fn file(&self, place: &Place) -> Result<Option<(Path, u64)>, FileError> {
        let found = self.look(place)?;
        Ok(found.and_then(|(path, node)| (node.kind == Kind::File).then_some((path, node.size))))
    }

    /// The text of a file; none if there is no such file.
    ///
    /// # Errors
    /// It is larger than [`TEXT_SIZE_MAX`], or the file system is damaged.
    pub fn text(&self, place: &Place) -> Result<Option<String>, FileError> {
        let Some((path, size)) = self.file(place)? else { return Ok(None) };
        if size > TEXT_SIZE_MAX {
            let (path, size_max) = (path.join("/"), TEXT_SIZE_MAX);
            return Err(FileError::Large { path, size, size_max });
        }
        let mut bytes = Vec::new();
        if let Some(volume) = self.all.get(place.volume) {
            volume.system.copy(&path, &mut |piece| {
                bytes.extend_from_slice(piece);
                Ok(())
            })?;
        }
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Names in the folder at a place, sorted; none if there is no such folder.
    ///
    /// # Errors
    /// The file system is damaged.
    pub fn list(&self, place: &Place) -> Result<Vec<String>, FileError> {
        let Some((path, Node { kind: Kind::Folder, .. })) = self.look(place)? else {
            return Ok(Vec::new());
        };
        let Some(volume) = self.all.get(place.volume) else { return Ok(Vec::new()) };
        let mut names = volume.system.list(&path)?;
        names.sort();
        Ok(names)
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use crate::filesystem::testing::Memory;

    /// Volumes of these file systems, on partitions 1, 2, ….
    pub(crate) fn volumes(systems: Vec<Memory>) -> Volumes {
        let all = systems.into_iter().zip(1..).map(|(system, number)| Volume {
            partition: Some((Scheme::Gpt, number)),
            system: Box::new(system),
        });
        Volumes { all: all.collect(), others: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::volumes;
    use super::*;
    use crate::filesystem::testing::Memory;

    #[test]
    fn volumes_have_the_names_that_boot_loaders_give() {
        let mut labelled = Memory::new("ABCD-1234", &[]);
        labelled.label = "BOOT".into();
        let volumes = volumes(vec![Memory::new("0aa0-b", &[]), labelled]);
        for name in ["hd0,gpt2", "(hd0,gpt2)", "hd1,2", "hd0,msdos2"] {
            assert_eq!(volumes.by_name(name), Some(1), "{name}");
        }
        for name in ["hd0", "hd0,gpt3", "cd0", "hd0,", "hd0,gpt", "memdisk", ""] {
            assert_eq!(volumes.by_name(name), None, "{name}");
        }
        assert_eq!(volumes.name(1), "hd0,gpt2");
        assert_eq!(volumes.by_uuid("abcd-1234"), Some(1));
        assert_eq!(volumes.by_label("BOOT"), Some(1));
        assert_eq!(volumes.by_label("boot"), None);
    }

    #[test]
    fn texts_are_bounded() {
        let long = "x".repeat(1 + usize::try_from(TEXT_SIZE_MAX).unwrap());
        let volumes = volumes(vec![Memory::new("u", &[("a/long", &long), ("a/short", "s")])]);
        let place = |path: &str| Place { volume: 0, path: path.into() };
        assert_eq!(volumes.text(&place("/a/short")).unwrap().as_deref(), Some("s"));
        assert_eq!(volumes.text(&place("/a/none")).unwrap(), None);
        assert_eq!(volumes.text(&place("/a")).unwrap(), None);
        assert!(volumes.text(&place("/a/long")).unwrap_err().to_string().contains("a/long has"));
        assert_eq!(volumes.list(&place("/a")).unwrap(), ["long", "short"]);
        assert!(volumes.list(&place("/b")).unwrap().is_empty());
    }
}
