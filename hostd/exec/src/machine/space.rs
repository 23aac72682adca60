//! Disks, volumes and namespaces: what their rooms say, as results of workloads.

use hostd_grid::derived::WorkloadId;
use hostd_grid::json::RawJson;
use hostd_grid::workload::{Mount, VolumeResult, ZMountResult};
use hostd_grid::{WorkloadData, WorkloadType};
use hostd_node::host::{HostError, Task, UpdateError};
use serde::Serialize;

use super::{Inner, host};
use crate::storage::Kind;

impl Inner {
    /// Makes a disk, a volume or a namespace, or finds it.
    pub(super) fn provision_space(
        &self,
        id: &WorkloadId,
        data: &WorkloadData,
    ) -> Result<RawJson, HostError> {
        match data {
            WorkloadData::ZMount(disk) => {
                self.storage.create(Kind::ZMount, id, disk.size).map_err(host)?;
                json(&ZMountResult { volume_id: id.to_string() })
            }
            WorkloadData::Volume(volume) => {
                self.storage.create(Kind::Volume, id, volume.size).map_err(host)?;
                json(&VolumeResult { id: id.to_string() })
            }
            WorkloadData::Zdb(zdb) => json(&self.zdbs.provision(id, zdb).map_err(host)?),
            other => {
                Err(HostError(format!("this node runs no workloads of type {}", other.kind())))
            }
        }
    }

    /// Changes one of them. What can't be changed stays as it is.
    pub(super) fn update_space(
        &self,
        task: &Task,
        data: &WorkloadData,
    ) -> Result<RawJson, UpdateError> {
        let id = task.id();
        let updated = match data {
            WorkloadData::ZMount(disk) => {
                if self.is_mounted(task).map_err(unchanged)? {
                    let reason = "disk is mounted, please delete the VM first";
                    return Err(UpdateError::Unchanged(reason.to_owned()));
                }
                let grown = self.storage.grow(Kind::ZMount, &id, disk.size).map_err(host);
                grown.and_then(|_| json(&ZMountResult { volume_id: id.to_string() }))
            }
            WorkloadData::Volume(volume) => {
                let grown = self.storage.grow(Kind::Volume, &id, volume.size).map_err(host);
                grown.and_then(|_| json(&VolumeResult { id: id.to_string() }))
            }
            WorkloadData::Zdb(zdb) => {
                let updated = self.zdbs.update(&id, zdb).map_err(host);
                updated.and_then(|result| json(&result))
            }
            other => {
                let kind: WorkloadType = other.kind();
                Err(HostError(format!("workload '{kind}' does not support upgrade")))
            }
        };
        updated.map_err(unchanged)
    }

    /// Removes them all, by an id that only one of them has.
    pub(super) fn remove_space(&self, id: &WorkloadId) -> Result<(), HostError> {
        for kind in [Kind::ZMount, Kind::Volume] {
            self.storage.remove(kind, id).map_err(host)?;
        }
        self.zdbs.remove(id).map_err(host)
    }

    /// Whether a machine of the same deployment is there that mounts the disk.
    fn is_mounted(&self, task: &Task) -> Result<bool, HostError> {
        let (id, name) = (task.id(), &task.workload().name);
        for workload in &task.deployment().deployment().workloads {
            let mounts: &[Mount] = match &workload.data {
                WorkloadData::ZMachineLight(machine) => &machine.mounts,
                WorkloadData::ZMachine(machine) => &machine.mounts,
                _ => continue,
            };
            let record = self.vms.records().read(&id.sibling(&workload.name));
            let is_there = record.map_err(host)?.is_some();
            if is_there && mounts.iter().any(|mount| mount.name == *name) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn unchanged(error: HostError) -> UpdateError {
    UpdateError::Unchanged(error.0)
}

fn json(result: &impl Serialize) -> Result<RawJson, HostError> {
    RawJson::of(result).map_err(host)
}
