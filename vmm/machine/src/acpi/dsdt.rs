//! The differentiated system description table: devices that no bus tells of, and what to do when
//! something happens to them. In ASL, with a bus and two of its slots:
//!
//! ```text
//! Name (_S5, Package {5, 0})
//! Scope (_SB) {
//!   Device (PWRB) { Name (_HID, "PNP0C0C") Name (_UID, 0) }
//!   Device (COM1) { Name (_HID, "PNP0501") Name (_UID, 0) Name (_CRS, /* ports, interrupt */) }
//!   Device (MBRD) { Name (_HID, "PNP0C02") Name (_UID, 0) Name (_CRS, /* ECAM */) }
//!   Device (PCI0) {
//!     Name (_HID, "PNP0A08") … Name (_CRS, /* bus 0, windows */) Method (_OSC, 4) { … }
//!     OperationRegion (HREG, SystemIO, 0x608, 12)
//!     Field (HREG, DWordAcc, NoLock, WriteAsZeroes) { PUP, 32, PDWN, 32, PEJT, 32 }
//!     Device (S01) { Name (_SUN, 1) Name (_ADR, 0x10000) Method (_EJ0, 1) { PEJT = 1 << 1 } }
//!     …
//!     Method (PSCN, 0, Serialized) {
//!       Local0 = PUP
//!       If (Local0 & (1 << 1)) { Notify (S01, 1) }
//!       …
//!       Local0 = PDWN
//!       If (Local0 & (1 << 1)) { Notify (S01, 3) }
//!       …
//!     }
//!   }
//!   Device (VGEN) {
//!     Name (_HID, "ZEROVGID") Name (_UID, 0) Name (_CID, Package {"VMGENCTR", "VM_Gen_Counter"})
//!     Name (_DDN, "VM_Gen_Counter") Name (ADDR, Package {/* where its 16 bytes are */})
//!   }
//!   Device (GED) {
//!     Name (_HID, "ACPI0013") Name (_UID, 0) Name (_CRS, /* interrupt, edge */)
//!     OperationRegion (EREG, SystemIO, 0x604, 4)
//!     Field (EREG, DWordAcc, NoLock, WriteAsZeroes) { EVTS, 32 }
//!     Method (_EVT, 1, Serialized) {
//!       Local0 = EVTS
//!       If (Local0 & 1) { Notify (PWRB, 0x80) }
//!       If (Local0 & 2) { PCI0.PSCN () }
//!       If (Local0 & 4) { Notify (VGEN, 0x80) }
//!     }
//!   }
//! }
//! ```

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Else, Equal,
    Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO, If, Interrupt, Local,
    Memory32Fixed, Method, MethodCall, Name, Notify, ONE, OpRegion, OpRegionSpace, Or, Package,
    Path, ResourceTemplate, Return, Scope, Store, Uuid, ZERO,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};

