//! A device's configuration space (virtio 1.3 §2.5): bytes that both sides see.
//!
//! The driver reads it through the transport, on a vCPU's thread; a unit or an API call changes it
//! on another. A change moves the generation on and, once the driver is there, interrupts it.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crate::{DeviceError, Interrupt};

/// The configuration space of one device. Clones are the same space.
#[derive(Clone, Default)]
pub struct ConfigSpace(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    generation: u8,
    interrupt: Option<Arc<dyn Interrupt>>,
}

impl ConfigSpace {
    /// A space that holds `bytes`, laid out little-endian as the device's section of the
    /// specification says.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        let state = State { bytes: bytes.to_vec(), ..State::default() };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Fills `data` from `offset` on; what lies beyond the end reads as zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        self.with(|state| {
            let Some(rest) = usize::try_from(offset).ok().and_then(|at| state.bytes.get(at..))
            else {
                return;
            };
            let size = rest.len().min(data.len());
            data[..size].copy_from_slice(&rest[..size]);
        });
    }

    /// Lets `change` edit the bytes, then tells the driver. The size must stay.
    pub fn update(&self, change: impl FnOnce(&mut [u8])) {
        let interrupt = self.with(|state| {
            change(&mut state.bytes);
            state.generation = state.generation.wrapping_add(1);
            state.interrupt.clone()
        });
        if let Some(interrupt) = interrupt {
            interrupt.config();
        }
    }

    /// What the driver wrote: the same without an interrupt. Bytes beyond the end are dropped.
    pub fn write_from_driver(&self, offset: u64, data: &[u8]) {
        self.with(|state| {
            let at = usize::try_from(offset).unwrap_or(usize::MAX);
            if let Some(rest) = state.bytes.get_mut(at..) {
                let size = rest.len().min(data.len());
                rest[..size].copy_from_slice(&data[..size]);
            }
        });
    }

    /// Its size in bytes, which never changes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.with(|state| state.bytes.len())
    }

    /// All of it, for a snapshot.
    #[must_use]
    pub fn save(&self) -> Vec<u8> {
        self.with(|state| state.bytes.clone())
    }

    /// Refuses the bytes that a driver `saw` of another device in this one's place, if they are
    /// more or fewer, or differ in one of `fixed`: fields that a driver reads once, and can't be told
    /// of later.
    ///
    /// # Errors
    /// [`DeviceError::State`], with the field's name and both values.
    pub fn check_seen(
        &self,
        seen: &[u8],
        fixed: &[(&str, Range<usize>)],
    ) -> Result<(), DeviceError> {
        let own = self.save();
        if seen.len() != own.len() {
            let (seen, own) = (seen.len(), own.len());
            let what = format!("{seen} bytes of configuration, this device has {own}");
            return Err(DeviceError::State(what));
        }
        for (name, range) in fixed {
            let [seen, own] =
                [seen, &own].map(|bytes| bytes.get(range.clone()).unwrap_or_default());
            if seen != own {
                let (seen, own) = (shown(seen), shown(own));
                let what = format!("the guest knows {name} {seen}, this device has {own}");
                return Err(DeviceError::State(what));
            }
        }
        Ok(())
    }

    /// Takes the place of a space that a driver last saw at `generation`: what it reads now is
    /// something else.
    pub fn succeed(&self, generation: u8) {
        self.with(|state| state.generation = generation.wrapping_add(1));
    }

    /// Moves on with every [`update`](Self::update): a driver that reads it before and after its
    /// fields knows whether they belong together.
    #[must_use]
    pub fn generation(&self) -> u8 {
        self.with(|state| state.generation)
    }

    /// Where updates are announced: set by the transport while a driver is there.
    pub fn announce_to(&self, interrupt: Option<Arc<dyn Interrupt>>) {
        self.with(|state| state.interrupt = interrupt);
    }

    fn with<T>(&self, use_it: impl FnOnce(&mut State) -> T) -> T {
        use_it(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A field as people read it: a number if it can be one.
fn shown(field: &[u8]) -> String {
    let mut number = [0; 8];
    match number.get_mut(..field.len()) {
        Some(low) => {
            low.copy_from_slice(field);
            u64::from_le_bytes(number).to_string()
        }
        None => format!("{field:02x?}"),
    }
}

impl std::fmt::Debug for ConfigSpace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.with(|state| {
            f.debug_struct("ConfigSpace")
                .field("bytes", &state.bytes)
                .field("generation", &state.generation)
                .finish()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_end_with_the_space() {
        let space = ConfigSpace::new(&[1, 2, 3, 4]);
        let mut data = [9; 4];
        space.read(2, &mut data);
        assert_eq!(data, [3, 4, 0, 0]);
        space.read(u64::MAX, &mut data);
        assert_eq!(data, [0; 4]);
        space.write_from_driver(3, &[7, 8]);
        space.write_from_driver(5, &[7]);
        space.read(0, &mut data);
        assert_eq!(data, [1, 2, 3, 7]);
        assert_eq!(space.generation(), 0);
        space.update(|bytes| bytes[0] = 5);
        assert_eq!(space.generation(), 1);
        assert_eq!((space.size(), space.save()), (4, vec![5, 2, 3, 7]));
    }

    #[test]
    fn what_a_driver_saw_once_must_be_the_same() {
        let space = ConfigSpace::new(&[1, 2, 3, 4]);
        let fixed = [("size", 1..3)];
        space.check_seen(&[9, 2, 3, 9], &fixed).unwrap();
        let error = |seen: &[u8]| space.check_seen(seen, &fixed).unwrap_err().to_string();
        assert_eq!(error(&[1, 2, 3]), "3 bytes of configuration, this device has 4");
        assert_eq!(error(&[1, 2, 4, 4]), "the guest knows size 1026, this device has 770");
        let long = ConfigSpace::new(&[7; 9]);
        let error = long.check_seen(&[8; 9], &[("tag", 0..9)]).unwrap_err().to_string();
        assert!(error.starts_with("the guest knows tag [08, 08"), "{error}");
        space.succeed(255);
        assert_eq!(space.generation(), 0);
    }
}
