//! What the server needs of a machine.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use vmm_spec::api::{BalloonInfo, SnapshotThen, VmInfo};
use vmm_spec::{Disk, Net, Size, Verified};

use super::Metrics;

/// Hands over a connection that has become a console's raw stream. The stream does not block.
pub type Attach = Box<dyn FnOnce(UnixStream) + Send>;

/// A machine, as its API sees it. Calls come from one thread, one after the other, and each should
/// end within a few seconds: other clients wait meanwhile. Only a snapshot may take as long as its
/// bytes take.
pub trait Control: Send + Sync {
    /// What the VM is and does.
    fn info(&self) -> VmInfo;

    /// Stops vCPUs and devices; nothing if they stand already.
    ///
    /// # Errors
    /// When the VM is in no state for it, or the host fails.
    fn pause(&self) -> Result<(), ControlError>;

    /// Lets vCPUs and devices go on; nothing if they do already.
    ///
    /// # Errors
    /// As for [`pause`](Self::pause).
    fn resume(&self) -> Result<(), ControlError>;

    /// Presses the power button.
    ///
    /// # Errors
    /// As for [`pause`](Self::pause).
    fn shutdown(&self) -> Result<(), ControlError>;

    /// Resets the machine. May return before it has happened.
    ///
    /// # Errors
    /// As for [`pause`](Self::pause).
    fn reboot(&self) -> Result<(), ControlError>;

    /// Ends the VM. Must return: the client still gets its answer.
    ///
    /// # Errors
    /// When the host fails.
    fn stop(&self) -> Result<(), ControlError>;

    /// What the balloon holds.
    ///
    /// # Errors
    /// [`ControlError::Conflict`] when there is no balloon.
    fn balloon(&self) -> Result<BalloonInfo, ControlError>;

    /// Asks the guest for memory.
    ///
    /// # Errors
    /// [`ControlError::Conflict`] when there is no balloon, [`ControlError::Invalid`] for more
    /// memory than there is.
    fn set_balloon(&self, target_mib: u64) -> Result<(), ControlError>;

    /// Plugs a disk in, verified beside [`info`](Self::info)'s description. With a `descriptor`,
    /// the disk's file is that.
    ///
    /// # Errors
    /// When it can't be opened, or the VM is in no state for it.
    fn add_disk(
        &self,
        disk: Verified<Disk>,
        descriptor: Option<OwnedFd>,
    ) -> Result<(), ControlError>;

    /// Changes a disk's size, or takes over the one that its file has by now.
    ///
    /// # Errors
    /// [`ControlError::NotFound`], or why it can't.
    fn resize_disk(&self, id: &str, size: Option<Size>) -> Result<(), ControlError>;

    /// Asks the guest to let go of a disk, which then leaves [`info`](Self::info)'s description.
    ///
    /// # Errors
    /// [`ControlError::NotFound`], or why it can't.
    fn remove_disk(&self, id: &str) -> Result<(), ControlError>;

    /// Plugs a network card in, verified beside [`info`](Self::info)'s description. `descriptors`
    /// are the tap's open queues: none, or as many as the card has queue pairs.
    ///
    /// # Errors
    /// When the tap can't be opened, or the VM is in no state for it.
    fn add_net(&self, net: Verified<Net>, descriptors: Vec<OwnedFd>) -> Result<(), ControlError>;

    /// Asks the guest to let go of a network card.
    ///
    /// # Errors
    /// [`ControlError::NotFound`], or why it can't.
    fn remove_net(&self, id: &str) -> Result<(), ControlError>;

    /// Saves the VM to a directory that it makes, or to the two files `(state, memory)`.
    ///
    /// # Errors
    /// When the VM is in no state for it, or the host fails. The VM is then as before.
    fn snapshot(
        &self,
        path: &Path,
        then: SnapshotThen,
        files: Option<(OwnedFd, OwnedFd)>,
    ) -> Result<(), ControlError>;

    /// Counts and measures at this moment.
    fn metrics(&self) -> Metrics;

    /// Readies the console for a client, and says where its connection shall go.
    ///
    /// # Errors
    /// [`ControlError::Conflict`] when there is no console.
    fn attach_console(&self) -> Result<Attach, ControlError>;
}

/// Why a machine did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// There is no device with this id. 404.
    #[error("there is no {kind} {id:?}")]
    NotFound {
        /// `disk` or `net`.
        kind: &'static str,
        /// The id.
        id: String,
    },
    /// The request makes no sense for this machine. 400.
    #[error("{0}")]
    Invalid(String),
    /// The machine is in no state for it. 409.
    #[error("{error}")]
    Conflict {
        /// What stands in the way.
        error: String,
        /// What would help.
        hint: Option<&'static str>,
    },
    /// Not now, but it may be done later. 503.
    #[error("{0}")]
    Busy(String),
    /// The host failed. 500.
    #[error("{what}")]
    Host {
        /// What was tried.
        what: String,
        /// What the host said.
        #[source]
        source: std::io::Error,
    },
}
