//! The bus: functions in slots, found by address.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_ioctls::VmFd;
use vmm_virtio::DeviceError;
use vmm_virtio::pci::{Bar, FUNCTION_SIZE, Function, Host};

use super::ecam::{Ecam, STRIDE};
use super::host::FunctionHost;
use super::host_bridge::HostBridge;
use super::windows;
use crate::interrupts::Interrupts;
use crate::memory::layout::{ECAM_SIZE, PCI_SLOT_COUNT};

/// Slots of the bus; the host bridge has the first.
pub const SLOT_COUNT: usize = PCI_SLOT_COUNT as usize;

/// Where in the guest's physical addresses the bus is.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The configuration space: [`ECAM_SIZE`] bytes from here.
    pub ecam: u64,
    /// KVM's number for the memory slot that shows it.
    pub ecam_memory_slot: u32,
    /// Where BARs are placed, and the guest is told that it may move them to.
    pub window: Range<u64>,
}

/// PCI bus 0.
pub struct Bus {
    vm: Arc<VmFd>,
    interrupts: Arc<Interrupts>,
    layout: Layout,
    ecam: Ecam,
    slots: [Slot; SLOT_COUNT],
    /// Held while functions are added, so that two do not get the same room.
    adding: Mutex<()>,
}

/// Why a function cannot be added, removed, saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The host refused memory for the configuration space.
    #[error("PCI configuration space")]
    Ecam(#[source] io::Error),
    /// There is a function already, or never can be.
    #[error("PCI slot {slot} is taken")]
    Taken {
        /// Which.
        slot: usize,
    },
    /// There is no such slot, or nothing in it.
    #[error("PCI slot {slot} is empty")]
    Empty {
        /// Which.
        slot: usize,
    },
    /// All slots are taken.
    #[error("all {} PCI slots are taken", SLOT_COUNT - 1)]
    Full,
    /// No room for a BAR.
    #[error("no room for a BAR of {size:#x} bytes in {window:#x?}")]
    NoRoom {
        /// Its size.
        size: u64,
        /// Where it should have been.
        window: Range<u64>,
    },
    /// A function does not pause, reset, save or restore.
    #[error("PCI slot {slot}: {source}")]
    Function {
        /// Its slot.
        slot: usize,
        /// Why.
        #[source]
        source: DeviceError,
    },
}

/// One slot.
struct Slot {
    function: Mutex<Option<Box<dyn Function>>>,
    /// The first and the last address of its BARs: where to look, not the truth. None if the first
    /// is above the last.
    first: AtomicU64,
    last: AtomicU64,
}

impl Bus {
    /// An empty bus, but for the host bridge.
    ///
    /// # Errors
    /// [`BusError::Ecam`] when the host or KVM refuse it.
    pub fn new(
        vm: Arc<VmFd>,
        interrupts: Arc<Interrupts>,
        layout: Layout,
    ) -> Result<Self, BusError> {
        let ecam = Ecam::new(Arc::clone(&vm), layout.ecam_memory_slot, layout.ecam)
            .map_err(BusError::Ecam)?;
        let slots = std::array::from_fn(|_| Slot::empty());
        let bus = Self { vm, interrupts, layout, ecam, slots, adding: Mutex::default() };
        bus.plug(0, Box::new(HostBridge::new()));
        Ok(bus)
    }

    /// What a function with `vector_count` MSI-X vectors needs of this machine.
    #[must_use]
    pub fn host(&self, vector_count: u16) -> Arc<dyn Host> {
        Arc::new(FunctionHost::new(Arc::clone(&self.vm), &self.interrupts, vector_count))
    }

    /// Puts `function` into `slot`, or into the first empty one, with its BARs placed. Returns the
    /// slot. The machine may be running: then it is the caller who tells the guest.
    ///
    /// # Errors
    /// [`BusError::Taken`], [`BusError::Full`] or [`BusError::NoRoom`]; the function is gone then.
    pub fn add(
        &self,
        slot: Option<usize>,
        mut function: Box<dyn Function>,
    ) -> Result<usize, BusError> {
        let _adding = self.adding.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = match slot {
            Some(slot) if slot >= SLOT_COUNT || self.is_taken(slot) => {
                return Err(BusError::Taken { slot });
            }
            Some(slot) => slot,
            None => (1..SLOT_COUNT).find(|&slot| !self.is_taken(slot)).ok_or(BusError::Full)?,
        };
        let mut taken = self.bar_ranges();
        let bars: Vec<_> = function.config().all_bars().collect();
        for Bar { index, size, .. } in bars {
            let window = &self.layout.window;
            let address = windows::place(window, size, &taken)
                .ok_or_else(|| BusError::NoRoom { size, window: window.clone() })?;
            function.place_bar(index, address);
            taken.push(address..address + size);
        }
        self.plug(slot, function);
        Ok(slot)
    }

