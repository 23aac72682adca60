//! pvpanic: the register by which a guest says that it panicked (QEMU's `docs/specs/pvpanic`).
//!
//! One byte in a small BAR. Reading it tells which events can be reported, writing it reports
//! them. The guest is none the wiser afterwards: what follows is the machine's to decide.

use super::{Changes, Config, Function, Identity};
use crate::DeviceError;

const EVENT_PANICKED: u8 = 1;
const EVENT_CRASH_LOADED: u8 = 2;
const BAR_SIZE: u64 = 16;

/// What a guest reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestPanic {
    /// It panicked, and does nothing about it.
    Panicked,
    /// It panicked, and its crash kernel takes over.
    CrashLoaded,
}

/// The function.
pub struct Pvpanic {
    config: Config,
    report: Box<dyn Fn(GuestPanic) + Send>,
}

impl Pvpanic {
    /// Calls `report`, on a vCPU's thread, for each event that the guest reports.
    #[must_use]
    pub fn new(report: impl Fn(GuestPanic) + Send + 'static) -> Self {
        let mut config = Config::new(&Identity {
            vendor: 0x1b36,
            device: 0x0011,
            class: 0x08_8000,
            revision: 1,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        });
        config.add_bar(0, BAR_SIZE);
        Self { config, report: Box::new(report) }
    }
}

impl Function for Pvpanic {
    fn config(&self) -> &Config {
        &self.config
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) -> Changes {
        self.config.write(offset, data)
    }

    fn place_bar(&mut self, bar: usize, address: u64) {
        self.config.place_bar(bar, address);
    }

    fn read_bar(&mut self, _: usize, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (0, Some(first)) = (offset, data.first_mut()) {
            *first = EVENT_PANICKED | EVENT_CRASH_LOADED;
        }
    }

    fn write_bar(&mut self, _: usize, offset: u64, data: &[u8]) {
        let events = data.first().filter(|_| offset == 0).copied().unwrap_or(0);
        if events & EVENT_CRASH_LOADED != 0 {
            (self.report)(GuestPanic::CrashLoaded);
        } else if events & EVENT_PANICKED != 0 {
            (self.report)(GuestPanic::Panicked);
        }
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        self.config.reset();
        Ok(())
    }

    fn save(&self) -> Result<serde_json::Value, DeviceError> {
        Ok(self.config.bytes().into())
    }

    fn restore(&mut self, state: serde_json::Value) -> Result<(), DeviceError> {
        let bytes: Vec<u8> = serde_json::from_value(state)
            .map_err(|error| DeviceError::State(format!("pvpanic: {error}")))?;
        self.config.restore(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn events_are_offered_and_reported() {
        let events = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&events);
        let mut function = Pvpanic::new(move |event| log.lock().unwrap().push(event));
        let mut data = [9; 2];
        function.read_bar(0, 0, &mut data);
        assert_eq!(data, [3, 0]);
        function.read_bar(0, 1, &mut data);
        assert_eq!(data, [0, 0]);
        for (offset, byte) in [(0, 1), (0, 2), (1, 1), (0, 0), (0, 0x80)] {
            function.write_bar(0, offset, &[byte, 0xff]);
        }
        assert_eq!(*events.lock().unwrap(), [GuestPanic::Panicked, GuestPanic::CrashLoaded]);
    }

    #[test]
    fn a_snapshot_keeps_its_bar() {
        let mut function = Pvpanic::new(|_| {});
        function.place_bar(0, 0x1000);
        function.write_config(4, &[2]);
        let mut other = Pvpanic::new(|_| {});
        other.restore(function.save().unwrap()).unwrap();
        assert_eq!(other.config().bars().next().unwrap().address, 0x1000);
        assert!(other.restore("nonsense".into()).is_err());
        other.reset().unwrap();
        assert_eq!(other.config().bars().count(), 0);
    }
}
