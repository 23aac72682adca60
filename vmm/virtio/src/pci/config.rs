//! A function's configuration space: a type 0 header, 64-bit memory BARs, a chain of capabilities.
//!
//! Every bit is either fixed or the guest's to write; there is no third kind, so that reads need
//! no code. Sizing a BAR works by that alone: address bits below the size are fixed at zero
//! (PCI Local Bus 3.0 §6.2.5.1). Bytes from [`HEADER_SIZE`] on read as zero, which says that there
//! are no extended capabilities.

use crate::DeviceError;

/// A function's share of the memory-mapped configuration space.
pub const FUNCTION_SIZE: usize = 4096;
/// What of it may be other than zero.
pub(super) const HEADER_SIZE: usize = 256;
/// BAR registers of a type 0 header.
const BAR_COUNT: usize = 6;
/// Where capabilities begin.
const CAPABILITIES: usize = 0x40;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION: usize = 0x08;
const CACHE_LINE_SIZE: usize = 0x0c;
const BARS: usize = 0x10;
const SUBSYSTEM: usize = 0x2c;
const CAPABILITY_POINTER: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;

/// Memory decoding, in the command register.
const COMMAND_MEMORY: u8 = 1 << 1;
/// Bits of the command register that a guest may write: memory, bus master; parity; `SERR#`, and
/// interrupts off. Bus mastering is not enforced: a driver that never asked still gets its DMA.
const COMMAND_WRITABLE: [u8; 2] = [0x46, 0x05];
/// "There are capabilities", in the status register.
const STATUS_CAPABILITIES: u8 = 1 << 4;
/// A 64-bit memory BAR, not prefetchable.
const BAR_TYPE_64: u8 = 0b100;
const BAR_FLAGS: u64 = 0b1111;

/// What a function is.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Who made it.
    pub vendor: u16,
    /// What they call it.
    pub device: u16,
    /// Base class, sub-class, interface: 24 bits.
    pub class: u32,
    /// Its revision.
    pub revision: u8,
    /// The subsystem's vendor.
    pub subsystem_vendor: u16,
    /// The subsystem.
    pub subsystem: u16,
}

/// Where a BAR is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// The index of its first register.
    pub index: usize,
    /// Guest-physical; aligned to its size.
    pub address: u64,
    /// A power of two.
    pub size: u64,
}

/// What a write changed beyond the bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// A BAR moved, appeared or disappeared.
    pub bars: bool,
    /// The MSI-X control register is another.
    pub msix: bool,
}

/// A function's configuration space.
#[derive(Clone, Debug)]
pub struct Config {
    bytes: [u8; HEADER_SIZE],
    writable: [u8; HEADER_SIZE],
    bars: Vec<PlacedBar>,
    capabilities_end: usize,
    last_capability: Option<usize>,
    msix: Option<usize>,
}

#[derive(Clone, Copy, Debug)]
struct PlacedBar {
    index: usize,
    size: u64,
    placed: u64,
}

impl Config {
    /// A header with neither BARs nor capabilities.
    #[must_use]
    pub fn new(identity: &Identity) -> Self {
        let mut config = Self {
            bytes: [0; HEADER_SIZE],
            writable: [0; HEADER_SIZE],
            bars: Vec::new(),
            capabilities_end: CAPABILITIES,
            last_capability: None,
            msix: None,
        };
        config.put(0, &identity.vendor.to_le_bytes());
        config.put(2, &identity.device.to_le_bytes());
        config.put(REVISION, &(identity.class << 8 | u32::from(identity.revision)).to_le_bytes());
        config.put(SUBSYSTEM, &identity.subsystem_vendor.to_le_bytes());
        config.put(SUBSYSTEM + 2, &identity.subsystem.to_le_bytes());
        config.allow(COMMAND, &COMMAND_WRITABLE);
        config.allow(CACHE_LINE_SIZE, &[0xff]);
        config.allow(INTERRUPT_LINE, &[0xff]);
        config
    }

    /// Adds a 64-bit memory BAR of `size` bytes at register `index`, which takes two.
    ///
    /// # Panics
    /// When `size` is no power of two of at least 16, or there is no such register.
    pub fn add_bar(&mut self, index: usize, size: u64) {
        assert!(size.is_power_of_two() && size > BAR_FLAGS, "a BAR of {size} bytes");
        assert!(index + 1 < BAR_COUNT, "BAR {index} has no room for 64 bits");
        self.put(BARS + index * 4, &[BAR_TYPE_64]);
        self.allow(BARS + index * 4, &(!(size - 1)).to_le_bytes());
        self.bars.push(PlacedBar { index, size, placed: 0 });
    }

