//! After a failed sync nothing is known about what was written since the last good one: the kernel
//! may have forgotten it, and a second sync would say "all good". So the segment is written once
//! more, to a new file, from what can still be read, verified record by record. Until that
//! succeeded, writes are refused and reads go on.

use std::io;

use super::{Namespace, compact};
use crate::Error;

impl Namespace {
    /// Writes suspect segments again. Says whether there were any.
    pub(super) fn mend(&mut self) -> Result<bool, Error> {
        let mut mended = false;
        if !self.sync.suspects.is_empty() {
            if self.is_busy() {
                // It would use the same files.
                return Err(Error::Busy);
            }
            self.finish_switch();
        }
        while let Some(name) = self.sync.suspects.first().copied() {
            if self.position(name).is_some() {
                self.rewrite(name)?;
            }
            self.sync.suspects.remove(&name);
            mended = true;
        }
        if mended {
            self.numbers.durable = self.numbers.written;
        }
        Ok(mended)
    }

    fn rewrite(&mut self, name: u32) -> Result<(), Error> {
        self.flush_amid_batch()?;
        // A compaction that is under way may be of the same segment.
        self.compaction = None;
        let is_last = self.is_last(name);
        let finished = compact::write_again(self, name)?;
        if is_last {
            self.tail = None;
            self.set_mark();
        }
        if finished {
            return Ok(());
        }
        // A crash would bring the old file back, so the new one is as suspect as that.
        Err(Error::Sync(io::Error::other("the folder can't be synced")))
    }
}
