//! From kernel files to a guest that can take its first step.
//!
//! Three kinds of kernels are known by their first bytes: an ELF file that is Linux (`vmlinux`,
//! entered by Linux' 64-bit boot protocol), an ELF file that is not but has a PVH entry
//! (unikernels, entered in 32-bit mode), and Linux' `bzImage`. [`load`] puts kernel, initramfs,
//! command line, parameters and the first CPU's tables into guest memory, and returns an
//! [`Entry`]: how that CPU must be set up.
//!
//! Kernel files are not trusted. Whatever they say is checked before it is used; an error names
//! the file and the rule it broke, and nothing is ever written outside guest memory.
//!
//! # Words for Linux
//!
//! The command line is the caller's. These words save exits or time in a machine of ours:
//! `pci=noearly` (64 exits: a scan of old PCI ports for quirks of real chipsets), `8250.nr_uarts=0`
//! where there is no serial port (24 exits), `cryptomgr.notests` (half of all instructions).
//!
//! # Loading by copy or by map
//!
//! A kernel of 25 MiB text costs its copy and the memory that holds it, in each machine again.
//! [`Loading::Map`] instead maps the pages of read-only segments, and of the initramfs, privately
//! from the file: machines of one kernel share the host's page cache until they write. The price
//! is small pages where there would be huge ones. The file must then not be truncated while the
//! machine lives; written to it may be, at the risk of a guest that sees the change.

mod bzimage;
mod e820;
pub(crate) mod elf;
mod linux;
mod paging;
mod pvh;
mod registers;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use vm_memory::ByteValued;
use vmm_virtio::memory::{Bytes, GuestAddress, Memory};

use crate::memory::layout::{
    ACPI_ADDRESS, BOOT_PARAMETERS_ADDRESS, CMDLINE_ADDRESS, CMDLINE_SIZE_MAX, HIGH_MEMORY_START,
    SEED_ADDRESS,
};
use crate::memory::{MemoryError, Ram, Range};
use bzimage::BzImage;
use elf::{Elf, ElfEntry, Segment};

const PAGE_SIZE: u64 = 4096;

/// A file to boot, opened, and what it is called in messages.
#[derive(Debug)]
pub struct Image {
    /// Open for reading.
    pub file: File,
    /// A path, usually.
    pub name: String,
}

impl Image {
    /// Opens the file at `path`.
    ///
    /// # Errors
    /// [`BootError::Read`].
    pub fn open(path: &std::path::Path) -> Result<Self, BootError> {
        let name = path.display().to_string();
        match File::open(path) {
            Ok(file) => Ok(Self { file, name }),
            Err(source) => Err(BootError::Read { name, source }),
        }
    }
}

/// How files get into guest memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Loading {
    /// Copied.
    #[default]
    Copy,
    /// Whole pages of what is read-only are mapped, the rest copied.
    Map,
}

/// What to boot.
#[derive(Debug)]
pub struct Boot {
    /// The kernel.
    pub kernel: Image,
    /// Its first root file system.
    pub initramfs: Option<Image>,
    /// Its command line.
    pub cmdline: String,
    /// How the files get into memory.
    pub loading: Loading,
}

/// How the first CPU takes its first step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// In 64-bit mode, Linux' zero page in RSI.
    Linux64 {
        /// The first instruction.
        address: u64,
    },
    /// In 32-bit mode without paging, the start of day structure in EBX.
    Pvh {
        /// The first instruction.
        address: u64,
    },
}

/// Puts everything into guest memory that a kernel expects there, ACPI's tables excepted.
///
/// # Errors
/// [`BootError`]; memory then holds part of it.
pub fn load(boot: &Boot, ram: &mut Ram) -> Result<Entry, BootError> {
    let cmdline = check_cmdline(&boot.cmdline)?;
    let kernel = Kernel::read(&boot.kernel)?;
    kernel.check_room(&boot.kernel.name, ram)?;
    kernel.load(boot, ram)?;
    let initramfs = match &boot.initramfs {
        Some(image) => load_initramfs(image, &kernel, boot.loading, ram)?,
        None => None,
    };
    let memory = ram.memory();
    write(memory, "command line", CMDLINE_ADDRESS, &cmdline)?;
    let map = e820::map(ram.layout());
    let parameters_address = BOOT_PARAMETERS_ADDRESS;
    let (entry, parameters) = match kernel.entry {
        Entry::Linux64 { .. } => {
            write(memory, "seed", SEED_ADDRESS, &linux::seed_node(&random_seed()?))?;
            paging::write_page_tables(memory)?;
            let parameters = linux::Parameters {
                setup_header: kernel.setup_header.as_deref(),
                rsdp: ACPI_ADDRESS,
                cmdline: CMDLINE_ADDRESS,
                initramfs,
                setup_data: SEED_ADDRESS,
                map: &map,
            };
            (kernel.entry, linux::zero_page(&parameters).as_slice().to_vec())
        }
        Entry::Pvh { .. } => {
            let (cmdline, rsdp) = (CMDLINE_ADDRESS, ACPI_ADDRESS);
            (kernel.entry, pvh::start_info(parameters_address, cmdline, rsdp, initramfs, &map))
        }
    };
    paging::write_gdt(memory, entry.gdt())?;
    write(memory, "parameters", parameters_address, &parameters)?;
    Ok(entry)
}

