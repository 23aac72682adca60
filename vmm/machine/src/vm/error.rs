//! Why a VM cannot be started.

use std::io;

use vmm_virtio::DeviceError;
use vmm_virtio::socket_file::ListenError;

use crate::MachineError;
use crate::boot::BootError;
use crate::jail::JailError;
use crate::kvm::KvmError;
use crate::pci::BusError;
use crate::snapshot::SnapshotError;

/// Why a VM cannot be started, or not be reset.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// There is no KVM for us.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Memory, vCPUs or the kernel.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// A file to boot.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The PCI bus.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The jail.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// The API's socket.
    #[error(transparent)]
    Api(#[from] ListenError),
    /// The snapshot.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A device.
    #[error("{device}")]
    Device {
        /// Which: its flag and its id.
        device: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Something else that the host refused.
    #[error("cannot {what}")]
    Host {
        /// What was tried.
        what: String,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

impl VmError {
    /// What to do about it, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Kvm(error) => Some(error.hint()),
            Self::Jail(error) => error.hint().map(str::to_owned),
            _ => None,
        }
    }

    pub(super) fn host(what: &str) -> impl FnOnce(io::Error) -> Self {
        let what = what.to_owned();
        move |source| Self::Host { what, source }
    }

    /// Names the device in an error of whatever made it.
    pub(super) fn device<E>(device: impl Into<String>) -> impl FnOnce(E) -> Self
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let device = device.into();
        move |source| Self::Device { device, source: Box::new(source) }
    }
}

impl From<DeviceError> for VmError {
    fn from(error: DeviceError) -> Self {
        Self::Device { device: "a device".to_owned(), source: Box::new(error) }
    }
}
