//! Kernel and initial file systems, copied from the disk.
//!
//! Initial file systems are put behind each other, each begun at a multiple of 4 bytes, as boot loaders
//! do and kernels expect (Linux `Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::io::{self, Write};

use serde::{Deserialize, Serialize};

use crate::choice::{Choice, File};
use crate::filesystem::FileError;
use crate::volumes::Volumes;

/// Largest kernel, in bytes.
pub const KERNEL_SIZE_MAX: u64 = 128 << 20;
/// Largest initial file systems together, in bytes.
pub const INITRAMFS_SIZE_MAX: u64 = 256 << 20;
/// Bytes at a kernel's start that tell its kind.
const START_SIZE: usize = 0x206;

/// What was copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extracted {
    /// The configuration that says so, as GRUB names files.
    pub config: String,
    /// What its menu says.
    pub title: String,
    /// Bytes of the kernel.
    pub kernel_size: u64,
    /// Bytes of its initial file systems together; 0 if there are none.
    pub initramfs_size: u64,
    /// Its command line, without what the host adds.
    pub cmdline: String,
}

/// Why they are not copied.
#[derive(Debug, thiserror::Error)]
pub enum ExtractError {
    /// One is too large.
    #[error("{what} {path} has {size} bytes, at most {size_max} are allowed")]
    Large {
        /// What it is.
        what: &'static str,
        /// Its path.
        path: String,
        /// Its size, with what was copied before.
        size: u64,
        /// The limit.
        size_max: u64,
    },
    /// The kernel is of no kind that can be started.
    #[error("the kernel {0} is neither a bzImage nor an ELF file")]
    Kind(String),
    /// It can't be read, or what was read can't be written.
    #[error("{what} {path}: {source}")]
    File {
        /// What it is.
        what: &'static str,
        /// Its path.
        path: String,
        /// Why.
        source: FileError,
    },
}

/// Copies what was chosen.
///
/// # Errors
/// [`ExtractError`]; part of it is written then.
pub fn extract(
    volumes: &Volumes,
    choice: &Choice,
    kernel: &mut dyn Write,
    initramfs: &mut dyn Write,
) -> Result<Extracted, ExtractError> {
    let mut checked = Checked { inner: kernel, start: Vec::new() };
    let what = "the kernel";
    let kernel_size = copy(volumes, what, &choice.kernel, 0, KERNEL_SIZE_MAX, &mut checked)?;
    if !is_kernel(&checked.start) {
        return Err(ExtractError::Kind(shown(&choice.kernel)));
    }
    let mut initramfs_size = 0_u64;
    for file in &choice.initrds {
        let what = "the initial file system";
        let padding = initramfs_size.next_multiple_of(4) - initramfs_size;
        let zeros = [0; 4];
        let padded = zeros.get(..usize::try_from(padding).unwrap_or(0)).unwrap_or_default();
        initramfs.write_all(padded).map_err(|error| ExtractError::File {
            what,
            path: shown(file),
            source: error.into(),
        })?;
        initramfs_size += padding;
        initramfs_size += copy(volumes, what, file, initramfs_size, INITRAMFS_SIZE_MAX, initramfs)?;
    }
    let Choice { config, title, cmdline, .. } = choice.clone();
    Ok(Extracted { config, title, kernel_size, initramfs_size, cmdline })
}

fn shown(file: &File) -> String {
    format!("/{}", file.path.join("/"))
}

/// Copies a file behind so many bytes; how many it has.
fn copy(
    volumes: &Volumes,
    what: &'static str,
    file: &File,
    before: u64,
    size_max: u64,
    target: &mut dyn Write,
) -> Result<u64, ExtractError> {
    let size = file.size.saturating_add(before);
    if size > size_max {
        return Err(ExtractError::Large { what, path: shown(file), size, size_max });
    }
    let failed = |source| ExtractError::File { what, path: shown(file), source };
    let mut copied = 0_u64;
    if let Some(volume) = volumes.all.get(file.volume) {
        let copy = volume.system.copy(&file.path, &mut |bytes| {
            copied += bytes.len() as u64;
            // A reader that gives more than it said is not believed.
            if copied > file.size {
                return Err(io::Error::other("it has more bytes than its file system says"));
            }
            target.write_all(bytes)
        });
        copy.map_err(failed)?;
    }
    if copied != file.size {
        let reason = format!("{copied} bytes of {}", file.size);
        return Err(failed(FileError::Write(io::Error::other(reason))));
    }
    Ok(copied)
}

/// Remembers how a kernel begins.
struct Checked<'a> {
    inner: &'a mut dyn Write,
    start: Vec<u8>,
}

impl Write for Checked<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = START_SIZE.saturating_sub(self.start.len());
        self.start.extend(bytes.iter().take(left));
        self.inner.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Whether it begins as kernels do that a VMM starts. Whether it is one, the VMM says.
fn is_kernel(start: &[u8]) -> bool {
    let is_bzimage =
        start.get(0x1fe..0x200) == Some(&[0x55, 0xaa]) && start.get(0x202..0x206) == Some(b"HdrS");
    is_bzimage || start.starts_with(b"\x7fELF")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choice::choose;
    use crate::filesystem::testing::Memory;
    use crate::volumes::testing::volumes;

    fn extracted(kernel: &str) -> (Result<Extracted, String>, Vec<u8>, Vec<u8>) {
        let menu = "menuentry a { linux /k x\n initrd /i1 /i2 }\n";
        let files = [("boot/grub/grub.cfg", menu), ("k", kernel), ("i1", "12345"), ("i2", "678")];
        let volumes = volumes(vec![Memory::new("u", &files)]);
        let choice = choose(&volumes).unwrap();
        let (mut kernel, mut initramfs) = (Vec::new(), Vec::new());
        let extracted = extract(&volumes, &choice, &mut kernel, &mut initramfs);
        (extracted.map_err(|error| error.to_string()), kernel, initramfs)
    }

    #[test]
    fn initial_file_systems_stand_behind_each_other() {
        let (result, kernel, initramfs) = extracted("\x7fELF...");
        let result = result.unwrap();
        assert_eq!((result.kernel_size, result.initramfs_size), (7, 11));
        assert_eq!(kernel, b"\x7fELF...");
        assert_eq!(initramfs, b"12345\0\0\x00678");
        assert_eq!(result.cmdline, "x");
    }

    #[test]
    fn what_is_no_kernel_is_not_started() {
        assert_eq!(
            extracted("MZ").0.unwrap_err(),
            "the kernel /k is neither a bzImage nor an ELF file"
        );
    }

    #[test]
    fn a_bzimage_is_a_kernel() {
        let mut start = vec![0; START_SIZE];
        start[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        start[0x202..0x206].copy_from_slice(b"HdrS");
        assert!(is_kernel(&start));
        start[0x202] = b'h';
        assert!(!is_kernel(&start));
    }
}
