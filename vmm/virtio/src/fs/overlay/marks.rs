//! What the upper layer says about itself in extended attributes, as Linux's overlayfs does it.
//!
//! | name after the prefix | on | value |
//! |---|---|---|
//! | `opaque` | directories | `y`: nothing of the lower layer shows through |
//! | `redirect` | directories | `/path` or `name` in the lower layer, of what shows through |
//! | `vmm.origin` | files | number in the lower layer, first bytes of the image's hash |
//! | `vmm.links` | files with several names | how many of its names are only in the lower layer |
//!
//! The first two are overlayfs' own, so that it can mount what we wrote and the reverse. The others are
//! ours; overlayfs ignores and hides them.

use flist_view::filesystem::{Errno, Ino, SetAttribute};

use crate::fs::host::HostDirectory;

/// Where marks are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MarkPrefix {
    /// `trusted.overlay.`, which needs `CAP_SYS_ADMIN`: overlayfs' default.
    Trusted,
    /// `user.overlay.`, as overlayfs' option `userxattr` has it: it needs no capability, which is
    /// why it is the default here.
    #[default]
    User,
}

/// Longest redirect that is believed.
const REDIRECT_SIZE_MAX: usize = 4096;
/// A number and the image it is a number of.
const ORIGIN_SIZE: usize = 16;

/// The marks of one inode of the upper layer.
#[derive(Debug, Default)]
pub(super) struct Marks {
    pub(super) is_opaque: bool,
    pub(super) redirect: Option<Vec<u8>>,
    /// Its number in the lower layer, before it was copied up.
    pub(super) origin: Option<Ino>,
    pub(super) lower_links: Option<u32>,
}

/// Reads and writes marks of one upper layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Marker {
    prefix: MarkPrefix,
    /// First bytes of the image's hash: marks of another image mean nothing.
    image: [u8; 8],
}

impl MarkPrefix {
    const fn as_bytes(self) -> &'static [u8] {
        match self {
            Self::Trusted => b"trusted.overlay.",
            Self::User => b"user.overlay.",
        }
    }
}

impl Marker {
    pub(super) const fn new(prefix: MarkPrefix, image: [u8; 8]) -> Self {
        Self { prefix, image }
    }

    /// Whether the guest must neither see nor set `name`.
    pub(super) fn is_private(&self, name: &[u8]) -> bool {
        name.starts_with(self.prefix.as_bytes())
    }

    /// The marks of `ino` of `upper`, a file or a directory.
    pub(super) fn read(&self, upper: &HostDirectory, ino: Ino) -> Result<Marks, Errno> {
        let mut marks = Marks::default();
        for name in upper.raw_attribute_names(ino)?.split(|byte| *byte == 0) {
            let Some(mark) = name.strip_prefix(self.prefix.as_bytes()) else { continue };
            let value = upper.raw_attribute(ino, name)?;
            match mark {
                b"opaque" => marks.is_opaque = value == b"y",
                b"redirect" if (1..=REDIRECT_SIZE_MAX).contains(&value.len()) => {
                    marks.redirect = Some(value);
                }
                b"vmm.origin" => marks.origin = self.decode_origin(&value),
                b"vmm.links" => {
                    marks.lower_links = value.first_chunk().map(|count| u32::from_le_bytes(*count));
                }
                _ => {}
            }
        }
        Ok(marks)
    }

    pub(super) fn set_opaque(&self, upper: &HostDirectory, ino: Ino) -> Result<(), Errno> {
        self.set(upper, ino, b"opaque", b"y")
    }

    pub(super) fn set_redirect(
        &self,
        upper: &HostDirectory,
        ino: Ino,
        path: &[u8],
    ) -> Result<(), Errno> {
        self.set(upper, ino, b"redirect", path)
    }

    pub(super) fn set_origin(
        &self,
        upper: &HostDirectory,
        ino: Ino,
        lower: Ino,
    ) -> Result<(), Errno> {
        let mut value = [0; ORIGIN_SIZE];
        value[..8].copy_from_slice(&lower.to_le_bytes());
        value[8..].copy_from_slice(&self.image);
        self.set(upper, ino, b"vmm.origin", &value)
    }

    pub(super) fn set_lower_links(
        &self,
        upper: &HostDirectory,
        ino: Ino,
        count: u32,
    ) -> Result<(), Errno> {
        self.set(upper, ino, b"vmm.links", &count.to_le_bytes())
    }

    fn set(&self, upper: &HostDirectory, ino: Ino, mark: &[u8], value: &[u8]) -> Result<(), Errno> {
        let name = [self.prefix.as_bytes(), mark].concat();
        upper.set_raw_attribute(ino, &name, value, SetAttribute::Any)
    }

    fn decode_origin(&self, value: &[u8]) -> Option<Ino> {
        let value: &[u8; ORIGIN_SIZE] = value.try_into().ok()?;
        let (lower, image) = value.split_first_chunk()?;
        (image == self.image).then_some(u64::from_le_bytes(*lower))
    }
}