/// What was found out about a kernel.
#[derive(Debug)]
struct Kernel {
    segments: Vec<Segment>,
    entry: Entry,
    setup_header: Option<Vec<u8>>,
    /// The initramfs must end at or below this address.
    initramfs_address_max: u64,
    cmdline_size_max: usize,
}

impl Kernel {
    fn read(image: &Image) -> Result<Self, BootError> {
        let (file, name) = (&image.file, image.name.as_str());
        let mut start = [0; 0x206];
        let available = file_size(file, name)?.min(start.len() as u64);
        let start_read = start.get_mut(..usize::try_from(available).unwrap_or(0));
        file.read_exact_at(start_read.unwrap_or_default(), 0)
            .map_err(|source| BootError::Read { name: name.to_owned(), source })?;
        if Elf::is_elf(&start) {
            Ok(Self::from_elf(Elf::read(file, name)?))
        } else if BzImage::is_bzimage(&start) {
            Ok(Self::from_bzimage(BzImage::read(file, name)?))
        } else {
            let rule = "neither an ELF file nor a bzImage";
            Err(BootError::Image { name: name.to_owned(), rule })
        }
    }

    fn from_elf(elf: Elf) -> Self {
        let entry = match elf.entry {
            ElfEntry::Linux64(address) => Entry::Linux64 { address },
            ElfEntry::Pvh(address) => Entry::Pvh { address },
        };
        Self {
            segments: elf.segments,
            entry,
            setup_header: None,
            initramfs_address_max: u64::MAX,
            cmdline_size_max: CMDLINE_SIZE_MAX,
        }
    }

    fn from_bzimage(image: BzImage) -> Self {
        let segment = Segment {
            offset: image.offset,
            address: image.address,
            file_size: image.size,
            memory_size: image.memory_size,
            // It decompresses itself over itself.
            is_writable: true,
        };
        Self {
            segments: vec![segment],
            entry: Entry::Linux64 { address: image.entry() },
            setup_header: Some(image.setup_header),
            initramfs_address_max: image.initramfs_address_max,
            cmdline_size_max: image.cmdline_size_max,
        }
    }

    /// Where the last segment ends.
    fn end(&self) -> u64 {
        self.segments.iter().map(Segment::end).max().unwrap_or(0)
    }

    /// Segments lie in memory between 1 MiB and the gap, where nothing else of ours is.
    fn check_room(&self, name: &str, ram: &Ram) -> Result<(), BootError> {
        let end = ram.layout().low_ram.end();
        for segment in &self.segments {
            if segment.address < HIGH_MEMORY_START || segment.end() > end {
                return Err(BootError::SegmentPlace {
                    name: name.to_owned(),
                    address: segment.address,
                    size: segment.memory_size,
                    end,
                });
            }
        }
        Ok(())
    }

    fn load(&self, boot: &Boot, ram: &mut Ram) -> Result<(), BootError> {
        let size = boot.cmdline.len();
        if size > self.cmdline_size_max {
            return Err(BootError::CmdlineSize { size, size_max: self.cmdline_size_max });
        }
        for segment in &self.segments {
            let loading = if segment.is_writable { Loading::Copy } else { boot.loading };
            let Segment { offset, address, file_size, .. } = *segment;
            place(&boot.kernel, offset, address, file_size, loading, ram)?;
        }
        Ok(())
    }
}

/// Puts the initramfs as high as it may go, out of the way of a growing kernel.
fn load_initramfs(
    image: &Image,
    kernel: &Kernel,
    loading: Loading,
    ram: &mut Ram,
) -> Result<Option<Range>, BootError> {
    let size = file_size(&image.file, &image.name)?;
    if size == 0 {
        return Ok(None);
    }
    let end = ram.layout().low_ram.end().min(kernel.initramfs_address_max.saturating_add(1));
    let start = end.checked_sub(size).map_or(0, |start| start / PAGE_SIZE * PAGE_SIZE);
    if start < kernel.end() {
        let room = end.saturating_sub(kernel.end());
        return Err(BootError::InitramfsRoom { name: image.name.clone(), size, room });
    }
    place(image, 0, start, size, loading, ram)?;
    Ok(Some(Range { start, size }))
}

