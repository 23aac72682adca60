//! Interrupts that are messages: KVM's routing table, and the eventfds that raise its entries.
//!
//! KVM knows interrupts by number (GSI). A table says what each does: numbers 0 to 23 are the pins
//! of the interrupt controllers in the kernel, those above are ours, each a message that a guest
//! wrote into some MSI-X table. An eventfd bound to a number (`KVM_IRQFD`) raises it by one cheap
//! write, from any thread.
//!
//! `KVM_SET_GSI_ROUTING` replaces the whole table and waits until no processor uses the old one,
//! so it is called once for all that a device connects. What nothing is prepared for goes out
//! through `KVM_SIGNAL_MSI`, which needs no table.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_irqchip,
    kvm_irq_routing_msi, kvm_msi,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_virtio::pci::Message;

use crate::memory::layout::gsi::PIN_COUNT;

/// Pins of the two 8259s, which hear the same numbers.
const PIC_PIN_COUNT: u32 = 8;
/// Entries of the table, on x86 (`KVM_MAX_IRQ_ROUTES`).
const ROUTE_COUNT_MAX: u32 = 4096;
/// The number above the last one that the table has room for, beside the pins' entries.
const GSI_END: u32 = ROUTE_COUNT_MAX - 2 * PIC_PIN_COUNT;

/// The routing table of one VM with an interrupt controller in the kernel.
pub struct Interrupts {
    vm: Arc<VmFd>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    /// By number.
    messages: BTreeMap<u32, Message>,
    released: Vec<u32>,
    allocated_count: u32,
}

/// The interrupts of one function, by vector.
pub struct Lines {
    interrupts: Arc<Interrupts>,
    /// Made when first connected, and kept: what changes later is the table.
    lines: Box<[OnceLock<Line>]>,
}

/// A number and the eventfd that raises it.
struct Line {
    interrupts: Arc<Interrupts>,
    gsi: u32,
    signal: EventFd,
}

