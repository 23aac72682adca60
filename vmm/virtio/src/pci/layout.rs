//! Who a virtio device is to PCI, and what is where in its BAR (virtio 1.3 §4.1.2, §4.1.4).
//!
//! One 64-bit BAR holds everything:
//!
//! | offset | what |
//! |---|---|
//! | 0x0000 | common configuration |
//! | 0x0100 | interrupt status |
//! | 0x1000 | the device's configuration space |
//! | 0x2000 | notifications: 4 bytes for each queue |
//! | 0x3000 | MSI-X table |
//! | 0x3800 | MSI-X pending bits |

use super::common::COMMON_SIZE;
use super::msix::ENTRY_SIZE;
use super::{Config, Identity};
use crate::{Device, DeviceId};

/// The size of the one BAR.
pub const BAR_SIZE: u64 = 0x4000;
/// The most queues that a device may have: each has a vector, the configuration has one more, and
/// the table has room for 128.
pub const QUEUE_COUNT_MAX: usize = 127;

const COMMON_END: u64 = COMMON_SIZE as u64;
const ISR_AT: u64 = 0x0100;
const DEVICE_AT: u64 = 0x1000;
pub(super) const NOTIFY_AT: u64 = 0x2000;
const TABLE_AT: u64 = 0x3000;
const PENDING_AT: u64 = 0x3800;
/// The most that a device's configuration space may have.
const DEVICE_CONFIG_SIZE_MAX: usize = 0x1000;
/// `notify_off_multiplier`: an address for each queue, so that each has a doorbell of its own.
pub(super) const NOTIFY_MULTIPLIER: u32 = 4;

const VENDOR: u16 = 0x1af4;
/// §4.1.2: device ids begin here.
const DEVICE_BASE: u16 = 0x1040;
const CAPABILITY_VENDOR: u8 = 0x09;
const CAPABILITY_COMMON: u8 = 1;
const CAPABILITY_NOTIFY: u8 = 2;
const CAPABILITY_ISR: u8 = 3;
const CAPABILITY_DEVICE: u8 = 4;

/// What an offset of the BAR leads to, and how far into that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Area {
    /// The common registers.
    Common(u64),
    /// The interrupt status.
    Isr,
    /// The device's configuration space.
    Device(u64),
    /// Kicks.
    Notify(u64),
    /// The MSI-X table.
    Table(u64),
    /// The pending bits.
    Pending(u64),
    /// Room between them.
    Nothing,
}

impl Area {
    /// What is at `offset` for a device with `queue_count` queues.
    pub(super) const fn at(offset: u64, queue_count: usize) -> Self {
        let table_size = ENTRY_SIZE * (queue_count as u64 + 1);
        match offset {
            ..COMMON_END => Self::Common(offset),
            ISR_AT => Self::Isr,
            DEVICE_AT..NOTIFY_AT => Self::Device(offset - DEVICE_AT),
            NOTIFY_AT..TABLE_AT => Self::Notify(offset - NOTIFY_AT),
            TABLE_AT..PENDING_AT if offset - TABLE_AT < table_size => {
                Self::Table(offset - TABLE_AT)
            }
            PENDING_AT..BAR_SIZE => Self::Pending(offset - PENDING_AT),
            _ => Self::Nothing,
        }
    }
}

/// The configuration space of `device`.
pub(super) fn configuration(device: &dyn Device, vector_count: u16) -> Config {
    let size = device.config().size();
    assert!(size <= DEVICE_CONFIG_SIZE_MAX, "{size} bytes of device configuration");
    let id = DEVICE_BASE + device.id() as u16;
    let mut config = Config::new(&Identity {
        vendor: VENDOR,
        device: id,
        class: class(device.id()),
        revision: 1,
        subsystem_vendor: VENDOR,
        subsystem: id,
    });
    let narrow = |value: u64| u32::try_from(value).expect("within the BAR");
    config.add_bar(0, BAR_SIZE);
    config.add_msix(vector_count, 0, narrow(TABLE_AT), narrow(PENDING_AT));
    let mut add = |kind: u8, offset: u64, size: u32, more: &[u8]| {
        let length = u8::try_from(16 + more.len()).expect("short");
        let mut body = vec![length, kind, 0, 0, 0, 0];
        body.extend_from_slice(&narrow(offset).to_le_bytes());
        body.extend_from_slice(&size.to_le_bytes());
        body.extend_from_slice(more);
        config.add_capability(CAPABILITY_VENDOR, &body, &[]);
    };
    let queue_count = u32::from(vector_count) - 1;
    add(CAPABILITY_COMMON, 0, narrow(COMMON_END), &[]);
    let notify_size = queue_count.max(1) * NOTIFY_MULTIPLIER;
    add(CAPABILITY_NOTIFY, NOTIFY_AT, notify_size, &NOTIFY_MULTIPLIER.to_le_bytes());
    add(CAPABILITY_ISR, ISR_AT, 1, &[]);
    if size > 0 {
        add(CAPABILITY_DEVICE, DEVICE_AT, narrow(size as u64), &[]);
    }
    config
}

/// PCI class codes. Drivers go by the device id; these are for people who list devices.
const fn class(id: DeviceId) -> u32 {
    match id {
        DeviceId::Net => 0x02_0000,
        DeviceId::Block | DeviceId::Fs => 0x01_8000,
        DeviceId::Console => 0x07_8000,
        DeviceId::Vsock => 0x02_8000,
        DeviceId::Rng | DeviceId::Balloon => 0xff_0000,
    }
}
