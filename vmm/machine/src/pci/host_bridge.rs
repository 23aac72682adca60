//! The host bridge in slot 0: a header, and nothing behind it.
//!
//! Drivers look for its class to believe in the bus. QEMU's generic bridge is what guests know to
//! have no quirks.

use vmm_virtio::DeviceError;
use vmm_virtio::pci::{Changes, Config, Function, Identity};

/// The function.
pub(super) struct HostBridge(Config);

impl HostBridge {
    pub(super) fn new() -> Self {
        Self(Config::new(&Identity {
            vendor: 0x1b36,
            device: 0x0008,
            class: 0x06_0000,
            revision: 0,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        }))
    }
}

impl Function for HostBridge {
    fn config(&self) -> &Config {
        &self.0
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) -> Changes {
        self.0.write(offset, data)
    }

    fn place_bar(&mut self, _: usize, _: u64) {}

    fn read_bar(&mut self, _: usize, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write_bar(&mut self, _: usize, _: u64, _: &[u8]) {}

    fn reset(&mut self) -> Result<(), DeviceError> {
        self.0.reset();
        Ok(())
    }

    fn save(&self) -> Result<serde_json::Value, DeviceError> {
        Ok(self.0.bytes().into())
    }

    fn restore(&mut self, state: serde_json::Value) -> Result<(), DeviceError> {
        let bytes: Vec<u8> = serde_json::from_value(state)
            .map_err(|error| DeviceError::State(format!("host bridge: {error}")))?;
        self.0.restore(&bytes)
    }
}
