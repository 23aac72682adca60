//! Devices that go while the guest runs: asked back, ejected, removed.

use std::sync::{Arc, mpsc};
use std::thread;

use super::{Shared, VmError};
use crate::api::ControlError;

impl Shared {
    /// Removes what the guest ejects, in a thread of its own: the guest says so from a vCPU's
    /// thread, and removing waits for the device's units.
    pub(super) fn follow_ejections(self: &Arc<Self>) -> Result<(), VmError> {
        let (ejected, slots) = mpsc::channel();
        self.machine().hotplug().on_eject(Box::new(move |slot| {
            // There is nobody to tell once the VM ends.
            let _ = ejected.send(slot);
        }));
        let shared = Arc::downgrade(self);
        let work = move || {
            for slot in slots {
                let Some(shared) = shared.upgrade() else { return };
                shared.remove(usize::from(slot));
            }
        };
        let thread = thread::Builder::new().name("hotplug".to_owned()).spawn(work);
        thread.map_err(VmError::host("start the thread that removes devices"))?;
        Ok(())
    }

    /// Tells the guest of a device that is in `slot` now.
    pub(super) fn announce(&self, slot: usize) {
        if let Ok(slot) = u8::try_from(slot) {
            self.machine().hotplug().plug(slot);
        }
    }

    /// Asks the guest to let go of a device.
    pub(super) fn ask_back(&self, kind: &'static str, id: &str) -> Result<(), ControlError> {
        let plugged = self.plugged();
        let device = plugged.iter().find(|device| device.kind == kind && device.id == id);
        let device = device.ok_or_else(|| ControlError::NotFound { kind, id: id.to_owned() })?;
        if let Ok(slot) = u8::try_from(device.slot) {
            self.machine().hotplug().unplug(slot);
        }
        Ok(())
    }

    fn remove(&self, slot: usize) {
        let _lifecycle = self.lifecycle();
        let mut plugged = self.plugged();
        let Some(index) = plugged.iter().position(|device| device.slot == slot) else { return };
        let device = plugged.remove(index);
        drop(plugged);
        match self.bus.remove(slot) {
            // Dropping it stops its units.
            Ok(function) => drop(function),
            Err(error) => {
                tracing::warn!(slot, %error, "a device that the guest let go of stays");
                return;
            }
        }
        let mut spec = self.spec();
        match device.kind {
            "disk" => spec.disks.retain(|disk| disk.id.as_deref() != Some(device.id.as_str())),
            "net" => spec.nets.retain(|net| net.id.as_deref() != Some(device.id.as_str())),
            _ => {}
        }
        tracing::info!(kind = device.kind, id = device.id, "the guest let go of a device");
    }
}
