//! ELF kernels: Linux' `vmlinux`, and unikernels that say where PVH enters them.
//!
//! Only what a loader needs is read: the header, the program headers, the notes. Whatever comes
//! from the file is checked here, so that others may add and compare without fear: every segment
//! lies in the file, and its addresses do not wrap.
//!
//! # Which protocol
//!
//! A Linux kernel usually offers two ways in: the 64-bit boot protocol at the ELF entry point, and
//! PVH at an address in a note. PVH makes Linux believe it may be on Xen and look for it, at the
//! price of 250 exits, so it is taken only where there is no other: when the notes hold a PVH
//! entry and nothing that Linux leaves there. Linux is known by any note in its own name (its
//! build salt, since 4.19) or by Xen's note that names the guest's operating system.

use std::fs::File;
use std::os::unix::fs::FileExt;

use linux_loader::elf::{
    EI_CLASS, EI_DATA, ELFCLASS64, ELFDATA2LSB, ELFMAG, EM_X86_64, Elf64_Ehdr, Elf64_Nhdr,
    Elf64_Phdr, PF_W, PT_LOAD, PT_NOTE,
};
use vm_memory::ByteValued;

use super::BootError;

/// The most program headers that we look at. Linux has five.
const SEGMENT_COUNT_MAX: u16 = 64;
/// The most bytes of notes that we look at. Linux has a few hundred.
const NOTES_SIZE_MAX: u64 = 64 << 10;

/// A part of the file that belongs in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// Its place in the file.
    pub(super) offset: u64,
    /// Its place in guest-physical memory.
    pub(super) address: u64,
    /// Bytes in the file.
    pub(super) file_size: u64,
    /// Bytes in memory, at least as many; zero beyond those of the file.
    pub(super) memory_size: u64,
    /// Whether the kernel means to write to it.
    pub(super) is_writable: bool,
}

impl Segment {
    /// The address behind its last.
    pub(super) const fn end(&self) -> u64 {
        self.address + self.memory_size
    }
}

/// How an ELF kernel wants to be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ElfEntry {
    /// By Linux' 64-bit boot protocol.
    Linux64(u64),
    /// By PVH, in 32-bit mode.
    Pvh(u64),
}

/// What a loader needs to know of an ELF kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Elf {
    pub(super) segments: Vec<Segment>,
    pub(super) entry: ElfEntry,
}

impl Elf {
    /// Whether the file begins as ELF files do.
    pub(super) fn is_elf(start: &[u8]) -> bool {
        start.starts_with(ELFMAG)
    }

    /// Reads what `file`, called `name`, says of itself.
    pub(super) fn read(file: &File, name: &str) -> Result<Self, BootError> {
        let reader = Reader { file, name, size: super::file_size(file, name)? };
        let mut header = Elf64_Ehdr::default();
        reader.fill(0, header.as_mut_slice())?;
        reader.check_header(&header)?;
        let mut segments = Vec::new();
        let mut notes = Notes::default();
        for index in 0..header.e_phnum {
            let at = u64::from(index) * u64::from(header.e_phentsize);
            let at = header.e_phoff.checked_add(at);
            let at = at.ok_or_else(|| reader.refuse("program headers outside the file"))?;
            let mut program = Elf64_Phdr::default();
            reader.fill(at, program.as_mut_slice())?;
            match program.p_type {
                PT_LOAD if program.p_memsz > 0 => segments.push(reader.segment(&program)?),
                PT_NOTE => notes.scan(&reader.notes(&program)?),
                _ => {}
            }
        }
        if segments.is_empty() {
            return Err(reader.refuse("no segment to load"));
        }
        let entry = match notes {
            Notes { is_linux: false, pvh_entry: Some(pvh) } => ElfEntry::Pvh(u64::from(pvh)),
            _ => ElfEntry::Linux64(header.e_entry),
        };
        let (ElfEntry::Linux64(address) | ElfEntry::Pvh(address)) = entry;
        if !segments.iter().any(|s| (s.address..s.end()).contains(&address)) {
            return Err(reader.refuse("entry point outside all segments"));
        }
        Ok(Self { segments, entry })
    }
}

struct Reader<'a> {
    file: &'a File,
    name: &'a str,
    size: u64,
}

