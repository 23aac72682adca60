//! A device's configuration space (virtio 1.3 §2.5): bytes that both sides see.
//!
//! The driver reads it through the transport, on a vCPU's thread; a unit or an API call changes it
//! on another. A change moves the generation on and, once the driver is there, interrupts it.

use std::sync::{Arc, Mutex, PoisonError};

use crate::Interrupt;

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

    /// Takes what [`save`](Self::save) gave, with no interrupt; false if the size is another.
    #[must_use]
    pub fn restore(&self, bytes: &[u8]) -> bool {
        self.with(|state| {
            let fits = state.bytes.len() == bytes.len();
            if fits {
                state.bytes.copy_from_slice(bytes);
                state.generation = state.generation.wrapping_add(1);
            }
            fits
        })
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
        assert!(!space.restore(&[1, 2, 3]));
        assert!(space.restore(&[1, 2, 3, 4]));
        assert_eq!(space.save(), [1, 2, 3, 4]);
    }
}
