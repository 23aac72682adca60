//! Devices that come and go while the guest runs.
//!
//! Both are the work of one thread. The API's thread, which hears strangers, and vCPUs' threads, which
//! the guest runs on, only ask for it: building a device takes system calls that neither may make.

use std::sync::{Arc, mpsc};

use super::{STACK_SIZE, Shared, VmError};
use crate::api::ControlError;
use crate::worker;

/// What the thread is asked to do.
pub(super) type Job = Box<dyn FnOnce(&Arc<Shared>) + Send>;

impl Shared {
    /// Starts the thread, which also removes what the guest ejects: the guest says so from a vCPU's
    /// thread, and removing waits for the device's units.
    pub(super) fn start_hotplug(self: &Arc<Self>) -> Result<(), VmError> {
        let (asked, jobs) = mpsc::channel::<Job>();
        let ejected = asked.clone();
        self.machine().hotplug().on_eject(Box::new(move |slot| {
            let job = move |shared: &Arc<Self>| shared.remove(usize::from(slot));
            // There is nobody to tell once the VM ends.
            let _ = ejected.send(Box::new(job));
        }));
        // It is started once.
        let _ = self.hotplug.set(asked);
        let shared = Arc::downgrade(self);
        let work = move || {
            for job in jobs {
                let Some(shared) = shared.upgrade() else { return };
                job(&shared);
            }
        };
        worker::spawn("hotplug", STACK_SIZE, &self.threads, work)
            .map_err(VmError::host("start the thread that plugs devices"))?;
        Ok(())
    }

    /// Has the thread do something, and waits for it. `None` when the VM ends.
    pub(super) fn on_hotplug_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Self>) -> T + Send + 'static,
    ) -> Option<T> {
        let (done, result) = mpsc::sync_channel(1);
        let job = move |shared: &Arc<Self>| drop(done.send(work(shared)));
        self.hotplug.get()?.send(Box::new(job)).ok()?;
        result.recv().ok()
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