/// Copies or maps a part of a file into guest memory.
fn place(
    image: &Image,
    offset: u64,
    address: u64,
    size: u64,
    loading: Loading,
    ram: &mut Ram,
) -> Result<(), BootError> {
    let mapped = match loading {
        Loading::Map if offset.is_multiple_of(PAGE_SIZE) && address.is_multiple_of(PAGE_SIZE) => {
            map_whole_pages(image, offset, address, size, ram)?
        }
        _ => 0,
    };
    let rest = size - mapped;
    if rest == 0 {
        return Ok(());
    }
    let read = |source| BootError::Read { name: image.name.clone(), source };
    let mut file = &image.file;
    file.seek(SeekFrom::Start(offset + mapped)).map_err(read)?;
    let length = usize::try_from(rest).map_err(|_| read(io::ErrorKind::FileTooLarge.into()))?;
    ram.memory()
        .read_exact_volatile_from(GuestAddress(address + mapped), &mut file, length)
        .map_err(|error| read(io::Error::other(error)))
}

/// Maps the whole pages of a part of a file; how many bytes of the part that covered. The last page
/// counts as whole where the file ends in it: the kernel fills it up with zeros.
fn map_whole_pages(
    image: &Image,
    offset: u64,
    address: u64,
    size: u64,
    ram: &mut Ram,
) -> Result<u64, BootError> {
    let ends_file = offset + size == file_size(&image.file, &image.name)?;
    let page_count = if ends_file { size.div_ceil(PAGE_SIZE) } else { size / PAGE_SIZE };
    let mapped = page_count * PAGE_SIZE;
    let is_mapped = mapped > 0 && ram.map_file(address, &image.file, offset, mapped)?;
    Ok(if is_mapped { mapped.min(size) } else { 0 })
}

/// The command line with its final zero.
fn check_cmdline(cmdline: &str) -> Result<Vec<u8>, BootError> {
    let size = cmdline.len();
    if size > CMDLINE_SIZE_MAX {
        return Err(BootError::CmdlineSize { size, size_max: CMDLINE_SIZE_MAX });
    }
    if let Some(at) = cmdline.bytes().position(|byte| byte == 0 || byte == b'\n') {
        return Err(BootError::CmdlineByte { at });
    }
    let mut bytes = cmdline.as_bytes().to_vec();
    bytes.push(0);
    Ok(bytes)
}

fn random_seed() -> Result<[u8; linux::SEED_SIZE as usize], BootError> {
    let mut seed = [0; linux::SEED_SIZE as usize];
    // So few bytes come whole or not at all.
    rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| BootError::Random { source: error.into() })?;
    Ok(seed)
}

fn write(memory: &Memory, what: &'static str, address: u64, bytes: &[u8]) -> Result<(), BootError> {
    let size = bytes.len() as u64;
    memory.write_slice(bytes, GuestAddress(address)).map_err(|_| BootError::NoRoom {
        what,
        address,
        size,
    })
}

fn file_size(file: &File, name: &str) -> Result<u64, BootError> {
    let metadata = file.metadata();
    let metadata = metadata.map_err(|source| BootError::Read { name: name.to_owned(), source })?;
    if metadata.is_file() {
        Ok(metadata.len())
    } else {
        Err(BootError::Image { name: name.to_owned(), rule: "not a regular file" })
    }
}

/// Why a guest can't be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file can't be opened or read.
    #[error("{name}")]
    Read {
        /// Which file.
        name: String,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{name}: {rule}")]
    Image {
        /// Which file.
        name: String,
        /// What is wrong with it.
        rule: &'static str,
    },
    /// A kernel wants to be where there is no memory, or where other things are.
    #[error(
        "{name}: a segment of {size:#x} bytes at {address:#x} is not between {HIGH_MEMORY_START:#x} \
         and the end of low memory, {end:#x}"
    )]
    SegmentPlace {
        /// The kernel.
        name: String,
        /// Where it wants to be.
        address: u64,
        /// How large it is there.
        size: u64,
        /// Where memory ends.
        end: u64,
    },
    /// The initramfs is too large.
    #[error("{name}: an initramfs of {size} bytes, and {room} bytes of memory behind the kernel")]
    InitramfsRoom {
        /// The initramfs.
        name: String,
        /// Its size.
        size: u64,
        /// What is left.
        room: u64,
    },
    /// The command line is too long.
    #[error("command line of {size} bytes: this kernel takes at most {size_max}")]
    CmdlineSize {
        /// Its size.
        size: usize,
        /// The limit.
        size_max: usize,
    },
    /// The command line has a byte that ends it.
    #[error("command line: a zero byte or line break at byte {at}")]
    CmdlineByte {
        /// Where.
        at: usize,
    },
    /// Memory is too small for a table.
    #[error("no room for {what}: {size} bytes at {address:#x}")]
    NoRoom {
        /// Which.
        what: &'static str,
        /// Its place.
        address: u64,
        /// Its size.
        size: u64,
    },
    /// Memory can't be mapped.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The host has no random numbers.
    #[error("random numbers")]
    Random {
        /// What the host said.
        #[source]
        source: io::Error,
    },
}
