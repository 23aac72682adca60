//! What the API asks of a running VM.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use vmm_spec::api::{BalloonInfo, SnapshotThen, State, VmInfo};
use vmm_spec::{Disk, Net, Size, Verified};

use super::devices::{Handle, open_disk, open_taps};
use super::{Shared, VmError};
use crate::Exit;
use crate::api::{Attach, Control, ControlError, Metrics};

/// The VM, as its API sees it. The API lives no longer than the VM, and does not keep it alive.
pub(super) struct VmControl(pub(super) Weak<Shared>);

impl VmControl {
    fn shared(&self) -> Result<Arc<Shared>, ControlError> {
        self.0.upgrade().ok_or_else(ending)
    }
}

fn ending() -> ControlError {
    ControlError::Conflict { error: "the VM is ending".to_owned(), hint: None }
}

/// A jailed process opens nothing.
fn jailed(what: &str) -> ControlError {
    ControlError::Conflict {
        error: format!("the VM is in a jail, where it can open nothing: {what} must come open"),
        hint: Some("send descriptors along, as `vmm disk add`, `net add` and `snapshot` do"),
    }
}

fn no_balloon() -> ControlError {
    absent("balloon", "start it with --balloon")
}

fn absent(what: &str, hint: &'static str) -> ControlError {
    ControlError::Conflict { error: format!("the VM has no {what}"), hint: Some(hint) }
}

impl Control for VmControl {
    fn info(&self) -> VmInfo {
        let shared = self.0.upgrade();
        let of = |read: fn(&Shared) -> u64| shared.as_deref().map_or(0, read);
        VmInfo {
            vmm_version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: shared.as_deref().map_or_else(std::process::id, |vm| vm.pid),
            state: shared.as_deref().map_or(State::Stopping, Shared::state),
            uptime_ms: of(|vm| u64::try_from(vm.started.elapsed().as_millis()).unwrap_or(u64::MAX)),
            reboots: of(|vm| vm.reboots.load(Ordering::Relaxed)),
            exits: of(|vm| vm.machine().exits().total()),
            console_pty: shared.as_deref().and_then(|vm| vm.ptys.console.clone()),
            serial_pty: shared.as_deref().and_then(|vm| vm.ptys.serial.clone()),
            walls: shared.as_deref().map(|vm| vm.walls.clone()).unwrap_or_default(),
            spec: shared.as_deref().map(|vm| vm.spec().clone()).unwrap_or_default(),
        }
    }

    fn pause(&self) -> Result<(), ControlError> {
        let shared = self.shared()?;
        let _lifecycle = shared.lifecycle();
        shared.stand_still()
    }

    fn resume(&self) -> Result<(), ControlError> {
        let shared = self.shared()?;
        let _lifecycle = shared.lifecycle();
        shared.go_on();
        Ok(())
    }

    fn shutdown(&self) -> Result<(), ControlError> {
        self.shared()?.machine().press_power_button();
        Ok(())
    }

    fn reboot(&self) -> Result<(), ControlError> {
        let shared = self.shared()?;
        shared.reboot_is_wanted.store(true, Ordering::SeqCst);
        shared.machine().ender().end(Exit::Reset);
        Ok(())
    }

    fn stop(&self) -> Result<(), ControlError> {
        let shared = self.shared()?;
        shared.is_ending.store(true, Ordering::SeqCst);
        shared.machine().ender().end(Exit::Off);
        Ok(())
    }

    fn balloon(&self) -> Result<BalloonInfo, ControlError> {
        let shared = self.shared()?;
        let balloon = shared.balloon.get().ok_or_else(no_balloon)?;
        Ok(BalloonInfo { target_mib: balloon.target() >> 20, actual_mib: balloon.actual() >> 20 })
    }

    fn set_balloon(&self, target_mib: u64) -> Result<(), ControlError> {
        let shared = self.shared()?;
        let balloon = shared.balloon.get().ok_or_else(no_balloon)?;
        let bytes = target_mib.saturating_mul(1 << 20);
        balloon.set_target(bytes).map_err(|error| ControlError::Invalid(error.to_string()))
    }