    /// Appends a capability: its id, what follows the link to the next one, and which bits of
    /// that the guest may write (fixed where `writable` is shorter). Returns its offset.
    ///
    /// # Panics
    /// When there is no room left.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let at = self.capabilities_end;
        assert!(at + 2 + body.len() <= HEADER_SIZE, "no room for capability {id:#x}");
        let link = self.last_capability.map_or(CAPABILITY_POINTER, |last| last + 1);
        self.put(link, &[u8::try_from(at).expect("within the header")]);
        self.put(STATUS, &[STATUS_CAPABILITIES]);
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        self.allow(at + 2, writable);
        self.last_capability = Some(at);
        self.capabilities_end = (at + 2 + body.len()).next_multiple_of(4);
        at
    }

    /// Appends an MSI-X capability for `count` vectors, with the table and the pending bits at
    /// these offsets of BAR `bar` (PCI Local Bus 3.0 §6.8.2).
    ///
    /// # Panics
    /// When there is no room left, or `count` is none or more than 2,048.
    pub fn add_msix(&mut self, count: u16, bar: u8, table: u32, pending: u32) {
        assert!((1..=2048).contains(&count), "{count} MSI-X vectors");
        let mut body = [0; 10];
        body[..2].copy_from_slice(&(count - 1).to_le_bytes());
        body[2..6].copy_from_slice(&(table | u32::from(bar)).to_le_bytes());
        body[6..].copy_from_slice(&(pending | u32::from(bar)).to_le_bytes());
        self.msix = Some(self.add_capability(0x11, &body, &[0, 0xc0]));
    }

    /// The MSI-X control register; zero without that capability.
    #[must_use]
    pub fn msix_control(&self) -> u16 {
        self.msix.map_or(0, |at| u16::from_le_bytes([self.bytes[at + 2], self.bytes[at + 3]]))
    }

    /// Its bytes; all that follow are zero.
    #[must_use]
    pub const fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Fills `data` with what is at `offset`.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = self.bytes.get(offset.saturating_add(i)).copied().unwrap_or(0);
        }
    }

    /// Writes the bits of `data` at `offset` that are the guest's to write.
    pub fn write(&mut self, offset: usize, data: &[u8]) -> Changes {
        let before = (self.bar_registers(), self.has_memory(), self.msix_control());
        for (i, byte) in data.iter().enumerate() {
            let at = offset.saturating_add(i);
            let Some(mask) = self.writable.get(at) else { break };
            self.bytes[at] = self.bytes[at] & !mask | byte & mask;
        }
        Changes {
            bars: before.0 != self.bar_registers() || before.1 != self.has_memory(),
            msix: before.2 != self.msix_control(),
        }
    }

    /// The BARs that answer now: none while the guest has memory decoding off.
    pub fn bars(&self) -> impl Iterator<Item = Bar> {
        let bars = if self.has_memory() { self.bars.as_slice() } else { &[] };
        bars.iter().map(|bar| self.bar(bar))
    }

    /// All BARs, whether they answer or not.
    pub fn all_bars(&self) -> impl Iterator<Item = Bar> {
        self.bars.iter().map(|bar| self.bar(bar))
    }

    /// Gives BAR `index` its address, which it has again after a reset.
    ///
    /// # Panics
    /// When there is no such BAR, or `address` is not aligned to its size.
    pub fn place_bar(&mut self, index: usize, address: u64) {
        let bar = self.bars.iter_mut().find(|bar| bar.index == index).expect("such a BAR");
        assert!(address.is_multiple_of(bar.size), "BAR {index} at {address:#x}");
        bar.placed = address;
        self.set_bar(index, address);
    }

    /// Undoes what the guest wrote.
    pub fn reset(&mut self) {
        for (byte, writable) in self.bytes.iter_mut().zip(self.writable) {
            *byte &= !writable;
        }
        for bar in self.bars.clone() {
            self.set_bar(bar.index, bar.placed);
        }
    }

    /// Takes the bytes of another of its kind.
    ///
    /// # Errors
    /// When they are not those of a function with the same fixed bits: then it is another device,
    /// and a driver in the guest would be in for a surprise.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<(), DeviceError> {
        let bytes: &[u8; HEADER_SIZE] = bytes
            .try_into()
            .map_err(|_| DeviceError::State(format!("{} bytes of PCI header", bytes.len())))?;
        for (at, (new, old)) in bytes.iter().zip(self.bytes).enumerate() {
            if (new ^ old) & !self.writable[at] != 0 {
                let what = format!("PCI header differs at {at:#x}: {new:#x}, this is {old:#x}");
                return Err(DeviceError::State(what));
            }
        }
        self.bytes = *bytes;
        Ok(())
    }

    fn bar(&self, bar: &PlacedBar) -> Bar {
        let at = BARS + bar.index * 4;
        let bytes = self.bytes[at..at + 8].try_into().expect("eight bytes");
        let address = u64::from_le_bytes(bytes) & !BAR_FLAGS;
        Bar { index: bar.index, address, size: bar.size }
    }

    fn set_bar(&mut self, index: usize, address: u64) {
        let flags = u64::from(BAR_TYPE_64);
        self.put(BARS + index * 4, &(address | flags).to_le_bytes());
    }

    const fn has_memory(&self) -> bool {
        self.bytes[COMMAND] & COMMAND_MEMORY != 0
    }

    fn bar_registers(&self) -> [u8; BAR_COUNT * 4] {
        self.bytes[BARS..BARS + BAR_COUNT * 4].try_into().expect("the size of a constant range")
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, at: usize, bits: &[u8]) {
        self.writable[at..at + bits.len()].copy_from_slice(bits);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn config() -> Config {
        let mut config = Config::new(&Identity {
            vendor: 0x1af4,
            device: 0x1042,
            class: 0x01_8000,
            revision: 1,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1042,
        });
        config.add_bar(0, 0x4000);
        config.add_msix(3, 0, 0x3000, 0x3800);
        config.add_capability(0x09, &[4, 5, 6], &[]);
        config.place_bar(0, 0xe800_0000);
        config
    }

    fn read<const N: usize>(config: &Config, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        config.read(at, &mut bytes);
        bytes
    }

    #[test]
    fn a_header_says_who_it_is() {
        let config = config();
        assert_eq!(read(&config, 0), [0xf4, 0x1a, 0x42, 0x10]);
        assert_eq!(read(&config, 8), [1, 0, 0x80, 1]);
        assert_eq!(read(&config, 0x2c), [0xf4, 0x1a, 0x42, 0x10]);
        assert_eq!(read(&config, 0x34), [0x40]);
        assert_eq!(read(&config, 0x40), [0x11, 0x4c, 2, 0, 0, 0x30, 0, 0, 0, 0x38, 0, 0]);
        assert_eq!(read(&config, 0x4c), [9, 0, 4, 5, 6]);
        assert_eq!(read(&config, 0xfe), [0; 4]);
        assert_eq!(read(&config, usize::MAX), [0; 2]);
    }

    /// PCI Local Bus 3.0 §6.2.5.1: all ones written, what reads as zero is the size.
    #[test]
    fn a_bar_is_sized_and_moved() {
        let mut config = config();
        assert_eq!(config.bars().count(), 0, "memory decoding is off at first");
        assert!(config.write(4, &[0x06, 0x04]).bars);
        let bar = Bar { index: 0, address: 0xe800_0000, size: 0x4000 };
        assert_eq!(config.bars().collect::<Vec<_>>(), [bar]);
        assert!(config.write(0x10, &[0xff; 4]).bars);
        assert_eq!(read(&config, 0x10), 0xffff_c004_u32.to_le_bytes());
        assert!(config.write(0x14, &[0xff; 4]).bars);
        assert_eq!(read(&config, 0x14), [0xff; 4]);
        config.write(0x10, &0x1234_5678_u32.to_le_bytes());
        config.write(0x14, &1_u32.to_le_bytes());
        assert_eq!(config.bars().next().unwrap().address, 0x1_1234_4000);
        assert_eq!(config.write(0x18, &[0xff; 12]), Changes::default(), "no other BARs");
        config.reset();
        assert_eq!(config.bars().count(), 0);
        assert_eq!(config.all_bars().collect::<Vec<_>>(), [bar]);
    }

    #[test]
    fn only_the_enable_and_mask_bits_of_msix_can_be_written() {
        let mut config = config();
        assert!(config.write(0x40, &[0xff; 12]).msix);
        assert_eq!(read(&config, 0x40), [0x11, 0x4c, 2, 0xc0, 0, 0x30, 0, 0, 0, 0x38, 0, 0]);
        assert_eq!(config.msix_control(), 0xc002);
        assert_eq!(config.write(0x42, &[0xff; 2]), Changes::default());
    }

    #[test]
    fn only_its_own_kind_is_restored() {
        let mut old = config();
        old.write(4, &[0x06]);
        old.write(0x10, &[0xff; 8]);
        let mut new = config();
        new.restore(old.bytes()).unwrap();
        assert_eq!(new.bytes(), old.bytes());
        let mut bytes = old.bytes().to_vec();
        bytes[2] = 0x41;
        let error = config().restore(&bytes).unwrap_err().to_string();
        assert_eq!(error, "PCI header differs at 0x2: 0x41, this is 0x42");
        assert!(config().restore(&bytes[1..]).is_err());
    }

    proptest! {
        /// Whatever is written, fixed bits stay, and a reset leads back to the beginning.
        #[test]
        fn fixed_bits_stay(writes in prop::collection::vec(
            (0..300_usize, prop::collection::vec(any::<u8>(), 1..9)), 0..64)
        ) {
            let first = config();
            let mut config = config();
            for (offset, data) in writes {
                config.write(offset, &data);
            }
            let fixed = |c: &Config| {
                c.bytes.iter().zip(c.writable).map(|(b, w)| b & !w).collect::<Vec<_>>()
            };
            prop_assert_eq!(fixed(&config), fixed(&first));
            for bar in config.bars() {
                prop_assert_eq!(bar.address % bar.size, 0);
            }
            config.reset();
            prop_assert_eq!(config.bytes, first.bytes);
        }
    }
}