    /// Takes the function out of `slot`; whoever drops it stops it. The guest has been asked to let
    /// go of it, or learns the hard way.
    ///
    /// # Errors
    /// [`BusError::Empty`], for the host bridge too.
    pub fn remove(&self, slot: usize) -> Result<Box<dyn Function>, BusError> {
        let entry = self.slots.get(slot).filter(|_| slot > 0).ok_or(BusError::Empty { slot })?;
        let mut function = entry.lock();
        let removed = function.take().ok_or(BusError::Empty { slot })?;
        entry.hide();
        self.ecam.empty(slot);
        Ok(removed)
    }

    /// Slots with a function, the host bridge's included.
    #[must_use]
    pub fn taken_slots(&self) -> Vec<usize> {
        (0..SLOT_COUNT).filter(|&slot| self.is_taken(slot)).collect()
    }

    /// A vCPU reads `data.len()` bytes at `address`; false if there is nothing of this bus.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        if let Some((slot, offset)) = self.ecam_place(address) {
            // Memory answers, except while it is being changed.
            data.fill(0xff);
            if let (Some(offset), Some(function)) = (offset, &*self.slots[slot].lock()) {
                function.config().read(offset, data);
            }
            return true;
        }
        let size = data.len();
        self.with_bar(address, size, |function, bar, offset| function.read_bar(bar, offset, data))
    }

    /// A vCPU writes `data` to `address`; false if there is nothing of this bus.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        if let Some((slot, offset)) = self.ecam_place(address) {
            if let Some(offset) = offset {
                self.write_config(slot, offset, data);
            }
            return true;
        }
        let size = data.len();
        self.with_bar(address, size, |function, bar, offset| function.write_bar(bar, offset, data))
    }

    /// Stops all functions, while no vCPU runs.
    ///
    /// # Errors
    /// [`BusError::Function`] when one does not stop within its time; all go on then.
    pub fn pause(&self) -> Result<(), BusError> {
        let result = self.for_each(|_, function| function.pause());
        if result.is_err() {
            self.resume();
        }
        result
    }

    /// Lets all functions go on.
    pub fn resume(&self) {
        for slot in &self.slots {
            if let Some(function) = &mut *slot.lock() {
                function.resume();
            }
        }
    }

    /// Power-on state of all functions, while no vCPU runs.
    ///
    /// # Errors
    /// [`BusError::Function`] when one does not stop within its time.
    pub fn reset(&self) -> Result<(), BusError> {
        self.for_each(|slot, function| {
            function.reset()?;
            self.show(slot, function);
            Ok(())
        })
    }

    /// What a snapshot keeps of each function, by slot, while they are paused.
    ///
    /// # Errors
    /// [`BusError::Function`] when one is in a state that cannot be moved.
    pub fn save(&self) -> Result<BTreeMap<usize, serde_json::Value>, BusError> {
        let mut states = BTreeMap::new();
        self.for_each(|slot, function| {
            states.insert(slot, function.save()?);
            Ok(())
        })?;
        Ok(states)
    }

    /// Takes what [`save`](Self::save) gave, before the guest runs; [`resume`](Self::resume) lets
    /// the functions go on.
    ///
    /// # Errors
    /// [`BusError::Function`] when a state is not for what is in its slot, [`BusError::Empty`] when
    /// there is nothing, [`BusError::Taken`] when there is something without a state.
    pub fn restore(&self, mut states: BTreeMap<usize, serde_json::Value>) -> Result<(), BusError> {
        for slot in self.taken_slots() {
            if !states.contains_key(&slot) {
                return Err(BusError::Taken { slot });
            }
        }
        self.for_each(|slot, function| {
            function.restore(states.remove(&slot).unwrap_or_default())?;
            self.show(slot, function);
            Ok(())
        })?;
        states.keys().next().map_or(Ok(()), |&slot| Err(BusError::Empty { slot }))
    }

    /// Calls `action` for each function, and stops at the first that fails.
    fn for_each(
        &self,
        mut action: impl FnMut(usize, &mut dyn Function) -> Result<(), DeviceError>,
    ) -> Result<(), BusError> {
        for (slot, entry) in self.slots.iter().enumerate() {
            if let Some(function) = &mut *entry.lock() {
                let result = action(slot, &mut **function);
                result.map_err(|source| BusError::Function { slot, source })?;
            }
        }
        Ok(())
    }

    /// The slot that `address` belongs to, and the offset within its first function if it is that.
    fn ecam_place(&self, address: u64) -> Option<(usize, Option<usize>)> {
        let offset = address.checked_sub(self.layout.ecam).filter(|&at| at < ECAM_SIZE)?;
        let offset = usize::try_from(offset).ok()?;
        Some((offset / STRIDE, Some(offset % STRIDE).filter(|&at| at < FUNCTION_SIZE)))
    }

    fn write_config(&self, slot: usize, offset: usize, data: &[u8]) {
        let entry = &self.slots[slot];
        if let Some(function) = &mut *entry.lock() {
            let changes = function.write_config(offset, data);
            self.ecam.update(slot, function.config().bytes(), offset, data.len());
            if changes.bars {
                entry.show(&**function);
            }
        }
    }

    /// Finds the function of which a BAR holds `size` bytes at `address`.
    fn with_bar(
        &self,
        address: u64,
        size: usize,
        access: impl FnOnce(&mut dyn Function, usize, u64),
    ) -> bool {
        for slot in self.slots.iter().filter(|slot| slot.may_hold(address)) {
            let Some(function) = &mut *slot.lock() else { continue };
            let within = |bar: &Bar| {
                let offset = address.checked_sub(bar.address)?;
                let left = bar.size.checked_sub(offset)?;
                (size as u64 <= left).then_some((bar.index, offset))
            };
            let place = function.config().bars().find_map(|bar| within(&bar));
            if let Some((bar, offset)) = place {
                access(&mut **function, bar, offset);
                return true;
            }
        }
        false
    }

    fn plug(&self, slot: usize, function: Box<dyn Function>) {
        let mut entry = self.slots[slot].lock();
        self.show(slot, &*function);
        *entry = Some(function);
    }

    /// Makes what the guest sees of `slot` what `function`, which is locked, says.
    fn show(&self, slot: usize, function: &dyn Function) {
        self.ecam.fill(slot, function.config().bytes());
        self.slots[slot].show(function);
    }

    fn is_taken(&self, slot: usize) -> bool {
        self.slots[slot].lock().is_some()
    }

    /// Where BARs are now, wherever the guest moved them.
    fn bar_ranges(&self) -> Vec<Range<u64>> {
        let mut ranges = Vec::new();
        for slot in &self.slots {
            if let Some(function) = &*slot.lock() {
                let bars = function.config().all_bars();
                ranges.extend(bars.map(|bar| bar.address..bar.address.saturating_add(bar.size)));
            }
        }
        ranges
    }
}