    fn add_disk(
        &self,
        disk: Verified<Disk>,
        descriptor: Option<OwnedFd>,
    ) -> Result<(), ControlError> {
        let shared = self.shared()?;
        if descriptor.is_none() && shared.is_jailed() {
            return Err(jailed("the disk's file"));
        }
        let plug = move |shared: &Arc<Shared>| {
            let file = descriptor.map_or_else(|| open_disk(&disk), |file| Ok(File::from(file)));
            let slot = shared.add_disk(&disk, file?)?;
            shared.spec().disks.push(disk.to_spec());
            shared.announce(slot);
            Ok(())
        };
        shared.on_hotplug_thread(plug).ok_or_else(ending)?.map_err(vm_failed)
    }

    fn resize_disk(&self, id: &str, size: Option<Size>) -> Result<(), ControlError> {
        let shared = self.shared()?;
        let plugged = shared.plugged();
        let found = plugged.iter().find_map(|device| match &device.handle {
            Handle::Disk { disk, file } if device.id == id => Some((disk, file)),
            _ => None,
        });
        let not_found = || ControlError::NotFound { kind: "disk", id: id.to_owned() };
        let (disk, file) = found.ok_or_else(not_found)?;
        let failed = |what: &str| {
            let what = what.to_owned();
            move |source| ControlError::Host { what, source }
        };
        if let Some(size) = size {
            grow(file, size.bytes())?;
        }
        disk.resize().map_err(failed("take over the disk's size"))?;
        Ok(())
    }

    fn remove_disk(&self, id: &str) -> Result<(), ControlError> {
        self.shared()?.ask_back("disk", id)
    }

    fn add_net(&self, net: Verified<Net>, descriptors: Vec<OwnedFd>) -> Result<(), ControlError> {
        let shared = self.shared()?;
        if descriptors.is_empty() && shared.is_jailed() {
            return Err(jailed("the tap's queues"));
        }
        let plug = move |shared: &Arc<Shared>| {
            let taps = open_taps(&net, descriptors)?;
            let slot = shared.add_net(&net, taps)?;
            shared.spec().nets.push(net.to_spec());
            shared.announce(slot);
            Ok(())
        };
        shared.on_hotplug_thread(plug).ok_or_else(ending)?.map_err(vm_failed)
    }

    fn remove_net(&self, id: &str) -> Result<(), ControlError> {
        self.shared()?.ask_back("net", id)
    }

    fn snapshot(
        &self,
        path: &Path,
        then: SnapshotThen,
        files: Option<(OwnedFd, OwnedFd)>,
    ) -> Result<(), ControlError> {
        let shared = self.shared()?;
        if files.is_none() && shared.is_jailed() {
            return Err(jailed("the snapshot's files"));
        }
        shared.snapshot(path, then, files)
    }

    fn metrics(&self) -> Metrics {
        self.0.upgrade().map(|shared| shared.metrics()).unwrap_or_default()
    }

    fn attach_console(&self) -> Result<Attach, ControlError> {
        let shared = self.shared()?;
        let Some(console) = shared.console.get().cloned() else {
            let serial = shared.serial.clone();
            let serial = serial.ok_or_else(|| absent("console", "start it with --console"))?;
            return Ok(Box::new(move |stream| serial.attach(stream)));
        };
        Ok(Box::new(move |stream| {
            if let Err(error) = console.attach(stream.into()) {
                tracing::warn!(%error, "a client cannot be attached to the console");
            }
        }))
    }
}

impl Shared {
    fn is_jailed(&self) -> bool {
        !self.walls.is_empty()
    }

    fn state(&self) -> State {
        if self.is_ending.load(Ordering::SeqCst) {
            State::Stopping
        } else if self.is_paused.load(Ordering::SeqCst) {
            State::Paused
        } else if self.machine().is_running() {
            State::Running
        } else {
            State::Starting
        }
    }
}

/// A file grows; what has its size already, or is larger, stays.
fn grow(file: &File, size: u64) -> Result<(), ControlError> {
    let failed = |source| ControlError::Host { what: "grow the disk's file".to_owned(), source };
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        let error = "the disk is a block device: grow that, then resize without a size";
        return Err(ControlError::Invalid(error.to_owned()));
    }
    if size < metadata.len() {
        let now = metadata.len();
        return Err(ControlError::Invalid(format!("{size} bytes are less than the disk's {now}")));
    }
    file.set_len(size).map_err(failed)
}

fn vm_failed(error: VmError) -> ControlError {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    match error {
        VmError::Bus(_) => ControlError::Conflict { error: text, hint: None },
        VmError::Host { what, source } => ControlError::Host { what, source },
        _ => ControlError::Invalid(text),
    }
}
