//! Ports: what is left of the PC.
//!
//! | port | what |
//! |---|---|
//! | 0x3f8..0x400 | serial port, when there is one |
//! | 0x60, 0x64 | keyboard controller: reads 0; command 0xfe resets |
//! | 0x70, 0x71 | real-time clock: reads 0 |
//! | 0xcf8..0xd00 | PCI configuration of old: nothing is there |
//! | 0x600..0x620 | ACPI, see [`crate::acpi`] |
//! | others | reads all ones, writes are lost |
//!
//! The clock answers zero because Linux otherwise waits a second for an update that never ends;
//! the keyboard controller does because Linux polls it before a reset, whatever it was told of it.
//! PCI's type 1 access has no state: an address that was written can't be read back, which tells
//! whoever probes that it isn't there.

mod serial;

use serde::{Deserialize, Serialize};

use serial::SavedSerial;
pub(crate) use serial::SerialConsole;
pub use serial::{SerialInput, Sink};

use crate::acpi::{self, Registers, RegistersState};
use crate::end::{Ender, Exit};

const KEYBOARD_DATA: u16 = 0x60;
const KEYBOARD_COMMAND: u16 = 0x64;
const CLOCK_INDEX: u16 = 0x70;
const CLOCK_DATA: u16 = 0x71;
/// The keyboard controller's command that pulls the CPU's reset line.
const PULSE_RESET: u8 = 0xfe;

/// All ports of a machine.
pub(crate) struct Ports {
    pub(crate) serial: Option<SerialConsole>,
    pub(crate) acpi: Registers,
    pub(crate) ender: Ender,
}

/// What a snapshot keeps of the ports.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PortsState {
    acpi: RegistersState,
    serial: Option<SavedSerial>,
}

impl Ports {
    pub(crate) fn read(&self, port: u16, data: &mut [u8]) {
        match port {
            serial::PORT_FIRST..=serial::PORT_LAST => match &self.serial {
                // Its registers are bytes; a string instruction reads one of them many times.
                Some(serial) => data.fill_with(|| serial.read(port)),
                None => data.fill(0xff),
            },
            acpi::PORT_FIRST..=acpi::PORT_LAST => self.acpi.read(port, data),
            KEYBOARD_DATA | KEYBOARD_COMMAND | CLOCK_INDEX | CLOCK_DATA => data.fill(0),
            _ => data.fill(0xff),
        }
    }

    pub(crate) fn write(&self, port: u16, data: &[u8]) {
        match port {
            serial::PORT_FIRST..=serial::PORT_LAST => {
                if let Some(serial) = &self.serial {
                    data.iter().for_each(|&byte| serial.write(port, byte));
                }
            }
            acpi::PORT_FIRST..=acpi::PORT_LAST => self.acpi.write(port, data),
            KEYBOARD_COMMAND if data.first() == Some(&PULSE_RESET) => self.ender.end(Exit::Reset),
            _ => {}
        }
    }

    /// What a snapshot keeps.
    pub(crate) fn save(&self) -> PortsState {
        let serial = self.serial.as_ref().map(SerialConsole::save);
        PortsState { acpi: self.acpi.save(), serial }
    }

    /// Takes what [`save`](Self::save) gave; false if that is of a machine with other ports, or
    /// makes no sense.
    pub(crate) fn restore(&self, state: &PortsState) -> bool {
        self.acpi.restore(&state.acpi);
        match (&self.serial, &state.serial) {
            (Some(serial), Some(state)) => serial.restore(state),
            (None, None) => true,
            _ => false,
        }
    }

    /// As after power-on.
    pub(crate) fn reset(&self) {
        self.acpi.reset();
        if let Some(serial) = &self.serial {
            serial.reset();
        }
    }
}