use super::events::Event;
use super::tables::{Description, OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use super::{EVENTS_PORT, SLEEP_TYPE_OFF, SLOTS_UP_PORT};
use crate::memory::layout::{
    ECAM_ADDRESS, ECAM_SIZE, GENERATION_ADDRESS, Layout, MMIO32_ADDRESS, MMIO32_SIZE,
    PCI_SLOT_COUNT, gsi,
};

/// Notifications (ACPI 6.5 §5.6.6).
const NOTIFY_DEVICE_CHECK: u8 = 1;
const NOTIFY_EJECT_REQUEST: u8 = 3;
const NOTIFY_BUTTON: u8 = 0x80;
/// A device's own notification: the generation id is another one.
const NOTIFY_GENERATION: u8 = 0x80;

/// The whole table.
pub(super) fn build(description: &Description<'_>) -> Table {
    let mut sdt = Sdt::new(*b"DSDT", 36, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let off = Package::new(vec![&SLEEP_TYPE_OFF, &ZERO]);
    sdt.append_slice(&bytes(&Name::new("_S5_".into(), &off)));
    let mut devices = vec![power_button(), generation_counter()];
    if description.has_serial {
        devices.push(serial());
    }
    if description.has_pci {
        devices.push(ecam_reservation());
        devices.push(pci(description.layout));
    }
    devices.push(event_device(description.has_pci));
    sdt.append_slice(&bytes(&Scope::new("_SB_".into(), as_aml(&devices))));
    Table(sdt)
}

/// A finished table.
pub(super) struct Table(Sdt);

impl Aml for Table {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(self.0.as_slice());
    }
}

/// Bytes that are AML already: methods here return what they built, for AML of the library borrows.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

fn bytes(aml: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    aml.to_aml_bytes(&mut bytes);
    bytes
}

fn raw(aml: &dyn Aml) -> Raw {
    Raw(bytes(aml))
}

fn as_aml(parts: &[Raw]) -> Vec<&dyn Aml> {
    parts.iter().map(|part| part as &dyn Aml).collect()
}

fn named(name: &str, value: &dyn Aml) -> Raw {
    raw(&Name::new(name.into(), value))
}

/// A device with `_HID`, `_UID` 0, and more.
fn device(name: &str, hid: &dyn Aml, mut rest: Vec<Raw>) -> Raw {
    let mut parts = vec![named("_HID", hid), named("_UID", &ZERO)];
    parts.append(&mut rest);
    raw(&Device::new(name.into(), as_aml(&parts)))
}

fn power_button() -> Raw {
    device("PWRB", &EISAName::new("PNP0C0C"), Vec::new())
}

/// The generation id. The second of its compatible ids is the one that Microsoft published, which is
/// longer than ACPI allows; the first is theirs too, and is not.
fn generation_counter() -> Raw {
    let (low, high) = (narrow(GENERATION_ADDRESS), ZERO);
    let ids = named("_CID", &Package::new(vec![&"VMGENCTR", &"VM_Gen_Counter"]));
    let name = named("_DDN", &"VM_Gen_Counter");
    let address = named("ADDR", &Package::new(vec![&low, &high]));
    device("VGEN", &"ZEROVGID", vec![ids, name, address])
}

fn serial() -> Raw {
    let ports = IO::new(0x3f8, 0x3f8, 0, 8);
    let interrupt = Interrupt::new(true, true, false, false, gsi::SERIAL);
    let resources = named("_CRS", &ResourceTemplate::new(vec![&ports, &interrupt]));
    device("COM1", &EISAName::new("PNP0501"), vec![resources])
}

/// Tells that nobody else may use the addresses of configuration space; Linux uses them only then.
fn ecam_reservation() -> Raw {
    let ecam = Memory32Fixed::new(true, narrow(ECAM_ADDRESS), narrow(ECAM_SIZE));
    let resources = named("_CRS", &ResourceTemplate::new(vec![&ecam]));
    device("MBRD", &EISAName::new("PNP0C02"), vec![resources])
}

/// Constants of the layout below 4 GiB.
fn narrow(address: u64) -> u32 {
    u32::try_from(address).unwrap_or(u32::MAX)
}

/// The generic event device.
fn event_device(has_pci: bool) -> Raw {
    let interrupt = Interrupt::new(true, true, false, false, gsi::EVENTS);
    let resources = named("_CRS", &ResourceTemplate::new(vec![&interrupt]));
    let region = OpRegion::new("EREG".into(), OpRegionSpace::SystemIO, &EVENTS_PORT, &4_u8);
    let field = registers("EREG", &[b"EVTS"]);
    let mut actions = vec![raw(&Store::new(&Local(0), &Path::new("EVTS")))];
    let button = Notify::new(&Path::new("PWRB"), &NOTIFY_BUTTON).bytes();
    actions.push(if_bit(Event::PowerButton as u32, &button));
    if has_pci {
        let scan = raw(&MethodCall::new("\\_SB_.PCI0.PSCN".into(), Vec::new()));
        actions.push(if_bit(Event::Slots as u32, &scan));
    }
    let generation = Notify::new(&Path::new("VGEN"), &NOTIFY_GENERATION).bytes();
    actions.push(if_bit(Event::Generation as u32, &generation));
    let method = raw(&Method::new("_EVT".into(), 1, true, as_aml(&actions)));
    device("GED_", &"ACPI0013", vec![resources, raw(&region), field, method])
}

/// The PCI bus: what it may use, and its slots.
fn pci(layout: &Layout) -> Raw {
    let mut parts = vec![
        named("_CID", &EISAName::new("PNP0A03")),
        named("_SEG", &ZERO),
        named("_BBN", &ZERO),
        named("_CCA", &ONE),
        named("_CRS", &Windows(layout)),
        operating_system_capabilities(),
        raw(&OpRegion::new("HREG".into(), OpRegionSpace::SystemIO, &SLOTS_UP_PORT, &12_u8)),
        registers("HREG", &[b"PUP_", b"PDWN", b"PEJT"]),
    ];
    parts.extend((1..PCI_SLOT_COUNT).map(slot));
    parts.push(scan());
    device("PCI0", &EISAName::new("PNP0A08"), parts)
}

/// Bus 0, the window for 32-bit BARs, and the one for 64-bit BARs where there is room for it.
struct Windows<'a>(&'a Layout);

