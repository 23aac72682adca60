//! A machine for tests of its API, those of other crates too: remembers what it was asked, and can be
//! told to refuse.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use vmm_spec::api::{BalloonInfo, SnapshotThen, State, VmInfo};
use vmm_spec::{BalloonSpec, Disk, DiskSpec, Net, NetSpec, Size, Verified, VmSpec};

use super::control::{Attach, Control, ControlError};
use super::metrics::{Kind, Metrics, Value};

/// A machine that isn't there: it does what it is asked, in words alone. What is plugged in is in its
/// description until it is taken out.
#[derive(Default)]
pub struct Fake(Mutex<Inner>);

#[derive(Default)]
pub(super) struct Inner {
    pub(super) calls: Vec<String>,
    pub(super) paused: bool,
    /// What the next call is refused with.
    pub(super) refusal: Option<ControlError>,
    pub(super) disks: Vec<DiskSpec>,
    pub(super) nets: Vec<NetSpec>,
    pub(super) target_mib: u64,
}

impl Fake {
    pub(super) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no test panics with it")
    }

    /// What it was asked since the last time.
    #[cfg(test)]
    pub(super) fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.inner().calls)
    }

    fn call(&self, what: impl Into<String>) -> Result<(), ControlError> {
        let mut inner = self.inner();
        inner.calls.push(what.into());
        inner.refusal.take().map_or(Ok(()), Err)
    }
}

impl Control for Fake {
    fn info(&self) -> VmInfo {
        let inner = self.inner();
        VmInfo {
            vmm_version: "0".to_owned(),
            pid: std::process::id(),
            state: if inner.paused { State::Paused } else { State::Running },
            uptime_ms: 1,
            reboots: 0,
            exits: 2,
            console_pty: None,
            serial_pty: None,
            walls: Vec::new(),
            spec: VmSpec {
                kernel: Some("vmlinux".into()),
                balloon: Some(BalloonSpec::default()),
                disks: inner.disks.clone(),
                nets: inner.nets.clone(),
                ..VmSpec::default()
            },
        }
    }

    fn pause(&self) -> Result<(), ControlError> {
        self.call("pause")?;
        self.inner().paused = true;
        Ok(())
    }

    fn resume(&self) -> Result<(), ControlError> {
        self.call("resume")?;
        self.inner().paused = false;
        Ok(())
    }

    fn shutdown(&self) -> Result<(), ControlError> {
        self.call("shutdown")
    }

    fn reboot(&self) -> Result<(), ControlError> {
        self.call("reboot")
    }

    fn stop(&self) -> Result<(), ControlError> {
        self.call("stop")
    }

    fn balloon(&self) -> Result<BalloonInfo, ControlError> {
        self.call("balloon")?;
        Ok(BalloonInfo { target_mib: self.inner().target_mib, actual_mib: 0 })
    }

    fn set_balloon(&self, target_mib: u64) -> Result<(), ControlError> {
        self.call(format!("balloon {target_mib}"))?;
        self.inner().target_mib = target_mib;
        Ok(())
    }

    fn add_disk(
        &self,
        disk: Verified<Disk>,
        descriptor: Option<OwnedFd>,
    ) -> Result<(), ControlError> {
        let mut contents = String::new();
        if let Some(descriptor) = descriptor {
            File::from(descriptor).read_to_string(&mut contents).expect("text");
        }
        self.call(format!("add {} {contents:?}", disk.id))?;
        self.inner().disks.push(disk.spec.clone());
        Ok(())
    }

    fn resize_disk(&self, id: &str, size: Option<Size>) -> Result<(), ControlError> {
        self.call(format!("resize {id} {size:?}"))
    }

    fn remove_disk(&self, id: &str) -> Result<(), ControlError> {
        self.call(format!("remove {id}"))?;
        let disks = &mut self.inner().disks;
        let place = disks.iter().position(|disk| disk.id.as_deref() == Some(id));
        let missing = ControlError::NotFound { kind: "disk", id: id.to_owned() };
        disks.remove(place.ok_or(missing)?);
        Ok(())
    }

    fn add_net(&self, net: Verified<Net>, descriptors: Vec<OwnedFd>) -> Result<(), ControlError> {
        self.call(format!("add {} with {}", net.id, descriptors.len()))?;
        self.inner().nets.push(net.spec.clone());
        Ok(())
    }

    fn remove_net(&self, id: &str) -> Result<(), ControlError> {
        self.call(format!("remove {id}"))?;
        let nets = &mut self.inner().nets;
        let place = nets.iter().position(|net| net.id.as_deref() == Some(id));
        let missing = ControlError::NotFound { kind: "net", id: id.to_owned() };
        nets.remove(place.ok_or(missing)?);
        Ok(())
    }

    fn snapshot(
        &self,
        path: &Path,
        then: SnapshotThen,
        files: Option<(OwnedFd, OwnedFd)>,
    ) -> Result<(), ControlError> {
        if let Some((state, memory)) = files {
            File::from(state).write_all(b"state").expect("a file");
            File::from(memory).write_all(b"memory").expect("a file");
        }
        self.call(format!("snapshot {}, then {then:?}", path.display()))
    }

    fn metrics(&self) -> Metrics {
        let mut metrics = Metrics::default();
        metrics.single("vmm_exits_total", "Exits.", Kind::Counter, Value::Integer(2));
        metrics
    }

    fn attach_console(&self) -> Result<Attach, ControlError> {
        self.call("attach")?;
        Ok(Box::new(|mut stream| stream.write_all(b"login: ").expect("a client")))
    }
}
