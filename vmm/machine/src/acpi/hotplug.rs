//! Slots of the PCI bus that change while the guest runs.
//!
//! A device that was put into a slot is announced; a device that shall go is asked for, and is gone
//! when the guest has ejected it. A guest that never answers keeps the device; one that ejects what
//! nobody asked back is not listened to.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

use super::events::{Event, Events};
use crate::memory::layout::PCI_SLOT_COUNT;

/// Called with the slot that the guest has ejected, from the thread of the CPU that did it: it
/// should pass the news on rather than act.
pub type EjectListener = Box<dyn Fn(u8) + Send + Sync>;

/// The slots, shared by the guest's registers and whoever plugs.
#[derive(Clone)]
pub struct Hotplug(Arc<Slots>);

struct Slots {
    events: Events,
    up: AtomicU32,
    down: AtomicU32,
    /// Asked for, not yet ejected.
    leaving: AtomicU32,
    listener: OnceLock<EjectListener>,
}

/// What a snapshot keeps of the slots: a bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SlotsState {
    up: u32,
    down: u32,
    leaving: u32,
}

impl Hotplug {
    pub(crate) fn new(events: Events) -> Self {
        Self(Arc::new(Slots {
            events,
            up: AtomicU32::new(0),
            down: AtomicU32::new(0),
            leaving: AtomicU32::new(0),
            listener: OnceLock::new(),
        }))
    }

    /// Sets who hears of ejected slots. The first stays.
    pub fn on_eject(&self, listener: EjectListener) {
        // Only a mistake of ours would set it twice, and it harms nobody.
        let _ = self.0.listener.set(listener);
    }

    /// Announces the device that is now in `slot`.
    pub fn plug(&self, slot: u8) {
        self.0.up.fetch_or(bit(slot), Ordering::SeqCst);
        self.0.events.raise(Event::Slots);
    }

    /// Asks the guest to let go of the device in `slot`.
    pub fn unplug(&self, slot: u8) {
        self.0.leaving.fetch_or(bit(slot), Ordering::SeqCst);
        self.0.down.fetch_or(bit(slot), Ordering::SeqCst);
        self.0.events.raise(Event::Slots);
    }

    pub(super) fn take_up(&self) -> u32 {
        self.0.up.swap(0, Ordering::SeqCst)
    }

    pub(super) fn take_down(&self) -> u32 {
        self.0.down.swap(0, Ordering::SeqCst)
    }

    /// The guest has let go of the devices in these slots.
    pub(super) fn ejected(&self, slots: u32) {
        let left = self.0.leaving.fetch_and(!slots, Ordering::SeqCst) & slots;
        let Some(listener) = self.0.listener.get() else { return };
        (0..PCI_SLOT_COUNT).filter(|&slot| left & bit(slot) != 0).for_each(listener);
    }

    /// What a snapshot keeps.
    pub(super) fn save(&self) -> SlotsState {
        let of = |slots: &AtomicU32| slots.load(Ordering::SeqCst);
        SlotsState { up: of(&self.0.up), down: of(&self.0.down), leaving: of(&self.0.leaving) }
    }

    /// Takes what [`save`](Self::save) gave. A device that was asked back still may go, and nobody
    /// else's: who hears of it looks what is in the slot.
    pub(super) fn restore(&self, state: SlotsState) {
        self.0.up.store(state.up, Ordering::SeqCst);
        self.0.down.store(state.down, Ordering::SeqCst);
        self.0.leaving.store(state.leaving, Ordering::SeqCst);
    }

    /// Forgets what the guest was told. A slot whose device was to go is free: the next kernel
    /// looks for itself.
    pub(super) fn reset(&self) {
        self.0.up.store(0, Ordering::SeqCst);
        self.0.down.store(0, Ordering::SeqCst);
        self.ejected(u32::MAX);
    }
}

impl fmt::Debug for Hotplug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hotplug").field("leaving", &self.0.leaving).finish_non_exhaustive()
    }
}

const fn bit(slot: u8) -> u32 {
    1 << (slot % PCI_SLOT_COUNT)
}
