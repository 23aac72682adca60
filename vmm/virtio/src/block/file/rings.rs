//! Rings that are made beforehand, and used again.
//!
//! A thread in a jail may not make an io_uring, since what a ring does passes by the filter of its
//! system calls. A disk therefore makes its rings before its machine runs, and lanes borrow them:
//!
//! ```text
//!   prepare ──► spare rings ──take──► Lease ── a lane uses it
//!                   ▲                   │
//!                   └─── nothing in flight: given back       else leaked, as `raw` tells
//! ```
//!
//! A disk that was not prepared makes a ring for each lane.

use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::raw::Ring;
use crate::memory::SharedMemory;

/// The rings of one disk.
#[derive(Clone, Default)]
pub(super) struct Rings(Arc<Mutex<Stock>>);

#[derive(Default)]
enum Stock {
    /// Made when they are needed.
    #[default]
    OnDemand,
    /// There are these, and will be no more.
    Spare(Vec<Ring>),
    /// The host gives none.
    Refused,
}

/// A ring on loan.
pub(super) struct Lease {
    /// Gone only while it is dropped.
    ring: Option<Ring>,
    rings: Rings,
}

impl Rings {
    /// Makes `count` rings, and none later.
    pub(super) fn prepare(
        &self,
        file: &File,
        memory: &SharedMemory,
        count: u16,
        depth: u16,
    ) -> io::Result<()> {
        let rings: io::Result<Vec<_>> =
            (0..count).map(|_| Ring::new(file, memory, depth)).collect();
        let (stock, result) = match rings {
            Ok(rings) => (Stock::Spare(rings), Ok(())),
            Err(error) => (Stock::Refused, Err(error)),
        };
        *self.stock() = stock;
        result
    }

    /// A ring, of those that were prepared if that was done; `None` if the host gave none then.
    pub(super) fn take(
        &self,
        file: &File,
        memory: &SharedMemory,
        depth: u16,
    ) -> io::Result<Option<Lease>> {
        let ring = match &mut *self.stock() {
            Stock::OnDemand => Ring::new(file, memory, depth)?,
            Stock::Refused => return Ok(None),
            Stock::Spare(rings) => {
                let hung = || io::Error::other("all rings of the disk hang in the host");
                rings.pop().ok_or_else(hung)?
            }
        };
        Ok(Some(Lease { ring: Some(ring), rings: self.clone() }))
    }

    fn stock(&self) -> MutexGuard<'_, Stock> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Rings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rings")
    }
}

impl Deref for Lease {
    type Target = Ring;

    fn deref(&self) -> &Ring {
        self.ring.as_ref().expect("a lease has its ring until it is dropped")
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Ring {
        self.ring.as_mut().expect("a lease has its ring until it is dropped")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(ring) = self.ring.take() else { return };
        if let Stock::Spare(rings) = &mut *self.rings.stock()
            && ring.in_flight() == 0
        {
            rings.push(ring);
        }
    }
}
