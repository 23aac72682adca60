//! Loads kernel modules, each once, as [`crate::modules`] groups them.

use std::collections::BTreeSet;
use std::fs::File;

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::system::finit_module;

use crate::modules::{DIR, Groups, PATH, PATH_BTRFS, Trigger, virtio_id};

/// The groups, and what of them is loaded.
pub(crate) struct Loader {
    groups: Groups,
    loaded: BTreeSet<String>,
}

impl Loader {
    /// Reads the lists. No list means a kernel with everything built in.
    pub(crate) fn open() -> Result<Self> {
        let text = |path| std::fs::read_to_string(path).unwrap_or_default();
        let groups = Groups::parse(&(text(PATH) + &text(PATH_BTRFS)))?;
        Ok(Self { groups, loaded: BTreeSet::new() })
    }

    /// Loads the modules for `trigger`.
    pub(crate) fn load(&mut self, trigger: &Trigger) -> Result<()> {
        for name in self.groups.files(trigger) {
            if !self.loaded.insert(name.to_owned()) {
                continue;
            }
            let path = format!("{DIR}/{name}");
            let file = File::open(&path).with_context(|| format!("opening module {path}"))?;
            match finit_module(&file, c"", 0) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error).with_context(|| format!("loading module {name}")),
            }
        }
        Ok(())
    }

    /// Loads the modules that a mount of `kind` needs.
    pub(crate) fn load_fs(&mut self, kind: &str) -> Result<()> {
        self.load(&Trigger::FileSystem(kind.to_owned()))
    }
}

/// Ids of the virtio devices that there are, each once.
pub(crate) fn virtio_ids() -> BTreeSet<u32> {
    modaliases("virtio").filter_map(|text| virtio_id(&text)).collect()
}

/// Whether there is a power button (ACPI's PNP0C0C).
pub(crate) fn has_button() -> bool {
    modaliases("acpi").any(|text| text.contains(":PNP0C0C:"))
}

/// Whether there is a pvpanic device.
pub(crate) fn has_pvpanic() -> bool {
    modaliases("pci").any(|text| text.starts_with("pci:v00001B36d00000011"))
}

/// What the kernel says of each device on `bus`.
fn modaliases(bus: &str) -> impl Iterator<Item = String> {
    let devices = std::fs::read_dir(format!("/sys/bus/{bus}/devices"));
    let modalias = |entry: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(entry.ok()?.path().join("modalias")).ok()
    };
    devices.into_iter().flatten().filter_map(modalias)
}
