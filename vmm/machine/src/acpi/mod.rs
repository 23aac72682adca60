//! ACPI, the hardware-reduced kind: how a guest finds its CPUs and buses, and how it is switched
//! off, reset, and told of events.
//!
//! [`tables`] go into memory before the first instruction. The registers that they speak of are
//! ports, since a port's access costs less than one to memory, which someone must decode:
//!
//! | port | size | access | register |
//! |---|---|---|---|
//! | 0x600 | 1 | write | sleep control: 0x34 (enable, type 5) switches off |
//! | 0x601 | 1 | read | sleep status: always 0 |
//! | 0x602 | 1 | write | reset: 1 resets |
//! | 0x604 | 4 | read | events that are pending; reading clears them |
//! | 0x608 | 4 | read | slots in which a device appeared; reading clears them |
//! | 0x60c | 4 | read | slots whose device shall go; reading clears them |
//! | 0x610 | 4 | write | slots whose device the guest has let go of |
//!
//! One device is memory: [`GENERATION_ADDRESS`] has 16 bytes that are other ones whenever the guest
//! is restored from a snapshot (Microsoft, *Virtual Machine Generation ID*, 2012). A guest with a
//! driver for it stirs its random numbers then.
//!
//! [`GENERATION_ADDRESS`]: crate::memory::layout::GENERATION_ADDRESS
//!
//! Events reach the guest through the generic event device (ACPI 6.5 §5.6.9), whose interrupt says
//! only that there is something: its method reads the register and notifies whom it concerns.

mod dsdt;
mod events;
mod hotplug;
pub mod tables;

use serde::{Deserialize, Serialize};

pub(crate) use events::{Event, Events};
use hotplug::SlotsState;
pub use hotplug::{EjectListener, Hotplug};

use crate::end::{Ender, Exit};

pub(crate) const PORT_FIRST: u16 = 0x600;
pub(crate) const PORT_LAST: u16 = 0x61f;
const SLEEP_CONTROL_PORT: u16 = 0x600;
const SLEEP_STATUS_PORT: u16 = 0x601;
const RESET_PORT: u16 = 0x602;
const EVENTS_PORT: u16 = 0x604;
const SLOTS_UP_PORT: u16 = 0x608;
const SLOTS_DOWN_PORT: u16 = 0x60c;
const SLOTS_EJECT_PORT: u16 = 0x610;

/// What the guest writes to reset.
const RESET_VALUE: u8 = 1;
/// The sleep type of S5, "soft off"; the only state there is.
const SLEEP_TYPE_OFF: u8 = 5;
/// Sleep control register (ACPI 6.5 §4.8.3.7): the type in bits 4..2, enable in bit 5.
const SLEEP_OFF: u8 = SLEEP_TYPE_OFF << 2 | 1 << 5;
const SLEEP_BITS: u8 = 0b11_1100;

/// All the firmware there is, in 16-bit code at the reset vector: it writes [`RESET_VALUE`] to
/// [`RESET_PORT`] and halts.
///
/// Linux on hardware-reduced ACPI takes it for granted that there is EFI to reboot by; where there
/// is none, it falls back to real mode and jumps to the vector, past the reset register.
pub(crate) const RESET_CODE: [u8; 9] = {
    let [low, high] = RESET_PORT.to_le_bytes();
    // mov al, 1; mov dx, 0x602; out dx, al; hlt; jmp -3
    [0xb0, RESET_VALUE, 0xba, low, high, 0xee, 0xf4, 0xeb, 0xfd]
};

/// The registers of the table above.
pub(crate) struct Registers {
    pub(crate) events: Events,
    pub(crate) hotplug: Hotplug,
    pub(crate) ender: Ender,
}

/// What a snapshot keeps of the registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RegistersState {
    /// Events that are pending.
    events: u32,
    slots: SlotsState,
}

impl Registers {
    pub(crate) fn read(&self, port: u16, data: &mut [u8]) {
        let value = match port {
            EVENTS_PORT => self.events.take(),
            SLOTS_UP_PORT => self.hotplug.take_up(),
            SLOTS_DOWN_PORT => self.hotplug.take_down(),
            _ => 0,
        };
        let bytes = value.to_le_bytes().into_iter().chain(std::iter::repeat(0));
        data.iter_mut().zip(bytes).for_each(|(byte, value)| *byte = value);
    }

    pub(crate) fn write(&self, port: u16, data: &[u8]) {
        let first = data.first().copied().unwrap_or(0);
        match port {
            SLEEP_CONTROL_PORT if first & SLEEP_BITS == SLEEP_OFF => self.ender.end(Exit::Off),
            RESET_PORT if first == RESET_VALUE => self.ender.end(Exit::Reset),
            SLOTS_EJECT_PORT => {
                let mut slots = [0; 4];
                slots.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
                self.hotplug.ejected(u32::from_le_bytes(slots));
            }
            _ => {}
        }
    }

    /// What a snapshot keeps.
    pub(crate) fn save(&self) -> RegistersState {
        RegistersState { events: self.events.pending(), slots: self.hotplug.save() }
    }

