//! Disks, volumes and namespaces: what their rooms say, as results of workloads.

use std::io;

use hostd_grid::derived::WorkloadId;
use hostd_grid::json::RawJson;
use hostd_grid::workload::{Mount, VolumeResult, ZMountResult};
use hostd_grid::{Workload, WorkloadData, WorkloadType};
use hostd_node::host::{HostError, Task, UpdateError};
use serde::Serialize;

use super::{Inner, host};
use crate::storage::Kind;
use crate::vm::record::Records;

/// Why a disk does not grow now (`reference: zero-os 1.3`).
const MOUNTED: &str = "disk is mounted, please delete the VM first";

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
                let workloads = &task.deployment().deployment().workloads;
                let mounted = is_mounted(self.vms.records(), &id, workloads).map_err(host);
                if mounted.map_err(unchanged)? {
                    return Err(UpdateError::Unchanged(MOUNTED.to_owned()));
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
}

/// Whether one of a deployment's machines is there that mounts its disk of this id.
fn is_mounted(records: &Records, disk: &WorkloadId, workloads: &[Workload]) -> io::Result<bool> {
    for workload in workloads {
        let mounts: &[Mount] = match &workload.data {
            WorkloadData::ZMachineLight(machine) => &machine.mounts,
            WorkloadData::ZMachine(machine) => &machine.mounts,
            _ => continue,
        };
        let is_its = mounts.iter().any(|mount| mount.name == disk.name);
        if is_its && records.read(&disk.sibling(&workload.name))?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn unchanged(error: HostError) -> UpdateError {
    UpdateError::Unchanged(error.0)
}

fn json(result: &impl Serialize) -> Result<RawJson, HostError> {
    RawJson::of(result).map_err(host)
}

#[cfg(test)]
mod tests {
    use hostd_grid::Name;
    use hostd_grid::workload::{WorkloadResult, ZMachine, ZMachineLight, ZMount};

    use super::*;
    use crate::storage::parse;
    use crate::vm::record::Record;

    fn workload(name: &str, data: WorkloadData) -> Workload {
        Workload {
            version: 0,
            name: Name::new(name),
            data,
            metadata: String::new(),
            description: String::new(),
            result: WorkloadResult::default(),
        }
    }

    #[test]
    fn a_disk_grows_only_while_no_machine_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::open(folder.path().join("vms")).unwrap();
        let mount = |disk: &str| Mount { name: Name::new(disk), mountpoint: "/data".to_owned() };
        let light = ZMachineLight { mounts: vec![mount("one")], ..ZMachineLight::default() };
        let full = ZMachine { mounts: vec![mount("two")], ..ZMachine::default() };
        let disk = |name: &str| workload(name, WorkloadData::ZMount(ZMount { size: 1 << 30 }));
        let workloads = [
            disk("one"),
            disk("two"),
            disk("free"),
            workload("light", WorkloadData::ZMachineLight(light)),
            workload("full", WorkloadData::ZMachine(full)),
        ];
        let who_is_mounted = || {
            let is_mounted = |name: &&str| {
                let id = parse(&format!("7-9-{name}")).unwrap();
                is_mounted(&records, &id, &workloads).unwrap()
            };
            ["one", "two", "free"].into_iter().filter(is_mounted).collect::<Vec<_>>()
        };
        // Of machines that were never made, or are gone, nobody's disk is in use.
        assert_eq!(who_is_mounted(), [""; 0]);
        let record = Record {
            image: "hash".to_owned(),
            url: "https://hub/image.fl".to_owned(),
            result: "{}".to_owned(),
            // One that stands still has its disk all the same.
            is_stopped: true,
            is_paused: false,
        };
        records.write(&parse("7-9-light").unwrap(), &record).unwrap();
        assert_eq!(who_is_mounted(), ["one"]);
        records.write(&parse("7-9-full").unwrap(), &record).unwrap();
        assert_eq!(who_is_mounted(), ["one", "two"]);
        // What a machine of the same name has in another deployment is another disk.
        records.remove(&parse("7-9-light").unwrap()).unwrap();
        records.write(&parse("7-8-light").unwrap(), &record).unwrap();
        assert_eq!(who_is_mounted(), ["two"]);
        // What can't be read may be a machine: no disk grows on a guess.
        std::fs::write(records.folder(&parse("7-9-full").unwrap()).join("machine.json"), "{")
            .unwrap();
        let two = parse("7-9-two").unwrap();
        assert!(is_mounted(&records, &two, &workloads).is_err());
    }
}
