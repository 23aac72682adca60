//! A file of the simulated disk, opened: reads and writes that may be short, syncs that may forget.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::MutexGuard;

use super::state::{Call, SECTOR_SIZE, State};
use super::{EIO, ENOSPC, SimDisk};
use crate::storage::File;

#[derive(Debug)]
pub(super) struct SimFile {
    pub(super) disk: SimDisk,
    pub(super) node: u64,
    /// Of the disk when it was opened: a crash ends all handles.
    pub(super) epoch: u64,
}

impl SimFile {
    fn enter(&self, call: Call) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.disk.lock_state();
        state.enter(call)?;
        if state.epoch != self.epoch {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        Ok(state)
    }

    fn read(&self, buffer: &mut [u8], offset: u64, asked: usize) -> io::Result<usize> {
        let mut state = self.enter(Call::Fallible)?;
        let wanted = if state.short && asked > 1 && state.below(4) == 0 {
            1 + state.below(asked - 1)
        } else {
            asked
        };
        let contents = state.contents(self.node)?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(contents.now.len());
        let bytes = &contents.now[start..];
        let count = wanted.min(bytes.len()).min(buffer.len());
        buffer[..count].copy_from_slice(&bytes[..count]);
        Ok(count)
    }
}

impl File for SimFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let asked = buffer.len();
        self.read(buffer, offset, asked)
    }

    fn read_two_at(&self, first: &mut [u8], second: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut both = vec![0; first.len() + second.len()];
        let asked = both.len();
        let count = self.read(&mut both, offset, asked)?;
        let (one, two) = both.split_at(first.len());
        first.copy_from_slice(one);
        second.copy_from_slice(two);
        Ok(count)
    }

    fn write_at(&self, buffer: &[u8], offset: u64) -> io::Result<usize> {
        let mut state = self.enter(Call::Fallible)?;
        let short = state.short && buffer.len() > 1 && state.below(4) == 0;
        let mut count = if short { 1 + state.below(buffer.len() - 1) } else { buffer.len() };
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let grown = (start + count).saturating_sub(state.contents(self.node)?.now.len());
        if grown > 0 && !state.may_grow(grown) {
            let free = state.capacity.saturating_sub(state.used());
            let less = grown - usize::try_from(free).unwrap_or(grown).min(grown);
            // What fits is written before the error comes.
            count = count.saturating_sub(less);
            if count == 0 {
                return Err(io::Error::from_raw_os_error(ENOSPC));
            }
        }
        let contents = state.contents(self.node)?;
        let end = start + count;
        if contents.now.len() < end {
            contents.now.resize(end, 0);
        }
        contents.now[start..end].copy_from_slice(&buffer[..count]);
        contents.dirty.extend(start / SECTOR_SIZE..end.div_ceil(SECTOR_SIZE));
        Ok(count)
    }

    fn sync(&self) -> io::Result<()> {
        let entered = self.enter(Call::Fallible).map(drop);
        let mut state = self.disk.lock_state();
        if state.epoch != self.epoch || state.power_cut_at.is_some_and(|at| state.calls > at) {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        let contents = state.contents(self.node)?;
        let dirty = std::mem::take(&mut contents.dirty);
        // A sync that fails forgets what it should have written.
        entered?;
        contents.durable.resize(contents.now.len(), 0);
        for sector in dirty {
            let start = (sector * SECTOR_SIZE).min(contents.now.len());
            let end = (start + SECTOR_SIZE).min(contents.now.len());
            contents.durable[start..end].copy_from_slice(&contents.now[start..end]);
        }
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        let mut state = self.enter(Call::Fallible)?;
        Ok(state.contents(self.node)?.now.len() as u64)
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        let mut state = self.enter(Call::Fallible)?;
        let size = usize::try_from(size).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let contents = state.contents(self.node)?;
        let old = contents.now.len();
        contents.now.resize(size, 0);
        contents.dirty.extend(old.min(size) / SECTOR_SIZE..old.max(size).div_ceil(SECTOR_SIZE));
        Ok(())
    }

    fn allocate(&self, size: u64) -> io::Result<()> {
        let mut state = self.enter(Call::Fallible)?;
        let size = usize::try_from(size).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let grown = size.saturating_sub(state.contents(self.node)?.now.len());
        if grown > 0 && !state.may_grow(grown) {
            return Err(io::Error::from_raw_os_error(ENOSPC));
        }
        let contents = state.contents(self.node)?;
        if contents.now.len() < size {
            contents.now.resize(size, 0);
        }
        Ok(())
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