impl Reader<'_> {
    fn refuse(&self, rule: &'static str) -> BootError {
        BootError::Image { name: self.name.to_owned(), rule }
    }

    /// Fills `bytes` from `offset` of the file.
    fn fill(&self, offset: u64, bytes: &mut [u8]) -> Result<(), BootError> {
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > self.size) {
            return Err(self.refuse("headers or notes outside the file"));
        }
        let read = self.file.read_exact_at(bytes, offset);
        read.map_err(|source| BootError::Read { name: self.name.to_owned(), source })
    }

    fn check_header(&self, header: &Elf64_Ehdr) -> Result<(), BootError> {
        let ident = &header.e_ident;
        if (ident[EI_CLASS], ident[EI_DATA]) != (ELFCLASS64, ELFDATA2LSB) {
            return Err(self.refuse("not a 64-bit little-endian ELF file"));
        }
        if header.e_machine != EM_X86_64 {
            return Err(self.refuse("not for x86-64"));
        }
        let has_size = usize::from(header.e_phentsize) == size_of::<Elf64_Phdr>();
        if !has_size || !(1..=SEGMENT_COUNT_MAX).contains(&header.e_phnum) {
            return Err(self.refuse("program headers: none, more than 64, or of unknown size"));
        }
        Ok(())
    }

    fn segment(&self, header: &Elf64_Phdr) -> Result<Segment, BootError> {
        let segment = Segment {
            offset: header.p_offset,
            address: header.p_paddr,
            file_size: header.p_filesz,
            memory_size: header.p_memsz,
            is_writable: header.p_flags & PF_W != 0,
        };
        let file_end = segment.offset.checked_add(segment.file_size);
        if file_end.is_none_or(|end| end > self.size) {
            return Err(self.refuse("a segment lies outside the file"));
        }
        let memory_end = segment.address.checked_add(segment.memory_size);
        if memory_end.is_none() || segment.file_size > segment.memory_size {
            return Err(self.refuse("a segment's size in memory makes no sense"));
        }
        Ok(segment)
    }

    fn notes(&self, header: &Elf64_Phdr) -> Result<Vec<u8>, BootError> {
        let size = header.p_filesz.min(NOTES_SIZE_MAX);
        let mut notes = vec![0; usize::try_from(size).unwrap_or(0)];
        self.fill(header.p_offset, &mut notes)?;
        Ok(notes)
    }
}

/// What the notes tell.
#[derive(Debug, Default)]
struct Notes {
    is_linux: bool,
    pvh_entry: Option<u32>,
}

impl Notes {
    /// Looks through a segment of notes: three words (sizes of name and contents, type), then
    /// both, each padded to four bytes. What is cut off is not a note.
    fn scan(&mut self, mut bytes: &[u8]) {
        while let Some((note, rest)) = Note::split(bytes) {
            self.consider(&note);
            bytes = rest;
        }
    }

    fn consider(&mut self, note: &Note<'_>) {
        const XEN_GUEST_OS: u32 = 6;
        const XEN_PHYS32_ENTRY: u32 = 18;
        match (note.name, note.kind) {
            (b"Linux\0", _) => self.is_linux = true,
            (b"Xen\0", XEN_GUEST_OS) => self.is_linux |= note.contents.starts_with(b"linux"),
            (b"Xen\0", XEN_PHYS32_ENTRY) => {
                self.pvh_entry = note.contents.first_chunk().copied().map(u32::from_le_bytes);
            }
            _ => {}
        }
    }
}

struct Note<'a> {
    name: &'a [u8],
    kind: u32,
    contents: &'a [u8],
}

impl<'a> Note<'a> {
    fn split(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (start, rest) = bytes.split_at_checked(size_of::<Elf64_Nhdr>())?;
        let mut header = Elf64_Nhdr::default();
        header.as_mut_slice().copy_from_slice(start);
        let (name, rest) = padded(rest, header.n_namesz)?;
        let (contents, rest) = padded(rest, header.n_descsz)?;
        Some((Self { name, kind: header.n_type, contents }, rest))
    }
}

