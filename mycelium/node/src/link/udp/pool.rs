//! Buffers for what arrives: lent to links, bounded, and taken back when they are dropped.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// Size of a buffer: as much as the kernel joins.
pub(crate) const BUFFER_SIZE: usize = 64 << 10;
/// Buffers that are lent, all together.
const LENT_COUNT_MAX: usize = 256;
/// Buffers that are kept for later.
const SPARE_COUNT_MAX: usize = 8;

/// Where buffers come from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pool(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    spare: Vec<Vec<u8>>,
    lent_count: usize,
}

/// Bytes, in a buffer of the pool or, if they are few, on their own.
#[derive(Debug)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    size: usize,
    pool: Option<Pool>,
}

impl Pool {
    /// Takes the first `size` bytes out of `buffer`, which gets another one of the pool in exchange. None
    /// when links hold too many.
    pub(crate) fn exchange(&self, buffer: &mut Vec<u8>, size: usize) -> Option<Buffer> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.lent_count >= LENT_COUNT_MAX {
            return None;
        }
        state.lent_count += 1;
        let fresh = state.spare.pop().unwrap_or_else(|| vec![0; BUFFER_SIZE]);
        let bytes = std::mem::replace(buffer, fresh);
        Some(Buffer { size: size.min(bytes.len()), bytes, pool: Some(self.clone()) })
    }
}

impl Buffer {
    /// A copy.
    pub(crate) fn copy(bytes: &[u8]) -> Self {
        Self { bytes: bytes.to_vec(), size: bytes.len(), pool: None }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.size]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.size]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(pool) = &self.pool else { return };
        let mut state = pool.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.lent_count -= 1;
        if state.spare.len() < SPARE_COUNT_MAX {
            state.spare.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_bounded_and_come_back() {
        let pool = Pool::default();
        let mut buffer = vec![0; BUFFER_SIZE];
        let mut lent = Vec::new();
        for number in 0..=LENT_COUNT_MAX {
            buffer[0] = u8::try_from(number % 256).unwrap();
            lent.extend(pool.exchange(&mut buffer, 10));
        }
        assert_eq!(lent.len(), LENT_COUNT_MAX);
        assert!(lent.iter().enumerate().all(|(at, lent)| usize::from(lent[0]) == at % 256));
        assert_eq!(lent[0].len(), 10);
        drop(lent);
        assert!(pool.exchange(&mut buffer, 1).is_some());
        assert_eq!(pool.0.lock().unwrap().spare.len(), SPARE_COUNT_MAX);
    }
}
