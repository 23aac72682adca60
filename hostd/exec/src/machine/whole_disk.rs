//! Machines that are whole disks: an image's `/image.raw`, on the first disk that their owner mounts.
//!
//! The disk is the owner's: it is written once, and what the guest makes of it is what boots next, kernel
//! and all. It stays when the machine goes.

use hostd_grid::derived::WorkloadId;
use hostd_grid::workload::ZMachineLight;
use hostd_grid::{Name, WorkloadType};
use hostd_node::host::HostError;

use super::{Inner, host};
use crate::image::{Image, ImageError};
use crate::storage::{Kind, StorageError, write_once};
use crate::vm::spec::Boot;

/// Why there is no such machine. Texts are those of existing nodes where clients know them.
#[derive(Debug, thiserror::Error)]
enum WholeDiskError {
    #[error("at least one mount has to be attached for Vm mode")]
    NoMount,
    #[error(
        "mount '{0}' is no zmount, and the image is one of a whole disk, which is written to it"
    )]
    NoDisk(Name),
    #[error("invalid disk '{0}' state")]
    Absent(Name),
    #[error("image size is bigger than disk: {image} bytes, and disk '{name}' has {disk}")]
    Size { name: Name, image: u64, disk: u64 },
    #[error("this node has no program that boots images of whole disks (/image.raw)")]
    NoProgram,
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Image(#[from] ImageError),
}

impl Inner {
    /// What boots, after the image was written to the machine's first disk, unless that is in use.
    pub(super) fn whole_disk(
        &self,
        id: &WorkloadId,
        machine: &ZMachineLight,
        image: &Image,
        size: u64,
        kind: impl Fn(&Name) -> Option<WorkloadType>,
    ) -> Result<Boot, HostError> {
        self.write_whole_disk(id, machine, image, size, kind).map_err(host)?;
        Ok(Boot::Disk { folder: self.vms.boot_folder(id) })
    }

    fn write_whole_disk(
        &self,
        id: &WorkloadId,
        machine: &ZMachineLight,
        image: &Image,
        size: u64,
        kind: impl Fn(&Name) -> Option<WorkloadType>,
    ) -> Result<(), WholeDiskError> {
        if self.config.programs.disk_boot.is_none() {
            return Err(WholeDiskError::NoProgram);
        }
        let mount = machine.mounts.first().ok_or(WholeDiskError::NoMount)?;
        let name = &mount.name;
        if kind(name) != Some(WorkloadType::ZMount) {
            return Err(WholeDiskError::NoDisk(name.clone()));
        }
        let space = self.storage.find(Kind::ZMount, &id.sibling(name))?;
        let space = space.ok_or_else(|| WholeDiskError::Absent(name.clone()))?;
        if space.size < size {
            return Err(WholeDiskError::Size { name: name.clone(), image: size, disk: space.size });
        }
        write_once(&space, |disk| Ok(self.images.write_disk(image, disk)?)).map(drop)
    }
}
