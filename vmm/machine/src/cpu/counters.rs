//! How often, and why, virtual CPUs came back to us.

use vmm_virtio::Counter;

/// Why a virtual CPU left the guest for this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitKind {
    /// It read a port.
    PortRead,
    /// It wrote a port.
    PortWrite,
    /// It read where there is no memory.
    MmioRead,
    /// It wrote where there is no memory, or memory that it can't write.
    MmioWrite,
    /// We kicked it.
    Kicked,
    /// Anything else.
    Other,
}

impl ExitKind {
    /// All kinds.
    pub const ALL: [Self; 6] = [
        Self::PortRead,
        Self::PortWrite,
        Self::MmioRead,
        Self::MmioWrite,
        Self::Kicked,
        Self::Other,
    ];

    /// Its name in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PortRead => "port_read",
            Self::PortWrite => "port_write",
            Self::MmioRead => "mmio_read",
            Self::MmioWrite => "mmio_write",
            Self::Kicked => "kicked",
            Self::Other => "other",
        }
    }
}

/// Exits of all virtual CPUs of a machine, by kind.
#[derive(Clone, Debug, Default)]
pub struct ExitCounters {
    port_read: Counter,
    port_write: Counter,
    mmio_read: Counter,
    mmio_write: Counter,
    kicked: Counter,
    other: Counter,
}

impl ExitCounters {
    /// The counter of one kind.
    #[must_use]
    pub const fn of(&self, kind: ExitKind) -> &Counter {
        match kind {
            ExitKind::PortRead => &self.port_read,
            ExitKind::PortWrite => &self.port_write,
            ExitKind::MmioRead => &self.mmio_read,
            ExitKind::MmioWrite => &self.mmio_write,
            ExitKind::Kicked => &self.kicked,
            ExitKind::Other => &self.other,
        }
    }

    /// The sum of all.
    #[must_use]
    pub fn total(&self) -> u64 {
        ExitKind::ALL.into_iter().map(|kind| self.of(kind).value()).sum()
    }
}