    /// Takes what [`save`](Self::save) gave.
    pub(crate) fn restore(&self, state: &RegistersState) {
        self.events.set_pending(state.events);
        self.hotplug.restore(state.slots);
    }

    /// As after power-on.
    pub(crate) fn reset(&self) {
        self.events.take();
        self.hotplug.reset();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use vmm_virtio::Counter;

    use super::*;
    use crate::line::Line;

    struct Fixture {
        registers: Registers,
        interrupts: Counter,
        ends: Arc<Mutex<Vec<Exit>>>,
    }

    fn fixture() -> Fixture {
        let interrupts = Counter::default();
        let events = Events::new(Line::counting(interrupts.clone()));
        let (ender, ends) = Ender::recording();
        let hotplug = Hotplug::new(events.clone());
        Fixture { registers: Registers { events, hotplug, ender }, interrupts, ends }
    }

    fn read(registers: &Registers, port: u16) -> u32 {
        let mut data = [0xee; 4];
        registers.read(port, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn only_the_right_values_end_the_guest() {
        let Fixture { registers, ends, .. } = fixture();
        for value in 0..=255_u8 {
            registers.write(SLEEP_CONTROL_PORT, &[value]);
            registers.write(RESET_PORT, &[value]);
        }
        registers.write(SLEEP_CONTROL_PORT, &[]);
        registers.write(SLEEP_STATUS_PORT, &[0x34]);
        let ends = ends.lock().unwrap();
        let offs = ends.iter().filter(|exit| **exit == Exit::Off).count();
        assert_eq!((offs, ends.len()), (16, 17), "bits 7, 6, 1 and 0 say nothing");
    }

    #[test]
    fn an_event_interrupts_and_is_read_once() {
        let Fixture { registers, interrupts, .. } = fixture();
        registers.events.raise(Event::PowerButton);
        assert_eq!(interrupts.value(), 1);
        assert_eq!(read(&registers, EVENTS_PORT), 1);
        assert_eq!(read(&registers, EVENTS_PORT), 0);
    }

    #[test]
    fn slots_come_and_go() {
        let Fixture { registers, interrupts, .. } = fixture();
        let gone = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&gone);
        registers.hotplug.on_eject(Box::new(move |slot| sink.lock().unwrap().push(slot)));
        registers.hotplug.plug(3);
        registers.hotplug.plug(31);
        registers.hotplug.unplug(4);
        assert_eq!(interrupts.value(), 3);
        assert_eq!(read(&registers, EVENTS_PORT), 2);
        assert_eq!(read(&registers, SLOTS_UP_PORT), 1 << 31 | 1 << 3);
        assert_eq!(read(&registers, SLOTS_UP_PORT), 0);
        assert_eq!(read(&registers, SLOTS_DOWN_PORT), 1 << 4);
        registers.write(SLOTS_EJECT_PORT, &(1_u32 << 4 | 1 << 3).to_le_bytes());
        assert_eq!(*gone.lock().unwrap(), [4], "a slot that nobody asked back is not ejected");
        registers.write(SLOTS_EJECT_PORT, &(1_u32 << 4).to_le_bytes());
        assert_eq!(*gone.lock().unwrap(), [4], "nor is one twice");
    }

    #[test]
    fn a_device_unplugged_before_the_guest_saw_it_still_gets_both_notices() {
        let Fixture { registers, .. } = fixture();
        registers.hotplug.plug(5);
        registers.hotplug.unplug(5);
        assert_eq!((read(&registers, SLOTS_UP_PORT), read(&registers, SLOTS_DOWN_PORT)), (32, 32));
    }

    #[test]
    fn a_snapshot_keeps_what_the_guest_has_not_read_yet() {
        let old = fixture().registers;
        old.events.raise(Event::PowerButton);
        old.hotplug.plug(3);
        old.hotplug.unplug(4);
        let Fixture { registers, interrupts, .. } = fixture();
        registers.restore(&old.save());
        assert_eq!(registers.save(), old.save());
        assert_eq!(interrupts.value(), 0, "the controller has them");
        assert_eq!(read(&registers, EVENTS_PORT), 3);
        assert_eq!((read(&registers, SLOTS_UP_PORT), read(&registers, SLOTS_DOWN_PORT)), (8, 16));
        let gone = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&gone);
        registers.hotplug.on_eject(Box::new(move |slot| sink.lock().unwrap().push(slot)));
        registers.write(SLOTS_EJECT_PORT, &u32::MAX.to_le_bytes());
        assert_eq!(*gone.lock().unwrap(), [4]);
    }

    #[test]
    fn every_width_is_answered_and_reset_forgets() {
        let Fixture { registers, .. } = fixture();
        for port in PORT_FIRST..=PORT_LAST {
            for width in [0, 1, 2, 4, 8, 64] {
                let mut data = vec![0xee; width];
                registers.read(port, &mut data);
                assert!(data.iter().all(|&byte| byte == 0), "{port:#x}");
                registers.write(port, &vec![0; width]);
            }
        }
        registers.hotplug.plug(1);
        registers.hotplug.unplug(2);
        registers.reset();
        for port in [EVENTS_PORT, SLOTS_UP_PORT, SLOTS_DOWN_PORT] {
            assert_eq!(read(&registers, port), 0);
        }
    }
}
