//! The `.modinfo` section of a kernel module: `key=value` strings, each ended by a NUL.
//!
//! `depends=` was written by the kernel's own build from the symbols the module uses, so it is
//! as good as what `depmod` would find.

use thiserror::Error;

/// What loading a module takes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ModInfo {
    /// Names of the modules whose symbols it uses.
    pub depends: Vec<String>,
    /// Names, or aliases, that it wants loaded before it, but can do without.
    pub soft_before: Vec<String>,
    /// Patterns of devices and services it offers itself for.
    pub aliases: Vec<String>,
}

impl ModInfo {
    /// Reads it from an ELF module.
    ///
    /// # Errors
    ///
    /// [`ModInfoError`] when the file is no module.
    pub fn parse(module: &[u8]) -> Result<Self, ModInfoError> {
        let section = elf_section(module, b".modinfo")?;
        let mut info = Self::default();
        for entry in section.split(|&byte| byte == 0).filter_map(|e| str::from_utf8(e).ok()) {
            match entry.split_once('=') {
                Some(("depends", names)) => {
                    let names = names.split(',').filter(|name| !name.is_empty());
                    info.depends.extend(names.map(str::to_owned));
                }
                Some(("alias", pattern)) => info.aliases.push(pattern.to_owned()),
                Some(("softdep", text)) => info.soft_before.extend(soft_before(text)),
                _ => {}
            }
        }
        Ok(info)
    }
}

/// The `pre:` names of `pre: a b post: c`.
fn soft_before(text: &str) -> Vec<String> {
    let mut is_before = false;
    let mut names = Vec::new();
    for word in text.split_ascii_whitespace() {
        match word {
            "pre:" => is_before = true,
            "post:" => is_before = false,
            name if is_before => names.push(name.to_owned()),
            _ => {}
        }
    }
    names
}

/// The bytes of a section, by name (ELF-64 object file format, sections 3 and 5).
fn elf_section<'a>(elf: &'a [u8], name: &[u8]) -> Result<&'a [u8], ModInfoError> {
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return Err(ModInfoError::NotElf);
    }
    let table = u64_at(elf, 0x28)?;
    let (entry_size, count, names) = (u16_at(elf, 0x3a)?, u16_at(elf, 0x3c)?, u16_at(elf, 0x3e)?);
    let header = |index: u16| {
        let at = u64::from(entry_size) * u64::from(index);
        slice(elf, table.checked_add(at)?, 64)
    };
    let body = |header: &[u8]| -> Result<&'a [u8], ModInfoError> {
        slice(elf, u64_at(header, 0x18)?, u64_at(header, 0x20)?).ok_or(ModInfoError::Truncated)
    };
    let names = body(header(names).ok_or(ModInfoError::Truncated)?)?;
    for index in 0..count {
        let header = header(index).ok_or(ModInfoError::Truncated)?;
        let text = names.get(u32_at(header, 0)? as usize..).ok_or(ModInfoError::Truncated)?;
        if text.strip_prefix(name).is_some_and(|rest| rest.first() == Some(&0)) {
            return body(header);
        }
    }
    Err(ModInfoError::NoSection)
}

fn slice(bytes: &[u8], at: u64, len: u64) -> Option<&[u8]> {
    let at = usize::try_from(at).ok()?;
    bytes.get(at..at.checked_add(usize::try_from(len).ok()?)?)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], ModInfoError> {
    let tail = bytes.get(at..).and_then(|tail| tail.first_chunk());
    tail.copied().ok_or(ModInfoError::Truncated)
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, ModInfoError> {
    array(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, ModInfoError> {
    array(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, ModInfoError> {
    array(bytes, at).map(u64::from_le_bytes)
}

/// A file isn't a kernel module.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ModInfoError {
    /// Wrong magic, class or byte order.
    #[error("not a 64-bit little-endian ELF file")]
    NotElf,
    /// A header or section reaches past the end.
    #[error("ELF file is truncated")]
    Truncated,
    /// An ELF file, but no module.
    #[error("no .modinfo section")]
    NoSection,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A module of three sections: none, the names, `.modinfo`.
    pub(crate) fn module(entries: &[&str]) -> Vec<u8> {
        let names = b"\0.shstrtab\0.modinfo\0";
        let info: Vec<u8> = entries.iter().flat_map(|e| [e.as_bytes(), b"\0"].concat()).collect();
        let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
        elf.resize(64, 0);
        let names_at = elf.len() as u64;
        elf.extend(names);
        let info_at = elf.len() as u64;
        elf.extend(&info);
        let table = elf.len() as u64;
        for (name, at, size) in
            [(0, 0, 0), (1, names_at, names.len() as u64), (11, info_at, info.len() as u64)]
        {
            let mut header = [0u8; 64];
            header[..4].copy_from_slice(&u32::to_le_bytes(name));
            header[0x18..0x20].copy_from_slice(&at.to_le_bytes());
            header[0x20..0x28].copy_from_slice(&size.to_le_bytes());
            elf.extend(header);
        }
        elf[0x28..0x30].copy_from_slice(&table.to_le_bytes());
        elf[0x3a..0x3c].copy_from_slice(&64u16.to_le_bytes());
        elf[0x3c..0x3e].copy_from_slice(&3u16.to_le_bytes());
        elf[0x3e..0x40].copy_from_slice(&1u16.to_le_bytes());
        elf
    }

    #[test]
    fn reads_what_loading_takes() {
        let info = ModInfo::parse(&module(&[
            "license=GPL",
            "depends=virtio,virtio_ring",
            "alias=virtio:d00000002v*",
            "softdep=pre: crc32c xxhash post: other",
        ]));
        let expected = ModInfo {
            depends: vec!["virtio".into(), "virtio_ring".into()],
            soft_before: vec!["crc32c".into(), "xxhash".into()],
            aliases: vec!["virtio:d00000002v*".into()],
        };
        assert_eq!(info, Ok(expected));
        assert_eq!(ModInfo::parse(&module(&["depends="])), Ok(ModInfo::default()));
    }

    #[test]
    fn hostile_modules_are_errors() {
        let good = module(&["depends=virtio"]);
        for len in 0..good.len() {
            assert!(ModInfo::parse(&good[..len]).is_err(), "{len}");
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] = 0xff;
            let _ = ModInfo::parse(&bad);
        }
        assert_eq!(ModInfo::parse(b"MZ"), Err(ModInfoError::NotElf));
    }
}
