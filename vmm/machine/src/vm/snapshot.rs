//! Saving a VM while it stands still.
//!
//! ```text
//!   paused ──► machine, bus, memory ──► resumed ──► files, disks on disk ──► answered
//!                     │ fails                              │ fails
//!                     ▼                                    ▼
//!              as it was before, nothing left of the files, an error
//! ```
//!
//! The guest stands still while its memory is copied into the host's page cache, and not while that
//! reaches a disk, unless it is not to go on before the snapshot is safe. Its disks are not copied;
//! what it wrote to them is made as durable as the snapshot, which would otherwise remember writes
//! that the host forgot.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::Ordering;

use vmm_spec::VmSpec;
use vmm_spec::api::SnapshotThen;

use super::Shared;
use super::devices::Handle;
use crate::api::ControlError;
use crate::snapshot::{self, Place, SavedVm, SnapshotError, Target, TargetError};
use crate::{Exit, MachineError};

impl Shared {
    /// Saves the VM to a directory, or to two files, of which the first takes the state.
    pub(super) fn snapshot(
        &self,
        path: &Path,
        then: SnapshotThen,
        files: Option<(OwnedFd, OwnedFd)>,
    ) -> Result<(), ControlError> {
        let target = match files {
            Some((state, memory)) => Target::files(state, memory),
            None => Target::directory(path),
        };
        let target = target.map_err(target_failed)?;
        let _lifecycle = self.lifecycle();
        if self.is_ending.load(Ordering::SeqCst) || self.machine().exit().is_some() {
            let error = "the VM is ending".to_owned();
            return Err(ControlError::Conflict { error, hint: None });
        }
        let was_paused = self.is_paused.load(Ordering::SeqCst);
        self.stand_still()?;
        let saved = self.save_to(&target);
        let goes_on = then == SnapshotThen::Continue && !was_paused;
        let result = if goes_on {
            self.go_on();
            saved.and_then(|()| self.secure(target))
        } else {
            let result = saved.and_then(|()| self.secure(target));
            if result.is_err() && !was_paused {
                self.go_on();
            }
            result
        };
        if result.is_ok() && then == SnapshotThen::Stop {
            self.is_ending.store(true, Ordering::SeqCst);
            self.machine().ender().end(Exit::Off);
        }
        result
    }

    /// Writes both files, of a VM that stands still.
    fn save_to(&self, target: &Target) -> Result<(), ControlError> {
        let machine = self.machine();
        let ram = machine.ram();
        target.check_room(ram.image_size()).map_err(target_failed)?;
        let state = machine.save().map_err(|error| conflict(&error))?;
        let functions = self.bus.save().map_err(|error| conflict(&error))?;
        let (spec, places): (VmSpec, Vec<Place>) = (self.spec().clone(), self.places());
        let written = snapshot::write(target, ram, self.pagemap.as_ref(), |memory| SavedVm {
            vmm_version: env!("CARGO_PKG_VERSION").to_owned(),
            spec,
            machine: state,
            places,
            functions,
            memory,
        });
        written.map_err(snapshot_failed)
    }

    /// Makes sure that the snapshot, and what it takes for granted, outlives the host's power.
    fn secure(&self, target: Target) -> Result<(), ControlError> {
        for device in &*self.plugged() {
            if let Handle::Disk { file, .. } = &device.handle {
                let failed = |source| {
                    let what = format!("bring disk {} up to date", device.id);
                    ControlError::Host { what, source }
                };
                file.sync_data().map_err(failed)?;
            }
        }
        target.finish().map_err(target_failed)
    }

    /// Stops CPUs and devices, if they do not stand already. The lifecycle is held.
    pub(super) fn stand_still(&self) -> Result<(), ControlError> {
        if self.is_paused.load(Ordering::SeqCst) {
            return Ok(());
        }
        let busy = |error: MachineError| ControlError::Busy(error.to_string());
        if let Err(error) = self.machine().pause() {
            self.machine().resume();
            return Err(busy(error));
        }
        if let Err(error) = self.bus.pause() {
            self.machine().resume();
            return Err(ControlError::Busy(error.to_string()));
        }
        self.is_paused.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Lets CPUs and devices go on, if they stand. The lifecycle is held.
    pub(super) fn go_on(&self) {
        if self.is_paused.swap(false, Ordering::SeqCst) {
            self.bus.resume();
            self.machine().resume();
        }
    }

    /// Which device is in which slot.
    fn places(&self) -> Vec<Place> {
        let place = |device: &super::devices::Plugged| Place {
            kind: device.kind.to_owned(),
            id: device.id.clone(),
            slot: device.slot,
        };
        self.plugged().iter().map(place).collect()
    }
}

fn target_failed(error: TargetError) -> ControlError {
    match error {
        TargetError::Exists(_) => ControlError::Conflict {
            error: error.to_string(),
            hint: Some("name another directory"),
        },
        TargetError::Host { path, source } => {
            ControlError::Host { what: format!("write the snapshot to {}", path.display()), source }
        }
        TargetError::Descriptor { .. } => ControlError::Invalid(error.to_string()),
        TargetError::Limit { .. } => {
            let hint = Some("raise its limit on the size of files (ulimit -f)");
            ControlError::Conflict { error: error.to_string(), hint }
        }
    }
}

fn snapshot_failed(error: SnapshotError) -> ControlError {
    let what = format!("the snapshot's {error}");
    match error.into_host() {
        Some(source) => ControlError::Host { what, source },
        None => ControlError::Conflict { error: what, hint: None },
    }
}

/// A state that can't be saved: of KVM, or of a device that says why.
fn conflict(error: &dyn std::error::Error) -> ControlError {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    ControlError::Conflict { error: text, hint: None }
}