/// The first `size` bytes, and what comes after their padding.
fn padded(bytes: &[u8], size: u32) -> Option<(&[u8], &[u8])> {
    let size = usize::try_from(size).ok()?;
    let (field, _) = bytes.split_at_checked(size)?;
    // The last note's padding may be missing.
    let next = size.checked_next_multiple_of(4)?.min(bytes.len());
    Some((field, bytes.get(next..)?))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    /// An ELF file of one segment at `address` that holds `code`, entered at its start, with notes.
    pub(crate) fn elf(address: u64, code: &[u8], notes: &[u8]) -> Vec<u8> {
        const CODE_OFFSET: usize = 0x1000;
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(CODE_OFFSET, 0);
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(18, &62_u16.to_le_bytes());
        put(24, &address.to_le_bytes());
        put(32, &64_u64.to_le_bytes());
        put(54, &56_u16.to_le_bytes());
        put(56, &2_u16.to_le_bytes());
        let code_size = code.len() as u64;
        let note_offset = CODE_OFFSET as u64 + code_size;
        let headers = [
            (64, PT_LOAD, CODE_OFFSET as u64, address, code_size, code_size + 0x2000),
            (120, PT_NOTE, note_offset, 0, notes.len() as u64, notes.len() as u64),
        ];
        for (at, kind, offset, address, file_size, memory_size) in headers {
            put(at, &kind.to_le_bytes());
            put(at + 4, &5_u32.to_le_bytes());
            for (field, value) in [(8, offset), (24, address), (32, file_size), (40, memory_size)] {
                put(at + field, &value.to_le_bytes());
            }
        }
        file.extend(code);
        file.extend(notes);
        file
    }

    /// A note.
    pub(crate) fn note(name: &[u8], kind: u32, contents: &[u8]) -> Vec<u8> {
        let mut note = Vec::new();
        let size = |field: &[u8]| u32::try_from(field.len()).unwrap();
        for word in [size(name), size(contents), kind] {
            note.extend(word.to_le_bytes());
        }
        for field in [name, contents] {
            note.extend(field);
            note.resize(note.len().next_multiple_of(4), 0);
        }
        note
    }

    /// The note that makes a kernel enterable by PVH.
    pub(crate) fn pvh_note(entry: u32) -> Vec<u8> {
        note(b"Xen\0", 18, &entry.to_le_bytes())
    }

    fn read(bytes: &[u8]) -> Result<Elf, BootError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Elf::read(&file, "kernel")
    }

    fn rule(bytes: &[u8]) -> &'static str {
        match read(bytes) {
            Err(BootError::Image { name, rule }) if name == "kernel" => rule,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn pvh_is_taken_only_where_nothing_is_linux() {
        let entry = |notes: &[Vec<u8>]| read(&elf(0x20_0000, &[0xf4], &notes.concat()));
        let linux = ElfEntry::Linux64(0x20_0000);
        assert_eq!(entry(&[]).unwrap().entry, linux);
        let pvh = pvh_note(0x20_0000);
        let foreign = note(b"GNU\0", 3, b"build id");
        assert_eq!(
            entry(&[foreign, pvh.clone()]).unwrap().entry,
            ElfEntry::Pvh(0x20_0000),
            "a unikernel"
        );
        let salt = note(b"Linux\0", 0x100, b"salt\0");
        assert_eq!(entry(&[pvh.clone(), salt]).unwrap().entry, linux);
        let xen = note(b"Xen\0", 6, b"linux\0");
        assert_eq!(entry(&[xen, pvh]).unwrap().entry, linux);
        let other = note(b"Xen\0", 6, b"NetBSD\0");
        assert_eq!(entry(&[other, pvh_note(0x20_0000)]).unwrap().entry, ElfEntry::Pvh(0x20_0000));
        assert!(entry(&[pvh_note(0x10)]).is_err(), "an entry outside the kernel");
    }

    #[test]
    fn segments_are_read_with_their_zeroes() {
        let elf = read(&elf(0x20_0000, &[1, 2, 3], &[])).unwrap();
        let want = Segment {
            offset: 0x1000,
            address: 0x20_0000,
            file_size: 3,
            memory_size: 0x2003,
            is_writable: false,
        };
        assert_eq!(elf.segments, [want]);
    }

    #[test]
    fn lying_headers_are_named() {
        let good = elf(0x20_0000, &[0xf4; 16], &[]);
        let with = |at: usize, bytes: &[u8]| {
            let mut bad = good.clone();
            bad[at..at + bytes.len()].copy_from_slice(bytes);
            bad
        };
        let max = u64::MAX.to_le_bytes();
        assert!(rule(&with(4, &[1])).contains("64-bit"));
        assert!(rule(&with(18, &[3, 0])).contains("x86-64"));
        assert!(rule(&with(56, &[0, 0])).contains("program headers"));
        assert!(rule(&with(56, &[0xff, 0xff])).contains("program headers"));
        assert!(rule(&with(32, &max)).contains("outside the file"));
        assert!(rule(&with(64, &[6])).contains("no segment"));
        assert!(rule(&with(64 + 8, &max)).contains("outside the file"));
        assert!(rule(&with(64 + 24, &max)).contains("makes no sense"));
        assert!(rule(&with(64 + 40, &[1, 0])).contains("makes no sense"), "larger in the file");
        assert!(rule(&with(64 + 32, &100_u64.to_le_bytes())).contains("outside the file"));
        assert!(rule(&with(24, &max)).contains("entry"));
        assert!(rule(&good[..63]).contains("outside the file"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn no_header_makes_the_reader_panic(
            changes in prop::collection::vec((0..184_usize, any::<u8>()), 0..12),
            notes in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut file = elf(0x20_0000, &[0xf4], &notes);
            for (at, value) in changes {
                file[at] = value;
            }
            if let Ok(elf) = read(&file) {
                for segment in elf.segments {
                    prop_assert!(segment.offset + segment.file_size <= file.len() as u64);
                    prop_assert!(segment.end() >= segment.address);
                }
            }
        }
    }
}
