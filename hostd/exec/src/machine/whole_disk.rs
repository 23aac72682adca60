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
use crate::storage::{Kind, Space, StorageError, write_once};
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
        let find = |name: &Name| self.storage.find(Kind::ZMount, &id.sibling(name));
        let space = first_disk(machine, size, kind, find)?;
        write_once(&space, |disk| Ok(self.images.write_disk(image, disk)?)).map(drop)
    }
}

/// The disk that an image of `size` bytes is written to.
fn first_disk(
    machine: &ZMachineLight,
    size: u64,
    kind: impl Fn(&Name) -> Option<WorkloadType>,
    find: impl Fn(&Name) -> Result<Option<Space>, StorageError>,
) -> Result<Space, WholeDiskError> {
    let name = &machine.mounts.first().ok_or(WholeDiskError::NoMount)?.name;
    if kind(name) != Some(WorkloadType::ZMount) {
        return Err(WholeDiskError::NoDisk(name.clone()));
    }
    let space = find(name)?.ok_or_else(|| WholeDiskError::Absent(name.clone()))?;
    if space.size < size {
        return Err(WholeDiskError::Size { name: name.clone(), image: size, disk: space.size });
    }
    Ok(space)
}

#[cfg(test)]
mod tests {
    use hostd_grid::workload::Mount;

    use super::*;
    use crate::storage::parse;

    fn first(mounts: &[&str], size: u64) -> Result<Space, String> {
        let mount = |name: &&str| Mount { name: (*name).into(), mountpoint: "/x".to_owned() };
        let mounts = mounts.iter().map(mount).collect();
        let machine = ZMachineLight { mounts, ..ZMachineLight::default() };
        let kind = |name: &Name| match name.as_str() {
            "share" => Some(WorkloadType::Volume),
            _ => Some(WorkloadType::ZMount),
        };
        let find = |name: &Name| {
            let id = parse(&format!("1-2-{name}")).unwrap();
            let (kind, path, pool) = (Kind::ZMount, "/p".into(), "p".into());
            let space = Space { kind, id, size: 100, path, pool };
            Ok((name.as_str() != "gone").then_some(space))
        };
        first_disk(&machine, size, kind, find).map_err(|error| error.to_string())
    }

    #[test]
    fn an_image_goes_to_the_first_mount_which_is_a_disk_of_its_size() {
        assert_eq!(first(&["disk", "share"], 100).unwrap().size, 100);
        for (mounts, size, expected) in [
            (&[][..], 1, "at least one mount has to be attached for Vm mode"),
            (&["share", "disk"], 1, "mount 'share' is no zmount"),
            (&["gone"], 1, "invalid disk 'gone' state"),
            (&["disk"], 101, "image size is bigger than disk: 101 bytes, and disk 'disk' has 100"),
        ] {
            let error = first(mounts, size).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