impl Aml for Windows<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let bus = AddressSpace::new_bus_number(0_u16, 0_u16);
        let (first, last) = (narrow(MMIO32_ADDRESS), narrow(MMIO32_ADDRESS + MMIO32_SIZE - 1));
        let uncached = AddressSpaceCacheable::NotCacheable;
        let low = AddressSpace::new_memory(uncached, true, first, last, None);
        let mut windows: Vec<&dyn Aml> = vec![&bus, &low];
        let high = self.0.mmio64;
        let last = high.end().saturating_sub(1);
        let high_window = AddressSpace::new_memory(uncached, true, high.start, last, None);
        if high.size > 0 {
            windows.push(&high_window);
        }
        ResourceTemplate::new(windows).to_aml_bytes(sink);
    }
}

/// `_OSC` (PCI Firmware Specification 3.3 §4.5.1): of what the guest would like to control, it gets
/// the capability structure and nothing else. Native hot-plug above all is refused, which leaves
/// the slots to ACPI.
fn operating_system_capabilities() -> Raw {
    const CAPABILITY_STRUCTURE: u8 = 1 << 4;
    const UNRECOGNIZED_UUID: u8 = 1 << 2;
    let dword = |name: &str, at: u8| raw(&CreateDWordField::new(&Path::new(name), &Arg(3), &at));
    let granted = [
        dword("CTRL", 8),
        raw(&And::new(&Path::new("CTRL"), &Path::new("CTRL"), &CAPABILITY_STRUCTURE)),
    ];
    let refused = [raw(&Or::new(&Path::new("STAT"), &Path::new("STAT"), &UNRECOGNIZED_UUID))];
    let uuid = Uuid::new("33DB4D5B-1FF7-401C-9657-7441C03DD766");
    let is_ours = Equal::new(&Arg(0), &uuid).bytes();
    let parts = [
        dword("STAT", 0),
        raw(&If::new(&is_ours, as_aml(&granted))),
        raw(&Else::new(as_aml(&refused))),
        raw(&Return::new(&Arg(3))),
    ];
    raw(&Method::new("_OSC".into(), 4, true, as_aml(&parts)))
}

/// A slot's device object: its number, its address, and how it is ejected.
fn slot(slot: u8) -> Raw {
    let eject = raw(&Store::new(&Path::new("PEJT"), &slot_bit(slot)));
    let parts = [
        named("_SUN", &slot),
        named("_ADR", &(u32::from(slot) << 16)),
        raw(&Method::new("_EJ0".into(), 1, true, vec![&eject])),
    ];
    raw(&Device::new(slot_name(slot).as_str().into(), as_aml(&parts)))
}

/// The method that asks which slots have changed, and passes it on.
fn scan() -> Raw {
    let mut parts = Vec::new();
    for (register, notification) in [("PUP_", NOTIFY_DEVICE_CHECK), ("PDWN", NOTIFY_EJECT_REQUEST)]
    {
        parts.push(raw(&Store::new(&Local(0), &Path::new(register))));
        for slot in 1..PCI_SLOT_COUNT {
            let name = slot_name(slot);
            let notify = Notify::new(&Path::new(&name), &notification).bytes();
            parts.push(if_bit(slot_bit(slot), &notify));
        }
    }
    raw(&Method::new("PSCN".into(), 0, true, as_aml(&parts)))
}

/// `If (Local0 & bit) { action }`.
fn if_bit(bit: u32, action: &Raw) -> Raw {
    let condition = And::new(&ZERO, &Local(0), &bit).bytes();
    raw(&If::new(&condition, vec![action]))
}

/// A field of registers of 32 bits each.
fn registers(region: &str, names: &[&[u8; 4]]) -> Raw {
    let entries = names.iter().map(|name| FieldEntry::Named(**name, 32)).collect();
    raw(&Field::new(
        region.into(),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        entries,
    ))
}

fn slot_name(slot: u8) -> String {
    format!("S{slot:02}_")
}

const fn slot_bit(slot: u8) -> u32 {
    1 << slot
}

/// AML of the library borrows its parts: this ends the borrowing.
trait IntoRaw {
    fn bytes(&self) -> Raw;
}

impl<T: Aml> IntoRaw for T {
    fn bytes(&self) -> Raw {
        raw(self)
    }
}
