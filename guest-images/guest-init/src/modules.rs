//! Which kernel modules are loaded, and when: the file that the recipe writes beside them.
//!
//! Debian's cloud kernel has ext4 built in and the rest as modules. Loading one costs a million
//! instructions and more (copy, relocation, signature), so only those are loaded for which there
//! is a device or a use. The recipe resolves the dependencies; a line of [`PATH`] is
//!
//! ```text
//! virtio-1: failover.ko net_failover.ko virtio_net.ko
//! ```
//!
//! with a [`Trigger`] before the colon and file names in [`DIR`] behind it, in load order.

use std::fmt;

/// What makes a group of modules needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// Every boot needs it: the virtio bus.
    Always,
    /// There is a virtio device of this id (virtio 1.3 §5).
    Virtio(u32),
    /// There is an ACPI power button, of which the guest's own init is to hear.
    Button,
    /// There is a device to tell the host of a panic.
    Panic,
    /// Something of this kind is to be mounted.
    FileSystem(String),
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Always => f.write_str("always"),
            Self::Virtio(id) => write!(f, "virtio-{id}"),
            Self::Button => f.write_str("button"),
            Self::Panic => f.write_str("panic"),
            Self::FileSystem(name) => write!(f, "fs-{name}"),
        }
    }
}

/// The parsed file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Groups(Vec<(Trigger, Vec<String>)>);

/// Why the file was refused. It is built with the init: this is a broken build.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("module list line {line}: {what}")]
pub struct Error {
    /// Line, counted from 1.
    line: usize,
    /// What is wrong there.
    what: &'static str,
}

impl Groups {
    /// Parses the file.
    ///
    /// # Errors
    ///
    /// [`Error`] for a line without a known trigger, or with a path instead of a file name.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut groups = Self::default();
        for (index, line) in text.lines().enumerate() {
            let error = |what| Error { line: index + 1, what };
            let (trigger, files) = line.split_once(':').ok_or_else(|| error("no colon"))?;
            let trigger = parse_trigger(trigger).ok_or_else(|| error("unknown trigger"))?;
            let files: Vec<String> = files.split_ascii_whitespace().map(str::to_owned).collect();
            if files.iter().any(|file| file.contains('/')) {
                return Err(error("a path instead of a file name"));
            }
            groups.add(trigger, files);
        }
        Ok(groups)
    }

    /// Adds a group.
    pub fn add(&mut self, trigger: Trigger, files: Vec<String>) {
        self.0.push((trigger, files));
    }

    /// The files for `trigger`, in load order; none if it needs no module.
    #[must_use]
    pub fn files(&self, trigger: &Trigger) -> Vec<&str> {
        let groups = self.0.iter().filter(|(t, _)| t == trigger);
        groups.flat_map(|(_, files)| files.iter().map(String::as_str)).collect()
    }
}

impl fmt::Display for Groups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(trigger, files)| writeln!(f, "{trigger}: {}", files.join(" ")))
    }
}

fn parse_trigger(text: &str) -> Option<Trigger> {
    match text.split_once('-') {
        None if text == "always" => Some(Trigger::Always),
        None if text == "button" => Some(Trigger::Button),
        None if text == "panic" => Some(Trigger::Panic),
        Some(("virtio", id)) => id.parse().ok().map(Trigger::Virtio),
        Some(("fs", name)) if !name.is_empty() => Some(Trigger::FileSystem(name.to_owned())),
        _ => None,
    }
}

/// The device id in a virtio `modalias`, `virtio:d00000002v00001AF4`.
#[must_use]
pub fn virtio_id(modalias: &str) -> Option<u32> {
    let digits = modalias.trim().strip_prefix("virtio:d")?.split('v').next()?;
    u32::from_str_radix(digits, 16).ok()
}

/// Folder of the module files in the initramfs.
pub const DIR: &str = "/lib/modules";
/// The file of groups in the initramfs.
pub const PATH: &str = "/lib/modules/groups";
/// The same for btrfs, whose modules are as large as all others together: an archive of its own,
/// for hosts to append to the initramfs of a guest that needs it.
pub const PATH_BTRFS: &str = "/lib/modules/groups-btrfs";
/// virtio device ids (virtio 1.3 §5) with what they are.
pub mod id {
    /// Network card.
    pub const NET: u32 = 1;
    /// Block device.
    pub const BLOCK: u32 = 2;
    /// Console.
    pub const CONSOLE: u32 = 3;
    /// Entropy source.
    pub const RNG: u32 = 4;
    /// Memory balloon.
    pub const BALLOON: u32 = 5;
    /// Socket device.
    pub const VSOCK: u32 = 19;
    /// Memory device.
    pub const MEM: u32 = 24;
    /// File system.
    pub const FS: u32 = 26;
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "always: virtio.ko virtio_pci.ko\nvirtio-1: virtio_net.ko\n\
                        button: button.ko\npanic: pvpanic.ko\nfs-overlay: \n";

    #[test]
    fn text_is_reversible() {
        let groups = Groups::parse(TEXT).unwrap();
        assert_eq!(groups.to_string(), TEXT);
        assert_eq!(groups.files(&Trigger::Always), ["virtio.ko", "virtio_pci.ko"]);
        assert_eq!(groups.files(&Trigger::Virtio(id::NET)), ["virtio_net.ko"]);
        assert_eq!(groups.files(&Trigger::Button), ["button.ko"]);
        assert_eq!(groups.files(&Trigger::Panic), ["pvpanic.ko"]);
        assert!(groups.files(&Trigger::FileSystem("overlay".into())).is_empty());
        assert!(groups.files(&Trigger::Virtio(id::BLOCK)).is_empty());
    }

    #[test]
    fn bad_lines_are_named() {
        for (text, what) in [
            ("always: a.ko\nvirtio_blk.ko\n", "module list line 2: no colon"),
            ("sometimes: a.ko", "module list line 1: unknown trigger"),
            ("virtio-x: a.ko", "module list line 1: unknown trigger"),
            ("fs-: a.ko", "module list line 1: unknown trigger"),
            ("always: ../a.ko", "module list line 1: a path instead of a file name"),
        ] {
            assert_eq!(Groups::parse(text).unwrap_err().to_string(), what);
        }
    }

    #[test]
    fn device_ids_are_hexadecimal() {
        assert_eq!(virtio_id("virtio:d00000002v00001AF4\n"), Some(id::BLOCK));
        assert_eq!(virtio_id("virtio:d0000001Av00001AF4"), Some(id::FS));
        assert_eq!(virtio_id("pci:v00001AF4d00001042"), None);
        assert_eq!(virtio_id(""), None);
    }
}