impl Interrupts {
    /// The table of `vm`, which has its interrupt controller already.
    #[must_use]
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, table: Mutex::default() }
    }

    /// Interrupts for a function with `count` vectors. Costs nothing until they are connected.
    #[must_use]
    pub fn lines(self: &Arc<Self>, count: u16) -> Lines {
        let lines = (0..count).map(|_| OnceLock::new()).collect();
        Lines { interrupts: Arc::clone(self), lines }
    }

    /// Gives numbers their messages, by one call; if that fails, none.
    fn route(&self, routes: &[(u32, Message)]) -> io::Result<()> {
        let mut table = self.table();
        let old = table.messages.clone();
        table.messages.extend(routes.iter().copied());
        let result = table.to_kvm().and_then(|table| Ok(self.vm.set_gsi_routing(&table)?));
        if result.is_err() {
            table.messages = old;
        }
        result
    }

    fn allocate(&self) -> io::Result<u32> {
        let mut table = self.table();
        if let Some(gsi) = table.released.pop() {
            return Ok(gsi);
        }
        let gsi = PIN_COUNT + table.allocated_count;
        if gsi >= GSI_END {
            return Err(io::Error::other("all interrupt numbers are taken"));
        }
        table.allocated_count += 1;
        Ok(gsi)
    }

    /// The number may be given to another. KVM forgets its message with the next call.
    fn release(&self, gsi: u32) {
        let mut table = self.table();
        table.messages.remove(&gsi);
        table.released.push(gsi);
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lines {
    /// Prepares vectors so that [`send`](Self::send) delivers these messages. A function's vectors
    /// are connected by one thread at a time.
    ///
    /// # Errors
    /// When KVM refuses, or there are no numbers or descriptors left. Nothing has changed then.
    pub fn connect(&self, vectors: &[(u16, Message)]) -> io::Result<()> {
        let mut routes = Vec::with_capacity(vectors.len());
        let mut new = Vec::new();
        for &(index, message) in vectors {
            let slot = self.lines.get(usize::from(index)).ok_or(io::ErrorKind::InvalidInput)?;
            let gsi = if let Some(line) = slot.get() {
                line.gsi
            } else {
                let line = Line::new(&self.interrupts)?;
                let gsi = line.gsi;
                new.push((slot, line));
                gsi
            };
            routes.push((gsi, message));
        }
        self.interrupts.route(&routes)?;
        for (slot, line) in new {
            let _ = slot.set(line);
        }
        Ok(())
    }

    /// Delivers the message that vector `index` was connected to.
    pub fn send(&self, index: u16) {
        if let Some(line) = self.lines.get(usize::from(index)).and_then(OnceLock::get) {
            // Fails only when it was raised 2^64 times unseen.
            let _ = line.signal.write(1);
        }
    }

    /// Delivers a message that nothing was prepared for.
    pub fn send_unprepared(&self, message: Message) {
        let (address_lo, address_hi) = halves(message.address);
        let msi = kvm_msi { address_lo, address_hi, data: message.data, ..kvm_msi::default() };
        if let Err(error) = self.interrupts.vm.signal_msi(msi) {
            tracing::debug!(?message, %error, "the guest's message means nothing");
        }
    }
}

impl Line {
    /// Bound to its number, which does nothing until it has a route.
    fn new(interrupts: &Arc<Interrupts>) -> io::Result<Self> {
        let signal = EventFd::new(EFD_NONBLOCK)?;
        let gsi = interrupts.allocate()?;
        if let Err(error) = interrupts.vm.register_irqfd(&signal, gsi) {
            interrupts.release(gsi);
            return Err(error.into());
        }
        Ok(Self { interrupts: Arc::clone(interrupts), gsi, signal })
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Err(error) = self.interrupts.vm.unregister_irqfd(&self.signal, self.gsi) {
            // The number stays taken, since KVM still has something bound to it.
            tracing::warn!(gsi = self.gsi, %error, "an interrupt cannot be unbound");
            return;
        }
        self.interrupts.release(self.gsi);
    }
}

impl Table {
    /// As KVM wants it: the pins, as they are by default, and our messages.
    fn to_kvm(&self) -> io::Result<KvmIrqRouting> {
        let pins = (0..PIN_COUNT).flat_map(|gsi| {
            let pic = match gsi {
                0..PIC_PIN_COUNT => Some((KVM_IRQCHIP_PIC_MASTER, gsi)),
                PIC_PIN_COUNT..16 => Some((KVM_IRQCHIP_PIC_SLAVE, gsi - PIC_PIN_COUNT)),
                _ => None,
            };
            let chips = std::iter::once((KVM_IRQCHIP_IOAPIC, gsi)).chain(pic);
            chips.map(move |(irqchip, pin)| {
                let mut entry = kvm_irq_routing_entry {
                    gsi,
                    type_: KVM_IRQ_ROUTING_IRQCHIP,
                    ..kvm_irq_routing_entry::default()
                };
                entry.u.irqchip = kvm_irq_routing_irqchip { irqchip, pin };
                entry
            })
        });
        let messages = self.messages.iter().map(|(&gsi, message)| {
            let (address_lo, address_hi) = halves(message.address);
            let data = message.data;
            let mut entry = kvm_irq_routing_entry {
                gsi,
                type_: KVM_IRQ_ROUTING_MSI,
                ..kvm_irq_routing_entry::default()
            };
            entry.u.msi =
                kvm_irq_routing_msi { address_lo, address_hi, data, ..Default::default() };
            entry
        });
        let entries: Vec<_> = pins.chain(messages).collect();
        KvmIrqRouting::from_entries(&entries)
            .map_err(|error| io::Error::other(format!("{} routes: {error:?}", entries.len())))
    }
}

/// Low and high.
const fn halves(value: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn message(data: u32) -> Message {
        Message { address: 0xfee0_0000, data }
    }

    fn numbers(interrupts: &Interrupts) -> Vec<u32> {
        interrupts.table().messages.keys().copied().collect()
    }

    #[test]
    fn the_pins_stay_as_they_are() {
        let entries = Table::default().to_kvm().unwrap();
        let entries = entries.as_slice();
        assert_eq!(entries.len(), 40);
        let pin = |at: usize| {
            // SAFETY: all of these are entries of interrupt controllers.
            let pin = unsafe { entries[at].u.irqchip };
            (entries[at].gsi, pin.irqchip, pin.pin)
        };
        assert_eq!((pin(8), pin(9)), ((4, 2, 4), (4, 0, 4)));
        assert_eq!((pin(18), pin(19)), ((9, 2, 9), (9, 1, 1)));
        assert_eq!(pin(39), (23, 2, 23));
    }

    #[test]
    fn numbers_come_and_go_with_their_function() {
        let Some(vm) = testing::vm() else { return };
        let interrupts = Arc::new(Interrupts::new(vm));
        let first = interrupts.lines(2);
        first.connect(&[(0, message(40)), (1, message(41))]).unwrap();
        first.connect(&[(1, message(42))]).unwrap();
        assert_eq!(numbers(&interrupts), [24, 25]);
        first.connect(&[(2, message(43))]).unwrap_err();
        let second = interrupts.lines(1);
        second.connect(&[(0, message(50))]).unwrap();
        drop(first);
        assert_eq!(numbers(&interrupts), [26]);
        let third = interrupts.lines(3);
        third.connect(&[(0, message(1)), (1, message(2)), (2, message(3))]).unwrap();
        assert_eq!(numbers(&interrupts), [24, 25, 26, 27]);
        third.send(0);
        third.send(3);
        third.send_unprepared(message(50));
    }

    #[test]
    fn there_is_an_end_to_numbers() {
        let Some(vm) = testing::vm() else { return };
        let interrupts = Interrupts::new(vm);
        let count = (0..2 * ROUTE_COUNT_MAX).take_while(|_| interrupts.allocate().is_ok()).count();
        assert_eq!(count, 4096 - 40);
        for gsi in PIN_COUNT..GSI_END {
            interrupts.table().messages.insert(gsi, message(gsi));
        }
        interrupts.route(&[]).unwrap();
        interrupts.release(77);
        assert_eq!(interrupts.allocate().unwrap(), 77);
    }
}
