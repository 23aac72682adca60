//! The HTTP interface, as a client of its socket sees it.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Mutex;

use vmm_machine::api::testing::converse;
use vmm_machine::api::{Attach, Control, ControlError, Metrics};
use vmm_spec::api::{BalloonInfo, SnapshotThen, State, VmInfo};
use vmm_spec::{Disk, Net, Size, Verified, VmSpec};

/// Bytes of a connection, of which the first says into how many pieces the others are cut.
pub(crate) fn api(bytes: &[u8]) {
    let Some((cuts, rest)) = bytes.split_first() else { return };
    let size = rest.len().div_ceil(usize::from(cuts % 8) + 1).max(1);
    let pieces: Vec<&[u8]> = rest.chunks(size).collect();
    let answers = converse(&pieces, &Willing::default());
    assert!(answers.is_empty() || answers.starts_with(b"HTTP/1.1 "), "answers are HTTP");
}

/// Does nothing, and says that all is well.
#[derive(Default)]
struct Willing(Mutex<VmSpec>);

impl Control for Willing {
    fn info(&self) -> VmInfo {
        VmInfo {
            vmm_version: "0".to_owned(),
            pid: 1,
            state: State::Running,
            uptime_ms: 1,
            reboots: 0,
            exits: 2,
            console_pty: None,
            serial_pty: None,
            walls: Vec::new(),
            spec: self.0.lock().expect("no panic").clone(),
        }
    }

    fn pause(&self) -> Result<(), ControlError> {
        Ok(())
    }

    fn resume(&self) -> Result<(), ControlError> {
        Ok(())
    }

    fn shutdown(&self) -> Result<(), ControlError> {
        Ok(())
    }

    fn reboot(&self) -> Result<(), ControlError> {
        Ok(())
    }

    fn stop(&self) -> Result<(), ControlError> {
        Ok(())
    }

    fn balloon(&self) -> Result<BalloonInfo, ControlError> {
        Ok(BalloonInfo { target_mib: 0, actual_mib: 0 })
    }

    fn set_balloon(&self, _: u64) -> Result<(), ControlError> {
        Ok(())
    }

    fn add_disk(&self, disk: Verified<Disk>, _: Option<OwnedFd>) -> Result<(), ControlError> {
        self.0.lock().expect("no panic").disks.push(disk.spec.clone());
        Ok(())
    }

    fn resize_disk(&self, _: &str, _: Option<Size>) -> Result<(), ControlError> {
        Ok(())
    }

    fn remove_disk(&self, id: &str) -> Result<(), ControlError> {
        self.0.lock().expect("no panic").disks.retain(|disk| disk.id.as_deref() != Some(id));
        Ok(())
    }

    fn add_net(&self, net: Verified<Net>, _: Vec<OwnedFd>) -> Result<(), ControlError> {
        self.0.lock().expect("no panic").nets.push(net.spec.clone());
        Ok(())
    }

    fn remove_net(&self, id: &str) -> Result<(), ControlError> {
        Err(ControlError::NotFound { kind: "net", id: id.to_owned() })
    }

    fn snapshot(
        &self,
        _: &Path,
        _: SnapshotThen,
        _: Option<(OwnedFd, OwnedFd)>,
    ) -> Result<(), ControlError> {
        Ok(())
    }

    fn metrics(&self) -> Metrics {
        Metrics::default()
    }

    fn attach_console(&self) -> Result<Attach, ControlError> {
        Ok(Box::new(drop))
    }
}