impl Slot {
    fn empty() -> Self {
        Self {
            function: Mutex::default(),
            first: AtomicU64::new(u64::MAX),
            last: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Box<dyn Function>>> {
        self.function.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn may_hold(&self, address: u64) -> bool {
        self.first.load(Ordering::Acquire) <= address
            && address <= self.last.load(Ordering::Acquire)
    }

    fn show(&self, function: &dyn Function) {
        let (mut first, mut last) = (u64::MAX, 0);
        for bar in function.config().bars() {
            first = first.min(bar.address);
            last = last.max(bar.address.saturating_add(bar.size - 1));
        }
        self.first.store(first, Ordering::Release);
        self.last.store(last, Ordering::Release);
    }

    fn hide(&self) {
        self.first.store(u64::MAX, Ordering::Release);
        self.last.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU8;

    use vmm_virtio::pci::{GuestPanic, Pvpanic};

    use super::*;
    use crate::testing;

    const ECAM: u64 = 0xe000_0000;
    const WINDOW: Range<u64> = 0xe010_0000..0xe010_0040;

    fn bus() -> Option<Bus> {
        let vm = testing::vm()?;
        let interrupts = Arc::new(Interrupts::new(Arc::clone(&vm)));
        let layout = Layout { ecam: ECAM, ecam_memory_slot: 9, window: WINDOW };
        Some(Bus::new(vm, interrupts, layout).unwrap())
    }

    /// A function with a BAR of 16 bytes, and how often the guest panicked.
    fn function() -> (Box<dyn Function>, Arc<AtomicU8>) {
        let count = Arc::new(AtomicU8::new(0));
        let counter = Arc::clone(&count);
        let pvpanic = Pvpanic::new(move |event| {
            assert_eq!(event, GuestPanic::Panicked);
            counter.fetch_add(1, Ordering::Relaxed);
        });
        (Box::new(pvpanic), count)
    }

    fn read<const N: usize>(bus: &Bus, address: u64) -> Option<[u8; N]> {
        let mut data = [0; N];
        bus.read(address, &mut data).then_some(data)
    }

    fn config(slot: u64, offset: u64) -> u64 {
        ECAM + slot * 0x8000 + offset
    }

    #[test]
    fn slots_are_filled_and_emptied() {
        let Some(bus) = bus() else { return };
        assert_eq!(bus.taken_slots(), [0]);
        assert_eq!(bus.add(None, function().0).unwrap(), 1);
        assert_eq!(bus.add(Some(30), function().0).unwrap(), 30);
        assert_eq!(bus.add(None, function().0).unwrap(), 2);
        for slot in [0, 1, 32] {
            assert!(matches!(bus.add(Some(slot), function().0), Err(BusError::Taken { .. })));
        }
        assert_eq!(bus.add(None, function().0).unwrap(), 3);
        let error = bus.add(None, function().0).unwrap_err().to_string();
        assert!(error.starts_with("no room for a BAR of 0x10 bytes"), "{error}");
        bus.remove(2).unwrap();
        assert_eq!(bus.taken_slots(), [0, 1, 3, 30]);
        for slot in [0, 2, 32] {
            assert!(matches!(bus.remove(slot), Err(BusError::Empty { .. })));
        }
        assert_eq!(bus.add(None, function().0).unwrap(), 2, "with the room of its predecessor");
    }

    #[test]
    fn configuration_space_is_found_by_slot() {
        let Some(bus) = bus() else { return };
        bus.add(Some(4), function().0).unwrap();
        assert_eq!(read(&bus, config(0, 0)), Some([0x36, 0x1b, 8, 0]));
        assert_eq!(read(&bus, config(4, 0)), Some([0x36, 0x1b, 0x11, 0]));
        assert_eq!(read(&bus, config(5, 0)), Some([0xff; 4]));
        assert_eq!(read(&bus, config(4, 0x1000)), Some([0xff; 4]), "another function");
        assert_eq!(read(&bus, config(4, 0xffc)), Some([0; 8]));
        assert_eq!(read::<4>(&bus, ECAM - 4), None);
        assert_eq!(read::<4>(&bus, ECAM + 0x10_0000), None);
        assert!(bus.write(config(5, 4), &[2]));
        assert!(bus.write(config(4, 0x1004), &[2]));
        assert_eq!(read(&bus, config(4, 4)), Some([0, 0]));
    }

    #[test]
    fn bars_are_found_where_the_guest_moved_them() {
        let Some(bus) = bus() else { return };
        let (function, count) = function();
        bus.add(None, function).unwrap();
        let at = WINDOW.start;
        assert!(!bus.write(at, &[1]), "memory decoding is off");
        bus.write(config(1, 4), &[2]);
        assert!(bus.write(at, &[1]));
        assert_eq!(read(&bus, at), Some([3, 0, 0, 0]));
        assert_eq!(read::<2>(&bus, at + 15), None, "beyond its end");
        bus.write(config(1, 0x14), &[1, 0, 0, 0]);
        assert!(!bus.write(at, &[1]));
        assert!(bus.write(at + (1 << 32), &[1]));
        bus.write(config(1, 0x10), &[0xff; 8]);
        assert!(bus.write(u64::MAX - 15, &[1]));
        assert_eq!(count.load(Ordering::Relaxed), 3);
        bus.remove(1).unwrap();
        assert!(!bus.write(u64::MAX - 15, &[1]));
    }

    #[test]
    fn a_snapshot_is_restored_into_the_same_slots() {
        let Some(old) = bus() else { return };
        old.add(Some(2), function().0).unwrap();
        old.write(config(2, 4), &[2]);
        old.write(config(2, 0x14), &[1, 0, 0, 0]);
        old.pause().unwrap();
        let saved = old.save().unwrap();
        old.resume();
        drop(old);
        let new = bus().unwrap();
        assert!(matches!(new.restore(saved.clone()), Err(BusError::Empty { slot: 2 })));
        new.add(Some(3), function().0).unwrap();
        assert!(matches!(new.restore(saved.clone()), Err(BusError::Taken { slot: 3 })));
        new.remove(3).unwrap();
        let (function, count) = function();
        new.add(Some(2), function).unwrap();
        new.restore(saved.clone()).unwrap();
        new.resume();
        assert!(new.write(WINDOW.start + (1 << 32), &[1]));
        assert_eq!(count.load(Ordering::Relaxed), 1);
        new.reset().unwrap();
        assert!(!new.write(WINDOW.start + (1 << 32), &[1]));
        let mut bad = saved;
        bad.insert(2, "nonsense".into());
        assert!(matches!(new.restore(bad), Err(BusError::Function { slot: 2, .. })));
    }
}
